"""What may go into the image processor, against pretraining's decoder and transformers' processor:
modes, types, layouts, label maps, and sentences for the rest."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from d2v_pretrain import Data2VecVisionImageProcessor as Processor
from d2v_pretrain.errors import ConfigError
from datamodules.datasets.image_folder import decode
from datamodules.datasets.in_memory import in_memory
from tests.test_pixels import RAMP, sixteen

SMALL = Processor(size=(6, 8))  # the size of the images: nothing is resized


def picture(height: int = 6, width: int = 8, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def in_mode(mode: str) -> Image.Image:
    if mode.startswith("I"):
        return sixteen(mode)
    if mode in ("RGBA", "LA"):
        return Image.fromarray(np.dstack([picture(), picture(seed=1)[..., :1]])).convert(mode)
    return Image.fromarray(picture()).convert(mode)


def theirs(processor: Processor, folder: Path) -> Any:
    """The processor of transformers with the same settings."""
    transformers = pytest.importorskip("transformers")
    processor.save_pretrained(folder)
    return transformers.BeitImageProcessor.from_pretrained(folder)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "I;16", "I;16B", "I"])
def test_training_and_inference_decode_alike(mode: str) -> None:
    image, file = in_mode(mode), io.BytesIO()
    if mode == "CMYK":
        image.save(file, "JPEG", quality=90)
    else:  # Pillow writes one of the three modes with 16 bits
        (sixteen("I;16") if mode.startswith("I") else image).save(file, "PNG")
    trained = decode(io.BytesIO(file.getvalue()))
    expected = (torch.from_numpy(trained.copy()) / 255 - 0.5) / 0.5
    with Image.open(file) as opened:
        for given in (opened, image) if mode not in ("CMYK", "I;16B") else (opened,):
            found = SMALL(given)["pixel_values"][0]
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
            in_memory_too = in_memory("image", given).read(0)
            assert np.array_equal(in_memory_too, trained)
    if mode == "I;16B":
        torch.testing.assert_close(SMALL(image)["pixel_values"][0], expected, atol=1e-6, rtol=0)
    if mode.startswith("I"):
        assert abs(found.mean()) < 0.05


@pytest.mark.parametrize("kind", ["bool", "u1", "i2", "u2", ">u2", "u4", "i4", "i8", "u8"])
@pytest.mark.parametrize("tensor", [False, True])
def test_whole_numbers_of_any_type_are_one_image(kind: str, tensor: bool, tmp_path: Path) -> None:
    """transformers rounds after resizing wide types, where its uint8 goes through another kernel:
    one level apart."""
    mine, image = Processor(size=(5, 7)), picture(20, 30)
    expected = mine(image)["pixel_values"]
    given: Any = image.astype(kind)
    if kind == "bool":
        expected = mine(np.where(image > 0, 255, 0).astype(np.uint8))["pixel_values"]
    if tensor and kind != ">u2":
        given = torch.from_numpy(given).permute(2, 0, 1)
    assert torch.equal(mine(given)["pixel_values"], expected)
    if kind in ("u1", "i2", "i4", "i8"):
        other = theirs(mine, tmp_path)(given, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(expected, other, atol=1.01 * 2 / 255, rtol=0)


def test_arrays_of_16_bits() -> None:
    image = np.dstack([RAMP, RAMP[::-1], RAMP // 2])
    for given in (image, image.astype(np.int64), torch.from_numpy(image).movedim(2, 0)):
        found = SMALL(given)["pixel_values"][0]
        expected = torch.from_numpy(image // 256).movedim(2, 0) / 255 * 2 - 1
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert np.array_equal(in_memory("image", given).read(0), (image // 256).transpose(2, 0, 1))
    by_hand = Processor(size=(6, 8), rescale_factor=1 / 65535)(image)["pixel_values"][0]
    expected = torch.from_numpy(image.astype(np.float32)).movedim(2, 0) / 65535 * 2 - 1
    torch.testing.assert_close(by_hand, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("white", [1, 255])
def test_real_numbers_as_in_transformers(kind: torch.dtype, white: int, tmp_path: Path) -> None:
    mine = Processor(size=(5, 7))
    given = (torch.from_numpy(picture(20, 30)).permute(2, 0, 1) / 255 * white).to(kind)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = mine(given)["pixel_values"]
    assert len(told) == (1 if white == 1 else 0)
    assert found.dtype == torch.float32
    other = theirs(mine, tmp_path)(given, return_tensors="pt")["pixel_values"].float()
    # transformers rounds to the type after resizing, ours does not.
    atol = 2 / 255 * white * torch.finfo(kind).eps + 1e-6
    torch.testing.assert_close(found, other, atol=atol, rtol=0)


def test_images_in_0_to_1_are_told_once_at_the_callers_line() -> None:
    image = picture().astype(np.float32) / 255
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            SMALL([image, image])
    assert len(told) == 1 and told[0].filename == __file__
    assert "set do_rescale=False" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = Processor(size=(6, 8), do_rescale=False)(image)["pixel_values"][0]
        SMALL(np.zeros((6, 8, 3)))  # black is black in either scale
        SMALL(Image.fromarray(image[..., 0]))  # mode F, whose white is found as in pretraining
    torch.testing.assert_close(values, SMALL(picture())["pixel_values"][0], atol=1e-6, rtol=0)


def test_both_layouts_of_arrays_and_tensors(tmp_path: Path) -> None:
    mine = Processor(size=(5, 7))
    last, first = picture(20, 30), picture(20, 30).transpose(2, 0, 1)
    expected = mine(last)["pixel_values"]
    for given in (last, first, torch.from_numpy(last), torch.from_numpy(first.copy())):
        assert torch.equal(mine(given)["pixel_values"], expected)
        other = theirs(mine, tmp_path)(given, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(expected, other, atol=1e-5, rtol=0)
    # Three rows of pixels: arrays are (H, W, 3), tensors (3, H, W).
    few, plain = picture(3, 9), Processor(do_resize=False)
    pixels = (torch.from_numpy(few).float() / 255 - 0.5) / 0.5
    for given, expected in ((few, pixels.permute(2, 0, 1)), (torch.from_numpy(few), pixels)):
        torch.testing.assert_close(plain(given)["pixel_values"][0], expected, atol=1e-6, rtol=0)


def maps(**more: Any) -> dict[str, Any]:
    ids = np.arange(48, dtype=np.uint8).reshape(6, 8)
    palette = Image.fromarray(ids)
    palette = palette.convert("P")
    palette.putdata(ids.flatten().tolist())
    return {
        "array": ids,
        "wide": ids.astype(np.uint16),
        "real": ids.astype(np.float32),
        "list": ids.tolist(),
        "tensor": torch.from_numpy(ids),
        "one channel": ids[..., None],
        "one channel first": ids[None],
        "grey picture": Image.fromarray(ids),
        "16 bits": Image.fromarray(ids.astype(np.uint16)),
        "palette": palette,
        "three times the same": Image.fromarray(np.dstack([ids] * 3)),
        "three times, first": np.stack([ids] * 3),
    } | more


@pytest.mark.parametrize("name", maps())
def test_label_maps_of_any_kind_hold_ids(name: str) -> None:
    found = SMALL([picture()], [maps()[name]])["labels"]
    assert found.dtype == torch.int64
    assert found.tolist() == [[[8 * r + c for c in range(8)] for r in range(6)]]


def test_one_map_beside_one_image() -> None:
    for given in (maps()["array"], maps()["three times the same"]):
        assert SMALL(picture(), given)["labels"].shape == (1, 6, 8)


@pytest.mark.parametrize(
    ("images", "segmentation", "sentence"),
    [
        ([], None, "images=\\[\\] must be at least one image"),
        ("cat.png", None, "images=of type str must be images or a sequence of them; open files"),
        (3, None, "images=of type int must be images"),
        (["cat.png"], None, "images=of type <U7 must be numbers"),
        (np.zeros((6, 8), np.uint8), None, r"images=of shape \(6, 8\) must have three channels"),
        (np.zeros((6, 8, 2), np.uint8), None, "must have three channels"),
        (np.zeros((0, 8, 3), np.uint8), None, r"of shape \(0, 8, 3\) must have three channels"),
        ([np.zeros((1, 6, 8, 3), np.uint8)], None, "must have three channels"),
        (picture().astype(np.complex64), None, "images=of type complex64 must be numbers"),
        (picture().astype(np.int16) - 1, None, "images=with levels from -1 to .* must be of 8"),
        (picture() * 256.0, None, "images=with levels from .* must lie from 0 to 255; divide"),
        (np.full((6, 8, 3), np.nan), None, "images=with levels from nan to nan must lie"),
        (picture(), picture(), r"segmentation_maps=3?.*"),
        ([picture()], [picture()], "must hold one class id per pixel; turn colours into ids"),
        ([picture()], [Image.fromarray(picture())], "must hold one class id per pixel"),
        ([picture()], [np.full((6, 8), 0.5)], "segmentation_maps=with fractions must be whole"),
        ([picture()], [np.zeros(6, int)], r"of shape \(6,\) must be height by width"),
        ([picture()], [], r"segmentation_maps=\[\] must be at least one image"),
        ([picture()] * 2, [np.zeros((6, 8), int)], "1 maps must be one for each of 2 images"),
    ],
)
def test_what_cannot_be_is_a_sentence(images: Any, segmentation: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        SMALL(images, segmentation)


def test_sizes_for_the_maps_of_logits() -> None:
    from d2v_pretrain.huggingface.outputs import SemanticSegmenterOutput

    outputs = SemanticSegmenterOutput(logits=torch.zeros(2, 3, 4, 5))
    with pytest.raises(ConfigError, match="target_sizes=1 sizes must be one for each of 2 images"):
        Processor().post_process_semantic_segmentation(outputs, [(3, 4)])
