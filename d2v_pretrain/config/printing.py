"""Printing on terminals that do not know every character: nothing that is printed ends a run."""

from __future__ import annotations

import codecs
import sys
from contextlib import suppress

# What stands for characters that this program prints itself.
_ASCII = str.maketrans({"±": "+-", "…": "...", "→": "->", "·": ".", "█": "#"})
_HANDLER = "d2v_pretrain.spelled"


def print_anything() -> None:
    """Let stdout and stderr spell characters that their encoding does not have, such as ± in ASCII
    or the name of a file that is no valid text. By default printing one raises an error."""
    codecs.register_error(_HANDLER, _spelled)
    for stream in (sys.stdout, sys.stderr):
        # Notebooks and tests replace these streams by others, which take every character. A
        # terminal that was opened for reading too cannot be changed.
        with suppress(AttributeError, OSError):
            stream.reconfigure(errors=_HANDLER)  # type: ignore[union-attr]


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    found = error.object[error.start : error.end].translate(_ASCII)
    return found.encode("ascii", "backslashreplace").decode("ascii"), error.end
