"""Cutout: a square of every image is blanked, the label stays."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradmix_timm.ops import box_lam, boxes_at, image_size, paste, to_device
from gradmix_timm.records import MixDraw

from .base import BatchMixer, kept_weight

__all__ = ['Cutout']


class Cutout(BatchMixer):
    """x~ = M * x with M = 0 on a square whose centre is uniform over the pixels, clipped at the border; y~ = y.

    DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", arXiv:1708.04552, section
    3.2. Zero is the mean of normalised images. Their sides are 16 px on CIFAR-10, 8 on CIFAR-100 and 20 on SVHN, of
    32; every image is cut. ``lam`` of a draw is the share that is not blanked; labels do not follow it.

    Args:
        num_classes: K.
        length: Side of the square as a share of the image's shorter side, in (0, 1].
        **common: See :class:`BatchMixer`.
    """

    name = 'cutout'
    changes_labels = False
    option_names = ('length',)

    def __init__(self, num_classes: int, length: float = 0.5, **common: Any) -> None:
        super().__init__(num_classes, **common)
        if not 0 < length <= 1:
            raise ValueError(f'length is a share of the shorter side in (0, 1], got {length}')
        self.length = float(length)

    def _needs_partner(self) -> bool:
        return False

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        batch, size, device = images.shape[0], image_size(images), images.device
        side = max(1, round(self.length * min(size)))
        center = (rng.random((batch, 2)) * size).astype(np.int64)
        sides = np.full((batch, 2), side) * coins[:, None]
        boxes = boxes_at(to_device(center, device), to_device(sides, device), size)
        own = torch.arange(batch, device=device)
        return MixDraw.of(self.name, own, box_lam(boxes, size), dst=boxes, weight=kept_weight(own))

    def _paste(self, images: Tensor, draw: MixDraw) -> Tensor:
        return paste(images, images.new_zeros(()), draw.dst)
