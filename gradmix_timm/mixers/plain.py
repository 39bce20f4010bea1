"""Mixers that need no model: none, mixup, cutmix; any batch size, soft labels, own random stream, out of place."""
from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from gradmix_timm.ops import blend, box_lam, boxes_at, image_size, to_device
from gradmix_timm.options import check_alpha
from gradmix_timm.records import MixDraw

from .base import BatchMixer, kept_draw

__all__ = ['AlphaMixer', 'CutMix', 'Mixup', 'NoMix', 'box_sides', 'draw_lam']


def draw_lam(rng: np.random.Generator, per: str, batch: int, alpha: float,
             lam_range: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Kept shares lo + (hi - lo) * Beta(alpha, alpha), float64 [B]; one draw for all where ``per`` is 'batch'."""
    low, high = lam_range
    beta = rng.beta(alpha, alpha, size=1 if per == 'batch' else batch)
    return np.broadcast_to(low + (high - low) * beta, (batch,)).copy()


def box_sides(lam: np.ndarray, coins: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Sides floor((H, W) * sqrt(1 - lam)) of boxes that keep ``lam``, int64 [B, 2]; empty where the coin fell false."""
    sides = np.floor(np.sqrt(1 - lam)[:, None] * np.asarray(size)).astype(np.int64)
    return sides * coins[:, None]


class NoMix(BatchMixer):
    """No mixing: the same images with smoothed one-hots. The control with the same loss."""

    name: str = 'none'
    changes_labels: bool = False

    def _needs_partner(self) -> bool:
        return False

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        return kept_draw(images.shape[0], images.device, self.name)

    def _paste(self, images: Tensor, draw: MixDraw) -> Tensor:
        return images


class AlphaMixer(BatchMixer):
    """Shared by the mixers that draw a kept share from Beta(alpha, alpha), for every image or once for the batch."""

    option_names: tuple[str, ...] = ('alpha', 'lam')

    def __init__(self, num_classes: int, alpha: float = 1.0, lam: str = 'image', **common: Any) -> None:
        super().__init__(num_classes, **common)
        if lam not in ('image', 'batch'):
            raise ValueError(f"lam is drawn per 'image' or 'batch', got {lam!r}")
        self.alpha, self.lam = check_alpha(alpha), lam


class Mixup(AlphaMixer):
    """x~ = lam x_i + (1 - lam) x_partner, labels alike.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412, section 1: lam ~ Beta(alpha, alpha).
    Their code draws one lam a batch: ``lam='batch'``.

    Args:
        num_classes: K.
        alpha: Of Beta(alpha, alpha).
        lam: 'image' for a draw each, 'batch' for one.
        **common: See :class:`BatchMixer`.
    """

    name: str = 'mixup'

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        batch, _, height, width = images.shape
        kept = np.where(coins, draw_lam(rng, self.lam, batch, self.alpha), 1.0).astype(np.float32)
        lam = to_device(kept, images.device)
        return MixDraw.of(self.name, to_device(partner, images.device), lam,
                          mask=lam[:, None, None, None].expand(-1, 1, height, width))

    def _paste(self, images: Tensor, draw: MixDraw) -> Tensor:
        return images.clone() if draw.mask is None else blend(images, images.index_select(0, draw.partner), draw.mask)


class CutMix(AlphaMixer):
    """A box with a uniform centre, clipped at the border, from the same place of a partner; labels by real area.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
    arXiv:1905.04899, equations 1-2: the box has the sides (H, W) * sqrt(1 - lam), lam ~ Beta(alpha, alpha). Labels go
    by the clipped box, so that uniform draws paste 0.32 of a large image on average. Theirs is one box a batch.

    Args:
        num_classes: K.
        alpha: Of Beta(alpha, alpha).
        lam: 'image' for a draw each, 'batch' for one.
        **common: See :class:`BatchMixer`.
    """

    name: str = 'cutmix'

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        batch, size, device = images.shape[0], image_size(images), images.device
        sides = box_sides(draw_lam(rng, self.lam, batch, self.alpha), coins, size)
        center = (rng.random((batch, 2)) * size).astype(np.int64)
        boxes = boxes_at(to_device(center, device), to_device(sides, device), size)
        return MixDraw.of(self.name, to_device(partner, device), box_lam(boxes, size), dst=boxes)
