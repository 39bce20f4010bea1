"""Saliency of images without a model: the spectral residual."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['spectral_residual']

_SIDE = 64


def _gaussian(sigma: float, device: torch.device) -> Tensor:
    reach = int(3 * sigma + 0.5)
    x = torch.arange(-reach, reach + 1, device=device, dtype=torch.float32)
    weight = (-x.square() / (2 * sigma * sigma)).exp()
    return weight / weight.sum()


def spectral_residual(images: Tensor, sigma: float = 2.5, power: float = 2.0) -> Tensor:
    """What in an image its amplitude spectrum does not predict.

    Hou & Zhang, "Saliency Detection: A Spectral Residual Approach", CVPR 2007, equations 8-10: of the grey image, 64
    pixels on the shorter side (smaller images stay as they are), L = log |FFT|; R = L - (3 x 3 mean of L); the map is
    g * |IFFT(exp(R + i phase))|^power, with a Gaussian g.

    Args:
        images: float [B, C, H, W], any normalisation.
        sigma: Of the Gaussian, in pixels of the small image.
        power: 2 in the paper; 1 leaves the amplitude.

    Returns:
        float32 [B, h, w], >= 0; flat where an image is.
    """
    with torch.autocast(images.device.type, enabled=False):
        grey = images.float().mean(1, keepdim=True)
        height, width = grey.shape[2:]
        if min(height, width) > _SIDE:
            ratio = _SIDE / min(height, width)
            grey = F.interpolate(grey, size=(round(height * ratio), round(width * ratio)), mode='bilinear',
                                 antialias=True)
        spectrum = torch.fft.fft2(grey)
        amplitude = spectrum.abs()
        # A flat image has one frequency: the others count as the rounding errors that they are.
        floor = amplitude.amax((2, 3), keepdim=True) * torch.finfo(torch.float32).eps
        log = amplitude.maximum(floor).clamp_min(torch.finfo(torch.float32).tiny).log()
        residual = log - F.avg_pool2d(F.pad(log, (1, 1, 1, 1), mode='circular'), 3, 1)
        found = torch.fft.ifft2(torch.polar(residual.exp(), spectrum.angle())).abs() ** power
        kernel = _gaussian(sigma, images.device)
        reach = len(kernel) // 2
        found = F.conv2d(F.pad(found, (0, 0, reach, reach), mode='replicate'), kernel.view(1, 1, -1, 1))
        return F.conv2d(F.pad(found, (reach, reach, 0, 0), mode='replicate'), kernel.view(1, 1, 1, -1))[:, 0]
