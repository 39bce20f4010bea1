"""Cells of an image in the order in which GradMix keeps them (``shape='grid'``)."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['CELLS', 'cell_order']

#: Cells a side.
CELLS = 8


def cell_order(maps: Tensor | None, fallback: Tensor, noise: Tensor, centre: bool, sign: str) -> Tensor:
    """Values of the cells, float32 [B, 8, 8]; those with the largest are kept, so that evidence is hidden first.

    Args:
        maps: Float [B, h, w], on any grid; None: of the controls.
        fallback: Images whose cells are in random order, bool [B].
        noise: Uniform, float32 [B, 8, 8]: that order.
        centre: Hide the cells in the middle first, in place of maps.
        sign: 'high' hides the most evidence, 'low' the least.
    """
    if centre:
        middle = torch.arange(CELLS, device=noise.device) - (CELLS - 1) / 2
        return (middle.square() + middle[:, None].square()).expand_as(noise)
    if maps is None:
        return noise
    mass = F.adaptive_avg_pool2d(maps[:, None], CELLS)[:, 0]
    return torch.where(fallback[:, None, None], noise, -mass if sign == 'high' else mass)
