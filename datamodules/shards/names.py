"""expand(): the sorted names of all shards, from a folder, a pattern or addresses."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from braceexpand import braceexpand

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.redaction import MARK, redact, reveal
from datamodules.datasets.unusable import Unusable
from datamodules.shards import retries
from datamodules.shards.retries import Refused, persist
from datamodules.shards.stores import MANIFEST, in_manifest, listing, manifest, matches

PIPE = "pipe:"
_S3 = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
_GOOGLE = "set GOOGLE_APPLICATION_CREDENTIALS in the environment"
# Where the keys of object stores belong, which are not typed in addresses.
_KEYS = {"s3": _S3, "s3a": _S3, "gs": _GOOGLE, "gcs": _GOOGLE}
_TAR = re.compile(r"\.(tar|tgz|tar\.\w+)$")
_PACKED = re.compile(r"\.(tgz|tar\.\w+)$")
_GIVE = (
    "give a folder of .tar files, a pattern such as 'DIR/train-{000..127}.tar', an address, "
    "or a list of them"
)


def is_remote(name: str) -> bool:
    """Whether a shard must be fetched before it can be read at random."""
    return name.startswith(PIPE) or "://" in name


def shown(name: str) -> str:
    """A name for printing, without what may be secret: user, password and query of an address."""
    if name.startswith(PIPE) or not is_remote(name):
        return redact(name)
    address = urlsplit(name)
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"


def expand(root: str | Sequence[str]) -> list[str]:
    """The names of all shards, sorted, whether the files exist or not.

    Args:
        root: a folder, here or in an object store (its ``.tar`` files, and those that only an index
            or ``manifest.json`` names; of a web server only the latter); or a path or address, in
            which ``{000..127}`` and ``{a,b}`` are expanded and, where the place can be listed,
            ``*`` and ``?``; or a list of these. ``pipe:COMMAND`` is a shard that a command writes
            to its standard output.

    Raises:
        ConfigError: if there is no shard, or one is compressed.
    """
    given = [root] if isinstance(root, str) else list(root)
    for name in given:
        _check_secrets(name)
    found = sorted({name for one in given for name in _expand(one)})
    if not found:
        raise ConfigError("data.root", root, "has no shard (.tar)", _GIVE)
    packed = [name for name in found if _PACKED.search(urlsplit(name).path)]
    if packed:
        rule = f"has a compressed shard, {shown(packed[0])}, which cannot be read at random"
        raise ConfigError("data.root", root, rule, "unpack it to a plain .tar (gunzip)")
    return found


def _check_secrets(name: str) -> None:
    """Refuse an address whose secrets are not known, or whose place takes no user and password."""
    if MARK in reveal(name):
        rule = "was stored without its password or token"
        raise ConfigError("data.root", shown(name), rule, "type data.root=… with it again")
    scheme, _, rest = name.partition("://")
    if scheme in _KEYS and "@" in rest.partition("/")[0]:
        rule = "has a user and a password in its address, which this store does not take"
        raise ConfigError("data.root", shown(name), rule, f"leave them out, and {_KEYS[scheme]}")


def _expand(one: str) -> Iterator[str]:
    if one.startswith(PIPE) or not re.search(r"\{.*\}", one):
        yield from _places(one)
    else:
        for name in braceexpand(one):
            yield from _places(name)


def _places(name: str) -> Iterator[str]:
    if name.startswith(PIPE):
        yield name
    elif not is_remote(name):
        path = os.path.expanduser(name)
        yield from _in_folder(path) if os.path.isdir(path) else _globbed(path)
    elif "*" in name:
        yield from persist(shown(name), lambda: matches(name), retries.AT_START)
    elif _TAR.search(urlsplit(name).path) or urlsplit(name).query:
        yield name
    else:
        yield from _in_store(name.rstrip("/"))


def _globbed(path: str) -> list[str]:
    return glob.glob(path) if glob.has_magic(path) and not os.path.exists(path) else [path]


def _in_folder(folder: str) -> set[str]:
    """The tars in a folder, and those that only their index or a line of the manifest still
    names."""
    names = os.listdir(folder)
    tars = _tars(names)
    if MANIFEST in names:
        with suppress(OSError, UnicodeDecodeError):
            tars |= set(in_manifest(Path(folder, MANIFEST).read_text("utf-8")))
    return {os.path.join(folder, name) for name in tars}


def _tars(names: Iterable[str]) -> set[str]:
    seen = [name for name in names if not name.startswith(".")]
    tars = {name for name in seen if name.endswith(".tar")}
    return tars | {f"{name.removesuffix('.idx')}.tar" for name in seen if name.endswith(".idx")}


def _in_store(folder: str) -> set[str]:
    """As ``_in_folder``, for a folder of an object store, or of a web server, which cannot be
    listed: there the manifest alone is read.

    Raises:
        ConfigError: if neither a list of files nor a manifest can be read.
    """
    place, tars = shown(folder), set[str]()
    ask = partial(persist, place, tries=retries.AT_START)
    unlisted = "a folder of a web server cannot be listed"
    try:
        if not folder.startswith(("http://", "https://")):
            names = ask(lambda: listing(folder))
            tars, unlisted = _tars(names), ""
            if MANIFEST not in names:
                return {f"{folder}/{name}" for name in tars}
    except Refused as error:
        unlisted = str(error)
    except Unusable as error:
        raise ConfigError("data.root", place, f"cannot be listed: it {error}", _GIVE) from None
    try:
        tars |= set(ask(lambda: manifest(folder)))
    except Unusable as error:
        if isinstance(error, Refused):
            raise ConfigError("data.root", place, str(error), "check the credentials") from None
        if unlisted:
            rule = f"names no shards: {unlisted}, and its {MANIFEST} {error}"
            remedy = f"type all names, such as '{place}/shard-{{000000..000127}}.tar'"
            raise ConfigError("data.root", place, rule, remedy) from None
    return {f"{folder}/{name}" for name in tars}
