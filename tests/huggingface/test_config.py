"""The configurations against those of transformers, field by field, through files in both
directions."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import d2v_pretrain
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.models.block import Block

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

KINDS = ["Audio", "Text", "Vision"]
OURS_ONLY = {
    "num_labels",
    "output_attentions",
    "padding_invariant",
    "apply_spec_augment",
    "position_embedding_type",
}


def ours(kind: str, **settings: Any) -> Any:
    return getattr(d2v_pretrain, f"Data2Vec{kind}Config")(**settings)


def theirs(kind: str) -> Any:
    return getattr(transformers, f"Data2Vec{kind}Config")


def extra(config: Any) -> dict[str, Any]:
    """Its attributes that are no fields."""
    return {key: value for key, value in vars(config).items() if key not in config.names()}


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def same(mine: Any, their: Any) -> None:
    """Every field of ours that they know, and every one that they declare for this model."""
    for name in {f.name for f in fields(mine)} - OURS_ONLY:
        assert plain(getattr(mine, name)) == plain(getattr(their, name)), name
    declared = set(vars(type(their))["__annotations__"])
    assert declared <= {f.name for f in fields(mine)}


def drawn(kind: str, seed: int) -> dict[str, Any]:
    """Settings with every field that can change changed."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    changed: dict[str, Any] = {}
    for f in fields(ours(kind)):
        if isinstance(f.default, bool):
            changed[f.name] = bool(number(0, 2))
        elif isinstance(f.default, int):
            changed[f.name] = number(1, 6) * 48
        elif isinstance(f.default, float):
            changed[f.name] = number(1, 999) / 1000
        elif isinstance(f.default, tuple):
            changed[f.name] = [number(1, 9) for _ in f.default]
    heads = {"num_attention_heads": number(1, 4), "num_conv_pos_embedding_groups": number(1, 4)}
    names = [f"label {i}" for i in range(number(1, 6))]
    labels = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    small = {"pad_token_id": number(0, 9), "patch_size": number(3, 20)}
    ignored = {"num_labels", "padding_invariant", "apply_spec_augment", "add_cross_attention"}
    known = {f.name for f in fields(ours(kind))} - ignored
    return {k: v for k, v in (changed | heads | labels | small).items() if k in known}


@pytest.mark.parametrize("kind", KINDS)
def test_defaults(kind: str) -> None:
    same(ours(kind), theirs(kind)())
    assert ours(kind).model_type == theirs(kind).model_type


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_both_ways(kind: str, seed: int, tmp_path: Path) -> None:
    settings = drawn(kind, seed)
    mine = ours(kind, **settings)
    mine.save_pretrained(tmp_path)
    their = theirs(kind).from_pretrained(tmp_path)
    same(mine, their)
    same(mine, transformers.AutoConfig.from_pretrained(tmp_path))
    their.save_pretrained(tmp_path / "theirs")
    back = type(mine).from_pretrained(tmp_path / "theirs")
    unread = {
        "transformers_version",
        "is_encoder_decoder",
        "chunk_size_feed_forward",
        "_name_or_path",
    }
    assert extra(back).keys() <= unread
    assert {**back.to_dict(), "x": 0}.items() >= json.loads(
        json.dumps(mine.to_dict()), object_hook=whole
    ).items()
    # What they leave out of a file is a default; ours must have read the same.
    same(back, theirs(kind)(**settings))


def whole(content: dict[str, Any]) -> dict[Any, Any]:
    """JSON's label numbers as numbers."""
    return {int(k) if k.isdigit() else k: v for k, v in content.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_plain_types(kind: str, tmp_path: Path) -> None:
    """Whole numbers for floats and lists for tuples would be refused by transformers 5 as they
    are."""
    settings = {"initializer_range": 1, "layer_norm_eps": 1} | (
        {"layer_scale_init_value": 0} if kind == "Vision" else {}
    )
    mine = ours(kind, **settings)
    mine.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert all(type(content[key]) is float for key in settings)
    assert theirs(kind).from_pretrained(tmp_path).layer_norm_eps == 1.0
    assert (
        "padding_invariant" not in content
        and "extra" not in content
        and "num_labels" not in content
    )


def test_what_is_ours_is_written_only_when_set(tmp_path: Path) -> None:
    mine = ours("Audio", padding_invariant=True, apply_spec_augment=False)
    mine.save_pretrained(tmp_path)
    their = transformers.AutoConfig.from_pretrained(tmp_path)
    assert their.apply_spec_augment is False and their.padding_invariant is True
    assert type(mine).from_pretrained(tmp_path) == mine


def test_unknown_keys_are_kept(tmp_path: Path) -> None:
    content = {
        "model_type": "data2vec-text",
        "finetuning_task": "mnli",
        "torch_dtype": "float16",
        "hidden_size": 24,
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    mine = type(ours("Text")).from_pretrained(tmp_path)
    assert mine.finetuning_task == "mnli" and mine.dtype is torch.float16 and mine.hidden_size == 24
    mine.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["finetuning_task"] == "mnli"


def test_derived_values_follow_their_fields(tmp_path: Path) -> None:
    sizes = {"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [9, 3]}
    mine = ours("Audio", **sizes)
    their = theirs("Audio")(**sizes)
    assert (mine.num_feat_extract_layers, mine.inputs_to_logits_ratio) == (2, 10)
    assert their.num_feat_extract_layers == mine.num_feat_extract_layers
    assert their.inputs_to_logits_ratio == mine.inputs_to_logits_ratio
    assert mine.output_hidden_size == their.output_hidden_size == 768


def test_the_block_gets_the_very_width() -> None:
    """A ratio of floats may fall short: 7 * (61 / 7) is less than 61."""
    for width, inner in ((7, 61), (100, 29), (768, 3072), (1, 1)):
        config = ours("Text", hidden_size=width, num_attention_heads=1, intermediate_size=inner)
        assert Block(width, 1, config.mlp_ratio).fc1.out_features == inner


def test_labels_follow_one_another() -> None:
    mine, their = ours("Text", num_labels=3), theirs("Text")(num_labels=3)
    for change in ({"num_labels": 5}, {"id2label": {0: "no", 1: "yes"}}, {"num_labels": 1}):
        for config in (mine, their):
            for key, value in change.items():
                setattr(config, key, value)
        assert mine.num_labels == their.num_labels and mine.id2label == their.id2label
        assert mine.label2id == {name: index for index, name in mine.id2label.items()}
    assert ours("Text", id2label={"0": "a", "1": "b", "2": "c"}).num_labels == 3
    assert ours("Text", id2label={0: "a"}, label2id={"A": 0}).label2id == {"A": 0}
    assert ours("Vision", num_labels=0).id2label == {}


def test_overrides_replace_what_the_file_says(tmp_path: Path) -> None:
    ours("Text", num_labels=3, hidden_size=24).save_pretrained(tmp_path)
    kind = type(ours("Text"))
    assert kind.from_pretrained(tmp_path, num_labels=7).num_labels == 7
    assert kind.from_pretrained(tmp_path, hidden_size=36).num_labels == 3
    config, unused = kind.from_pretrained(tmp_path, return_unused_kwargs=True, hiden_size=36)
    assert config.hidden_size == 24 and unused == {"hiden_size": 36}


@pytest.mark.parametrize("kind", KINDS)
def test_any_attribute_is_kept_and_saved(kind: str, tmp_path: Path) -> None:
    """As theirs: arguments that are no fields and what is set later, through files both ways."""
    asked = {
        "finetuning_task": "mnli",
        "torch_dtype": "float16",
        "torchscript": True,
        "is_encoder_decoder": True,
        "task_specific_params": {"a": [1, 2]},
    }
    mine, their = ours(kind, **asked), theirs(kind)(**asked)
    for config in (mine, their):
        config.tie_word_embeddings, config.whatever = False, 1.5
        config.update({"prefix": "p"})
    for name in (*asked, "tie_word_embeddings", "whatever", "prefix", "dtype"):
        assert getattr(mine, name) == getattr(their, name), name
    mine.save_pretrained(tmp_path / "mine")
    their.save_pretrained(tmp_path / "theirs")
    for folder in ("mine", "theirs"):
        back = type(mine).from_pretrained(tmp_path / folder)
        read = theirs(kind).from_pretrained(tmp_path / folder)
        for name in (*asked, "tie_word_embeddings", "whatever", "prefix", "dtype"):
            assert getattr(back, name) == getattr(read, name) == getattr(their, name), name


def test_json_as_theirs(tmp_path: Path) -> None:
    """Strings and files in both forms are read by the other library; a path of a file is one of a
    configuration."""
    settings = {"hidden_size": 24, "num_attention_heads": 3, "num_labels": 3}
    mine, their = ours("Text", **settings), theirs("Text")(**settings)
    for use_diff in (True, False):
        mine.to_json_file(tmp_path / "mine.json", use_diff)
        assert (tmp_path / "mine.json").read_text() == mine.to_json_string(use_diff)
        same(mine, theirs("Text").from_json_file(tmp_path / "mine.json"))
        their.to_json_file(tmp_path / "theirs.json", use_diff)
        for read in (type(mine).from_json_file, type(mine).from_pretrained):
            same(read(tmp_path / "theirs.json"), their)
    changed = {"hidden_size", "num_attention_heads", "id2label", "label2id", "model_type"}
    assert set(mine.to_diff_dict()) == changed
    assert mine.use_return_dict and mine.name_or_path == ""
    assert type(mine).from_pretrained(tmp_path / "mine.json").name_or_path.endswith("mine.json")


def test_a_misspelt_setting_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert ours("Text", hiden_size=36, finetuning_task="x").hiden_size == 36
    assert (
        "hiden_size is no setting of Data2VecTextConfig (did you mean hidden_size?)" in caplog.text
    )
    assert "finetuning_task" not in caplog.text


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("Text", {"hidden_size": 768.0}, "hidden_size=768.0 must be of type int"),
        ("Text", {"hidden_size": "768"}, "hidden_size='768' must be of type int"),
        ("Text", {"is_decoder": 1}, "is_decoder=1 must be of type bool"),
        ("Text", {"hidden_size": 10}, "multiple of num_attention_heads, 12"),
        ("Text", {"num_hidden_layers": 0}, "num_hidden_layers=0 must be at least 1"),
        ("Text", {"hidden_act": "silly"}, "hidden_act=silly must be one of gelu"),
        ("Text", {"hidden_dropout_prob": 1.5}, "hidden_dropout_prob=1.5 must be a probability"),
        ("Text", {"pad_token_id": 30522}, "pad_token_id=30522 must be an id of the vocabulary"),
        ("Text", {"max_position_embeddings": 2}, "max_position_embeddings=2 leaves no position"),
        ("Text", {"position_embedding_type": "relative_key"}, "must be absolute"),
        ("Text", {"problem_type": "guess"}, "problem_type=guess must be one of regression"),
        (
            "Text",
            {"num_labels": 3, "id2label": {0: "a"}},
            "num_labels=3 must be the 1 names of id2label",
        ),
        ("Text", {"num_labels": "3"}, "num_labels=3 must be a whole number"),
        ("Text", {"num_labels": -1}, "num_labels=-1 must be a whole number"),
        (
            "Audio",
            {"conv_stride": [5, 2]},
            "conv_stride=.* must have as many entries as conv_dim, 7",
        ),
        ("Audio", {"tdnn_kernel": [5]}, "tdnn_kernel=.* must have as many entries as tdnn_dim, 5"),
        ("Audio", {"num_conv_pos_embedding_groups": 7}, "must divide hidden_size, 768"),
        ("Audio", {"ctc_loss_reduction": "max"}, "ctc_loss_reduction=max must be sum or mean"),
        ("Audio", {"conv_dim": 512}, "conv_dim=512 must be of type tuple"),
        ("Vision", {"patch_size": 225}, "patch_size=225 must fit into image_size"),
        ("Vision", {"image_size": [224, 224, 3]}, "must be one number or two"),
    ],
)
def test_mistakes_are_named(kind: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ours(kind, **settings)


def test_later_mistakes_are_named_by_the_model() -> None:
    config = ours("Text")
    config.hidden_size = 10
    with pytest.raises(ConfigError, match="hidden_size=10"):
        d2v_pretrain.Data2VecTextModel(config)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "missing"),
        ("{", "no valid JSON"),
        ("[]", "JSON object"),
        ('{"model_type": "bert"}', "bert is not data2vec"),
    ],
)
def test_files_that_are_none(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    kind = OSError if content is None else ConfigError  # as theirs
    with pytest.raises(kind, match=said):
        type(ours("Text")).from_pretrained(tmp_path)


def test_every_documented_class_is_there() -> None:
    """Those that transformers has for data2vec, but for its TensorFlow ones."""
    names = [name for name in dir(transformers) if name.startswith("Data2Vec")]
    assert len(names) >= 21
    for name in names:
        assert getattr(d2v_pretrain, name).__name__ == name


def test_the_package_stays_cheap_until_asked() -> None:
    import subprocess
    import sys

    code = "import sys, d2v_pretrain; assert 'torch' not in sys.modules;"
    code += "d2v_pretrain.Data2VecTextModel; import torch"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="Data2VecTextModell"):
        d2v_pretrain.Data2VecTextModell  # noqa: B018
