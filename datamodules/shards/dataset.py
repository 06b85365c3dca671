"""ShardDataset: the samples of a set of shards by number, and their labels."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.base import Dataset, Item
from datamodules.datasets.labels import LabelRow, labelled
from datamodules.datasets.probe_tasks import Labelled
from datamodules.datasets.scan import Skipped
from datamodules.datasets.unusable import Unusable, reading
from datamodules.shards.index import Index, load
from datamodules.shards.members import further, label_of
from datamodules.shards.names import expand, is_remote, shown
from datamodules.shards.opening import Shard, open_all
from datamodules.shards.store import Cache, Store
from datamodules.shards.tar import Damaged, sample_of

_MAPPED = 1024  # indexes that a process keeps mapped
_LABELLED = 5000  # samples whose labels a split of the probe looks at, at most
_SOME = 4  # remote shards that health measures read; samples of a shard whose label is tried


class ShardDataset(Dataset[Item]):
    """Samples of WebDataset shards, numbered through the shards in the order of their names.

    The indexes alone decide which samples there are: one that cannot be read keeps its number.

    Args:
        root: see ``datamodules.shards.names.expand``.
        max_bad_share: largest share of the samples that may be unusable, see also ``BadData``.
        skipped_path: where shards and samples that cannot be used are listed, or None.
        cache_folder: for remote shards, and for indexes that cannot be written beside their shards.
        cache_gb: largest size of the shards in ``cache_folder`` together.
        label_key: member with the class (``cls``), or member and field (``json.speaker``), for a
            probe; None for none.
        test_shards: with ``label_key``, so many shards, the last ones, are not pretrained on but
            tested by the probe.

    Attributes:
        bounds: smallest and largest length that is used.
        outside: the reason that the list of skipped samples gives for all other lengths.
    """

    bounds: tuple[float, float] = (1, np.inf)
    outside = ""

    def __init__(
        self,
        root: str | Sequence[str],
        max_bad_share: float,
        skipped_path: str | None,
        cache_folder: str,
        cache_gb: float,
        label_key: str | None,
        test_shards: int,
    ) -> None:
        self.root, self.max_bad_share = root, max_bad_share
        self.label_key, self.test_shards = label_key, test_shards
        self.skipped, self.cache = Skipped(skipped_path), Cache(cache_folder, cache_gb)
        self._mapped: OrderedDict[int, Index] = OrderedDict()
        self._kept: dict[int, np.ndarray] = {}

    @abstractmethod
    def decode(self, members: dict[str, bytes], length: int) -> Item:
        """The item of a sample.

        Args:
            members: extension -> bytes.
            length: length of the sample by the index.

        Raises:
            Unusable: if it cannot be decoded.
        """

    @cached_property
    def names(self) -> list[str]:
        """Paths or addresses of all shards."""
        return expand(self.root)

    @property
    def folder(self) -> Path | None:
        """Folder of the shards; None if they are remote."""
        return None if is_remote(self.names[0]) else Path(self.names[0]).parent

    @property
    def place(self) -> str:
        """Where the shards are and how many there are, for the log."""
        first = self.root if isinstance(self.root, str) else self.root[0]
        more = "" if isinstance(self.root, str) or len(self.root) == 1 else " …"
        return f"{shown(first)}{more}, {len(self.names):,} shards"

    @cached_property
    def shards(self) -> list[Shard]:
        """What the indexes say of each shard.

        Raises:
            ConfigError: if no sample is usable, too many are not, or none is left to test.
        """
        reasons: dict[str, str] = {}
        shards = open_all(self.names, self.cache, reasons)
        used = [len(self._used(shard)) for shard in shards]
        for name, shard, kept in zip(self.names, shards, used, strict=True):
            if broken := int((shard.lengths == 0).sum()):
                reasons[f"{shown(name)}: broken"] = f"{broken:,} samples could not be indexed"
            if beside := len(shard.lengths) - broken - kept:
                reasons[f"{shown(name)}: length"] = f"{beside:,} samples are {self.outside}"
        self.skipped.start(reasons)
        total, bad = sum(len(shard.lengths) for shard in shards), sum(shard.bad for shard in shards)
        named = "; ".join(f"{name} ({reason})" for name, reason in list(reasons.items())[:5])
        if sum(used) == 0:
            raise ConfigError("data.root", self.root, "has no usable sample in its shards", named)
        if bad > self.max_bad_share * total:
            rule = (
                f"has {bad:,} unusable of {total:,} samples, more than "
                f"max_bad_share={self.max_bad_share:g} allows: {named}"
            )
            raise ConfigError("data.root", self.root, rule, "mend it, or raise data.max_bad_share")
        if self.label_key is not None and not 0 < self.test_shards < len(shards):
            rule = f"must leave some of the {len(shards)} shards to train on, and some to test"
            remedy = "or set data.label_key=null"
            raise ConfigError("data.test_shards", self.test_shards, rule, remedy)
        if bad:
            told = f": {self.skipped.path} says why" if self.skipped.path else ""
            print(f"{bad:,} of {total:,} samples cannot be used{told}", file=sys.stderr)
        there = [n for n, shard in zip(self.names, shards) if shard.size and not is_remote(n)]
        self.skipped.watch(str(self.root), there)
        return shards

    def _used(self, shard: Shard) -> np.ndarray:
        """The places in a shard of the samples whose length is within ``bounds``."""
        low, high = max(1, self.bounds[0]), self.bounds[1]
        return np.flatnonzero((shard.lengths >= low) & (shard.lengths <= high))

    @cached_property
    def shard_sizes(self) -> np.ndarray:
        """(shards,) number of samples of each shard that are pretrained on."""
        sizes = np.array([len(self._used(shard)) for shard in self.shards])
        if self.label_key is not None:
            sizes[-self.test_shards :] = 0
            # Check now that some of the samples have the label, not at the end of the run.
            ends = (0, len(self.shards) - 1)
            if not any(True for s in ends for _ in self._label_rows(s, _SOME, False)):
                rule = "is no member, or no field of one, of the samples at the beginning and end"
                remedy = "such as cls, or json.speaker; or set it to null"
                raise ConfigError("data.label_key", self.label_key, rule, remedy)
        return sizes

    @cached_property
    def lengths(self) -> np.ndarray:
        """The length of each sample by the index, uint32."""
        kept = [
            shard.lengths[self._used(shard)]
            for shard, size in zip(self.shards, self.shard_sizes, strict=True)
            if size
        ]
        return np.concatenate(kept)

    @property
    def checksums(self) -> np.ndarray:
        return np.array([shard.tar_crc for shard in self.shards], np.uint32)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.shard_sizes)

    @cached_property
    def _store(self) -> Store:
        sums = [(shard.tar_bytes, shard.tar_crc) for shard in self.shards]
        return Store(self.names, self.cache, sums)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def prefetch(self, shards: Sequence[int] | np.ndarray) -> None:
        self._store.prefetch([s for s in shards if self.shard_sizes[s]])

    def at_hand(self) -> np.ndarray:
        """All samples if the shards are local, else those of a few shards."""
        if not any(map(is_remote, self.names)):
            return super().at_hand()
        full = np.flatnonzero(self.shard_sizes)
        few = np.unique(full[np.linspace(0, len(full) - 1, _SOME).astype(int)])
        spans = [np.arange(self._ends[s] - self.shard_sizes[s], self._ends[s]) for s in few]
        return np.concatenate(spans)

    def _place(self, index: int) -> tuple[int, int]:
        """Shard of a sample, and its place in it."""
        shard = int(np.searchsorted(self._ends, index, "right"))
        place = int(index - (self._ends[shard] - self.shard_sizes[shard]))
        if self.shard_sizes[shard] == len(self.shards[shard].lengths):
            return shard, place
        if shard not in self._kept:
            self._kept[shard] = self._used(self.shards[shard]).astype(np.uint32)
        return shard, int(self._kept[shard][place])

    def read(self, index: int) -> Item | None:
        return self._read(*self._place(index))

    def members(self, index: int) -> dict[str, bytes]:
        """Extension -> bytes of a sample; {} if they cannot be read."""
        try:
            return sample_of(self._span(*self._place(index)))[1]
        except Unusable:
            return {}

    def name(self, index: int) -> str:
        shard, place = self._place(index)
        try:
            key = sample_of(self._span(shard, place))[0]
        except Unusable:
            key = f"sample {place}"
        return f"{shown(self.names[shard])}: {key}"

    def _read(self, shard: int, place: int) -> Item | None:
        name = shown(self.names[shard])
        key = ""  # empty until the shard is read: an error before that is the shard's
        try:
            with reading("cannot be read"):
                span = self._span(shard, place)
                key = f": sample {place}"
                found, members = sample_of(span)
                key = f": {found}"
                if unused := further(members):
                    reason = f"of {found} the first is used, not {', '.join(unused)}"
                    self.skipped.add(f"{self.place}: further members", reason)  # once
                return self.decode(members, int(self.shards[shard].lengths[place]))
        except Unusable as error:
            self.skipped.add(name + key, str(error), within=self.names[shard])
            return None

    def count_items(self, index: int, usable: bool) -> tuple[int, int]:
        """See ``Numbered``. A sample that was missing at the start does not count again."""
        return 1, int(not usable and not self._was_missing(*self._place(index)))

    def _was_missing(self, shard: int, place: int) -> bool:
        """Whether the tar was missing at the start, or broke off before this sample."""
        size = self.shards[shard].size
        with suppress(Unusable):
            entry = self._index(shard).entries[place]
            return int(entry["offset"]) + int(entry["bytes"]) > size
        return size == 0

    def _span(self, shard: int, place: int) -> bytes:
        """The bytes of a sample."""
        entry = self._index(shard).entries[place]
        return self._store.span(shard, int(entry["offset"]), int(entry["bytes"]))

    def _index(self, shard: int) -> Index:
        """The index of a shard, mapped.

        Raises:
            Unusable: if it was changed since the order of the run was made from it.
        """
        if shard not in self._mapped:
            known = self.shards[shard]
            try:
                index = load(known.idx, verified=True)
            except (OSError, Damaged) as error:
                raise Unusable(f"its index cannot be read any more ({error})") from None
            same = (known.tar_bytes, known.tar_crc, len(known.lengths))
            if (index.tar_bytes, index.tar_crc, len(index.entries)) != same:
                raise Unusable("its index was changed while training")
            self._mapped[shard] = index
            if len(self._mapped) > _MAPPED:
                self._mapped.popitem(last=False)
        return self._mapped[shard]

    def labelled(self) -> list[Labelled[Item]]:
        """The classification by ``label_key``, tested on the last shards; [] without a key."""
        if self.label_key is None:
            return []
        split = len(self.shards) - self.test_shards
        rows: list[LabelRow] = []
        for test, shards in ((False, range(split)), (True, range(split, len(self.shards)))):
            each = -(-_LABELLED // len(shards))
            rows += [row for shard in shards for row in self._label_rows(shard, each, test)]
        last = f"{self.test_shards} shards" if self.test_shards > 1 else "shard"

        def read(key: str) -> Item | None:
            return self._read(*map(int, key.split("/")))

        return [labelled(self.label_key, rows, read, f"tested on the last {last}")]

    def _label_rows(self, shard: int, most: int, test: bool) -> Iterator[LabelRow]:
        """Labels of the first samples of a shard; their keys are "shard/place"."""
        for place in self._used(self.shards[shard])[:most].tolist():
            with suppress(Unusable):  # a sample without a label is no bad one
                label = label_of(sample_of(self._span(shard, place))[1], str(self.label_key))
                yield LabelRow(f"{shard}/{place}", label, test)
