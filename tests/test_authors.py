"""The arrays of the authors' own functions, reproduced; every expected value comes from the file.

GRADMIX_AUTHORS_NPZ names another file of the same generator. No weights are needed: activations, gradients and
features are stored.
"""
from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from authors_reference import (
    authors_boxes,
    authors_cutmix_boxes,
    authors_lam,
    authors_mix,
    cutmix_views,
    joint_loss,
    mix_loss,
    paste_resized_whole,
    supconmix_loss,
)
from sklearn.metrics import roc_auc_score

from gradmix_timm.attribution.authors import authors_map
from gradmix_timm.objectives import JointConfig, ssl_loss, supcon_loss
from gradmix_timm.openset.scores.neighbours import class_neighbour_sums
from gradmix_timm.ops import argmax_center
from gradmix_timm.ops.authors import authors_sides
from gradmix_timm.records import Captured

pytestmark = pytest.mark.authors

PATH = Path(os.environ.get('GRADMIX_AUTHORS_NPZ') or Path(__file__).parent / 'data' / 'authors_seed0.npz')
with np.load(PATH) as _file:
    ARRAYS = {key: _file[key] for key in _file.files}

CAMS = sorted(key for key in ARRAYS if re.fullmatch(r'cam_fused_\d+', key))
# Features and temperature are told by the key's end; without one: the network's features at their T = 0.05.
LOSS_KEY = re.compile(r'loss_(?P<term>ssl|supcon|mix|supconmix|joint_g(?P<gamma>[\d.]+)_l(?P<weight>[\d.]+))'
                      r'(?P<spread>_spread)?(_T(?P<temperature>[\d.]+))?')
LOSSES = sorted(key for key in ARRAYS if LOSS_KEY.fullmatch(key))


def tensor(key: str) -> torch.Tensor:
    return torch.from_numpy(np.array(ARRAYS[key]))


def lam_of(key: str) -> torch.Tensor:
    """A drawn share as they hold it, in float32."""
    return tensor(key).float()


def captured(digits: str) -> list[Captured]:
    return [Captured(tensor(f'act_layer{n}'), tensor(f'grad_layer{n}'), torch.empty(0), f'layer{n}') for n in digits]


def fused(digits: str) -> torch.Tensor:
    return authors_map(captured(digits), tuple(ARRAYS['view1'].shape[2:]))


def test_the_file_holds_every_kind_of_array():
    assert CAMS
    assert {LOSS_KEY.fullmatch(key)['term'].split('_')[0] for key in LOSSES} == {
        'ssl', 'supcon', 'mix', 'supconmix', 'joint'}
    assert not [key for key in ARRAYS if key.startswith('loss_') and key not in LOSSES]


# ---- maps

@pytest.mark.parametrize('key', CAMS)
def test_fused_maps(key):
    # Bit-equal on one processor; on others a few last bits of a map of order one.
    found = fused(key.removeprefix('cam_fused_'))
    torch.testing.assert_close(found, tensor(key), rtol=0, atol=2e-6)


def at(maps: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    return maps[torch.arange(len(maps)), centers[:, 0], centers[:, 1]]


@pytest.mark.parametrize('key', CAMS)
def test_the_maximum_of_every_map_is_at_the_same_pixel(key):
    stored, found = tensor(key), argmax_center(fused(key.removeprefix('cam_fused_')))
    same = (found == argmax_center(stored)).all(1)
    # A resized map is level along its borders: there a last bit, which depends on the processor, picks the pixel.
    tied = at(stored, argmax_center(stored)) - at(stored, found) < 1e-6
    assert (same | tied).all()


# ---- the mix

def test_mixed_views_bit_for_bit():
    view1 = tensor('view1')
    maps, noise = tensor('cam_fused_23')[:len(view1)], tensor('fill_noise').nan_to_num(7.0)
    mixed, boxes, lam = authors_mix(view1, maps, lam_of('lam_drawn'), noise)
    assert torch.equal(boxes, tensor('boxes'))
    assert torch.equal(mixed, tensor('mixed1'))
    assert torch.equal(tensor('view2'), tensor('mixed2'))
    assert float(lam) == pytest.approx(float(ARRAYS['lam_out']), abs=1e-7)


def test_mixed_view_from_the_activations_on_bit_for_bit():
    view1, stored = tensor('view1'), tensor('cam_fused_23')[:len(ARRAYS['view1'])]
    maps = fused('23')[:len(view1)]
    same = (argmax_center(maps) == argmax_center(stored)).all(1)  # all but ties at a border, see above
    mixed, boxes, _ = authors_mix(view1, maps, lam_of('lam_drawn'), tensor('fill_noise').nan_to_num(7.0))
    assert same.any()
    assert torch.equal(boxes[same], tensor('boxes')[same])
    assert torch.equal(mixed[same], tensor('mixed1')[same])


def test_lam_of_every_image_gives_the_boxes_of_the_batch():
    view1 = tensor('view1')
    lam = lam_of('lam_drawn').expand(len(view1))
    _, boxes, share = authors_mix(view1, tensor('cam_fused_23')[:len(view1)], lam, tensor('fill_noise').nan_to_num())
    assert torch.equal(boxes, tensor('boxes'))
    np.testing.assert_allclose(share.numpy(), float(ARRAYS['lam_out']), rtol=0, atol=1e-7)


def test_nominal_area_and_drawn_lam():
    size = ARRAYS['view1'].shape[2:]
    for drawn, area, out in (('lam_drawn', 'box_area_nominal', 'lam_out'),
                             ('cutmix_lam_drawn', 'cutmix_area_nominal', 'cutmix_lam_out')):
        assert (int(authors_sides(lam_of(drawn), size).prod()) == ARRAYS[area]).all()
        assert float(authors_lam(lam_of(drawn), size)) == pytest.approx(float(ARRAYS[out]), abs=1e-7)


@pytest.mark.parametrize('case', range(len(ARRAYS['bbox_cases'])))
def test_box_cases(case):
    side, y, x, *box, area = ARRAYS['bbox_cases'][case].tolist()
    lam = torch.tensor(float(ARRAYS['bbox_lam'][case]), dtype=torch.float32)
    maps = torch.zeros(1, side, side)
    maps[0, y, x] = 1
    assert authors_boxes(argmax_center(maps), lam, (side, side)).tolist() == [box]
    assert int(authors_sides(lam, (side, side)).prod()) == area


def test_box_cases_of_one_size_as_a_batch():
    cases = ARRAYS['bbox_cases']
    for side in np.unique(cases[:, 0]).tolist():
        chosen = cases[:, 0] == side
        rows, lam = torch.from_numpy(cases[chosen]), torch.from_numpy(ARRAYS['bbox_lam'][chosen])
        assert torch.equal(authors_boxes(rows[:, 1:3], lam, (side, side)), rows[:, 3:7])


@pytest.mark.skipif('alt_paste_view1' not in ARRAYS, reason='the file has no re-enactment of the disabled donor paste')
def test_the_donor_paste_that_their_code_leaves_disabled():
    view1, view2, partner = tensor('view1'), tensor('view2'), tensor('perm_unused')
    rows, size = len(view1), tuple(view1.shape[2:])
    boxes = authors_boxes(argmax_center(tensor('cam_fused_23')), lam_of('lam_drawn'), size)
    assert torch.equal(torch.stack([boxes[:rows], boxes[rows:]], 1), tensor('alt_paste_boxes'))
    # Weights of the resize in float32, its sums in another order: 1e-5 of values of order one.
    torch.testing.assert_close(paste_resized_whole(view1, view2[partner], boxes[:rows]), tensor('alt_paste_view1'),
                               rtol=0, atol=1e-5)
    torch.testing.assert_close(paste_resized_whole(view2, view1[partner], boxes[rows:]), tensor('alt_paste_view2'),
                               rtol=0, atol=1e-5)


# ---- their CutMix baseline

def test_cutmix_views():
    mixed = cutmix_views(tensor('view1'), tensor('view2'), tensor('cutmix_perm'), tensor('cutmix_boxes'))
    for found, key in zip(mixed, ('cutmix_view1', 'cutmix_view2'), strict=True):
        torch.testing.assert_close(found, tensor(key), rtol=0, atol=1e-5)


def test_cutmix_boxes_come_out_of_the_draw_that_names_their_place():
    size, boxes, lam = ARRAYS['view1'].shape[2:], tensor('cutmix_boxes'), lam_of('cutmix_lam_drawn')
    low, room = boxes[:, 0::2], torch.tensor(size) - (boxes[:, 1::2] - boxes[:, 0::2])
    assert (low < room).all()
    for part in (0.0, 0.5, 0.999):
        assert torch.equal(authors_cutmix_boxes((low + part) / room.double(), lam, size), boxes)


# ---- losses

def loss_arguments(key: str) -> tuple[re.Match, torch.Tensor, torch.Tensor, torch.Tensor, float]:
    parts = LOSS_KEY.fullmatch(key)
    kind = 'spread' if parts['spread'] else 'feat'
    clean, mixed = (tensor(f'{kind}_{which}').requires_grad_() for which in ('clean', 'mixed'))
    return parts, clean, mixed, tensor('labels'), float(parts['temperature'] or 0.05)


def compute(key: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    parts, clean, mixed, labels, temperature = loss_arguments(key)
    if parts['gamma']:
        config = JointConfig(gamma=float(parts['gamma']), ssl_weight=float(parts['weight']), temperature=temperature,
                             authors_offset=True)
        return joint_loss(clean, mixed, labels, float(ARRAYS['lam_out']), config), clean, mixed
    call = {'ssl': lambda: ssl_loss(clean, temperature),
            'supcon': lambda: supcon_loss(clean, labels, temperature),
            'mix': lambda: mix_loss(clean, mixed, temperature, authors_offset=True),
            'supconmix': lambda: supconmix_loss(clean, mixed, labels, temperature, authors_offset=True)}
    return call[parts['term']](), clean, mixed


# Values reach 50, where float32 has steps of 4e-6: hence one step of relative freedom.
@pytest.mark.parametrize('key', LOSSES)
def test_loss_values(key):
    torch.testing.assert_close(compute(key)[0], tensor(key), rtol=1e-7, atol=1e-5)


@pytest.mark.parametrize('key', LOSSES)
def test_loss_gradients(key):
    loss, clean, mixed = compute(key)
    grads = torch.autograd.grad(loss, (clean, mixed), allow_unused=True)
    for grad, which in zip(grads, ('clean', 'mixed'), strict=True):
        stored = f'd{key}_d{which}'
        assert (grad is not None) == (stored in ARRAYS)
        if grad is not None:
            torch.testing.assert_close(grad, tensor(stored), rtol=0, atol=1e-5)


# ---- class-wise neighbours

@pytest.fixture(scope='module')
def shares() -> torch.Tensor:
    """Of the sums, as the authors divide, sums of zero or less included."""
    classes, labels = np.unique(ARRAYS['knn_train_labels'], return_inverse=True)
    sums = class_neighbour_sums(tensor('knn_train'), torch.from_numpy(labels), tensor('knn_test'), 3, len(classes))
    return sums / sums.sum(1, keepdim=True)


def test_neighbour_shares_scores_and_predictions(shares):
    # Sums near zero make shares large: relative to the largest.
    np.testing.assert_allclose(shares.numpy(), ARRAYS['knn_logits'], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(shares.amax(1).numpy(), ARRAYS['knn_score'], rtol=1e-12, atol=1e-12)
    assert (shares.argmax(1).numpy() == ARRAYS['knn_pred']).all()


def test_neighbour_accuracy_and_auroc(shares):
    classes, labels = np.unique(ARRAYS['knn_train_labels']), ARRAYS['knn_test_labels']
    known = np.isin(labels, classes)
    correct = classes[shares.argmax(1).numpy()] == labels
    assert correct[known].mean() == pytest.approx(float(ARRAYS['knn_acc']))
    assert roc_auc_score(known, shares.amax(1).numpy()) == pytest.approx(float(ARRAYS['knn_auroc']), abs=1e-12)
