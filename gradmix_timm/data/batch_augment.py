"""timm's training augmentation for whole uint8 batches: each image has its own draw, all at once, on any device."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gradmix_timm.ops import to_device

__all__ = ['AugmentDraw', 'BatchAugment', 'draw_crops', 'resample']

# Attempts of timm's random crop before it falls back to the center.
_ATTEMPTS = 10
# ITU-R 601, PIL's weights for converting colour to grey.
_GREY = (0.299, 0.587, 0.114)
# Largest table of resampling weights: images of up to 64 px.
_TABLE_BYTES = 160 * 2 ** 20


@dataclass(frozen=True)
class AugmentDraw:
    """Everything random about the augmentation of one batch.

    Attributes:
        box: top, left, height, width read from each (padded) image, int64 [B, 4].
        flip: Upside down and left to right, bool [B, 2].
        cubic: Resampled bicubically, bool [B]; bilinearly else.
        factor: Of brightness, contrast and saturation, float32 [B, 3]; 1 changes nothing.
        order: Which of the three comes first, second and third, int64 [B, 3].
        grey: Made grey, bool [B].
    """

    box: np.ndarray
    flip: np.ndarray
    cubic: np.ndarray
    factor: np.ndarray
    order: np.ndarray
    grey: np.ndarray


@dataclass(frozen=True)
class BatchAugment:
    """Random crop, flips, colour jitter and grey of a batch, distributed as timm's ``transforms_imagenet_train``.

    Pixels are rounded and clipped between the steps as PIL's are, so that with the same draw they agree to about one
    of 255; only the source of the random draws differs.

    Args:
        size: Output height and width.
        scale: Range of the share of the area that is cropped.
        ratio: Range of the crop's aspect.
        interpolation: 'bilinear', 'bicubic', or 'random': either.
        hflip: Probability of a flip left to right.
        vflip: Probability of a flip upside down.
        color_jitter: Strength of brightness, contrast and saturation.
        color_jitter_prob: Of jitter; None: always.
        grayscale_prob: Of grey.
        padding: Crop ``size`` from the image with a border of so many pixels, in place of the random resized crop;
            None: the resized crop.
        fill: Of that border, per channel, 0 to 255.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = 'random'
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.4
    color_jitter_prob: float | None = None
    grayscale_prob: float = 0.0
    padding: int | None = None
    fill: tuple[float, ...] = (0.0,)

    def draw(self, rng: np.random.Generator, batch: int, image_size: tuple[int, int]) -> AugmentDraw:
        """The draw of a batch of images of one size."""
        if self.padding is None:
            box = draw_crops(rng, batch, image_size, self.scale, self.ratio)
        else:
            room = np.array(image_size) + 2 * self.padding - np.array(self.size) + 1
            box = np.concatenate([rng.integers(0, room, (batch, 2)), np.tile(self.size, (batch, 1))], 1)
        cubic = rng.random(batch) < {'random': 0.5, 'bicubic': 1.0, 'bilinear': 0.0}[self.interpolation]
        low, high = max(0.0, 1 - self.color_jitter), 1 + self.color_jitter
        factor = rng.uniform(low, high, (batch, 3)).astype(np.float32)
        jittered = rng.random(batch) < (1.0 if self.color_jitter_prob is None else self.color_jitter_prob)
        return AugmentDraw(
            box=box, flip=rng.random((batch, 2)) < (self.vflip, self.hflip), cubic=cubic,
            factor=np.where(jittered[:, None], factor, np.float32(1)), grey=rng.random(batch) < self.grayscale_prob,
            order=rng.permuted(np.tile(np.arange(3), (batch, 1)), axis=1))

    def apply(self, images: Tensor, draw: AugmentDraw) -> Tensor:
        """The augmented batch.

        Args:
            images: uint8 [B, C, H, W].
            draw: Of as many images of this size.

        Returns:
            float32 [B, C, h, w], whole numbers in [0, 255].
        """
        if self.padding is None:
            pixels = resample(images, draw.box, self.size, draw.cubic, draw.flip)
        else:
            pixels = _shifted(images, draw, self.size, self.padding, self.fill)
        if self.color_jitter > 0:
            pixels = _jittered(pixels, draw)
        if self.grayscale_prob > 0 and pixels.shape[1] == 3:
            grey = to_device(draw.grey, pixels.device)[:, None, None, None]
            pixels = torch.where(grey, _grey(pixels), pixels)
        return pixels


def draw_crops(rng: np.random.Generator, batch: int, image_size: tuple[int, int], scale: Sequence[float],
               ratio: Sequence[float]) -> np.ndarray:
    """Boxes of timm's random resized crop, one for each image.

    Args:
        rng: Drawn from.
        batch: B.
        image_size: Height and width.
        scale: Range of the share of the area, uniform.
        ratio: Range of width / height, uniform in its logarithm.

    Returns:
        top, left, height, width: int64 [B, 4].
    """
    height, width = image_size
    area = rng.uniform(scale[0], scale[1], (_ATTEMPTS, batch)) * (height * width)
    aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1]), (_ATTEMPTS, batch)))
    # Of a few pixels timm's crop may be empty, which has no resized image.
    sides = np.rint(np.sqrt([area / aspect, area * aspect])).astype(np.int64).clip(1)
    fits = (sides[0] <= height) & (sides[1] <= width)
    chosen = sides[:, fits.argmax(0), np.arange(batch)].T
    # If no attempt fits: the center, as far as the aspect allows.
    middle = [min(height, round(width / min(ratio))), min(width, round(height * max(ratio)))]
    chosen = np.where(fits.any(0)[:, None], chosen, middle).clip(1)
    room = np.array([height, width]) - chosen
    corner = np.where(fits.any(0)[:, None], rng.integers(0, room + 1), room // 2)
    return np.concatenate([corner, chosen], 1)


def resample(images: Tensor, box: np.ndarray, size: tuple[int, int], cubic: np.ndarray, flip: np.ndarray) -> Tensor:
    """Crop and resize every image by its own box, with the filters of PIL, as two matrix products.

    Args:
        images: uint8 [B, C, H, W]; rows outermost in memory (H, C, W) save a copy.
        box: top, left, height, width, int64 [B, 4].
        size: Output height and width.
        cubic: Bicubic where True, bilinear else, bool [B]; both widen when they shrink, as PIL's.
        flip: Upside down and left to right, bool [B, 2].

    Returns:
        float32 [B, C, h, w], whole numbers in [0, 255].
    """
    batch, channels, height, width = images.shape
    rows = _side_weights(box[:, 0], box[:, 2], height, size[0], cubic, flip[:, 0], images.device)
    columns = _side_weights(box[:, 1], box[:, 3], width, size[1], cubic, flip[:, 1], images.device)
    pixels = images.permute(0, 2, 1, 3).to(torch.float32).reshape(batch, height * channels, width)
    across = torch.bmm(pixels, columns.transpose(1, 2)).clamp_(0, 255)  # PIL clips here too: bicubic overshoots
    whole = torch.bmm(rows, across.view(batch, height, channels * size[1])).round_().clamp_(0, 255)
    return whole.view(batch, size[0], channels, size[1]).permute(0, 2, 1, 3)


def _side_weights(start: np.ndarray, length: np.ndarray, inside: int, outside: int, cubic: np.ndarray,
                  flip: np.ndarray, device: torch.device) -> Tensor:
    """Weights along one side for each image, float32 [B, outside, inside]; looked up where all of them fit a table."""
    count = inside * (inside + 1) // 2
    if 4 * count * outside * inside * 4 > _TABLE_BYTES:
        given = (to_device(values, device) for values in (start, length, cubic, flip))
        return _weights(inside, outside, *given)
    shorter = inside - length  # starts of the longer lengths come first: 1 + 2 + ... of them
    place = (shorter * (shorter + 1) // 2 + start) * 4 + 2 * cubic + flip
    return _table(inside, outside, device).index_select(0, to_device(place, device))


@lru_cache(maxsize=4)
def _table(inside: int, outside: int, device: torch.device) -> Tensor:
    """Weights of every box along a side, by length (longest first), start, filter and flip."""
    entries = [(start, length, cubic, flip) for length in range(inside, 0, -1) for start in range(inside - length + 1)
               for cubic in (False, True) for flip in (False, True)]
    parts = [torch.tensor(chunk) for chunk in zip(*entries, strict=True)]
    chunks = zip(*(part.split(1024) for part in parts), strict=True)
    return torch.cat([_weights(inside, outside, *chunk) for chunk in chunks]).to(device)


def _weights(inside: int, outside: int, start: Tensor, length: Tensor, cubic: Tensor, flip: Tensor) -> Tensor:
    """Weight of every input pixel in every output pixel along one side, float32 [B, outside, inside]."""
    step = length.to(torch.float32)[:, None, None] / outside
    target = torch.arange(outside, device=start.device, dtype=torch.float32)
    target = torch.where(flip[:, None], outside - 1 - target, target)[:, :, None]
    offset = torch.arange(inside, device=start.device)[None, None] - start[:, None, None]
    distance = ((offset + 0.5 - (target + 0.5) * step) / step.clamp_min(1.0)).abs_()
    weight = torch.where(cubic[:, None, None], _cubic(distance), (1 - distance).clamp_min_(0))
    weight *= (offset >= 0) & (offset < length[:, None, None])
    return weight / weight.sum(2, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2, of distances x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _shifted(images: Tensor, draw: AugmentDraw, size: tuple[int, int], padding: int, fill: tuple[float, ...]) -> Tensor:
    """A crop of each image with a border, flipped; no resampling."""
    channels = images.shape[1]
    values = np.rint(np.array(fill, np.float32)).astype(np.uint8)
    padded = F.pad(images, (padding,) * 4)
    if values.any():
        colour = to_device(values, images.device).view(1, -1, 1, 1)
        padded = padded + colour * (1 - F.pad(torch.ones_like(images[:1]), (padding,) * 4))
    places = []
    for side, (start, turned) in enumerate(zip(draw.box[:, :2].T, draw.flip.T, strict=True)):
        run = np.arange(size[side])
        place = start[:, None] + np.where(turned[:, None], run[::-1], run)
        places.append(to_device(place, images.device))
    rows = places[0][:, None, :, None].expand(-1, channels, -1, padded.shape[3])
    columns = places[1][:, None, None, :].expand(-1, channels, size[0], -1)
    return padded.gather(2, rows).gather(3, columns).to(torch.float32)


def _grey(pixels: Tensor) -> Tensor:
    """One channel [B, 1, h, w]: luminance of three channels, the mean of others."""
    if pixels.shape[1] != 3:
        return pixels.mean(1, keepdim=True)
    red, green, blue = pixels.split(1, 1)
    return (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2]).round_()


def _jittered(pixels: Tensor, draw: AugmentDraw) -> Tensor:
    """Brightness, contrast and saturation in each image's own order: each a blend with black, mean grey or grey."""
    factor = to_device(np.take_along_axis(draw.factor, draw.order, 1), pixels.device)
    order = to_device(draw.order, pixels.device)
    colour = pixels.shape[1] == 3
    for place in range(3):
        share = factor[:, place, None, None, None]
        which = order[:, place, None, None, None]
        if not colour:  # of one channel the grey is the image itself
            share = torch.where(which == 2, 1.0, share)
        grey = _grey(pixels)
        level = grey.mean((2, 3), keepdim=True).round_()
        rest = 1 - share
        # Contrast blends with the mean grey, saturation with the grey, brightness with black.
        base = grey.mul_(rest * (which == 2)).add_(level * rest * (which == 1))
        # As PIL, after each step; the epsilon is for products slightly below their whole number.
        pixels = torch.addcmul(base, pixels, share).add_(1e-3).floor_().clamp_(0, 255)
    return pixels
