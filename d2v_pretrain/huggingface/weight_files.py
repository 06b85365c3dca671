"""Weights in Hugging Face's file layout: safetensors or pytorch_model.bin, in one file or in shards
with an index."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from d2v_pretrain.errors import ConfigError, MissingFile

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
# In the order of preference. An index file stands for the shards that it names.
LAYOUTS = (SAFE, f"{SAFE}.index.json", PICKLED, f"{PICKLED}.index.json")
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def read_weights(
    directory: str | Path | None, safetensors: bool | None = None, variant: str | None = None
) -> dict[str, Tensor]:
    """All tensors of a directory, on the CPU, under their names in the files.

    Args:
        directory: holds one of ``LAYOUTS``.
        safetensors: True reads no pickle, False only pickles.
        variant: a word in the names of the files, as in ``model.fp16.safetensors``.

    Raises:
        MissingFile: there are no weights.
        ConfigError: a shard is missing or damaged, a pickle holds more than tensors.
    """
    layouts = [_variant(name, variant) for name in LAYOUTS if safetensors in (None, SAFE in name)]
    for name in layouts if directory is not None else []:
        file = Path(directory) / name  # type: ignore[arg-type]
        if file.is_file():
            files = _shards(file) if name.endswith(".json") else [file]
            return {key: tensor for file in files for key, tensor in _read(file).items()}
    rule, remedy = f"must hold one of {', '.join(layouts)}", "name a directory with an export"
    raise MissingFile(str(directory), "no weights", rule, remedy)


def _variant(name: str, variant: str | None) -> str:
    """``model.safetensors`` -> ``model.fp16.safetensors``."""
    stem, dot, rest = name.partition(".")
    return name if variant is None else f"{stem}.{variant}{dot}{rest}"


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        rule = "is no index of shards"
        raise ConfigError(str(index), repr(error), rule, "copy the file again") from None
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            rule = "names a shard that is not beside it"
            raise ConfigError(str(index), name, rule, "copy the missing file, too")
    return [index.parent / name for name in names]


def _read(file: Path) -> dict[str, Tensor]:
    remedy = "copy it again; a pickle that holds more than tensors is never opened"
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a parser of foreign bytes may raise
        # torch's own words advise to switch off the check that has just refused the file.
        safe = isinstance(error, SafetensorError | OSError)
        said = str(error).partition("\n")[0] if safe else type(error).__name__
        raise ConfigError(str(file), said, "cannot be read as weights", remedy) from None
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ConfigError(str(file), type(state).__name__, "must be a mapping of tensors by name")
    return dict(state)


def write_weights(
    directory: str | Path,
    state: Mapping[str, Tensor],
    max_shard_size: int | str = "5GB",
    save: Callable[[Any, Path], Any] | None = None,
    variant: str | None = None,
) -> None:
    """Write ``model.safetensors``; or shards and an index, if there is more than that.

    Weights that the directory held before are removed, since a reader might prefer them.

    Args:
        directory: made if it does not exist.
        state: tensors under the names that they shall have.
        max_shard_size: in bytes, or like ``500MB``, ``5GB``.
        save: writes a pickle instead, ``pytorch_model.bin``; usually ``torch.save``.
        variant: see ``read_weights``.
    """
    directory, limit = Path(directory), _bytes(max_shard_size)
    directory.mkdir(parents=True, exist_ok=True)
    whole = SAFE if save is None else PICKLED
    stem, _, ending = whole.partition(".")
    for stale in (*LAYOUTS, "model-*-of-*.safetensors", "pytorch_model-*-of-*.bin"):
        for file in directory.glob(_variant(stale, variant)):
            file.unlink()
    shards = list(_split(state, limit))
    names = [f"{stem}-{i:05}-of-{len(shards):05}.{ending}" for i in range(1, len(shards) + 1)]
    names = [_variant(name, variant) for name in (names if len(shards) > 1 else [whole])]
    for name, shard in zip(names, shards, strict=True):
        file = directory / name
        # safetensors makes files that only their owner may read.
        file.touch()
        mode = file.stat().st_mode
        # q, k and v are parts of one tensor here; safetensors refuses tensors that share memory.
        copies = {key: t.detach().cpu().clone().contiguous() for key, t in shard.items()}
        save_file(copies, file, {"format": "pt"}) if save is None else save(copies, file)
        file.chmod(mode)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(t.nbytes for t in state.values())},
            "weight_map": {key: n for n, shard in zip(names, shards, strict=True) for key in shard},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        name = _variant(f"{whole}.index.json", variant)
        (directory / name).write_text(text, encoding="utf-8")


def _split(state: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > limit:
            yield shard
            shard = {}
        shard[key] = tensor
    yield shard


def _bytes(size: int | str) -> int:
    found = re.fullmatch(r"(\d+)\s*([KMG]I?B)?", str(size).strip().upper())
    if found is None or int(found[1]) == 0:
        raise ConfigError("max_shard_size", size, "must be a number of bytes or like 500MB, 5GB")
    return int(found[1]) * UNITS[found[2] or ""]
