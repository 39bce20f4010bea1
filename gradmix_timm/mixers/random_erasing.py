"""Random Erasing: a rectangle of random area and aspect is filled with noise, the label stays."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradmix_timm.ops import box_lam, image_size, paste, to_device
from gradmix_timm.options import is_pair
from gradmix_timm.records import MixDraw

from .base import BatchMixer, kept_weight

__all__ = ['RandomErasing']

# A rectangle over the border is drawn again, as in the paper; two thirds are, so that none is left after 32 draws in
# one image in a million (it is then cut at the border).
_ATTEMPTS = 32


class RandomErasing(BatchMixer):
    """A rectangle S_e = S * U(scale), aspect U(ratio), wholly inside the image, is filled; the label stays.

    Zhong et al., "Random Erasing Data Augmentation", arXiv:1708.04896, algorithm 1: rounded sides sqrt(S_e r) and
    sqrt(S_e / r), the corner uniform over the image, all drawn again until the rectangle fits. Ranges are
    torchvision's; theirs go to 0.4 of the area and a ratio of 1 / 0.3. They erase an image with probability 0.5: type
    ``prob_elem=0.5``. They fill with uniform values of a pixel's range; images here are normalised, so that the noise
    is normal, channel by channel, as timm's ``--remode pixel``. (timm's aspect is uniform in its logarithm.) ``lam`` of
    a draw is the share that is not erased; labels do not follow it.

    Args:
        num_classes: K.
        scale: Range of the erased share of the area.
        ratio: Range of height / width.
        fill: 'noise', or 'zero', the mean of normalised images.
        **common: See :class:`BatchMixer`.
    """

    name = 'random-erasing'
    changes_labels = False
    option_names = ('scale', 'ratio', 'fill')

    def __init__(self, num_classes: int, scale: Sequence[float] = (0.02, 0.33), ratio: Sequence[float] = (0.3, 3.3),
                 fill: str = 'noise', **common: Any) -> None:
        super().__init__(num_classes, **common)
        if not is_pair(scale) or not 0 < scale[0] <= scale[1] < 1:
            raise ValueError(f'scale is (lo, hi) with 0 < lo <= hi < 1, got {scale}')
        if not is_pair(ratio) or not 0 < ratio[0] <= ratio[1] < np.inf:
            raise ValueError(f'ratio is (lo, hi) with 0 < lo <= hi, got {ratio}')
        if fill not in ('noise', 'zero'):
            raise ValueError(f"fill is 'noise' or 'zero', got {fill!r}")
        self.scale = float(scale[0]), float(scale[1])
        self.ratio = float(ratio[0]), float(ratio[1])
        self.fill = fill

    def _needs_partner(self) -> bool:
        return False

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        batch, size, device = images.shape[0], image_size(images), images.device
        boxes = to_device(self._boxes(rng, batch, size) * coins[:, None], device)
        seed = int(rng.integers(2 ** 62)) if self.fill == 'noise' else None
        own = torch.arange(batch, device=device)
        return MixDraw.of(self.name, own, box_lam(boxes, size), dst=boxes, weight=kept_weight(own), noise_seed=seed)

    def _boxes(self, rng: np.random.Generator, batch: int, size: tuple[int, int]) -> np.ndarray:
        """(yl, yh, xl, xh), int64 [B, 4]."""
        shape, limit = (batch, _ATTEMPTS), np.asarray(size)
        area, ratio = rng.uniform(*self.scale, size=shape) * limit.prod(), rng.uniform(*self.ratio, size=shape)
        sides = np.rint(np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], 2)).astype(np.int64).clip(1)
        low = (rng.random((*shape, 2)) * limit).astype(np.int64)
        high = low + sides
        first = (high <= limit).all(2).argmax(1)
        rows = np.arange(batch)
        low, high = low[rows, first], high[rows, first].clip(max=limit)
        return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1)

    def _paste(self, images: Tensor, draw: MixDraw) -> Tensor:
        fill = images.new_zeros(())
        if draw.noise_seed is not None:
            generator = torch.Generator(images.device).manual_seed(draw.noise_seed)
            fill = torch.randn(images.shape, generator=generator, dtype=torch.float32, device=images.device)
        return paste(images, fill, draw.dst)
