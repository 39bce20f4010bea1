"""PixMix: each image is mixed with fractals and with augmented copies of itself; the label stays."""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from gradmix_timm.ops import image_size, like, rotation, to_device, warp
from gradmix_timm.records import MixDraw

from .base import BatchMixer, kept_weight
from .fractals import fractals

__all__ = ['PixMix', 'PixPlan', 'augmented', 'combine']

#: Their nine operations, without those of the corruption benchmarks (colour, contrast, brightness, sharpness).
OPERATIONS = ('autocontrast', 'equalize', 'posterize', 'solarize', 'rotate', 'shear-x', 'shear-y', 'translate-x',
              'translate-y')
_PHOTOMETRIC = 4
# Pictures of the bank, and their side in pixels.
_BANK, _SIDE = 32, 96


@dataclass(frozen=True)
class PixPlan:
    """Everything random about the mix of a batch; the first axis of most is the round, 0 the start.

    Attributes:
        rounds: How often each image is mixed, int64 [B].
        own: Whether the picture of a round is the augmented image and no fractal, bool [R + 1, B].
        operation: Of the augmentation, int64 [R + 1, B].
        level: Its strength, float64 [R + 1, B]; negative half of the time.
        multiplied: Whether the round multiplies (adds otherwise), bool [R + 1, B].
        share: (a, b) of the round, float64 [R + 1, B, 2].
        picture: Of the bank, the same in all rounds, int64 [B].
        crop: Top, left and side of what is read of it, as shares, float64 [B, 3].
    """

    rounds: np.ndarray
    own: np.ndarray
    operation: np.ndarray
    level: np.ndarray
    multiplied: np.ndarray
    share: np.ndarray
    picture: np.ndarray
    crop: np.ndarray


class PixMix(BatchMixer):
    """Up to ``k`` times, an image is added to or multiplied by a fractal or an augmented copy of itself; y~ = y.

    Hendrycks et al., "PixMix: Dreamlike Pictures Comprehensively Improve Safety Measures", CVPR 2022, arXiv:2112.05135,
    algorithm 1, as in their code: the image, augmented half of the time; then each of U{0, ..., k} rounds takes
    an augmented copy of the image or its picture, half each, and a x + b p on [-1, 1] or x^a p^b on [0, 2], half each,
    with (a, b) = (Beta(beta, 1), Beta(1, beta)) or (1 + Beta(1, beta), -Beta(1, beta)), half each; clipped. Nine
    operations at ``severity`` 3; on ImageNet their severity is 1 and their beta 4. Their pictures are 14,230 fractals
    and feature visualisations from the web; ours are 32 iterated function systems made from a seed
    (:func:`gradmix_timm.mixers.fractals`), for each image a crop of one.

    Pixels have to lie in [0, 1] for that. ``mean`` and ``std`` undo the normalisation; without them the smallest and
    the largest value of each channel in the batch count as 0 and 1.

    ``lam`` of a draw is 0 for mixed images and carries no further information.

    Args:
        num_classes: K.
        k: Most rounds.
        beta: Of the Beta distributions; larger mixes less.
        severity: Of the augmentations, in (0, 10].
        mean: Of the normalisation, one number per channel.
        std: Of the normalisation.
        **common: See :class:`BatchMixer`.
    """

    name = 'pixmix'
    changes_labels = False
    tells_lam = False
    option_names = ('k', 'beta', 'severity', 'mean', 'std')

    def __init__(self, num_classes: int, k: int = 4, beta: float = 3.0, severity: float = 3.0,
                 mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None, **common: Any) -> None:
        super().__init__(num_classes, **common)
        if k % 1 != 0 or k < 1:
            raise ValueError(f'k is a number of rounds, 1 or more, got {k}')
        if not beta > 0 or not 0 < severity <= 10:
            raise ValueError(f'beta is above 0 and severity in (0, 10], got {beta} and {severity}')
        if (mean is None) != (std is None):
            raise ValueError('mean and std of the normalisation come together')
        if mean is not None and std is not None and (len(mean) != len(std) or min(std) <= 0):
            raise ValueError(f'mean and std of the normalisation are one number per channel each, std above 0; got '
                             f'{mean} and {std}')
        self.k, self.beta, self.severity = int(k), float(beta), float(severity)
        self.mean, self.std = (None if value is None else tuple(map(float, value)) for value in (mean, std))

    def _prepare(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        if self.mean is not None and len(self.mean) != input_size[0]:
            raise ValueError(f'mean and std of the normalisation have {len(self.mean)} numbers, expected one for each '
                             f'of the {input_size[0]} channels')

    def _needs_partner(self) -> bool:
        return False

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        own = torch.arange(images.shape[0], device=images.device)
        lam = to_device(1 - coins.astype(np.float32), images.device)
        return MixDraw.of(self.name, own, lam, weight=kept_weight(own), noise_seed=int(rng.integers(2 ** 63 - 1)))

    def plan(self, seed: int, batch: int) -> PixPlan:
        """The draws of a batch, from its seed."""
        rng, shape = np.random.default_rng(seed), (self.k + 1, batch)
        gentle = rng.random(shape) < 0.5
        first, second = rng.beta(self.beta, 1, shape), rng.beta(1, self.beta, shape)
        over = 1 + rng.beta(1, self.beta, shape)
        return PixPlan(
            rounds=rng.integers(0, self.k + 1, batch), own=rng.random(shape) < 0.5,
            operation=rng.integers(0, len(OPERATIONS), shape),
            level=rng.uniform(0.1, self.severity, shape) * rng.choice([-1, 1], shape),
            multiplied=rng.random(shape) < 0.5,
            share=np.stack([np.where(gentle, first, over), np.where(gentle, second, -second)], -1),
            picture=rng.integers(0, _BANK, batch),
            crop=np.concatenate([rng.random((batch, 2)), rng.uniform(0.4, 1, (batch, 1))], -1))

    def _paste(self, images: Tensor, draw: MixDraw) -> Tensor:
        if draw.noise_seed is None:
            return images.clone()
        plan, low, span = self.plan(draw.noise_seed, images.shape[0]), *self._range(images)
        with torch.autocast(images.device.type, enabled=False):
            # Rounding, and noise that was erased into an image, lie outside of [0, 1], where the product has no value.
            plain = ((images.float() - low) / span).clamp(0, 1)
            start = to_device(plan.own[0], images.device)[:, None, None, None]
            mixed = torch.where(start, augmented(plain, plan.operation[0], plan.level[0]), plain)
            fractal = self._fractals(plan, plain)
            for number in range(1, int(plan.rounds.max()) + 1):
                active = to_device(plan.rounds >= number, images.device)[:, None, None, None]
                mixed = torch.where(active, self._round(mixed, plain, fractal, plan, number), mixed)
            mixed = mixed * span + low
        return like(torch.where(draw.lam[:, None, None, None] < 1, mixed.to(images.dtype), images), images)

    def _fractals(self, plan: PixPlan, plain: Tensor) -> Tensor:
        """The picture of each image, [B, C, H, W]."""
        device = plain.device
        pictures = _bank(device).index_select(0, to_device(plan.picture, device))
        pictures = pictures[:, torch.arange(plain.shape[1], device=device) % 3]
        return cropped(pictures, to_device(plan.crop.astype(np.float32), device), image_size(plain))

    def _round(self, mixed: Tensor, plain: Tensor, fractal: Tensor, plan: PixPlan, number: int) -> Tensor:
        device = plain.device
        own = to_device(plan.own[number], device)[:, None, None, None]
        picture = torch.where(own, augmented(plain, plan.operation[number], plan.level[number]), fractal)
        share = to_device(plan.share[number].astype(np.float32), device)
        return combine(mixed, picture, share, to_device(plan.multiplied[number], device))

    def _range(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The value that counts as 0, and its distance to that of 1: float32 [1, C, 1, 1]."""
        if self.mean is not None and self.std is not None:
            mean, std = (to_device(np.array(value, np.float32), images.device).view(1, -1, 1, 1)
                         for value in (self.mean, self.std))
            return -mean / std, 1 / std
        sound = images.float().nan_to_num(0.0, 0.0, 0.0)
        low, high = sound.amin((0, 2, 3), keepdim=True), sound.amax((0, 2, 3), keepdim=True)
        return low, torch.where(high > low, high - low, torch.ones_like(low))


@lru_cache(maxsize=4)
def _bank(device: torch.device) -> Tensor:
    """All pictures, copied once to each device: those of a batch, copied in every step, would wait for it."""
    return fractals(_BANK, _SIDE).to(device)


def combine(mixed: Tensor, picture: Tensor, share: Tensor, multiplied: Tensor) -> Tensor:
    """One round: a x + b p on [-1, 1], or x^a p^b on [0, 2]; clipped to [0, 1].

    Args:
        mixed: float32 [B, C, H, W] in [0, 1].
        picture: The same.
        share: (a, b), float32 [B, 2].
        multiplied: Which of the two, bool [B].
    """
    a, b = share[:, 0, None, None, None], share[:, 1, None, None, None]
    added = (a * (2 * mixed - 1) + b * (2 * picture - 1) + 1) / 2
    product = (2 * mixed) ** a * (2 * picture).clamp_min(1e-37) ** b / 2
    return torch.where(multiplied[:, None, None, None], product, added).clamp(0, 1)


def cropped(pictures: Tensor, crop: Tensor, size: tuple[int, int]) -> Tensor:
    """A square of each picture, resized to the image.

    Args:
        pictures: float32 [B, C, S, S].
        crop: Place of the corner among all that fit, and side, as shares, float32 [B, 3].
        size: (H, W).
    """
    y, x = (torch.linspace(0.5 / n, 1 - 0.5 / n, n, dtype=torch.float32, device=pictures.device) for n in size)
    top, left, side = crop.unbind(1)
    rows = (top * (1 - side))[:, None] + side[:, None] * y
    cols = (left * (1 - side))[:, None] + side[:, None] * x
    grid = torch.stack([cols[:, None].expand(-1, *size), rows[:, :, None].expand(-1, *size)], -1)
    return torch.nn.functional.grid_sample(pictures, 2 * grid - 1, padding_mode='border', align_corners=False)


def augmented(images: Tensor, operation: np.ndarray, level: np.ndarray) -> Tensor:
    """Each image through one of :data:`OPERATIONS`, all channels alike, padded with black.

    Args:
        images: float32 [B, C, H, W] in [0, 1].
        operation: int64 [B].
        level: Strength, float64 [B]; of the geometric operations the sign is the direction.
    """
    found = warp(images, to_device(_matrices(operation, level, image_size(images)), images.device))
    for number in np.unique(operation[operation < _PHOTOMETRIC]):
        rows = to_device(np.flatnonzero(operation == number), images.device)
        found[rows] = _photometric(images[rows], OPERATIONS[number], np.abs(level[operation == number]))
    return found


def _photometric(images: Tensor, name: str, level: np.ndarray) -> Tensor:
    grey = images.flatten(0, 1)[:, None]  # channel by channel, as PIL's, whatever their number
    if name == 'autocontrast':
        return TF.autocontrast(grey)[:, 0].view_as(images)
    if name == 'equalize':
        return TF.equalize((grey * 255).round().byte())[:, 0].view_as(images).float() / 255
    if name == 'posterize':
        step = to_device((2.0 ** (4 + np.trunc(level * 0.4))).astype(np.float32), images.device)[:, None, None, None]
        return ((images * 255).round() / step).floor() * step / 255
    threshold = to_device((256 - np.trunc(level * 25.6)).astype(np.float32), images.device)[:, None, None, None]
    return torch.where((images * 255).round() < threshold, images, 1 - images)


def _matrices(operation: np.ndarray, level: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The affine map of each geometric operation, float32 [B, 2, 3]; the identity for the others."""
    matrix = np.tile(np.eye(2, 3, dtype=np.float32), (len(operation), 1, 1))
    turned = rotation(torch.from_numpy(np.radians(np.trunc(level * 3)).astype(np.float32)), size).numpy()
    for name, part in (('shear-x', (0, 1)), ('shear-y', (1, 0)), ('translate-x', (0, 2)), ('translate-y', (1, 2))):
        rows = operation == OPERATIONS.index(name)
        strength = level * 0.03 if 'shear' in name else np.trunc(level * size[1 - part[0]] / 30)
        matrix[rows, part[0], part[1]] = strength[rows]
    rows = operation == OPERATIONS.index('rotate')
    matrix[rows] = turned[rows]
    return matrix
