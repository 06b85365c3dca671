"""The vision encoder and classifier against transformers: files in both directions, outputs,
losses, gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from d2v_pretrain import huggingface as family
from d2v_pretrain.errors import ConfigError
from tests.huggingface.audio_cases import agree
from tests.huggingface.vision_cases import (
    BIASES,
    PRECISIONS,
    SIZES,
    both,
    chosen,
    images,
    ours,
    theirs,
    transformers,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared bias, CLS": {"use_shared_relative_position_bias": True, "use_mean_pooling": False},
    "bias per layer": {"use_relative_position_bias": True},
    "both biases": BIASES,
    "absolute": {"use_absolute_position_embeddings": True, "use_mean_pooling": False},
    "masked": {"use_mask_token": True, "use_absolute_position_embeddings": True, **BIASES},
    "no layer scale": {"layer_scale_init_value": 0.0},
    "patches not square": {"patch_size": [8, 16], "use_absolute_position_embeddings": True},
    "grey, relu, eps": {
        "num_channels": 1,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-2,
        "use_mean_pooling": False,
    },
}
ASKED = {"output_hidden_states": True, "output_attentions": True}
HEADS = ["Model", "ForImageClassification", "ForSemanticSegmentation"]


@PRECISIONS
@pytest.mark.parametrize("variant", VARIANTS)
def test_model(variant: str, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    settings = VARIANTS[variant]
    mine, their = both("Model", tmp_path, dtype, **settings)
    x = images(channels=mine.config.num_channels, dtype=dtype)
    masks = [None, chosen(), chosen().int()] if mine.config.use_mask_token else [None]
    with torch.no_grad():
        for mask in masks:
            agree(
                mine(x, bool_masked_pos=mask, **ASKED),
                their(x, bool_masked_pos=mask, **ASKED),
                tolerance,
            )
            agree(mine(x, mask), their(x, mask), tolerance)  # through the fused kernel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_low_precision_is_as_good_as_theirs(dtype: torch.dtype, tmp_path: Path) -> None:
    mine, their = both("Model", tmp_path, **BIASES)
    with torch.no_grad():
        exact = their(images()).last_hidden_state
        outs = [model.to(dtype)(images(dtype=dtype)).last_hidden_state for model in (mine, their)]
    assert {out.dtype for out in outs} == {dtype}
    error, allowed = ((out.double() - exact).square().mean().sqrt() for out in outs)
    assert error < 1.5 * allowed


@pytest.mark.parametrize("size", [(48, 48), (32, 64), (16, 40), (8, 8), (37, 45)], ids=str)
def test_images_of_other_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    mine, their = both(
        "Model", tmp_path, use_absolute_position_embeddings=True, use_mask_token=True, **BIASES
    )
    x, mask = images(*size), chosen((size[0] // 8) * (size[1] // 8))
    with torch.no_grad():
        agree(mine(x, mask, **ASKED), their(x, mask, **ASKED), 1e-12)
        agree(
            mine(x, interpolate_pos_encoding=True), their(x, interpolate_pos_encoding=True), 1e-12
        )


def looked_up(module: Any, window: tuple[int, int], *args: Any, **kwargs: Any) -> Tensor:
    """transformers 4's bias, by loops: a row of the table for every pair of patches, three for the
    CLS token."""
    rows, columns = window
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    last = len(module.relative_position_bias_table)
    index = [[last - 1, *[last - 3] * len(cells)]]
    for r, c in cells:
        index.append(
            [
                last - 2,
                *[(r - y + rows - 1) * (2 * columns - 1) + c - x + columns - 1 for y, x in cells],
            ]
        )
    return module.relative_position_bias_table[torch.tensor(index)].permute(2, 0, 1)[None]


def test_windows_that_are_not_square_are_read_by_row_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, their = both("Model", tmp_path, image_size=[16, 40], **BIASES)
    x = images(16, 40)
    with torch.no_grad():
        out, wrong = mine(x, **ASKED), their(x).last_hidden_state
        monkeypatch.setattr(type(their.encoder.relative_position_bias), "forward", looked_up)
        agree(out, their(x, **ASKED), 1e-12)
    assert (
        out.last_hidden_state - wrong
    ).abs().max() > 0.1  # transformers 5.23 takes rows for columns


@pytest.mark.parametrize("pooling", [True, False], ids=["mean", "CLS"])
@pytest.mark.parametrize(
    ("labels", "settings"),
    [
        (torch.tensor([3, 0]), {}),
        (torch.tensor([3, -100]), {}),
        (torch.tensor([[1.0, 0, 1, 1, 0], [0, 0, 1, 0, 0]]).double(), {}),
        (torch.tensor([0.3, -2.0]).double(), {"num_labels": 1}),
        (torch.randn(2, 5, dtype=torch.float64), {"problem_type": "regression"}),
        (None, {"num_labels": 0}),
    ],
    ids=["ids", "ids to leave out", "several", "number", "numbers", "no classifier"],
)
def test_classification(
    labels: Tensor | None, settings: dict[str, Any], pooling: bool, tmp_path: Path
) -> None:
    mine, their = both(
        "ForImageClassification", tmp_path, use_mean_pooling=pooling, **BIASES, **settings
    )
    with torch.no_grad():
        agree(
            mine(images(), labels=labels, **ASKED), their(images(), labels=labels, **ASKED), 1e-12
        )
        agree(mine.float()(images()), their.float()(images()), 1e-5)


def test_a_loss_leaves_the_configuration_alone(tmp_path: Path) -> None:
    mine, their = both("ForImageClassification", tmp_path)
    for model in (mine, their):
        model(images(), labels=torch.tensor([1, 2]))
    assert (
        mine.config.problem_type is None
        and their.config.problem_type == "single_label_classification"
    )


@pytest.mark.parametrize("head", HEADS)
def test_weights_return_as_they_came(head: str, tmp_path: Path) -> None:
    their = theirs(head, use_mask_token=True, use_absolute_position_embeddings=True, **BIASES)
    ours(head, their, tmp_path / "a").save_pretrained(tmp_path / "b")
    again, told = type(their).from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = again.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in their.state_dict().items())
    mine, told = getattr(family, f"Data2VecVision{head}").from_pretrained(
        tmp_path / "b", output_loading_info=True
    )
    assert not any(told.values()) and not mine.training


@pytest.mark.parametrize("seed", range(12))
def test_configurations_at_random(seed: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(seed)

    def pick(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (), generator=generator))]

    heads, patch = pick(1, 2, 3, 5), pick(4, 5, 8)
    settings = {
        "hidden_size": heads * pick(4, 7, 8),
        "num_attention_heads": heads,
        "num_hidden_layers": pick(1, 2, 3),
        "intermediate_size": pick(5, 49, 61),
        "image_size": patch * pick(1, 2, 5) + pick(0, 1),
        "patch_size": patch,
        "num_channels": pick(1, 3, 4),
        "layer_scale_init_value": pick(0.0, 0.1, 1.0),
        **{
            f"use_{key}": pick(True, False)
            for key in ("relative_position_bias", "shared_relative_position_bias")
        },
        **{
            f"use_{key}": pick(True, False)
            for key in ("mask_token", "mean_pooling", "absolute_position_embeddings")
        },
    }
    mine, their = both("ForImageClassification", tmp_path, **settings)
    x = images(
        patch * pick(1, 2, 3) + pick(0, 2),
        patch * pick(1, 4) + pick(0, 3),
        mine.config.num_channels,
    )
    with torch.no_grad():
        agree(mine(x, **ASKED), their(x, **ASKED), 1e-12)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("head", HEADS)
def test_gradients(head: str, checkpointing: bool, tmp_path: Path) -> None:
    """Also of tables in recomputed blocks, which transformers 4.37 loses."""
    settings = {
        "drop_path_rate": 0.0,
        "use_absolute_position_embeddings": True,
        "out_indices": [2, 3, 4, 5],
    }
    mine, their = both(head, tmp_path, **settings, **BIASES)
    labels = {
        "ForImageClassification": torch.tensor([1, 2]),
        "ForSemanticSegmentation": torch.arange(8).view(2, 2, 2) % 5,
    }
    if checkpointing:
        mine.gradient_checkpointing_enable()
    for model in (mine.train(), their.train()):
        out = model(images(), **({} if head == "Model" else {"labels": labels[head]}))
        (out.last_hidden_state.square().mean() if head == "Model" else out.loss).backward()
    gradients = {name: p.grad for name, p in their.named_parameters()}
    for name, parameter in mine.named_parameters():
        keys = mine.names()[name]
        expected = torch.cat(
            [gradients[key] for key in ([keys] if isinstance(keys, str) else keys)]
        )
        torch.testing.assert_close(
            parameter.grad, expected.view(parameter.shape), atol=1e-10, rtol=1e-8, msg=name
        )
    averages = {
        name: tensor
        for name, tensor in their.state_dict().items()
        if "running" in name or "tracked" in name
    }
    for name, tensor in averages.items():
        torch.testing.assert_close(mine.state_dict()[name], tensor, msg=name)


def saved(model: Any, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


def test_base_and_head_read_each_others_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, classifier = theirs("Model", **BIASES), theirs("ForImageClassification", **BIASES)
    head = family.Data2VecVisionForImageClassification.from_pretrained(
        saved(base, tmp_path / "base")
    )
    assert all(name in caplog.text for name in ("classifier.weight", "pooler.layernorm.weight"))
    caplog.clear()
    inner = family.Data2VecVisionModel.from_pretrained(saved(classifier, tmp_path / "head"))
    assert "classifier.weight" in caplog.text
    with torch.no_grad():
        x = images(dtype=torch.float32)
        for mine, their in ((head.data2vec_vision, base), (inner, classifier.data2vec_vision)):
            expected = their(x).last_hidden_state
            torch.testing.assert_close(mine(x).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_a_shared_table_is_copied_into_every_block_for_fine_tuning(tmp_path: Path) -> None:
    """Where transformers starts per-layer tables at zero, and so throws the pretrained one away."""
    pretrained = theirs("Model", use_shared_relative_position_bias=True, use_mean_pooling=False)
    change = {"use_shared_relative_position_bias": False, "use_relative_position_bias": True}
    mine = ours("ForImageClassification", pretrained, tmp_path, **change, num_labels=3)
    with torch.no_grad():
        out = mine.data2vec_vision(images())
        expected = pretrained(images().float()).last_hidden_state
    torch.testing.assert_close(out.last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    tables = [module.table for module in mine.data2vec_vision.encoder.layer_biases]
    assert len({table.data_ptr() for table in tables}) == SIZES["num_hidden_layers"]


def test_an_encoder_without_mask_token_gets_a_fresh_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ours("Model", theirs("Model"), tmp_path, use_mask_token=True)
    assert "embeddings.mask_token" in caplog.text and not model.encoder.stem.mask_vector.any()


def test_the_index_in_old_files_is_no_surprise(tmp_path: Path) -> None:
    their = theirs("Model", use_shared_relative_position_bias=True)
    state = their.state_dict() | {
        "encoder.relative_position_bias.relative_position_index": torch.zeros(17, 17)
    }
    their.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    _, told = family.Data2VecVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values())


@pytest.mark.parametrize(
    ("head", "large", "count"),
    [
        ("Model", False, 85_665_360),
        ("Model", True, 303_136_192),
        ("ForImageClassification", False, 86_530_984),
        ("ForImageClassification", True, 304_430_568),
        ("ForSemanticSegmentation", False, 162_614_252),
    ],
)
def test_published_parameter_counts(head: str, large: bool, count: int) -> None:
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    settings: dict[str, Any] = dict(
        zip(keys, (1024, 24, 16, 4096) if large else (768, 12, 12, 3072), strict=True)
    )
    settings |= {
        "Model": {"use_shared_relative_position_bias": True, "use_mean_pooling": False},
        "ForImageClassification": {"use_relative_position_bias": True, "num_labels": 1000},
        "ForSemanticSegmentation": {"use_relative_position_bias": True, "num_labels": 150},
    }[head]
    with torch.device("meta"):
        model = getattr(family, f"Data2VecVision{head}")(family.Data2VecVisionConfig(**settings))
        expected = getattr(transformers, f"Data2VecVision{head}")(
            transformers.Data2VecVisionConfig(**settings)
        )
    assert model.num_parameters() == expected.num_parameters() == count


@pytest.mark.slow
def test_base_size(tmp_path: Path) -> None:
    their = transformers.Data2VecVisionModel(
        transformers.Data2VecVisionConfig(use_shared_relative_position_bias=True)
    )
    torch.nn.init.normal_(their.encoder.relative_position_bias.relative_position_bias_table)
    mine = ours("Model", their.eval(), tmp_path)
    with torch.no_grad():
        x = images(224, 224, dtype=torch.float32)
        agree(mine(x, output_hidden_states=True), their(x, output_hidden_states=True), 1e-5)


def test_fresh_weights_have_their_statistics() -> None:
    settings = (
        SIZES
        | BIASES
        | {
            "use_mask_token": True,
            "use_absolute_position_embeddings": True,
            "initializer_range": 0.05,
        }
    )
    torch.manual_seed(0)
    for head in HEADS:
        expected = getattr(transformers, f"Data2VecVision{head}")(
            transformers.Data2VecVisionConfig(**settings)
        )
        mine = getattr(family, f"Data2VecVision{head}")(
            family.Data2VecVisionConfig(**settings)
        ).to_file()
        for name, tensor in expected.state_dict().items():
            if tensor.float().std(correction=0) == 0:
                assert torch.equal(mine[name], tensor), name
            else:
                error = 6 * tensor.numel() ** -0.5
                assert 1 - error < float(mine[name].std() / tensor.std()) < 1 + error, name
                assert (
                    abs(float(mine[name].mean() - tensor.mean()))
                    < error * float(tensor.std()) + 1e-3
                ), name


def test_rates_of_dropping_grow_with_depth() -> None:
    settings = SIZES | {
        "drop_path_rate": 0.3,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.2,
    }
    mine = family.Data2VecVisionModel(family.Data2VecVisionConfig(**settings)).encoder
    their = transformers.Data2VecVisionModel(transformers.Data2VecVisionConfig(**settings)).encoder
    expected = [getattr(layer.drop_path, "drop_prob", 0.0) for layer in their.layer]
    assert [block.drop_path for block in mine.blocks] == pytest.approx(expected)
    assert {
        (block.dropout, block.activation_dropout, block.attention.dropout) for block in mine.blocks
    } == {(0.1, 0.0, 0.2)}
    assert mine.input_dropout == 0.1


def test_inputs_that_do_not_fit() -> None:
    model = family.Data2VecVisionModel(family.Data2VecVisionConfig(**SIZES))
    for x in (images(channels=1), images(7, 32), images()[0]):
        with pytest.raises(
            ConfigError, match=r"pixel_values=of shape .* must be \(batch, 3, height, width\)"
        ):
            model(x)
    with pytest.raises(
        ConfigError, match=r"bool_masked_pos=given needs a vector .* set use_mask_token=True"
    ):
        model(images(), chosen())
    masked = family.Data2VecVisionModel(family.Data2VecVisionConfig(**SIZES, use_mask_token=True))
    with pytest.raises(ConfigError, match=r"bool_masked_pos=of shape \(2, 9\) must be \(2, 16\)"):
        masked(images(), chosen(9))


def test_outputs_as_tuples(tmp_path: Path) -> None:
    mine, their = both("ForImageClassification", tmp_path)
    with torch.no_grad():
        a, b = (
            m(images(), labels=torch.tensor([0, 1]), return_dict=False, **ASKED)
            for m in (mine, their)
        )
    assert isinstance(a, tuple) and len(a) == len(b) == 4
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("head", HEADS)
def test_silenced_heads(head: str, tmp_path: Path) -> None:
    """``head_mask`` of transformers 4: as if the projections behind the attentions did not read
    those heads."""
    mine, their = both(head, tmp_path, **BIASES)
    mask = torch.rand(4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for layer, row in zip(their.base_model.encoder.layer, mask, strict=True):
        layer.attention.output.dense.weight.data *= row.repeat_interleave(8)
    with torch.no_grad():
        out, want = (
            mine(images(), head_mask=mask, output_hidden_states=True),
            their(images(), output_hidden_states=True),
        )
    agree(out, want, 1e-12)
