"""What every registered score keeps to, and what is refused with a remedy."""
from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import replace

import embedded
import numpy as np
import pytest
import torch

from gradmix_timm.openset import metrics
from gradmix_timm.openset.scores import SCORES, Embeddings, Head, fit_score, list_scores

NAMES = [name for name in list_scores() if not SCORES[name].requires_model]
FITTED = [name for name in NAMES if SCORES[name].needs_train]
HEADED = [name for name in NAMES if SCORES[name].needs_head]


@pytest.fixture(scope='module')
def train():
    return embedded.make(240, projection=True)


@pytest.fixture(scope='module')
def fitted(train):
    return {name: fit_score(name, train, embedded.make_head()) for name in NAMES}


def close(a, b):
    """To the last digits of the arithmetic: relative to each value, or to the usual one where values cancel."""
    return torch.allclose(a, b, rtol=1e-12, atol=1e-13 * float(b.abs().median()))


def test_the_list():
    assert NAMES == ['msp', 'mls', 'energy', 'entropy', 'gen', 'klm', 'temperature', 'knn', 'knn-mean', 'class-knn',
                     'class-knn-share', 'nnguide', 'relation', 'mahalanobis', 'rmahalanobis', 'vim', 'residual', 'gmm',
                     'openmax', 'react', 'vra', 'ash', 'scale', 'dice', 'she', 'fdbd', 'nci', 'gradnorm']
    assert [name for name in list_scores() if name not in NAMES] == ['odin']
    assert all(line and '\n' not in line for line in list_scores().values())


@pytest.mark.parametrize('name', NAMES)
def test_known_scores_above_unknown(name, fitted):
    known, unknown = (fitted[name](embedded.make(300, 1, unknown, projection=True)) for unknown in (False, True))
    assert known.dtype == torch.float64
    assert known.shape == (300,)
    assert known.isfinite().all()
    # A share is no closeness: unknowns near nothing may have a high one, so the bar is low for all. These unknowns are
    # shorter than knowns in every direction, so that what lies outside of a subspace tells nothing.
    assert metrics.auroc(known, unknown) > (.4 if name == 'residual' else .6)


@pytest.mark.parametrize('name', NAMES)
def test_a_row_is_scored_the_same_alone_and_in_any_company(name, fitted):
    score, queries = fitted[name], embedded.make(1100, 2, projection=True)  # more than the chunks of some scores
    whole = score(queries)
    alone = torch.cat([score(embedded.take(queries, [row])) for row in range(0, 1100, 50)])
    assert close(alone, whole[::50])
    few = torch.cat([score(embedded.take(queries, slice(start, start + 77))) for start in range(0, 1100, 77)])
    assert close(few, whole)
    order = torch.randperm(1100, generator=torch.Generator().manual_seed(0))
    assert close(score(embedded.take(queries, order)), whole[order])


@pytest.mark.parametrize('name', NAMES)
def test_the_order_of_training_samples_changes_nothing(name, train, fitted):
    order = torch.randperm(len(train.label), generator=torch.Generator().manual_seed(0))
    again = fit_score(name, embedded.take(train, order), embedded.make_head())
    queries = embedded.make(50, 3, projection=True)
    assert torch.allclose(again(queries), fitted[name](queries), rtol=1e-9)


@pytest.mark.parametrize('name', NAMES)
def test_scores_pickle_and_leave_embeddings_as_they_are(name, train, fitted):
    before = [train.logits.clone(), train.features.clone(), train.projection.clone()]
    queries = embedded.make(20, 4, projection=True)
    copy = pickle.load(io.BytesIO(pickle.dumps(fitted[name])))
    assert torch.equal(copy(queries), fitted[name](queries))
    assert repr(copy) == repr(fitted[name])
    fit_score(name, train, embedded.make_head())(train)
    assert all(torch.equal(a, b) for a, b in zip(before, (train.logits, train.features, train.projection), strict=True))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('name', NAMES)
def test_embeddings_of_another_precision_score_as_their_own_values(name, dtype, train):
    """Rounded to the dtype and back to float32, they give the same but for the order of roundings."""
    def cast(part, to):
        names = ('logits', 'features', 'projection')
        return replace(part, **{key: getattr(part, key).to(dtype).to(to) for key in names})

    queries = embedded.make(60, 4, projection=True)
    found, expected = (fit_score(name, cast(train, to), embedded.make_head())(cast(queries, to))
                       for to in (dtype, torch.float32))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize('name', NAMES)
def test_no_rows_give_no_scores(name, fitted):
    assert fitted[name](embedded.take(embedded.make(4, projection=True), slice(0))).shape == (0,)


@pytest.mark.parametrize('name', NAMES)
def test_values_that_are_not_finite_are_named(name, train, fitted):
    queries = embedded.make(10, projection=True)
    for field in fitted[name].reads:
        rows = getattr(queries, field).clone()
        rows[2, 1], rows[7, 0] = float('nan'), float('inf')
        with pytest.raises(ValueError, match=rf'{name}: {field} of 2 of 10 samples .* \(index 1002, 1007\)'):
            fitted[name](replace(queries, **{field: rows}))
        if name in FITTED:
            rows = getattr(train, field).clone()
            rows[5, 1] = float('nan')
            with pytest.raises(ValueError, match=rf'{field} of 1 of 240 samples .* \(index 1005\)'):
                fit_score(name, replace(train, **{field: rows}), embedded.make_head())


@pytest.mark.parametrize('name', FITTED)
def test_fits_refuse_labels_out_of_range(name, train):
    for bad in (-1, embedded.CLASSES):
        label = train.label.clone()
        label[3] = bad
        with pytest.raises(ValueError, match=r'labels go from 0 to 3.*unknown samples \(-1\) take no part'):
            fit_score(name, replace(train, label=label), embedded.make_head())
    with pytest.raises(ValueError, match='pass their embeddings'):
        fit_score(name, None, embedded.make_head())


@pytest.mark.parametrize('name', ['mahalanobis', 'rmahalanobis', 'class-knn', 'class-knn-share', 'openmax', 'gmm'])
def test_a_class_that_is_missing_from_the_fit_is_named(name, train):
    with pytest.raises(ValueError, match='class 2'):
        fit_score(name, embedded.take(train, train.label != 2))
    one = torch.cat([(train.label != 2).nonzero()[:, 0], (train.label == 2).nonzero()[:1, 0]])
    with pytest.raises(ValueError, match='class 2'):
        fit_score(name, embedded.take(train, one))


@pytest.mark.parametrize('name', HEADED)
def test_the_head_is_asked_for_and_checked(name, train):
    with pytest.raises(ValueError, match=rf"'{name}' needs the classifier: pass head=Head"):
        fit_score(name, train)
    head = embedded.make_head()
    with pytest.raises(ValueError, match='not the head that made them'):
        fit_score(name, train, Head(head.weight + 0.1, head.bias))
    with pytest.raises(ValueError, match=r'the head is \[4, 11\]'):
        fit_score(name, train, Head(head.weight[:, 1:], head.bias))
    noisy = replace(train, logits=train.logits.bfloat16().float())  # an evaluation in half precision is no other head
    fit_score(name, noisy, head)


def test_embeddings_are_tensors_of_one_length():
    whole = {'logits': torch.zeros(3, 2), 'features': torch.zeros(3, 4), 'projection': None,
             'label': torch.zeros(3, dtype=torch.int64), 'index': torch.arange(3)}
    with pytest.raises(TypeError, match=r'features of Embeddings is ndarray; expected a tensor, torch\.as_tensor'):
        Embeddings(**{**whole, 'features': np.zeros((3, 4))})
    with pytest.raises(ValueError, match='Embeddings of 3 logits and 2 rows of label; expected one of each an image'):
        Embeddings(**{**whole, 'label': torch.zeros(2, dtype=torch.int64)})


def test_head_shapes():
    with pytest.raises(ValueError, match='zeros where there is none'):
        Head(torch.zeros(3, 4), torch.zeros(4))


def test_unknown_names_and_options_get_the_nearest(train):
    with pytest.raises(ValueError, match="did you mean 'mahalanobis'"):
        fit_score('mahalanobi', train)
    with pytest.raises(ValueError, match="did you mean 'temperature'"):
        fit_score('energy', train, temprature=2.)
    with pytest.raises(ValueError, match='it takes none'):
        fit_score('mls', train, k=2)


@pytest.mark.parametrize(('name', 'options'), [
    ('energy', {'temperature': 0.}), ('gen', {'gamma': 0.}), ('gen', {'top': 0}), ('knn', {'k': 0}),
    ('knn', {'k': 2.5}), ('knn', {'k': 241}), ('class-knn', {'k': 0}), ('class-knn', {'k': 100}),
    ('mahalanobis', {'shrinkage': -1.}), ('vim', {'dim': 12}), ('vim', {'dim': 0}), ('openmax', {'tailsize': 1}),
    ('openmax', {'alpha': 0}), ('she', {'metric': 'manhattan'}), ('fdbd', {'normalizer': 'l1'}),
    ('nci', {'alpha': -1.}), ('gradnorm', {'temperature': 0.}), ('react', {'percentile': 100.}),
    ('dice', {'percentile': 0.9}), ('vra', {'upper': 100.}), ('vra', {'lower': 0.1}), ('vra', {'lower': 95.}),
    ('vra', {'below': 'mean'}), ('vra', {'amplify': float('nan')}), ('residual', {'dim': 12}), ('nnguide', {'k': 241}),
    ('nnguide', {'share': 0.}), ('relation', {'power': 0.}), ('relation', {'threshold': 1.}),
    ('odin', {'temperature': 0.}), ('odin', {'epsilon': -1.}), ('gmm', {'covariance': 'diagonal'}),
    ('gmm', {'shrinkage': -1.})])
def test_options_out_of_range_are_refused(name, options, train):
    with pytest.raises(ValueError, match='|'.join(options)):
        fit_score(name, train, embedded.make_head(), **options)


@pytest.mark.parametrize('name', FITTED)
def test_another_width_is_another_model(name, fitted):
    if fitted[name].reads == ('logits',):
        queries = replace(embedded.make(5), logits=torch.zeros(5, 7))
    else:
        queries = replace(embedded.make(5), features=torch.zeros(5, 3), projection=torch.zeros(5, 3))
    with pytest.raises(ValueError, match='take both from the same model'):
        fitted[name](queries)


def test_class_neighbours_want_the_projection_they_were_fit_on(fitted):
    with pytest.raises(ValueError, match='fit on the output of a projection head'):
        fitted['class-knn'](embedded.make(5))


def test_each_score_says_what_it_predicts(fitted):
    queries = embedded.make(40, 5, projection=True)
    for name, score in fitted.items():
        same = torch.equal(score.predict(queries), queries.logits.argmax(1))
        assert same is not name.startswith('class-knn')
    sums = fitted['class-knn']
    assert (sums.predict(queries) == queries.label).double().mean() > .5


@pytest.mark.parametrize('name', ['react', 'vra', 'ash', 'scale', 'dice'])
def test_negative_features_are_warned_of(name, train):
    head = embedded.make_head()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fit_score(name, train, head)
    features = train.features - 1
    shifted = replace(train, features=features, logits=features @ head.weight.T + head.bias)
    with pytest.warns(UserWarning, match='may rank unknowns above knowns'):
        score = fit_score(name, shifted, head)
    assert score(shifted).isfinite().all()


def test_fits_say_how_sound_they_are(fitted):
    for name in ('mahalanobis', 'rmahalanobis'):
        assert fitted[name].diagnostics['rank'] == embedded.WIDTH
        assert 1 < fitted[name].diagnostics['condition'] < 1e5
    assert fitted['vim'].diagnostics['dim'] == 6
    assert np.isfinite(fitted['vim'].diagnostics['origin_norm'])
    assert fitted['knn'].options == {'k': 50}
    assert fit_score('knn', embedded.make(30)).options == {'k': 30}
    assert fitted['class-knn'].diagnostics['reads'] == 'projection'
    assert fit_score('class-knn', embedded.make(30)).diagnostics['reads'] == 'features'
    assert len(fitted['openmax'].diagnostics['shape']) == embedded.CLASSES


@pytest.mark.parametrize('name', ['msp', 'knn', 'vim'])
def test_queries_that_memory_does_not_take_are_halved(name, fitted, monkeypatch, caplog):
    score, queries = fitted[name], embedded.make(21, 6, projection=True)
    whole, answer, sizes = score(queries), type(score).knownness, []

    def narrow(self, embeddings):
        sizes.append(len(embeddings.label))
        if sizes[-1] > 6:
            raise torch.OutOfMemoryError('out of memory')
        return answer(self, embeddings)

    monkeypatch.setattr(type(score), 'knownness', narrow)
    assert close(score(queries), whole)
    assert sizes == [21, 10, 5, 5, 11, 5, 6]
    assert [record.getMessage() for record in caplog.records] == [
        f'{name}: out of memory with 21 samples at once, going on with halves']
    monkeypatch.setattr(type(score), 'knownness', lambda self, embeddings: bytearray(2 ** 62))
    with pytest.raises(ValueError, match=f'{name}: no memory left to score a single sample'):
        score(queries)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('name', [name for name in SCORES if SCORES[name].needs_head])
def test_a_live_layer_serves_as_the_head(name):
    """Its parameters require gradients; nothing warns, nothing of the graph is kept."""
    train, fixed = embedded.make(240), embedded.make_head()
    layer = torch.nn.Linear(embedded.WIDTH, embedded.CLASSES)
    with torch.no_grad():
        layer.weight.copy_(fixed.weight)
        layer.bias.copy_(fixed.bias)
    expected = fit_score(name, train, fixed)(train)
    for head in (layer, Head(layer.weight, layer.bias)):
        found = fit_score(name, train, head)(train)
        assert not found.requires_grad
        assert torch.equal(found, expected)
    assert layer.weight.requires_grad
