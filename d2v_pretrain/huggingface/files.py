"""Weights in Hugging Face's file layout: safetensors or pytorch_model.bin, in one file or in shards
with an index."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from d2v_pretrain.errors import ConfigError

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
# In the order of preference; an index stands for its shards.
LAYOUTS = (SAFE, f"{SAFE}.index.json", PICKLED, f"{PICKLED}.index.json")
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def read_weights(directory: str | Path) -> dict[str, Tensor]:
    """All tensors of a directory under their names in the file, on the CPU.

    Raises:
        ConfigError: no weights there, a shard is missing or torn, a pickle that holds more than
            tensors.
    """
    directory = Path(directory)
    for name in LAYOUTS:
        if (directory / name).is_file():
            files = _shards(directory / name) if name.endswith(".json") else [directory / name]
            return {key: tensor for file in files for key, tensor in _read(file).items()}
    raise ConfigError(
        str(directory),
        "no weights",
        f"must hold one of {', '.join(LAYOUTS)}",
        "name a directory that was exported to",
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(
            str(index), repr(error), "is no index of shards", "copy the file again"
        ) from None
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise ConfigError(
                str(index),
                name,
                "names a shard that is not beside it",
                "copy the missing file, too",
            )
    return [index.parent / name for name in names]


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
    ) as error:
        remedy = "copy it again; a pickle that holds more than tensors is never opened"
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(str(file), said, "cannot be read as weights", remedy) from None
    if not isinstance(state, Mapping) or not all(
        isinstance(tensor, Tensor) for tensor in state.values()
    ):
        raise ConfigError(str(file), type(state).__name__, "must be a mapping of tensors by name")
    return dict(state)


def write_weights(
    directory: str | Path, state: Mapping[str, Tensor], max_shard_size: int | str = "5GB"
) -> None:
    """Write ``model.safetensors``, or shards and an index where there is more than
    ``max_shard_size`` (500MB, 5GB).

    Weights that the directory held before are removed, since a reader might prefer them.
    """
    directory, limit = Path(directory), _bytes(max_shard_size)
    directory.mkdir(parents=True, exist_ok=True)
    stale = [
        *directory.glob("model-*-of-*.safetensors"),
        *directory.glob("pytorch_model-*-of-*.bin"),
    ]
    for file in [*stale, *(directory / name for name in LAYOUTS)]:
        file.unlink(missing_ok=True)
    shards = list(_split(state, limit))
    names = (
        [SAFE]
        if len(shards) == 1
        else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards):
        (directory / name).touch()
        mode = (
            (directory / name).stat().st_mode
        )  # safetensors makes files that only their owner may read
        # Parts of one of our tensors share its memory, which safetensors refuses.
        save_file(
            {k: v.detach().cpu().clone().contiguous() for k, v in shard.items()},
            directory / name,
            {"format": "pt"},
        )
        (directory / name).chmod(mode)
    if len(shards) > 1:
        places = {key: name for name, shard in zip(names, shards) for key in shard}
        index = {
            "metadata": {"total_size": sum(t.nbytes for t in state.values())},
            "weight_map": places,
        }
        (directory / LAYOUTS[1]).write_text(
            json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


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
