"""Boxes against pixel loops and properties."""
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradmix_timm.ops import (
    argmax_center,
    box_lam,
    box_mask,
    box_mass,
    boxes_at,
    boxes_inside,
    sample_center,
    share_of,
    window_boxes,
)
from gradmix_timm.ops.boxes import SHARE_UNIT

SIZE = st.tuples(st.integers(1, 12), st.integers(1, 12))


@st.composite
def cases(draw):
    height, width = draw(SIZE)
    batch = draw(st.integers(1, 4))
    side = [[draw(st.integers(0, height)), draw(st.integers(0, width))] for _ in range(batch)]
    seed = draw(st.integers(0, 1000))
    maps = torch.rand(batch, height, width, generator=torch.Generator().manual_seed(seed))
    return maps, torch.tensor(side), (height, width)


def covered(box, size):
    """Pixels of a box by a loop."""
    yl, yh, xl, xh = box
    return {(y, x) for y in range(size[0]) for x in range(size[1]) if yl <= y < yh and xl <= x < xh}


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(['high', 'low']))
def test_window_equals_a_slow_search(case, sign):
    maps, sides, size = case
    boxes = window_boxes(maps, sides, sign)
    for row, (h, w) in enumerate(sides.tolist()):
        tops, lefts = range(size[0] - h + 1), range(size[1] - w + 1)
        sums = [maps[row, y:y + h, x:x + w].sum().item() for y in tops for x in lefts]
        yl, yh, xl, xh = boxes[row].tolist()
        assert (yh - yl, xh - xl) == (h, w)
        best = max(sums) if sign == 'high' else min(sums)
        assert maps[row, yl:yh, xl:xh].sum().item() == pytest.approx(best, abs=3e-6 * max(maps[row].sum().item(), 10))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_lam_mask_and_mass_count_pixels(case):
    maps, sides, size = case
    u = torch.rand(len(sides), 2, generator=torch.Generator().manual_seed(1))
    boxes = boxes_inside(u, sides, size)
    lam, mask, mass = box_lam(boxes, size), box_mask(boxes, size), box_mass(maps, boxes)
    for row, box in enumerate(boxes.tolist()):
        pixels = covered(box, size)
        assert len(pixels) == sides[row].prod().item()
        assert lam[row].item() == pytest.approx(1 - len(pixels) / (size[0] * size[1]), abs=1e-6)
        assert {(y, x) for y, x in mask[row, 0].nonzero().tolist()} == pixels
        want = sum(maps[row, y, x].item() for y, x in pixels) / maps[row].sum().item()
        assert mass[row].item() == pytest.approx(want, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(['clip', 'shift']))
def test_boxes_at_stay_inside_and_hold_the_centre(case, placement):
    maps, sides, size = case
    center = argmax_center(maps)
    boxes = boxes_at(center, sides, size, placement)
    for row, (yl, yh, xl, xh) in enumerate(boxes.tolist()):
        assert 0 <= yl <= yh <= size[0]
        assert 0 <= xl <= xh <= size[1]
        h, w = sides[row].tolist()
        if placement == 'shift':
            assert (yh - yl, xh - xl) == (h, w)
        if h and w:
            y, x = center[row].tolist()
            assert yl <= y < yh
            assert xl <= x < xh


def test_a_spot_smaller_than_the_box_sits_in_its_middle():
    maps = torch.zeros(2, 32, 32)
    maps[0, 20:24, 6:8] = 1.0
    maps[1, 0:2, 30:32] = 1.0
    sides = torch.full((2, 2), 10)
    assert window_boxes(maps, sides).tolist() == [[17, 27, 2, 12], [0, 10, 22, 32]]
    assert window_boxes(maps, sides, 'low')[0].tolist() == [0, 10, 22, 32], 'as far from the spot as it gets'


def test_an_odd_side_keeps_its_pixel():
    assert boxes_at(torch.tensor([[5, 5]]), torch.tensor([[3, 5]]), (11, 11)).tolist() == [[4, 7, 3, 8]]


def test_boxes_inside_reach_every_place_equally():
    places = 4 * 3
    u = torch.rand(12_000, 2, generator=torch.Generator().manual_seed(0))
    boxes = boxes_inside(u, torch.tensor([[5, 6]]).expand(12_000, -1), (8, 8))
    counts = torch.zeros(4, 3).index_put_((boxes[:, 0], boxes[:, 2]), torch.ones(12_000), accumulate=True)
    assert counts.min() > 12_000 / places * 0.85
    assert counts.max() < 12_000 / places * 1.15


def test_sampled_centres_follow_the_map_and_its_floor():
    maps = torch.zeros(1, 4, 4)
    maps[0, 1, 2] = 3.0
    u = torch.linspace(0, 1 - 1e-6, 4000)
    center = sample_center(maps.expand(4000, -1, -1), u, floor=0.1)
    hit = ((center == torch.tensor([1, 2])).all(1)).float().mean().item()
    assert hit == pytest.approx(0.9 + 0.1 / 16, abs=2e-3)
    assert len({tuple(c) for c in center.tolist()}) == 16
    low = sample_center(maps.expand(4000, -1, -1), u, 'low', floor=0.0)
    assert not (low == torch.tensor([1, 2])).all(1).any()


def test_a_flat_map_is_sampled_evenly():
    center = sample_center(torch.zeros(64, 8, 8), (torch.arange(64) + 0.5) / 64)
    assert len({tuple(c) for c in center.tolist()}) == 64


@given(st.integers(0, 2 ** 54 - 1), st.integers(0, 2 ** 44 - 1))
def test_a_share_of_a_whole_number_is_exact(u, whole):
    want = u * whole // 2 ** 54
    assert share_of(torch.tensor([u]), torch.tensor([whole])).tolist() == [want]
    assert share_of(u, torch.tensor([whole, -whole])).tolist() == [want, -u * whole // 2 ** 54]
    assert share_of(torch.tensor([0.75], dtype=torch.float32), whole).tolist() == [whole * 3 // 4]


@pytest.mark.parametrize('sign', ['high', 'low'])
@pytest.mark.parametrize('floor', [0.1, 0.0])
def test_sampled_centres_are_those_of_sums_in_float64(sign, floor):
    maps = torch.rand(40, 100, 90, generator=torch.Generator().manual_seed(0)) ** 8
    u = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    flat = maps.flatten(1).double()
    flat = flat.amax(1, keepdim=True) - flat if sign == 'low' else flat
    sums = ((1 - floor) * flat / flat.sum(1, keepdim=True) + floor / flat.shape[1]).cumsum(1)
    want = torch.searchsorted(sums, (u * sums[:, -1])[:, None], right=True)[:, 0]
    fixed = (u * SHARE_UNIT).long()
    for given_u in (u, fixed):
        center = sample_center(maps, given_u, sign, floor)
        assert torch.equal(center[:, 0] * 90 + center[:, 1], want)


def test_argmax_low_is_the_minimum():
    maps = torch.arange(12.0).view(1, 3, 4)
    assert argmax_center(maps).tolist() == [[2, 3]]
    assert argmax_center(maps, 'low').tolist() == [[0, 0]]


def test_wrong_boxes_say_what_was_expected():
    with pytest.raises(ValueError, match=r'int64 \[B, 4\]'):
        box_lam(torch.zeros(2, 4), (4, 4))
    with pytest.raises(ValueError, match='clip'):
        boxes_at(torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2, dtype=torch.int64), (4, 4), 'wrap')
