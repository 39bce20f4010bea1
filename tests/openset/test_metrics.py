"""Rank metrics equal scikit-learn and the definitions by double loops, ties and infinities included."""
from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from gradmix_timm.openset import metrics

RANKED = (metrics.auroc, metrics.aupr_in, metrics.aupr_out, metrics.fpr_at_95_known, metrics.fpr_at_95_unknown,
          metrics.detection_error)
# Few distinct values, so that ties abound, and the infinities among them.
levels = st.sampled_from([-np.inf, -2., -0.5, 0., -0., 1e-300, 0.25, 3., 1e300, np.inf])
side = st.lists(levels, min_size=1, max_size=30)
quick = settings(max_examples=100, deadline=None)


def drawn(seed: int, decimals: int | None = None, sizes=(173, 91)):
    """Overlapping normals; rounded to a few decimals they tie."""
    rng = np.random.default_rng(seed)
    known, unknown = rng.normal(1, 1, sizes[0]), rng.normal(0, 1.3, sizes[1])
    if decimals is not None:
        known, unknown = known.round(decimals), unknown.round(decimals)
    return known, rng.random(sizes[0]) < 0.8, unknown


def slow(known, correct, unknown) -> dict[str, float]:
    """Every metric from its definition, by loops over samples and thresholds."""
    known, unknown, correct = list(map(float, known)), list(map(float, unknown)), list(correct)
    n, m = len(known), len(unknown)
    seen = sorted({*known, *unknown})
    pairs = [(c, (k > u) + (k == u) / 2) for (k, c), u in itertools.product(zip(known, correct, strict=True), unknown)]
    kept_known = {t: sum(k >= t for k in known) for t in seen}
    kept_unknown = {t: sum(u >= t for u in unknown) for t in seen}
    cut_known = {t: sum(k <= t for k in known) for t in seen}
    cut_unknown = {t: sum(u <= t for u in unknown) for t in seen}
    at_known = max(t for t in seen if kept_known[t] / n >= .95)
    at_unknown = min(t for t in seen if cut_unknown[t] / m >= .95)
    out = {
        'auroc': sum(win for _, win in pairs) / (n * m),
        'oscr': sum(c * win for c, win in pairs) / (n * m),
        'fpr_at_95_known': kept_unknown[at_known] / m,
        'fpr_at_95_unknown': cut_known[at_unknown] / n,
        'detection_error': min(((n - kept_known[t]) / n + kept_unknown[t] / m) / 2 for t in seen),
        'tie_share': sum(win == 0.5 for _, win in pairs) / (n * m),
        'aupr_in': sum((known.count(t) / n) * kept_known[t] / (kept_known[t] + kept_unknown[t]) for t in seen),
        'aupr_out': sum((unknown.count(t) / m) * cut_unknown[t] / (cut_known[t] + cut_unknown[t]) for t in seen),
    }
    for fpr in (0., 0.01, 0.1, 0.29, 0.5, 1.):
        # Any real threshold: just above each observed score, or accepting everything.
        bars = [t for t in [-np.inf, *seen] if sum(u > t for u in unknown) / m <= fpr]
        right = [sum(c for k, c in zip(known, correct, strict=True) if k > t) for t in bars]
        out[f'ccr@{fpr}'] = max([*right, sum(correct) if fpr == 1 else 0]) / n
    return out


def fast(known, correct, unknown) -> dict[str, float]:
    out = {name: getattr(metrics, name)(known, unknown) for name in (
        'auroc', 'fpr_at_95_known', 'fpr_at_95_unknown', 'detection_error', 'tie_share', 'aupr_in', 'aupr_out')}
    out['oscr'] = metrics.oscr(known, correct, unknown)
    return out | {f'ccr@{fpr}': metrics.ccr_at_fpr(known, correct, unknown, fpr) for fpr in (0., .01, .1, .29, .5, 1.)}


@quick
@given(side, side, st.data())
def test_every_metric_equals_its_definition(known, unknown, data):
    correct = data.draw(st.lists(st.booleans(), min_size=len(known), max_size=len(known)))
    expected = slow(known, correct, unknown)
    got = fast(known, correct, unknown)
    assert got == {name: pytest.approx(value, abs=1e-12) for name, value in expected.items()}


@pytest.mark.parametrize('decimals', [None, 1, 0])
@pytest.mark.parametrize('sizes', [(173, 91), (20, 400), (1, 7), (7, 1)])
def test_areas_equal_scikit_learn(decimals, sizes):
    known, _, unknown = drawn(0, decimals, sizes)
    score, positive = np.r_[known, unknown], np.r_[np.ones(len(known)), np.zeros(len(unknown))]
    assert metrics.auroc(known, unknown) == pytest.approx(roc_auc_score(positive, score), abs=1e-12)
    assert metrics.aupr_in(known, unknown) == pytest.approx(average_precision_score(positive, score), abs=1e-12)
    assert metrics.aupr_out(known, unknown) == pytest.approx(average_precision_score(1 - positive, -score), abs=1e-12)


def test_fpr_at_95_by_hand():
    known = np.arange(100.)                       # tau = 5 keeps 95 of 100
    assert metrics.fpr_at_95_known(known, [4.9, 5., 5.1, 200.]) == 0.75
    assert metrics.fpr_at_95_known(np.arange(19.), [0., 1.]) == 1.   # 18 of 19 would be 94.7%: keeps all, tau = 0
    unknown = np.arange(100.)                     # tau = 94 rejects 95 of 100
    assert metrics.fpr_at_95_unknown([93., 94., 94.5, 200.], unknown) == 0.5
    assert metrics.fpr_at_95_unknown(np.r_[np.full(3, 99.), 100.], np.r_[np.zeros(90), np.full(10, 99.)]) == 0.75


def test_the_two_fpr95_are_two_metrics():
    known, _, unknown = drawn(1)
    ours = metrics.fpr_at_95_known(known, unknown), metrics.fpr_at_95_unknown(known, unknown)
    assert ours[0] != ours[1]
    assert ours[1] == metrics.fpr_at_95_known(-unknown, -known)  # the sides and the direction change places


def test_rates_on_the_edge_are_not_lost_to_rounding():
    unknown = np.arange(100.)
    known = unknown + 0.5
    correct = np.ones(100, bool)
    for fpr in (0.07, 0.14, 0.28, 0.29, 0.55, 0.57, 0.58):  # 100 * 0.29 is 28.999... in floating point
        assert metrics.ccr_at_fpr(known, correct, unknown, fpr) == pytest.approx(fpr + 0.01)


@quick
@given(side, side)
def test_sides_change_places(known, unknown):
    mirrored = [-u for u in unknown], [-k for k in known]
    assert metrics.auroc(known, unknown) == pytest.approx(1 - metrics.auroc(unknown, known), abs=1e-12)
    assert metrics.auroc(known, unknown) == pytest.approx(metrics.auroc(*mirrored), abs=1e-12)
    assert metrics.aupr_in(known, unknown) == pytest.approx(metrics.aupr_out(*mirrored), abs=1e-12)
    assert metrics.detection_error(known, unknown) == pytest.approx(metrics.detection_error(*mirrored), abs=1e-12)


@quick
@given(side, side, st.randoms(use_true_random=False))
def test_order_of_samples_and_monotone_maps_change_nothing(known, unknown, random):
    correct = [random.random() < .7 for _ in known]
    before = fast(known, correct, unknown)
    values = sorted({*known, *unknown})
    steps = itertools.accumulate(.01 + random.random() for _ in values)
    image = dict(zip(values, steps, strict=True))
    moved = random.sample(range(len(known)), len(known))
    known, correct = [image[known[i]] for i in moved], [correct[i] for i in moved]
    unknown = [image[u] for u in random.sample(unknown, len(unknown))]
    assert fast(known, correct, unknown) == before


def test_lists_arrays_and_tensors_of_any_kind_agree():
    known, correct, unknown = drawn(3, 1)
    before = fast(known, correct, unknown)
    assert fast(known.tolist(), correct.tolist(), unknown.tolist()) == before
    tensors = torch.tensor(known, requires_grad=True), torch.tensor(correct), torch.tensor(unknown)
    assert fast(*tensors) == before
    half = torch.tensor(known).bfloat16(), torch.tensor(unknown).bfloat16()
    assert metrics.auroc(*half) == metrics.auroc(*(side.double() for side in half))
    assert metrics.auroc([3, 2], [True, False]) == 1.


def test_inputs_are_left_as_they_are():
    known, correct, unknown = drawn(4)
    copies = known.copy(), correct.copy(), unknown.copy()
    metrics.summarize(known, correct, unknown, draws=5)
    metrics.oscr(known, correct, unknown, legacy=True)
    assert all(np.array_equal(a, b) for a, b in zip((known, correct, unknown), copies, strict=True))


def test_constant_scores_give_the_value_of_a_tie():
    known, correct, unknown = [7.] * 6, [True, True, True, False, False, False], [7.] * 2
    assert fast(known, correct, unknown) == {
        'auroc': .5, 'aupr_in': .75, 'aupr_out': .25, 'fpr_at_95_known': 1., 'fpr_at_95_unknown': 1.,
        'detection_error': .5, 'tie_share': 1., 'oscr': .25,
        'ccr@0.0': 0., 'ccr@0.01': 0., 'ccr@0.1': 0., 'ccr@0.29': 0., 'ccr@0.5': 0., 'ccr@1.0': .5}
    assert metrics.summarize(known, None, unknown, draws=0)['degenerate']
    assert not metrics.summarize([7., 7.], None, [7., 8.], draws=0)['degenerate']


def test_perfect_and_inverted_scores():
    high, low, right = [5., 6., 7.], [1., 2.], [True] * 3
    perfect = fast(high, right, low)
    assert [perfect[name] for name in ('auroc', 'aupr_in', 'aupr_out', 'oscr', 'ccr@0.0')] == [1.] * 5
    assert [perfect[name] for name in ('fpr_at_95_known', 'fpr_at_95_unknown', 'detection_error')] == [0.] * 3
    inverted = fast(low, right[:2], high)
    assert [inverted[name] for name in ('auroc', 'oscr', 'fpr_at_95_known', 'detection_error')] == [0., 0., 1., .5]


def test_infinities_rank_and_are_counted():
    assert metrics.auroc([np.inf, 1.], [-np.inf, 0.]) == 1.
    assert metrics.auroc([np.inf], [np.inf]) == .5
    assert metrics.infinite_count([np.inf, 1.], [-np.inf]) == 2
    assert metrics.summarize([np.inf, 1.], [True, False], [-np.inf, 0.], draws=0)['infinite'] == 2


@pytest.mark.parametrize('metric', RANKED)
def test_nan_and_empty_sides_are_refused(metric):
    with pytest.raises(ValueError, match=r'known has 2 NaN of 4 scores, at position 1, 3'):
        metric([1., np.nan, 2., np.nan], [0.])
    with pytest.raises(ValueError, match=r'unknown has 1 NaN'):
        metric([0.], torch.tensor([np.nan]))
    with pytest.raises(ValueError, match='known is empty'):
        metric([], [0.])
    with pytest.raises(ValueError, match='unknown is empty'):
        metric([0.], [])
    with pytest.raises(ValueError, match='one-dimensional'):
        metric([[0.]], [0.])


def test_correctness_and_rates_are_checked():
    with pytest.raises(ValueError, match='each of the 2 knowns'):
        metrics.oscr([1., 2.], [True], [0.])
    with pytest.raises(ValueError, match='each of the 2 knowns'):
        metrics.oscr([1., 2.], [0, 2], [0.])
    with pytest.raises(ValueError, match=r'give 0\.1'):
        metrics.ccr_at_fpr([1.], [True], [0.], fpr=10)


def test_oscr_ends_at_closed_set_accuracy_and_never_exceeds_it():
    known, correct, unknown = drawn(5)
    assert metrics.oscr(known + 100, correct, unknown) == pytest.approx(correct.mean(), abs=1e-12)
    assert metrics.oscr(known, correct, unknown) < correct.mean()
    assert metrics.oscr(known, np.ones(len(known), bool), unknown) == metrics.auroc(known, unknown)


@pytest.mark.parametrize('decimals', [None, 1])
def test_curves_hold_the_metrics(decimals):
    known, correct, unknown = drawn(6, decimals)
    roc, openset = metrics.roc_curve(known, unknown, None), metrics.oscr_curve(known, correct, unknown, None)
    assert roc.area == pytest.approx(metrics.auroc(known, unknown), abs=1e-12)
    assert openset.area == pytest.approx(metrics.oscr(known, correct, unknown), abs=1e-12)
    assert (openset.x[0], openset.y[0], openset.x[-1]) == (0, 0, 1)
    assert openset.y[-1] == pytest.approx(correct.mean())
    for x, y, tau in zip(roc.x, roc.y, roc.threshold, strict=True):
        assert (x, y) == ((unknown >= tau).mean(), (known >= tau).mean())


def test_thinned_curves_stay_where_they_were():
    known, correct, unknown = drawn(7, sizes=(30000, 20000))
    for full, thin in (
            (metrics.roc_curve(known, unknown, None), metrics.roc_curve(known, unknown, 500)),
            (metrics.oscr_curve(known, correct, unknown, None), metrics.oscr_curve(known, correct, unknown, 500))):
        assert len(thin.x) < 1001 < len(full.x)
        assert set(zip(thin.x, thin.y, strict=True)) <= set(zip(full.x, full.y, strict=True))
        assert np.abs(np.interp(full.x, thin.x, thin.y) - full.y).max() < 2 * 2 / 500
        assert thin.area == pytest.approx(full.area, abs=1e-4)
    small = metrics.roc_curve([3., 2.5, 2.], [1., 0.])
    assert small.x.tolist() == [0, 0, 1]
    assert small.y.tolist() == [0, 1, 1]


def test_summary_has_the_keys_of_results_json():
    known, correct, unknown = drawn(8, 1)
    figures = metrics.summarize(known, correct, unknown, draws=50)
    plain = {'auroc', 'aupr_in', 'aupr_out', 'fpr_at_95_known', 'fpr_at_95_unknown', 'detection_error', 'oscr'}
    assert set(figures) == plain | {f'{name}_ci' for name in plain} | {
        'top1', 'ccr_at_fpr', 'tie_share', 'degenerate', 'infinite'}
    expected = fast(known, correct, unknown)
    assert {name: figures[name] for name in plain} == {name: expected[name] for name in plain}
    assert figures['ccr_at_fpr'] == {
        key: metrics.ccr_at_fpr(known, correct, unknown, float(key)) for key in ('0.001', '0.01', '0.1')}
    assert figures['top1'] == float(np.mean(correct)) >= figures['oscr']
    assert figures['tie_share'] == expected['tie_share'] > 0
    assert figures['degenerate'] is False
    for name in plain:
        low, high = figures[f'{name}_ci']
        assert 0 <= low <= figures[name] <= high <= 1
    assert metrics.summarize([1., 1.], [True, False], [1.], draws=5)['degenerate'] is True


def test_summary_without_correctness_leaves_out_what_needs_it():
    figures = metrics.summarize([3., 1.], None, [2., 0.], draws=5)
    assert not {'oscr', 'oscr_ci', 'ccr_at_fpr'} & set(figures)


def test_a_million_scores_take_no_quadratic_time():
    known, correct, unknown = drawn(9, sizes=(500_000, 500_000))
    assert 0 < metrics.oscr(known, correct, unknown) < metrics.auroc(known, unknown) < 1


@pytest.mark.slow
def test_importing_the_metrics_stays_light():
    code = ('import sys, gradmix_timm.openset.metrics;'
            'print([m for m in ("timm", "torchvision", "matplotlib", "sklearn", "gradmix_timm.mixers") '
            'if m in sys.modules])')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '[]\n'


def test_masked_values_are_refused_and_not_counted_in():
    """np.asarray drops the mask."""
    known, unknown = np.ma.masked_less([-1e9, 2., 3.], 0), [1., 2.5]
    for metric in (metrics.auroc, metrics.aupr_in, metrics.fpr_at_95_known):
        with pytest.raises(ValueError, match=r'1 of 3 values are masked.*compressed\(\)'):
            metric(known, unknown)
        assert metric(np.ma.masked_array([2., 3.]), unknown) == metric([2., 3.], unknown) == metric(
            known.compressed(), unknown)


@pytest.mark.parametrize('points', [1, -3])
def test_a_curve_has_two_points_at_least(points):
    with pytest.raises(ValueError, match=f'at least 2, got {points}'):
        metrics.roc_curve([1., 2.], [0., 3.], points)
