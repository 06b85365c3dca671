"""Segmentation against transformers: variants of the heads, both dialects of names, images that are
not square."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from d2v_pretrain import huggingface as family
from d2v_pretrain.errors import ConfigError
from tests.huggingface.audio_cases import agree
from tests.huggingface.vision_cases import BIASES, PRECISIONS, SIZES, both, images, theirs

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

VARIANTS: dict[str, dict[str, Any]] = {
    "one convolution": {},
    "two": {"auxiliary_num_convs": 2, "use_shared_relative_position_bias": True},
    "two, beside the input": {"auxiliary_num_convs": 2, "auxiliary_concat_input": True},
    "none": {"auxiliary_num_convs": 0, "auxiliary_channels": 32},
    "no second head": {"use_auxiliary_head": False},
    "weights, ignored": {
        "auxiliary_loss_weight": 1.5,
        "semantic_loss_ignore_index": 3,
        "pool_scales": [1, 2],
    },
    "final norm, three features": {"use_mean_pooling": False, "out_indices": [0, 1, 3, 5]},
    "positions, not in order": {
        "use_absolute_position_embeddings": True,
        "out_indices": [5, 2, 4, 3],
        **BIASES,
    },
}
ASKED = {"output_hidden_states": True, "output_attentions": True}


def labelled(height: int, width: int, classes: int = 5) -> torch.Tensor:
    labels = torch.randint(classes, (2, height, width), generator=torch.Generator().manual_seed(3))
    return labels.masked_fill(labels == 1, 255)


@PRECISIONS
@pytest.mark.parametrize("variant", VARIANTS)
def test_segmentation(variant: str, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    mine, their = both("ForSemanticSegmentation", tmp_path, dtype, **VARIANTS[variant])
    labels = labelled(32, 32)
    if variant == "weights, ignored":
        labels = labels.clamp(max=4)
    x = images(dtype=dtype)
    with torch.no_grad():
        agree(mine(x, labels=labels, **ASKED), their(x, labels=labels, **ASKED), tolerance)
        agree(mine(x), their(x), tolerance)


def test_images_that_are_not_square(tmp_path: Path) -> None:
    """Which transformers refuses; here its heads read our features by hand."""
    mine, their = both("ForSemanticSegmentation", tmp_path, **BIASES)
    x, labels = images(32, 48), labelled(32, 48)
    with torch.no_grad():
        out = mine(x, labels=labels, output_hidden_states=True)
        states = [
            state[:, 1:].mT.reshape(2, 32, 4, 6)
            for state in their.data2vec_vision(x, **ASKED).hidden_states[:4]
        ]
        parts = (their.fpn1, their.fpn2, their.fpn3, their.fpn4)
        features = [part(state) for part, state in zip(parts, states, strict=True)]
        logits = their.decode_head(features)
        torch.testing.assert_close(out.logits, logits, atol=1e-12, rtol=1e-12)
        loss = their.compute_loss(logits, their.auxiliary_head(features), labels)
        torch.testing.assert_close(out.loss, loss, atol=1e-12, rtol=1e-12)
        with pytest.raises(RuntimeError):
            their(x)


# By hand from transformers 4.37 and 5.23; the rest of the head's keys follows these.
PSP, PATCHES = "decode_head.psp_modules", "data2vec_vision.embeddings.patch_embeddings"
DIALECTS = {
    f"{PSP}.3.1.conv.weight": f"{PSP}.blocks.3.conv.convolution.weight",
    f"{PSP}.0.1.bn.running_var": f"{PSP}.blocks.0.conv.normalization.running_var",
    "decode_head.bottleneck.conv.weight": "decode_head.psp_bottleneck.convolution.weight",
    "decode_head.bottleneck.bn.num_batches_tracked": (
        "decode_head.psp_bottleneck.normalization.num_batches_tracked"
    ),
    "decode_head.lateral_convs.2.conv.weight": "decode_head.lateral_convs.2.convolution.weight",
    "decode_head.fpn_convs.1.bn.bias": "decode_head.fpn_convs.1.normalization.bias",
    "decode_head.fpn_bottleneck.bn.weight": "decode_head.fpn_bottleneck.normalization.weight",
    "auxiliary_head.convs.0.conv.weight": "auxiliary_head.convs.0.convolution.weight",
    "auxiliary_head.conv_cat.bn.running_mean": "auxiliary_head.conv_cat.normalization.running_mean",
    "decode_head.classifier.bias": "decode_head.classifier.bias",
    "auxiliary_head.classifier.weight": "auxiliary_head.classifier.weight",
    "fpn1.1.running_mean": "fpn1.1.running_mean",
    f"{PATCHES}.projection.weight": f"{PATCHES}.projection.weight",
}


def test_both_dialects_are_written_and_read(tmp_path: Path) -> None:
    mine, their = both(
        "ForSemanticSegmentation", tmp_path / "5", torch.float32, auxiliary_concat_input=True
    )
    mine.save_pretrained(tmp_path / "4", dialect=4)
    old, new = load_file(tmp_path / "4/model.safetensors"), their.state_dict()
    assert (
        len(old) == len(new) and len(set(new) - set(old)) == 14 * 6
    )  # six tensors of every convolution
    assert all(torch.equal(old[a], new[b]) for a, b in DIALECTS.items())
    read, told = family.Data2VecVisionForSemanticSegmentation.from_pretrained(
        tmp_path / "4", output_loading_info=True
    )
    assert not any(told.values())
    x = images(dtype=torch.float32)
    with torch.no_grad():
        agree(read(x), their(x), 1e-5)
    with pytest.raises(ConfigError, match="dialect=3 must be 4 or 5"):
        mine.save_pretrained(tmp_path, dialect=3)


def test_a_file_of_version_4_becomes_one_of_version_5(tmp_path: Path) -> None:
    """What transformers itself does not: it starts the head anew."""
    their = theirs("ForSemanticSegmentation", auxiliary_concat_input=True)
    back = {new: old for old, new in DIALECTS.items()}
    their.config.save_pretrained(tmp_path)
    state = {back.get(key, key): tensor.clone() for key, tensor in their.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    mine = family.Data2VecVisionForSemanticSegmentation.from_pretrained(tmp_path)
    mine.save_pretrained(tmp_path / "new")
    again, told = type(their).from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    for key, tensor in their.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


@pytest.mark.parametrize(
    ("change", "say"),
    [
        ({"out_indices": [1, 2, 3]}, "out_indices=.* must be four hidden states"),
        (
            {"out_indices": [3, 5, 7, 11]},
            "out_indices=.* must be different, and from 1 to num_hidden_layers . 1, 5",
        ),
        ({"out_indices": [1, 2, 2, 3]}, "out_indices=.* must be different"),
        ({"auxiliary_num_convs": 0}, "auxiliary_channels=16 must be hidden_size, 32"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], say: str) -> None:
    with pytest.raises(ConfigError, match=say):
        family.Data2VecVisionForSemanticSegmentation(family.Data2VecVisionConfig(**SIZES | change))


def test_one_class_has_no_loss(tmp_path: Path) -> None:
    mine, their = both("ForSemanticSegmentation", tmp_path, num_labels=1)
    agree(mine(images()), their(images()), 1e-12)
    for model in (mine, their):
        with pytest.raises(ValueError):
            model(images(), labels=labelled(32, 32, 1))
