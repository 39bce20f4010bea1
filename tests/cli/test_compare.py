"""`openset compare`: folders of evaluations in, table, files and page out; what a user gets wrong ends in one line."""
from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.openset import main as osr
from gradmix_timm.openset.metrics.intervals import paired_difference
from gradmix_timm.openset.metrics.summary import summarize
from gradmix_timm.openset.results import RESULTS
from gradmix_timm.openset.runs import check_runs, find_runs, read_runs

KEPT = Path(__file__).parents[2] / 'benchmarks' / 'results'
FILES = ['comparison.csv', 'comparison.html', 'comparison.json', 'comparison.md', 'comparison.tex',
         'differences-auroc.png', 'differences-oscr.png']


def evaluation(folder, mixer, trial, seed, lift, **changes):
    """results.json and arrays.npz as an evaluation leaves them; ``lift`` parts knowns from unknowns."""
    rng = np.random.default_rng(10 * trial + seed)
    known, unknown, correct = rng.normal(1 + lift, 1, 60), rng.normal(0, 1, 40), rng.random(60) < 0.9
    results = {
        'format': 1, 'protocol': 'toy', 'family': 'new', 'trial': trial, 'seed': seed, 'checkpoint': 'm.pth.tar',
        'known_classes': ['cat', f'k{trial}'], 'unknown_classes': ['dog'], 'n_known': 60, 'n_unknown': 40,
        'closed_set': {'top1': float(correct.mean()), 'top1_ci': [0.8, 1.]},
        'scores': {name: summarize(known + noise, correct, unknown, draws=0)
                   for name, noise in (('msp', 0.1), ('mls', 0.))},
        'manifest': {'model': 'test_resnet', 'objective': 'ce', 'mixer': mixer, 'moving_average': False,
                     'mixer_options': {'alpha': 1., 'seed': seed}, 'run_folder': str(folder.parent),
                     'list_sha256': {'known': f'{trial}', 'unknown': f'{trial}'}}}
    results |= changes
    folder.mkdir(parents=True)
    (folder / RESULTS).write_text(json.dumps(results))
    np.savez(folder / 'arrays.npz', known_index=np.arange(60), unknown_index=np.arange(40), **{
        f'{side}/{name}': rows for name in ('msp', 'mls') for side, rows in (('known', known), ('unknown', unknown))})
    return results


@pytest.fixture
def runs(tmp_path):
    """Three trials, two seeds, two mixers, in run folders."""
    for mixer, lift in (('gradmix', 0.6), ('cutmix', 0.2)):
        for trial in range(3):
            for seed in range(2):
                evaluation(tmp_path / 'runs' / f'{mixer}-{trial}-{seed}' / 'osr', mixer, trial, seed, lift)
    return tmp_path / 'runs'


def run(*argv, output):
    return run_console(osr.main, ['compare', *map(str, argv), '--output', str(output)])


def test_one_command_prints_the_table_and_writes_every_file(runs, tmp_path, capsys):
    out = tmp_path / 'out'
    assert run(*sorted(runs.glob('gradmix-*')), *sorted(runs.glob('cutmix-*')), '--paired', output=out) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(out / 'comparison.html')
    comparison = json.loads((out / 'comparison.json').read_text())
    gap = comparison['scores']['mls']['auroc']['differences']['gradmix']
    means = {mixer: [np.mean([json.loads((runs / f'{mixer}-{trial}-{seed}' / 'osr' / RESULTS).read_text())[
        'scores']['mls']['auroc'] for seed in range(2)]) for trial in range(3)] for mixer in ('gradmix', 'cutmix')}
    oracle = paired_difference(means['gradmix'], means['cutmix'])
    assert (gap['value'], gap['low'], gap['high'], gap['p']) == pytest.approx(
        (oracle.value, oracle.low, oracle.high, oracle.p))
    assert (gap['n'], gap['n_pairs'], comparison['n_distinct'], comparison['base']) == (3, 6, 3, 'cutmix')
    rows = [line for line in lines if line.startswith('| mls ')]
    assert f'{100 * gap["value"]:+.2f}' in rows[1]  # of the tables of AUROC the second, with the differences
    assert len(rows) == 4
    assert max(map(len, lines[:-1])) <= 80
    assert any(line.startswith('| classifier ') for line in lines)


def test_wide_prints_one_table_a_metric(runs, tmp_path, capsys):
    assert run(runs, '--paired', '--wide', output=tmp_path / 'out') == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| mls ')]
    assert len(rows) == 2  # AUROC and OSCR
    assert 'too few pairs' in rows[0]


def test_figures_of_runs_that_keep_nothing_else(tmp_path, capsys):
    """As benchmarks/results keeps them: one JSON file a run, in a folder of the experiment."""
    (tmp_path / 'digits').mkdir()
    for trial in range(5):
        for mixer, lift in (('gradmix', .02), ('none', 0.)):
            figures = summarize(np.arange(40.) + 100 * lift, np.ones(40), np.arange(-20., 20.), draws=0)
            (tmp_path / 'digits' / f'{mixer}-t{trial}.json').write_text(json.dumps(
                {'mixer': mixer, 'trial': trial, 'seed': 0, 'top1': .9 + trial / 100, 'scores': {'mls': figures},
                 'command': 'train.py'}))
    (tmp_path / 'digits' / 'notes.json').write_text('{}')
    assert run(tmp_path / 'digits', '--paired', output=tmp_path / 'out') == 0
    assert 'gradmix against none on digits' in capsys.readouterr().out
    comparison = json.loads((tmp_path / 'out' / 'comparison.json').read_text())
    assert (comparison['n_distinct'], comparison['base']) == (5, 'none')
    one = tmp_path / 'digits' / 'none-t0.json'
    assert run(one, output=tmp_path / 'out') == 0
    for flag, words in (('--part', 'all unknown images alone'), ('--by', 'leave --by out')):
        assert run(one, flag, 'folder', output=tmp_path / 'out') == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize('folder', sorted(path for path in KEPT.iterdir() if path.is_dir()),
                         ids=lambda path: path.name)
def test_results_kept_in_the_repository_are_read(folder):
    """By the axes of their study."""
    inside = find_runs([folder])
    study = json.loads((inside[0] / RESULTS).read_text())['manifest'].get('study') or {}
    check_runs(read_runs(inside, tuple(study.get('levels', ['mixer']))))


def test_cells_of_a_study(runs, tmp_path, capsys):
    """Their files lie in the cell itself; a cell that is not done keeps its own below work."""
    study = tmp_path / 'study'
    for trial in range(2):
        for alpha in (1, 2):
            cell = study / f'alpha-{alpha}-{trial}'
            results = evaluation(cell, 'gradmix', trial, 0, alpha / 10)
            results['manifest']['study'] = {'levels': {'strength': alpha}}
            (cell / RESULTS).write_text(json.dumps(results))
            evaluation(cell / 'ood', 'gradmix', trial, 0, 0., protocol='ood')
    evaluation(study / 'alpha-1-2' / 'work' / 'osr', 'gradmix', 2, 0, 0.)
    assert run(study, '--paired', output=tmp_path / 'out') == 2  # all of one mixer
    assert capsys.readouterr().err.rstrip().endswith('separate them, --by strength')
    assert run(study, '--by', 'strength', '--paired', output=tmp_path / 'out') == 0
    groups = json.loads((tmp_path / 'out' / 'comparison.json').read_text())['groups']
    assert {name: facts['trials'] for name, facts in groups.items()} == {'strength=1': [0, 1], 'strength=2': [0, 1]}


def test_files_hold_the_same_figures(runs, tmp_path, capsys):
    out = tmp_path / 'out'
    assert run(runs, '--paired', '--base', 'cutmix', output=out) == 0
    comparison = json.loads((out / 'comparison.json').read_text())
    gap = comparison['scores']['mls']['oscr']['differences']['gradmix']
    with (out / 'comparison.csv').open() as file:
        row = next(row for row in csv.DictReader(file)
                   if (row['score'], row['metric'], row['group']) == ('mls', 'oscr', 'gradmix'))
    assert float(row['difference_low']) == gap['low']
    shown = f'{100 * gap["value"]:+.2f}'
    for name in ('comparison.md', 'comparison.tex', 'comparison.html'):
        assert shown in (out / name).read_text(), name
    page = (out / 'comparison.html').read_text()
    assert page.count('<img') == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for name in ('auroc', 'oscr'):
        assert Image.open(out / f'differences-{name}.png').width == 720


def test_only_result_files_are_read(runs, tmp_path):
    """No checkpoint, no data set, nothing else in the folders; and what another command wrote is left alone."""
    evaluation(runs / 'gradmix-0-0' / 'ood', 'gradmix', 0, 0, 0., protocol='near')
    for file in runs.rglob('arrays.npz'):
        file.unlink()
    assert run(runs, '--paired', output=tmp_path / 'out') == 0


def test_the_path_to_the_runs_may_have_any_names_in_it(tmp_path, capsys):
    """A study keeps unfinished runs in `work`; a folder above of that name is nobody's business."""
    evaluation(tmp_path / 'work' / 'runs' / 'a' / 'osr', 'gradmix', 0, 0, 0.6)
    evaluation(tmp_path / 'work' / 'runs' / 'b' / 'work' / 'osr', 'cutmix', 0, 0, 0.2)
    assert run(tmp_path / 'work' / 'runs', output=tmp_path / 'out') == 0
    assert 'cutmix' not in capsys.readouterr().out


def test_a_single_pair_is_compared_by_its_images(runs, tmp_path):
    out = tmp_path / 'out'
    assert run(runs / 'gradmix-0-0', runs / 'cutmix-0-0' / 'osr' / RESULTS, '--paired', output=out) == 0
    comparison = json.loads((out / 'comparison.json').read_text())
    gap = comparison['scores']['mls']['auroc']['differences']['gradmix']
    assert (comparison['unit'], gap['n']) == ('image', 100)
    assert gap['low'] < gap['value'] < gap['high']


def test_a_part_of_the_unknown_images(tmp_path, capsys):
    """SSB's hard+medium: its own figures, classes and images."""
    for mixer, lift in (('gradmix', 0.6), ('cutmix', 0.2)):
        folder = tmp_path / 'runs' / mixer / 'osr'
        results = evaluation(folder, mixer, 0, 0, lift, unknown_classes=['dog', 'elk', 'fox'])
        with np.load(folder / 'arrays.npz') as stored:
            arrays = {**stored, 'unknown_label': np.arange(40) % 3}
        rows = arrays['unknown_label'] > 0
        scores = {name: summarize(arrays[f'known/{name}'], np.ones(60), arrays[f'unknown/{name}'][rows], draws=0)
                  for name in ('msp', 'mls')}
        results['groups'] = {'hard+medium': {'n_known': 60, 'n_unknown': int(rows.sum()), 'scores': scores,
                                             'unknown_classes': ['elk', 'fox']}}
        (folder / RESULTS).write_text(json.dumps(results))
        np.savez(folder / 'arrays.npz', **arrays)
    assert run(tmp_path / 'runs', '--paired', '--part', 'hard+medium', output=tmp_path / 'out') == 0
    assert 'on toy, class lists of new, unknown images: hard+medium' in capsys.readouterr().out
    comparison = json.loads((tmp_path / 'out' / 'comparison.json').read_text())
    entry = comparison['scores']['mls']['auroc']
    assert entry['groups']['cutmix']['mean'] == scores['mls']['auroc']
    assert entry['differences']['cutmix']['n'] == 60 + 26  # image by image, those of the part alone
    assert 'unknown images: hard+medium' in (tmp_path / 'out' / 'comparison.tex').read_text()
    assert run(tmp_path / 'runs', '--part', 'hard', output=tmp_path / 'out') == 2
    assert 'Available: hard+medium' in capsys.readouterr().err


def test_means_alone_without_pairs_and_no_stale_picture(runs, tmp_path, capsys):
    out = tmp_path / 'out'
    assert run(runs, '--paired', output=out) == 0
    assert run(runs, output=out) == 0
    assert 'differences-auroc.png' not in {path.name for path in out.iterdir()}
    assert '<img' not in (out / 'comparison.html').read_text()


def test_runs_are_told_apart_by_what_is_asked(runs, tmp_path):
    for trial in range(3):
        evaluation(runs / f'gradmix-other-{trial}' / 'osr', 'gradmix', trial, 0, 0.4, manifest={
            'model': 'test_vit', 'mixer': 'gradmix', 'mixer_options': {'alpha': 2.}})
    for path in runs.glob('*-[0-9]-1'):
        (path / 'osr' / RESULTS).unlink()
    for by, groups in (('mixer,alpha', {'gradmix alpha=1.0', 'gradmix alpha=2.0', 'cutmix alpha=1.0'}),
                       ('mixer,model', {'gradmix test_resnet', 'gradmix test_vit', 'cutmix test_resnet'})):
        assert run(runs, '--by', by, '--paired', output=tmp_path / 'out') == 0
        assert set(json.loads((tmp_path / 'out' / 'comparison.json').read_text())['groups']) == groups


def mistakes(runs, tmp_path):
    evaluation(tmp_path / 'other' / 'osr', 'gradmix', 0, 0, 0., protocol='cub')
    evaluation(tmp_path / 'single' / 'osr', 'gradmix', 2, 9, 0.)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / RESULTS).write_text('{')
    return {
        'there is no nowhere': ('nowhere',),
        'no results.json in': (tmp_path / 'empty',),
        'not JSON': (tmp_path / 'broken',),
        'runs of different protocols: toy, new': (runs, tmp_path / 'other'),
        'has no run of trial 2, seed 9': (runs, tmp_path / 'single', '--paired'),
        'are of gradmix': (*sorted(runs.glob('gradmix-*')), '--paired'),
        '--base cutmx': (runs, '--paired', '--base', 'cutmx'),
        "--scores: no score 'mlss'": (runs, '--scores', 'mlss'),
        "--metrics: no metric 'auc'": (runs, '--metrics', 'auc'),
        '--by': (runs, '--by', 'mixr'),
        'level': (runs, '--level', '95')}


def test_what_a_user_gets_wrong_ends_in_one_line(runs, tmp_path, capsys):
    for words, argv in mistakes(runs, tmp_path).items():
        assert run(*argv, output=tmp_path / 'out') == 2, argv
        out, err = capsys.readouterr()
        assert len(err.splitlines()) == 1, err
        assert err.startswith('error: ')
        assert words in err
        assert out == ''
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('files', 'named'), [
    (('a/last.pth.tar', 'b/checkpoint-3.pth.tar', 'b/model_best.pth.tar'), '{}/b/model_best.pth.tar'),
    (('a/checkpoint-3.pth.tar', 'b/last.pth.tar'), '{}/a/checkpoint-3.pth.tar'),
    (('a/summary.csv',), 'RUN/model_best.pth.tar')])
def test_the_checkpoint_that_runs_without_results_advise_is_there(files, named, tmp_path, capsys):
    folder = tmp_path / 'runs'
    for file in map(folder.joinpath, files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    advice = f'run `openset osr --checkpoint {named.format(folder)}` first'
    assert run(folder, output=tmp_path / 'out') == 2
    assert capsys.readouterr().err == f'error: no results.json in {folder}; {advice}\n'
    if not named.startswith('RUN'):
        assert run(named.format(folder), output=tmp_path / 'out') == 2
        assert advice in capsys.readouterr().err


def test_runs_without_partners_are_left_out_on_demand(runs, tmp_path, capsys):
    evaluation(tmp_path / 'single' / 'osr', 'gradmix', 2, 9, 0.)
    assert run(runs, tmp_path / 'single', '--paired', '--common', output=tmp_path / 'out') == 0
    assert f'left out: {tmp_path / "single" / "osr"}: no partner' in capsys.readouterr().out


# ---- evaluations of other commands

def of_shortcut(folder, mixer, top1, scores):
    """What `openset shortcut` writes, as far as a comparison reads it; its arrays.npz holds predictions alone."""
    closed = {'top1': top1, 'top1_ci': [0., 1.]}
    whole = evaluation(folder, mixer, 0, 0, 0.2, command='shortcut', closed_set=closed)
    kept = whole['scores'] if scores else {}
    whole |= {'scores': kept, 'n_unknown': 40 if scores else 0, 'unknown_classes': ['dog'] if scores else []}
    whole['groups'] = {view: {'view': view, 'n_known': 60, 'n_unknown': whole['n_unknown'], 'scores': kept,
                              'closed_set': {**closed, 'top1': top1 - lower}}
                       for view, lower in (('own', 0.), ('conflict', 0.3))}
    (folder / RESULTS).write_text(json.dumps(whole))
    np.savez(folder / 'arrays.npz', known_index=np.arange(60), known_label=np.zeros(60, int))


def test_a_pair_of_evaluations_that_keep_no_scores_of_images_has_no_intervals(tmp_path, capsys):
    for mixer, top1 in (('none', 0.5), ('gradmix', 0.75)):
        of_shortcut(tmp_path / mixer / 'shortcut', mixer, top1, scores=True)
    folders = (tmp_path / 'none', tmp_path / 'gradmix')
    for part in ((), ('--part', 'conflict')):
        assert run(*folders, '--paired', *part, '--wide', output=tmp_path / 'out') == 0
        assert 'need arrays.npz of `openset osr` or `ood`' in capsys.readouterr().out
        gap = json.loads((tmp_path / 'out' / 'comparison.json').read_text())['scores']['mls']['auroc']['differences']
        assert gap['gradmix']['low'] is None


@pytest.mark.parametrize(('part', 'lower'), [((), 0.), (('--part', 'conflict'), 0.3)])
def test_evaluations_without_unknown_images_are_compared_by_accuracy(tmp_path, capsys, part, lower):
    for mixer, top1 in (('none', 0.5), ('gradmix', 0.75)):
        of_shortcut(tmp_path / mixer / 'shortcut', mixer, top1, scores=False)
    assert run(tmp_path / 'none', tmp_path / 'gradmix', '--paired', *part, output=tmp_path / 'out') == 0
    comparison = json.loads((tmp_path / 'out' / 'comparison.json').read_text())
    assert comparison['closed_set']['top1']['groups']['gradmix']['mean'] == pytest.approx(0.75 - lower)
    assert comparison['closed_set']['top1']['differences']['gradmix']['value'] == pytest.approx(0.25)
    assert comparison['scores'] == {}
    assert '+25.00' in capsys.readouterr().out
    page = (tmp_path / 'out' / 'comparison.html').read_text()
    assert 'By accuracy, <b>gradmix</b> against (too few pairs (1)) none (+25.00 points of accuracy)' in page
