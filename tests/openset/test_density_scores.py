"""The Gaussian mixture, Residual and VRA against slow readings of their papers."""
from __future__ import annotations

import embedded
import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from gradmix_timm.openset.scores import density, fit_score

TRAIN, QUERIES, HEAD = embedded.make(400), embedded.make(40, seed=1), embedded.make_head()


@pytest.mark.parametrize('covariance', ['tied', 'full'])
def test_gmm_is_the_log_density_of_the_mixture(covariance):
    features, label = TRAIN.features.double().numpy(), TRAIN.label.numpy()
    means = [features[label == c].mean(0) for c in range(embedded.CLASSES)]
    spreads = [np.cov(features[label == c].T, bias=True) for c in range(embedded.CLASSES)]
    shares = np.bincount(label) / len(label)
    within = sum(share * spread for share, spread in zip(shares, spreads, strict=True))
    ridge = 1e-4 * np.trace(within) / embedded.WIDTH * np.eye(embedded.WIDTH)
    expected = np.log(sum(
        share * multivariate_normal(mean, (within if covariance == 'tied' else spread) + ridge).pdf(
            QUERIES.features.double().numpy()) for share, mean, spread in zip(shares, means, spreads, strict=True)))
    found = fit_score('gmm', TRAIN, covariance=covariance)(QUERIES)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_gmm_ranks_as_pytorch_oods_where_the_ridge_is_the_same():
    pytest.importorskip('pytorch_ood')
    classes = [TRAIN.features[TRAIN.label == c].double() for c in range(embedded.CLASSES)]
    variance = sum(len(own) * own.var(0, correction=0).mean() for own in classes) / len(TRAIN.label)
    found = fit_score('gmm', TRAIN, covariance='full', shrinkage=1e-6 / float(variance))(QUERIES)
    theirs = fit_score('pytorch-ood:GMM', TRAIN, HEAD)(QUERIES)
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-3)


def test_gmm_refuses_more_covariances_than_memory_holds(monkeypatch):
    monkeypatch.setattr(density, '_MOST', 1000)
    with pytest.raises(ValueError, match=r'keeps 4 matrices of 12 x 12, .*; gmm:covariance=tied keeps one'):
        fit_score('gmm:covariance=full', TRAIN)
    fit_score('gmm', TRAIN)


def test_residual_is_the_length_outside_the_main_subspace():
    weight, bias = HEAD.weight.double().numpy(), HEAD.bias.double().numpy()
    origin = -np.linalg.pinv(weight) @ bias
    moved = TRAIN.features.double().numpy() - origin
    axes = np.linalg.svd(moved)[2][5:]
    expected = -np.linalg.norm((QUERIES.features.double().numpy() - origin) @ axes.T, axis=1)
    np.testing.assert_allclose(fit_score('residual', TRAIN, HEAD, dim=5)(QUERIES), expected, rtol=1e-9)


def test_vim_is_the_energy_less_the_scaled_residual():
    vim, residual = (fit_score(name, TRAIN, HEAD) for name in ('vim', 'residual'))
    expected = QUERIES.logits.double().logsumexp(1) + vim.alpha * residual(QUERIES)
    torch.testing.assert_close(vim(QUERIES), expected, rtol=1e-12, atol=1e-12)
    assert vim.alpha == pytest.approx(float(TRAIN.logits.amax(1).double().mean() / -residual(TRAIN).mean()))


@pytest.mark.parametrize('options', [{}, {'below': 'clip'}, {'upper': 80., 'lower': 30., 'amplify': .5}])
def test_vra_removes_what_is_low_and_clips_what_is_high(options):
    values = TRAIN.features.numpy()
    low, high = (float(np.percentile(values, options.get(end, usual))) for end, usual in (('lower', 10), ('upper', 90)))
    floor = low if options.get('below') == 'clip' else 0.
    expected = []
    for row in QUERIES.features.double().tolist():
        shaped = [floor if f < low else high if f > high else f + options.get('amplify', 0.) for f in row]
        expected.append((HEAD.weight.double() @ torch.tensor(shaped).double() + HEAD.bias.double()).logsumexp(0))
    torch.testing.assert_close(fit_score('vra', TRAIN, HEAD, **options)(QUERIES), torch.stack(expected), rtol=1e-6,
                               atol=0)
