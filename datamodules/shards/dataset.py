"""ShardDataset: the samples of a set of shards by number, what cannot be read of them, and their
labels."""

from __future__ import annotations

import io
import json
import sys
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.labels import Item, labelled
from datamodules.datasets.probe_tasks import Labelled
from datamodules.datasets.scan import Skipped, Unusable
from datamodules.shards.index import Index, load
from datamodules.shards.names import expand, is_remote, shown
from datamodules.shards.opening import Shard, open_all
from datamodules.shards.store import Cache, Store
from datamodules.shards.tar import Damaged, is_unsafe, parts, walk

Raw = TypeVar("Raw")
_MAPPED = 1024  # indexes that a process keeps mapped
_LABELLED = 5000  # samples whose labels a split of the probe looks at, at most
_SOME = 4  # shards from elsewhere that are looked into
_FEW = 100  # reads before which a few bad ones are no share


class TooMuchBad(ConfigError):
    """More of what is read than ``max_bad_share`` allows is unusable. One text, as what a worker
    raises must have."""

    def __init__(self, text: str) -> None:
        Exception.__init__(
            self, text.strip().rpartition("TooMuchBad: ")[2]
        )  # without the traceback of the worker


class ShardDataset(ABC, Generic[Raw]):
    """Samples of WebDataset shards, numbered through the shards in the order of their names.

    Which samples there are is a matter of the indexes alone: what cannot be read stays in the plan,
    reads as None, and is listed once.

    Args:
        root: see ``datamodules.shards.names.expand``.
        max_bad_share: the run ends if more than this share of the samples, or of those read so far,
            is unusable.
        skipped_path: where shards and samples that cannot be used are listed, or None.
        cache_folder: for shards from elsewhere, and for indexes that cannot be written beside their
            shards.
        cache_gb: that the shards in it may take.
        label_key: member with the class (``cls``), or member and field (``json.speaker``), for a
            probe; None for none.
        test_shards: with ``label_key``, the last so many shards are not pretrained on: the probe's
            test.
    """

    bounds: tuple[float, float] = (1, np.inf)  # smallest and largest length that is used
    outside = ""  # what a sample is whose length is not

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
        self.reads = self.bad = 0
        self._mapped: OrderedDict[int, Index] = OrderedDict()
        self._kept: dict[int, np.ndarray] = {}

    @abstractmethod
    def decode(self, members: dict[str, bytes], length: int) -> Raw:
        """A sample of that length in the index from its members, by extension; raises
        ``Unusable``."""

    @cached_property
    def names(self) -> list[str]:
        """All shards."""
        return expand(self.root)

    @property
    def place(self) -> str:
        """Where they are, and how many, for the log."""
        first = self.root if isinstance(self.root, str) else self.root[0]
        more = "" if isinstance(self.root, str) or len(self.root) == 1 else " …"
        return f"{shown(first)}{more}, {len(self.names):,} shards"

    @cached_property
    def shards(self) -> list[Shard]:
        """What their indexes say."""
        reasons: dict[str, str] = {}
        shards = open_all(self.names, self.cache, reasons)
        for name, shard in zip(self.names, shards):
            broken = int((shard.lengths == 0).sum())
            beside = len(shard.lengths) - broken - int(self._used(shard.lengths).sum())
            if broken:
                reasons[f"{shown(name)}: broken"] = f"{broken:,} samples could not be indexed"
            if beside:
                reasons[f"{shown(name)}: length"] = f"{beside:,} samples are {self.outside}"
        self.skipped.start(reasons)
        self._check(shards, reasons)
        if bad := sum(shard.bad for shard in shards):
            told = f": {self.skipped.path} says why" if self.skipped.path else ""
            print(
                f"{bad:,} of {sum(len(s.lengths) for s in shards):,} samples cannot be used{told}",
                file=sys.stderr,
            )
        return shards

    def _used(self, lengths: np.ndarray) -> np.ndarray:
        return (lengths >= max(1, self.bounds[0])) & (lengths <= self.bounds[1])

    def _check(self, shards: list[Shard], reasons: dict[str, str]) -> None:
        total, bad = sum(len(shard.lengths) for shard in shards), sum(shard.bad for shard in shards)
        used = sum(int(self._used(shard.lengths).sum()) for shard in shards)
        named = "; ".join(f"{name} ({reason})" for name, reason in list(reasons.items())[:5])
        if used == 0:
            raise ConfigError(
                "data.root", self.root, f"has no usable sample in {len(shards)} shards", named
            )
        if bad > self.max_bad_share * total:
            rule = f"has {bad:,} unusable of {total:,} samples, more than max_bad_share={self.max_bad_share:g} allows"
            raise ConfigError(
                "data.root", self.root, f"{rule}: {named}", "mend it, or raise data.max_bad_share"
            )
        if self.label_key is not None and not 0 < self.test_shards < len(shards):
            rule = f"must leave some of the {len(shards)} shards to train on, and some to test"
            raise ConfigError(
                "data.test_shards", self.test_shards, rule, "or set data.label_key=null"
            )

    @cached_property
    def shard_sizes(self) -> np.ndarray:
        """(n,) samples that are pretrained on in each shard."""
        sizes = np.array([int(self._used(shard.lengths).sum()) for shard in self.shards])
        if self.label_key is not None:
            sizes[-self.test_shards :] = 0
            self._check_label()
        return sizes

    def _check_label(self) -> None:
        """Whether some samples of the first and last shard have the label, before the run and not
        at its end."""
        places = [
            (s, int(p))
            for s in (0, len(self.shards) - 1)
            for p in np.flatnonzero(self._used(self.shards[s].lengths))[:_SOME]
        ]
        if all(self._label(s, p) is None for s, p in places):
            rule = "is no member, or no field of one, of the samples at the beginning and end"
            raise ConfigError(
                "data.label_key",
                self.label_key,
                rule,
                "such as cls, or json.speaker; or set it to null",
            )

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) uint32, as the index has them."""
        kept = [
            shard.lengths[self._used(shard.lengths)]
            for shard, n in zip(self.shards, self.shard_sizes)
            if n
        ]
        return np.concatenate(kept)

    @property
    def checksums(self) -> np.ndarray:
        """(n,) uint32 CRC-32 of each shard: what the data are, wherever they lie."""
        return np.array([shard.tar_crc for shard in self.shards], np.uint32)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.shard_sizes)

    @cached_property
    def _store(self) -> Store:
        return Store(
            self.names, self.cache, [(shard.tar_bytes, shard.tar_crc) for shard in self.shards]
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def prefetch(self, shards: Sequence[int]) -> None:
        """Begin to fetch those of these shards that are elsewhere."""
        self._store.prefetch([s for s in shards if self.shard_sizes[s]])

    def spread_ids(self, n: int) -> np.ndarray:
        """(n,) ids spread over the data, but of few shards where these must be fetched: to look at,
        not to train on."""
        ids = np.arange(len(self))
        if any(map(is_remote, self.names)):
            full = np.flatnonzero(self.shard_sizes)
            few = full[np.linspace(0, len(full) - 1, _SOME).astype(int)]
            ids = np.concatenate(
                [
                    np.arange(self._ends[s] - self.shard_sizes[s], self._ends[s])
                    for s in np.unique(few)
                ]
            )
        return ids[np.linspace(0, len(ids) - 1, n).astype(int)]

    def _place(self, index: int) -> tuple[int, int]:
        """Shard, and place in it, of a sample."""
        shard = int(np.searchsorted(self._ends, index, "right"))
        place = int(index - (self._ends[shard] - self.shard_sizes[shard]))
        lengths = self.shards[shard].lengths
        if self.shard_sizes[shard] == len(lengths):
            return shard, place
        if shard not in self._kept:
            self._kept[shard] = np.flatnonzero(self._used(lengths)).astype(np.uint32)
        return shard, int(self._kept[shard][place])

    def read(self, index: int) -> Raw | None:
        """The sample as the modality has it, or None if it cannot be read (then it is listed)."""
        return self._read(*self._place(index))

    def name(self, index: int) -> str:
        """Shard and key of a sample, for lists."""
        shard, place = self._place(index)
        try:
            key = sample_of(self._span(shard, place))[0]
        except Unusable:
            key = f"sample {place}"
        return f"{shown(self.names[shard])}: {key}"

    def _read(self, shard: int, place: int) -> Raw | None:
        self.reads += 1
        key = ""  # as long as it is the shard that cannot be read
        try:
            span = self._span(shard, place)
            key = f": sample {place}"
            name, members = sample_of(span)
            key = f": {name}"
            return self.decode(members, int(self.shards[shard].lengths[place]))
        except Unusable as error:
            self._note(shown(self.names[shard]) + key, str(error))
            return None

    def _note(self, name: str, reason: str) -> None:
        self.skipped.add(name, reason)
        self.bad += 1
        if self.bad > self.max_bad_share * max(self.reads, _FEW):
            share = f"{self.bad:,} of {self.reads:,} samples that this process read are unusable"
            rule = f"{share}, more than data.max_bad_share={self.max_bad_share:g} allows (the last: {name}: {reason})"
            raise TooMuchBad(
                f"data.root={self.root}: {rule}; mend it, or raise data.max_bad_share."
            )

    def _span(self, shard: int, place: int) -> bytes:
        entry = self._index(shard).entries[place]
        return self._store.span(shard, int(entry["offset"]), int(entry["bytes"]))

    def _index(self, shard: int) -> Index:
        """The index of a shard, mapped; raises ``Unusable`` if it is no longer the one that the
        plan was made with."""
        if shard not in self._mapped:
            known = self.shards[shard]
            try:
                index = load(known.idx, verified=True)
            except (OSError, Damaged) as error:
                raise Unusable(f"its index cannot be read any more ({error})") from None
            if (index.tar_bytes, index.tar_crc, len(index.entries)) != (
                *known[1:3],
                len(known.lengths),
            ):
                raise Unusable("its index was changed while training")
            self._mapped[shard] = index
            if len(self._mapped) > _MAPPED:
                self._mapped.popitem(last=False)
        return self._mapped[shard]

    def labelled(self) -> list[Labelled[Raw]]:
        """The probe of ``label_key``: trained on shards that are pretrained on too, tested on the
        last; [] without."""
        if self.label_key is None:
            return []
        split = len(self.shards) - self.test_shards
        items = [
            item
            for test, shards in ((False, range(split)), (True, range(split, len(self.shards))))
            for item in self._items(shards, test)
        ]
        note = f"tested on the last {f'{self.test_shards} shards' if self.test_shards > 1 else 'shard'}"
        return [
            labelled(self.label_key, items, lambda key: self._read(*map(int, key.split("/"))), note)
        ]

    def _items(self, shards: range, test: bool) -> list[Item]:
        """Samples of these shards with their classes, evenly from all of them."""
        each = -(-_LABELLED // len(shards))
        places = [
            (s, int(p))
            for s in shards
            for p in np.flatnonzero(self._used(self.shards[s].lengths))[:each]
        ]
        return [
            Item(f"{s}/{p}", label, test)
            for s, p in places
            if (label := self._label(s, p)) is not None
        ]

    def _label(self, shard: int, place: int) -> str | None:
        assert self.label_key is not None
        extension, _, key = self.label_key.partition(".")
        try:
            found = sample_of(self._span(shard, place))[1][extension].decode("utf-8").strip()
            return str(json.loads(found)[key]) if key else found
        except (Unusable, KeyError, ValueError):
            return None


def sample_of(span: bytes) -> tuple[str, dict[str, bytes]]:
    """Key of a sample, and its members by extension (lower case), from its bytes in the tar.

    Raises:
        Unusable: if they are not one whole sample.
    """
    key, members = "", dict[str, bytes]()
    try:
        for member in walk(io.BytesIO(span), len(span)):
            if (named := parts(member.name)) is None:
                continue
            if is_unsafe(member.name) or named[1] in members:
                raise Unusable(f"has a member that is refused: {member.name}")
            key, members[named[1]] = named[0], member.data
    except Damaged as error:
        raise Unusable(str(error)) from None
    if not members:
        raise Unusable("no member where the index has one")
    return key, members


def one_of(members: dict[str, bytes], endings: tuple[str, ...]) -> bytes:
    """The first member with one of these endings (``.flac``); raises ``Unusable`` if there is
    none."""
    for extension, data in members.items():
        if f".{extension.rpartition('.')[2]}" in endings:
            return data
    raise Unusable(f"has no member {' or '.join(endings)}; it has {', '.join(members)}")
