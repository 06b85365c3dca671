"""Weight files against safetensors, torch and transformers: layouts, shards, and what is
refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from d2v_pretrain import Data2VecTextConfig, Data2VecTextModel
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.weight_files import read_weights, write_weights

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 9,
    "vocab_size": 20,
    "max_position_embeddings": 12,
    "layer_norm_eps": 1e-5,
}


def state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"layer.{i}": torch.randn(5, i + 1, generator=generator) for i in range(6)}
    return tensors | {"count": torch.tensor(3), "half": torch.ones(4, dtype=torch.bfloat16)}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a
    )


def test_one_file(tmp_path: Path) -> None:
    write_weights(tmp_path / "made", state())
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["model.safetensors"]
    assert equal(load_file(tmp_path / "made" / "model.safetensors"), state())
    assert equal(read_weights(tmp_path / "made"), state())
    (tmp_path / "any").touch()
    assert (tmp_path / "made" / "model.safetensors").stat().st_mode == (
        tmp_path / "any"
    ).stat().st_mode


def test_parts_of_one_tensor_are_written_apart(tmp_path: Path) -> None:
    whole = torch.randn(9, 4)
    write_weights(tmp_path, dict(zip("qkv", whole.chunk(3), strict=True)) | {"turned": whole.T})
    back = read_weights(tmp_path)
    assert torch.equal(torch.cat([back[k] for k in "qkv"]), whole) and torch.equal(
        back["turned"], whole.T
    )


@pytest.mark.parametrize(("limit", "files"), [(1, 8), (100, 6), ("1KB", 1), (10**6, 1)])
def test_shards(limit: int | str, files: int, tmp_path: Path) -> None:
    write_weights(tmp_path, state(), limit)
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) == files
    assert equal({k: t for shard in shards for k, t in load_file(shard).items()}, state())
    assert equal(read_weights(tmp_path), state())
    if files > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in state().values())
        assert all(key in load_file(tmp_path / name) for key, name in index["weight_map"].items())
        assert index["weight_map"].keys() == state().keys()


def test_writing_again_leaves_nothing_of_before(tmp_path: Path) -> None:
    write_weights(tmp_path, state(), 1)
    (tmp_path / "notes.txt").touch()
    torch.save(state(3), tmp_path / "pytorch_model.bin")
    write_weights(tmp_path, state(1))
    assert equal(read_weights(tmp_path), state(1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "notes.txt"]


def test_pickled_files(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "pytorch_model.bin")
    assert equal(read_weights(tmp_path), state())
    write_weights(tmp_path / "both", state(1))
    torch.save(state(), tmp_path / "both" / "pytorch_model.bin")
    assert equal(read_weights(tmp_path / "both"), state(1))  # safetensors first


def test_pickled_shards(tmp_path: Path) -> None:
    keys = list(state())
    parts = {
        "pytorch_model-00001-of-00002.bin": keys[:3],
        "pytorch_model-00002-of-00002.bin": keys[3:],
    }
    for name, part in parts.items():
        torch.save({k: state()[k] for k in part}, tmp_path / name)
    places = {key: name for name, part in parts.items() for key in part}
    (tmp_path / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )
    assert equal(read_weights(tmp_path), state())


class Malicious:
    """Unpickling it runs a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save(state() | {"x": Malicious(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ConfigError, match=r"pytorch_model\.bin=.*cannot be read as weights.*more than tensors"
    ):
        read_weights(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="mapping of tensors"):
        read_weights(tmp_path)
    torch.save({"model": state()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="mapping of tensors"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_torn_files_are_named(name: str, tmp_path: Path) -> None:
    write_weights(tmp_path, state()) if name.startswith("model") else torch.save(
        state(), tmp_path / name
    )
    content = (tmp_path / name).read_bytes()
    for kept in (0, 10, len(content) // 2, len(content) - 20):
        (tmp_path / name).write_bytes(content[:kept])
        with pytest.raises(ConfigError, match=f"{name}=.*cannot be read"):
            read_weights(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must hold one of model\.safetensors"):
        read_weights(tmp_path)
    write_weights(tmp_path, state(), 1)
    (tmp_path / "model-00002-of-00008.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model-00002-of-00008\.safetensors names a shard"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": {"a": "../elsewhere.safetensors"}}']
)
def test_an_index_that_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ConfigError, match=r"index\.json="):
        read_weights(tmp_path)


@pytest.mark.parametrize("size", ["5 apples", "0", "-1", "GB"])
def test_sizes_of_shards_are_checked(size: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_shard_size"):
        write_weights(tmp_path, state(), size)


@pytest.mark.filterwarnings("ignore")  # theirs
def test_shards_to_and_from_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    mine = Data2VecTextModel(Data2VecTextConfig(**SIZES))
    mine.save_pretrained(tmp_path / "ours", max_shard_size="4KB")
    assert len(list((tmp_path / "ours").glob("model-*"))) > 2
    their, info = transformers.AutoModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values())
    assert equal(dict(their.state_dict()), mine.to_file())
    their.save_pretrained(tmp_path / "theirs", max_shard_size="3KB")
    assert len(list((tmp_path / "theirs").glob("model-*"))) > 2
    assert equal(Data2VecTextModel.from_pretrained(tmp_path / "theirs").to_file(), mine.to_file())
