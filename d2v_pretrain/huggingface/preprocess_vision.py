"""Data2VecVisionImageProcessor: images and segmentation maps -> pixel values and labels."""

from __future__ import annotations

import json
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

        Args:
            images: one image or a sequence of them, with grey levels of 8 bits: PIL images, arrays
                (H, W, 3) or tensors (3, H, W). Without ``do_resize`` all must have one size.
            segmentation_maps: for each image one class id per pixel, (H, W). Resizing takes the
                nearest pixel; transformers interpolates ids.
            return_tensors: must be ``pt``.

        Raises:
            ConfigError: ``return_tensors`` is not ``pt``; images do not have three channels, keep
                different sizes, or are smaller than the crop.
        """
        if return_tensors != "pt":
            raise ConfigError("return_tensors", return_tensors, "must be pt, torch's")
        batch = {"pixel_values": _stacked([self._image(image) for image in _listed(images, 3)])}
        if segmentation_maps is None:
            return batch
        return batch | {"labels": _stacked([self._map(m) for m in _listed(segmentation_maps, 2)])}

    def _image(self, image: Any) -> Tensor:
        x = _pixels(image)
        if self.do_resize and tuple(x.shape[1:]) != self.size:
            x = F.interpolate(x[None], self.size, mode=RESAMPLING[self.resample], antialias=True)[0]
        x = self._cropped(x).float()
        x = x * self.rescale_factor if self.do_rescale else x
        if not self.do_normalize:
            return x
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.image_mean, self.image_std))
        return (x - mean) / std

    def _map(self, segmentation: Any) -> Tensor:
        classes = torch.as_tensor(np.array(segmentation)).long()
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
        logits."""
        assert outputs.logits is not None
        if target_sizes is None:
            return list(outputs.logits.argmax(1))
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


def _listed(images: Any, dimensions: int) -> Sequence[Any]:
    """Images as a sequence; one PIL image, array or tensor becomes a sequence of one."""
    one = hasattr(images, "convert") or (hasattr(images, "ndim") and images.ndim == dimensions)
    return [images] if one else images


def _nearest(size: int, to: int) -> Tensor:
    """For each of ``to`` pixels the nearest of ``size`` pixels: (to,) indices. Computed in whole
    numbers, because rounding of floats could choose the neighbour."""
    return (2 * torch.arange(to) + 1) * size // (2 * to)


def _pixels(image: Any) -> Tensor:
    """An image as a tensor (3, H, W) of its own type: torchvision and PIL resize whole grey
    levels."""
    if hasattr(image, "convert"):  # PIL, which need not be there
        image = np.array(image.convert("RGB"))
    x = image if torch.is_tensor(image) else torch.as_tensor(np.array(image)).movedim(-1, 0)
    if x.ndim != 3 or x.shape[0] != 3:
        shape, remedy = f"of shape {tuple(image.shape)}", "convert them to RGB"
        raise ConfigError("images", shape, "must have three channels", remedy)
    return x


def _stacked(images: list[Tensor]) -> Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) != 1:
        rule = "must be of one size to be a batch"
        raise ConfigError("images", sorted(shapes), rule, "set do_resize")
    return torch.stack(images)
