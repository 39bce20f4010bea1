"""Images a second under each corruption at severity 5, beside timm's evaluation transform and two plain loops."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import zoom
from timing import interleaved
from timm.data import create_transform

from gradmix_timm.data.corruption import corrupt, list_corruptions, severity_constants
from gradmix_timm.data.corruption.kernels import DISTORTIONS


def picture(side: int) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] / side
    planes = [128 + 100 * np.sin(9 * rows + k) * np.cos(7 * columns - k) for k in range(3)]
    return np.stack(planes, 2).astype(np.uint8)


def looped_glass(image: np.ndarray, shift: int, passes: int) -> np.ndarray:
    """The shuffle as published: pixel by pixel on the array."""
    image, side, generator = image.copy(), len(image), np.random.default_rng(0)
    for _ in range(passes):
        for row in range(side - shift, shift, -1):
            for column in range(side - shift, shift, -1):
                across, down = generator.integers(-shift, shift, size=2)
                image[row, column] = image[row + down, column + across]
    return image


def looped_zoom(image: np.ndarray, factors: tuple[float, ...]) -> np.ndarray:
    """The mean of magnified middles as published: ``scipy.ndimage.zoom``."""
    share, side = (image / 255.).astype(np.float32), len(image)
    total = share.copy()
    for factor in np.array(factors) * (1 + 1e-14):  # as numpy.arange gives them: a hair above
        part = int(np.ceil(side / factor))
        top = (side - part) // 2
        large = zoom(share[top:top + part, top:top + part], (factor, factor, 1), order=1)
        trim = (len(large) - side) // 2
        total += large[trim:trim + side, trim:trim + side]
    return total / (len(factors) + 1)


@pytest.mark.parametrize(('size', 'scale', 'rounds'), [
    (32, 'cifar', 15), (64, 'tiny-imagenet', 15), (224, 'imagenet', 5)])
def test_corruptions(size, scale, rounds, benchmark, record):
    image = picture(size)
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)  # as in a loader's processes
    torch.set_num_threads(1)
    transform = create_transform((3, size, size), is_training=False, crop_pct=0.875)
    pil = Image.fromarray(image)
    base = "timm's evaluation transform"
    runs = {base: lambda: transform(pil)}
    runs |= {name: lambda name=name: corrupt(image, name, 5, scale=scale) for name in list_corruptions(extra=True)}
    _, shift, passes = severity_constants('glass_blur', scale)[4]
    factors = severity_constants('zoom_blur', scale)[4]
    runs['glass_blur, pixel by pixel (shuffle alone)'] = lambda: looped_glass(image, int(shift), int(passes))
    runs['zoom_blur, by scipy.ndimage.zoom'] = lambda: looped_zoom(image, factors)
    assert np.abs(looped_zoom(image, factors) * 255
                  - DISTORTIONS['zoom_blur'](image, factors, np.random.default_rng(0))).max() < 1e-2
    try:
        figures = interleaved(runs, base, torch.device('cpu'), rounds)
        benchmark.pedantic(runs['gaussian_noise'], rounds=5, warmup_rounds=1)
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])
    for row in figures.values():
        row['images_per_second'] = round(1 / max(row['seconds'], 1e-5))
    record('corruptions', f'{size} px, severity 5, one thread', figures)
