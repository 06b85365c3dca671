"""Arguments of ``from_pretrained`` and ``save_pretrained`` as people type them: acted upon, without
effect, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_pretrain import Data2VecTextConfig, Data2VecTextForMaskedLM, Data2VecTextModel
from d2v_pretrain.errors import ConfigError
from tests.huggingface.family_cases import CLASSES, inputs, ours, theirs

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 9,
    "vocab_size": 20,
    "max_position_embeddings": 12,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Data2VecTextModel(Data2VecTextConfig(**SIZES)).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize(
    "options",
    [
        {"device_map": "cpu"},
        {"device_map": "auto"},
        {"device_map": {"": "cpu"}},
        {"device_map": torch.device("cpu")},
        {"low_cpu_mem_usage": True},
        {"attn_implementation": "eager"},
        {"attn_implementation": "sdpa"},
        {"local_files_only": True},
        {"revision": "main"},
        {"cache_dir": "cache"},
        {"token": "x"},
        {"use_safetensors": True},
        {"trust_remote_code": True},
        {"ignore_mismatched_sizes": True},
        {"dtype": "auto"},
        {"from_tf": False},
    ],
    ids=str,
)
def test_taken(folder: Path, options: dict[str, Any]) -> None:
    """As by transformers, and the weights are the same."""
    mine = Data2VecTextModel.from_pretrained(folder, **options)
    plain = Data2VecTextModel.from_pretrained(folder)
    assert all(torch.equal(t, plain.state_dict()[k]) for k, t in mine.state_dict().items())
    assert not (set(options) - {"dtype"}) & set(vars(mine.config))


@pytest.mark.parametrize("dtype", [torch.float16, "float16"], ids=str)
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtype(folder: Path, key: str, dtype: Any) -> None:
    assert Data2VecTextModel.from_pretrained(folder, **{key: dtype}).dtype is torch.float16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device_map": {"a": "cpu", "b": "meta"}}, "device_map.* must be one device"),
        ({"attn_implementation": "flash_attention_2"}, "must be eager or sdpa"),
        ({"force_download": True}, "force_download=True is not done: nothing is downloaded"),
        ({"from_tf": True}, "from_tf=True reads weights of TensorFlow"),
        ({"load_in_8bit": True}, "load_in_8bit=True needs quantised layers"),
        ({"dtype": "int8"}, "must be auto or a floating type"),
    ],
    ids=str,
)
def test_refused(folder: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Data2VecTextModel.from_pretrained(folder, **options)


def test_parts_of_a_model(folder: Path) -> None:
    plain = Data2VecTextModel.from_pretrained(folder)
    assert Data2VecTextModel.from_pretrained(folder, add_pooling_layer=False).pooler is None
    state = {key: torch.zeros_like(t) for key, t in plain.to_file().items()}
    zero = Data2VecTextModel.from_pretrained(None, config=plain.config, state_dict=state)
    assert not any(p.any() for p in zero.parameters())
    for config in (plain.config, folder, folder / "config.json", str(folder)):
        assert Data2VecTextModel.from_pretrained(folder, config=config).config == plain.config
    assert plain.name_or_path == str(folder)
    inner = Data2VecTextModel.from_pretrained(folder.parent, subfolder="m")
    assert torch.equal(inner.get_input_embeddings().weight, plain.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["config.json", "model.safetensors"]),
        ({"is_main_process": False}, []),
        ({"safe_serialization": False}, ["config.json", "pytorch_model.bin"]),
        ({"variant": "fp16"}, ["config.json", "model.fp16.safetensors"]),
        (
            {"safe_serialization": False, "variant": "x"},
            ["config.json", "pytorch_model.x.bin"],
        ),
    ],
    ids=str,
)
def test_saved(tmp_path: Path, options: dict[str, Any], names: list[str]) -> None:
    """The files have transformers' names; both libraries read them back."""
    model = Data2VecTextModel(Data2VecTextConfig(**SIZES))
    model.save_pretrained(tmp_path, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    if not names:
        return
    back = Data2VecTextModel.from_pretrained(tmp_path, variant=options.get("variant"))
    assert torch.equal(back.get_input_embeddings().weight, model.get_input_embeddings().weight)
    read = transformers.Data2VecTextModel.from_pretrained(tmp_path, variant=options.get("variant"))
    assert torch.equal(read.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_saved_otherwise(tmp_path: Path) -> None:
    model = Data2VecTextForMaskedLM(Data2VecTextConfig(**SIZES))
    for state in (model.state_dict(), model.to_file()):
        halves = {key: tensor.half() for key, tensor in state.items()}
        model.save_pretrained(tmp_path / "half", state_dict=halves)
        back = Data2VecTextForMaskedLM.from_pretrained(tmp_path / "half", dtype="auto")
        assert back.dtype is torch.float16
        weight = model.get_input_embeddings().weight.half()
        assert torch.equal(back.get_input_embeddings().weight, weight)
    calls: list[Path] = []
    model.save_pretrained(
        tmp_path / "own", safe_serialization=False, save_function=lambda s, f: calls.append(f)
    )
    assert [p.name for p in calls] == ["pytorch_model.bin"]
    model.save_pretrained(tmp_path / "shards", safe_serialization=False, max_shard_size="1KB")
    assert (tmp_path / "shards" / "pytorch_model.bin.index.json").exists()
    back = Data2VecTextForMaskedLM.from_pretrained(tmp_path / "shards", use_safetensors=False)
    assert torch.equal(back.get_input_embeddings().weight, model.get_input_embeddings().weight)
    with pytest.raises(ConfigError, match="push_to_hub=True is not done here"):
        model.save_pretrained(tmp_path / "hub", push_to_hub=True)


def test_what_is_not_there_is_an_oserror(tmp_path: Path, folder: Path) -> None:
    """As in transformers; ours are ``ConfigError`` as well."""
    (tmp_path / "empty").mkdir()
    for kind in (Data2VecTextModel, transformers.Data2VecTextModel):
        for where in (tmp_path / "nothing", tmp_path / "empty"):
            with pytest.raises(OSError):
                kind.from_pretrained(str(where), local_files_only=True)
        with pytest.raises(OSError):
            kind.from_pretrained(str(folder), use_safetensors=False)
        with pytest.raises(OSError):
            kind.from_pretrained(str(folder), variant="fp16")


def test_an_unknown_keyword_is_an_error() -> None:
    model = Data2VecTextModel(Data2VecTextConfig(**SIZES))
    with pytest.raises(TypeError, match="atention_mask"):
        model(torch.ones(1, 3, dtype=torch.long), atention_mask=None)


@pytest.mark.parametrize("name", CLASSES)
def test_half_precision_is_theirs(name: str) -> None:
    """In bfloat16 both say the same to the precision of bfloat16."""
    model = theirs(name)
    mine, their = ours(model).bfloat16(), model.bfloat16()
    x = {k: t.bfloat16() if t.is_floating_point() else t for k, t in inputs(name).items()}
    with torch.no_grad():
        found, wanted = mine(**x)[0].float(), their(**x)[0].float()
    assert (found - wanted).abs().mean() < 0.02 * max(1.0, wanted.abs().mean().item())
