"""What loads into what, and what is said of the rest."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_pretrain import (
    Data2VecTextConfig,
    Data2VecTextForMaskedLM,
    Data2VecTextForSequenceClassification,
)
from d2v_pretrain import Data2VecTextModel as Model
from d2v_pretrain.errors import ConfigError

SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 9,
    "vocab_size": 20,
    "max_position_embeddings": 12,
}


def saved(kind: Any, directory: Path, **settings: Any) -> Any:
    model = kind(Data2VecTextConfig(**SIZES | settings))
    model.save_pretrained(directory)
    return model


def encoder(model: Any) -> list[torch.Tensor]:
    return list(model.base_model.encoder.state_dict().values())


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(encoder(a), encoder(b), strict=True))


def test_base_into_head_and_head_into_base(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = saved(Model, tmp_path / "base")
    head, info = Data2VecTextForSequenceClassification.from_pretrained(
        tmp_path / "base", output_loading_info=True
    )
    assert same(base, head)
    assert sorted(info["missing_keys"]) == sorted(
        head.to_file().keys() - {f"data2vec_text.{key}" for key in base.to_file()}
    )
    assert info["unexpected_keys"] == [
        "data2vec_text.pooler.dense.bias",
        "data2vec_text.pooler.dense.weight",
    ]
    said = [r.getMessage() for r in caplog.records]
    assert (
        len(said) == 2
        and "random weights for classifier.dense.bias" in said[0]
        and "does not use" in said[1]
    )

    head.save_pretrained(tmp_path / "head")
    caplog.clear()
    back, info = Model.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert same(back, head)
    assert info["missing_keys"] == ["pooler.dense.bias", "pooler.dense.weight"]
    assert (
        all(key.startswith("classifier.") for key in info["unexpected_keys"])
        and len(info["unexpected_keys"]) == 4
    )


def test_one_head_into_another(tmp_path: Path) -> None:
    language = saved(Data2VecTextForMaskedLM, tmp_path)
    head = Data2VecTextForSequenceClassification.from_pretrained(tmp_path, num_labels=7)
    assert (
        same(language, head)
        and head.classifier.out_proj.out_features == 7 == head.config.num_labels
    )


def test_nothing_is_said_where_all_fits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(Model, tmp_path)
    caplog.set_level(logging.INFO)
    Model.from_pretrained(tmp_path)
    assert not caplog.records


def test_lost_encoder_weights_are_an_error(tmp_path: Path) -> None:
    saved(Model, tmp_path, num_hidden_layers=1)
    with pytest.raises(
        ConfigError, match=r"encoder\.layer\.1\.attention\.self\.query\.weight.*is missing"
    ):
        Model.from_pretrained(tmp_path, num_hidden_layers=2)
    assert Model.from_pretrained(tmp_path, num_hidden_layers=1)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    saved(Model, tmp_path, num_hidden_layers=1)
    with pytest.raises(ConfigError, match=r"weight and 28 more is missing") as told:
        Model.from_pretrained(tmp_path, num_hidden_layers=4)
    assert str(told.value).count("encoder.layer") == 20


def test_other_shapes_are_an_error_unless_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = saved(Data2VecTextForSequenceClassification, tmp_path, num_labels=3)
    wrong = r"out_proj\.bias \(3,\) instead of \(5,\), classifier\.out_proj\.weight \(3, 8\)"
    with pytest.raises(ConfigError, match=wrong):
        Data2VecTextForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    five, info = Data2VecTextForSequenceClassification.from_pretrained(
        tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert same(five, head) and torch.equal(
        five.classifier.dense.weight, head.classifier.dense.weight
    )
    assert [key for key, *_ in info["mismatched_keys"]] == [
        "classifier.out_proj.bias",
        "classifier.out_proj.weight",
    ]
    assert "shapes differ" in caplog.text


def test_dtypes(tmp_path: Path) -> None:
    model = saved(Model, tmp_path)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    kinds = {
        None: torch.float32,
        "auto": torch.bfloat16,
        "float64": torch.float64,
        torch.float16: torch.float16,
    }
    for asked, dtype in kinds.items():
        for name in ("dtype", "torch_dtype"):  # as transformers 5 and 4 call it
            assert {
                p.dtype for p in Model.from_pretrained(tmp_path, **{name: asked}).parameters()
            } == {dtype}
    with pytest.raises(ConfigError, match="dtype=float17"):
        Model.from_pretrained(tmp_path, dtype="float17")


def test_double_precision_survives_files(tmp_path: Path) -> None:
    model = Model(Data2VecTextConfig(**SIZES)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # not by chance a float32
    model.save_pretrained(tmp_path)
    assert same(Model.from_pretrained(tmp_path, dtype="auto"), model)


def test_a_configuration_of_ones_own(tmp_path: Path) -> None:
    """The documentation's way: read the configuration, change it, hand it over."""
    saved(Model, tmp_path)
    config = Data2VecTextConfig.from_pretrained(tmp_path)
    config.is_decoder = True
    assert Model.from_pretrained(tmp_path, config=config).config.is_decoder
    with pytest.raises(ConfigError, match="config=num_labels"):
        Model.from_pretrained(tmp_path, config=config, num_labels=3)
    with pytest.raises(ConfigError, match="config=dict"):
        Model.from_pretrained(tmp_path, config={})


def test_tuples_and_switches_of_the_configuration() -> None:
    model = Model(Data2VecTextConfig(**SIZES, output_hidden_states=True, return_dict=False)).eval()
    ids = torch.tensor([[0, 5, 2]])
    out = model(ids)
    assert isinstance(out, tuple) and len(out[2]) == 3
    assert set(model(ids, return_dict=True, output_hidden_states=False)) == {
        "last_hidden_state",
        "pooler_output",
    }
    head = Data2VecTextForSequenceClassification(
        Data2VecTextConfig(**SIZES, return_dict=False)
    ).eval()
    loss, logits = head(ids, labels=torch.tensor([1]))
    assert loss.ndim == 0 and logits.shape == (1, 2)
