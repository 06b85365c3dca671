"""Download a remote shard to a file: resumed where the connection broke, and tried again."""

from __future__ import annotations

import base64
import errno
import http.client
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from webdataset.gopen import gopen, set_options

from d2v_pretrain.redaction import redact, reveal
from datamodules.datasets.scan import Unusable
from datamodules.shards.names import PIPE, shown

TRIES = 12
# Seconds before the second try, doubled before each further one: 6 minutes in all.
WAIT, LONGEST_WAIT = 1.0, 60.0
STALL = 30.0  # seconds without a byte after which a connection counts as broken
_RETRIED = {408, 425, 429, *range(500, 600)}  # HTTP codes after which another try may succeed
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # errors of our disk, not of the server
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


def fetch(url: str, path: Path) -> int:
    """Write the whole of ``url`` to ``path``, and return its CRC-32.

    Every further try is printed with its cause.

    Raises:
        Unusable: if the address does not exist or may not be read, or all tries have failed.
        OSError: if ``path`` cannot be written.
    """
    fetched = _Download(url, path)
    for tried in range(TRIES):
        try:
            fetched.go_on()
            return fetched.crc
        except (FileNotFoundError, PermissionError) as error:
            raise Unusable(f"not there, or may not be read ({error})") from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _LOCAL:
                raise
            if isinstance(error, HTTPError) and error.code not in _RETRIED:
                raise Unusable(f"the server says {error}") from None
            cause = f"{type(error).__name__}: {error}"
        if tried < TRIES - 1:
            wait = min(LONGEST_WAIT, WAIT * 2**tried)
            told = f"trying again from byte {fetched.done:,} in {wait:g} s"
            print(redact(f"{shown(url)}: {cause}; {told}"), file=sys.stderr)
            time.sleep(wait)
    raise Unusable(f"cannot be fetched, {TRIES} times tried ({cause})")


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
    """The rest of the file if it is still the same (``If-Range``), else all of it."""
    rest = {"Range": f"bytes={begin}-", "If-Range": version} if begin and version else {}
    with _opened(url, rest) as answer:
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


def _opened(url: str, headers: dict[str, str]) -> Any:
    """An open request. User and password of the address are sent to its host alone, and not to
    where it redirects."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=host)), headers=headers)
    if at:
        told = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {told}")
    return urlopen(request, timeout=STALL)


@contextmanager
def _pipe(url: str, begin: int, version: str | None) -> Iterator[Stream]:
    """The output of a command, from its beginning: a pipe cannot be resumed."""
    with gopen(url, "rb") as pipe:
        set_options(pipe, ignore_errors=True)  # the exit code is checked here, for a plain message
        yield Stream(pipe, 0, None, None)
    if pipe.status:
        raise OSError(f"the command ended with code {pipe.status}")


@contextmanager
def _elsewhere(url: str, begin: int, version: str | None) -> Iterator[Stream]:
    """s3, gs and whatever else fsspec knows, if its package for it is installed."""
    import fsspec

    try:
        place, path = fsspec.core.url_to_fs(url)
        total = place.info(path)["size"]
        with place.open(path, "rb") as file:
            file.seek(begin)
            yield Stream(file, begin, total, None)
    except (OSError, ImportError, ValueError):
        raise
    except Exception as error:  # each object store has exceptions of its own
        raise OSError(f"{type(error).__name__}: {error}") from error
