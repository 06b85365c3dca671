"""Object stores through fsspec: listing() names the files in a folder of one."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from d2v_pretrain.redaction import reveal
from datamodules.datasets.unusable import Unusable
from datamodules.shards.retries import Refused

MANIFEST = "manifest.json"  # in a folder that datamodules.prepare has filled
_STALL = 30.0  # seconds without an answer after which a web server counts as silent


def store_of(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Retries of S3's own are switched off: they print nothing and may take many minutes.
    """
    import fsspec

    place, path = fsspec.core.url_to_fs(reveal(url))
    if "s3" in place.protocol:
        place.retries = 1
        place.config_kwargs.setdefault("retries", {"max_attempts": 0})
    return place, path


@contextmanager
def errors_of_stores() -> Iterator[None]:
    """Turn the exceptions that each store has of its own into ``OSError``, or ``Refused`` for
    missing credentials."""
    try:
        yield
    except (OSError, ImportError, ValueError, http.client.HTTPException, Unusable):
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if "Credentials" in text:
            raise Refused(text) from None
        raise OSError(text) from error


def listing(folder: str) -> list[str]:
    """The names of the files in a folder of an object store.

    Raises:
        OSError: if it cannot be listed.
    """
    with errors_of_stores():
        place, path = store_of(folder)
        place.invalidate_cache()
        return [found.rstrip("/").rpartition("/")[2] for found in place.ls(path, detail=False)]


def matches(pattern: str) -> list[str]:
    """The addresses that match a pattern with ``*``, where the store can be listed."""
    with errors_of_stores():
        place, path = store_of(pattern)
        place.invalidate_cache()
        return [place.unstrip_protocol(found) for found in place.glob(path)]


def manifest(folder: str) -> list[str]:
    """The names of the shards that the manifest in a folder lists; [] if it is of another program.

    Raises:
        OSError: if there is none, or it cannot be read.
    """
    if folder.startswith(("http://", "https://")):
        with opened(reveal(f"{folder}/{MANIFEST}"), {}, _STALL) as answer:
            text = answer.read()
    else:
        with errors_of_stores():
            place, path = store_of(f"{folder}/{MANIFEST}")
            text = place.cat_file(path)
    return in_manifest(text)


def opened(url: str, headers: dict[str, str], timeout: float) -> Any:
    """An open request. User and password of the address are sent to its host alone, and not to
    where it redirects."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=host)), headers=headers)
    if at:
        told = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {told}")
    return urlopen(request, timeout=timeout)


def in_manifest(text: str | bytes) -> list[str]:
    """The names of the shards in the text of a manifest; [] if it is of another program."""
    try:
        return [row["name"].rpartition("/")[2] for row in json.loads(text)["shards"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
