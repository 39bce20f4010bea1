"""Intervals: DeLong and the bootstrap against slow formulas, coverage by simulation, and what shows no spread."""
from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from gradmix_timm.openset import metrics
from gradmix_timm.openset.metrics import bootstrap
from gradmix_timm.openset.metrics.bootstrap import FEW, rank_intervals
from gradmix_timm.openset.metrics.intervals import (
    delong_ci,
    delong_of_counts,
    draws_ci,
    holm,
    over_trials,
    paired_delong,
    paired_difference,
    rule_of_three,
    share_ci,
    top1,
    wilson_ci,
)
from gradmix_timm.openset.metrics.rank_counts import cells, count
from gradmix_timm.openset.metrics.summary import RANK_METRICS


def slow_placements(known, unknown):
    wins = (known[:, None] > unknown) + (known[:, None] == unknown) / 2
    return wins.mean(1), wins.mean(0)


@pytest.mark.parametrize('decimals', [9, 0])
def test_delong_equals_the_matrix_of_pairs(decimals):
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(1, 1, 70).round(decimals), rng.normal(0, 1, 40).round(decimals)
    v10, v01 = slow_placements(known, unknown)
    error = math.sqrt(v10.var(ddof=1) / 70 + v01.var(ddof=1) / 40)
    for level in (.95, .8):
        z = stats.norm.ppf((1 + level) / 2)
        low, high = delong_ci(known, unknown, level)
        assert (low, high) == pytest.approx((v10.mean() - z * error, v10.mean() + z * error), abs=1e-12)
    assert delong_ci(unknown, known) == pytest.approx(tuple(1 - end for end in delong_ci(known, unknown)[::-1]))


def test_delong_stays_in_range():
    low, high = delong_ci([3., 4., 5., 6., 2.], [1., 2.5, 0.])
    assert 0 < low < 14 / 15 < high < 1.


@pytest.mark.parametrize(('known', 'unknown', 'value'), [
    (np.arange(50, 150), np.arange(50), 1.),
    (np.arange(50), np.arange(50, 150), 0.),
    (np.ones(50), np.ones(80), .5),
    ([2.], [1., 3.], .5),
])
def test_no_spread_gives_an_interval_all_the_same(known, unknown, value):
    low, high = delong_ci(known, unknown)
    assert 0 <= low <= value <= high <= 1
    room = 1 - .05 ** (1 / min(len(known), len(unknown)))
    assert high - low == pytest.approx(room)
    wider = delong_ci(known, unknown, .99)
    assert wider[1] - wider[0] > high - low


def test_rule_of_three():
    assert rule_of_three(1., 100, .95) == (pytest.approx(.97, abs=1e-3), 1.)
    assert rule_of_three(0., 1000, .95) == (0., pytest.approx(3 / 1000, rel=.01))


def test_delong_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    truth = stats.norm.cdf(1 / math.sqrt(2))
    covered = 0
    for _ in range(400):
        low, high = delong_ci(rng.normal(1, 1, 60), rng.normal(0, 1, 60))
        covered += low <= truth <= high
    assert .92 < covered / 400 < .98


def test_bootstrap_agrees_with_delong():
    rng = np.random.default_rng(2)
    known, unknown = rng.normal(1, 1, 400), rng.normal(0, 1, 300)
    exact = delong_ci(known, unknown)
    low, high = rank_intervals({'auroc': RANK_METRICS['auroc']}, known, unknown, draws=1000)['auroc']
    assert high - low == pytest.approx(exact[1] - exact[0], rel=.12)
    assert low == pytest.approx(exact[0], abs=.006)


@pytest.mark.parametrize('decimals', [9, 0])
def test_resampled_counts_give_what_resampled_scores_give(decimals):
    rng = np.random.default_rng(3)
    known, unknown = rng.normal(1, 1, 120).round(decimals), rng.normal(0, 1, FEW).round(decimals)
    correct = rng.random(120) < .8
    fast = rank_intervals(RANK_METRICS, known, unknown, correct, draws=100, seed=9)
    again = np.random.default_rng(9)  # the same resamples, as samples: knowns of all draws, then unknowns
    picked = again.integers(0, 120, (100, 120), dtype=np.int32), again.integers(0, FEW, (100, FEW), dtype=np.int32)
    for name, interval in fast.items():
        metric = getattr(metrics, name)
        found = np.array([metric(known[k], *([correct[k]] if name == 'oscr' else []), unknown[u])
                          for k, u in zip(*picked, strict=True)])
        scale = {'aupr_in': 1., 'aupr_out': 1., 'detection_error': .5}.get(name)
        if scale is None:
            assert interval == pytest.approx(np.quantile(found, [.025, .975]), abs=1e-12), name
            continue
        value = metric(known, unknown)
        odds, middle = logit(found / scale), logit(value / scale)
        times = 2 if name == 'detection_error' else 1  # the threshold is chosen on the same samples
        centres = middle, middle - times * (odds.mean() - middle)
        ends = min(centres) - 1.959964 * odds.std(ddof=1), max(centres) + 1.959964 * odds.std(ddof=1)
        low, high = scale * expit(ends)
        if name == 'detection_error':  # chance, its largest value, is reached
            high = max(high, min(.5, value - 2 * min(found.mean() - value, 0) + 1.959964 * found.std(ddof=1)))
        assert interval == pytest.approx((low, high), abs=1e-6), name


@pytest.mark.parametrize(('n', 'm', 'gap', 'decimals'), [
    (2000, 2000, 1.5, 9), (2000, 2000, 4., 9), (3000, 150, 1., 9), (300, 3000, 2., 9), (2000, 2000, 1., 1)])
def test_counts_in_cells_give_the_interval_of_all_scores(n, m, gap, decimals, monkeypatch):
    """Each end within what another seed moves it: a quantile of 300 draws is .04 widths off."""
    rng = np.random.default_rng(n + m)
    known, unknown = rng.normal(gap, 1, n).round(decimals), rng.normal(0, 1, m).round(decimals)
    correct = rng.random(n) < .8
    every = rank_intervals(RANK_METRICS, known, unknown, correct, draws=300)
    monkeypatch.setattr(bootstrap, 'EVERY_SCORE', 0)
    cut = rank_intervals(RANK_METRICS, known, unknown, correct, draws=300, seed=1)
    for name, (low, high) in every.items():
        assert cut[name] == pytest.approx((low, high), abs=(.35 if 'fpr' in name else .15) * (high - low)), name
    ladder = count(known, unknown, correct)[1]
    assert delong_of_counts(ladder) == pytest.approx(delong_ci(known, unknown), abs=1e-12)
    starts = cells(ladder)
    sizes = np.add.reduceat(ladder.known, starts)
    assert starts[0] == 0
    assert sizes.max() <= max(n / 511 + 1, ladder.known.max())


def test_sets_up_to_the_stated_size_resample_every_score(monkeypatch):
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(1, 1, 150), rng.normal(0, 1, 150)
    seen = []
    monkeypatch.setattr(bootstrap, 'cells', lambda ladder: seen.append(1) or cells(ladder))
    for size, calls in ((300, 0), (299, 1)):
        monkeypatch.setattr(bootstrap, 'EVERY_SCORE', size)
        rank_intervals({'oscr': RANK_METRICS['auroc']}, known, unknown, draws=5)
        assert len(seen) == calls


def test_a_million_scores_a_side_have_their_intervals_in_seconds():
    """400,000 here; the full bootstrap takes a minute."""
    rng = np.random.default_rng(0)
    known, unknown, correct = rng.normal(1, 1, 200_000), rng.normal(0, 1, 200_000), rng.random(200_000) < .8
    began = time.process_time()
    figures = metrics.summarize(known, correct, unknown)
    assert time.process_time() - began < 5
    low, high = figures['oscr_ci']
    assert low < figures['oscr'] < high < low + .006


def test_intervals_are_seeded_and_the_counts_are_stratified():
    rng = np.random.default_rng(4)
    known, unknown, correct = rng.normal(1, 1, 50), rng.normal(0, 1, 30), rng.random(50) < .8
    seen = []

    def spy(ladder):
        seen.append((ladder.known.sum(-1), ladder.unknown.sum(-1), ladder.correct.sum(-1)))
        assert (ladder.correct <= ladder.known).all()
        return RANK_METRICS['oscr'](ladder)

    first = rank_intervals({'oscr': spy}, known, unknown, correct, draws=200, seed=7)
    assert first == rank_intervals({'oscr': spy}, known, unknown, correct, draws=200, seed=7)
    assert first != rank_intervals({'oscr': spy}, known, unknown, correct, draws=200, seed=8)
    assert (seen[0][0] == 50).all()
    assert (seen[0][1] == 30).all()
    assert np.ptp(seen[0][2]) > 0


def test_a_bootstrap_without_spread_is_widened():
    low, high = rank_intervals({'aupr': RANK_METRICS['aupr_in']}, np.arange(50., 90), np.arange(40.))['aupr']
    assert (low, high) == (pytest.approx(.05 ** (1 / 40)), 1.)


def test_bootstrap_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match='at least 1'):
        rank_intervals(RANK_METRICS, np.ones(1), np.zeros(1), draws=0)
    with pytest.raises(ValueError, match=r'give 0\.95'):
        delong_ci([1.], [0.], level=95)


@pytest.mark.parametrize(('hits', 'total'), [(0, 20), (20, 20), (7, 20), (180, 200)])
def test_wilson_equals_scipy(hits, total):
    expected = stats.binomtest(hits, total).proportion_ci(method='wilson')
    assert wilson_ci(hits, total) == pytest.approx((expected.low, expected.high), abs=1e-12)
    figures = top1(np.arange(total) < hits)
    assert figures['top1'] == hits / total
    assert figures['top1_ci'] == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_paired_delong_equals_the_matrix_and_is_tighter_than_two_intervals():
    rng = np.random.default_rng(5)
    known, unknown = rng.normal(1, 1, 80), rng.normal(0, 1, 60)
    other = known + rng.normal(0, .3, 80), unknown + rng.normal(0, .3, 60)
    got = paired_delong((known, other[0]), (unknown, other[1]))
    first, second = slow_placements(known, unknown), slow_placements(*other)
    d10, d01 = first[0] - second[0], first[1] - second[1]
    error = math.sqrt(d10.var(ddof=1) / 80 + d01.var(ddof=1) / 60)
    assert got.value == pytest.approx(metrics.auroc(known, unknown) - metrics.auroc(*other), abs=1e-12)
    assert got.error == pytest.approx(error, abs=1e-12)
    assert (got.low, got.high) == pytest.approx((got.value - 1.959964 * error, got.value + 1.959964 * error), abs=1e-6)
    assert got.p == pytest.approx(2 * stats.norm.sf(abs(got.value) / error), abs=1e-12)
    alone = delong_ci(known, unknown)
    assert got.high - got.low < .7 * (alone[1] - alone[0])
    swapped = paired_delong((other[0], known), (other[1], unknown))
    assert swapped.value == pytest.approx(-got.value)


def test_a_clear_difference_has_an_interval_on_one_side_of_zero():
    rng = np.random.default_rng(6)
    known, unknown = rng.normal(1, 1, 500), rng.normal(0, 1, 500)
    noise = known + rng.normal(0, 3, 500), unknown + rng.normal(0, 3, 500)
    assert paired_delong((known, noise[0]), (unknown, noise[1])).low > 0
    assert paired_delong((noise[0], known), (noise[1], unknown)).high < 0
    same = paired_delong((known, 2 * known), (unknown, 2 * unknown))
    assert (same.value, same.p) == (0, 1)
    assert same.low < 0 < same.high
    with pytest.raises(ValueError, match='same images'):
        paired_delong((known, known[:-1]), (unknown, unknown))


def test_trials_by_student():
    values = [.91, .93, .90, .95, .92]
    got = over_trials(values)
    expected = stats.t.interval(.95, 4, np.mean(values), stats.sem(values))
    assert (got.low, got.high) == pytest.approx(expected)
    assert (got.mean, got.sd, got.n) == (pytest.approx(.922), pytest.approx(np.std(values, ddof=1)), 5)
    other = [.90, .925, .90, .93, .91]
    difference, test = paired_difference(values, other), stats.ttest_rel(values, other)
    assert difference.p == pytest.approx(test.pvalue)
    assert (difference.low, difference.high) == pytest.approx(test.confidence_interval())
    assert math.isnan(over_trials([.9]).sd)
    assert over_trials([.9]).high == math.inf
    with pytest.raises(ValueError, match='paired_delong'):
        paired_difference([.9], [.8])


def test_holm_orders_and_caps():
    assert holm([.01, .02, .04, .9]) == pytest.approx([.04, .06, .08, .9])
    assert holm([.6, .5]) == [1., 1.]


@pytest.mark.parametrize(('first', 'second'), [
    ([.5, .75], [.25, .5]), ([.3, .2, .4, .6, .5], [.2, .1, .3, .5, .4]), ([.91] * 6, [.9] * 6)])
def test_differences_without_spread_say_nothing_for_sure(first, second):
    """Rounding, as of .3 - .2 beside .2 - .1, is no spread either."""
    found = paired_difference(first, second)
    assert (found.low, found.high, found.error, found.p) == (-math.inf, math.inf, 0, 1)
    same = paired_difference(first, first)
    assert same.p == 1
    assert same.low < 0 < same.high
    assert over_trials([.9, .9, .9]).high == math.inf


@pytest.mark.parametrize(('n', 'm'), [(1, 1), (1, 50), (2, 3), (5, 5), (7, 6), (100, 80)])
@pytest.mark.parametrize('level', [.8, .95, .99])
def test_paired_delong_without_spread_has_one_answer(n, m, level):
    """The interval leaves 0 out exactly where p is below one minus its level."""
    for first, second in ((np.ones(n), np.zeros(m)), (np.zeros(n), np.zeros(m)), (np.zeros(n), np.ones(m))):
        for other in ((np.ones(n), np.zeros(m)), (np.zeros(n), np.zeros(m))):
            found = paired_delong((first, other[0]), (second, other[1]), level)
            assert found.low <= found.value <= found.high
            assert (found.low > 0 or found.high < 0) == (found.p < 1 - level), (found, level)


def test_an_interval_without_spread_stays_in_the_range_of_its_figure():
    """All scores alike: the least error is a half, and no figure of its kind is larger."""
    same, right = np.zeros(30), np.ones(30, dtype=bool)
    metrics_of = {'detection_error': RANK_METRICS['detection_error']}
    low, high = rank_intervals(metrics_of, same, same, right, draws=50)['detection_error']
    assert low < high == .5


def test_shares_without_spread_leave_room_for_others():
    """Red before in the evaluation of shortcuts: 30 equal shares had an interval of width 0."""
    low, high = share_ci(np.full(30, .25))
    assert low < .25 < high < 1
    assert share_ci([1., 1.])[1] == 1
    assert share_ci([.3]) == (0., 1.)
    low, high = share_ci([.02, .2, .1])
    assert 0 < low < .32 / 3 < high < .6  # Student's began at 0


@pytest.mark.parametrize(('draws', 'images', 'of_images'), [(10, 40, 1.5), (10, 100, 4.), (3, 100, 1.)])
def test_an_accuracy_over_draws_is_one_over_test_images_too(draws, images, of_images):
    """Red before in few-shot probes: intervals of the draws alone held the truth in 45 to 80% of cases."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        odds = rng.normal(0, of_images, (1, images)) + rng.normal(0, .2, (draws, 1))  # symmetric: the truth is a half
        low, high = draws_ci(rng.random((draws, images)) < 1 / (1 + np.exp(-odds)))
        held += low <= .5 <= high
    assert held / 200 >= .92


def test_an_accuracy_over_draws_without_spread_leaves_room():
    low, high = draws_ci(np.ones((5, 20), dtype=bool))
    assert .8 < low < high == 1
    assert draws_ci(np.ones((5, 1), dtype=bool)) == (0., 1.)
