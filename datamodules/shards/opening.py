"""open_all(): the index of every shard, found, compared with its tar, or made."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from d2v_pretrain.atomic_files import atomic
from d2v_pretrain.errors import ConfigError
from datamodules.datasets.unusable import Unusable
from datamodules.parallel import advance, spread
from datamodules.shards import retries
from datamodules.shards.fetch import fetch
from datamodules.shards.index import Index, index_path, is_whole, joins_numbered, load, save, scan
from datamodules.shards.names import PIPE, is_remote, shown
from datamodules.shards.store import Cache
from datamodules.shards.tar import Damaged

_THREADS = 16
_PER_PROCESS = 1 << 28  # bytes of tar that are worth starting a process for


class Shard(NamedTuple):
    """The part of an index that stays in memory.

    Args:
        idx: where the index is.
        tar_bytes, tar_crc: size and CRC-32 of the tar.
        size: bytes of the tar that are there, less than ``tar_bytes`` if it breaks off.
        lengths: length of each sample, 0 for samples that cannot be used.
        bad: number of samples that are known to be unreadable.
    """

    idx: Path
    tar_bytes: int
    tar_crc: int
    size: int
    lengths: np.ndarray
    bad: int


def open_all(names: Sequence[str], cache: Cache, reasons: dict[str, str]) -> list[Shard]:
    """The indexes of all shards; those that are missing or stale are made in parallel and
    written to disk.

    Args:
        names: of the shards.
        cache: for what is downloaded, and for indexes of folders that cannot be written.
        reasons: a dictionary that is filled: name of a bad shard or sample -> reason.

    Raises:
        ConfigError: if neither a shard nor its index is there, so that the number of its samples is
            not known.
    """
    look = partial(_look, cache=cache, reasons=reasons)
    shards = dict(zip(names, _at_once(look, names, "reading indexes")))
    missing = [name for name, shard in shards.items() if shard is None]
    if missing:
        with ExitStack() as stack:
            # If there is no cache folder for a lock, other ranks of the node make the same indexes.
            with suppress(ConfigError):
                stack.enter_context(cache.alone(f"index {missing[0]}"))
            _make([name for name in missing if look(name) is None], cache, reasons)
        shards |= {name: look(name) for name, shard in shards.items() if shard is None}
    return [shard for shard in shards.values() if shard is not None]


def _at_once(
    look: Callable[[str], Shard | None], names: Sequence[str], title: str
) -> list[Shard | None]:
    first = look(names[0])  # alone, so that a store that does not answer is told once
    with ThreadPoolExecutor(_THREADS) as pool:
        found = chain([first], pool.map(look, names[1:]))
        try:
            bar = track(found, title, len(names), console=Console(stderr=True), transient=True)
            return list(bar)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _look(name: str, cache: Cache, reasons: dict[str, str]) -> Shard | None:
    """What is known of a shard, or None if its index must be made."""
    return (_look_far if is_remote(name) else _look_here)(name, cache, reasons)


def _look_here(name: str, cache: Cache, reasons: dict[str, str]) -> Shard | None:
    paths = [Path(index_path(name)), cache.path(os.path.abspath(name), ".idx")]
    found = _load(paths, reasons, name)
    try:
        with open(name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        reason = str(error.strerror or error)
        if found is None:
            rule = f"cannot be read ({reason}) and has no index to count its samples"
            remedy = "bring it back, or name the shards without it"
            raise ConfigError("data.root", name, rule, remedy) from None
        reasons[name] = f"{reason}: its {len(found[1].entries):,} samples are passed over"
        return _shard(*found, 0)
    if found is None or size == found[1].tar_bytes:
        return found and _shard(*found, size)
    if is_whole(name):  # a complete tar of another size is not the one that was indexed
        return None
    shard = _shard(*found, size)
    reasons[name] = (
        f"breaks off after {size:,} of {shard.tar_bytes:,} bytes: "
        f"{shard.bad:,} samples are passed over"
    )
    return shard


def _look_far(name: str, cache: Cache, reasons: dict[str, str]) -> Shard | None:
    path = cache.path(name, ".idx")
    if not path.exists() and not name.startswith(PIPE):
        head, mark, query = name.partition("?")
        # If the index cannot be downloaded, it will be made from the shard itself.
        errors = (Unusable, Damaged, OSError)
        with cache.alone(name), suppress(*errors), atomic(path) as temporary:
            fetch(index_path(head) + mark + query, temporary, retries.AT_START)
            load(temporary)
    found = _load([path], reasons)
    return found and _shard(*found, found[1].tar_bytes)


def _load(
    paths: list[Path], reasons: dict[str, str], tar: str | None = None
) -> tuple[Path, Index] | None:
    for path in paths:
        try:
            index = load(path)
            if tar is None or not joins_numbered(tar, index):
                return path, index
        except FileNotFoundError:
            continue
        except (OSError, Damaged) as error:
            reasons[str(path)] = f"not used as an index ({error})"
    return None


def _shard(path: Path, index: Index, size: int) -> Shard:
    """The part of an index to keep, if its tar has ``size`` bytes now."""
    lengths = index.entries["length"].copy()
    beyond = index.entries["offset"] + index.entries["bytes"] > size
    bad = int((beyond | (lengths == 0)).sum())
    return Shard(path, index.tar_bytes, index.tar_crc, size, lengths, bad)


def _make(names: list[str], cache: Cache, reasons: dict[str, str]) -> None:
    """Make the indexes of these shards, with a progress bar."""
    far, here = [n for n in names if is_remote(n)], [n for n in names if not is_remote(n)]
    total = sum(map(os.path.getsize, here))
    processes = min(os.cpu_count() or 1, 1 + total // _PER_PROCESS)
    make = partial(_make_here, cache=cache)
    for found in spread(make, here, processes, total, "indexing", "bytes") if here else ():
        reasons |= found
    for name in track(far, "fetching and indexing", console=Console(stderr=True), disable=not far):
        reasons |= _make_far(name, cache)


def _make_here(name: str, cache: Cache) -> dict[str, str]:
    """Make an index beside its tar, or in the cache where that folder cannot be written."""
    with open(name, "rb") as file:
        index, refused = scan(file, os.fstat(file.fileno()).st_size)
    try:
        save(index, Path(index_path(name)))
    except OSError:
        _save_in(cache, name, index)
    advance(index.tar_bytes)
    return {f"{name}: {sample}": reason for sample, reason in refused.items()}


def _make_far(name: str, cache: Cache) -> dict[str, str]:
    try:
        with os.fdopen(cache.open(name, None), "rb") as file:
            index, refused = scan(file, os.fstat(file.fileno()).st_size)
    except Unusable as error:
        rule, remedy = f"has no index beside it and {error}", "check the address, or leave it out"
        raise ConfigError("data.root", shown(name), rule, remedy) from None
    _save_in(cache, name, index)
    return {f"{shown(name)}: {sample}": reason for sample, reason in refused.items()}


def _save_in(cache: Cache, name: str, index: Index) -> None:
    """Write the index of a shard into the cache.

    Raises:
        ConfigError: if the folder of the cache cannot take it.
    """
    url = name if is_remote(name) else os.path.abspath(name)
    try:
        save(index, cache.path(url, ".idx"))
    except OSError as error:
        raise cache.full(name, error) from None
