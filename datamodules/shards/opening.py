"""Every index of a set of shards: found beside its tar or in the cache, compared with the tar, or
made now."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.scan import Unusable
from datamodules.parallel import advance, spread
from datamodules.shards.fetch import fetch
from datamodules.shards.index import Index, index_path, is_whole, load, save, scan
from datamodules.shards.names import PIPE, is_remote, shown
from datamodules.shards.store import Cache
from datamodules.shards.tar import Damaged

_THREADS = 16
_PER_PROCESS = 1 << 28  # bytes of tar that are worth a process of their own


class Shard(NamedTuple):
    """What is kept of an index in memory: where it is, what it says of the tar, and each sample's
    length.

    ``bad`` counts the samples that are known to be unreadable.
    """

    idx: Path
    tar_bytes: int
    tar_crc: int
    lengths: np.ndarray
    bad: int


def open_all(names: Sequence[str], cache: Cache, reasons: dict[str, str]) -> list[Shard]:
    """The indexes of all shards; those that are missing or stale are made, in parallel, and kept.

    Args:
        names: of the shards. cache: for what is fetched and for indexes of folders that cannot be
            written.
        reasons: gets what is wrong with shards and samples: name -> reason.

    Raises:
        ConfigError: if a shard is not there and neither is its index, so that the plan is not
            known.
    """
    look = partial(_look, cache=cache, reasons=reasons)
    shards = dict(zip(names, _at_once(look, names, "reading indexes")))
    missing = [name for name, shard in shards.items() if shard is None]
    if missing:
        with ExitStack() as stack:
            with suppress(
                ConfigError
            ):  # without a cache the other ranks of the node do not wait, and make them too
                stack.enter_context(cache.alone(f"index {missing[0]}"))
            missing = [name for name in missing if look(name) is None]
            _make(missing, cache, reasons)
        shards |= {name: look(name) for name, shard in shards.items() if shard is None}
    return [shard for shard in shards.values() if shard is not None]


def _at_once(
    look: Callable[[str], Shard | None], names: Sequence[str], title: str
) -> list[Shard | None]:
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(look, names)
        return list(track(found, title, len(names), console=Console(stderr=True), transient=True))


def _look(name: str, cache: Cache, reasons: dict[str, str]) -> Shard | None:
    """What is known of a shard, or None if its index must be made."""
    return (_look_far if is_remote(name) else _look_here)(name, cache, reasons)


def _look_here(name: str, cache: Cache, reasons: dict[str, str]) -> Shard | None:
    found = _load([Path(index_path(name)), cache.path(os.path.abspath(name), ".idx")], reasons)
    try:
        with open(name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        reason = str(error.strerror or error)
        if found is None:
            rule = (
                f"cannot be read ({reason}) and has no index, so that its samples cannot be counted"
            )
            raise ConfigError(
                "data.root", name, rule, "bring it back, or name the shards without it"
            ) from None
        reasons[name] = f"{reason}: its {len(found[1].entries):,} samples are passed over"
        return _shard(*found, 0)
    if found is None or size == found[1].tar_bytes:
        return found and _shard(*found, size)
    if is_whole(name):  # another tar than the one that was indexed
        return None
    shard = _shard(*found, size)
    reasons[name] = (
        f"breaks off after {size:,} of {shard.tar_bytes:,} bytes: {shard.bad:,} samples are passed over"
    )
    return shard


def _look_far(name: str, cache: Cache, reasons: dict[str, str]) -> Shard | None:
    path = cache.path(name, ".idx")
    if not path.exists() and not name.startswith(PIPE):
        head, mark, query = name.partition("?")
        with cache.alone(name):
            half = path.with_suffix(".idx.part")
            try:
                fetch(index_path(head) + mark + query, half)
                load(half)
                os.replace(half, path)
            except (Unusable, Damaged, OSError):  # then from the shard itself
                half.unlink(missing_ok=True)
    found = _load([path], reasons)
    return found and _shard(*found, found[1].tar_bytes)


def _load(paths: list[Path], reasons: dict[str, str]) -> tuple[Path, Index] | None:
    for path in paths:
        try:
            return path, load(path)
        except FileNotFoundError:
            continue
        except (OSError, Damaged) as error:
            reasons[str(path)] = f"not used as an index ({error})"
    return None


def _shard(path: Path, index: Index, size: int) -> Shard:
    """As it is kept, if the tar has ``size`` bytes."""
    lengths = index.entries["length"].copy()
    beyond = index.entries["offset"] + index.entries["bytes"] > size
    return Shard(
        path, index.tar_bytes, index.tar_crc, lengths, int((beyond | (lengths == 0)).sum())
    )


def _make(names: list[str], cache: Cache, reasons: dict[str, str]) -> None:
    """The indexes of shards that have none, with a bar."""
    far, here = [n for n in names if is_remote(n)], [n for n in names if not is_remote(n)]
    total = sum(map(os.path.getsize, here))
    processes = min(os.cpu_count() or 1, 1 + total // _PER_PROCESS)
    make = partial(_make_here, cache=cache)
    for found in spread(make, here, processes, total, "indexing", "bytes") if here else ():
        reasons |= found
    for name in track(far, "fetching and indexing", console=Console(stderr=True), disable=not far):
        reasons |= _make_far(name, cache)


def _make_here(name: str, cache: Cache) -> dict[str, str]:
    """Beside the tar, or in the cache where that folder cannot be written."""
    with open(name, "rb") as file:
        index, refused = scan(file, os.fstat(file.fileno()).st_size)
    try:
        save(index, Path(index_path(name)))
    except OSError:
        cache.folder.mkdir(parents=True, exist_ok=True)
        save(index, cache.path(os.path.abspath(name), ".idx"))
    advance(index.tar_bytes)
    return {f"{name}: {sample}": reason for sample, reason in refused.items()}


def _make_far(name: str, cache: Cache) -> dict[str, str]:
    try:
        with os.fdopen(cache.open(name, None), "rb") as file:
            index, refused = scan(file, os.fstat(file.fileno()).st_size)
    except Unusable as error:
        rule = f"has no index beside it and {error}"
        raise ConfigError(
            "data.root", shown(name), rule, "check the address, or name the shards without it"
        ) from None
    save(index, cache.path(name, ".idx"))
    return {f"{shown(name)}: {sample}": reason for sample, reason in refused.items()}
