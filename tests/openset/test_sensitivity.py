"""AUROC over the values of a score's option."""
from __future__ import annotations

import inspect
from dataclasses import replace

import embedded
import numpy as np
import pytest
import torch

from gradmix_timm.openset.judge import EmbeddedSets, judge
from gradmix_timm.openset.metrics import auroc
from gradmix_timm.openset.scores import fit_score, list_scores, score_kind
from gradmix_timm.openset.sensitivity import LADDERS, sensitivity

CLASSES = ('ant', 'bee', 'cat', 'dog')


@pytest.fixture(scope='module')
def subjects():
    unknown = embedded.make(60, seed=2, unknown=True)
    return EmbeddedSets(
        train=embedded.make(80), known=embedded.make(60, seed=1), unknown=unknown,
        unknown_label=np.zeros(60, dtype=np.int64), known_classes=CLASSES, unknown_classes=('elk',),
        head=embedded.make_head())


def test_every_ladder_is_of_a_score_and_its_option():
    assert set(LADDERS) <= set(list_scores())
    for name, (option, values) in LADDERS.items():
        assert option in inspect.signature(score_kind(name)).parameters
        assert list(values) == sorted(set(values))


def test_points_are_the_figures_of_scores_fit_with_that_value(subjects):
    names = ['msp', 'energy', 'gen', 'mls', 'class-knn', 'mahalanobis', 'vim', 'react', 'ash', 'nnguide', 'nci', 'vra']
    judged = judge(subjects, names, draws=0).results['scores']
    told = []
    found = sensitivity(subjects, list(judged), told.append)
    assert told == [name for name in judged if name in LADDERS] == list(found)
    for name, part in found.items():
        areas = dict(part['points'])
        assert list(areas) == sorted(areas)
        assert areas[part['used']] == judged[name]['auroc']
        for value in [value for value in areas if value != part['used']][::2]:
            score = fit_score(name, subjects.train, head=subjects.head, **{part['option']: value})
            assert areas[value] == auroc(score(subjects.known), score(subjects.unknown))
        assert len({round(area, 6) for area in areas.values()}) > 1 or name in ('energy', 'gen')


def test_values_that_cannot_be_fit_are_left_out(subjects):
    found = sensitivity(subjects, ['knn', 'vim', 'mls'])
    assert list(found) == ['knn', 'vim']  # mls has no setting
    assert [value for value, _ in found['knn']['points']] == [1, 5, 10, 20, 50]  # of 80 samples
    assert [value for value, _ in found['vim']['points']] == [1, 2, 3, 6, 9]  # of 12 dimensions
    assert found['vim']['used'] == 6


def test_a_value_that_the_fit_took_from_the_data_is_shown(subjects):
    few = replace(subjects, train=embedded.take(subjects.train, torch.arange(20)))
    part = sensitivity(few, ['mahalanobis'])['mahalanobis']
    assert part['used'] == fit_score('mahalanobis', few.train).diagnostics['shrinkage']
    assert part['used'] in dict(part['points'])
    assert 1e-4 < part['used'] < 1
