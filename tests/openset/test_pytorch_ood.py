"""pytorch-ood's detectors under this package's names, and our scores against theirs where theirs are right."""
from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from embedded import CLASSES, make, make_head, take
from scipy.stats import spearmanr

from gradmix_timm.openset.judge import EmbeddedSets, check_names, judge, needs_train
from gradmix_timm.openset.scores import fit_score, list_scores
from gradmix_timm.openset.scores.serialization import restore_score, score_state

installed = pytest.mark.skipif('not __import__("importlib.util").util.find_spec("pytorch_ood")',
                               reason='needs the extra scores')
TRAIN, QUERY, HEAD = make(600), make(80, seed=1), make_head()


def ours(name, **options):
    return fit_score(name, TRAIN, head=HEAD, **options)(QUERY).numpy()


def theirs(name, **options):
    return fit_score(f'pytorch-ood:{name}', TRAIN, head=HEAD, **options)(QUERY).numpy()


def test_without_the_package_it_says_what_to_install(monkeypatch):
    from gradmix_timm.openset.scores import pytorch_ood
    pytorch_ood.library_score.cache_clear()
    monkeypatch.setitem(sys.modules, 'pytorch_ood.detector', None)
    monkeypatch.setitem(sys.modules, 'pytorch_ood', None)
    for call in (lambda: check_names(['pytorch-ood:KNN']), lambda: fit_score('pytorch-ood:KNN', TRAIN)):
        with pytest.raises(ValueError, match=r"pip install 'gradmix-timm\[scores\]'"):
            call()


def library_names():
    """The detectors that can be computed from embeddings."""
    from gradmix_timm.openset.scores.pytorch_ood import PREFIX, _detectors
    return [f'{PREFIX}{name}' for name in _detectors()]


@installed
def test_every_detector_of_embeddings_scores_them():
    """Finite, one value a row, the same for the rows alone as far as the library keeps that."""
    names = library_names()
    assert {f'pytorch-ood:{name}' for name in (
        'MaxSoftmax', 'EnergyBased', 'GEN', 'KNN', 'ViM', 'SHE', 'NNGuide', 'KLMatching', 'fDBD', 'VRA')} <= set(names)
    for name in names:
        before = [getattr(QUERY, field).clone() for field in ('logits', 'features')]
        score = fit_score(name, TRAIN, head=HEAD)
        found = score(QUERY)
        assert found.shape == (80,), name
        assert found.dtype == torch.float64, name
        assert found.isfinite().all(), name
        assert all(map(torch.equal, before, (QUERY.logits, QUERY.features))), name
        if name != 'pytorch-ood:OpenMax':  # which is not a function of the row
            torch.testing.assert_close(score(take(QUERY, slice(3, 9))), found[3:9], rtol=1e-4, atol=1e-5, msg=name)


@installed
def test_knowns_rank_above_unknowns():
    """The sign: the library scores outliers high, we score knowns high."""
    from gradmix_timm.openset.metrics import auroc
    far = make(80, seed=2, unknown=True)
    for name in ('MaxLogit', 'EnergyBased', 'KNN', 'SHE', 'Entropy'):
        score = fit_score(f'pytorch-ood:{name}', TRAIN, head=HEAD)
        assert auroc(score(QUERY), score(far)) > 0.7, name


@installed
@pytest.mark.parametrize(('mine', 'options', 'library', 'settings'), [
    ('msp', {}, 'MaxSoftmax', {}), ('msp', {'temperature': 2.}, 'MaxSoftmax', {'t': 2.}), ('mls', {}, 'MaxLogit', {}),
    ('energy', {}, 'EnergyBased', {}), ('energy', {'temperature': 3.}, 'EnergyBased', {'t': 3.}),
    ('entropy', {}, 'Entropy', {}), ('knn', {'k': 7}, 'KNN', {'k': 7}),
    ('vim', {'dim': 5}, 'ViM', {'d': 5}), ('react', {'percentile': 80.}, 'ReAct', {'percentile': 0.8}),
    ('dice', {'percentile': 50.}, 'DICE', {'p': 0.5}), ('scale', {'percentile': 50.}, 'SCALE', {'percentile': 0.5}),
    ('ash', {'percentile': 50.}, 'ASH', {'percentile': 0.5})])
def test_ours_equal_theirs(mine, options, library, settings):
    """To float32, which the library computes in."""
    np.testing.assert_allclose(ours(mine, **options), theirs(library, **settings), rtol=2e-4, atol=2e-5)


@installed
def test_gen_is_theirs_where_float32_does_not_saturate():
    """They take the mean over the classes, we the sum; near certainty theirs is held up by an epsilon."""
    rows = QUERY.logits.softmax(1).amax(1).numpy() < 0.99
    assert rows.sum() > 20
    np.testing.assert_allclose(ours('gen', top=CLASSES)[rows] / CLASSES, theirs('GEN')[rows], rtol=2e-3)


@installed
def test_covariances_are_theirs_without_the_division():
    """They invert the sum, not the mean, of the outer products: same order, distances (N - C) times smaller."""
    mine, library = ours('mahalanobis', shrinkage=0.), theirs('Mahalanobis')
    np.testing.assert_allclose(mine / (600 - CLASSES) / 2, library, rtol=1e-3)
    # Their two sums are divided by neither N - C nor N - 1, so that the difference is weighed a little otherwise.
    assert spearmanr(ours('rmahalanobis', shrinkage=0.), theirs('RMD')).statistic > 0.999


@installed
def test_options_are_the_librarys_and_are_told():
    score = fit_score('pytorch-ood:ViM', TRAIN, head=HEAD)
    assert score.options == {'d': 6}
    assert fit_score('pytorch-ood:knn', TRAIN, k=3).options == {'k': 3, 'normalize': True}
    with pytest.raises(ValueError, match="no option 'kk': did you mean 'k'"):
        fit_score('pytorch-ood:KNN', TRAIN, kk=3)


@installed
@pytest.mark.parametrize(('name', 'words'), [
    ('pytorch-ood:KNNN', "did you mean 'KNN'"), ('pytorch-ood:ODIN', 'goes back to the model'),
    ('pytorch-ood:MCD', 'goes back to the model'), ('pytorch-ood:', 'no score')])
def test_names_that_cannot_be_served(name, words):
    with pytest.raises(ValueError, match=words):
        check_names([name])


@installed
def test_what_it_needs_is_asked_for():
    with pytest.raises(ValueError, match='needs the classifier'):
        fit_score('pytorch-ood:SHE', TRAIN)
    with pytest.raises(ValueError, match='is fit on training samples'):
        fit_score('pytorch-ood:KNN', None)
    assert needs_train(['mls', 'pytorch-ood:KNN'])
    assert not needs_train(['mls', 'pytorch-ood:Entropy'])


@installed
def test_what_a_file_can_hold_comes_back_bit_for_bit():
    """Detectors whose fit leaves tensors; those that keep objects of other packages are refused, with the remedy."""
    from gradmix_timm.openset.scores.pytorch_ood import PREFIX
    objects = {f'{PREFIX}{name}' for name in ('KLMatching', 'KNN', 'OpenMax')}
    for name in library_names():
        score = fit_score(name, TRAIN, head=HEAD)
        if name in objects:
            with pytest.raises(ValueError, match=f"score '{name}' cannot be kept in a file; make the classifier"):
                score_state(score)
            continue
        plain, tensors = score_state(score)
        again = restore_score(json.loads(json.dumps(plain, allow_nan=False)), tensors)
        assert torch.equal(again(QUERY), score(QUERY)), name
        assert (again.name, again.options) == (score.name, score.options)


@installed
def test_a_file_of_another_version_is_refused():
    plain, tensors = score_state(fit_score('pytorch-ood:MaxSoftmax', None))
    with pytest.raises(ValueError, match=r'fit by pytorch-ood 0\.0\.1 and .* pip install pytorch-ood==0\.0\.1'):
        restore_score(plain | {'library': '0.0.1'}, tensors)


@installed
def test_it_is_judged_with_ours_and_leaves_the_list_alone():
    before = list_scores()
    far = make(60, seed=2, unknown=True)
    subjects = EmbeddedSets(train=TRAIN, known=QUERY, unknown=far, unknown_label=np.zeros(60, np.int64),
                        known_classes=('a', 'b', 'c', 'd'), unknown_classes=('x',), head=HEAD)
    found = judge(subjects, ['energy', 'pytorch-ood:EnergyBased'], draws=0).results['scores']
    assert found['energy']['auroc'] == pytest.approx(found['pytorch-ood:EnergyBased']['auroc'], abs=1e-3)
    assert list_scores() == before
