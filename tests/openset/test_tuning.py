"""Options picked on validation images: the best of the grid by AUROC there, never by the test images."""
from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import reference_nets as nets
import torch

from gradmix_timm.openset import metrics
from gradmix_timm.openset.judge import EmbeddedSets, judge
from gradmix_timm.openset.presets import PRESETS
from gradmix_timm.openset.scores import fit_score, score_kind
from gradmix_timm.openset.scores.names import defaults_of
from gradmix_timm.openset.tuning import GRIDS, choose_options


@pytest.fixture(scope='module')
def sets():
    unknown = nets.embeddings('test_resnet', 'unknown')
    parts = {part: nets.embeddings('test_resnet', part) for part in ('train', 'known')}
    test = unknown.rows(slice(0, 150))
    return EmbeddedSets(**parts, unknown=test, held_out=nets.embeddings('test_resnet', 'validation'),
                        head=nets.head_of('test_resnet'), unknown_label=torch.zeros(150).long().numpy(),
                        known_classes=tuple('abcdef'), unknown_classes=('x',)), unknown.rows(slice(150, 250))


def test_the_best_of_the_grid_on_validation_images_is_used(sets):
    given, validation = sets
    found = choose_options(given, validation, ('mls', 'scale', 'ash:percentile=65', 'knn'))
    assert list(found) == ['scale', 'knn']  # mls has no grid, and what is typed stays
    areas = {}
    for percentile in GRIDS['scale']['percentile']:
        score = fit_score('scale', given.train, given.head, percentile=percentile)
        areas[score.name] = metrics.auroc(score(given.held_out), score(validation))
    assert found['scale']['tried'] == areas
    assert found['scale']['chosen'] == max(areas, key=areas.get)
    assert set(found['knn']['tried']) == {'knn:k=50', 'knn:k=100', 'knn:k=200', 'knn:k=500'}  # 1000 exceed the samples
    judged = judge(given, ('mls', 'scale'), draws=0, tuned={'scale': found['scale']['chosen']})
    assert list(judged.results['scores']) == ['mls', found['scale']['chosen']]


def test_test_images_take_no_part(sets):
    given, validation = sets
    names = ('scale', 'gen')
    other = replace(given, unknown=given.known, unknown_label=torch.zeros(len(given.known.label)).long().numpy())
    assert choose_options(given, validation, names) == choose_options(other, validation, names)


def test_a_presets_own_options_are_tuned(sets):
    given, validation = sets
    found = choose_options(given, validation, PRESETS['openood'].labels[:6], PRESETS['openood'])
    assert {'gen', 'knn:k=50'} <= set(found)


def test_grids_are_of_options_that_the_scores_have():
    for name, grid in GRIDS.items():
        assert set(grid) <= set(defaults_of(score_kind(name))), name
        for values in itertools.product(*grid.values()):
            score_kind(name)(**dict(zip(grid, values, strict=True)))
