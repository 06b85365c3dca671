"""Read tensors and plain values from a torch checkpoint without running the code that its pickle
may name."""

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

# The functions that rebuild tensors. torch itself looks up the types of storages.
_REAL: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("collections", "OrderedDict"): OrderedDict,
}
# Modules of the standard library whose classes occur in configurations. Classes of other packages
# cannot be listed, and need not be: none is imported.
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
    """Takes the place of an object whose class is not loaded. It keeps the object's ``state``."""

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Record:
        """Accept any arguments and ignore them."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Called if the class was a dictionary; its items are dropped."""

    def append(self, item: Any) -> None:
        """Called if the class was a list; its items are dropped."""

    def extend(self, items: Any) -> None:
        """As ``append``."""


class _Refused(Exception):
    """The message is the name of what the file asks to have called."""


class _Unpickler(pickle.Unpickler):
    """Imports nothing: what rebuilds tensors is known, classes become ``Record``, and everything
    else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        # Pickle protocols up to 2 use the names of Python 2.
        module = IMPORT_MAPPING.get(module, module)
        if (module, name) in _REAL:
            real = _REAL[module, name]
            # Wrapped, because a file could set attributes (__defaults__ …) of the function itself.
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
    """What ``torch.save`` of any version wrote. Objects other than tensors and plain values become
    ``Record``.

    ``torch.load(weights_only=True)`` refuses the files of fairseq because of the configurations in
    them (argparse, OmegaConf). Here nothing that the file names is imported or called, except for
    what rebuilds tensors.

    Raises:
        ConfigError: the file is not of torch, is damaged, or asks to have a function called.
    """
    try:
        names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
        if any(name.endswith("/constants.pkl") for name in names):
            raise _Refused("a TorchScript program")
        # Memory-mapped, so that the optimizer's state, two thirds of the file, is not read.
        return torch.load(
            path, map_location="cpu", mmap=bool(names), weights_only=False, pickle_module=_PICKLE
        )
    except _Refused as refused:
        rule = f"asks to run {refused}, which no honest checkpoint does; nothing in it was run"
        raise ConfigError("file", path, rule, "use a file from a source that you trust") from None
    except Exception as error:  # whatever a parser of damaged bytes may raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        rule = f"cannot be read as a checkpoint ({reason})"
        raise ConfigError("file", path, rule, "copy it again") from None
