"""Groups of runs: means over class splits, pairs by trial and seed, Holm, and runs that do not belong together."""
from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from gradmix_timm.openset.comparison import compare_runs
from gradmix_timm.openset.metrics.intervals import holm, paired_delong
from gradmix_timm.openset.reports.comparison_page import render_comparison
from gradmix_timm.openset.reports.comparison_tables import (
    comparison_csv,
    comparison_latex,
    comparison_markdown,
    comparison_rows,
    grounds,
)
from gradmix_timm.openset.reports.figures import plot_differences
from gradmix_timm.openset.reports.tables import text_table
from gradmix_timm.openset.runs import Run, notes
from gradmix_timm.plots.figure import png


def make_run(group, trial, seed, auroc, split=None, **changes):
    split = split if split is not None else (frozenset({'a', f'k{trial}'}), frozenset({f'u{trial}'}))
    values = {('mls', 'auroc'): auroc, ('mls', 'fpr_at_95_known'): 1 - auroc, ('', 'top1'): 0.9,
              ('mls', 'ccr_at_fpr_0.1'): auroc / 2}
    return Run(**{'group': group, 'folder': Path(f'{group}-{trial}-{seed}'), 'protocol': ('toy', None), 'trial': trial,
                  'seed': seed, 'split': split, 'values': values, 'images': (10, 5, 'x', f'{trial}'), **changes})


def made(gaps, spread=0.02, seed=0):
    """Runs of 'ours' and 'base' whose AUROC differs by ``gaps`` [trials, seeds]."""
    rng = np.random.default_rng(seed)
    found = []
    for (trial, number), gap in np.ndenumerate(np.asarray(gaps, dtype=float)):
        level = 0.8 + spread * rng.normal()
        found += [make_run('ours', trial, number, level + gap), make_run('base', trial, number, level)]
    return found


GAPS = [[0.01, 0.03], [0.02, 0.03], [0.03, 0.00], [0.03, 0.01], [0.02, 0.021], [0.018, 0.022]]


def gap_of(comparison, metric='auroc', score='mls', group='ours'):
    return comparison['scores'][score][metric]['differences'][group]


# ---- figures

def test_paired_difference_is_students_over_class_splits():
    """Seeds are averaged within a trial first; SciPy's paired t-test on the trial means is the oracle."""
    runs = made(GAPS)
    found = gap_of(compare_runs(runs, paired=True))
    by_trial = {name: [np.mean([run.values['mls', 'auroc'] for run in runs if run.group == name and run.trial == trial])
                       for trial in range(6)] for name in ('ours', 'base')}
    oracle = stats.ttest_rel(by_trial['ours'], by_trial['base'])
    low, high = oracle.confidence_interval(0.95)
    assert found['value'] == pytest.approx(np.mean(GAPS))
    assert (found['low'], found['high'], found['p']) == pytest.approx((low, high, oracle.pvalue))
    assert (found['n'], found['n_pairs'], found['unit']) == (6, 12, 'class split')
    assert found['verdict'] == 'better'


def test_means_and_spreads_of_a_group():
    runs = made(GAPS)
    entry = compare_runs(runs, paired=True)['scores']['mls']['auroc']['groups']['base']
    values = np.array([[run.values['mls', 'auroc'] for run in runs if run.group == 'base' and run.trial == trial]
                       for trial in range(6)])
    means = values.mean(1)
    assert (entry['mean'], entry['sd'], entry['n']) == pytest.approx((means.mean(), means.std(ddof=1), 6))
    half = stats.t.ppf(0.975, 5) * means.std(ddof=1) / 6 ** .5
    assert (entry['low'], entry['high']) == pytest.approx((means.mean() - half, means.mean() + half))
    assert entry['seed_sd'] == pytest.approx(math.sqrt(values.var(1, ddof=1).mean()))


def test_lower_is_better_where_it_is():
    comparison = compare_runs(made(GAPS), paired=True)
    rates = gap_of(comparison, 'fpr_at_95_known')
    assert rates['value'] < 0
    assert rates['verdict'] == 'better'
    reverse = compare_runs(made(-np.array(GAPS)), paired=True)
    assert gap_of(reverse, 'fpr_at_95_known')['verdict'] == 'worse'
    assert gap_of(reverse)['verdict'] == 'worse'
    assert gap_of(compare_runs(made(np.array([[0.02], [-0.02], [0.01], [0.], [0.01]])), paired=True))['verdict'] == (
        'not distinguishable')


def test_trials_of_the_same_classes_count_once():
    """Trials 0 and 1 are one class set in another order."""
    same = (frozenset({'a', 'k0'}), frozenset({'u0'}))
    runs = [make_run(group, trial, 0, 0.8 + 0.01 * trial + gap * (1 + trial), same if trial < 2 else None)
            for group, gap in (('ours', 0.01), ('base', 0.)) for trial in range(4)]
    comparison = compare_runs(runs, paired=True)
    found = gap_of(comparison)
    assert (comparison['n_distinct'], found['n'], found['n_pairs']) == (3, 3, 4)
    oracle = stats.ttest_1samp([0.015, 0.03, 0.04], 0)
    assert (found['value'], found['p']) == pytest.approx((np.mean([0.015, 0.03, 0.04]), oracle.pvalue))
    assert '3 different class splits' in grounds(comparison)


def test_one_class_split_is_compared_over_runs_and_says_so():
    comparison = compare_runs(made([[0.01, 0.02, 0.03]]), paired=True)
    found = gap_of(comparison)
    assert (comparison['unit'], found['n'], comparison['n_distinct']) == ('run', 3, 1)
    assert found['p'] == pytest.approx(stats.ttest_1samp([0.01, 0.02, 0.03], 0).pvalue)
    assert 'hold for that split alone' in grounds(comparison)


def test_one_pair_is_compared_image_by_image():
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(1, 1, (2, 80)), rng.normal(0, 1, (2, 60))
    arrays = {group: {'known/mls': known[place], 'unknown/mls': unknown[place], 'known_index': np.arange(80),
                      'unknown_index': np.arange(60)} for place, group in enumerate(('ours', 'base'))}
    comparison = compare_runs(made([[0.02]]), paired=True, arrays_of=lambda run: arrays[run.group])
    oracle = paired_delong((known[0], known[1]), (unknown[0], unknown[1]))
    found = gap_of(comparison)
    assert (found['low'], found['high'], found['p'], found['n']) == (oracle.low, oracle.high, oracle.p, 140)
    assert comparison['unit'] == 'image'
    assert gap_of(comparison, 'fpr_at_95_known')['low'] is None
    assert '95% intervals of AUROC are over images' in grounds(comparison)
    arrays['base']['known_index'] = np.arange(80)[::-1]
    other = compare_runs(made([[0.02]]), paired=True, arrays_of=lambda run: arrays[run.group])
    assert gap_of(other)['low'] is None
    assert 'too few pairs (1)' in comparison_markdown(other)
    assert 'no intervals: those of AUROC over images need arrays.npz' in grounds(other)


def test_p_values_are_corrected_over_everything_that_gets_a_verdict():
    runs = made(GAPS) + [make_run('third', trial, seed, 0.8 + 0.003 * trial * seed)
                         for trial in range(6) for seed in range(2)]
    comparison = compare_runs(runs, 'base', paired=True)
    entries = [entry for part in (comparison['closed_set'], comparison['scores']['mls']) for both in part.values()
               for entry in both['differences'].values()]
    assert comparison['tests'] == len(entries) == 8
    assert [entry['p_holm'] for entry in entries] == pytest.approx(holm([entry['p'] for entry in entries]))
    asked = compare_runs(runs, 'base', paired=True, metrics=('auroc',))
    assert asked['tests'] == 4
    assert gap_of(asked)['p_holm'] < gap_of(comparison)['p_holm']
    assert gap_of(asked, 'fpr_at_95_known')['verdict'] is None
    assert 'not asked for' in comparison_markdown(asked)
    assert 'over all 4 differences' in comparison_markdown(asked)


def test_an_interval_that_leaves_zero_out_is_no_verdict_among_many():
    runs = made([[0.01], [0.02], [0.03], [0.012], [0.008]]) + [
        make_run('third', trial, 0, 0.8 + 0.01 * (-1) ** trial) for trial in range(5)]
    found = gap_of(compare_runs(runs, 'base', paired=True))
    assert found['low'] > 0
    assert found['p'] < 0.05 < found['p_holm']
    assert found['verdict'] == 'not distinguishable'


@pytest.mark.parametrize('trials', [2, 3, 4])
def test_fewer_than_five_pairs_make_no_verdict(trials):
    comparison = compare_runs(made(GAPS[:trials] if trials > 2 else [[0.020], [0.021]]), paired=True)
    verdicts = {entry['differences']['ours']['verdict'] for entry in comparison['scores']['mls'].values()}
    assert verdicts == {f'too few pairs ({trials})'}
    page = render_comparison(comparison, {})
    assert f'<b>ours</b> against (too few pairs ({trials})) base' in page
    assert 'is better' not in page


def test_no_spread_is_no_certainty():
    found = gap_of(compare_runs(made([[0.02]] * 5, spread=0.), paired=True))
    assert (found['low'], found['high'], found['p'], found['verdict']) == (None, None, 1., 'cannot say (no spread)')
    assert gap_of(compare_runs(made([[0.]] * 5), paired=True))['verdict'] == 'not distinguishable'


@pytest.mark.slow
@pytest.mark.parametrize('shared', [0., 0.8])
def test_where_nothing_differs_at_most_a_twentieth_of_comparisons_print_a_verdict(shared):
    """Five class splits, 17 scores, their AUROC and OSCR and the accuracy; scores of one net move together or not."""
    rng = np.random.default_rng(int(10 * shared))
    count, printed = 400, 0
    scores = [f's{number}' for number in range(17)]
    for _ in range(count):
        runs = []
        for group in ('ours', 'base'):
            for trial in range(5):
                net = rng.normal()
                values = {(score, metric): 0.8 + 0.02 * (shared ** .5 * net + (1 - shared) ** .5 * rng.normal())
                          for score in scores for metric in ('auroc', 'oscr')}
                runs.append(make_run(group, trial, 0, 0., values={**values, ('', 'top1'): 0.9 + 0.01 * net}))
        comparison = compare_runs(runs, paired=True)
        printed += any(word in comparison_markdown(comparison) for word in ('better', 'worse'))
    assert printed / count <= 0.05 + 2 * (0.05 * 0.95 / count) ** .5


def test_intervals_cover_a_true_difference():
    covered = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        found = gap_of(compare_runs(made(0.02 + 0.01 * rng.normal(size=(5, 1)), seed=seed), paired=True))
        covered.append(found['low'] <= 0.02 <= found['high'])
    assert 0.91 < np.mean(covered) < 0.985


def test_without_pairs_there_are_means_alone():
    runs = [*made(GAPS), make_run('third', 0, 9, 0.7)]
    comparison = compare_runs(runs)
    assert all(not entry['differences'] for entry in comparison['scores']['mls'].values())
    assert comparison['base'] is None
    assert comparison['scores']['mls']['auroc']['groups']['third']['sd'] is None
    assert '--paired' in grounds(comparison)


def test_means_over_different_things_say_so():
    mixed = compare_runs([make_run('a', 0, 0, .8), *(make_run('b', trial, 0, .7) for trial in range(3))])
    assert 'over class splits' in grounds(mixed)
    assert 'of a over runs of one split, so groups do not compare' in grounds(mixed)
    apart = compare_runs([make_run(group, trial, seed, .8) for trial, group in enumerate('ab') for seed in range(2)])
    assert 'one class split a group, and not of the same one' in grounds(apart)
    alone = compare_runs([make_run('a', 0, seed, .8) for seed in range(2)])
    assert 'so they hold for that split alone' in grounds(alone)


# ---- who is compared with whom

def test_the_order_of_runs_does_not_matter():
    runs = made(GAPS)
    shuffled = [runs[i] for i in np.random.default_rng(0).permutation(len(runs))]
    one, other = (compare_runs(part, 'base', paired=True) for part in (runs, shuffled))
    assert one['scores'] == other['scores']


@pytest.mark.parametrize(('names', 'expected'), [
    (('gradmix', 'cutmix'), 'cutmix'), (('none', 'gradmix', 'cutmix'), 'none')])
def test_the_base_is_none_or_the_last_named(names, expected):
    runs = [make_run(name, trial, 0, 0.8 + 0.01 * trial) for name in names for trial in range(2)]
    assert compare_runs(runs, paired=True)['base'] == expected
    assert compare_runs(runs, names[0], paired=True)['base'] == names[0]
    with pytest.raises(ValueError, match=r'--base cutmx: no such group'):
        compare_runs(runs, 'cutmx', paired=True)


def test_a_missing_partner_is_named_or_left_out_on_demand():
    runs = [*made(GAPS), make_run('ours', 7, 1, 0.99)]
    with pytest.raises(ValueError, match=r'base has no run of trial 7, seed 1, which ours has \(ours-7-1\).*--common'):
        compare_runs(runs, paired=True)
    comparison = compare_runs(runs, paired=True, common=True)
    assert comparison['left_out_runs'] == ['ours-7-1']
    assert gap_of(comparison) == gap_of(compare_runs(made(GAPS), paired=True))


def test_a_pair_shares_the_fold_whose_images_are_its_own():
    runs = [replace(run, fold=fold, images=(10, 5, fold, str(run.trial))) for fold in 'ab' for run in made(GAPS)]
    found = gap_of(compare_runs(runs, paired=True))
    assert (found['n'], found['n_pairs']) == (6, 24)
    with pytest.raises(ValueError, match=r'base has no run of trial 0, seed 0, fold b, which ours has'):
        compare_runs([run for run in runs if (run.group, *run.cell) != ('base', 0, 0, 'b')], paired=True)
    with pytest.raises(ValueError, match=r'different images'):
        compare_runs([*runs, make_run('ours', 0, 5, 0.9, fold='a', images=(10, 6, 'a', '0'))], paired=True)
    with pytest.raises(ValueError, match=r'two runs of ours for trial 0, seed 0, fold a'):
        compare_runs([*runs, replace(runs[0], folder=Path('again'))], paired=True)


def bad(**changes):
    trial = changes.pop('trial', 9)
    seed = changes.pop('seed', 0)
    return [*made(GAPS), make_run('ours', trial, seed, 0.9, **changes)]


@pytest.mark.parametrize(('runs', 'words'), [
    ([], 'no run to compare'),
    (bad(protocol=('other', None)), r'different protocols: toy in ours-0-0 and other in ours-9-0'),
    (bad(protocol=('toy', 'new')), 'toy, new'),
    ([*bad(facts={'pretraining': 'none'}), make_run('base', 9, 0, 0.8, facts={'pretraining': 'resnet18.a1_in1k'})],
     'ours-9-0 started from scratch and base-9-0 from resnet18.a1_in1k, which may have seen'),
    (bad(trial=0, seed=5, split=(frozenset({'a', 'x'}), frozenset({'u0'}))),
     r'runs of trial 0 with other classes: .*\(k0 is not in both'),
    (bad(trial=0, seed=5, images=(10, 6, 'x', '0')), 'different images'),
    ([*made(GAPS), make_run('ours', 0, 0, 0.9, name='other')],
     'two runs of ours for trial 0, seed 0.*leave one out, or --by mixer,folder'),
    ([*made(GAPS), make_run('ours', 0, 0, 0.9)], 'two runs of ours for trial 0, seed 0.*leave one out$'),
    ([*made(GAPS), make_run('ours', 0, 0, 0.9, options={'layers': -2})], '--by mixer,layers'),
    ([run for run in made(GAPS) if run.group == 'ours'], 'all 12 runs are of ours'),
    ([run for run in made(GAPS) if (run.group == 'ours') == (run.trial == 0)], 'no trial and seed that all groups'),
    ([run if run.group == 'ours' else make_run('base', run.trial, run.seed, 0.8, values={('msp', 'auroc'): 0.7})
      for run in made(GAPS)], 'no score that all runs have')])
def test_runs_that_do_not_belong_together_are_refused(runs, words):
    with pytest.raises(ValueError, match=words):
        compare_runs(runs, paired=True)


def test_scores_that_some_runs_lack_are_left_out_and_told():
    runs = made(GAPS)
    more = [make_run(run.group, run.trial, run.seed, 0.8, values={**run.values, ('vim', 'auroc'): 0.9})
            if run.trial == 0 else run for run in runs]
    comparison = compare_runs(more, paired=True)
    assert list(comparison['scores']) == ['mls']
    assert comparison['left_out'] == {'vim': 'not in 20 of 24 runs'}


def test_other_differences_among_runs_are_told():
    runs = [make_run('ours', 0, 0, 0.8, facts={'model': 'vit'}, options={'layers': '-1', 'seed': 1}),
            make_run('ours', 1, 0, 0.8, facts={'model': 'vit'}, options={'layers': '-2', 'seed': 2}),
            make_run('base', 0, 0, 0.8, facts={'model': 'resnet'}), make_run('base', 1, 0, 0.8, facts={'model': 'vit'})]
    told = notes(runs)
    assert told == ['the runs differ in model as well (ours: vit; base: resnet, vit)',
                    'the runs of ours differ in layers (-1, -2)']


def test_other_preprocessing_is_told_and_an_option_that_older_files_lack_is_not():
    runs = [make_run('ours', 0, 0, 0.8, facts={'preprocessing.crop_pct': 0.9}, options={'confidence': 0.0}),
            make_run('ours', 1, 0, 0.8, facts={'preprocessing.crop_pct': 0.9}, options={}),
            make_run('base', 0, 0, 0.8, facts={'preprocessing.crop_pct': 1.0})]
    assert notes(runs) == ['the runs differ in preprocessing.crop_pct as well (ours: 0.9; base: 1.0)']


def test_images_with_another_mark_are_told():
    from gradmix_timm.openset.runs import _judged_on
    marks = ('shortcut::side=5', 'cifar10')
    facts = [_judged_on({'manifest': {'data': {'dataset': mark}}}) for mark in marks]
    runs = [make_run(group, 0, 0, 0.8, facts=fact) for group, fact in zip(('ours', 'base'), facts, strict=True)]
    assert notes(runs) == ['the runs differ in shortcut as well (ours: shortcut::side=5; base: none)']


# ---- pictures

def test_differences_stand_where_they_are_and_no_word_is_cut():
    gaps = {'random-box': {'class-knn-share': (0.05, 0.03, 0.07), 'mls': (-0.05, -0.06, -0.04)}}
    content = png(plot_differences(gaps, 'difference in FPR95 (unknowns caught) to center-box-with-a-long-name'))
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert('RGB')).astype(int)
    assert (pixels[:, :3] > 240).all()
    assert (pixels[:, -3:] > 240).all()
    blue = pixels[..., 2] - pixels[..., 0] > 60
    upper, lower = (np.flatnonzero(half.any(0)) for half in (blue[:85], blue[85:155]))
    assert lower.max() < upper.min()


@pytest.mark.parametrize('scores', [('mls',), ('mls', 'knn')])
def test_many_groups_have_a_labelled_row_each_as_colours_would_repeat(scores):
    gaps = {f'g{place}': dict.fromkeys(scores, (place / 100, -0.1, 0.1)) for place in range(8)}
    axes = plot_differences(gaps, 'difference').axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == (list(gaps) if len(scores) == 1 else [f'{score}, {group}' for score in scores for group in gaps])
    drawn = {(round(x), round(y)) for group in axes.containers for x, y in zip(*group[0].get_data(), strict=True)}
    assert drawn == {(int(labels[row].rpartition('g')[2]), row) for row in range(len(labels))}
    assert not axes.figure.legends


# ---- files

@pytest.fixture
def comparison():
    return compare_runs(made(GAPS), paired=True)


def test_json_is_plain(comparison):
    assert json.loads(json.dumps(comparison, allow_nan=False)) == comparison


def test_a_row_says_mean_spread_difference_interval_and_verdict(comparison):
    heads, rows = comparison_rows(comparison, 'auroc')
    assert heads == ['score', 'ours', 'base', 'ours − base', 'p (Holm)', 'verdict']
    entry = comparison['scores']['mls']['auroc']
    mean, gap = entry['groups']['ours'], entry['differences']['ours']
    assert rows[0][1] == f'{100 * mean["mean"]:.2f} ± {100 * mean["sd"]:.2f}'
    assert rows[0][3] == f'{100 * gap["value"]:+.2f} [{100 * gap["low"]:+.2f}, {100 * gap["high"]:+.2f}]'
    assert rows[0][5] == 'better'
    assert comparison_rows(comparison, 'top1')[1][0][0] == 'classifier'
    assert len({len(line) for line in text_table(heads, rows).splitlines()}) == 1


def test_many_groups_have_a_row_each():
    runs = [replace(run, group=name) for name in 'abcd' for run in made(GAPS) if run.group == 'ours'] + [
        run for run in made(GAPS) if run.group == 'base']
    comparison = compare_runs(runs, base='base', paired=True)
    heads, rows = comparison_rows(comparison, 'auroc')
    assert heads == ['group', 'mean', 'difference to base', 'p (Holm)', 'verdict']
    assert [row[0] for row in rows] == ['a', 'b', 'c', 'd', 'base']
    assert rows[0][4] == 'better'
    assert rows[4][2:] == ['', '', '']
    text = comparison_latex(comparison)
    assert max(line.count(' & ') for line in text.splitlines()) == 4
    assert '5 groups on' in text
    page = render_comparison(comparison, {})
    assert '<b>better than base</b> in points of AUROC: a (+' in page
    assert 'a against b' not in page


def test_csv_holds_every_score_metric_and_group(comparison):
    rows = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    assert len(rows) == 4 * 2
    row = next(row for row in rows if (row['metric'], row['group']) == ('auroc', 'ours'))
    assert float(row['difference']) == comparison['scores']['mls']['auroc']['differences']['ours']['value']
    assert (row['base'], row['n'], row['n_pairs'], row['verdict']) == ('base', '6', '12', 'better')


def test_latex_balances_and_escapes(comparison):
    named = {**comparison, 'protocol': 'cifar_10 & co'}
    text = comparison_latex(named)
    assert text.count(r'\begin{table}') == text.count(r'\end{table}') == 2
    assert r'cifar\_10 \& co' in text
    assert r'$\pm$' in text
    assert 'ours $-$ base' in text
    assert 'p (Holm) & verdict' in text
    assert comparison['scores']['mls']['auroc']['differences']['ours']['p_holm'] < 0.001
    row = next(line for line in text.splitlines() if line.strip().startswith('mls & '))
    assert row.endswith(r' & \textless{}0.001 & better \\')
    body = [line for line in text.splitlines() if line.endswith(r'\\')]
    assert len({line.count(' & ') for line in body}) == 1


def test_markdown_names_the_runs_and_what_was_left_out(comparison):
    text = comparison_markdown({**comparison, 'left_out': {'vim': 'not in 1 of 2 runs', 'knn': 'not in 1 of 2 runs'},
                                'left_out_runs': ['x']})
    for words in ('`ours-0-0`', 'left out: vim, knn: not in 1 of 2 runs', 'left out: x has no partner', '## AUROC',
                  '## right at FPR 10%', '6 different class splits', '12 pairs'):
        assert words in text
