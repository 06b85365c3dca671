"""A shard from elsewhere to a file: in one stream, gone on with where the connection broke, tried
again."""

from __future__ import annotations

import errno
import http.client
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from datamodules.datasets.scan import Unusable
from datamodules.shards.names import PIPE, shown

TRIES = 12
WAIT, LONGEST_WAIT = (
    1.0,
    60.0,
)  # seconds before the second try, twice as many before each further one: 6 minutes in all
STALL = 30.0  # seconds without a byte after which a connection counts as broken
_AGAIN = {408, 425, 429, *range(500, 600)}  # HTTP's answers after which another try may do
_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # nothing that waiting for the server would mend
_CHUNK = 1 << 20
_QUIET = 30  # seconds between lines of progress


class Stream(NamedTuple):
    """What a place sends: from byte ``begin`` on, of ``total`` (None: unknown); ``version`` tells
    it from another."""

    file: BinaryIO
    begin: int
    total: int | None
    version: str | None


def fetch(url: str, path: Path) -> int:
    """Write the whole of ``url`` to ``path``; returns its CRC-32. Every further try is told with
    its cause.

    Raises:
        Unusable: if it is not there, or may not be read, or the tries are used up.
        OSError: if it cannot be written.
    """
    fetched = _Part(url, path)
    for tried in range(TRIES):
        try:
            fetched.go_on()
            return fetched.crc
        except (FileNotFoundError, PermissionError) as error:
            raise Unusable(f"not there, or may not be read ({error})") from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _OURS:
                raise
            if isinstance(error, HTTPError) and error.code not in _AGAIN:
                raise Unusable(f"the server says {error}") from None
            cause = f"{type(error).__name__}: {error}"
        if tried < TRIES - 1:
            wait = min(LONGEST_WAIT, WAIT * 2**tried)
            print(
                f"{shown(url)}: {cause}; trying again from byte {fetched.done:,} in {wait:g} s",
                file=sys.stderr,
            )
            time.sleep(wait)
    raise Unusable(f"cannot be fetched, {TRIES} times tried ({cause})")


class _Part:
    """The part of a shard that is there so far."""

    def __init__(self, url: str, path: Path) -> None:
        self.url, self.path = url, path
        self.done = self.crc = 0
        self.version: str | None = None
        self.told = time.monotonic()

    def go_on(self) -> None:
        """Fetch what is missing; raises OSError where that breaks off."""
        with _opener(self.url)(self.url, self.done, self.version) as stream:
            if stream.begin == 0 or stream.begin != self.done:  # not the rest, but all of it
                self.done = self.crc = 0
            self.version = stream.version
            with self.path.open("r+b" if self.done else "wb") as file:
                file.seek(self.done)
                while chunk := stream.file.read(_CHUNK):
                    file.write(chunk)
                    self.done, self.crc = self.done + len(chunk), zlib.crc32(chunk, self.crc)
                    self._tell(stream.total)
        if stream.total is not None and self.done != stream.total:
            raise OSError(f"broke off after {self.done:,} of {stream.total:,} bytes")

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
    """The rest if the server can and the file is the same as before (``If-Range``), else all of
    it."""
    rest = {"Range": f"bytes={begin}-", "If-Range": version} if begin and version else {}
    with urlopen(Request(url, headers=rest), timeout=STALL) as answer:
        version = answer.headers["ETag"] or answer.headers["Last-Modified"]
        if version is not None and version.startswith("W/"):
            version = None  # weak: other bytes may have the same
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
    """What a command writes, from its beginning: a pipe cannot be gone on with."""
    with subprocess.Popen(url.removeprefix(PIPE), shell=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield Stream(process.stdout, 0, None, None)  # type: ignore[arg-type]
    if process.returncode:
        raise OSError(f"the command ended with code {process.returncode}")


@contextmanager
def _elsewhere(url: str, begin: int, version: str | None) -> Iterator[Stream]:
    """s3, gs and all else that fsspec knows, if its package for them is installed."""
    import fsspec

    try:
        place, path = fsspec.core.url_to_fs(url)
        total = place.info(path)["size"]
        with place.open(path, "rb") as file:
            file.seek(begin)
            yield Stream(file, begin, total, None)
    except (OSError, ImportError, ValueError):
        raise
    except Exception as error:  # each store has errors of its own
        raise OSError(f"{type(error).__name__}: {error}") from error
