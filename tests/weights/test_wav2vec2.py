"""wav2vec 2.0's audio encoders: group-norm extractor, weight-normed positions, pre-norm blocks.

Random weights of transformers' ``Wav2Vec2Model`` are written as fairseq writes them, read from that
file into our encoder, and the outputs are compared."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import parity
from benchmarks.parity import Golden
from benchmarks.reference import build
from d2v_pretrain.config.compose import load
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training.init_from import load_weights
from d2v_pretrain.types import Batch
from d2v_pretrain.weights import fairseq

transformers = pytest.importorskip("transformers")
GOLDEN = Path(__file__).parent.parent / "fixtures" / "goldens" / "audio_v1"
SIZES = ["encoder.width=32", "encoder.depth=3", "encoder.heads=4", "transform.crop_seconds=0.2"]
SIZES += ["encoder.conv=[[16,10,5],[16,3,2],[16,2,2]]", "architecture.positions.total_kernel=6"]
SIZES += ["architecture.positions.groups=4"]
LARGE = ["architecture.stem.norm=layer", "architecture.stem.conv_bias=true"]
LARGE += ["architecture.block.norm_first=true", "architecture.input_norm=false"]
LARGE += ["architecture.final_norm=true"]
KINDS = {"base": [], "large": LARGE}

# Names of transformers -> names of fairseq.
RENAMED = (
    (r"^masked_spec_embed$", "mask_emb"),
    (r"conv_layers\.(\d)\.conv\.", r"conv_layers.\1.0."),
    (r"^feature_projection\.layer_norm\.", "layer_norm."),
    (r"^feature_projection\.projection\.", "post_extract_proj."),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
    (r"pos_conv_embed\.conv\.", "pos_conv.0."),
    (r"\.attention\.", ".self_attn."),
    (r"(encoder\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"feed_forward\.intermediate_dense", "fc1"),
    (r"feed_forward\.output_dense", "fc2"),
)


def theirs(kind: str) -> Any:
    large = kind == "large"
    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 3, 2),
        conv_stride=(5, 2, 2),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=6,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer" if large else "group",
        do_stable_layer_norm=large,
        conv_bias=large,
    )
    torch.manual_seed(0)
    model = transformers.Wav2Vec2Model(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def as_fairseq(model: Any, large: bool) -> dict[str, Tensor]:
    state = {}
    for name, value in model.state_dict().items():
        norm = r"\1.2.1." if large else r"\1.2."
        for old, new in (*RENAMED, (r"(conv_layers\.\d)\.layer_norm\.", norm)):
            name = re.sub(old, new, name)
        state[name] = value
    return state | {"quantizer.vars": torch.ones(1, 4, 2), "project_q.weight": torch.ones(2, 2)}


def ours(kind: str, file: Path) -> Any:
    words = ["recipe=audio_data2vec1_base", "data.root=.", "architecture=audio_wav2vec2"]
    cfg = load([*words, *SIZES, *KINDS[kind]])
    encoder = instantiate(cfg.architecture, _convert_="all").eval()
    line = load_weights([encoder], fairseq.read(file))
    assert "fairseq wav2vec 2.0" in line and "quantizer" in line and "project_q" in line
    return encoder


def saved(kind: str, path: Path, **settings: Any) -> tuple[Any, Path]:
    model, large = theirs(kind), kind == "large"
    settings = {"layer_norm_first": large, "encoder_attention_heads": 4} | settings
    content = {"model": as_fairseq(model, large), "cfg": {"model": settings}}
    torch.save(content, path / "file.pt")
    return model, path / "file.pt"


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model, file = saved(kind, tmp_path)
    encoder = ours(kind, file)
    wave = torch.randn(2, 1000, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([1000, 713])
    with torch.no_grad():
        expected = model(wave, output_hidden_states=True)
        found = encoder.encode(Batch(wave, torch.arange(2)), 3, "block")
        torch.testing.assert_close(found.x, expected.last_hidden_state, rtol=0, atol=2e-5)
        # The last hidden state of pre-norm blocks is already normalised.
        for block, state in zip(found.layers[:2], expected.hidden_states[1:3], strict=True):
            torch.testing.assert_close(block, state, rtol=0, atol=2e-5)
        # A shorter row of a batch gives what it gives alone, in their code, too.
        padded = encoder.encode(Batch(wave, torch.arange(2), lengths))
        alone = model(wave[1:, :713]).last_hidden_state
    size = alone.shape[1]
    assert padded.valid is not None and padded.valid.sum(1).tolist()[1] == size
    torch.testing.assert_close(padded.x[1:, :size], alone, rtol=0, atol=2e-5)


def test_the_layout_of_blocks_is_told_by_the_file(tmp_path: Path) -> None:
    """No tensor says where the norms stand: with the wrong architecture the weights would load and
    mean nothing."""
    _, file = saved("large", tmp_path)
    words = ["recipe=audio_data2vec1_base", "data.root=.", "architecture=audio_wav2vec2", *SIZES]
    words += [*LARGE[:2]]
    encoder = instantiate(load(words).architecture, _convert_="all")
    with pytest.raises(ConfigError, match=r"missing in it: input_norm\.bias"):
        load_weights([encoder], fairseq.read(file))


@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_step_of_such_a_model_is_compared(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``benchmarks.parity`` builds it from the reference's settings; every parameter has a gradient
    under the reference's name."""
    record = Golden.read(GOLDEN)
    large, settings = kind == "large", dict(record.config["config"])
    settings |= {"extractor_mode": "layer_norm" if large else "default"}
    settings |= {"layer_norm_first": large, "conv_bias": large, "ema_layers_only": False}
    del settings["pos_conv_depth"]  # fairseq's default is one convolution with weight norm
    reference = build("data2vec 1.0 audio", settings, record.config)
    own = reference.objective.state_dict()
    init = {}
    for who, names in (("student", reference.student), ("teacher", reference.teacher)):
        for name, other in names.items():
            key = name if who == "student" else f"student.{name}"
            parts = (other,) if isinstance(other, str) else other
            for part, value in zip(parts, own[key].chunk(len(parts)), strict=True):
                init[f"{who}.{part}"] = value.clone()
    config = record.config | {"config": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(init, tmp_path / "init.safetensors")
    save_file(
        {k: v for k, v in load_file(GOLDEN / "io.safetensors").items() if k.startswith("in.")},
        tmp_path / "io.safetensors",
    )
    written = tmp_path / "out.safetensors"
    monkeypatch.setattr("sys.argv", ["parity", str(tmp_path), "--write", str(written)])
    assert parity.main() == 0
    found = load_file(written)
    assert found["grads.encoder.pos_conv.0.weight_g"].abs().max() > 0
    assert {f"grads.{k[8:]}" for k in init if k.startswith("student.")} <= set(found)
    assert {f"after.{k}" for k in init} <= set(found)

    del init["student.encoder.pos_conv.0.weight_v"]
    save_file(init, tmp_path / "init.safetensors")
    assert parity.main() == 2
    assert "encoder.pos_conv.0.weight_v are not in init.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("layer_type", "conformer"), ("conv_pos_batch_norm", True)]
)
def test_what_is_not_built_is_refused_by_name(name: str, value: Any) -> None:
    config = Golden.read(GOLDEN).config
    with pytest.raises(ConfigError, match=rf"^{name}={value} is not built here"):
        build("data2vec 1.0 audio", config["config"] | {name: value}, config)
    with pytest.raises(ConfigError, match=r"recipe=data2vec 3 is none of data2vec 1\.0 audio"):
        build("data2vec 3", config["config"], config)
