"""A terminal, or a program behind a pipe, may go away while a run trains."""

from __future__ import annotations

import errno
import io
import sys
from typing import Any

_GONE = (errno.EIO, errno.EPIPE)  # the terminal was closed; the program behind the pipe has ended


class _Lossy(io.FileIO):
    """A file descriptor to write to. What nobody can read any more is dropped."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return len(data)


def outlive_terminal() -> None:
    """Let this process go on without a screen: what it prints after its terminal or pipe is gone is
    dropped. Otherwise the next line of the log would end a run, in the middle of a save for
    example. Streams that a notebook or a test has put in place are left alone.
    """
    for name, original in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        stream = getattr(sys, name)
        if stream is None or stream is not original or not isinstance(stream, io.TextIOWrapper):
            continue
        stream.flush()
        lossy = io.TextIOWrapper(
            io.BufferedWriter(_Lossy(stream.fileno(), "w", closefd=False)),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering or name == "stderr",
        )
        setattr(sys, name, lossy)
