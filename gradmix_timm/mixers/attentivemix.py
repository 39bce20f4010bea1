"""Attentive CutMix: the cells where a network is most active are kept, the rest is the partner's."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from gradmix_timm.attribution import activations, resolve_layers
from gradmix_timm.ops import image_size, to_device
from gradmix_timm.records import MixDraw

from .base import BatchMixer
from .fmix import top_mask

__all__ = ['AttentiveMix']


class AttentiveMix(BatchMixer):
    """x~ = M * x_i + (1 - M) * x_partner with M = 1 on the most active cells of x_i; labels by the kept share.

    Walawalkar et al., "Attentive CutMix: An Enhanced Data Augmentation Approach for Deep Learning Based Image
    Classification", arXiv:2003.13048, equations 1-2: the 6 most active cells of 49, so that an image keeps an eighth of
    itself and of its label, on every grid. Activity is the mean over channels of |A| at one layer (of a ReLU's output:
    the mean). Theirs is a pretrained ResNet-50's last stage at 224 px; here it is the model given, by default its layer
    as GradMix chooses it. For a frozen network pass that: ``mixer(images, labels, frozen)``. One forward, no backward.

    Args:
        num_classes: K.
        share: Of the cells that are kept, in (0, 1); at least one is.
        layers: The layer, see :func:`gradmix_timm.attribution.resolve_layers`; the first of several.
        **common: See :class:`BatchMixer`.
    """

    name = 'attentivemix'
    requires_model = True
    option_names = ('share', 'layers')

    def __init__(self, num_classes: int, share: float = 6 / 49, layers: Any = None, **common: Any) -> None:
        super().__init__(num_classes, **common)
        if not 0 < share < 1:
            raise ValueError(f'share of the cells is in (0, 1), got {share}')
        self.share, self.layers = float(share), layers

    @override
    def _prepare(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        resolve_layers(model, input_size, self.layers)

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        assert model is not None
        size, device = image_size(images), images.device
        layer = resolve_layers(model, (images.shape[1], *size), self.layers)[:1]
        active = activations(model, images, layer)[0].float().abs().mean(1)
        cells = active.shape[1] * active.shape[2]
        kept = max(1, min(cells - 1, round(self.share * cells))) / cells
        mask = top_mask(active, to_device(np.where(coins, kept, 1.0).astype(np.float32), device))
        mask = F.interpolate(mask, size=size, mode='nearest-exact')
        broken = ~active.flatten(1).isfinite().all(1)
        return MixDraw.of(self.name, to_device(partner, device), mask.mean((1, 2, 3)), mask=mask,
                          fallback=broken & to_device(coins, device))
