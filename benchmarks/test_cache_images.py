"""Images a second of the data side alone: held images against timm's loader with workers, the same augmentation.

GRADMIX_BENCH_IMAGES=DIR takes the images of DIR/train (CIFAR-10 as class folders); else they are made up.
"""
from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch
from timm.data import create_loader

from gradmix_timm.data import open_dataset
from gradmix_timm.data.batch_augment import BatchAugment
from gradmix_timm.data.cached import CachedLoader, hold_images

BATCH, WORKERS, ROUNDS = 128, 2, 7
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
# timm's default training augmentation; what CIFAR is mostly trained with has no counterpart among timm's flags.
DEFAULT = {'scale': (0.08, 1.0), 'hflip': 0.5, 'color_jitter': 0.4, 'interpolation': 'random'}
LIGHT = {'scale': (0.6, 1.0), 'hflip': 0.5, 'color_jitter': 0.0, 'interpolation': 'bilinear'}


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    given = os.environ.get('GRADMIX_BENCH_IMAGES')
    if given:
        return open_dataset('', given, 'train'), 'given'
    from PIL import Image
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for name in ('a', 'b'):
        folder = root / 'train' / name
        folder.mkdir(parents=True)
        for number in range(3072):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
            coarse.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f'{number}.png')
    return open_dataset('', str(root), 'train'), 'made up'


def rate(loader, batches):
    """Images a second over some batches, the start of workers left out."""
    made = iter(loader)
    for _ in range(4):
        next(made)
    begin, count = time.perf_counter(), 0
    for _, (batch, _) in zip(range(batches), made, strict=False):
        count += len(batch)
    return count / (time.perf_counter() - begin)


def within(values, base):
    """Median and range of the ratios of each round."""
    ratios = sorted(value / other for value, other in zip(values, base, strict=True))
    return [round(ratio, 1) for ratio in (ratios[len(ratios) // 2], ratios[0], ratios[-1])]


@pytest.mark.parametrize(('name', 'options'), [('default', DEFAULT), ('light', LIGHT)])
def test_cache_images(name, options, images, benchmark, record, device):
    dataset, origin = images
    begin = time.perf_counter()
    held = hold_images(dataset, WORKERS)
    read = time.perf_counter() - begin
    timms = create_loader(dataset, (3, 32, 32), BATCH, is_training=True, num_workers=WORKERS, mean=MEAN, std=STD,
                          device=device, persistent_workers=True, **options)
    torch.set_num_threads(WORKERS)
    rates: dict[str, list[float]] = {}
    ours = CachedLoader(held, BatchAugment((32, 32), **options), BATCH, MEAN, STD, device)
    padded = CachedLoader(held, BatchAugment((32, 32), padding=4, color_jitter=0.0), BATCH, MEAN, STD, device)
    for _ in range(ROUNDS):
        rates.setdefault('timm', []).append(rate(timms, 25))
        for key, loader in (('held', ours), ('held, padded crop', padded)):
            rates.setdefault(key, []).append(rate(loader, 60))
    benchmark.pedantic(lambda: rate(ours, 20), rounds=3)
    medians = {key: float(np.median(values)) for key, values in rates.items()}
    record('cache_images', f'{name} augmentation', {
        'images': f'{len(dataset)} of {held.image_size[0]} x {held.image_size[1]}, {origin}',
        'workers of timm': WORKERS, 'load average': round(os.getloadavg()[0], 1),
        'seconds to read': round(read, 1), 'images a second': {key: round(value) for key, value in medians.items()},
        'times timm, within a round': {key: within(values, rates['timm']) for key, values in rates.items()}})
    assert medians['held'] > 3 * medians['timm']
