"""Reading a torch checkpoint of somebody else: its tensors and plain values, without running
anything pickled in it."""

from __future__ import annotations

import builtins
import pickle
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch

from d2v_pretrain.errors import ConfigError

# What a tensor is rebuilt with; torch itself looks up the storage types.
_REAL: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("collections", "OrderedDict"): OrderedDict,
}
# Parts of the standard library that configurations are made of; those of others are not known
# beforehand.
_HARMLESS = {
    "argparse",
    "collections",
    "typing",
    "enum",
    "datetime",
    "pathlib",
    "copyreg",
    "_codecs",
    "operator",
}


class Record:
    """Stands where an object of a class stood that was not loaded; keeps its ``state``, can do
    nothing."""

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Record:
        """Any arguments: what would have been built from them is not."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """A dictionary of an unknown class; see ``append``."""

    def append(self, item: Any) -> None:
        """A list of an unknown class; its items are dropped."""

    def extend(self, items: Any) -> None:
        """See ``append``."""


class _Refused(Exception):
    """The name of what a file wanted to have called."""


class _Unpickler(pickle.Unpickler):
    """Names are never imported: those of tensors are known, those of classes become ``Record``,
    others are refused."""

    def find_class(self, module: str, name: str) -> Any:
        module = IMPORT_MAPPING.get(
            module, module
        )  # names of Python 2, which pickle protocols up to 2 use
        if (module, name) in _REAL:
            real = _REAL[module, name]
            # Wrapped, because a file may set attributes (__defaults__ …) of a function that it
            # names.
            return real if isinstance(real, type) else lambda *args: real(*args)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == "builtins":
            harmless = isinstance(getattr(builtins, name, None), type)
        else:
            harmless = (
                module in _HARMLESS or module.partition(".")[0] not in sys.stdlib_module_names
            )
        if not harmless:
            raise _Refused(f"{module}.{name}")
        return type(name, (Record,), {"__module__": module})


def _load(file: IO[bytes], **options: Any) -> Any:
    return _Unpickler(file, **options).load()


_PICKLE = SimpleNamespace(__name__="inert", Unpickler=_Unpickler, load=_load)


def read(path: Path) -> Any:
    """What ``torch.save`` wrote, of any version of torch; objects other than tensors and plain
    values as ``Record``.

    Configurations of fairseq (argparse, OmegaConf) keep a file from ``weights_only=True``. Nothing
    named in the file is imported or called, except for what rebuilds tensors.

    Raises:
        ConfigError: the file is none of torch's, is damaged, or asks for a function of Python to be
            called.
    """
    try:
        names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
        if any(name.endswith("/constants.pkl") for name in names):
            raise _Refused("a TorchScript program")
        # Mapped, so that the optimizer's state, two thirds of a file, is never read.
        return torch.load(
            path, map_location="cpu", mmap=bool(names), weights_only=False, pickle_module=_PICKLE
        )
    except _Refused as refused:
        rule = f"asks to run {refused}, which no honest checkpoint does; nothing in it was run"
        raise ConfigError("file", path, rule, "use a file from a source that you trust") from None
    except Exception as error:  # whatever a parser of damaged bytes may raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(
            "file", path, f"cannot be read as a checkpoint ({reason})", "copy it again"
        ) from None
