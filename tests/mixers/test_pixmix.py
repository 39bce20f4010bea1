"""PixMix against its public algorithm, image by image, and against PIL."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from gradmix_timm import create_mixer
from gradmix_timm.mixers.fractals import fractal, fractals
from gradmix_timm.mixers.pixmix import _BANK, OPERATIONS, augmented, cropped

K = 10


def pixels(size=6, side=24, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (size, 3, side, side))
    return torch.from_numpy(values.astype(np.float32)) / 255


def by_pil(image, name, level):
    """One operation of the public code."""
    picture = Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    side, strength = picture.size[0], abs(level)
    shapes = {'shear-x': (1, level * 0.03, 0, 0, 1, 0), 'shear-y': (1, 0, 0, level * 0.03, 1, 0),
              'translate-x': (1, 0, int(level * side / 30), 0, 1, 0),
              'translate-y': (1, 0, 0, 0, 1, int(level * side / 30))}
    if name in shapes:
        done = picture.transform(picture.size, Image.AFFINE, shapes[name], resample=Image.BILINEAR)
    elif name == 'rotate':
        done = picture.rotate(int(level * 3), resample=Image.BILINEAR)
    else:
        done = {'autocontrast': ImageOps.autocontrast, 'equalize': ImageOps.equalize,
                'posterize': lambda p: ImageOps.posterize(p, 4 - int(strength * 0.4)),
                'solarize': lambda p: ImageOps.solarize(p, 256 - int(strength * 25.6))}[name](picture)
    return torch.from_numpy(np.asarray(done).copy()).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize('name', OPERATIONS)
def test_operations_are_pils(name):
    images = torch.nn.functional.interpolate(pixels(4, 6), size=(24, 24), mode='bilinear') * 0.8 + 0.1
    level = np.array([0.4, -1.7, 2.9, -2.6])
    found = augmented(images, np.full(4, OPERATIONS.index(name)), level)
    for row in range(4):
        # PIL cuts a border of half a pixel off where a bilinear sample fades out.
        inner = (slice(None), slice(3, -3), slice(3, -3))
        assert (found[row][inner] - by_pil(images[row], name, level[row])[inner]).abs().max() < 0.02


def slow(image, plan, row, bank, k):
    """Algorithm 1 of the paper on one image."""
    mixed = augmented(image[None], plan.operation[0, row:row + 1], plan.level[0, row:row + 1])[0] \
        if plan.own[0, row] else image
    for number in range(1, k + 1):
        if number > plan.rounds[row]:
            break
        if plan.own[number, row]:
            picture = augmented(image[None], plan.operation[number, row:row + 1], plan.level[number, row:row + 1])[0]
        else:
            crop = torch.tensor(plan.crop[row], dtype=torch.float32)[None]
            picture = cropped(bank[plan.picture[row]][None], crop, image.shape[1:])[0]
        a, b = plan.share[number, row]
        if plan.multiplied[number, row]:
            mixed = (2 * mixed) ** a * (2 * picture).clamp(min=1e-37) ** b / 2
        else:
            mixed = (a * (2 * mixed - 1) + b * (2 * picture - 1) + 1) / 2
        mixed = mixed.clamp(0, 1)
    return mixed


def test_a_batch_is_the_algorithm_image_by_image():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    m, s = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    plain, labels = pixels(12), torch.arange(12) % K
    mixer = create_mixer('pixmix', num_classes=K, mean=mean, std=std, prob_elem=0.8, seed=3)
    draw = mixer.draw((plain - m) / s, labels)
    mixed, targets = mixer.apply((plain - m) / s, labels, draw)
    plan, bank = mixer.plan(draw.noise_seed, 12), fractals(_BANK, 96)
    for row in range(12):
        want = slow(plain[row], plan, row, bank, 4) if draw.lam[row] < 1 else plain[row]
        assert torch.allclose(mixed[row] * s + m, want, atol=1e-4)
    assert (draw.lam == 1).any()
    assert torch.equal(targets, torch.eye(K)[labels])


def test_without_a_normalisation_the_range_of_each_channel_stands_for_it():
    images = (pixels() - 0.4) * torch.tensor([1.0, 2, 3]).view(3, 1, 1)
    mixed, _ = create_mixer('pixmix', num_classes=K)(images, torch.arange(6))
    for channel in range(3):
        assert mixed[:, channel].min() >= images[:, channel].min() - 1e-4
        assert mixed[:, channel].max() <= images[:, channel].max() + 1e-4
    images[:, 1], images[2, 0, 3, 4] = 0.3, torch.nan
    mixed, _ = create_mixer('pixmix', num_classes=K)(images, torch.arange(6))
    assert mixed[torch.arange(6) != 2].isfinite().all(), 'neither a flat channel nor a broken image spoils the range'


def test_the_draws_are_those_of_the_paper():
    plan = create_mixer('pixmix', num_classes=K).plan(0, 4000)  # k = 4, beta = 3, severity 3
    assert np.bincount(plan.rounds).tolist() == pytest.approx([800] * 5, abs=110)
    assert (abs(plan.level).min(), abs(plan.level).max()) == (pytest.approx(.1, abs=.01), pytest.approx(3, abs=.01))
    a, b = plan.share[..., 0].ravel(), plan.share[..., 1].ravel()
    gentle = a <= 1
    assert gentle.mean() == pytest.approx(0.5, abs=0.02)
    assert a[gentle].mean() == pytest.approx(0.75, abs=0.01)
    assert b[gentle].mean() == pytest.approx(0.25, abs=0.01)
    assert (a[~gentle].mean(), b[~gentle].mean()) == (pytest.approx(1.25, abs=0.01), pytest.approx(-0.25, abs=0.01))


def test_fractals_differ_fill_their_picture_and_come_from_their_seed():
    bank = fractals(6, 48, seed=5)
    assert torch.equal(bank[2].permute(1, 2, 0), torch.from_numpy(fractal(np.random.default_rng([5, 2]), 48)))
    assert (bank.min() >= 0, bank.max() <= 1) == (True, True)
    assert bank.std((1, 2, 3)).min() > 0.02
    flat = bank.flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(6)).max() < 0.95


@pytest.mark.parametrize(('options', 'match'), [
    ({'k': 0}, 'number of rounds'), ({'beta': 0}, 'beta is above 0'), ({'severity': 11}, 'severity'),
    ({'mean': (0.5,)}, 'come together')])
def test_options_out_of_range(options, match):
    with pytest.raises(ValueError, match=match):
        create_mixer('pixmix', num_classes=K, **options)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_values_outside_of_the_range_give_no_nan(dtype):
    """Black that is rounded to below 0, and the noise of timm's RandomErasing."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = (torch.zeros(64, 3, 8, 8) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    images[:, :, :4, :4] = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mixer = create_mixer('pixmix', num_classes=10, mean=mean, std=std, seed=0)
    mixed, _ = mixer(images.to(dtype), torch.arange(64) % 10)
    assert mixed.isfinite().all()
