"""PuzzleMix against slow loops of its energy, its bids and its pastes."""
from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradmix_timm import create_mixer
from gradmix_timm.mixers.puzzlemix import Energy, PuzzleMix, move_blocks, transport

K = 10
LEVELS = (0.0, 0.5, 1.0)


def random_energy(grid, batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cost, down, right = (torch.rand(batch, *shape, generator=generator)
                         for shape in ((3, grid, grid), (grid - 1, grid), (grid, grid - 1)))
    return Energy(cost, down * 0.6 - 0.05, right * 0.6 - 0.05)


def random_mask(grid, batch=4, levels=LEVELS, seed=1):
    picked = torch.randint(len(levels), (batch, grid, grid), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(levels)[picked]


@pytest.mark.parametrize('grid', [2, 3, 5])
def test_the_energy_is_its_sum_over_cells_and_edges(grid):
    energy, mask = random_energy(grid), random_mask(grid)
    for row, found in enumerate(energy(mask)):
        z, total = mask[row], 0.0
        for y, x in product(range(grid), repeat=2):
            total += energy.cost[row, LEVELS.index(z[y, x].item()), y, x]
            total += energy.down[row, y, x] * (z[y, x] - z[y + 1, x]) ** 2 if y + 1 < grid else 0
            total += energy.right[row, y, x] * (z[y, x] - z[y, x + 1]) ** 2 if x + 1 < grid else 0
        assert found.item() == pytest.approx(float(total), rel=1e-5)


@pytest.mark.parametrize('seed', range(5))
def test_two_by_two_is_solved_exactly(seed):
    energy = random_energy(2, seed=seed)
    best = torch.stack([energy(torch.tensor(levels).view(1, 2, 2).expand(4, 2, 2))
                        for levels in product(LEVELS, repeat=4)]).amin(0)
    assert torch.allclose(energy(energy.solve()), best)


class Count(TorchDispatchMode):
    """Counts operations, each of which a GPU has to be asked for."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += 1
        return function(*args, **(kwargs or {}))


def test_all_masks_of_two_by_two_are_compared_at_once():
    counts = []
    for grid in (2, 4):
        energy = random_energy(grid)
        with Count() as count:
            energy.solve()
        counts.append(count.number)
    assert counts[0] < counts[1], 'no loop over masks'


@pytest.mark.parametrize('grid', [4, 8, 16])
def test_larger_grids_are_no_worse_than_cell_by_cell(grid):
    energy = random_energy(grid)
    alone = torch.tensor(LEVELS)[energy.cost.argmin(1)]
    solved = energy.solve()
    assert (energy(solved) <= energy(alone) + 1e-5).all()
    assert (energy(solved) < energy(alone)).any()
    assert set(solved.unique().tolist()) <= set(LEVELS)


def least(energy, grid=4):
    """The exact minimum, row by row: all levels of a row, on top of the best of each state of the row above."""
    rows = torch.tensor(list(product(range(3), repeat=grid)))
    levels, best = rows / 2, torch.zeros(len(energy.cost), 1)
    for y in range(grid):
        own = sum(energy.cost[:, rows[:, x], y, x] for x in range(grid))
        own = own + (energy.right[:, y, None] * levels.diff(dim=1).square()).sum(2)
        if y:
            apart = (levels[:, None] - levels).square()
            best = (best[:, :, None] + (energy.down[:, y - 1, None, None] * apart).sum(3)).amin(1)
        best = best + own
    return best.amin(1)


def test_the_search_finds_nine_tenths_of_what_cells_by_themselves_miss():
    generator = torch.Generator().manual_seed(0)
    images = nn.functional.interpolate(torch.randn(64, 3, 8, 8, generator=generator), size=32, mode='bilinear') * 1.5
    saliency = nn.functional.interpolate(torch.rand(64, 1, 3, 3, generator=generator), size=4, mode='bilinear')[:, 0]
    saliency /= saliency.sum((1, 2), keepdim=True)
    energy = PuzzleMix(K).energy(images, saliency, torch.arange(64).roll(1), torch.rand(64, generator=generator))
    alone, solved = torch.tensor(LEVELS)[energy.cost.argmin(1)], energy.solve()
    missed, left = energy(alone) - least(energy), energy(solved) - least(energy)
    assert (left > -1e-5).all()
    assert left.mean() < 0.1 * missed.mean()
    assert (left < 1e-5).float().mean() > 0.6, 'the exact minimum, more often than not'


@pytest.mark.parametrize('shape', [(16, 16), (18, 23)])
def test_costs_are_saliency_prior_and_seams(shape):
    """Differences of energies between masks of 0 and 1 equal those of the equation, seam by seam."""
    grid, batch, lam = 4, 3, torch.tensor([0.2, 0.5, 0.9])
    images = torch.randn(batch, 3, *shape, generator=torch.Generator().manual_seed(0))
    saliency = torch.rand(batch, grid, grid, generator=torch.Generator().manual_seed(1))
    saliency /= saliency.sum((1, 2), keepdim=True)
    partner, mixer = torch.tensor([1, 2, 0]), PuzzleMix(K)
    energy = mixer.energy(images, saliency, partner, lam)
    masks = [random_mask(grid, batch, (0.0, 1.0), seed) for seed in (0, 1)]
    found = energy(masks[0]) - energy(masks[1])
    for row in range(batch):
        pair = (images[partner[row]], images[row])  # by level
        slow = [slow_energy(mask[row], pair, saliency[row], saliency[partner[row]], lam[row].item()) for mask in masks]
        assert found[row].item() == pytest.approx(slow[0] - slow[1], abs=1e-5)


def slow_energy(mask, pair, own, other, lam, beta=1.2, gamma=0.5, eta=0.2):
    grid, (height, width) = len(mask), pair[0].shape[1:]
    total = 0.0
    for y, x in product(range(grid), repeat=2):
        z = int(mask[y, x])
        total += float(other[y, x] if z else own[y, x])
        total -= eta / grid ** 2 * 2 * math.log(lam if z else 1 - lam)
        for (v, u), vertical in (((y + 1, x), True), ((y, x + 1), False)):
            if max(v, u) == grid:
                continue
            w = int(mask[v, u])
            start, stop = ((x, width) if vertical else (y, height))
            along = range(start * stop // grid, math.ceil((start + 1) * stop / grid))  # as adaptive pooling cuts
            seam = v * height // grid if vertical else u * width // grid
            jumps = [(pair[z][:, seam - 1, i] - pair[w][:, seam, i] if vertical
                      else pair[z][:, i, seam - 1] - pair[w][:, i, seam]).abs().mean() * 0.25 for i in along]
            total += beta / (16 * grid) * ((z - w) ** 2 + gamma * float(sum(jumps)) / len(jumps))
    return total


def slow_transport(mask, saliency, eps):
    grid = len(mask)
    cells = list(product(range(grid), repeat=2))
    cost = np.array([[eps * ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (grid - 1) ** 2
                      - float(saliency[a]) * bool(mask[b] > 0) for b in cells] for a in cells], dtype=np.float32)
    for _ in range(grid):
        bids, winners = cost.argmin(1), {}
        for a, b in enumerate(bids):
            if b not in winners or cost[a, b] < cost[winners[b], b]:
                winners[b] = a
        for a, b in enumerate(bids):
            if winners[b] != a:
                cost[a, b] += 1
    return [winners.get(b, b) for b in range(len(cells))]


@pytest.mark.parametrize('grid', [2, 4, 8])
def test_blocks_bid_for_places(grid):
    generator = torch.Generator().manual_seed(0)
    mask, saliency = random_mask(grid, 6), torch.rand(6, grid, grid, generator=generator) ** 4
    saliency /= saliency.sum((1, 2), keepdim=True)
    found = transport(mask, saliency, 0.8)
    for row in range(6):
        assert found[row].tolist() == slow_transport(mask[row], saliency[row], 0.8)
    doubled = sum(grid * grid - len(set(row.tolist())) for row in found)
    assert doubled <= 0.1 * found.numel(), 'few blocks are lost to rounds that did not end'
    assert grid == 2 or not torch.equal(found, torch.arange(grid * grid).expand(6, -1))
    stay = torch.arange(grid * grid)
    assert torch.equal(transport(mask, saliency, 1e4), stay.expand(6, -1)), 'moves that cost too much are not made'


def test_moved_blocks_are_whole():
    images = torch.randn(2, 3, 8, 12)
    source = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(s)) for s in (0, 1)])
    moved = move_blocks(images, source)
    for row, y, x in product(range(2), range(4), range(4)):
        v, u = divmod(int(source[row, 4 * y + x]), 4)
        assert torch.equal(moved[row, :, 2 * y:2 * y + 2, 3 * x:3 * x + 3],
                           images[row, :, 2 * v:2 * v + 2, 3 * u:3 * u + 3])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stage, self.head = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Tanh()), nn.Linear(8, K)

    def forward(self, x):
        return self.head(self.stage(x).mean((2, 3)))


@pytest.mark.parametrize('moves', [True, False])
def test_a_batch_is_mixed_as_its_draw_says(moves):
    torch.manual_seed(0)
    net, images, labels = Net(), torch.randn(6, 3, 16, 16), torch.arange(6)
    mixer = create_mixer('puzzlemix', num_classes=K, moves=moves, prob_elem=0.7)
    for _ in range(4):
        draw = mixer.draw(images, labels, net)
        mixed, targets = mixer.apply(images, labels, draw)
        own, other = images, images[draw.partner]
        assert (draw.moves is not None) == moves
        if moves:
            own, other = move_blocks(own, draw.moves[:, 0]), move_blocks(other, draw.moves[:, 1])
        assert torch.allclose(mixed, draw.mask * own + (1 - draw.mask) * other, atol=1e-6)
        share = draw.mask.mean((1, 2, 3))
        assert torch.allclose(targets[torch.arange(6), labels], share)
        assert draw.moves is None or draw.to('cpu').moves is not None


def test_blocks_move_by_the_saliency_of_the_loss_and_an_image_without_any_is_counted():
    torch.manual_seed(0)
    net, images, labels = Net().eval(), torch.randn(6, 3, 16, 16), torch.arange(6)
    net.stage[2] = nn.ReLU()
    net.stage[0].bias.data.fill_(-1.0)
    images[3] = 0.0  # no unit is active, so the loss does not depend on it
    given = images.clone().requires_grad_()
    nn.functional.cross_entropy(net(given), labels, reduction='sum').backward()
    mixer = create_mixer('puzzlemix', num_classes=K)
    for _ in range(4):
        draw = mixer.draw(images, labels, net)
        grid = math.isqrt(draw.moves.shape[2])
        cells = nn.functional.adaptive_avg_pool2d(given.grad.norm(dim=1)[:, None], grid)[:, 0]
        cells[3] = 1.0
        saliency = cells / cells.sum((1, 2), keepdim=True)
        mask = nn.functional.adaptive_avg_pool2d(draw.mask, grid)[:, 0]
        assert torch.equal(draw.moves[:, 0], transport(mask, saliency, 0.8))
        assert torch.equal(draw.moves[:, 1], transport(1 - mask, saliency[draw.partner], 0.8))
        assert draw.fallback.tolist() == [3 in (row, partner) for row, partner in enumerate(draw.partner.tolist())]


def test_images_whose_coin_fell_false_stay_bit_for_bit():
    torch.manual_seed(0)
    net, images, labels = Net(), torch.randn(32, 3, 16, 16), torch.arange(32) % K
    mixer = create_mixer('puzzlemix', num_classes=K, prob_elem=0.3)
    mixed, _ = mixer(images, labels, net)
    assert (mixed == images).flatten(1).all(1).sum() >= 16


def test_what_is_hidden_is_little_of_the_saliency():
    """The mask shows more of both images' saliency than a random one of its share."""
    torch.manual_seed(0)
    images = torch.randn(32, 3, 32, 32) * 0.1
    for row in range(32):
        y, x = np.random.default_rng(row).integers(0, 24, 2)
        images[row, :, y:y + 8, x:x + 8] += torch.randn(3, 8, 8) * 3
    mixer = PuzzleMix(K, moves=False)
    saliency = nn.functional.adaptive_avg_pool2d(images.abs().mean(1, keepdim=True), 8)[:, 0]
    saliency /= saliency.sum((1, 2), keepdim=True)
    partner = torch.arange(32).roll(1)
    mask = mixer.energy(images, saliency, partner, torch.full((32,), 0.5)).solve()
    seen = (mask * saliency + (1 - mask) * saliency[partner]).sum((1, 2))
    assert seen.mean() > 1.15
    assert 0.3 < mask.mean() < 0.7


@pytest.mark.parametrize(('options', 'match'), [
    ({'beta': -1}, 'beta'), ({'eps': math.inf}, 'eps'), ({'moves': 'no'}, 'moves'), ({'alpha': 0}, 'alpha')])
def test_options_out_of_range_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        create_mixer('puzzlemix', num_classes=K, **options)
