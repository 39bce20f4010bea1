"""Contrastive losses against slow loops from the formula; precision, lone rows, gathered features."""
from __future__ import annotations

import math

import pytest
import pytorch_metric_learning.losses as published
import torch
import torch.nn.functional as F
from authors_reference import joint_loss, mix_loss, supconmix_loss

from gradmix_timm.objectives import JointConfig, ssl_loss, supcon_loss

LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 3])
SCALE = 0.05 / 0.07
LOSSES = {
    'ssl': lambda c, m, y, **kw: ssl_loss(c, **kw),
    'supcon': lambda c, m, y, **kw: supcon_loss(c, y, **kw),
    'mix': lambda c, m, y, **kw: mix_loss(c, m, **kw),
    'supconmix': lambda c, m, y, **kw: supconmix_loss(c, m, y, **kw),
}


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def data(batch: int = 7, views: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return unit(batch, views, 5), unit(batch, views, 5, seed=1), LABELS[:batch]


def slow(kind, clean, mixed, labels, temperature=0.05, base_temperature=0.07) -> float:
    """Equation by equation over slots (image, view), one number at a time; anchors without a positive left out."""
    slots = [(b, v) for b in range(clean.shape[0]) for v in range(clean.shape[1])]
    contrast = mixed if 'mix' in kind else clean
    terms = []
    for i in slots:
        denominator = sum(math.exp(float(clean[i] @ clean[k]) / temperature) for k in slots if k != i)
        if kind in ('ssl', 'mix'):
            positives = [j for j in slots if j != i and j[0] == i[0]]
        else:
            positives = [j for j in slots if j != i and labels[j[0]] == labels[i[0]]]
        if positives:
            terms.append(sum(float(clean[i] @ contrast[j]) / temperature - math.log(denominator) for j in positives)
                         / len(positives))
    return -temperature / base_temperature * sum(terms) / len(terms)


@pytest.mark.parametrize('kind', LOSSES)
@pytest.mark.parametrize(('views', 'temperature', 'base'), [(2, 0.05, 0.07), (2, 0.5, 1.0), (3, 0.2, 0.07)])
def test_losses_equal_slow_loops(kind, views, temperature, base):
    clean, mixed, labels = data(views=views)
    expected = slow(kind, clean, mixed, labels, temperature, base)
    found = LOSSES[kind](clean, mixed, labels, temperature=temperature, base_temperature=base)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('kind', LOSSES)
def test_gradients_equal_finite_differences(kind):
    clean, mixed, labels = data(batch=4)
    clean, mixed = clean.requires_grad_(), mixed.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda c, m: LOSSES[kind](c, m, labels, temperature=0.3), (clean, mixed), atol=1e-6)


def test_joint_loss_is_the_weighted_sum_of_its_terms():
    clean, mixed, labels = data()
    config = JointConfig(gamma=0.7, ssl_weight=1.2, temperature=0.1)
    terms = {kind: LOSSES[kind](clean, mixed, labels, temperature=0.1) for kind in LOSSES}
    expected = 0.7 * terms['supcon'] + 1.2 * (terms['ssl'] + 0.6 * terms['mix'])
    torch.testing.assert_close(joint_loss(clean, mixed, labels, 0.6, config), expected)
    torch.testing.assert_close(joint_loss(clean, mixed, labels, torch.tensor(0.6), config), expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(joint_loss(clean, None, labels, 0.6, config), 0.7 * terms['supcon'] + 1.2 * terms['ssl'])
    torch.testing.assert_close(
        joint_loss(clean, mixed, None, 0.6, JointConfig(gamma=0, temperature=0.1)), terms['ssl'] + 0.6 * terms['mix'])
    torch.testing.assert_close(
        joint_loss(clean, mixed, labels, 0.6, JointConfig(ssl_weight=0, temperature=0.1)), terms['supcon'])


def test_lam_of_every_image_weighs_its_own_anchors():
    clean, mixed, labels = data()
    lam, only = torch.rand(7, dtype=torch.float64), JointConfig(gamma=0)
    parts = [mix_loss(clean, mixed, rows=torch.tensor([b])) for b in range(7)]
    expected = ssl_loss(clean) + sum(share * part for share, part in zip(lam, parts, strict=True)) / 7
    torch.testing.assert_close(joint_loss(clean, mixed, labels, lam, only), expected)
    torch.testing.assert_close(joint_loss(clean, mixed, labels, torch.full((7,), 0.25), only),
                               joint_loss(clean, mixed, labels, 0.25, only))


@pytest.mark.parametrize('kind', ['mix', 'supconmix'])
def test_the_authors_offset_moves_the_value_alone(kind):
    clean, mixed, labels = data()
    clean, mixed = clean.requires_grad_(), mixed.requires_grad_()
    values = [LOSSES[kind](clean, mixed, labels, authors_offset=offset) for offset in (False, True)]
    # Unit rows: the largest similarity of the denominator is that to itself, 1 / T.
    highest = (clean.flatten(0, 1) @ mixed.flatten(0, 1).T).amax(1) / 0.05
    torch.testing.assert_close(values[1] - values[0], SCALE * (highest - 1 / 0.05).mean())
    grads = [torch.autograd.grad(value, (clean, mixed)) for value in values]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)


@pytest.mark.parametrize('kind', LOSSES)
def test_shares_of_the_anchors_average_to_the_whole_with_their_gradients(kind):
    """What several processes do with gathered features: each its own anchors, against everything."""
    clean, mixed, labels = data()
    clean, mixed, labels = clean[:6].requires_grad_(), mixed[:6].requires_grad_(), labels[:6]
    whole = LOSSES[kind](clean, mixed, labels)
    halves = [LOSSES[kind](clean, mixed, labels, rows=rows) for rows in torch.arange(6).view(2, 3)]
    torch.testing.assert_close(sum(halves) / 2, whole)
    torch.testing.assert_close(torch.autograd.grad(sum(halves) / 2, clean), torch.autograd.grad(whole, clean))


@pytest.mark.parametrize('kind', LOSSES)
def test_order_of_images_and_views_does_not_matter(kind):
    clean, mixed, labels = data()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(LOSSES[kind](clean[order].flip(1), mixed[order].flip(1), labels[order]),
                               LOSSES[kind](clean, mixed, labels))


@pytest.mark.parametrize('kind', LOSSES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_features_and_autocast_are_computed_in_float32(kind, dtype):
    clean, mixed, labels = data()
    clean, mixed = clean.to(dtype), mixed.to(dtype)
    with torch.autocast('cpu', torch.bfloat16):
        found = LOSSES[kind](clean, mixed, labels, temperature=0.01)
    assert found.dtype == torch.float32
    expected = slow(kind, clean.double(), mixed.double(), labels, temperature=0.01)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('kind', LOSSES)
@pytest.mark.parametrize('temperature', [1e-3, 0.05])
def test_opposite_and_equal_features_stay_finite(kind, temperature):
    row = unit(1, 1, 5, dtype=torch.float32).expand(6, 2, 5)
    for clean in (row.clone(), row * torch.tensor([1., -1.]).view(1, 2, 1)):
        clean = clean.requires_grad_()
        loss = LOSSES[kind](clean, clean.detach(), LABELS[:6], temperature=temperature)
        loss.backward()
        assert loss.isfinite()
        assert clean.grad.isfinite().all()


def test_an_anchor_without_a_positive_is_left_out_of_the_mean():
    clean, mixed, _ = data(batch=5, views=1)
    labels = torch.tensor([0, 0, 1, 1, 2])
    clean = clean.requires_grad_()
    for kind in ('supcon', 'supconmix'):
        loss = LOSSES[kind](clean, mixed, labels)
        assert float(loss.detach()) == pytest.approx(slow(kind, clean.detach(), mixed, labels), rel=1e-12)
        assert torch.autograd.grad(loss, clean)[0].isfinite().all()


@pytest.mark.parametrize('batch', [1, 3])
def test_no_positive_at_all_costs_nothing(batch):
    clean = unit(batch, 1, 5, dtype=torch.float32).requires_grad_()
    loss = supcon_loss(clean, torch.arange(batch))
    loss.backward()
    assert loss == 0
    assert (clean.grad == 0).all()


@pytest.mark.parametrize(('call', 'message'), [
    (lambda c, m, y: ssl_loss(c[:, :1]), 'two views or more'),
    (lambda c, m, y: mix_loss(c[:, :1], m[:, :1]), 'two views or more'),
    (lambda c, m, y: ssl_loss(c[:, 0]), r'float \[B, views, D\]'),
    (lambda c, m, y: ssl_loss(c[:0]), r'float \[B, views, D\]'),
    (lambda c, m, y: mix_loss(c, m[:3]), r'like the clean ones, \[7, 2, 5\], got \[3, 2, 5\]'),
    (lambda c, m, y: supcon_loss(c, y[:3]), r'labels int64 \[7\]'),
    (lambda c, m, y: supcon_loss(c, y.double()), r'labels int64 \[7\]'),
    (lambda c, m, y: ssl_loss(c, temperature=0), 'temperatures are above 0'),
    (lambda c, m, y: JointConfig(temperature=-1), 'temperatures are above 0'),
    (lambda c, m, y: JointConfig(gamma=0, ssl_weight=0), 'not both 0'),
    (lambda c, m, y: joint_loss(c, m, None), 'give labels or set gamma=0'),
])
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*data())


def test_the_unmixed_losses_are_those_of_pytorch_metric_learning():
    """The mixed ones have no counterpart: there mixed features are positives and never in the denominator."""
    clean, _, labels = data()
    slots, images = clean.flatten(0, 1), torch.arange(len(labels)).repeat_interleave(2)
    ours = supcon_loss(clean, labels, temperature=0.1, base_temperature=0.1)
    torch.testing.assert_close(ours, published.SupConLoss(0.1)(slots, labels.repeat_interleave(2)))
    ours = ssl_loss(clean, temperature=0.1, base_temperature=0.1)
    torch.testing.assert_close(ours, published.NTXentLoss(0.1)(slots, images))
