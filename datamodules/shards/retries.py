"""persist(): ask a store again what it may answer later, a bounded number of times, and say so."""

from __future__ import annotations

import errno
import http.client
import sys
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.error import HTTPError

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.redaction import redact
from datamodules.datasets.unusable import Unusable

Result = TypeVar("Result")
TRIES = 12  # while training
AT_START = 6  # for what is asked first: somebody is waiting for the run to start
# Seconds before the second try, doubled before each further one: 6 minutes in all for 12 tries, and
# half a minute for 6.
WAIT, LONGEST_WAIT = 1.0, 60.0
_RETRIED = {408, 425, 429, *range(500, 600)}  # HTTP codes after which another try may succeed
_REFUSED = {401, 403}
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # errors of our disk, not of the store
_INSTALL = {"s3": "pip install -e '.[s3]'", "gs": "pip install gcsfs", "gcs": "pip install gcsfs"}


class Refused(Unusable):
    """The store does not let us read; another start may be allowed to."""


class Broken(OSError):
    """A fault of one object, which says nothing about the rest of its store."""


def persist(
    name: str, attempt: Callable[[], Result], tries: int, state: Callable[[], str] = str
) -> Result:
    """What ``attempt`` returns, tried again after errors that may pass. Each further try is printed
    with its cause.

    Args:
        name: address that is asked, as it may be printed.
        attempt: asks the store once.
        tries: largest number of calls of ``attempt``.
        state: what to print of the progress so far (" from byte 5").

    Raises:
        Unusable: if the object is not there, or is at fault itself after all tries.
        Refused: if it may not be read.
        ConfigError: if the store does not answer after all tries, or a package is missing.
        OSError: if our own disk is full.
    """
    waits = [min(LONGEST_WAIT, WAIT * 2**n) for n in range(tries - 1)]
    for tried, wait in enumerate([*waits, None], 1):
        try:
            return attempt()
        except (OSError, http.client.HTTPException) as error:
            _raise_if_final(error)
            own = isinstance(error, Broken)
            at_fault = own or (isinstance(error, HTTPError) and error.code == 500)
            cause = str(error) if own else f"{type(error).__name__}: {error}"
        except (ImportError, ValueError) as error:
            raise _no_such_store(name, error) from None
        if wait is not None:
            told = f"trying again{state()} in {wait:g} s"
            most = f"try {tried + 1} of {tries}, with {sum(waits):,.0f} s of waiting in all"
            print(redact(f"{name}: {cause}; {told} ({most})"), file=sys.stderr, flush=True)
            time.sleep(wait)
    if at_fault:
        raise Unusable(f"cannot be fetched, {tries} times tried ({cause})")
    rule = redact(f"does not answer: {tries} times tried in {sum(waits):,.0f} s ({cause})")
    remedy = "check the address, the network and the store, and type the same command"
    raise ConfigError("data.root", name, rule, remedy)


def _raise_if_final(error: Exception) -> None:
    """Raise what another try would not change."""
    if isinstance(error, HTTPError):
        if error.code not in _RETRIED:
            kind = Refused if error.code in _REFUSED else Unusable
            raise kind(f"the server says {error}") from None
    elif isinstance(error, PermissionError):
        raise Refused(f"may not be read ({error})") from None
    elif isinstance(error, FileNotFoundError):
        raise Unusable(f"is not there ({error})") from None
    elif isinstance(error, OSError) and error.errno in _LOCAL:
        raise error


def _no_such_store(name: str, error: Exception) -> ConfigError:
    """The error for a package that is missing, or for a kind of store that fsspec does not know."""
    scheme = name.partition(":")[0]
    if isinstance(error, ImportError):
        rule = f"needs a package that is not installed ({error})"
        remedy = f"type {_INSTALL[scheme]}" if scheme in _INSTALL else ""
        return ConfigError("data.root", name, rule, remedy)
    return ConfigError("data.root", name, f"cannot be read ({error})", "check the address")
