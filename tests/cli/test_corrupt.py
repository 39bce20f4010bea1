"""`openset corrupt`: groups, resuming, official files, baselines, and what a user gets wrong."""
from __future__ import annotations

import csv
import io
import json
import shutil
from contextlib import redirect_stdout

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoints import class_folders, save_checkpoint

from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.openset import main as osr
from gradmix_timm.data import labels_of, open_dataset, take
from gradmix_timm.data.corruption import corrupted
from gradmix_timm.evaluation.corruption import run as corrupt
from gradmix_timm.evaluation.corruption.journal import GroupStore

NAMES = 'fog,gaussian_noise,contrast'
QUICK = ('--device', 'cpu', '--corruptions', NAMES, '--severities', '1,5')


def run(*argv, quick=QUICK):
    return run_console(osr.main, ['corrupt', *map(str, argv), *quick])


def results_of(folder):
    return json.loads((folder / 'results.json').read_text())


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A run folder with its data, judged once: (folder, standard output)."""
    root = tmp_path_factory.mktemp('corrupt')
    class_folders(root / 'data')
    checkpoint = save_checkpoint(root / 'run' / 'model_best.pth.tar', root / 'data')
    with redirect_stdout(io.StringIO()) as told:
        assert run('--checkpoint', checkpoint) == 0
    return root, told.getvalue()


# ---- a run that goes well

def test_there_is_a_group_for_each_corruption_and_severity(place):
    results = results_of(place[0] / 'run' / 'corrupt')
    assert list(results['groups']) == [f'{name}/{s}' for name in NAMES.split(',') for s in (1, 5)]
    assert (results['n_known'], results['n_unknown'], results['known_classes']) == (60, 30, ['cat', 'ant'])
    for group in results['groups'].values():
        assert group['error'] == pytest.approx(1 - group['closed_set']['top1'])
        assert group['error_ci'][0] <= group['error'] <= group['error_ci'][1]
        assert (group['n_known'], group['n_unknown']) == (60, 30)
        assert set(group['scores']) == set(group['scores_clean_unknown']) == {'msp', 'mls'}
        assert {'auroc', 'auroc_ci', 'oscr'} <= set(group['scores']['mls'])
    part = results['corruption']
    assert part['mean_error'] == pytest.approx(np.mean([group['error'] for group in results['groups'].values()]))
    assert (part['complete'], part['official'], part['scale'], part['at']) == (False, False, 'cifar', 'stored')
    right = np.load(place[0] / 'run' / 'corrupt' / 'arrays.npz')
    assert right['right/fog/5'].mean() == results['groups']['fog/5']['closed_set']['top1']


def test_clean_figures_are_those_of_osr(place, tmp_path, undrawn):
    checkpoint = place[0] / 'run' / 'model_best.pth.tar'
    argv = ['osr', '--checkpoint', str(checkpoint), '--scores', 'msp,mls', '--output', str(tmp_path), '--device', 'cpu',
            '--bootstrap', '0', '--feature-map', '0', '--trivial-images', '0']
    assert run_console(osr.main, argv) == 0
    theirs, mine = results_of(tmp_path), results_of(place[0] / 'run' / 'corrupt')
    assert mine['closed_set'] == theirs['closed_set']
    for name in ('msp', 'mls'):
        assert mine['scores'][name]['auroc'] == theirs['scores'][name]['auroc']


def test_everywhere_it_says_that_the_images_are_generated(place):
    folder = place[0] / 'run' / 'corrupt'
    assert 'generated images, constants for 32 px, corrupted as stored' in ' '.join(place[1].split())
    for name in ('results.md', 'report.html', 'results.json'):
        assert 'generated' in (folder / name).read_text()
    assert 'not comparable with published ones' in (folder / 'results.md').read_text()


def test_table_csv_and_figures_hold_the_groups(place):
    folder = place[0] / 'run' / 'corrupt'
    row = next(line for line in place[1].splitlines() if line.startswith('| fog'))
    results = results_of(folder)
    assert [float(cell) for cell in row.split('|')[2:4]] == [
        pytest.approx(100 * results['groups'][f'fog/{s}']['error'], abs=0.06) for s in (1, 5)]
    rows = list(csv.DictReader((folder / 'results.csv').open()))
    assert [(row['corruption'], row['severity']) for row in rows][:3] == [('clean', '0'), ('fog', '1'), ('fog', '5')]
    assert 'fog & ' + ' & '.join(cell.strip() for cell in row.split('|')[2:-1]) in (folder / 'results.tex').read_text()
    last = results['groups']['fog/5']['scores_clean_unknown']['mls']
    assert float(rows[2]['clean_unknown_mls_auroc']) == last['auroc']
    for name, height in (('severity.png', 400), ('auroc.png', 300), ('examples.png', 200)):
        assert Image.open(folder / 'figures' / name).size[1] > height
    assert place[1].splitlines()[-1] == str(folder / 'report.html')


def test_report_draws_the_page_again_from_files(place):
    folder = place[0] / 'run' / 'corrupt'
    page = (folder / 'report.html').read_text()
    (folder / 'report.html').unlink()
    (folder / 'figures' / 'severity.png').unlink()
    assert run_console(osr.main, ['report', str(folder)]) == 0
    assert (folder / 'report.html').read_text() == page


def test_without_unknown_classes_the_closed_set_is_judged_alone(tmp_path):
    data = class_folders(tmp_path / 'data', classes=('ant', 'bee'), count=6)
    checkpoint = save_checkpoint(tmp_path / 'c.pth', data, held=(), known_classes=('bee', 'ant'), unknown_classes=())
    assert run('--checkpoint', checkpoint) == 0
    results = results_of(tmp_path / 'corrupt')
    assert results['scores'] == results['groups']['fog/1']['scores'] == {}
    assert not (tmp_path / 'corrupt' / 'figures' / 'auroc.png').exists()


@pytest.mark.slow
def test_large_images_are_cut_to_the_input_before_they_are_corrupted(tmp_path):
    data = class_folders(tmp_path / 'data', count=4)
    for path in data.rglob('*.png'):
        Image.open(path).resize((150, 130)).save(path)
    checkpoint = save_checkpoint(tmp_path / 'c.pth', data, held=())
    assert run('--checkpoint', checkpoint) == 0
    part = results_of(tmp_path / 'corrupt')['corruption']
    assert (part['at'], part['scale']) == ('input', 'cifar'), "the model's input is 32 pixels"
    assert "cut to the model's input" in part['source']


# ---- resuming

@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_and_ends_the_same(place, tmp_path, monkeypatch, capsys):
    checkpoint, calls = place[0] / 'run' / 'model_best.pth.tar', []
    judge = corrupt.judge_corrupted

    def counted(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return judge(*args)

    monkeypatch.setattr(corrupt, 'judge_corrupted', counted)
    assert run('--checkpoint', checkpoint, '--output', tmp_path) == 130
    assert '3 of 6 groups are kept' in capsys.readouterr().err
    assert not (tmp_path / 'results.json').exists()
    assert run('--checkpoint', checkpoint, '--output', tmp_path) == 0
    assert len(calls) == 4 + 3 + 1, 'three groups and the clean images'
    whole, again = results_of(place[0] / 'run' / 'corrupt'), results_of(tmp_path)
    assert again['groups'] == whole['groups']
    assert again['corruption'] == whole['corruption']
    assert again['manifest']['settings']['groups_reused'] == 3


@pytest.mark.slow
@pytest.mark.parametrize('change', [('--seed', '1'), ('--scores', 'mls'), ('--images', '20')])
def test_groups_of_another_run_are_not_taken_for_this_one(place, tmp_path, change):
    checkpoint = place[0] / 'run' / 'model_best.pth.tar'
    quick = ('--device', 'cpu', '--corruptions', 'gaussian_noise', '--severities', '5')
    assert run('--checkpoint', checkpoint, '--output', tmp_path, quick=quick) == 0
    assert run('--checkpoint', checkpoint, '--output', tmp_path, *change, quick=quick) == 0
    assert results_of(tmp_path)['manifest']['settings']['groups_reused'] == 0


def test_a_store_outlives_a_line_that_was_cut_off(tmp_path):
    store = GroupStore(tmp_path / 'groups.jsonl', {'a': 1})
    store.add('fog/1', {'error': 0.5})
    store.add('fog/2', {'error': 0.6})
    whole = store.path.read_text()
    for cut in range(1, 12):
        store.path.write_text(whole[:-cut])
        again = GroupStore(store.path, {'a': 1})
        assert again.groups == {'fog/1': {'error': 0.5}}
        again.add('fog/2', {'error': 0.6})
        assert store.path.read_text() == whole
    assert GroupStore(store.path, {'a': 2}).groups == {}
    store.path.write_bytes(b'\x00\xff')
    assert GroupStore(store.path, {'a': 1}).groups == {}


@pytest.mark.parametrize(('old', 'new'), [('0.5', '0.9'), ('"fog/1"', '["fog/1"]'), ('{"error": 0.5}', '3'),
                                          ('{"error": 0.5}', '[' * 5000), ('fog/1', 'fog/9')])
def test_a_store_serves_no_line_that_was_changed(old, new, tmp_path):
    store = GroupStore(tmp_path / 'groups.jsonl', {'a': 1})
    store.add('fog/1', {'error': 0.5})
    store.path.write_text(store.path.read_text().replace(old, new))
    assert GroupStore(store.path, {'a': 1}).groups == {}


def test_a_store_drops_lines_of_another_run_in_its_folder(tmp_path):
    theirs = GroupStore(tmp_path / 'groups.jsonl', {'weights': 'best'})
    theirs.add('fog/1', {'error': 0.1})
    ours = GroupStore(theirs.path, {'weights': 'last'})
    ours.add('fog/1', {'error': 0.9})
    theirs.add('fog/2', {'error': 0.1})
    again = GroupStore(theirs.path, {'weights': 'last'})
    assert again.groups == {'fog/1': {'error': 0.9}}
    again.add('fog/2', {'error': 0.8})
    assert GroupStore(theirs.path, {'weights': 'last'}).groups == {'fog/1': {'error': 0.9}, 'fog/2': {'error': 0.8}}


# ---- official files and baselines

@pytest.mark.slow
def test_official_arrays_of_the_same_pixels_give_the_same_figures(place, tmp_path):
    root = place[0]
    test = open_dataset('', root / 'data', 'test')
    whole = take(test, range(90))
    (tmp_path / 'c').mkdir()
    for name in NAMES.split(','):
        made = [corrupted(whole, name, severity, scale='cifar') for severity in range(1, 6)]
        np.save(tmp_path / 'c' / f'{name}.npy', np.stack(
            [np.asarray(part.picture(row)) for part in made for row in range(90)]))
    np.save(tmp_path / 'c' / 'labels.npy', np.tile(labels_of(test), 5))
    checkpoint = root / 'run' / 'model_best.pth.tar'
    assert run('--checkpoint', checkpoint, '--official', tmp_path / 'c', '--output', tmp_path / 'o') == 0
    mine, theirs = results_of(tmp_path / 'o'), results_of(root / 'run' / 'corrupt')
    assert mine['groups'] == theirs['groups']
    assert mine['corruption']['official']
    assert 'generated' not in (tmp_path / 'o' / 'results.md').read_text()
    assert run('--checkpoint', checkpoint, '--official', tmp_path / 'c', '--scale', 'cifar') == 2
    assert run('--checkpoint', checkpoint, '--official', tmp_path / 'c', '--output', tmp_path / 'p', '--baseline',
               root / 'run' / 'corrupt') == 2, 'generated images are no reference for official ones'


@pytest.mark.slow
def test_a_model_is_as_good_as_itself(place, tmp_path, capsys):
    folder = place[0] / 'run' / 'corrupt'
    argv = ('--checkpoint', place[0] / 'run' / 'model_best.pth.tar', '--output', tmp_path, '--baseline')
    assert run(*argv, folder / 'results.json') == 0
    part = results_of(tmp_path)['corruption']
    assert part['mce'] == pytest.approx(1)
    assert part.get('relative_mce', 1) == pytest.approx(1)
    assert 'mean CE of 3 corruptions 100.00%' in capsys.readouterr().out
    assert run(*argv, folder, '--seed', '4') == 2
    assert 'other seed (0, here 4)' in capsys.readouterr().err
    assert run(*argv, folder, quick=('--device', 'cpu', '--corruptions', 'fog', '--severities', '1,2')) == 2
    assert 'lacks fog at severity 2' in capsys.readouterr().err


def test_a_baseline_of_another_name_is_refused_as_the_folder_holds_other_results(place, tmp_path, capsys):
    for name in ('results.json', 'other-model.json'):
        other = shutil.copy(place[0] / 'run' / 'corrupt' / 'results.json', tmp_path / name)
    checkpoint = place[0] / 'run' / 'model_best.pth.tar'
    assert run('--checkpoint', checkpoint, '--output', tmp_path / 'o', '--baseline', other) == 2
    assert f'--baseline {other}: expected the folder' in capsys.readouterr().err


@pytest.mark.parametrize(('argv', 'words'), [
    (('--corruptions', 'fogg'), "did you mean 'fog'"), (('--severities', '0'), 'run from 1 to 5'),
    (('--severities', '1,1'), 'each named once'), (('--scores', 'knn'), 'fit on training images'),
    (('--scores', 'odin'), '--scores odin takes passes of its own'),
    (('--scores', 'mlss'), "did you mean 'mls'"), (('--baseline', 'nowhere.json'), 'nowhere.json: no such file'),
    (('--baseline', 'alexnet'), "ImageNet-C's own files"), (('--official', 'nowhere'), 'no folder at nowhere'),
    (('--images', '0'), 'expected 1 or more'), (('--known-classes', 'ant'), 'known'),
    (('--data-dir', 'nowhere'), '--data-dir')])
def test_what_can_be_mended_is_one_line_and_status_2(place, tmp_path, capsys, argv, words):
    checkpoint = place[0] / 'run' / 'model_best.pth.tar'
    assert run('--checkpoint', checkpoint, '--output', tmp_path / 'o', quick=('--device', 'cpu', *argv)) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    assert words in error
    assert not (tmp_path / 'o').exists()
