"""OpenMix: mixes of an image with itself are labelled unknown, beside the clean batch."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradmix_timm.ops import blend, image_size, rotation, spectral_residual, to_device, warp
from gradmix_timm.records import MixDraw

from .base import BatchMixer
from .fmix import top_mask

__all__ = ['OpenMix', 'kaleidoscope', 'moved_shapes']

_MIXUP, _CUTOUT, _CUTMIX = range(3)
#: Bounds on the foreground's share of an image, as in their code for GrabCut's.
_FOREGROUND = (0.1, 0.8)


class OpenMix(BatchMixer):
    """The clean batch, then one of OpenMixup, OpenCutout and OpenCutmix of each image, labelled as no class.

    Jiang et al., "OpenMix+: Revisiting Data Augmentation for Open Set Recognition", IEEE TCSVT 2023 (document
    10106029): mixes labelled with known classes gain closed-set accuracy at the cost of open-space risk; here a
    mix is labelled unknown. The rules are those of their public code (t9liverpool/OpenMix):

    - OpenMixup: x~ = (x + rot(x)) / 2, the image and itself turned by a uniform angle: unknown.
    - OpenCutout: the foreground is blanked: unknown. So that a hole alone does not reveal it, as many images have a
      hole beside the foreground (the foreground of another image, half as large, anywhere) and keep their label; where
      it would touch the foreground, the image is unchanged.
    - OpenCutmix: the same with a filler in place of the hole: a kaleidoscope of one quarter of the image, its corner in
      the middle, turned by a uniform angle.

    Unknown is a uniform target, or with ``unknown_output`` the last output (their code has one for each kind of mix).
    ``ratio`` is theirs for CIFAR-10 and ImageNet (MNIST: OpenCutmix alone, ``(0, 0, 1)``); theirs is of clean images
    too, 1 : 4 : 1 : 1, for which type ``keep_clean=False, prob_elem=6/7``. By default the clean rows come first, as
    many as mixes, and a step costs two. Of OpenMix+ the regulariser of the classifier is not here. Departures: the
    foreground is the most salient part of the image (spectral residual, on the device; area uniform between the bounds
    that they set to GrabCut's mask, which runs once over the training set on the host); OpenCutmix keeps the
    brightness, which their code halves; holes and corners outside a turned image are 0, the mean of normalised images;
    shapes beside the foreground may lie anywhere (theirs in one corner: the size is read off the wrong axis).

    ``lam`` of a draw is the share of pixels left as they are (one half for OpenMixup); labels do not follow it.

    Args:
        num_classes: K.
        ratio: How often OpenMixup, OpenCutout and OpenCutmix come.
        keep_clean: Whether the clean batch comes before the mixes.
        **common: See :class:`BatchMixer`.

    Raises:
        ValueError: ``ratio`` is not three numbers, none below 0 and one above.
    """

    name = 'openmix'
    tells_lam = False
    gives_unknown = True
    option_names = ('ratio', 'keep_clean')

    def __init__(self, num_classes: int, ratio: tuple[float, float, float] = (4.0, 1.0, 1.0), keep_clean: bool = True,
                 **common: Any) -> None:
        super().__init__(num_classes, **common)
        values = tuple(float(part) for part in ratio) if isinstance(ratio, tuple | list) else ()
        if len(values) != 3 or not all(0 <= part < math.inf for part in values) or not sum(values):
            raise ValueError(f'ratio is three numbers, of OpenMixup, OpenCutout and OpenCutmix, none below 0, got '
                             f'{ratio}')
        if not isinstance(keep_clean, bool):
            raise ValueError(f'keep_clean is True or False, got {keep_clean!r}')
        self.ratio, self.keep_clean = values, keep_clean
        self.rows_per_image = 2 if keep_clean else 1

    def _needs_partner(self) -> bool:
        return False

    def _plan(self, seed: int, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Kind, angle and flips (vertical, horizontal) of each image, from the draw's seed."""
        rng = np.random.default_rng(seed)
        kinds = rng.choice(3, size=batch, p=np.asarray(self.ratio) / sum(self.ratio))
        return kinds, rng.uniform(0, 2 * np.pi, batch), rng.random((batch, 2)) < 0.5

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        batch, device = images.shape[0], images.device
        seed, area = int(rng.integers(2 ** 63 - 1)), rng.uniform(*_FOREGROUND, batch)
        centre, holes_beside = (rng.random((batch, 2)) * image_size(images)).astype(np.int64), rng.random(batch) < 0.5
        kinds = self._plan(seed, batch)[0]
        front = foregrounds(images, to_device(area.astype(np.float32), device))
        beside = moved_shapes(front[to_device(partner, device)], to_device(centre, device))
        beside &= ~(beside & front).flatten(1).any(1)[:, None, None]
        positive = to_device(holes_beside & (kinds != _MIXUP), device)
        hidden = torch.where(positive[:, None, None], beside, front).float()
        hidden = torch.where(to_device(kinds == _MIXUP, device)[:, None, None], torch.full_like(hidden, 0.5), hidden)
        mixed = to_device(coins, device)
        mask = 1 - hidden * mixed[:, None, None]
        unknown = (mixed & ~positive).float()
        return MixDraw.of(self.name, torch.arange(batch, device=device), mask.mean((1, 2)), mask=mask[:, None],
                          noise_seed=seed, weight=torch.stack([1 - unknown, torch.zeros_like(unknown)], 1),
                          unknown=unknown)

    def _paste(self, images: Tensor, draw: MixDraw) -> Tensor:
        if draw.mask is None or draw.noise_seed is None:
            return images.clone()
        kinds, angle, flips = self._plan(draw.noise_seed, images.shape[0])
        kind = to_device(kinds, images.device)[:, None, None, None]
        folded = kaleidoscope(images, to_device(flips, images.device))
        turned = warp(torch.where(kind == _CUTMIX, folded, images),
                      rotation(to_device(angle.astype(np.float32), images.device), image_size(images)), 'nearest')
        return blend(images, torch.where(kind == _CUTOUT, torch.zeros_like(images), turned), draw.mask)


def foregrounds(images: Tensor, area: Tensor) -> Tensor:
    """The most salient ``area`` of each image, bool [B, H, W].

    Args:
        images: float [B, C, H, W].
        area: Share of the pixels, float [B].
    """
    size = image_size(images)
    saliency = F.interpolate(spectral_residual(images)[:, None], size=size, mode='bilinear')[:, 0]
    return top_mask(saliency, area)[:, 0] > 0


def moved_shapes(shapes: Tensor, centre: Tensor) -> Tensor:
    """Each shape at half its size around a centre anywhere in the image, clipped to the image.

    Args:
        shapes: bool [B, H, W].
        centre: Its pixel (y, x), int64 [B, 2].

    Returns:
        bool [B, H, W].
    """
    batch, *size = shapes.shape
    sources, inside = [], torch.ones_like(shapes)
    for axis, length in enumerate(size):
        start = centre[:, axis] - length // 4
        at = 2 * (torch.arange(length, device=shapes.device) - start[:, None])
        sources.append(at.clamp(0, length - 1))
        outside = (at < 0) | (at >= length)
        inside &= ~(outside[:, :, None] if axis == 0 else outside[:, None, :])
    rows = torch.arange(batch, device=shapes.device)[:, None, None]
    return shapes[rows, sources[0][:, :, None], sources[1][:, None, :]] & inside


def kaleidoscope(images: Tensor, flips: Tensor) -> Tensor:
    """One quarter of each image and its mirror images, its outer corner in the middle four times.

    Args:
        images: [B, C, H, W].
        flips: Which quarter: the upper, the left one where True; bool [B, 2].
    """
    for axis, dim in enumerate((2, 3)):
        images = torch.where(flips[:, axis, None, None, None], images.flip(dim), images)
        length = images.shape[dim]
        # The second half, then the same in the mirror; of an odd length the middle comes once, at the end.
        outwards = torch.arange(length // 2, length, device=images.device)
        folded = torch.cat([outwards[length % 2:], outwards.flip(0)])
        images = images.index_select(dim, folded)
    return images
