"""Published recipes, built on the meta device: their numbers of parameters are the published
ones.
"""

from __future__ import annotations

import math

import pytest
import torch
from hydra.utils import instantiate

from d2v_pretrain.config.compose import choices, load
from d2v_pretrain.models.positions import SinCosPositions

# Millions in the encoder and in the predictor (head or decoder).
PUBLISHED = {
    "audio_data2vec1_base": (93.16, 0.59),
    "text_data2vec1_base": (124.05, 2.36),
    "text_data2vec1_base_paper": (124.05, 2.36),
    "vision_data2vec1_base": (85.67, 0.59),
    "vision_data2vec1_large": (303.14, 1.05),
    "vision_data2vec1_large_stage2": (303.14, 1.05),
    "audio_data2vec2_base": (93.16, 0.62),
    "audio_data2vec2_base_paper": (93.16, 0.62),
    "audio_data2vec2_large": (313.3, 1.9),
    "vision_data2vec2_base": (85.8, 2.6),
    "vision_data2vec2_large": (303.3, 6.0),
    "vision_data2vec2_huge": (630.9, 6.6),
    "vision_data2vec2_huge14": (630.8, 6.6),
    "text_data2vec2_base": (124.05, 28.9),
    "text_data2vec2_base_paper": (124.05, 28.9),
    "text_data2vec2_large": (354.3, 31.1),
    "text_data2vec2_large_1m": (354.3, 31.1),
}


def test_every_published_recipe_is_listed() -> None:
    ours = ("_tiny", "_small")
    assert {name for name in choices("recipe") if not name.endswith(ours)} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_a_recipe(name: str) -> None:
    cfg = load([f"recipe={name}", "modality=" + name.split("_")[0], "data.root=none"])
    with torch.device("meta"):
        model = instantiate(cfg.objective, _convert_="all")
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.student, model.predictor)]
    if isinstance(
        model.student.positions, SinCosPositions
    ):  # the reference keeps them as a frozen parameter
        sizes[0] += (
            math.prod(model.student.stem.grid((1, 3, cfg.transform.size, cfg.transform.size)))
            * model.student.width
        )
    for size, published in zip(sizes, PUBLISHED[name], strict=True):
        assert round(size / 1e6, len(str(published).partition(".")[2])) == published


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("audio_data2vec1_base", 93_164_288),
        ("text_data2vec1_base", 124_645_632 - 590_592 - 768),  # without pooler and segment vector
        ("vision_data2vec1_base", 85_665_360 + 768),  # with the mask token
        ("vision_data2vec1_large", 303_136_192 + 1024),
    ],
)
def test_encoders_have_as_many_parameters_as_hugging_faces(name: str, theirs: int) -> None:
    cfg = load([f"recipe={name}", "modality=" + name.split("_")[0], "data.root=none"])
    with torch.device("meta"):
        student = instantiate(cfg.architecture, _convert_="all")
    assert sum(p.numel() for p in student.parameters()) == theirs
