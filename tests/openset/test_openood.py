"""Scores at their defaults against OpenOOD's postprocessors, on the embeddings of three real nets."""
from __future__ import annotations

import numpy as np
import pytest
import reference_nets as nets
import torch
from scipy.stats import spearmanr

from gradmix_timm.openset.scores import fit_score

pytestmark = pytest.mark.filterwarnings('ignore:.*presumes features that are not negative')


def ours(net, name, fit_on='train', **options):
    score = fit_score(name, nets.embeddings(net, fit_on), head=nets.head_of(net), **options)
    return np.concatenate([score(nets.embeddings(net, side)).numpy() for side in ('known', 'unknown')])


@pytest.mark.parametrize('net', nets.NETS)
@pytest.mark.parametrize(('name', 'postprocessor'), [
    ('msp', 'msp'), ('mls', 'mls'), ('energy', 'ebo'), ('gen', 'gen'), ('knn', 'knn'), ('rmahalanobis', 'rmds'),
    ('scale', 'scale'), ('dice', 'dice'), ('she', 'she'), ('fdbd', 'fdbd'), ('nci', 'nci'), ('gradnorm', 'gradnorm'),
    ('relation', 'relation')])
def test_defaults_rank_as_openood_does(net, name, postprocessor):
    theirs = np.concatenate(nets.openood(net, postprocessor))
    assert spearmanr(ours(net, name), theirs).statistic >= 0.9999


@pytest.mark.parametrize('net', nets.NETS)
@pytest.mark.parametrize(('name', 'postprocessor'), [
    ('mahalanobis:shrinkage=1e-6', 'mds'), ('vim:dim=32', 'vim'), ('openmax:shift=1', 'openmax'),
    ('ash:variant=b', 'ash'), ('nnguide:k=100', 'nnguide')])
def test_options_give_openoods_ranks_where_the_defaults_are_others(net, name, postprocessor):
    theirs = np.concatenate(nets.openood(net, postprocessor))
    assert spearmanr(ours(net, name), theirs).statistic >= 0.99999


@pytest.mark.parametrize('net', nets.NETS)
@pytest.mark.parametrize(('name', 'postprocessor'), [
    ('react', 'react'), ('klm', 'klm'), ('vra:below=clip', 'vra'), ('residual:dim=32', 'residual')])
def test_scores_that_openood_fits_on_validation_images(net, name, postprocessor):
    theirs = np.concatenate(nets.openood(net, postprocessor))
    assert spearmanr(ours(net, name, fit_on='validation'), theirs).statistic >= 0.9999


@pytest.mark.parametrize('net', nets.NETS)
def test_the_fitted_temperature_is_the_optimum_that_openoods_optimiser_stops_short_of(net):
    """Its confidences are MSP at another temperature, whose likelihood on the images of the fit is lower."""
    validation = nets.embeddings(net, 'validation')
    own = fit_score('temperature', validation).diagnostics['temperature']
    queries = nets.embeddings(net, 'known')
    theirs = np.concatenate(nets.openood(net, 'temp_scaling'))

    def confidence(temperature):
        return float((queries.logits[0].double() / temperature).softmax(0).max())

    low, high = 0.05, 20.
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if confidence(middle) > theirs[0] else (low, middle)
    assert spearmanr(ours(net, f'msp:temperature={low}'), theirs).statistic >= 0.9999

    def likelihood(temperature):
        return float(-torch.nn.functional.cross_entropy(validation.logits.double() / temperature, validation.label))

    assert likelihood(own) > likelihood(low)
    assert likelihood(own) >= max(likelihood(own * 1.01), likelihood(own / 1.01))
