"""legacy=True gives what the code released with ARPL gives, re-derived here as it walks: one sample at a time."""
from __future__ import annotations

import numpy as np
import pytest

from gradmix_timm.openset import metrics


def trapezoid(y, x):
    return sum((x[i + 1] - x[i]) * (y[i] + y[i + 1]) / 2 for i in range(len(x) - 1))


def walk(known, unknown):
    """Samples left while the lowest goes first; among equals a known goes first."""
    known, unknown = sorted(known), sorted(unknown)
    tp, fp = [len(known)], [len(unknown)]
    k = u = 0
    while k < len(known) or u < len(unknown):
        if k == len(known) or (u < len(unknown) and unknown[u] < known[k]):
            u += 1
        else:
            k += 1
        tp.append(len(known) - k)
        fp.append(len(unknown) - u)
    return np.array(tp, float), np.array(fp, float)


def slow(known, unknown):
    tp, fp = walk(known, unknown)
    tpr, fpr = np.r_[1, tp / tp[0], 0], np.r_[1, fp / fp[0], 0]
    nearest = np.abs(tp / tp[0] - .95).argmin()
    kept, gone = tp + fp, tp[0] - tp + fp[0] - fp
    inside = np.r_[True, kept > 0, True]
    outside = np.r_[True, gone > 0, True]
    pin = np.r_[.5, tp / np.where(kept > 0, kept, -1), 0]
    pout = np.r_[0, (fp[0] - fp) / np.where(gone > 0, gone, -1), .5]
    return {'auroc': -trapezoid(1 - fpr, tpr),
            'fpr_at_95_known': fp[nearest] / fp[0],
            'aupr_in': -trapezoid(pin[inside], tpr[inside]),
            'aupr_out': trapezoid(pout[outside], (1 - fpr)[outside])}


def slow_oscr(known, correct, unknown):
    score = np.r_[known, unknown]
    n = len(score)
    order = np.argsort(score, kind='stable')
    right = np.r_[correct, np.zeros(len(unknown))][order]
    novel = np.r_[np.zeros(len(known)), np.ones(len(unknown))][order]
    ccr, fpr = [0.] * (n + 2), [0.] * (n + 2)
    for k in range(n - 1):
        ccr[k], fpr[k] = right[k + 1:].sum() / len(known), novel[k:].sum() / len(unknown)
    ccr[n + 1] = fpr[n + 1] = 1.
    points = sorted(zip(fpr, ccr, strict=True), reverse=True)
    return sum((points[j][0] - points[j + 1][0]) * (points[j][1] + points[j + 1][1]) / 2 for j in range(n + 1))


@pytest.mark.parametrize('decimals', [9, 1, 0])
@pytest.mark.parametrize('sizes', [(60, 35), (10, 5), (20, 40), (2, 1), (1, 1)])
@pytest.mark.parametrize('seed', [0, 1])
def test_legacy_figures_equal_the_walk(decimals, sizes, seed):
    rng = np.random.default_rng(seed)
    known, unknown = rng.normal(1, 1, sizes[0]).round(decimals), rng.normal(0, 1, sizes[1]).round(decimals)
    correct = rng.random(sizes[0]) < .8
    for name, expected in slow(known, unknown).items():
        assert getattr(metrics, name)(known, unknown, legacy=True) == pytest.approx(expected, abs=1e-12), name
    got = metrics.oscr(known, correct, unknown, legacy=True)
    assert got == pytest.approx(slow_oscr(known, correct, unknown), abs=1e-12)


def test_figures_that_betray_the_legacy_rules():
    high, low = np.arange(10, 20), np.arange(10)
    assert metrics.oscr(high, np.ones(10), low, legacy=True) == pytest.approx(.995)  # perfect, and yet
    assert metrics.oscr(high, np.ones(10), low) == 1
    same = np.ones(10)
    assert metrics.oscr(same, same, same, legacy=True) == 0
    assert metrics.auroc(same, same, legacy=True) == 0
    assert metrics.aupr_in(high, low[:5], legacy=True) == pytest.approx(.95)
    assert metrics.aupr_out(high, low[:5], legacy=True) == pytest.approx(.90)


def test_without_ties_the_legacy_auroc_is_the_auroc():
    rng = np.random.default_rng(2)
    known, unknown = rng.normal(size=300), rng.normal(size=200)
    assert metrics.auroc(known, unknown, legacy=True) == pytest.approx(metrics.auroc(known, unknown), abs=1e-12)
    coarse = known.round(), unknown.round()
    assert metrics.auroc(*coarse, legacy=True) < metrics.auroc(*coarse) - 0.05


@pytest.mark.parametrize(('sizes', 'off'), [((20, 10), .0075), ((2000, 1000), 7e-5)])
def test_the_legacy_oscr_is_low_by_about_one_position(sizes, off):
    rng = np.random.default_rng(3)
    gaps = []
    for _ in range(50):
        known, unknown = rng.normal(1, 1, sizes[0]), rng.normal(0, 1, sizes[1])
        correct = rng.random(sizes[0]) < .9
        gaps.append(metrics.oscr(known, correct, unknown) - metrics.oscr(known, correct, unknown, legacy=True))
    assert off / 3 < np.mean(gaps) < 3 * off
