"""OpenMix against the rules of its public code, image by image, and labels that go to no class."""
from __future__ import annotations

import math

import pytest
import torch
import torchvision.transforms.functional as TF

from gradmix_timm import create_mixer
from gradmix_timm.mixers.openmix import foregrounds, kaleidoscope, moved_shapes
from gradmix_timm.ops import rotation, warp

K = 10


def rotate(images, angle):
    return warp(images, rotation(angle, images.shape[2:]), 'nearest')


def batch(size=8, shape=(3, 16, 16), seed=0):
    return torch.randn(size, *shape, generator=torch.Generator().manual_seed(seed)), torch.arange(size) % K


@pytest.mark.parametrize('shape', [(3, 16, 16), (1, 15, 22)])
def test_a_rotation_is_torchvisions(shape):
    images, angle = batch(6, shape)[0], torch.tensor([0.0, 0.3, 1.0, 2.0, 1.5, 5.5])
    for row, (found, turn) in enumerate(zip(rotate(images, angle), angle.tolist(), strict=True)):
        same = (found == TF.rotate(images[row], math.degrees(turn))).float().mean()
        assert same > 0.97, 'up to pixels that lie on an edge'


@pytest.mark.parametrize(('height', 'width'), [(6, 8), (5, 7), (1, 3)])
def test_a_kaleidoscope_has_one_quarter_with_its_corner_in_the_middle(height, width):
    """As the public code folds: the lower half above its mirror image, then the same with left and right."""
    image = torch.arange(float(height * width)).view(1, 1, height, width)
    found = kaleidoscope(image, torch.tensor([[False, False]]))[0, 0]
    if height % 2 == 0:
        assert torch.equal(found, found.flip(0))
    if width % 2 == 0:
        assert torch.equal(found, found.flip(1))
    assert found[(height - 1) // 2, (width - 1) // 2] == image[0, 0, -1, -1]
    assert set(found.flatten().tolist()) <= set(image[0, 0, height // 2:, width // 2:].flatten().tolist())
    both = kaleidoscope(image, torch.tensor([[True, True]]))[0, 0]
    assert both[(height - 1) // 2, (width - 1) // 2] == image[0, 0, 0, 0]


def test_a_moved_shape_is_half_as_large_about_its_place():
    shapes = torch.rand(20, 16, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    centre = torch.randint(0, 12, (20, 2), generator=torch.Generator().manual_seed(1))
    found = moved_shapes(shapes, centre)
    for row in range(20):
        top, left = int(centre[row, 0]) - 4, int(centre[row, 1]) - 3
        for y in range(16):
            for x in range(12):
                sy, sx = 2 * (y - top), 2 * (x - left)
                assert found[row, y, x] == (0 <= sy < 16 and 0 <= sx < 12 and bool(shapes[row, sy, sx]))


def test_a_foreground_is_the_most_salient_part_and_as_large_as_asked():
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.05
    images[:, :, 20:40, 8:28] += torch.randn(20, 20, generator=torch.Generator().manual_seed(1))
    found = foregrounds(images, torch.tensor([0.1, 0.2, 0.4, 0.8]))
    assert torch.allclose(found.float().mean((1, 2)), torch.tensor([0.1, 0.2, 0.4, 0.8]), atol=1e-3)
    assert found[0, 16:44, 4:32].sum() > 0.8 * found[0].sum()


@pytest.mark.parametrize(('ratio', 'kind'), [((1, 0, 0), 'mixup'), ((0, 1, 0), 'cutout'), ((0, 0, 1), 'cutmix')])
def test_each_kind_makes_its_pixels_and_labels(ratio, kind):
    images, labels = batch(32, (3, 24, 24))
    mixer = create_mixer('openmix', num_classes=K, ratio=ratio, prob_elem=0.8)
    draw = mixer.draw(images, labels)
    mixed, targets = mixer.apply(images, labels, draw)
    _, angle, flips = mixer._plan(draw.noise_seed, 32)
    unknown = draw.unknown.bool()
    for row in range(32):
        keep = draw.mask[row, 0]
        assert torch.equal(mixed[row][:, keep == 1], images[row][:, keep == 1])
        if kind == 'mixup':
            turned = rotate(images[row:row + 1], torch.tensor(angle[row:row + 1]))[0]
            want = (images[row] + turned) / 2 if unknown[row] else images[row]
            assert torch.allclose(mixed[row], want, atol=1e-6)
        elif kind == 'cutout':
            assert (mixed[row][:, keep == 0] == 0).all()
        else:
            filler = rotate(kaleidoscope(images[row:row + 1], torch.tensor(flips[row:row + 1])),
                            torch.tensor(angle[row:row + 1]))[0]
            assert torch.equal(mixed[row][:, keep == 0], filler[:, keep == 0])
        want = torch.full((K,), 1 / K) if unknown[row] else torch.eye(K)[labels[row]]
        assert torch.allclose(targets[row], want)
        assert draw.lam[row].item() == pytest.approx(keep.mean().item(), abs=1e-6)
    assert 0 < unknown.sum() < 32
    assert (draw.lam[unknown] < 1).all()


def test_holes_come_beside_the_foreground_as_often_and_keep_the_label():
    images, labels = batch(64, (3, 32, 32))
    mixer = create_mixer('openmix', num_classes=K, ratio=(0, 1, 0))
    draws = [mixer.draw(images, labels) for _ in range(10)]
    unknown = torch.cat([d.unknown for d in draws])
    assert 0.4 < unknown.mean() < 0.6
    area = torch.cat([1 - d.lam for d in draws])
    low, high = area[unknown.bool()].min(), area[unknown.bool()].max()
    assert 0.099 <= low < 0.13, 'uniform between the bounds of the foreground'
    assert 0.77 < high <= 0.801
    beside = area[~unknown.bool()]
    assert 0 < (beside > 0).float().mean() < 1, 'where it would touch the foreground the image is whole'
    assert beside.max() < 0.26, 'half the sides, so a quarter of the area at most'


def test_kinds_come_as_the_ratio_says():
    images, labels = batch(256, (1, 8, 8))
    mixer = create_mixer('openmix', num_classes=K)
    half = torch.cat([(d.mask == 0.5).flatten(1).all(1) for d in (mixer.draw(images, labels) for _ in range(8))])
    assert 0.6 < half.float().mean() < 0.73


def test_an_unknown_output_gets_what_is_of_no_class():
    plain, extra = (create_mixer('openmix', num_classes=k, seed=2, unknown_output=k > K) for k in (K, K + 1))
    images, labels = batch(6)
    draw = extra.draw(images, labels)
    _, targets = extra.apply(images, labels, draw)
    assert targets.shape == (6, K + 1)
    assert torch.equal(targets[:, K], draw.unknown)
    assert torch.allclose(targets.sum(1), torch.ones(6))
    _, uniform = plain.apply(images, labels, draw)
    assert torch.allclose(uniform, targets[:, :K] + targets[:, K:] / K)
    assert plain.gives_unknown
    assert extra.options['unknown_output'] is True
    assert repr(create_mixer('openmix', **extra.options)) == repr(extra)


def test_the_clean_batch_comes_first_unless_it_is_left_out():
    images, labels = batch(6)
    mixed, targets = create_mixer('openmix', num_classes=K)(images, labels)
    assert torch.equal(mixed[:6], images)
    assert torch.equal(targets[:6], torch.eye(K)[labels])
    mixed, targets = create_mixer('openmix', num_classes=K, keep_clean=False, prob_elem=0.5)(images, labels)
    assert len(mixed) == len(targets) == 6


@pytest.mark.parametrize(('options', 'match'), [
    ({'ratio': (1, 1)}, 'three numbers'), ({'ratio': (0, 0, 0)}, 'three numbers'),
    ({'ratio': (1, -1, 1)}, 'none below 0'),
    ({'ratio': 3}, 'three numbers'), ({'keep_clean': 1}, 'True or False'),
    ({'unknown_output': True, 'multi_label_mix': 'weight'}, 'unknown_output with multi_label_mix')])
def test_options_out_of_range(options, match):
    with pytest.raises(ValueError, match=match):
        create_mixer('openmix', num_classes=K, **options)
