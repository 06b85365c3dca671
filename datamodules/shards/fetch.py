"""Download a remote shard to a file: resumed where the connection broke, and tried again."""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from webdataset.gopen import gopen, set_options

from d2v_pretrain.redaction import reveal
from datamodules.datasets.unusable import Unusable
from datamodules.shards import retries
from datamodules.shards.names import PIPE, shown
from datamodules.shards.retries import Broken, persist
from datamodules.shards.stores import errors_of_stores, opened, store_of

STALL = 30.0  # seconds without a byte after which a connection counts as broken
_PIPE_TRIES = 3  # a command that fails at once will hardly succeed later
_NO_COMMAND = {126, 127}  # codes of a shell that cannot start a command
_CHUNK = 1 << 20
_QUIET = 30  # seconds between lines of progress


class Stream(NamedTuple):
    """An open download.

    Args:
        file: the bytes.
        begin: place in the shard of the first byte of ``file``.
        total: size of the shard, None if unknown.
        version: what the server calls this version of the file, None if it does not say.
    """

    file: BinaryIO
    begin: int
    total: int | None
    version: str | None


def fetch(url: str, path: Path, tries: int | None = None) -> int:
    """Write the whole of ``url`` to ``path``, and return its CRC-32.

    Args:
        url: address of a file.
        path: file to write.
        tries: how often a store is asked that does not answer, ``retries.TRIES`` by default.

    Raises:
        Unusable: if there is no such file, it is empty or may not be read.
        ConfigError: if the store cannot be reached, see ``persist``.
        OSError: if ``path`` cannot be written.
    """
    fetched = _Download(url, path)
    tries = _PIPE_TRIES if url.startswith(PIPE) else tries or retries.TRIES
    persist(shown(url), fetched.go_on, tries, lambda: f" from byte {fetched.done:,}")
    if not fetched.done:
        raise Unusable("is empty")
    return fetched.crc


class _Download:
    """The part of a shard that was downloaded so far."""

    def __init__(self, url: str, path: Path) -> None:
        self.url, self.path = url, path
        self.done = self.crc = 0
        self.version: str | None = None
        self.told = time.monotonic()

    def go_on(self) -> None:
        """Download what is missing; raises OSError if the connection breaks."""
        with _opener(self.url)(reveal(self.url), self.done, self.version) as stream:
            if stream.begin == 0 or stream.begin != self.done:  # it begins anew
                self.done = self.crc = 0
            self.version = stream.version
            with self.path.open("r+b" if self.done else "wb") as file:
                file.seek(self.done)
                while chunk := stream.file.read(_CHUNK):
                    file.write(chunk)
                    self.done, self.crc = self.done + len(chunk), zlib.crc32(chunk, self.crc)
                    self._tell(stream.total)
        if stream.total is not None and self.done != stream.total:
            raise Broken(f"broke off after {self.done:,} of {stream.total:,} bytes")

    def _tell(self, total: int | None) -> None:
        if time.monotonic() - self.told > _QUIET:
            self.told = time.monotonic()
            of = f" of {total / 1e6:,.0f}" if total else ""
            print(f"fetching {shown(self.url)}: {self.done / 1e6:,.0f}{of} MB", file=sys.stderr)


def _opener(url: str) -> Callable[[str, int, str | None], AbstractContextManager[Stream]]:
    if url.startswith(PIPE):
        return _pipe
    return _http if url.startswith(("http://", "https://")) else _elsewhere


@contextmanager
def _http(url: str, begin: int, version: str | None) -> Iterator[Stream]:
    """The rest of the file if it is still the same (``If-Range``), else all of it."""
    rest = {"Range": f"bytes={begin}-", "If-Range": version} if begin and version else {}
    with opened(url, rest, STALL) as answer:
        version = answer.headers["ETag"] or answer.headers["Last-Modified"]
        if version is not None and version.startswith("W/"):
            version = None  # a weak version: other bytes may have the same one
        length = answer.headers["Content-Length"]
        if answer.status != 206:
            yield Stream(answer, 0, int(length) if length else None, version)
            return
        first, _, total = (
            answer.headers["Content-Range"].removeprefix("bytes ").replace("-", "/").split("/")
        )
        yield Stream(answer, int(first), int(total) if total != "*" else None, version)


@contextmanager
def _pipe(url: str, begin: int, version: str | None) -> Iterator[Stream]:
    """The output of a command, from its beginning: a pipe cannot be resumed."""
    with gopen(url, "rb") as pipe:
        set_options(pipe, ignore_errors=True)  # the exit code is checked here, for a plain message
        yield Stream(pipe, 0, None, None)
    if pipe.status in _NO_COMMAND:
        raise Unusable(f"its command cannot be started (code {pipe.status} of the shell)")
    if pipe.status:
        raise Broken(f"the command ended with code {pipe.status}")


@contextmanager
def _elsewhere(url: str, begin: int, version: str | None) -> Iterator[Stream]:
    """s3, gs and whatever else fsspec knows, if its package for it is installed."""
    with errors_of_stores():
        place, path = store_of(url)
        about = place.info(path)
        if about["type"] == "directory":
            raise Unusable("is a folder and no tar file")
        with place.open(path, "rb") as file:
            file.seek(begin)
            yield Stream(file, begin, about["size"], None)
