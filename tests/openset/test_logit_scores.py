"""Scores of logits: by hand, by scipy, and where softmax saturates."""
from __future__ import annotations

import math

import embedded
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from scipy.stats import entropy

from gradmix_timm.openset.scores import base, fit_score
from gradmix_timm.openset.scores.logit import Gaps, unsaturated
from gradmix_timm.records import Embeddings


def of(logits):
    logits = torch.as_tensor(logits)
    return Embeddings(logits, logits, None, torch.zeros(len(logits), dtype=torch.int64), torch.arange(len(logits)))


def score(name, logits, **options):
    return fit_score(name, None, **options)(of(logits))


def test_by_hand():
    logits = [[math.log(2), 0., 0.]]  # probabilities 1/2, 1/4, 1/4
    logits = torch.tensor(logits, dtype=torch.float64)
    assert float(score('msp', logits)) == pytest.approx(.5)
    assert float(score('mls', logits)) == pytest.approx(math.log(2))
    assert float(score('energy', logits)) == pytest.approx(math.log(4))
    assert float(score('energy', logits, temperature=.5)) == pytest.approx(.5 * math.log(6))
    assert float(score('entropy', logits)) == pytest.approx(-1.5 * math.log(2))
    assert float(score('gen', logits, gamma=1.)) == pytest.approx(-(1 / 4 + 3 / 16 + 3 / 16))
    assert float(score('gen', logits, gamma=.5, top=2)) == pytest.approx(-(1 / 2 + math.sqrt(3) / 4))
    assert float(score('gen', logits)) == pytest.approx(-(.25 ** .1 + 2 * (3 / 16) ** .1))


@pytest.mark.parametrize('temperature', [.5, 1., 10.])
def test_against_scipy(temperature):
    logits = embedded.make(200).logits.double()
    z = logits.double().numpy() / temperature
    assert np.allclose(score('msp', logits, temperature=temperature), softmax(z, axis=1).max(1), rtol=0, atol=1e-9)
    assert np.allclose(score('energy', logits, temperature=temperature), temperature * logsumexp(z, axis=1), rtol=1e-13)
    assert np.allclose(score('entropy', logits), -entropy(softmax(logits.double().numpy(), axis=1), axis=1), atol=1e-12)


@pytest.mark.parametrize('name', ['msp', 'entropy', 'gen'])
def test_nothing_saturates(name):
    """A top logit 5 to 300 above the others: float32 softmax is 1 from 17 on, float64 from 37 on."""
    gap = torch.linspace(5, 300, 2000)
    logits = torch.stack([gap, torch.zeros(2000), torch.full((2000,), -1.)], 1)
    found = score(name, logits)
    assert (found.diff() > 0).all()
    assert len(torch.unique(logits.softmax(1).amax(1))) < 200
    assert found[-1] < 1 if name == 'msp' else found[-1] < 0


def test_msp_stays_a_probability():
    found = score('msp', torch.tensor([[1e4, -1e4, 0.], [0., 0., 0.], [40., 39.999, -5.]]))
    assert ((found > 0) & (found < 1)).all()
    assert float(found[1]) == pytest.approx(1 / 3, abs=1e-15)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.floats(-60, 60, width=32), min_size=3, max_size=3), min_size=2, max_size=6))
def test_msp_ranks_as_the_odds_do(rows):
    logits = torch.tensor(rows, dtype=torch.float64)
    log_p, log_rest = Gaps.of(logits).log_odds_parts()
    odds, found = log_p - log_rest, unsaturated(log_p, log_rest)
    for a in range(len(rows)):
        for b in range(len(rows)):
            if odds[a] > odds[b] + 1e-4:
                assert found[a] > found[b]
            if odds[a] >= odds[b]:
                assert found[a] >= found[b] - 1e-15


def test_entropy_and_gen_keep_their_digits_near_certainty():
    rest = math.exp(-50)
    logits = torch.tensor([[50., 0.]], dtype=torch.float64)
    assert float(score('entropy', logits)) == pytest.approx(-51 * rest, rel=1e-12, abs=0)
    assert float(score('gen', logits)) == pytest.approx(-2 * rest ** .1, rel=1e-12, abs=0)


def test_the_two_logarithms_keep_their_digits():
    log_p, log_rest = Gaps.of(torch.tensor([[50., 0.], [0., 0.], [1., 0.]], dtype=torch.float64)).log_odds_parts()
    assert log_p.tolist() == pytest.approx([-math.exp(-50), -math.log(2), -math.log1p(math.exp(-1))], rel=1e-14)
    assert log_rest.tolist() == pytest.approx([-50, -math.log(2), -1 - math.log1p(math.exp(-1))], rel=1e-14)


def test_shifts_of_all_logits_matter_where_they_should():
    logits = embedded.make(50).logits.double()
    for name in ('msp', 'entropy', 'gen'):
        assert torch.allclose(score(name, logits), score(name, logits + 7), rtol=1e-9)
    for name in ('mls', 'energy'):
        assert torch.allclose(score(name, logits) + 7, score(name, logits + 7), rtol=1e-12)


def test_one_class_is_certain():
    assert score('msp', torch.tensor([[3.], [-1.]])).tolist() == [1., 1.]
    assert score('entropy', torch.tensor([[3.]])).tolist() == [0.]


def wild(count: int, classes: int) -> torch.Tensor:
    """Logits of every kind: usual, near certain, far beyond the range of exp, tied, all the same, shifted."""
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(count, classes, generator=generator)
    logits *= torch.tensor([1., 5., 30., 400., 1e4]).repeat(count)[:count, None]
    logits[::7, 1] = logits[::7].amax(1)
    logits[::11] = 2.5
    return logits + torch.tensor([0., 50., -2000.]).repeat(count)[:count, None]


@pytest.mark.parametrize('classes', [2, 3, 100])
@pytest.mark.parametrize(('name', 'options'), [
    ('msp', {}), ('msp', {'temperature': 4.}), ('energy', {}), ('energy', {'temperature': .1}), ('entropy', {}),
    ('gen', {}), ('gen', {'gamma': .5, 'top': 2})])
def test_blocks_and_float32_change_nothing(name, options, classes, monkeypatch):
    """Against float64 throughout, in one piece; rows in float32 by the precision of their logits."""
    single = wild(1000, classes)
    logits = single.double()
    fitted = fit_score(name, None, **options)
    whole = fitted(of(logits))
    torch.testing.assert_close(whole, fitted.of(logits), rtol=1e-12, atol=1e-14)
    usual = single.abs().amax(1) < 100  # a digit of float32 counts 1e-5 beyond
    torch.testing.assert_close(fitted(of(single))[usual], whole[usual], rtol=5e-6, atol=1e-6)
    monkeypatch.setattr(base, '_IN_CACHE', 70 * classes)  # blocks that do not divide the rows
    torch.testing.assert_close(fitted(of(logits)), whole, rtol=1e-14, atol=1e-15)
    before = single.clone()
    fitted(of(single)), fitted.of(single)
    assert torch.equal(single, before)
    z = logits.double().numpy() / options.get('temperature', 1.)
    slow = {'msp': lambda: softmax(z, axis=1).max(1), 'entropy': lambda: -entropy(softmax(z, axis=1), axis=1),
            'energy': lambda: options.get('temperature', 1.) * logsumexp(z, axis=1)}
    if name in slow:
        np.testing.assert_allclose(whole, slow[name](), rtol=1e-12, atol=1e-9 if name == 'msp' else 1e-12)


@pytest.mark.parametrize('classes', [2, 5])
@pytest.mark.parametrize(('name', 'options'), [
    ('msp', {}), ('msp', {'temperature': .1}), ('energy', {}), ('mls', {}), ('entropy', {}), ('gen', {}),
    ('gen', {'gamma': 1.}), ('gen', {'gamma': 1., 'top': 2})])
def test_certainty_is_ordered_beyond_the_range_of_exponentials(name, options, classes):
    gap = torch.tensor([36., 600., 665., 668., 700., 740., 745., 746., 760., 800., 801., 1000., 5000., 7500., 1e5])
    logits = torch.zeros(len(gap), classes)
    logits[:, 0] = gap
    found = score(name, logits, **options)
    assert (found.diff() > 0).all()
    assert found.isfinite().all()
    if name in ('entropy', 'gen'):
        assert found[-1] < 0
    if name == 'msp':
        assert found[-1] < 1


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('name', ['msp', 'mls', 'energy', 'entropy', 'gen'])
def test_values_that_are_not_finite_are_found_in_any_block(name, bad, monkeypatch):
    monkeypatch.setattr(base, '_IN_CACHE', 60)
    logits = torch.randn(100, 6)
    logits[87, 3] = bad
    with pytest.raises(ValueError, match=rf'{name}: logits of 1 of 100 samples are not finite \(index 87\)'):
        score(name, logits)
    huge = torch.full((4, 3), 3e38)  # whose sum overflows
    huge[:, 0] = 1e38
    assert score('mls', huge).isfinite().all()
