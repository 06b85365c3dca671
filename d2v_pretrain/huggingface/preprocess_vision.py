"""Data2VecVisionImageProcessor: images and segmentation maps -> pixel values and labels."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.hub_cache import model_folder
from d2v_pretrain.huggingface.outputs import SemanticSegmenterOutput
from d2v_pretrain.pixels import BRIGHTEST, OVERSHOOT, colours, eight_bits, native

FILE = "preprocessor_config.json"
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # by PIL's numbers, which the file holds
IGNORED = 255


@dataclass(frozen=True)
class Data2VecVisionImageProcessor:
    """Resizes images, crops them, scales grey levels to [0, 1] and normalises each channel:
    ``(x - mean) / std``.

    ``save_pretrained`` writes the same file as transformers' ``BeitImageProcessor``, with every
    field, because the defaults of version 4 (256 pixels, cropped to 224) and 5 (224, no crop)
    differ. A field that a file lacks has the default of version 5.

    Args:
        do_resize: resize to ``size``.
        size: (height, width) in pixels.
        resample: 2 for bilinear, 3 for bicubic.
        do_center_crop: after resizing, crop the middle to ``crop_size``.
        crop_size: (height, width) in pixels, at most those of the image.
        do_rescale: multiply by ``rescale_factor``.
        rescale_factor: 1 / 255 for grey levels of 8 bits.
        do_normalize: subtract ``image_mean`` and divide by ``image_std``.
        image_mean: of each channel. Published files say .5, although the pretraining used
            ImageNet's .485, .456, .406.
        image_std: of each channel. Published files say .5, the pretraining used .229, .224, .225.
        do_reduce_labels: in segmentation maps, class 0 becomes 255, which is ignored, and the other
            classes count from 0.
    """

    do_resize: bool = True
    size: tuple[int, int] = (224, 224)
    resample: int = 3
    do_center_crop: bool = False
    crop_size: tuple[int, int] = (224, 224)
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    do_reduce_labels: bool = False

    def __post_init__(self) -> None:
        if self.resample not in RESAMPLING:
            raise ConfigError("resample", self.resample, "must be 2, bilinear, or 3, bicubic")
        larger = any(c > s for c, s in zip(self.crop_size, self.size))
        if self.do_resize and self.do_center_crop and larger:
            raise ConfigError("crop_size", self.crop_size, f"must fit into size, {self.size}")

    def __call__(
        self, images: Any, segmentation_maps: Any = None, return_tensors: str = "pt"
    ) -> dict[str, Tensor]:
        """Make a batch: ``pixel_values`` (images, 3, height, width) float32, and if there are maps
        ``labels`` (images, height, width) int64.

        PIL images of all modes are decoded as in pretraining: levels of 16 bits are divided by 256,
        transparency is laid over white. Their EXIF orientation is not applied, as in transformers.

        Arrays and tensors keep their levels if ``rescale_factor`` is not 1 / 255. Otherwise whole
        numbers above 255 are levels of 16 bits and are divided by 256, and real numbers must lie
        between 0 and 255. Images in [0, 1] are multiplied by ``rescale_factor`` as well, with a
        warning.

        Args:
            images: one image or a sequence of them, of any numeric type: PIL images, arrays or
                tensors (H, W, 3) or (3, H, W). If both could be meant, arrays are (H, W, 3) and
                tensors (3, H, W). Without ``do_resize`` all must have one size.
            segmentation_maps: for each image one class id per pixel, (H, W), or three times the
                same id. Of a PIL image with a palette the indices are the ids. Resizing takes the
                nearest pixel; transformers interpolates ids.
            return_tensors: must be ``pt``.

        Raises:
            ConfigError: ``return_tensors`` is not ``pt``; images do not have three channels, keep
                different sizes, are smaller than the crop, or have other levels; maps hold colours
                or fractions; there is not one map for each image.
        """
        if return_tensors != "pt":
            raise ConfigError("return_tensors", return_tensors, "must be pt, torch's")
        images = _listed("images", images, 3)
        batch = {"pixel_values": _stacked(list(map(self._image, images)))}
        if segmentation_maps is None:
            return batch
        maps = _listed("segmentation_maps", segmentation_maps, 2)
        if len(maps) != len(images):
            rule = f"must be one for each of {len(images)} images"
            raise ConfigError("segmentation_maps", f"{len(maps)} maps", rule)
        return batch | {"labels": _stacked(list(map(self._map, maps)))}

    def _image(self, image: Any) -> Tensor:
        x = self._levels(_pixels(image))
        if self.do_resize and tuple(x.shape[1:]) != self.size:
            x = F.interpolate(x[None], self.size, mode=RESAMPLING[self.resample], antialias=True)[0]
        x = self._cropped(x).float()
        x = x * self.rescale_factor if self.do_rescale else x
        if not self.do_normalize:
            return x
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.image_mean, self.image_std))
        return (x - mean) / std

    def _levels(self, x: Tensor) -> Tensor:
        """Pixels of any type as uint8, float32 or float64, which torch can resize."""
        of_8_bits = self.do_rescale and abs(self.rescale_factor * BRIGHTEST - 1) < 0.1
        if not x.is_floating_point():
            return eight_bits(x) if of_8_bits else x.float() if x.dtype != torch.uint8 else x
        if of_8_bits and x.numel():
            _check_range(*(float(level) for level in x.aminmax()))
        return x if x.dtype in (torch.float32, torch.float64) else x.float()

    def _map(self, segmentation: Any) -> Tensor:
        classes = _classes(segmentation)
        if self.do_reduce_labels:
            classes = torch.where((classes == 0) | (classes == IGNORED), IGNORED, classes - 1)
        if self.do_resize:
            rows, columns = (
                _nearest(n, to) for n, to in zip(classes.shape, self.size, strict=True)
            )
            classes = classes[rows][:, columns]
        return self._cropped(classes)

    def _cropped(self, x: Tensor) -> Tensor:
        if not self.do_center_crop:
            return x
        (height, width), (rows, columns) = x.shape[-2:], self.crop_size
        if rows > height or columns > width:
            raise ConfigError(
                "crop_size", self.crop_size, f"must fit into the image, {(height, width)}"
            )
        top, left = (height - rows) // 2, (width - columns) // 2
        return x[..., top : top + rows, left : left + columns]

    def post_process_semantic_segmentation(
        self,
        outputs: SemanticSegmenterOutput,
        target_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Tensor]:
        """For each image a map of class ids, with the (height, width) of ``target_sizes`` or of the
        logits.

        Raises:
            ConfigError: there is not one size for each image.
        """
        assert outputs.logits is not None
        if target_sizes is None:
            return list(outputs.logits.argmax(1))
        if len(target_sizes) != len(outputs.logits):
            rule = f"must be one for each of {len(outputs.logits)} images"
            raise ConfigError("target_sizes", f"{len(target_sizes)} sizes", rule)
        pairs = zip(outputs.logits[:, None], target_sizes, strict=True)
        return [
            F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)[0].argmax(0)
            for x, size in pairs
        ]

    def to_dict(self) -> dict[str, Any]:
        """The content of ``preprocessor_config.json``."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        sizes = {k: dict(zip(("height", "width"), fields[k])) for k in ("size", "crop_size")}
        return fields | sizes | {"image_processor_type": "BeitImageProcessor"}

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``preprocessor_config.json`` into ``directory``."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        (Path(directory) / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Data2VecVisionImageProcessor:
        """Read ``preprocessor_config.json``, also one that transformers wrote.

        Args:
            directory: a directory with that file, or a model's name in the local hub cache.

        Raises:
            ConfigError: there is no such file, or a size is not height and width.
        """
        file = model_folder(directory) / FILE
        if not file.is_file():
            remedy = "save an image processor there first"
            raise ConfigError("directory", directory, f"has no {FILE}", remedy)
        read = json.loads(file.read_text(encoding="utf-8"))
        if "reduce_labels" in read:  # its name before transformers 4.26
            read = {"do_reduce_labels": read["reduce_labels"]} | read
        known: dict[str, Any] = {}
        for key in cls.__dataclass_fields__:
            if (value := read.get(key)) is not None:
                known[key] = tuple(value) if isinstance(value, list) else value
        for key in {"size", "crop_size"} & set(known):
            known[key] = _sides(f"{file}: {key}", known[key])
        return cls(**known)


def _sides(key: str, size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return (size["height"], size["width"])
    raise ConfigError(key, size, "must be a height and a width")


def _listed(key: str, images: Any, dimensions: int) -> Sequence[Any]:
    """Images as a sequence; one PIL image, array or tensor becomes a sequence of one."""
    if hasattr(images, "convert") or (hasattr(images, "ndim") and images.ndim <= dimensions):
        return [images]
    if isinstance(images, str | bytes | Path) or not hasattr(images, "__len__"):
        rule, remedy = "must be images or a sequence of them", "open files with PIL.Image.open"
        raise ConfigError(key, f"of type {type(images).__name__}", rule, remedy)
    if not len(images):
        raise ConfigError(key, "[]", "must be at least one image")
    return images


def _nearest(size: int, to: int) -> Tensor:
    """For each of ``to`` pixels the nearest of ``size`` pixels: (to,) indices. Computed in whole
    numbers, because rounding of floats could choose the neighbour."""
    return (2 * torch.arange(to) + 1) * size // (2 * to)


def _numbers(image: Any) -> Tensor:
    """The values of a PIL image, array or tensor, in its own layout."""
    return image if torch.is_tensor(image) else native(np.array(image))


def _pixels(image: Any) -> Tensor:
    """An image as a tensor (3, H, W) of its own type: torchvision and PIL resize whole grey
    levels."""
    is_tensor = torch.is_tensor(image)
    if hasattr(image, "convert"):  # PIL, which need not be there
        image = colours(image)
    x = _numbers(image)
    sides = [axis for axis in (0, 2) if x.ndim == 3 and x.shape[axis] == 3]
    if not sides or not x.numel():
        shape, remedy = f"of shape {tuple(x.shape)}", "convert them to RGB"
        raise ConfigError("images", shape, "must have three channels", remedy)
    return x.movedim(sides[0] if is_tensor else sides[-1], 0)


def _check_range(low: float, high: float) -> None:
    """Refuse real levels that cannot be of 8 bits, and warn of those that are in [0, 1]."""
    if not (low >= -BRIGHTEST and high <= OVERSHOOT):  # not so for NaN too
        shown, rule = f"with levels from {low:g} to {high:g}", f"must lie from 0 to {BRIGHTEST}"
        remedy = "divide levels of 16 bits by 256, or set do_rescale=False or another factor"
        raise ConfigError("images", shown, rule, remedy)
    if low >= 0 and 0 < high <= 1:
        text = "images in [0, 1] are multiplied by rescale_factor=1/255 once more"
        remedy = "set do_rescale=False, or give levels from 0 to 255"
        warnings.warn(f"{text}; {remedy}.", stacklevel=5)


def _classes(segmentation: Any) -> Tensor:
    """A segmentation map as a tensor (H, W) of class ids."""
    ids = _numbers(segmentation)
    shape = tuple(ids.shape)
    if ids.ndim == 3:
        ids = ids.movedim(0 if shape[0] in (1, 3) and shape[2] not in (1, 3) else 2, 0)
        if not (len(ids) in (1, 3) and bool((ids == ids[0]).all())):
            rule, remedy = "must hold one class id per pixel", "turn colours into ids"
            raise ConfigError("segmentation_maps", f"of shape {shape}", rule, remedy)
        ids = ids[0]
    if ids.ndim != 2 or not ids.numel():
        raise ConfigError("segmentation_maps", f"of shape {shape}", "must be height by width")
    if ids.is_floating_point() and not bool((ids == ids.trunc()).all()):
        raise ConfigError("segmentation_maps", "with fractions", "must be whole class ids")
    return ids.long()


def _stacked(images: list[Tensor]) -> Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) != 1:
        rule = "must be of one size to be a batch"
        raise ConfigError("images", sorted(shapes), rule, "set do_resize")
    return torch.stack(images)
