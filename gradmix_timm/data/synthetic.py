"""Synthetic images from a seed: noise and textures without objects, as a timm reader of PIL images."""
from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from timm.data.readers.reader import Reader

from gradmix_timm.registry import Registry

from .images import ImageSource

__all__ = ['MADE', 'MadeReader', 'list_made', 'made_images']

Pixels: TypeAlias = NDArray[np.float64]
# (generator, height, width) -> values [H, W, 3], clipped to 0..1.
Maker: TypeAlias = Callable[[Generator, int, int], Pixels]

MADE: Registry[Maker] = Registry('made image')


def list_made() -> dict[str, str]:
    """Kinds of synthetic images: name to one line."""
    return MADE.describe()


def made_images(name: str, count: int, sizes: Sequence[tuple[int, int]], seed: int = 0,
                mode: str = 'RGB') -> ImageSource:
    """A data set of synthetic images.

    Args:
        name: Of :func:`list_made`.
        count: Images, 1 or more.
        sizes: (width, height) in pixels, taken in turn: those of the known images, so that the same resize follows.
        seed: An image is a function of (seed, name, position, size) alone.
        mode: PIL mode, 'RGB' or 'L'.

    Raises:
        ValueError: An unknown name (with the nearest), no image, or a size below 1 pixel.

    Example:
        >>> made_images('uniform', 2, [(32, 24)]).read(1)[0].size
        (32, 24)
    """
    return ImageSource(MadeReader(name, count, sizes, seed), mode)


class MadeReader(Reader):
    """Synthetic images by position, generated on each access.

    Args:
        name: Of :func:`list_made`.
        count: Images.
        sizes: (width, height), taken in turn.
        seed: Not negative.
    """

    def __init__(self, name: str, count: int, sizes: Sequence[tuple[int, int]], seed: int = 0) -> None:
        super().__init__()
        MADE[name]
        if count < 1 or seed < 0 or not sizes or min(map(min, sizes)) < 1:
            raise ValueError(f'made images need a count and sizes of 1 or more and a seed of 0 or more, got {count} '
                             f'images, sizes {list(sizes)[:3]}, seed {seed}')
        self.name, self.count, self.sizes, self.seed = name, count, tuple(sizes), seed
        self.classes, self.targets = (name,), np.zeros(count, dtype=np.int64)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        width, height = self.sizes[index % len(self.sizes)]
        # A checksum, since Python's hash of a string differs between runs.
        generator = np.random.default_rng([self.seed, zlib.crc32(self.name.encode()), index])
        values = MADE[self.name](generator, height, width)
        return Image.fromarray(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)), 0

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f'MadeReader({self.name!r}, {self.count}, {self.sizes}, seed={self.seed})'

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f'{self.name}-{self.seed}-{index:06}'


# ---- noise

@MADE.register('uniform', 'every value uniform over 0..255')
def _uniform(rng: Generator, height: int, width: int) -> Pixels:
    return rng.random((height, width, 3))


@MADE.register('gaussian', 'every value normal round mid-grey, standard deviation a quarter of the range, clipped')
def _gaussian(rng: Generator, height: int, width: int) -> Pixels:
    return rng.normal(0.5, 0.25, (height, width, 3))


@MADE.register('rademacher', 'every value 0 or 255 with equal chance')
def _rademacher(rng: Generator, height: int, width: int) -> Pixels:
    return rng.integers(0, 2, (height, width, 3)).astype(np.float64)


@MADE.register('constant', 'one colour')
def _constant(rng: Generator, height: int, width: int) -> Pixels:
    return np.broadcast_to(rng.random(3), (height, width, 3))


# ---- textures

@MADE.register('blobs', 'soft spots with hard edges: binary noise, blurred, the dark part cut off')
def _blobs(rng: Generator, height: int, width: int) -> Pixels:
    from scipy.ndimage import gaussian_filter

    # After arXiv:1812.04606: 70% ones, Gaussian filter, values below 0.75 set to zero; the width follows the image.
    sigma = max(min(height, width) / 20, 0.5)
    smooth = gaussian_filter((rng.random((height, width, 3)) < 0.7).astype(np.float64), (sigma, sigma, 0))
    # After a wide blur no value reaches 0.75, so the threshold is that quantile of the image.
    return np.where(smooth < np.quantile(smooth, 0.75), 0., (smooth - smooth.min()) / max(np.ptp(smooth), 1e-9))


@MADE.register('stripes', 'a sine wave of two colours, any direction, 2 to 16 waves over the shorter side')
def _stripes(rng: Generator, height: int, width: int) -> Pixels:
    angle, waves, phase = rng.uniform(0, np.pi), rng.uniform(2, 16), rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width] / min(height, width)
    return _blend(rng, (np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) + phase) + 1) / 2)


@MADE.register('checkerboard', 'squares of two colours, 2 to 16 over the shorter side, shifted')
def _checkerboard(rng: Generator, height: int, width: int) -> Pixels:
    side = max(min(height, width) / rng.uniform(2, 16), 1.)
    y, x = (np.floor((np.arange(n) + rng.uniform(0, 2 * side)) / side) for n in (height, width))
    return _blend(rng, (y[:, None] + x) % 2)


@MADE.register('clouds', 'smooth noise of several scales, two colours, as Perlin noise looks')
def _clouds(rng: Generator, height: int, width: int) -> Pixels:
    total, cells = np.zeros((height, width)), 2
    while cells <= min(height, width):
        grid = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64) / cells
        cells *= 2
    return _blend(rng, (total - total.min()) / max(np.ptp(total), 1e-9))


def _blend(rng: Generator, share: Pixels) -> Pixels:
    """From one random colour to another, [H, W] -> [H, W, 3]."""
    first, second = rng.random((2, 3))
    return first + share[..., None] * (second - first)
