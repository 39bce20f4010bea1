"""Rows as published tables have them: OpenOOD's evaluator on three nets, scikit-learn's curves, ARPL's code."""
from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import reference_nets as nets
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from gradmix_timm.evaluation.settings import EvaluationSettings
from gradmix_timm.openset import metrics
from gradmix_timm.openset.judge import EmbeddedSets, judge
from gradmix_timm.openset.metrics import openood
from gradmix_timm.openset.metrics.rank_counts import count
from gradmix_timm.openset.presets import PRESETS
from gradmix_timm.openset.reports.preset_table import preset_csv, preset_table
from gradmix_timm.openset.scores import parse_score
from gradmix_timm.openset.sensitivity import sensitivity

# Name of its postprocessor; the subspaces are as small as these nets' features ask.
POSTPROCESSORS = {
    'msp': 'msp', 'mls': 'mls', 'energy': 'ebo', 'gen': 'gen', 'knn': 'knn', 'mahalanobis': 'mds',
    'rmahalanobis': 'rmds', 'vim:dim=32': 'vim', 'residual:dim=32': 'residual', 'openmax': 'openmax', 'react': 'react',
    'ash': 'ash', 'scale': 'scale', 'dice': 'dice', 'klm': 'klm', 'she': 'she', 'nnguide:share=1': 'nnguide',
    'fdbd': 'fdbd', 'nci': 'nci', 'gradnorm': 'gradnorm', 'relation': 'relation', 'vra': 'vra'}
# Its CCR is of the classes that its reshaped logits say, ours of the classifier's.
OTHER_CLASSES = ('openmax', 'ash', 'dice', 'vra')


def sets_of(net, groups=None):
    parts = {part: nets.embeddings(net, part) for part in ('train', 'known', 'unknown')}
    count = len(parts['unknown'].label)
    return EmbeddedSets(**parts, held_out=nets.embeddings(net, 'validation'), head=nets.head_of(net),
                        unknown_label=np.arange(count) % 2, known_classes=tuple('abcdef'),
                        unknown_classes=('x', 'y'), groups=groups or {})


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:.*presumes features that are not negative')
@pytest.mark.parametrize('net', nets.NETS)
def test_rows_are_those_of_openoods_evaluator(net):
    """Float32 moves a few pairs: less than its two decimals show, of the covariances' scores .015 points at most."""
    preset = PRESETS['openood']
    found = judge(sets_of(net), preset.named(POSTPROCESSORS), draws=0, preset=preset).results['preset']
    assert found['columns'][:5] == ['FPR@95', 'AUROC', 'AUPR_IN', 'AUPR_OUT', 'ACC']
    for given, name in zip(POSTPROCESSORS, preset.named(POSTPROCESSORS), strict=True):
        ours = dict(zip(('fpr', 'auroc', 'aupr_in', 'aupr_out', 'accuracy', 'ccr_0.01', 'ccr_0.1'),
                        found['scores'][name]['all'], strict=True))
        theirs = nets.openood_figures(net, POSTPROCESSORS[given])
        base = parse_score(given)[0]
        rounding = 1.5e-4 if base in ('mahalanobis', 'rmahalanobis', 'vim', 'residual') else 5e-5
        for metric in ('fpr', 'auroc', 'aupr_in', 'aupr_out'):
            assert ours[metric] == pytest.approx(theirs[metric], abs=rounding), (name, metric)
        for metric in ('accuracy', 'ccr_0.01', 'ccr_0.1') if base not in OTHER_CLASSES else ():
            assert ours[metric] == pytest.approx(theirs[metric], abs=2.1 / 250 if rounding > 1e-4 else 1e-9), name


@pytest.mark.parametrize('decimals', [9, 1, 0])
def test_conventions_are_scikit_learns_curves(decimals):
    """The evaluator's few lines written out: the unknown positive, trapezoids, the first corner at 95%."""
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(1, 1, 90).round(decimals), rng.normal(0, 1, 60).round(decimals)
    correct = rng.random(90) < .8
    _, ladder = count(known, unknown, correct)
    conf, novel = np.r_[known, unknown], np.r_[np.zeros(90), np.ones(60)]
    fpr, tpr, _ = roc_curve(novel, -conf)
    assert openood.fpr_at_95(ladder) == fpr[np.argmax(tpr >= .95)]
    for got, label, score in ((openood.aupr_in(ladder), 1 - novel, conf), (openood.aupr_out(ladder), novel, -conf)):
        precision, recall, _ = precision_recall_curve(label, score)
        assert got == pytest.approx(auc(recall, precision), abs=1e-12)
    for rate in (.01, .1, 1.):
        bar = np.sort(unknown)[-int(np.ceil(rate * 60))]
        assert openood.ccr_at_fpr(ladder, rate) == ((known > bar) & correct).mean()


@pytest.mark.parametrize('value', [0., 1.])
def test_conventions_of_constant_and_of_perfect_scores(value):
    _, ladder = count(np.full(4, value), np.zeros(4), np.ones(4, bool))
    assert openood.aupr_in(ladder) == (1. if value else .75)  # average precision says 0.5
    assert openood.fpr_at_95(ladder) == 1 - value


def test_a_presets_options_stand_where_a_name_gives_no_other():
    preset = PRESETS['openood']
    assert preset.named(['ash', 'openmax:tailsize=5', 'knn']) == (
        'ash:variant=b', 'openmax:tailsize=5,shift=1', 'knn:k=50')
    assert EvaluationSettings(preset='openood', scores=('ash',)).scores == ('ash:variant=b',)
    with pytest.raises(ValueError, match="no preset named 'opnood': did you mean 'openood'"):
        EvaluationSettings(preset='opnood')


def test_what_openood_fits_on_validation_images_is_fit_on_held_out_ones():
    sets = sets_of('test_resnet')
    cuts = {name: judge(sets, ('react',), draws=0, preset=PRESETS[name]).results['fits']['react']['diagnostics']
            for name in ('openood', 'paper')}
    assert cuts['openood'] != cuts['paper']


def test_a_presets_own_scores_with_rows_by_group_and_their_means():
    judged = judge(sets_of('test_resnet', {'first': ('x',), 'second': ('y',)}), draws=0, preset=PRESETS['openood'])
    results = judged.results
    assert {*results['scores'], *results['not_served']} == set(PRESETS['openood'].labels)
    assert results['not_served']['residual:dim=512'].startswith('dim is ')  # and not 'residual: dim is'
    assert list(results['preset']['scores']['mls']) == ['all', 'first', 'second']
    results['means'] = {'near': {'data_sets': ['first', 'second'], 'n_unknown': 250, 'scores': {}}}
    rows = [row for row in csv.DictReader(io.StringIO(preset_csv(results))) if row['score'] == 'mls']
    assert [row['dataset'] for row in rows] == ['first', 'second', 'nearood']
    each = [results['preset']['scores']['mls'][name][1] for name in ('first', 'second')]
    assert rows[-1]['AUROC'] == f'{50 * sum(each):.2f}'
    assert '| mls nearood' in preset_table(results)


def test_the_papers_figures_are_those_of_arpls_code():
    judged = judge(sets_of('test_vit'), draws=0, preset=PRESETS['paper'])
    assert list(judged.results['scores']) == ['class-knn-share', 'msp', 'mls']
    known, unknown, correct = (judged.arrays[f'{part}/class-knn-share'] for part in ('known', 'unknown', 'correct'))
    expected = (judged.results['closed_set']['top1'], metrics.auroc(known, unknown, legacy=True),
                metrics.aupr_in(known, unknown, legacy=True), metrics.aupr_out(known, unknown, legacy=True),
                1 - metrics.fpr_at_95_known(known, unknown, legacy=True),
                metrics.oscr(known, correct, unknown, legacy=True))
    assert judged.results['preset']['scores']['class-knn-share']['all'] == list(expected)


def test_a_threshold_is_not_set_on_the_images_that_the_score_was_fit_on():
    sets = sets_of('test_resnet')
    assert sets.held_out is not None
    found = {name: judge(sets, ('react',), draws=0, preset=PRESETS[name]).results['threshold']
             for name in ('openood', 'paper')}
    assert not found['openood']['held_out']
    assert 'fit on the held-out images' in found['openood']['source']
    assert found['paper']['held_out']


def test_the_sensitivity_of_a_presets_score_begins_at_its_figure():
    sets = sets_of('test_resnet')
    preset = PRESETS['openood']
    figure = judge(sets, ('react',), draws=0, preset=preset).results['scores']['react']['auroc']
    found = sensitivity(sets, ('react:percentile=90',), preset=preset)['react:percentile=90']
    assert dict(found['points'])[90] == pytest.approx(figure)
