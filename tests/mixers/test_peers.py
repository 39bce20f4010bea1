"""Peers against slow references of their papers' equations, and against their statistics."""
from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradmix_timm import create_mixer
from gradmix_timm.mixers.fmix import grey_noise, top_mask
from gradmix_timm.mixers.guidedmix import greedy_cycle
from gradmix_timm.ops import spectral_residual

K = 10


def batch(size=8, shape=(3, 16, 16), seed=0):
    return torch.randn(size, *shape, generator=torch.Generator().manual_seed(seed)), torch.arange(size) % K


def draws(mixer, count, images, labels, model=None):
    return [mixer.draw(images, labels, model) for _ in range(count)]


def inside(box):
    yl, yh, xl, xh = map(int, box)
    return {(y, x) for y in range(yl, yh) for x in range(xl, xh)}


# ---- cutout, random erasing

def test_cutout_blanks_a_clipped_square_and_nothing_else():
    images, labels = batch(shape=(3, 12, 16))
    mixer = create_mixer('cutout', num_classes=K, length=0.5)
    draw = mixer.draw(images, labels)
    mixed, targets = mixer.apply(images, labels, draw)
    for row in range(8):
        hole = inside(draw.dst[row])
        for y in range(12):
            for x in range(16):
                want = torch.zeros(3) if (y, x) in hole else images[row, :, y, x]
                assert torch.equal(mixed[row, :, y, x], want)
        assert draw.lam[row].item() == pytest.approx(1 - len(hole) / (12 * 16))
    assert torch.equal(targets, torch.eye(K)[labels])


def test_cutouts_are_as_large_as_uniform_centres_make_them():
    side, n = 8, 16
    areas = [(min(c + side - side // 2, n) - max(c - side // 2, 0)) for c in range(n)]
    expected = (sum(areas) / n) ** 2 / n ** 2
    mixer, (images, labels) = create_mixer('cutout', num_classes=K), batch(256, (1, n, n))
    lam = torch.cat([draw.lam for draw in draws(mixer, 30, images, labels)])
    assert (1 - lam).mean().item() == pytest.approx(expected, abs=0.004)


def slow_erasing(rng, height, width, scale=(0.02, 0.33), ratio=(0.3, 3.3)):
    """Algorithm 1 of the paper."""
    while True:
        area, aspect = rng.uniform(*scale) * height * width, rng.uniform(*ratio)
        h, w = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
        y, x = rng.randrange(height), rng.randrange(width)
        if y + h <= height and x + w <= width:
            return y, y + h, x, x + w


def test_random_erasing_draws_as_the_papers_algorithm():
    rng, (images, labels) = random.Random(0), batch(256, (1, 24, 32))
    mixer = create_mixer('random-erasing', num_classes=K)
    found = torch.cat([draw.dst for draw in draws(mixer, 40, images, labels)]).double()
    slow = torch.tensor([slow_erasing(rng, 24, 32) for _ in range(10240)]).double()
    error = (found.std(0) + slow.std(0)) / math.sqrt(len(slow))
    assert ((found.mean(0) - slow.mean(0)).abs() < 4 * error).all()
    sides = [boxes[:, 1::2] - boxes[:, 0::2] for boxes in (found, slow)]
    assert (sides[0].prod(1).mean() - sides[1].prod(1).mean()).abs() < 2.0
    assert (sides[0] > 0).all()
    assert (found[:, 1::2].amax(0) <= torch.tensor([24, 32])).all()


@pytest.mark.parametrize('fill', ['noise', 'zero'])
def test_random_erasing_fills_its_rectangle_alone(fill):
    images, labels = batch(64)
    mixer = create_mixer('random-erasing', num_classes=K, fill=fill, prob_elem=0.5)
    draw = mixer.draw(images, labels)
    mixed, targets = mixer.apply(images, labels, draw)
    filled = []
    for row in range(64):
        hole = torch.zeros(16, 16, dtype=torch.bool)
        yl, yh, xl, xh = draw.dst[row].tolist()
        hole[yl:yh, xl:xh] = True
        assert torch.equal(mixed[row][:, ~hole], images[row][:, ~hole])
        filled.append(mixed[row][:, hole].flatten())
    filled = torch.cat(filled)
    assert torch.equal(targets, torch.eye(K)[labels])
    assert (filled == 0).all() if fill == 'zero' else abs(filled.std() - 1) < 0.05
    assert 16 < (draw.lam < 1).sum() < 48


# ---- resizemix, fmix, gridmix

@pytest.mark.parametrize('lam', ['image', 'batch'])
def test_resizemix_is_the_whole_partner_resized(lam):
    images, labels = batch(shape=(3, 20, 28))
    mixer = create_mixer('resizemix', num_classes=K, lam=lam)
    draw = mixer.draw(images, labels)
    mixed, targets = mixer.apply(images, labels, draw)
    for row in range(8):
        yl, yh, xl, xh = draw.dst[row].tolist()
        want = images[row].clone()
        donor = images[draw.partner[row]][None]
        want[:, yl:yh, xl:xh] = F.interpolate(donor, size=(yh - yl, xh - xl), mode='bilinear', antialias=True)[0]
        assert torch.allclose(mixed[row], want, atol=1e-5)
        share = 1 - (yh - yl) * (xh - xl) / (20 * 28)
        assert draw.lam[row].item() == pytest.approx(share)
        assert targets[row, labels[row]].item() == pytest.approx(share)
    assert (len(draw.lam.unique()) == 1) == (lam == 'batch')


def test_resizemix_draws_tau_uniformly():
    images, labels = batch(256, (1, 200, 200))
    mixer = create_mixer('resizemix', num_classes=K)
    dst = torch.cat([draw.dst for draw in draws(mixer, 20, images, labels)]).double()
    tau = (dst[:, 1] - dst[:, 0] + 0.5) / 200
    assert tau.min() >= 0.1
    assert tau.max() <= 0.805
    assert tau.mean().item() == pytest.approx(0.45, abs=0.01)
    assert tau.square().mean().item() == pytest.approx((0.8 ** 3 - 0.1 ** 3) / 2.1, abs=0.01)


@pytest.mark.parametrize('size', [(16, 16), (9, 14), (1, 5)])
def test_grey_noise_is_the_filtered_spectrum(size):
    height, width = size
    found = grey_noise(3, size, 3.0, torch.Generator().manual_seed(1))
    parts = torch.randn(3, height, width // 2 + 1, 2, generator=torch.Generator().manual_seed(1)).numpy()
    for image in range(3):
        spectrum = np.zeros((height, width // 2 + 1), dtype=complex)
        for y in range(height):
            for x in range(width // 2 + 1):
                fy = (y if y < (height + 1) // 2 else y - height) / height
                frequency = max(math.hypot(fy, x / width), 1 / max(size))
                spectrum[y, x] = complex(*parts[image, y, x]) / frequency ** 3
        want = np.fft.irfft2(spectrum, s=size)
        np.testing.assert_allclose(found[image].numpy(), want, rtol=1e-3, atol=1e-3 * abs(want).max())


def test_top_mask_takes_the_largest():
    values, share = torch.randn(6, 5, 7), torch.tensor([0.0, 0.1, 0.5, 0.77, 0.99, 1.0])
    for mask, rows, part in zip(top_mask(values, share), values, share.tolist(), strict=True):
        order = sorted(range(35), key=lambda i, rows=rows: -rows.flatten()[i].item())
        want = torch.zeros(35)
        want[order[:round(part * 35)]] = 1
        assert torch.equal(mask.flatten(), want)


@pytest.mark.parametrize('name', ['fmix', 'gridmix'])
def test_masks_choose_pixels_of_one_image_or_the_other(name):
    images, labels = batch(shape=(3, 16, 20))
    mixer = create_mixer(name, num_classes=K)
    draw = mixer.draw(images, labels)
    mixed, targets = mixer.apply(images, labels, draw)
    for row in range(8):
        own = 0
        for y in range(16):
            for x in range(20):
                kept = bool(draw.mask[row, 0, y, x])
                own += kept
                source = images[row] if kept else images[draw.partner[row]]
                assert torch.equal(mixed[row, :, y, x], source[:, y, x])
        assert draw.lam[row].item() == pytest.approx(own / 320, abs=1e-6)
        assert targets[row, labels[row]].item() == pytest.approx(own / 320, abs=1e-6)


def test_fmix_masks_are_smooth_and_their_shares_uniform():
    images, labels = batch(128, (1, 32, 32))
    masks = torch.cat([draw.mask for draw in draws(create_mixer('fmix', num_classes=K), 8, images, labels)])
    share = masks.mean((1, 2, 3))
    assert share.mean().item() == pytest.approx(0.5, abs=0.03)
    assert share.std().item() == pytest.approx(1 / math.sqrt(12), abs=0.03)
    edges = (masks.diff(dim=2).abs().mean() + masks.diff(dim=3).abs().mean()) / 2
    assert edges < 0.06, 'white noise would make a third'


def test_gridmix_cells_are_whole_and_equally_likely():
    images, labels = batch(256, (1, 16, 16))
    masks = torch.cat([draw.mask for draw in draws(create_mixer('gridmix', num_classes=K, cells=4), 8, images, labels)])
    cells = masks.unfold(2, 4, 4).unfold(3, 4, 4)[:, 0]
    assert torch.equal(cells.amin((3, 4)), cells.amax((3, 4)))
    own = cells.mean((0, 3, 4))
    assert torch.allclose(own, torch.full((4, 4), 0.5), atol=0.05)
    pixels, labels = batch(16, (3, 5, 7))
    many, few = (create_mixer('gridmix', num_classes=K, cells=cells).draw(pixels, labels) for cells in (8, 5))
    assert torch.equal(many.mask, few.mask), 'at most the pixels of the shorter side'


# ---- saliencymix

def slow_residual(image, sigma=2.5, exponent=2):
    """Equations 8-10 in NumPy, for images of up to 64 pixels."""
    grey = image.numpy().astype(np.float64).mean(0)
    spectrum = np.fft.fft2(grey)
    log, phase = np.log(np.abs(spectrum)), np.angle(spectrum)
    mean = sum(np.roll(log, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9
    power = np.abs(np.fft.ifft2(np.exp(log - mean + 1j * phase))) ** exponent
    reach = int(3 * sigma + 0.5)
    kernel = np.exp(-np.arange(-reach, reach + 1) ** 2 / (2 * sigma ** 2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(power, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode='edge')
        power = np.apply_along_axis(lambda line: np.convolve(line, kernel, mode='valid'), axis, padded)
    return power


def test_the_spectral_residual_is_that_of_its_equations():
    images, _ = batch(4, (3, 24, 32))
    for image, found in zip(images, spectral_residual(images), strict=True):
        want = slow_residual(image)
        np.testing.assert_allclose(found.numpy(), want, rtol=1e-3, atol=1e-3 * want.max())
    assert spectral_residual(torch.randn(2, 3, 200, 300)).shape == (2, 64, 96)
    assert spectral_residual(torch.ones(2, 3, 32, 32)).isfinite().all()


def spots(places, size=64):
    """A small textured patch on a smooth background."""
    images = torch.linspace(-0.1, 0.1, size).expand(len(places), 3, size, size).clone()
    for row, (y, x) in enumerate(places):
        images[row, :, y - 4:y + 4, x - 4:x + 4] += torch.randn(8, 8, generator=torch.Generator().manual_seed(row)) * 3
    return images


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('factor', [1, 3])
def test_saliencymix_centres_its_box_on_the_partners_spot(shared, factor):
    places = [(16, 16), (16, 48), (48, 16), (48, 48)]
    images, labels = spots(places).repeat_interleave(factor, 2).repeat_interleave(factor, 3), torch.arange(4)
    mixer, whole = create_mixer('saliencymix', num_classes=K, shared=shared), 0
    for draw in draws(mixer, 12, images, labels):
        mixed, _ = mixer.apply(images, labels, draw)
        for row in range(4):
            yl, yh, xl, xh = draw.dst[row].tolist()
            assert torch.equal(mixed[row, :, yl:yh, xl:xh], images[draw.partner[row], :, yl:yh, xl:xh])
            if min(yl, xl) > 0 and max(yh, xh) < 64 * factor:  # not cut at the border
                donor = int(draw.partner[0 if shared else row])
                y, x = places[donor]
                cell = spectral_residual(images[donor:donor + 1])[0]
                top, left = divmod(int(cell.argmax()), cell.shape[1])
                assert abs((yl + yh) / 2 - (top + 0.5) * factor) <= 0.5, 'the middle of the cell'
                assert abs((xl + xh) / 2 - (left + 0.5) * factor) <= 0.5
                assert abs((yl + yh) / 2 - y * factor) <= 3 * factor
                assert abs((xl + xh) / 2 - x * factor) <= 3 * factor
                whole += 1
        assert (len(draw.dst.unique(dim=0)) == 1) == shared
    assert whole >= 4


# ---- guidedmix

def test_a_greedy_cycle_follows_the_farthest_that_is_left():
    rng = np.random.default_rng(0)
    for batch in (1, 2, 3, 9):
        distance = rng.random((batch, batch))
        for start in range(batch):
            row, seen = start, [start]
            follower = greedy_cycle(distance, start)
            while len(seen) < batch:
                best = max((j for j in range(batch) if j not in seen), key=lambda j, row=row: distance[row, j])
                assert follower[row] == best
                row = best
                seen.append(row)
            assert follower[row] == start


@pytest.mark.parametrize('pairing', ['greedy', 'random'])
def test_guidedmix_blends_in_proportion_to_saliency(pairing):
    images, labels = batch(shape=(3, 16, 20))
    mixer = create_mixer('guidedmix', num_classes=K, pairing=pairing)
    draw = mixer.draw(images, labels)
    mixed, targets = mixer.apply(images, labels, draw)
    taps = np.exp(-np.arange(-3, 4) ** 2 / 18)  # their code blurs twice with these
    width = math.sqrt(2 * (np.arange(-3, 4) ** 2 * taps).sum() / taps.sum())
    maps = [slow_residual(image, width, 1) for image in images]
    maps = [m / m.sum() for m in maps]
    for row in range(8):
        partner = int(draw.partner[row])
        share = torch.from_numpy(maps[row] / (maps[row] + maps[partner])).float()
        assert torch.allclose(mixed[row], share * images[row] + (1 - share) * images[partner], atol=1e-3)
        assert targets[row, labels[row]].item() == pytest.approx(share.mean().item(), abs=1e-4)
    distance = np.array([[np.linalg.norm(a - b) for b in maps] for a in maps])
    cycles = [greedy_cycle(distance, start).tolist() for start in range(8)]
    assert (draw.partner.tolist() in cycles) == (pairing == 'greedy')
    flat = mixer(torch.zeros(4, 3, 8, 8), torch.arange(4))[1]
    assert torch.allclose(flat.amax(1), torch.full((4,), 0.5), atol=1e-3), 'flat images share evenly'


# ---- attentivemix, snapmix

class Pooled(nn.Module):
    """A convolution, global average pooling and a linear head: its class activation map is known."""

    def __init__(self):
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.head = nn.Linear(8, K)

    def forward(self, x):
        return self.head(self.stage(x).mean((2, 3)))


@pytest.fixture
def pooled():
    torch.manual_seed(0)
    return Pooled()


@pytest.mark.parametrize('share', [6 / 49, 0.5, 0.01, 0.99])
def test_attentivemix_keeps_the_most_active_cells(share, pooled):
    images, labels = batch(shape=(3, 16, 20))
    mixer = create_mixer('attentivemix', num_classes=K, share=share, layers='stage')
    draw = mixer.draw(images, labels, pooled)
    mixed, targets = mixer.apply(images, labels, draw)
    active = pooled.stage(images).mean(1)
    count = min(19, max(1, round(share * 20)))  # at least one cell of each image
    for row in range(8):
        order = sorted(range(20), key=lambda i, row=row: -active[row].flatten()[i].item())[:count]
        for y in range(16):
            for x in range(20):
                source = images[row] if y // 4 * 5 + x // 4 in order else images[draw.partner[row]]
                assert torch.equal(mixed[row, :, y, x], source[:, y, x])
        assert targets[row, labels[row]].item() == pytest.approx(count / 20)


@pytest.mark.parametrize('lam', ['image', 'batch'])
def test_snapmix_weighs_labels_by_what_is_seen_of_their_class_maps(lam, pooled):
    images, labels = batch(shape=(3, 16, 20))
    labels[1] = labels[0]
    mixer = create_mixer('snapmix', num_classes=K, lam=lam, layers='stage')
    draw = mixer.draw(images, labels, pooled)
    mixed, targets = mixer.apply(images, labels, draw)
    cams = torch.einsum('bchw,bc->bhw', pooled.stage(images), pooled.head.weight[labels]).detach()
    cams = F.interpolate(cams[:, None], size=(16, 20), mode='bilinear', align_corners=False)[:, 0]
    cams = [cam - cam.min() for cam in cams]
    cams = [cam / cam.sum() for cam in cams]
    sums = []
    for row in range(8):
        partner = int(draw.partner[row])
        own = 1 - sum(cams[row][y, x].item() for y, x in inside(draw.dst[row]))
        other = sum(cams[partner][y, x].item() for y, x in inside(draw.src[row]))
        want = own * torch.eye(K)[labels[row]] + other * torch.eye(K)[labels[partner]]
        assert torch.allclose(targets[row], want, atol=1e-4)
        sums.append(own + other)
        (yl, yh, xl, xh), (sy, ty, sx, tx) = draw.dst[row].tolist(), draw.src[row].tolist()
        expected = images[row].clone()
        if yh > yl and xh > xl:
            expected[:, yl:yh, xl:xh] = F.interpolate(images[partner][None, :, sy:ty, sx:tx], size=(yh - yl, xh - xl),
                                                      mode='bilinear', antialias=True)[0]
        assert torch.allclose(mixed[row], expected, atol=1e-4)
    assert max(abs(s - 1) for s in sums) > 0.05
    assert (len(draw.dst.unique(dim=0)) == 1) == (lam == 'batch')


def test_snapmix_leaves_an_image_whole_whose_box_or_source_has_no_pixel(pooled):
    images, labels = batch(16, shape=(3, 12, 12))
    mixer = create_mixer('snapmix', num_classes=K, alpha=0.3, layers='stage')
    draws = [mixer.draw(images, labels, pooled) for _ in range(8)]
    whole = torch.cat([draw.lam == 1 for draw in draws])
    assert whole.any()
    assert torch.equal(torch.cat([draw.weight for draw in draws])[whole].sum(0), torch.tensor([whole.sum(), 0]))
    assert (torch.cat([draw.src for draw in draws])[whole] == 0).all()
    mixed = mixer.apply(images, labels, draws[0])[0]
    assert torch.equal(mixed[draws[0].lam == 1], images[draws[0].lam == 1])
    assert mixed.isfinite().all()


def test_snapmix_weighs_by_area_where_a_map_is_flat(pooled):
    nn.init.zeros_(pooled.head.weight)
    images, labels = batch()
    draw = create_mixer('snapmix', num_classes=K, layers='stage').draw(images, labels, pooled)
    assert torch.allclose(draw.weight, torch.stack([draw.lam, 1 - draw.lam], 1))
    assert draw.fallback.any()


@pytest.mark.parametrize('name', ['attentivemix', 'snapmix'])
def test_a_transformer_serves_and_is_left_as_it_was(name, tiny_vit):
    images, labels = torch.randn(4, 3, *tiny_vit.pretrained_cfg['input_size'][1:]), torch.arange(4)
    mixer, before = create_mixer(name, num_classes=K), {k: v.clone() for k, v in tiny_vit.state_dict().items()}
    mixer.prepare(tiny_vit, tuple(images.shape[1:]))
    tiny_vit.train()
    assert not torch.equal(mixer(images, labels, tiny_vit)[0], images)
    assert all(torch.equal(before[key], value) for key, value in tiny_vit.state_dict().items())
    assert all(weight.grad is None for weight in tiny_vit.parameters())
    assert all(module.training for module in tiny_vit.modules())


# ---- regmixup

def test_regmixup_is_the_clean_batch_and_its_mixup():
    images, labels = batch()
    both, targets = create_mixer('regmixup', num_classes=K, label_smoothing=0.1, seed=3)(images, labels)
    mixed, rows = create_mixer('mixup', num_classes=K, alpha=20.0, label_smoothing=0.1, seed=3)(images, labels)
    assert torch.equal(both, torch.cat([images, mixed]))
    assert torch.allclose(targets, torch.cat([torch.eye(K)[labels] * 0.9 + 0.01, rows]))
    switch = create_mixer('regmixup+cutmix', num_classes=K)
    assert {len(switch(images, labels)[0]) for _ in range(12)} == {8, 16}


@pytest.mark.parametrize(('name', 'options', 'match'), [
    ('cutout', {'length': 0.0}, 'length'), ('cutout', {'length': 1.5}, 'length'),
    ('random-erasing', {'scale': (0.5, 0.2)}, 'scale'), ('random-erasing', {'ratio': (0, 1)}, 'ratio'),
    ('random-erasing', {'fill': 'mean'}, 'fill'), ('resizemix', {'scale': (0.1, 1.2)}, 'scale'),
    ('resizemix', {'lam': 'row'}, 'lam'), ('fmix', {'decay': -1}, 'decay'), ('fmix', {'alpha': math.inf}, 'alpha'),
    ('gridmix', {'cells': 1}, 'cells'), ('saliencymix', {'shared': 'yes'}, 'shared'),
    ('regmixup', {'alpha': 0}, 'alpha'), ('guidedmix', {'pairing': 'best'}, 'pairing'),
    ('attentivemix', {'share': 1.0}, 'share'), ('snapmix', {'lam': 'row'}, 'lam')])
def test_options_out_of_range_are_named(name, options, match):
    with pytest.raises(ValueError, match=match):
        create_mixer(name, num_classes=K, **options)
