"""GuidedMixup: images paired by the distance of their saliency maps, blended pixel by pixel in proportion to them."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradmix_timm.ops import blend, image_size, spectral_residual, to_device
from gradmix_timm.records import MixDraw

from .base import BatchMixer

__all__ = ['GuidedMix', 'greedy_cycle']

# Two blurs with seven taps of sigma 3 have together the spread of a Gaussian of this sigma.
_BLUR = 2.595


def greedy_cycle(distance: np.ndarray, start: int) -> np.ndarray:
    """A cycle through all images in which each is followed by the farthest of the remaining ones, int64 [B].

    Args:
        distance: [B, B].
        start: The first image.

    Example:
        >>> greedy_cycle(np.array([[0, 1, 5], [1, 0, 2], [5, 2, 0]]), 0)
        array([2, 0, 1])
    """
    batch = len(distance)
    follower, left = np.full(batch, start), np.ones(batch, dtype=bool)
    row = start
    for _ in range(batch - 1):
        left[row] = False
        following = int(np.where(left, distance[row], -np.inf).argmax())
        follower[row] = following
        row = following
    follower[row] = start
    return follower


class GuidedMix(BatchMixer):
    """x~ = M * x_i + (1 - M) * x_partner with M = s_i / (s_i + s_partner), s the saliency of each; y~ by mean M.

    Kang & Kim, "GuidedMixup: An Efficient Mixup Strategy Guided by Saliency Maps", AAAI 2023, arXiv:2306.16612,
    Guided-SR, equations 2-5 and algorithm 1: s is the amplitude of the spectral residual, blurred and divided by its
    sum. Partners follow each other in a greedy cycle, each the image farthest (L2 between saliency maps) of those that
    are left. They mix half of the batches: ``prob=0.5``. Departures: their code blurs twice with seven taps of sigma 3,
    here one blur is as wide (2.6 pixels); it works on 128 pixels and blurs the second time at full size, here on 64
    (:func:`gradmix_timm.ops.spectral_residual`); their cycle begins with the pair farthest apart, which is
    deterministic, here with a random image. The distances are read on the host, which synchronises with the device.

    Args:
        num_classes: K.
        pairing: 'greedy', or 'random' as the other mixers.
        **common: See :class:`BatchMixer`.
    """

    name = 'guidedmix'
    option_names = ('pairing',)

    def __init__(self, num_classes: int, pairing: str = 'greedy', **common: Any) -> None:
        super().__init__(num_classes, **common)
        if pairing not in ('greedy', 'random'):
            raise ValueError(f"pairing is 'greedy' or 'random', got {pairing!r}")
        self.pairing = pairing

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        device, size = images.device, image_size(images)
        # A broken image has no salient place, so its partner covers it.
        saliency = spectral_residual(images, sigma=_BLUR, power=1.0).nan_to_num(0.0, 0.0, 0.0)
        saliency = saliency / saliency.sum((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        start = int(rng.integers(len(images)))
        if self.pairing == 'greedy':
            flat = saliency.flatten(1)
            partner = greedy_cycle(torch.cdist(flat, flat).cpu().numpy(), start)
        donors = to_device(partner, device)
        tiny = torch.finfo(torch.float32).tiny
        mask = (saliency + tiny) / (saliency + saliency[donors] + 2 * tiny)
        mask = nn.functional.interpolate(mask[:, None], size=size, mode='bilinear', align_corners=False)
        mask = torch.where(to_device(coins, device)[:, None, None, None], mask, torch.ones_like(mask))
        return MixDraw.of(self.name, donors, mask.mean((1, 2, 3)), mask=mask)

    def _paste(self, images: Tensor, draw: MixDraw) -> Tensor:
        return images.clone() if draw.mask is None else blend(images, images.index_select(0, draw.partner), draw.mask)
