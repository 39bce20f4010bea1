"""GridMix: cells of a grid come from either image."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from gradmix_timm.ops import image_size, to_device
from gradmix_timm.records import MixDraw

from .base import uniform
from .fmix import top_mask
from .plain import AlphaMixer, draw_lam

__all__ = ['GridMix']


class GridMix(AlphaMixer):
    """x~ = M * x_i + (1 - M) * x_partner with a mask M that is constant on the cells of a grid.

    Baek, Bang & Shim, "GridMix: Strong regularization through local context mapping", Pattern Recognition 109 (2021),
    the mixing alone: their second head, which predicts a label for every cell, is beyond a batch mixer. The
    nearest whole number of cells to lam * n * n, lam ~ Beta(alpha, alpha), is the image's own, drawn without
    replacement; how they draw cells was not compared with code of theirs. (What OpenMixup and the package GridMixup
    call GridMix is another method: a lattice of holes.) Labels go by the mask's share of own pixels.

    Args:
        num_classes: K.
        alpha: Of Beta(alpha, alpha).
        lam: 'image' for a draw each, 'batch' for one; cells differ in any case.
        cells: n, cells a side; at most the pixels of the shorter side.
        **common: See :class:`BatchMixer`.
    """

    name = 'gridmix'
    option_names = ('alpha', 'lam', 'cells')

    def __init__(self, num_classes: int, alpha: float = 1.0, lam: str = 'image', cells: int = 4, **common: Any) -> None:
        super().__init__(num_classes, alpha, lam, **common)
        if cells % 1 != 0 or cells < 2:
            raise ValueError(f'cells is a whole number of 2 or more, got {cells}')
        self.cells = int(cells)

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        batch, size, device = images.shape[0], image_size(images), images.device
        grid = min(self.cells, *size)
        share = np.where(coins, draw_lam(rng, self.lam, batch, self.alpha), 1.0)
        share = (np.round(share * grid ** 2) / grid ** 2).astype(np.float32)
        order = uniform(rng, (batch, grid, grid), device)
        mask = F.interpolate(top_mask(order, to_device(share, device)), size=size, mode='nearest-exact')
        return MixDraw.of(self.name, to_device(partner, device), mask.mean((1, 2, 3)), mask=mask)
