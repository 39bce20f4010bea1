"""Names of scores with options: read, written, refused, and the same on a command line and in Python."""
from __future__ import annotations

import embedded
import numpy as np
import pytest
import torch

from gradmix_timm.cli.openset.flags import join_options
from gradmix_timm.openset.judge import check_names
from gradmix_timm.openset.scores import SCORES, Score, fit_score, parse_score, score_kind, score_label
from gradmix_timm.openset.scores.names import defaults_of
from gradmix_timm.openset.scores.serialization import restore_score, score_state

TRAIN, QUERIES, HEAD = embedded.make(240), embedded.make(30, 1, unknown=True), embedded.make_head()


@pytest.mark.parametrize(('text', 'name', 'options'), [
    ('msp', 'msp', {}), ('knn:k=5', 'knn', {'k': 5}),
    ('ash:variant=b,percentile=65', 'ash', {'variant': 'b', 'percentile': 65}),
    ('openmax:shift=1,alpha=2', 'openmax', {'shift': 1, 'alpha': 2}),
    ('mahalanobis:shrinkage=1e-3,normalize=true', 'mahalanobis', {'shrinkage': 1e-3, 'normalize': True}),
    ('energy:T=2', 'energy', {'temperature': 2}), ('mahalanobis:shrinkage=none', 'mahalanobis', {'shrinkage': None}),
    ('knn: k = 5', 'knn', {'k': 5})])
def test_a_name_with_options_is_the_score_with_these_keywords(text, name, options):
    assert parse_score(text) == (name, options)
    one, other = fit_score(text, TRAIN, HEAD), fit_score(name, TRAIN, HEAD, **options)
    assert torch.equal(one(QUERIES), other(QUERIES))
    assert one.name == other.name == score_label(name, options)
    assert one.options == other.options


@pytest.mark.parametrize(('text', 'label'), [
    ('msp:temperature=1', 'msp'), ('msp:temperature=1.0', 'msp'), ('msp:temperature=0.5', 'msp:temperature=0.5'),
    ('ash:percentile=65,variant=b', 'ash:percentile=65,variant=b'),
    ('ash:variant=b,percentile=65', 'ash:percentile=65,variant=b'), ('ash:percentile=90', 'ash'),
    ('mahalanobis:normalize=true', 'mahalanobis:normalize=true'), ('mahalanobis:normalize=false', 'mahalanobis'),
    ('mahalanobis:shrinkage=1e-6', 'mahalanobis:shrinkage=1e-06')])
def test_a_row_is_named_by_what_differs_from_the_default(text, label):
    assert fit_score(text, TRAIN, HEAD).name == label
    assert check_names([text, label]) == (label,)
    assert parse_score(label)[0] == parse_score(text)[0]


@pytest.mark.parametrize(('text', 'words'), [
    ('knnn:k=5', "no score named 'knnn': did you mean 'knn'"),
    ('knn:kk=5', "score 'knn' has no option 'kk': did you mean 'k'"),
    ('mls:k=5', "score 'mls' has no option 'k': it takes none"), ('knn:', 'expected NAME:option=value'),
    ('knn:k', 'expected NAME:option=value'), ('knn:k=', 'expected NAME:option=value'),
    ('knn:k=1,k=2', 'each option once'), ('', 'no score named')])
def test_what_cannot_be_meant_names_the_nearest(text, words):
    for refuse in (parse_score, lambda name: fit_score(name, TRAIN), lambda name: check_names([name])):
        with pytest.raises(ValueError, match=words):
            refuse(text)


@pytest.mark.parametrize('text', [
    'msp:temperature=hot', 'msp:temperature=true', 'energy:temperature=0', 'gen:gamma=none', 'gen:top=3.5', 'knn:k=5.0',
    'class-knn:k=none', 'mahalanobis:normalize=maybe', 'mahalanobis:shrinkage=big', 'vim:dim=true', 'vim:dim=1.5',
    'openmax:tailsize=2.5', 'openmax:shift=x', 'react:percentile=ninety', 'react:percentile=true', 'relation:power=x',
    'nnguide:share=half', 'gmm:covariance=1', 'nci:alpha=x', 'odin:epsilon=small', 'fdbd:normalizer=3'])
def test_a_value_of_another_type_or_range_is_refused_with_the_name(text):
    name, option = text.partition('=')[0].split(':')
    for refuse in (parse_score, lambda name: fit_score(name, TRAIN, HEAD), lambda name: check_names([name])):
        with pytest.raises(ValueError, match=rf'{name}.*{option}|{option}.*got'):
            refuse(text)


def test_numpy_numbers_are_numbers():
    score = fit_score('knn', TRAIN, k=np.int64(7))
    assert (score.name, restore_score(*score_state(score)).options) == ('knn:k=7', {'k': 7})
    assert fit_score('energy', None, temperature=np.float32(2)).name == 'energy:temperature=2'


def test_commas_part_names_and_options():
    assert join_options(['msp', 'ash:variant=b', 'percentile=65', 'knn:k=5', 'mls']) == [
        'msp', 'ash:variant=b,percentile=65', 'knn:k=5', 'mls']
    assert join_options(['msp', 'k=5']) == ['msp', 'k=5']  # refused later, by its name


@pytest.mark.parametrize('name', list(SCORES))
def test_every_option_can_be_written(name):
    kind = score_kind(name)
    for option, default in defaults_of(kind).items():
        text = f'{name}:{option}={str(default).lower()}'
        assert parse_score(text) == (name, {option: default})
        assert score_label(*parse_score(text)) == name


def test_what_would_break_every_evaluation_is_no_score(monkeypatch):
    monkeypatch.setattr(SCORES, '_entries', dict(SCORES._entries))

    class Typo(Score):
        reads = ('logit',)

        def knownness(self, embeddings):
            return embeddings.logits.double().amax(1)

    for entry, words in ((type('Plain', (), {}), 'Plain: expected a class that derives from'), (len, 'len: expected'),
                         (type('Empty', (Score,), {}), r'has a method knownness\(self, embeddings\)'),
                         (Typo, r"Typo: reads=\('logit',\), expected a tuple of logits, features, projection")):
        with pytest.raises(TypeError, match=words):
            SCORES.register('mine', 'none')(entry)
    for name in ('s:13', 'a,b'):
        with pytest.raises(ValueError, match=r'a score name is a word without spaces or "[+]" or ":" or ",", got'):
            SCORES.register(name, 'none')
    assert 'mine' not in SCORES


def test_a_file_keeps_the_name():
    score = fit_score('knn:k=7', TRAIN)
    again = restore_score(*score_state(score))
    assert (again.name, again.options) == ('knn:k=7', {'k': 7})
    assert torch.equal(again(QUERIES), score(QUERIES))


@pytest.mark.parametrize('name', ['rankfeat', 'RankFeat', 'mds_ensemble', 'MDS-ensemble'])
def test_methods_that_embeddings_do_not_suffice_for_say_why(name):
    with pytest.raises(ValueError, match=r'the feature map before pooling|several layers'):
        parse_score(name)


def test_names_that_pytorch_ood_alone_has_say_so():
    pytest.importorskip('pytorch_ood')
    with pytest.raises(ValueError, match="no score named 'pnml': only through pytorch-ood:PNML"):
        parse_score('pnml')
    assert parse_score('pytorch-ood:KNN:k=3') == ('pytorch-ood:KNN', {'k': 3})
    assert fit_score('pytorch-ood:KNN:k=3', TRAIN).name == 'pytorch-ood:KNN:k=3'


@pytest.mark.parametrize('variant', ['s', 'b', 'p'])
def test_ash_equals_a_loop(variant):
    """The paper's algorithm 1: prune, then scale (S), set to one value (B), or leave (P)."""
    some = (QUERIES.features > 0).sum(1) >= 4  # which zeros count as large is up to the sorting
    rows, expected = QUERIES.features[some].double(), []
    for row in rows:
        kept = row.sort(descending=True).indices[:4]  # 12 features less 65% of them, rounded
        shaped = torch.zeros_like(row)
        shaped[kept] = row[kept]
        if variant == 's':
            shaped = shaped * (row.sum() / shaped.sum()).exp()
        if variant == 'b':
            shaped[kept] = row.sum() / 4
        expected.append((shaped @ HEAD.weight.double().T + HEAD.bias.double()).logsumexp(0))
    found = fit_score(f'ash:variant={variant},percentile=65', TRAIN, HEAD)(QUERIES)[some]
    torch.testing.assert_close(found, torch.stack(expected))
    with pytest.raises(ValueError, match=r's \(scaled\), b \(binary\) or p \(pruned\)'):
        fit_score('ash:variant=x', TRAIN, HEAD)
