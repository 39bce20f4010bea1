"""ResizeMix: the whole partner, shrunk, is pasted at a random place."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from gradmix_timm.ops import box_lam, boxes_inside, image_size, paste_resized, to_device, whole_boxes
from gradmix_timm.options import is_pair
from gradmix_timm.records import MixDraw

from .base import BatchMixer, uniform

__all__ = ['ResizeMix']


class ResizeMix(BatchMixer):
    """The partner, resized to tau H x tau W with tau ~ U(scale), pasted wholly inside at a uniform place.

    Qin et al., "ResizeMix: Mixing Data with Preserved Object Information and True Labels", arXiv:2012.11101, equations
    3-5: lam = 1 - h' w' / (H W). Their code draws one tau a step (``lam='batch'``), resizes to the nearest pixel and
    pushes a box with a uniform centre inside, so that two thirds touch a border; here each image may have its own tau,
    the resize is bilinear and antialiased, and every place inside is as likely.

    Args:
        num_classes: K.
        scale: Range of tau, in (0, 1].
        lam: 'image' for a tau each, 'batch' for one.
        **common: See :class:`BatchMixer`.
    """

    name = 'resizemix'
    option_names = ('scale', 'lam')

    def __init__(self, num_classes: int, scale: Sequence[float] = (0.1, 0.8), lam: str = 'image', **common: Any
                 ) -> None:
        super().__init__(num_classes, **common)
        if not is_pair(scale) or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f'scale is (lo, hi) with 0 < lo <= hi <= 1, got {scale}')
        if lam not in ('image', 'batch'):
            raise ValueError(f"lam is drawn per 'image' or 'batch', got {lam!r}")
        self.scale, self.lam = (float(scale[0]), float(scale[1])), lam

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        batch, size, device = images.shape[0], image_size(images), images.device
        tau = rng.uniform(*self.scale, size=1 if self.lam == 'batch' else batch)
        sides = np.floor(np.broadcast_to(tau, (batch,))[:, None] * size).astype(np.int64).clip(1) * coins[:, None]
        dst = boxes_inside(uniform(rng, (batch, 2), device), to_device(sides, device), size)
        return MixDraw.of(self.name, to_device(partner, device), box_lam(dst, size), dst=dst,
                          src=whole_boxes(batch, size, device))

    def _paste(self, images: Tensor, draw: MixDraw) -> Tensor:
        return paste_resized(images, images.index_select(0, draw.partner), draw.src, draw.dst)
