"""SyntheticVision: ten textured shapes at 32x32, drawn in numpy."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from d2v_pretrain.rng import fold_in
from datamodules.datasets.base import Dataset
from datamodules.datasets.probe_tasks import Labelled, Split

SHAPES = (
    "disc",
    "square",
    "triangle",
    "cross",
    "ring",
    "star",
    "half disc",
    "bar",
    "crescent",
    "diamond",
)
SIDE = 32
_CHUNK = 500  # images drawn at once; more would take memory and be no faster
_NUMBERS = 32  # uniform random numbers that describe an image


class SyntheticVision(Dataset[np.ndarray]):
    """Filled shapes of random colour, size, place and rotation; image i is a function of (seed, i).

    They have a sinusoidal texture, shading, a small square as a distractor, and noise.

    Args:
        images: unlabelled images for pretraining.
        train, test: labelled images of the probe, never seen in pretraining.
        seed: of the data, not of the run.
    """

    holds = "image"

    def __init__(self, images: int, train: int, test: int, seed: int) -> None:
        self.images, self.train, self.test, self.seed = images, train, test, seed

    def __len__(self) -> int:
        return self.images

    @cached_property
    def _pixels(self) -> np.ndarray:
        return self._draw(0, self.images)[0]

    def read(self, index: int) -> np.ndarray:
        return self._pixels[index]

    def describe(self) -> str:
        size = f"{self.images:,} images of {SIDE}x{SIDE}, {len(SHAPES)} shapes"
        return f"synthetic shapes (not photographs): {size}"

    def labelled(self) -> list[Labelled[np.ndarray]]:
        """The shape, on images that are not in the pretraining data."""
        first = self._draw(self.images, self.train)
        second = self._draw(self.images + self.train, self.test)
        note = f"{len(SHAPES)} shapes, tested on unseen images"
        return [Labelled("shapes", _split(*first), _split(*second), len(SHAPES), note)]

    def _draw(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(count, 3, 32, 32) uint8 images and (count,) shapes, from item ``start`` on."""
        parts = [
            self._chunk(range(i, min(i + _CHUNK, start + count)))
            for i in range(start, start + count, _CHUNK)
        ]
        pixels, shapes = (np.concatenate(part) for part in zip(*parts, strict=True))
        return pixels, shapes

    def _chunk(self, indices: range) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.empty((len(indices), _NUMBERS), np.float32)
        noise = np.empty((len(indices), 3, SIDE, SIDE), np.float32)
        for row, index in enumerate(indices):
            rng = np.random.default_rng(fold_in(self.seed, index))
            rng.random(dtype=np.float32, out=numbers[row])
            rng.standard_normal(dtype=np.float32, out=noise[row])
        shapes = (numbers[:, 0] * len(SHAPES)).astype(np.int64)
        return _paint(shapes, numbers, noise), shapes


def _split(pixels: np.ndarray, shapes: np.ndarray) -> Split[np.ndarray]:
    return Split(pixels.__getitem__, shapes)


def _paint(shapes: np.ndarray, u: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Draw N images, (N, 3, 32, 32) uint8, from their shapes (N,), uniform numbers (N, 32) and
    normal noise."""
    axis = (np.arange(SIDE, dtype=np.float32) + 0.5) * (2 / SIDE) - 1
    y, x = axis[:, None], axis[None, :]
    at = u[:, :, None, None]  # (N, 32, 1, 1)
    covered = [_coverage(shape, *_place(at[i], x, y)) for i, shape in enumerate(shapes)]
    inside = np.stack(covered)[:, None]
    fore, back = _colours(u)
    image = back + (fore - back) * inside
    wave = at[:, 11] * x + at[:, 12] * y
    phase = 2 * np.pi * (2 + 6 * at[:, 13]) * (wave - 0.5 * (x + y)) + 6.28 * at[:, 14]
    image += 0.08 * np.sin(phase)[:, None]
    image += 0.12 * ((2 * at[:, 15] - 1) * x + (2 * at[:, 16] - 1) * y)[:, None]
    corners = (u[:, 17:19] * (SIDE - 4)).astype(np.int64)
    for i, (row, column) in enumerate(corners):
        image[i, :, row : row + 4, column : column + 4] = u[i, 19:22, None, None]
    image += 0.05 * noise
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def _place(u: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (32, 32) in the frame of a shape of half-width 1, from its numbers (32, 1, 1)."""
    size, turn = 0.5 + 0.3 * u[1], 0.8 * u[2] - 0.4  # in half-widths of the image; in radians
    x, y = x - (0.4 * u[3] - 0.2), y - (0.4 * u[4] - 0.2)
    c, s = np.cos(turn), np.sin(turn)
    return (c * x + s * y) / size, (c * y - s * x) / size


def _colours(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours (N, 3, 1, 1) of shapes and backgrounds, whose mean difference is at least .25."""
    fore, back = u[:, 5:8], u[:, 8:11]
    difference = fore - back
    contrast = np.abs(difference).mean(1, keepdims=True)
    push = np.maximum(0.25 / np.maximum(contrast, 1e-3), 1)
    middle = (fore + back) / 2
    fore, back = middle + difference * push / 2, middle - difference * push / 2
    return fore[..., None, None], back[..., None, None]


def _coverage(shape: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(32, 32) float32, 1 inside the shape of half-width 1 centred at the origin."""
    radius = np.hypot(x, y)
    match SHAPES[shape]:
        case "disc":
            inside = radius < 0.9
        case "square":
            inside = np.maximum(abs(x), abs(y)) < 0.75
        case "triangle":
            inside = (y < 0.65) & (y > 1.9 * abs(x) - 0.95)
        case "cross":
            inside = (np.minimum(abs(x), abs(y)) < 0.28) & (np.maximum(abs(x), abs(y)) < 0.9)
        case "ring":
            inside = (radius < 0.9) & (radius > 0.5)
        case "star":
            inside = radius < 0.62 + 0.36 * np.cos(5 * np.arctan2(x, -y))
        case "half disc":
            inside = (radius < 0.95) & (y < 0.1)
        case "bar":
            inside = (abs(x) < 0.3) & (abs(y) < 0.95)
        case "crescent":
            inside = (radius < 0.9) & (np.hypot(x - 0.45, y) > 0.7)
        case _:
            inside = abs(x) + abs(y) < 0.95
    return inside.astype(np.float32)
