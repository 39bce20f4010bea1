"""`openset probe`: groups, no leak from the test images, any model, and what a user gets wrong."""
from __future__ import annotations

import csv
import io
import json
import shutil
from contextlib import redirect_stdout

import numpy as np
import pytest
import timm
import torch
from tiny_checkpoints import class_folders, save_checkpoint

from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.openset import main as osr

QUICK = ('--device', 'cpu', '--bootstrap', '10', '--draws', '3', '--shots', '1,5')


def run(*argv, quick=QUICK):
    return run_console(osr.main, ['probe', *map(str, argv), *quick])


def results_of(folder):
    return json.loads((folder / 'results.json').read_text())


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A run folder with its data, probed once: (folder, standard output)."""
    root = tmp_path_factory.mktemp('probe')
    class_folders(root / 'data')
    checkpoint = save_checkpoint(root / 'run' / 'model_best.pth.tar', root / 'data')
    with redirect_stdout(io.StringIO()) as told:
        assert run('--checkpoint', checkpoint) == 0
    return root, told.getvalue()


# ---- a run that goes well

@pytest.mark.parametrize('command', ['osr', 'corrupt', 'probe'])
def test_the_folder_of_the_data_has_a_short_name(command):
    """``--data`` would else be short for --data-dir and --dataset both."""
    args = osr.build_parser().parse_args([command, '--checkpoint', 'a', '--data', 'DIR'])
    assert (args.data_dir, args.dataset) == ('DIR', None)


def test_there_is_a_group_for_each_probe(place):
    results = results_of(place[0] / 'run' / 'probe')
    assert list(results['groups']) == ['linear', 'knn', 'few-shot-1', 'few-shot-5', 'own head']
    assert (results['n_known'], results['n_unknown'], results['command']) == (60, 30, 'probe')
    for group in results['groups'].values():
        low, high = group['closed_set']['top1_ci']
        assert 0 <= low <= group['closed_set']['top1'] <= high <= 1
    linear = results['groups']['linear']
    assert linear['n_train'] == 60, 'those held out take part in the last fit'
    assert linear['parameters']['n_held_out'] == 40, 'as the checkpoint says'
    assert linear['closed_set']['top1'] > 0.9, 'colours are told apart by any features'
    assert set(linear['scores']) == {'msp', 'mls'}
    assert set(results['groups']['knn']['scores']) == {'knn'}
    assert 'oscr_ci' in linear['scores']['mls']
    shots = results['groups']['few-shot-5']
    assert shots['closed_set']['top1'] == pytest.approx(np.mean(shots['parameters']['top1_by_draw']))
    assert shots['top1_sd'] == pytest.approx(np.std(shots['parameters']['top1_by_draw'], ddof=1))


def test_the_own_head_is_what_osr_judges(place, tmp_path, undrawn):
    checkpoint = place[0] / 'run' / 'model_best.pth.tar'
    argv = ['osr', '--checkpoint', str(checkpoint), '--scores', 'mls', '--output', str(tmp_path), '--device', 'cpu',
            '--bootstrap', '0', '--feature-map', '0', '--trivial-images', '0']
    assert run_console(osr.main, argv) == 0
    mine, theirs = results_of(place[0] / 'run' / 'probe')['groups']['own head'], results_of(tmp_path)
    assert mine['closed_set'] == theirs['closed_set']
    assert mine['scores']['mls']['auroc'] == theirs['scores']['mls']['auroc']


def test_table_files_and_page_hold_the_probes(place):
    folder = place[0] / 'run' / 'probe'
    for name in ('linear', 'knn', 'few-shot-1'):
        assert f'| {name} ' in place[1]
        assert f'| {name} ' in (folder / 'results.md').read_text()
        assert f'{name} & ' in (folder / 'results.tex').read_text()
    rows = {row['probe']: row for row in csv.DictReader((folder / 'results.csv').open())}
    linear = results_of(folder)['groups']['linear']
    assert float(rows['linear']['mls_auroc']) == linear['scores']['mls']['auroc']
    page = (folder / 'report.html').read_text()
    assert 'The choice of the penalty' in page
    (folder / 'report.html').unlink()
    assert run_console(osr.main, ['report', str(folder)]) == 0
    assert (folder / 'report.html').read_text() == page


# ---- no leak

def test_permuting_the_test_labels_changes_nothing_that_was_fitted(place, tmp_path):
    """Classes of the test folder change places: every figure of the test moves, no fitted parameter does."""
    data = tmp_path / 'data'
    shutil.copytree(place[0] / 'data', data)
    test = data / 'test'
    for old, new in (('cat', 'x'), ('ant', 'cat'), ('x', 'ant')):
        (test / old).rename(test / new)
    checkpoint = place[0] / 'run' / 'model_best.pth.tar'
    assert run('--checkpoint', checkpoint, '--data-dir', data, '--output', tmp_path / 'o') == 0
    before, after = (dict(np.load(folder / 'probes.npz')) for folder in (place[0] / 'run' / 'probe', tmp_path / 'o'))
    assert {name.split('/')[0] for name in before} == {'linear', 'knn', 'few-shot-1', 'few-shot-5'}
    assert set(before) == set(after)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    groups = [results_of(folder)['groups'] for folder in (place[0] / 'run' / 'probe', tmp_path / 'o')]
    assert groups[0]['linear']['parameters'] == groups[1]['linear']['parameters']
    assert groups[0]['linear']['held_out_top1'] == groups[1]['linear']['held_out_top1']
    assert groups[1]['linear']['closed_set']['top1'] == pytest.approx(1 - groups[0]['linear']['closed_set']['top1'])


def test_images_that_are_read_twice_are_refused(tmp_path, capsys):
    data = class_folders(tmp_path / 'data', count=4, splits=('train',)) / 'train'
    checkpoint = save_checkpoint(tmp_path / 'c.pth', data, held=())
    assert run('--checkpoint', checkpoint) == 2
    assert 'test images are training images' in capsys.readouterr().err
    assert not (tmp_path / 'probe').exists()


def test_one_training_image_of_a_class_is_too_few(tmp_path, capsys):
    data = class_folders(tmp_path / 'data', count=1)
    checkpoint = save_checkpoint(tmp_path / 'c.pth', data, held=())
    assert run('--checkpoint', checkpoint) == 2
    error = capsys.readouterr().err
    assert 'has fewer than two training images' in error
    assert '--held-out' in error


# ---- other models

def test_a_checkpoint_that_held_nothing_out_has_a_share_held_out(place, tmp_path):
    checkpoint = save_checkpoint(tmp_path / 'c.pth', place[0] / 'data', held=())
    assert run('--checkpoint', checkpoint, '--held-out', '0.25', '--probes', 'linear') == 0
    linear = results_of(tmp_path / 'probe')['groups']['linear']
    assert linear['parameters']['n_held_out'] == 16, 'a quarter of 30 of each class'
    assert linear['n_train'] == 60


def test_a_head_that_was_never_trained_is_not_judged(place, tmp_path):
    checkpoint = save_checkpoint(tmp_path / 'c.pth', place[0] / 'data', objective='simclr')
    assert run('--checkpoint', checkpoint, '--probes', 'knn') == 0
    assert list(results_of(tmp_path / 'probe')['groups']) == ['knn']


@pytest.mark.slow
@pytest.mark.parametrize('name', ['test_vit', 'test_convnext'])
def test_any_model_of_timm_with_a_head_of_any_width(place, tmp_path, name: str):
    """A bare state dict says no classes: all of the data are known and the head is not looked at."""
    torch.manual_seed(0)
    torch.save(timm.create_model(name, num_classes=7).state_dict(), tmp_path / 'bare.pth')
    assert run('--checkpoint', tmp_path / 'bare.pth', '--model', name, '--data-dir', place[0] / 'data', '--img-size',
               '160', '--output', tmp_path / 'o') == 0
    results = results_of(tmp_path / 'o')
    assert results['known_classes'] == ['ant', 'bee', 'cat']
    assert list(results['groups']) == ['linear', 'knn', 'few-shot-1', 'few-shot-5']
    assert results['groups']['linear']['scores'] == {}
    assert results['groups']['linear']['closed_set']['top1'] > 0.9


def test_features_of_unknown_origin_carry_a_warning(place, tmp_path, capsys):
    torch.manual_seed(0)
    torch.save(timm.create_model('test_resnet', num_classes=7).state_dict(), tmp_path / 'bare.pth')
    assert run('--checkpoint', tmp_path / 'bare.pth', '--model', 'test_resnet', '--data-dir', place[0] / 'data',
               '--known-classes', 'cat,bee', '--img-size', '32', '--output', tmp_path / 'o') == 0
    assert 'may include the unknown classes' in capsys.readouterr().out
    assert results_of(tmp_path / 'o')['unknown_classes'] == ['ant']


def test_too_few_images_for_so_many_shots_leave_the_rest_standing(place, tmp_path, capsys):
    checkpoint = place[0] / 'run' / 'model_best.pth.tar'
    quick = ('--device', 'cpu', '--shots', '2,40', '--draws', '1', '--probes', 'few-shot')
    assert run('--checkpoint', checkpoint, '--output', tmp_path, quick=quick) == 0
    assert 'not served: few-shot-40: class 0 has 30 training images' in capsys.readouterr().out
    group = results_of(tmp_path)['groups']['few-shot-2']
    assert group['top1_sd'] is None


@pytest.mark.parametrize(('argv', 'words'), [
    (('--probes', 'liner'), "did you mean 'linear'"), (('--shots', '1,x'), 'as in 1,5,10'),
    (('--shots', '0'), 'as in 1,5,10'), (('--held-out', '1'), 'between 0 and 1'), (('--draws', '0'), '1 or more'),
    (('--knn-k', '0'), '1 or more'), (('--data-dir', 'nowhere'), '--data-dir'),
    (('--probes', 'few-shot', '--shots', '99'), 'no probe could be served')])
def test_what_can_be_mended_is_one_line_and_status_2(place, tmp_path, capsys, argv, words):
    checkpoint = place[0] / 'run' / 'model_best.pth.tar'
    assert run('--checkpoint', checkpoint, '--output', tmp_path / 'o', *argv, quick=('--device', 'cpu')) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    assert words in error
    assert not (tmp_path / 'o').exists()
