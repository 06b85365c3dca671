"""The image processor against transformers' BeitImageProcessor: pixels, labels, files in both
directions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from d2v_pretrain import (
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    Data2VecVisionForSemanticSegmentation,
    Data2VecVisionModel,
)
from d2v_pretrain import Data2VecVisionImageProcessor as Processor
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.outputs import SemanticSegmenterOutput
from tests.huggingface.vision_cases import BIASES, SIZES, randomised

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "smaller, bilinear": {"size": (20, 30), "resample": 2},
    "cropped": {"size": (40, 40), "do_center_crop": True, "crop_size": (33, 20)},
    "as it is": {"do_resize": False, "do_rescale": False, "do_normalize": False},
    "scaled": {"size": (32, 32), "do_normalize": False, "rescale_factor": 0.5},
    "ImageNet": {
        "size": (32, 48),
        "image_mean": (0.485, 0.456, 0.406),
        "image_std": (0.229, 0.224, 0.225),
    },
}


def pictures(height: int = 37, width: int = 50) -> list[Image.Image]:
    """Smooth colours with noise."""
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 200, height * width * 3).reshape(height, width, 3)
    return [
        Image.fromarray((ramp + generator.integers(0, 55, ramp.shape)).astype(np.uint8))
        for _ in range(2)
    ]


def theirs(processor: Processor, directory: Path, kind: str = "BeitImageProcessor") -> Any:
    processor.save_pretrained(directory)
    return getattr(transformers, kind).from_pretrained(directory)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pixels(variant: str, tmp_path: Path) -> None:
    mine = Processor(**VARIANTS[variant])
    pixels = mine(pictures())["pixel_values"]
    assert pixels.dtype == torch.float32
    level = (mine.rescale_factor if mine.do_rescale else 1.0) / (
        min(mine.image_std) if mine.do_normalize else 1.0
    )
    for kind, tolerance in (("BeitImageProcessor", 1e-5), ("BeitImageProcessorPil", 2 * level)):
        expected = theirs(mine, tmp_path, kind)(pictures(), return_tensors="pt")[
            "pixel_values"
        ].float()
        torch.testing.assert_close(pixels, expected, atol=tolerance, rtol=1e-5)


def test_pictures_arrays_and_tensors_are_alike() -> None:
    first, arrays = pictures()[0], [np.array(picture) for picture in pictures()]
    mine = Processor(size=(16, 24))
    expected = mine(pictures())["pixel_values"]
    for images in (
        arrays,
        np.stack(arrays),
        torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2),
    ):
        assert torch.equal(mine(images)["pixel_values"], expected)
    for image in (first, arrays[0], torch.from_numpy(arrays[0]).permute(2, 0, 1)):
        assert torch.equal(mine(image)["pixel_values"], expected[:1])


def test_labels_are_never_mixed(tmp_path: Path) -> None:
    """transformers interpolates class ids, so that a border between 1 and 150 holds classes that
    are not there."""
    classes = np.where(np.arange(64)[None] + np.arange(48)[:, None] < 50, 1, 150).astype(np.uint8)
    mine = Processor(size=(20, 30))
    labels = mine(pictures(48, 64), [classes, Image.fromarray(classes)])["labels"]
    expected = [
        [classes[int((r + 0.5) * 48) // 20, int((c + 0.5) * 64) // 30] for c in range(30)]
        for r in range(20)
    ]
    assert labels.dtype == torch.long and labels.tolist() == [expected, expected]
    mixed = theirs(mine, tmp_path)(pictures(48, 64), [classes, classes], return_tensors="pt")[
        "labels"
    ]
    assert set(mixed.unique().tolist()) - {1, 150}


def test_labels_are_reduced_as_theirs_are(tmp_path: Path) -> None:
    mine = Processor(do_resize=False, do_reduce_labels=True)
    classes = np.arange(256, dtype=np.uint8).reshape(8, 32)
    labels = mine(pictures(8, 32), [classes, classes])["labels"]
    expected = theirs(mine, tmp_path)(pictures(8, 32), [classes, classes], return_tensors="pt")[
        "labels"
    ]
    assert torch.equal(labels, torch.as_tensor(expected)) and labels[0, 0, :2].tolist() == [255, 0]


def test_maps_of_classes_from_logits(tmp_path: Path) -> None:
    mine, outputs = Processor(), SemanticSegmenterOutput(logits=torch.randn(2, 5, 6, 7))
    for sizes in (None, [(12, 20), (3, 5)]):
        expected = theirs(mine, tmp_path).post_process_semantic_segmentation(outputs, sizes)
        found = mine.post_process_semantic_segmentation(outputs, sizes)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_files_say_everything_and_return(tmp_path: Path) -> None:
    mine = Processor(
        size=(20, 30), resample=2, do_center_crop=True, crop_size=(20, 20), do_reduce_labels=True
    )
    mine = replace(mine, image_mean=(0.1, 0.2, 0.3), do_rescale=False, rescale_factor=0.5)
    their = theirs(mine, tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert type(transformers.AutoImageProcessor.from_pretrained(tmp_path)) is type(their)
    for key, value in written.items():
        found = getattr(their, key)
        plain = {"size": dict, "crop_size": dict, "image_mean": list, "image_std": list}
        assert (plain[key](found) if key in plain else found) == value, key
    assert Processor.from_pretrained(tmp_path) == mine
    their.save_pretrained(tmp_path / "again")
    assert Processor.from_pretrained(tmp_path / "again") == mine


def test_files_of_long_ago(tmp_path: Path) -> None:
    old = {
        "feature_extractor_type": "BeitFeatureExtractor",
        "size": 256,
        "crop_size": 224,
        "reduce_labels": True,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old | {"do_center_crop": True}))
    mine = Processor.from_pretrained(tmp_path)
    assert (mine.size, mine.crop_size, mine.do_reduce_labels) == ((256, 256), (224, 224), True)


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resample=0 must be 2, bilinear, or 3, bicubic"):
        Processor(resample=0)
    with pytest.raises(
        ConfigError, match=r"crop_size=\(224, 224\) must fit into size, \(200, 300\)"
    ):
        Processor(size=(200, 300), do_center_crop=True)
    with pytest.raises(
        ConfigError, match=r"crop_size=\(224, 224\) must fit into the image, \(37, 50\)"
    ):
        Processor(do_resize=False, do_center_crop=True)(pictures())
    with pytest.raises(
        ConfigError, match=r"images=.* must be of one size to be a batch; set do_resize"
    ):
        Processor(do_resize=False)([*pictures(), *pictures(20, 20)])
    with pytest.raises(ConfigError, match=r"images=of shape .* must have three channels"):
        Processor()(np.zeros((2, 8, 8, 1), np.uint8))
    with pytest.raises(ConfigError, match="return_tensors=np must be pt"):
        Processor()(pictures(), return_tensors="np")
    with pytest.raises(ConfigError, match=r"has no preprocessor_config\.json"):
        Processor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 256}}))
    with pytest.raises(ConfigError, match="must be a height and a width"):
        Processor.from_pretrained(tmp_path)


def saved(kind: Any, directory: Path) -> Any:
    """A random model with an image processor beside it."""
    model = randomised(kind(Data2VecVisionConfig(**SIZES, **BIASES)))
    model.save_pretrained(directory)
    Processor(size=(32, 32)).save_pretrained(directory)
    return model


def test_examples_of_the_documentation(tmp_path: Path) -> None:
    """Those of the four vision classes, with a local directory for the hub and the import
    changed."""
    configuration = Data2VecVisionConfig()
    with torch.device("meta"):
        model = Data2VecVisionModel(configuration)
    assert model.config is configuration

    image = pictures()[0]
    for kind in (
        Data2VecVisionModel,
        Data2VecVisionForImageClassification,
        Data2VecVisionForSemanticSegmentation,
    ):
        saved(kind, tmp_path)
    for image_processor in (
        Processor.from_pretrained(tmp_path),
        transformers.AutoImageProcessor.from_pretrained(tmp_path),
    ):
        inputs = image_processor(images=image, return_tensors="pt")
        model = Data2VecVisionModel.from_pretrained(tmp_path)
        with torch.no_grad():
            outputs = model(**inputs)
        assert list(outputs.last_hidden_state.shape) == [1, 17, 32]

        model = Data2VecVisionForImageClassification.from_pretrained(tmp_path)
        with torch.no_grad():
            logits = model(**inputs).logits
        predicted_label = logits.argmax(-1).item()
        assert model.config.id2label[predicted_label] == f"LABEL_{predicted_label}"

        model = Data2VecVisionForSemanticSegmentation.from_pretrained(tmp_path)
        outputs = model(**inputs)
        assert outputs.logits.shape == (1, 5, 16, 16)


def test_pipelines_run_on_what_we_save(tmp_path: Path) -> None:
    image, processor = pictures()[0], Processor(size=(32, 32))
    inputs = processor(image)
    base = saved(Data2VecVisionModel, tmp_path / "base")
    features = transformers.pipeline("image-feature-extraction", model=str(tmp_path / "base"))(
        image
    )
    with torch.no_grad():
        torch.testing.assert_close(
            torch.tensor(features), base(**inputs).last_hidden_state, atol=1e-5, rtol=1e-5
        )

    classifier = saved(Data2VecVisionForImageClassification, tmp_path / "classifier")
    found = transformers.pipeline("image-classification", model=str(tmp_path / "classifier"))(image)
    with torch.no_grad():
        scores = classifier(**inputs).logits.softmax(-1)[0]
    assert {f["label"]: f["score"] for f in found} == pytest.approx(
        {f"LABEL_{i}": float(p) for i, p in enumerate(scores)}
    )

    segmenter = saved(Data2VecVisionForSemanticSegmentation, tmp_path / "segmenter")
    found = transformers.pipeline("image-segmentation", model=str(tmp_path / "segmenter"))(image)
    with torch.no_grad():
        classes = processor.post_process_semantic_segmentation(segmenter(**inputs), [(37, 50)])[0]
    assert {f["label"] for f in found} == {f"LABEL_{i}" for i in classes.unique().tolist()}
    for f in found:
        assert np.array_equal(np.array(f["mask"]) > 0, (classes == int(f["label"][-1])).numpy())
