"""SaliencyMix: a box round the most salient point of the partner is pasted at the same place."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradmix_timm.ops import argmax_center, box_lam, boxes_at, image_size, spectral_residual, to_device
from gradmix_timm.records import MixDraw

from .plain import AlphaMixer, box_sides, draw_lam

__all__ = ['SaliencyMix']


class SaliencyMix(AlphaMixer):
    """CutMix with the box centred on the maximum of the partner's saliency, pasted at the same place; labels by area.

    Uddin et al., "SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better Regularization",
    arXiv:2006.01791, equations 1-4: the box has the sides (H, W) * sqrt(1 - lam), lam ~ Beta(alpha, alpha), and is
    clipped. They mix half of the batches: ``prob=0.5``. Departures: the saliency is the spectral residual (Hou & Zhang,
    CVPR 2007), on the device, where theirs is OpenCV's fine-grained saliency on the host; and every image has a map of
    its own, where their released code makes one, of one image, and uses its box for the whole batch: ``shared=True``.

    Args:
        num_classes: K.
        alpha: Of Beta(alpha, alpha).
        lam: 'image' for a draw each, 'batch' for one.
        shared: One map, of the first image's partner, and one box for the batch, as the released code.
        **common: See :class:`BatchMixer`.
    """

    name = 'saliencymix'
    option_names = ('alpha', 'lam', 'shared')

    def __init__(self, num_classes: int, alpha: float = 1.0, lam: str = 'image', shared: bool = False, **common: Any
                 ) -> None:
        super().__init__(num_classes, alpha, lam, **common)
        if not isinstance(shared, bool):
            raise ValueError(f'shared is True or False, got {shared!r}')
        self.shared = shared

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        batch, size, device = images.shape[0], image_size(images), images.device
        per = 'batch' if self.shared else self.lam
        sides = to_device(box_sides(draw_lam(rng, per, batch, self.alpha), coins, size), device)
        donors = to_device(partner, device)
        seen = images.index_select(0, donors[:1] if self.shared else donors)
        grid = spectral_residual(seen)
        cell = argmax_center(grid).expand(batch, 2)
        center = torch.stack([(2 * cell[:, i] + 1) * size[i] // (2 * grid.shape[1 + i]) for i in (0, 1)], 1)
        boxes = boxes_at(center, sides, size)
        return MixDraw.of(self.name, donors, box_lam(boxes, size), dst=boxes)
