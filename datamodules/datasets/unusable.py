"""Unusable: a file or sample that cannot be used; reading(): any error of a reader as Unusable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from d2v_pretrain.errors import ConfigError

_SHOWN = 300  # characters of another library's message


class Unusable(Exception):
    """A file or sample that cannot be used; the message is the reason for the list."""


@contextmanager
def reading(problem: str) -> Iterator[None]:
    """Within it, whatever is raised because of the bytes of one item becomes ``Unusable``.

    For wrong bytes libraries raise far more than they document: ``struct.error``, ``TypeError``,
    ``MemoryError`` for a size that a header declares, panics of Rust, which are no ``Exception``.
    Errors that are meant for the user, and requests to end the process, are not changed.

    Args:
        problem: what is wrong with the item in that case, such as "cannot be decoded".

    Raises:
        Unusable: with the problem and, in brackets, what the library said.
    """
    try:
        yield
    except (Unusable, ConfigError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise Unusable(f"{problem} ({cause(error)})") from None


def cause(error: BaseException) -> str:
    """What another library's exception says, in one line."""
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    # soundfile's `str` of the error names the Python object that was read, not the file.
    said = getattr(error, "strerror", None) or getattr(error, "error_string", None) or str(error)
    documented = isinstance(error, OSError | ValueError | RuntimeError | SyntaxError)
    text = " ".join(str(said).split())[:_SHOWN]
    return text if documented and text else f"{type(error).__name__}: {text}".removesuffix(": ")
