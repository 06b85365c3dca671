"""VisionTransform: images, cropped and flipped as uint8, normalised on the device; pixels as the
floor of probes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from d2v_pretrain.rng import fold_in
from d2v_pretrain.types import Batch, ProbeTask
from datamodules.datasets.probe_tasks import FixedBatches, Labelled

_AUGMENT = 3  # what the randomness is for
_FLOOR_SIDE = 32  # of the images whose pixels are the floor


class ImageDataset(Protocol):
    """Colour images: ``read(i)`` is (3, H, W) uint8 of any size, or None if it cannot be read."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray | None: ...

    def describe(self) -> str: ...

    def labelled(self) -> list[Labelled[np.ndarray]]: ...


class VisionTransform:
    """Augmented images, the augmentation a function of (seed, epoch, index).

    Random resized crop (bicubic) and horizontal flip, after colour jitter of the whole image where
    there is any, as in the reference (fairseq ``MaeImageDataset``; BEiT's
    ``DataAugmentationForBEiT`` with its jitter of .4, which flips before it crops: the same
    distribution). Images are uint8 until ``finish`` on the device. Probes see the centre.

    Args:
        dataset: the images.
        size: side in pixels.
        scale: smallest and largest area of the crop, as a share of the image.
        ratio: smallest and largest aspect ratio of the crop.
        jitter: strength of random brightness, contrast and saturation; 0 for none.
        flip: probability of a horizontal flip.
        mean, std: of each colour, in [0, 1].
        standardise: take from each image its own mean colour and contrast, in place of ``mean`` and
            ``std``.
        centre: what a probe keeps of the shorter side: 224/256 for photographs, 1 for tiny images.
        seed: of the run.
    """

    fill = 0.0
    lengths = None

    gives = "image"

    @classmethod
    def longest_input(cls, size: int, **_: Any) -> tuple[int, ...]:
        """(3, H, W)."""
        return 3, size, size

    def __init__(
        self,
        dataset: ImageDataset,
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
        self.dataset, self.size, self.seed = dataset, size, seed
        bicubic = v2.InterpolationMode.BICUBIC
        crop = v2.RandomResizedCrop(size, tuple(scale), tuple(ratio), bicubic)
        colour = [v2.ColorJitter(jitter, jitter, jitter)] if jitter else []
        standard = v2.Lambda(_standardised) if standardise else v2.Normalize(list(mean), list(std))
        self.finish = v2.Compose([v2.ToDtype(torch.float32, scale=True), standard])
        self.augment = v2.Compose([*colour, crop, v2.RandomHorizontalFlip(flip)])
        self.view = v2.Compose(
            [v2.Resize(round(size / centre), bicubic), v2.CenterCrop(size), self.finish]
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int, epoch: int) -> Tensor | None:
        """(3, size, size) uint8, or None if the file cannot be read any more."""
        pixels = self.dataset.read(index)
        return None if pixels is None else self.varied(pixels, index, epoch)

    def varied(self, pixels: np.ndarray, index: int, epoch: int) -> Tensor:
        """What training sees of an image in one pass: (3, size, size) uint8, augmented."""
        # The transforms draw from torch's generator: lend it to them, so that training does not
        # notice
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(fold_in(self.seed, _AUGMENT, epoch, index))
        try:
            return self.augment(torch.from_numpy(pixels))
        finally:
            torch.set_rng_state(state)

    def placeholder(self, index: int) -> Tensor:
        """(3, size, size) uint8, grey."""
        return torch.full((3, self.size, self.size), 128, dtype=torch.uint8)

    def describe(self) -> str:
        """One line for the log."""
        return f"{self.dataset.describe()}, as {self.size}x{self.size}"

    def plain(self) -> Iterator[Tensor | None]:
        """Every image as probes see it: (3, size, size) float32; None for one that cannot be
        read."""
        for i in range(len(self.dataset)):
            image = self.dataset.read(i)
            yield None if image is None else self._whole(image)

    def probe_tasks(self) -> list[ProbeTask]:
        """The dataset's labels over raw pixels as the floor."""
        return [self._task(task) for task in self.dataset.labelled()]

    def _task(self, task: Labelled[np.ndarray]) -> ProbeTask:
        train, test = (FixedBatches(split, self._whole) for split in (task.train, task.test))
        return ProbeTask(
            task.name, train, test, task.classes, pixels, "pixels", task.headline, task.note
        )

    def _whole(self, image: np.ndarray) -> Tensor:
        return self.view(torch.from_numpy(image))


def _standardised(image: Tensor) -> Tensor:
    """(…, 3, H, W) without the image's own mean colour, at unit contrast over all colours."""
    image = image - image.mean((-2, -1), keepdim=True)
    return image / (image.square().mean((-3, -2, -1), keepdim=True).sqrt() + 1e-3)


def pixels(batch: Batch) -> Tensor:
    """(B, F) normalised pixels, images of more than 32x32 scaled down to it."""
    side = min(_FLOOR_SIDE, batch.inputs.shape[-1])
    return torch.nn.functional.adaptive_avg_pool2d(batch.inputs, side).flatten(1)
