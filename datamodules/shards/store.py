"""Store: the bytes of shards, from local files or from a cache of bounded size for remote ones."""

from __future__ import annotations

import fcntl
import hashlib
import os
import queue
import re
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from d2v_pretrain.atomic_files import atomic
from d2v_pretrain.errors import ConfigError, refuse_address
from d2v_pretrain.redaction import reveal
from datamodules.datasets.unusable import Unusable
from datamodules.shards.fetch import fetch
from datamodules.shards.names import is_remote, shown
from datamodules.shards.retries import Refused

Sum = tuple[int, int]  # size in bytes and CRC-32 of a shard
_OPEN = 64  # files that a process keeps open
_FETCHERS = 4  # shards that a process downloads ahead at a time
_EVICTED = 20  # times that a shard may be deleted before it is opened
_CACHED = ".shard"  # files with this ending may be deleted; no file of a user has it


class Cache:
    """A folder with copies of remote shards. When it is full, the least recently used are deleted.

    The processes of a node share it: a lock lets one of them download a shard while the others
    wait. A deleted file that is still open can be read to its end.

    Args:
        folder: where the copies are, on a disk of the node.
        gigabytes: size that the copies may take together.

    Raises:
        ConfigError: if the folder is an address.
    """

    def __init__(self, folder: str, gigabytes: float) -> None:
        refuse_address("data.cache_folder", folder)
        self.folder, self.limit = Path(folder).expanduser(), gigabytes * 1e9
        self.locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self.pid = os.getpid()
        # Shards whose store did not answer: who waits for them is not to wait as long again.
        self.failed: dict[str, ConfigError] = {}

    def path(self, url: str, ending: str = _CACHED) -> Path:
        """The file for the copy of a shard; every address has another file name."""
        plain = shown(url).partition("?")[0].rstrip("/")
        last = re.sub(r"[^\w.-]+", "_", plain.rpartition("/")[2])[-80:]
        key = hashlib.sha256(reveal(url).encode()).hexdigest()[:12]
        return self.folder / f"{key}-{last.removesuffix('.tar')}{ending}"

    @contextmanager
    def alone(self, url: str) -> Iterator[None]:
        """Hold the lock of an address against all threads and processes of this node.

        Raises:
            ConfigError: if the folder cannot be written.
        """
        # After a fork: a lock that a thread of the parent held would never become free.
        if self.pid != os.getpid():
            self.locks, self.pid = defaultdict(threading.Lock), os.getpid()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.path(url, ".lock").open("a")
        except OSError as error:
            rule = f"cannot be written ({error.strerror or error})"
            remedy = "give a folder on a disk of the node"
            raise ConfigError("data.cache_folder", self.folder, rule, remedy) from None
        with self.locks[url], file:
            fcntl.lockf(file, fcntl.LOCK_EX)  # not flock, whose lock a forked child would share
            yield

    def open(self, url: str, expected: Sum | None) -> int:
        """The descriptor of an open shard, downloaded if it is not there.

        It stays readable if the file is deleted.

        Args:
            url: address of the shard.
            expected: its size and checksum, or None if they are not known yet.

        Raises:
            Unusable: if it cannot be downloaded, or is not the shard that was indexed.
            ConfigError: if its store does not answer, or the folder cannot take it.
        """
        path = self.path(url)
        for _ in range(_EVICTED):
            with suppress(FileNotFoundError):
                return self._open(path)
            with self.alone(url):
                if not path.exists():
                    self._fetch(url, path, expected)
                # Another process that needs room may have deleted it again already.
                with suppress(FileNotFoundError):
                    file = self._open(path)
                    self._make_room(0, path)
                    return file
        raise Unusable("is deleted as soon as it is fetched: data.cache_gb is too small")

    def _open(self, path: Path) -> int:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with suppress(OSError):
            os.utime(file)  # the time of its last use
        return file

    def __getstate__(self) -> dict[str, object]:
        """State for another process, without the locks of this one."""
        return {name: value for name, value in self.__dict__.items() if name != "locks"} | {
            "pid": -1
        }

    def _fetch(self, url: str, path: Path, expected: Sum | None) -> None:
        if url in self.failed:
            raise self.failed[url]
        try:
            self._make_room(expected[0] if expected else 0, path)
            with atomic(path, path.with_suffix(".part")) as part:
                for _ in range(2):
                    crc = fetch(url, part)
                    if expected in (None, (part.stat().st_size, crc)):
                        return
                raise Unusable("is not the shard that was indexed: size or checksum differ")
        except OSError as error:
            raise self.full(url, error) from None
        except ConfigError as error:
            self.failed[url] = error
            raise

    def full(self, url: str, error: OSError) -> ConfigError:
        """The error to raise if the folder cannot take a file."""
        rule = f"cannot take what belongs to {shown(url)} ({error.strerror or error})"
        remedy = "free space there or give another folder, and type the same command"
        return ConfigError("data.cache_folder", self.folder, rule, remedy)

    def _make_room(self, more: int, keep: Path) -> None:
        """Delete shards until ``more`` bytes fit, the least recently used first, but never
        ``keep``."""
        there = []
        for file in self.folder.glob(f"*{_CACHED}"):
            with suppress(FileNotFoundError):  # another process may delete it too
                there.append((file.stat().st_mtime, file.stat().st_size, file))
        excess = sum(size for _, size, _ in there) + more - self.limit
        for _, size, file in sorted(there):
            if excess > 0 and file != keep:
                file.unlink(missing_ok=True)
                excess -= size


class Store:
    """Bytes of numbered shards.

    Args:
        names: paths or addresses of the shards.
        cache: keeps copies of the remote shards.
        sums: size in bytes and CRC-32 of each shard.
    """

    def __init__(self, names: Sequence[str], cache: Cache, sums: Sequence[Sum]) -> None:
        self.names, self.cache, self.sums = names, cache, sums
        # Descriptors, the most recently used at the end.
        self.files: OrderedDict[int, int] = OrderedDict()
        # Shards that could not be downloaded, with the reason: this process does not try again.
        self.gone: dict[int, str] = {}
        self.wanted: queue.SimpleQueue[int] | None = None

    def span(self, number: int, begin: int, size: int) -> bytes:
        """``size`` bytes of a shard, or fewer if the shard ends before.

        Raises:
            Unusable: if the shard cannot be read.
        """
        for again in (True, False):
            try:
                return _read(self._open(number), begin, size)
            except OSError as error:  # such as a stale handle of a network disk: try once more
                self._close(number)
                if not again:
                    raise Unusable(f"cannot be read ({error.strerror or error})") from None
        raise AssertionError

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Start to download those of these shards that are remote, in this order.

        Raises:
            ConfigError: if the cache cannot hold them.
        """
        far = [n for n in dict.fromkeys(map(int, numbers)) if is_remote(self.names[n])]
        size = sum(self.sums[n][0] for n in far)
        if size > self.cache.limit:
            rule = (
                f"is less than the {size / 1e9:.3g} GB of the {len(far)} shards that are read "
                "at the same time"
            )
            remedy = "raise it, or set a smaller window_shards"
            raise ConfigError("data.cache_gb", self.cache.limit / 1e9, rule, remedy)
        if far and self.wanted is None:
            self.wanted = queue.SimpleQueue()
            for _ in range(_FETCHERS):  # daemons, so that the process can end without them
                args = (self.wanted,)
                threading.Thread(target=self._keep_fetching, args=args, daemon=True).start()
        for n in far:
            assert self.wanted is not None
            self.wanted.put(n)

    def _keep_fetching(self, wanted: queue.SimpleQueue[int]) -> None:
        while True:
            number = wanted.get()
            with suppress(Unusable, ConfigError):  # whoever reads the shard will report it
                os.close(self.cache.open(self.names[number], self.sums[number]))

    def _open(self, number: int) -> int:
        if number not in self.files:
            self._sweep()
            self.files[number] = self._opened(number)
        self.files.move_to_end(number)
        return self.files[number]

    def _opened(self, number: int) -> int:
        name = self.names[number]
        if not is_remote(name):
            return os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        if number in self.gone:
            raise Unusable(self.gone[number])
        try:
            return self.cache.open(name, self.sums[number])
        except Refused as error:
            rule = f"may not be read any more: it {error}"
            remedy = "renew the credentials and type the same command"
            raise ConfigError("data.root", shown(name), rule, remedy) from None
        except Unusable as error:
            self.gone[number] = str(error)
            raise

    def _sweep(self) -> None:
        """Close deleted files, whose space is free only then, and one if too many are open."""
        for number, file in list(self.files.items()):
            if len(self.files) >= _OPEN or os.fstat(file).st_nlink == 0:
                self._close(number)

    def _close(self, number: int) -> None:
        if number in self.files:
            with suppress(OSError):
                os.close(self.files.pop(number))

    def __getstate__(self) -> dict[str, object]:
        """State for another process, without open files and threads."""
        return self.__dict__ | {"files": OrderedDict(), "wanted": None}


def _read(file: int, begin: int, size: int) -> bytes:
    data = os.pread(file, size, begin)
    while len(data) < size and (more := os.pread(file, size - len(data), begin + len(data))):
        data += more  # one call returns 2 GiB at most
    return data
