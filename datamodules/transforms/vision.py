"""VisionTransform: images, cropped and flipped as uint8, normalised on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from d2v_pretrain.rng import Use, fold_in
from d2v_pretrain.types import Batch
from datamodules.datasets.base import Dataset
from datamodules.transforms.base import Transform

_BASELINE_SIDE = 32  # side in pixels that images are scaled down to for the raw features of a probe


class VisionTransform(Transform[np.ndarray]):
    """Augmented images, the augmentation a function of (seed, epoch, index).

    Random resized crop (bicubic) and horizontal flip, after colour jitter of the whole image where
    there is any, as in the reference (fairseq ``MaeImageDataset``; BEiT's
    ``DataAugmentationForBEiT`` with its jitter of .4, which flips before it crops: the same
    distribution). Images are uint8 until ``finish`` on the device. Probes see the centre.

    Args:
        dataset: (3, H, W) uint8 images of any size.
        size: side of a sample in pixels.
        scale: smallest and largest area of the crop, as a share of the image.
        ratio: smallest and largest aspect ratio of the crop.
        jitter: strength of the random changes of brightness, contrast and saturation; 0 for none.
        flip: probability of a horizontal flip.
        mean, std: of each colour, in [0, 1].
        standardise: normalise each image by its mean colour and its contrast, instead of by
            ``mean`` and ``std``.
        centre: share of the shorter side that probes see: 224/256 for photographs, 1 for tiny
            images.
        seed: of the run.
    """

    takes = gives = "image"
    equal_sizes = True
    raw_baseline_name = "pixels"

    def __init__(
        self,
        dataset: Dataset[np.ndarray],
        size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        jitter: float,
        flip: float,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        centre: float,
        standardise: bool,
        seed: int,
    ) -> None:
        super().__init__(dataset)
        self.size, self.seed = size, seed
        bicubic = v2.InterpolationMode.BICUBIC
        crop = v2.RandomResizedCrop(size, tuple(scale), tuple(ratio), bicubic)
        colour = [v2.ColorJitter(jitter, jitter, jitter)] if jitter else []
        standard = v2.Lambda(_standardised) if standardise else v2.Normalize(list(mean), list(std))
        self.normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), standard])
        self.augment = v2.Compose([*colour, crop, v2.RandomHorizontalFlip(flip)])
        self.view = v2.Compose(
            [v2.Resize(round(size / centre), bicubic), v2.CenterCrop(size), self.normalise]
        )

    @classmethod
    def longest_input(cls, size: int, **_: Any) -> tuple[int, ...]:
        """The shape of every sample, (3, size, size)."""
        return (3, size, size)

    def train_view(
        self, item: np.ndarray, index: int, epoch: int, longest: int | None = None
    ) -> Tensor:
        """(3, size, size) uint8, augmented."""
        # The transforms draw from torch's generator. Its state is restored afterwards, so that
        # reading data does not change what training draws.
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(fold_in(self.seed, Use.AUGMENT, epoch, index))
        try:
            return self.augment(torch.from_numpy(item))
        finally:
            torch.set_rng_state(state)

    def plain_view(self, item: np.ndarray) -> Tensor:
        """(3, size, size) float32: the centre of the image, normalised."""
        return self.view(torch.from_numpy(_middle(item)))

    def finish(self, inputs: Tensor) -> Tensor:
        """Images (batch, 3, size, size) uint8, converted to float32 and normalised."""
        return self.normalise(inputs)

    def placeholder(self, length: int | None) -> Tensor:
        """(3, size, size) uint8, grey."""
        return torch.full((3, self.size, self.size), 128, dtype=torch.uint8)

    def describe(self) -> str:
        return f"{self.dataset.describe()}, as {self.size}x{self.size}"

    def raw_baseline(self, batch: Batch) -> Tensor:
        return pixels(batch)


def _middle(image: np.ndarray) -> np.ndarray:
    """An image (3, H, W), its longer side cut to at most 16 times the shorter one.

    Views show the centre; scaled up whole, an image of 8 by 60,000 pixels would take gigabytes.
    """
    height, width = image.shape[1:]
    most = 16 * min(height, width)
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    return image[:, top : height - top, left : width - left]


def _standardised(image: Tensor) -> Tensor:
    """Images (..., 3, height, width), each with its mean colour subtracted and divided by its
    standard deviation over all colours."""
    image = image - image.mean((-2, -1), keepdim=True)
    return image / (image.square().mean((-3, -2, -1), keepdim=True).sqrt() + 1e-3)


def pixels(batch: Batch) -> Tensor:
    """The normalised pixels of each image, (images, F); larger images are scaled down to 32 x
    32."""
    side = min(_BASELINE_SIDE, batch.inputs.shape[-1])
    return torch.nn.functional.adaptive_avg_pool2d(batch.inputs, side).flatten(1)
