"""Scores at their defaults against OpenOOD's postprocessors, on the embeddings of three real nets."""
from __future__ import annotations

import numpy as np
import pytest
import reference_nets as nets
from scipy.stats import spearmanr

from gradmix_timm.openset.scores import fit_score

pytestmark = pytest.mark.filterwarnings('ignore:.*presumes features that are not negative')


def ours(net, name, **options):
    score = fit_score(name, nets.embeddings(net, 'train'), head=nets.head_of(net), **options)
    return np.concatenate([score(nets.embeddings(net, side)).numpy() for side in ('known', 'unknown')])


@pytest.mark.parametrize('net', nets.NETS)
@pytest.mark.parametrize(('name', 'postprocessor'), [
    ('msp', 'msp'), ('mls', 'mls'), ('energy', 'ebo'), ('gen', 'gen'), ('knn', 'knn'), ('rmahalanobis', 'rmds'),
    ('scale', 'scale'), ('dice', 'dice')])
def test_defaults_rank_as_openood_does(net, name, postprocessor):
    theirs = np.concatenate(nets.openood(net, postprocessor))
    assert spearmanr(ours(net, name), theirs).statistic >= 0.9999


@pytest.mark.parametrize('net', nets.NETS)
@pytest.mark.parametrize(('name', 'postprocessor'), [
    ('mahalanobis:shrinkage=1e-6', 'mds'), ('vim:dim=32', 'vim'), ('openmax:shift=1', 'openmax'),
    ('ash:variant=b', 'ash')])
def test_options_give_openoods_ranks_where_the_defaults_are_others(net, name, postprocessor):
    theirs = np.concatenate(nets.openood(net, postprocessor))
    assert spearmanr(ours(net, name), theirs).statistic >= 0.99999
