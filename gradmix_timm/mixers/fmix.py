"""FMix: a binary mask cut from low-frequency noise decides pixel by pixel."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradmix_timm.ops import image_size, to_device
from gradmix_timm.records import MixDraw

from .plain import AlphaMixer, draw_lam

__all__ = ['FMix', 'grey_noise', 'top_mask']


def grey_noise(batch: int, size: tuple[int, int], decay: float, generator: torch.Generator) -> Tensor:
    """Low-frequency noise: a complex Gaussian spectrum divided by max(|f|, 1 / max(H, W)) ** decay, transformed back.

    Args:
        batch: B.
        size: (H, W).
        decay: delta >= 0; larger is smoother.
        generator: On the device.

    Returns:
        float32 [B, H, W].
    """
    height, width = size
    device = generator.device
    fy = torch.fft.fftfreq(height, dtype=torch.float32, device=device)
    fx = torch.fft.rfftfreq(width, dtype=torch.float32, device=device)
    frequency = (fy[:, None].square() + fx.square()).sqrt().clamp_min(1 / max(size))
    parts = torch.randn(batch, height, len(fx), 2, generator=generator, dtype=torch.float32, device=device)
    return torch.fft.irfft2(torch.view_as_complex(parts) / frequency ** decay, s=size)


def top_mask(values: Tensor, share: Tensor) -> Tensor:
    """1 at the round(share * H * W) largest values of each image, else 0.

    Args:
        values: [B, H, W].
        share: float [B] in [0, 1].

    Returns:
        float32 [B, 1, H, W].

    Example:
        >>> top_mask(torch.tensor([[[3., 1.], [2., 4.]]]), torch.tensor([0.5]))
        tensor([[[[1., 0.],
                  [0., 1.]]]])
    """
    flat = values.flatten(1)
    count = (share * flat.shape[1]).round().long()
    rank = torch.empty_like(flat, dtype=torch.int64)
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(flat)
    rank.scatter_(1, flat.argsort(1, descending=True), places)
    return (rank < count[:, None]).float().view(values.shape)[:, None]


class FMix(AlphaMixer):
    """x~ = M * x_i + (1 - M) * x_partner with a binary mask M of share lam, cut from low-frequency noise.

    Harris et al., "FMix: Enhancing Mixed Sample Data Augmentation", arXiv:2002.12047, section 4.1, equations 4-6: the
    mask is 1 on the top lam share of the pixels of :func:`grey_noise`, lam ~ Beta(alpha, alpha), delta = 3. Made on the
    device, one mask per image (their code: one a batch, on the host). Labels go by the mask's own share, less than a
    pixel from the drawn one.

    Args:
        num_classes: K.
        alpha: Of Beta(alpha, alpha).
        lam: 'image' for a draw each, 'batch' for one; masks differ in any case.
        decay: delta.
        **common: See :class:`BatchMixer`.
    """

    name = 'fmix'
    option_names = ('alpha', 'lam', 'decay')

    def __init__(self, num_classes: int, alpha: float = 1.0, lam: str = 'image', decay: float = 3.0, **common: Any
                 ) -> None:
        super().__init__(num_classes, alpha, lam, **common)
        if not 0 <= decay < np.inf:
            raise ValueError(f'decay is a finite number of 0 or more, got {decay}')
        self.decay = float(decay)

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        batch, size, device = images.shape[0], image_size(images), images.device
        share = np.where(coins, draw_lam(rng, self.lam, batch, self.alpha), 1.0).astype(np.float32)
        generator = torch.Generator(device).manual_seed(int(rng.integers(2 ** 62)))
        mask = top_mask(grey_noise(batch, size, self.decay, generator), to_device(share, device))
        return MixDraw.of(self.name, to_device(partner, device), mask.mean((1, 2, 3)), mask=mask)
