"""A name of the hub stands for the model in the local cache; nothing is downloaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_pretrain import (
    Data2VecAudioFeatureExtractor,
    Data2VecTextConfig,
    Data2VecTextModel,
    Data2VecVisionImageProcessor,
)
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface import hub_cache
from d2v_pretrain.training.init_from import source

NAME = "somebody/tiny-text"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache, laid out as the hub's own client does, with the folder of one model."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    commit = "0" * 40
    folder = tmp_path / "models--somebody--tiny-text"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    return folder / "snapshots" / commit


def test_everything_is_read_from_it(snapshot: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    saved = Data2VecTextModel(Data2VecTextConfig(**sizes, intermediate_size=9, vocab_size=20))
    saved.save_pretrained(snapshot)
    read, told = Data2VecTextModel.from_pretrained(NAME, output_loading_info=True)
    assert not any(told.values())
    pairs = zip(saved.state_dict().values(), read.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert Data2VecTextConfig.from_pretrained(NAME).vocab_size == 20
    Data2VecAudioFeatureExtractor(eps=1e-5).save_pretrained(snapshot)
    assert Data2VecAudioFeatureExtractor.from_pretrained(NAME).eps == 1e-5
    Data2VecVisionImageProcessor(size=(7, 8)).save_pretrained(snapshot)
    assert Data2VecVisionImageProcessor.from_pretrained(NAME).size == (7, 8)


def test_a_folder_of_that_name_comes_first(snapshot: Path) -> None:
    (Path.cwd() / NAME).mkdir(parents=True)
    assert hub_cache.model_folder(NAME) == Path(NAME)


@pytest.mark.parametrize("name", ["somebody/other", "somebody/..", "a/b/c", "nowhere"])
def test_a_name_that_is_not_there(name: str, snapshot: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json=missing .* local hub cache \(nothing is"):
        Data2VecTextModel.from_pretrained(name)


def test_without_the_hub_client(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert hub_cache.model_folder(NAME) == Path(NAME)


def test_a_run_starts_from_it(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="is no folder with a model"):
        source(NAME)
    (snapshot / "config.json").write_text("{}")
    assert source(NAME).resolve() == snapshot.resolve()
    with pytest.raises(ConfigError, match="type hf download somebody/other first"):
        source("somebody/other")
