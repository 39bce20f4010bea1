"""SnapMix: a box of the partner, resized into a box of the image; labels are weighted by their visible evidence."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from gradmix_timm.attribution import capture_for, resolve_layers, to_pixels
from gradmix_timm.ops import box_lam, box_mass, boxes_at, image_size, paste_resized, to_device
from gradmix_timm.records import MixDraw

from .plain import AlphaMixer, box_sides, draw_lam

__all__ = ['SnapMix']


class SnapMix(AlphaMixer):
    """Box 2 of the partner, resized into box 1 of the image; label weights from class activation maps.

    Huang, Wang & Tao, "SnapMix: Semantically Proportional Mixing for Augmenting Fine-grained Data", arXiv:2012.04846,
    equations 2-6: with the CAM of each image's label, its minimum taken off and its sum made 1, the own label weighs
    a = 1 - sum of CAM_i in box 1 and the partner's b = sum of CAM_partner in box 2. **a + b is not 1**, so that the
    loss has to be linear in the target (cross-entropy, not BCE). Both boxes have the sides (H, W) * sqrt(1 - lam) of
    draws of their own from Beta(alpha, alpha), and clipped uniform centres as CutMix's. They mix every batch where
    weights are pretrained, and half of them where not: ``prob=0.5``.

    The CAM is Grad-CAM of the logit at one layer: behind global average pooling and a linear head the two are the same
    map. A pair of one class weighs a + b once; their code counts it in both places. The model is read in evaluation
    mode, where their forward moves BatchNorm's statistics once more. Their resize is bilinear with aligned corners,
    here it is antialiased. A flat map weighs by area.

    Args:
        num_classes: K.
        alpha: Of Beta(alpha, alpha).
        lam: 'image' for draws of each image's own, 'batch' for one pair of boxes, as theirs.
        layers: The layer, see :func:`gradmix_timm.attribution.resolve_layers`; default: the deepest usable.
        **common: See :class:`BatchMixer`.
    """

    name = 'snapmix'
    requires_model = True
    requires_grad = True
    rows_sum_to_one = False
    option_names: tuple[str, ...] = ('alpha', 'lam', 'layers')

    def __init__(self, num_classes: int, alpha: float = 5.0, lam: str = 'image', layers: Any = -1, **common: Any
                 ) -> None:
        super().__init__(num_classes, alpha, lam, **common)
        self.layers = layers

    @override
    def _prepare(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        resolve_layers(model, input_size, self.layers)

    def class_maps(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """The CAM of each image's label in pixels, float32 [B, H, W]: minimum 0, sum 1; all zero where flat."""
        captured = capture_for(model, images, targets.to(images.device), self.layers, score=self._score('logit'))[0]
        weight = captured.gradient.float().mean((2, 3), keepdim=True)
        maps = to_pixels((weight * captured.activation.float()).sum(1), image_size(images))
        maps = maps - maps.amin((1, 2), keepdim=True)
        total = maps.sum((1, 2), keepdim=True)
        return torch.where((total > 0) & total.isfinite(), maps / total, torch.zeros_like(maps))

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        assert model is not None
        device, size, donors = images.device, image_size(images), to_device(partner, images.device)
        dst, src = self._box(rng, coins, size, device), self._box(rng, coins, size, device)
        empty = (_area(dst) == 0) | (_area(src) == 0)
        dst, src = (boxes.masked_fill(empty[:, None], 0) for boxes in (dst, src))
        maps, lam = self.class_maps(model, images, targets), box_lam(dst, size)
        flat = maps.sum((1, 2)) == 0
        own = torch.where(flat, lam, 1 - box_mass(maps, dst))
        other = torch.where(flat[donors], 1 - lam, box_mass(maps[donors], src))
        return MixDraw.of(self.name, donors, lam, dst=dst, src=src, weight=torch.stack([own, other], 1),
                          fallback=(flat | flat[donors]) & ~empty)

    def _box(self, rng: np.random.Generator, coins: np.ndarray, size: tuple[int, int], device: torch.device) -> Tensor:
        drawn = rng.random((1 if self.lam == 'batch' else len(coins), 2))
        center = np.broadcast_to(drawn, (len(coins), 2))
        sides = box_sides(draw_lam(rng, self.lam, len(coins), self.alpha), coins, size)
        return boxes_at(to_device((center * size).astype(np.int64), device), to_device(sides, device), size)

    def _paste(self, images: Tensor, draw: MixDraw) -> Tensor:
        return paste_resized(images, images.index_select(0, draw.partner), draw.src, draw.dst)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
