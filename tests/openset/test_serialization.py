"""A fitted score survives being turned into values and tensors, bit for bit, whatever it keeps."""
from __future__ import annotations

import json

import pytest
import torch
from embedded import make, make_head

from gradmix_timm.openset.scores import SCORES, Score, fit_score
from gradmix_timm.openset.scores.serialization import restore_score, score_state


@pytest.mark.parametrize('name', [name for name in SCORES if not SCORES[name].requires_model])
def test_every_registered_score_comes_back_bit_for_bit(name):
    score = fit_score(name, make(80), head=make_head())
    plain, tensors = score_state(score)
    again = restore_score(json.loads(json.dumps(plain, allow_nan=False)), tensors)
    new = make(30, seed=1)
    assert torch.equal(again(new), score(new))
    assert torch.equal(again.predict(new), score.predict(new))
    assert (again.name, again.options, again.reads) == (score.name, score.options, score.reads)
    assert json.dumps(again.diagnostics) == json.dumps(score.diagnostics)


def test_tensors_share_no_memory_with_the_score():
    score = fit_score('knn', make(80))
    _, tensors = score_state(score)
    assert tensors['samples'].data_ptr() != score.samples.data_ptr()


def test_a_width_other_than_the_fit_is_still_refused():
    score = restore_score(*score_state(fit_score('mahalanobis', make(80))))
    with pytest.raises(ValueError, match='12 wide, got 9'):
        score(make(5, width=9))


def test_infinite_numbers_are_kept():
    score = fit_score('mls', None)
    score.diagnostics['condition'] = float('inf')
    assert restore_score(*score_state(score)).diagnostics == {'condition': float('inf')}


@pytest.mark.parametrize(('state', 'words'), [
    ({}, 'score: name: got None'), ({'name': 'mlss'}, "did you mean 'mls'"),
    ({'name': 'mls', 'law': {'@part': 'Popen', 'fields': {}}}, "got 'Popen'"),
    ({'name': 'mls', 'law': {}}, 'expected one of @tensor'),
    ({'name': 'mls', 'samples': {'@tensor': 'samples', 'transposed': False}}, 'is missing')])
def test_a_state_that_is_no_score_is_refused(state, words):
    with pytest.raises(ValueError, match=words):
        restore_score(state, {})


def test_a_score_of_ones_own_asks_for_its_module(monkeypatch):
    class Mine(Score):
        def knownness(self, embeddings):
            return embeddings.logits.double().amax(1)

    monkeypatch.setattr(SCORES, '_entries', dict(SCORES._entries))
    SCORES.register('mine', 'as mls')(Mine)
    saved = score_state(fit_score('mine', None))
    del SCORES._entries['mine']
    with pytest.raises(ValueError, match=r"no score named 'mine': .*import the module that registers it"):
        restore_score(*saved)


def test_what_no_file_can_hold_is_refused():
    score = fit_score('mls', None)
    score.model = object()
    with pytest.raises(ValueError, match=r"model is a object.*score 'mls' cannot be kept in a file; make"):
        score_state(score)
