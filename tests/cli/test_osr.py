"""`openset osr`: one command from a checkpoint to table, files and page; what a user gets wrong ends in one line."""
from __future__ import annotations

import argparse
import csv
import io
import json
import os
import runpy
import shutil
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_checkpoints import held_out

from gradmix_timm.checkpoint import KEY, RunRecord
from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.openset import main as osr
from gradmix_timm.data import hold_out, load_split, open_dataset, select_classes
from gradmix_timm.data.identity import identities
from gradmix_timm.evaluation.mistakes import find_mistakes
from gradmix_timm.openset.extract import extract

CONFIG = {'input_size': (3, 32, 32), 'interpolation': 'bilinear', 'mean': (0.3,) * 3, 'std': (0.3,) * 3,
          'crop_pct': 1.0, 'crop_mode': 'center'}
SPLIT = load_split('digits')
QUICK = ('--bootstrap', '10', '--device', 'cpu', '--feature-map', '30')


def save(path, record=None, model=None, **extra):
    """A checkpoint as training writes it; one score-bearing head, no training."""
    torch.manual_seed(0)
    model = model or timm.create_model('test_resnet', num_classes=6)
    state = {'state_dict': model.state_dict(), 'epoch': 1, 'metric': 50., 'arch': 'test_resnet', **extra}
    if record is not None:
        state[KEY] = record.to_state()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


@cache
def held_digits():
    known = select_classes(open_dataset('sklearn/digits'), SPLIT.known)
    return identities(hold_out(known, 0.1, 0)[1])


def digits(**changes):
    return RunRecord(**{
        'model': 'test_resnet', 'model_kwargs': {'num_classes': 6, 'in_chans': 3}, 'known_classes': SPLIT.known,
        'unknown_classes': SPLIT.unknown, 'protocol': 'digits', 'family': 'arpl2020', 'trial': 0,
        'dataset': 'sklearn/digits', 'splits': {'train': 'train', 'test': 'test'},
        'held_out': held_digits(), 'data_config': CONFIG, 'mixer': 'gradmix', 'seed': 7, **changes})


def folders(root, classes=('ant', 'bee', 'cat', 'dog'), count=6):
    """Class folders of noise round a colour, train and test."""
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for place, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(60 * place + rng.integers(0, 80, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f'{number}.png')
    return root


def pictures(data, **changes):
    return RunRecord(**{
        'model': 'test_resnet', 'model_kwargs': {'num_classes': 2}, 'known_classes': ('dog', 'ant'),
        'unknown_classes': ('bee', 'cat'), 'data_dir': str(data), 'splits': {'train': 'train', 'test': 'test'},
        'data_config': CONFIG, **changes})


def two_outputs():
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=2)


def run(*argv):
    return run_console(osr.main, ['osr', *map(str, argv), *QUICK])


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """One whole run on the digits: (folder, standard output)."""
    run_folder = tmp_path_factory.mktemp('run')
    path = save(run_folder / 'model_best.pth.tar', digits())
    Image.new('RGB', (30, 20)).save(run_folder / 'mixes.png')
    with redirect_stdout(io.StringIO()) as told:
        assert run('--checkpoint', path, '--scores', 'msp,mls,knn') == 0
    return run_folder / 'osr', told.getvalue()


def results_of(folder):
    return json.loads((folder / 'results.json').read_text())


# ---- a run that goes well

def test_results_hold_what_others_read(done):
    results = results_of(done[0])
    assert {'format', 'protocol', 'family', 'trial', 'known_classes', 'unknown_classes', 'n_known', 'n_unknown',
            'closed_set', 'scores', 'checkpoint', 'seed', 'versions', 'device', 'created'} <= set(results)
    assert (results['format'], results['protocol'], results['trial'], results['seed']) == (1, 'digits', 0, 7)
    assert results['known_classes'] == list(SPLIT.known)
    metrics = {'auroc', 'aupr_in', 'aupr_out', 'fpr_at_95_known', 'fpr_at_95_unknown', 'detection_error', 'oscr'}
    for score in results['scores'].values():
        assert metrics | {f'{name}_ci' for name in metrics} | {'ccr_at_fpr', 'tie_share', 'degenerate'} <= set(score)
        assert all(0 <= score[name] <= 1 for name in metrics)
    assert list(results['scores']) == ['msp', 'mls', 'knn']
    assert len(results['manifest']['checkpoint_sha256']) == 64


def test_images_are_those_of_the_split_and_validation_stays_out(done):
    results = results_of(done[0])
    test = np.bincount([label for _, label in open_dataset('sklearn/digits', split='test')], minlength=10)
    assert results['n_known'] == test[[int(name) for name in SPLIT.known]].sum()
    assert results['n_unknown'] == test.sum() - results['n_known']
    data, record = results['manifest']['data'], digits()
    whole = len(select_classes(open_dataset('sklearn/digits'), SPLIT.known))
    assert (data['n_train'], data['n_validation']) == (whole - len(record.held_out), len(record.held_out))


def test_table_is_printed_with_the_accuracy_above_and_the_page_last(done):
    folder, out = done
    lines = out.strip().splitlines()
    results = results_of(folder)
    accuracy = next(place for place, line in enumerate(lines) if line.startswith('closed-set accuracy '))
    row = next(place for place, line in enumerate(lines) if line.startswith('| mls '))
    assert accuracy < row
    assert float(lines[row].split('|')[2]) == round(100 * results['scores']['mls']['auroc'], 2)
    assert lines[-1] == str(folder / 'report.html')


def test_every_file_is_written_and_nothing_else(done):
    folder = done[0]
    assert sorted(path.name for path in folder.iterdir()) == [
        'arrays.npz', 'figures', 'mistakes.json', 'mixes.png', 'predictions.csv', 'report.html', 'results.csv',
        'results.json', 'results.md', 'results.tex']
    names = {path.name for path in (folder / 'figures').iterdir()}
    assert {'roc.png', 'oscr.png', 'confusion.png', 'reliability.png', 'features.png', 'histogram-mls.png'} <= names
    with (folder / 'results.csv').open() as file:
        assert [row['score'] for row in csv.DictReader(file)] == list(results_of(folder)['scores'])
    assert 'mixed' in (folder / 'report.html').read_text()


def test_mistakes_are_the_extremes_beyond_the_threshold(done):
    results = results_of(done[0])
    tau, name = results['threshold']['value'], results['threshold']['score']
    mistakes = json.loads((done[0] / 'mistakes.json').read_text())
    with np.load(done[0] / 'arrays.npz') as arrays:
        known, unknown = arrays[f'known/{name}'], arrays[f'unknown/{name}']
    shown = [item['knownness'] for item in mistakes['accepted']]
    assert shown == sorted(unknown[unknown >= tau])[::-1][:12]
    assert [item['knownness'] for item in mistakes['rejected']] == sorted(known[known < tau])[:12]
    assert {item['class'] for item in mistakes['accepted']} <= set(SPLIT.unknown)
    assert all(item['file'].split('/')[-2] == item['class'] for item in mistakes['accepted'] + mistakes['rejected'])


def test_only_what_lies_beyond_the_threshold_is_a_mistake(done):
    results = results_of(done[0])
    with np.load(done[0] / 'arrays.npz') as stored:
        arrays = dict(stored)
    name = results['threshold']['score']
    results['threshold']['value'] = np.sort(arrays[f'unknown/{name}'])[-3]
    arrays[f'known/{name}'][4:] = results['threshold']['value']
    arrays['known_correct'][:] = np.arange(len(arrays['known_correct'])) >= 6
    arrays[f'known/{name}'][:4] = results['threshold']['value'] - 1
    test = open_dataset('sklearn/digits', split='test')
    images = SimpleNamespace(known=select_classes(test, SPLIT.known), unknown=select_classes(test, SPLIT.unknown))
    probability = {side: np.full(len(arrays[f'{side}_pred']), 0.5) for side in ('known', 'unknown')}
    mistakes = find_mistakes(results, arrays, probability, images)
    assert len(mistakes['accepted']) == 3
    assert len(mistakes['rejected']) == 4
    assert len(mistakes['confused']) == 2, 'of the six known images with a wrong class, four are rejected'


def test_figures_are_those_of_the_model_on_plain_images(done):
    """The logits of one known test class, computed here without the command's loader."""
    from timm.data import create_transform
    cut = select_classes(open_dataset('sklearn/digits', split='test'), SPLIT.known)
    cut.transform = create_transform(**CONFIG, is_training=False)
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=6)
    found = extract(model, torch.utils.data.DataLoader(cut, 64), 'cpu')
    with np.load(done[0] / 'arrays.npz') as arrays:
        np.testing.assert_allclose(arrays['known/mls'], found.logits.amax(1).double(), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(arrays['known_label'], found.label)


@pytest.mark.slow
def test_a_second_run_gives_the_same_figures(done, tmp_path, capsys):
    checkpoint = done[0].parent / 'model_best.pth.tar'
    assert run('--checkpoint', checkpoint, '--output', tmp_path / 'again', '--batch-size', 50,
               '--scores', 'msp,mls,knn') == 0
    one, two = results_of(done[0]), results_of(tmp_path / 'again')
    assert {name: score['auroc'] for name, score in one['scores'].items()} == pytest.approx(
        {name: score['auroc'] for name, score in two['scores'].items()}, abs=1e-3)  # another batch size rounds anew
    for key in ('list_sha256', 'preprocessing_sha256'):
        assert one['manifest'][key] == two['manifest'][key]


def test_report_is_drawn_again_from_files_alone(done, tmp_path, capsys):
    folder = shutil.copytree(done[0], tmp_path / 'moved')
    (folder / 'report.html').unlink()
    shutil.rmtree(folder / 'figures')
    assert run_console(osr.main, ['report', str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / 'report.html')
    assert (folder / 'report.html').read_text() == (done[0] / 'report.html').read_text()


def test_a_report_may_be_left_for_later(done, tmp_path, capsys):
    path = save(tmp_path / 'run' / 'model_best.pth.tar', digits())
    Image.new('RGB', (30, 20)).save(tmp_path / 'run' / 'mixes.png')
    assert run('--checkpoint', path, '--scores', 'msp,mls,knn', '--no-report') == 0
    folder = tmp_path / 'run' / 'osr'
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / 'results.json')
    assert not (folder / 'report.html').exists()
    assert not (folder / 'figures').exists()
    assert run_console(osr.main, ['report', str(folder)]) == 0
    assert {file.name for file in folder.rglob('*')} == {file.name for file in done[0].rglob('*')}


def test_reports_of_several_runs_and_to_another_folder(done, tmp_path, undrawn, capsys):
    for name in ('one', 'two'):
        for command in ('osr', 'ood'):
            shutil.copytree(done[0], tmp_path / 'runs' / name / command)
            (tmp_path / 'runs' / name / command / 'report.html').unlink()
    runs = [str(tmp_path / 'runs' / name) for name in ('one', 'two')]
    assert run_console(osr.main, ['report', *runs, '--output', str(tmp_path / 'out')]) == 0
    pages = [tmp_path / 'out' / name / command / 'report.html' for name in ('one', 'two') for command in ('ood', 'osr')]
    assert capsys.readouterr().out.splitlines() == [str(page) for page in pages]
    assert all(results_of(page.parent) == results_of(done[0]) and page.is_file() for page in pages)
    assert not list((tmp_path / 'runs').rglob('report.html'))
    assert run_console(osr.main, ['report', *runs]) == 0
    assert len(list((tmp_path / 'runs').rglob('report.html'))) == 4


def test_the_report_of_a_study_s_cell_says_where_its_details_are(tmp_path, capsys):
    kept = next((Path(__file__).parents[2] / 'benchmarks' / 'results' / 'quickstart').glob('*/results.json'))
    (tmp_path / 'study' / 'cell').mkdir(parents=True)
    shutil.copy(kept, tmp_path / 'study' / 'cell')
    assert run_console(osr.main, ['report', str(tmp_path / 'study')]) == 2
    error = capsys.readouterr().err
    assert 'cell/results.json is of a cell of a study, which keeps no details' in error
    assert '--keep-runs' in error
    assert 'name DIR/CELL/work/osr' in error


# ---- several checkpoints

@pytest.mark.slow
def test_several_checkpoints_are_judged_one_after_the_other(tmp_path, undrawn, capsys):
    files = [save(tmp_path / name / 'model_best.pth.tar', digits(seed=seed)) for seed, name in enumerate('ab')]
    assert run('--checkpoint', *files, '--scores', 'msp', '--trivial-images', 0) == 0
    assert [results_of(file.parent / 'osr')['seed'] for file in files] == [0, 1]
    assert run('--checkpoint', *files, '--scores', 'msp', '--trivial-images', 0, '--output', tmp_path / 'out') == 0
    assert [results_of(tmp_path / 'out' / name)['seed'] for name in 'ab'] == [0, 1]
    (files[1]).write_bytes(b'nothing')
    capsys.readouterr()
    assert run('--checkpoint', *files, '--scores', 'msp', '--trivial-images', 0) == 2
    error, = capsys.readouterr().err.splitlines()
    assert error.endswith(f'at {files[1]}, after 1 of 2 checkpoints')


def test_checkpoints_whose_results_would_meet_are_refused_before_any_is_judged(tmp_path, capsys):
    files = [save(tmp_path / name, digits()) for name in ('best.pth', 'last.pth')]
    assert run('--checkpoint', *files) == run('--checkpoint', files[0], tmp_path / 'no.pth') == 2
    errors = capsys.readouterr().err
    assert 'two of the checkpoints' in errors
    assert '1 of 2 are not there' in errors
    assert not (tmp_path / 'osr').exists()


# ---- whatever kind of checkpoint

@pytest.mark.slow
def test_folders_with_classes_out_of_order(tmp_path, capsys):
    """Head order is the record's, not the folders'."""
    checkpoint = save(tmp_path / 'run' / 'last.pth.tar', pictures(folders(tmp_path / 'data')), two_outputs())
    assert run('--checkpoint', checkpoint, '--scores', 'mls,msp') == 0
    results = results_of(tmp_path / 'run' / 'osr')
    assert list(results['scores']) == ['mls', 'msp']
    assert results['known_classes'] == ['dog', 'ant']
    with np.load(tmp_path / 'run' / 'osr' / 'arrays.npz') as arrays:
        assert arrays['known_label'].tolist() == [1] * 6 + [0] * 6  # files by name: ant before dog
        assert arrays['unknown_label'].tolist() == [0] * 6 + [1] * 6
    assert not results['threshold']['held_out']


@pytest.mark.slow
def test_unknown_images_that_are_known_ones_are_found(tmp_path, capsys):
    """The same pixels under another name and in another file, of the test and of the training images."""
    data = folders(tmp_path / 'data')
    Image.open(data / 'test' / 'ant' / '3.png').save(data / 'test' / 'bee' / 'copy.png', compress_level=0)
    shutil.copy(data / 'train' / 'dog' / '5.png', data / 'test' / 'cat' / 'other.png')
    checkpoint = save(tmp_path / 'run' / 'last.pth.tar', pictures(data), two_outputs())
    assert run('--checkpoint', checkpoint, '--scores', 'mls,knn-mean') == 0
    found = results_of(tmp_path / 'run' / 'osr')['duplicates']
    assert found['compared_with'] == {'test': 12, 'train': 12}
    assert found['n_identical'] == 2
    assert {(pair['unknown'], pair['known'], pair['part']) for pair in found['identical']} == {
        ('bee/copy.png', 'ant/3.png', 'test'), ('cat/other.png', 'dog/5.png', 'train')}
    assert len(found['closest']) == 8
    assert '\nwarning: 2 unknown images have the very pixels of known ones' in capsys.readouterr().out
    page = (tmp_path / 'run' / 'osr' / 'report.html').read_text()
    assert '2 unknown images have the very pixels' in page
    assert page.count('alt="unknown: ') == 8
    # Without a score that has the training images read, the test images are all there is to compare with.
    assert run('--checkpoint', checkpoint, '--scores', 'mls') == 0
    found = results_of(tmp_path / 'run' / 'osr')['duplicates']
    assert [pair['unknown'] for pair in found['identical']] == ['bee/copy.png']
    assert run('--checkpoint', checkpoint, '--scores', 'mls', '--duplicates', 0) == 0
    assert results_of(tmp_path / 'run' / 'osr')['duplicates'] is None
    assert 'closest to known ones' not in (tmp_path / 'run' / 'osr' / 'report.html').read_text()


def test_a_held_out_image_among_the_unknown_is_found(tmp_path, undrawn, capsys):
    data = folders(tmp_path / 'data')
    shutil.copy(data / 'train' / 'dog' / '5.png', data / 'test' / 'cat' / 'other.png')
    held = held_out(data, (5, 23))
    checkpoint = save(tmp_path / 'run' / 'last.pth.tar', pictures(data, held_out=held), two_outputs())
    assert run('--checkpoint', checkpoint, '--scores', 'mls') == 0
    found = results_of(tmp_path / 'run' / 'osr')['duplicates']
    assert found['compared_with'] == {'test': 12, 'held-out': 2}
    assert [(pair['known'], pair['part']) for pair in found['identical']] == [('dog/5.png', 'held-out')]


@pytest.mark.slow
@pytest.mark.parametrize(('pretrained', 'began'), [(True, 'test_resnet.r160_in1k'), (False, 'none')])
def test_pretraining_is_recorded_and_said(pretrained, began, tmp_path, capsys):
    data = folders(tmp_path / 'data')
    args = argparse.Namespace(model='test_resnet', pretrained=pretrained, initial_checkpoint='')
    checkpoint = save(tmp_path / 'run' / 'last.pth.tar', pictures(data), two_outputs(), args=args)
    assert run('--checkpoint', checkpoint, '--scores', 'mls') == 0
    assert results_of(tmp_path / 'run' / 'osr')['manifest']['pretraining'] == began
    page = (tmp_path / 'run' / 'osr' / 'report.html').read_text()
    for text in (capsys.readouterr().out, page, (tmp_path / 'run' / 'osr' / 'results.md').read_text()):
        assert ('eights started from test_resnet.r160_in1k' in text) is pretrained


@pytest.mark.slow
def test_what_hangs_on_settings_is_printed_and_on_the_page(tmp_path, capsys):
    checkpoint = save(tmp_path / 'run' / 'last.pth.tar', pictures(folders(tmp_path / 'data')), two_outputs())
    assert run('--checkpoint', checkpoint, '--scores', 'mls,knn,msp', '--sensitivity') == 0
    found = results_of(tmp_path / 'run' / 'osr')['sensitivity']
    assert list(found) == ['knn', 'msp']
    assert found['knn']['used'] == 12
    assert [value for value, _ in found['knn']['points']] == [1, 5, 10, 12]
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('knn by k (* used): AUROC '))
    assert line.endswith(f', 12* {100 * found["knn"]["points"][-1][1]:.2f}')
    assert 'Sensitivity to settings' in (tmp_path / 'run' / 'osr' / 'report.html').read_text()
    assert run('--checkpoint', checkpoint, '--scores', 'mls,knn') == 0
    assert results_of(tmp_path / 'run' / 'osr')['sensitivity'] == {}
    assert 'Sensitivity to settings' not in (tmp_path / 'run' / 'osr' / 'report.html').read_text()


def test_a_bare_state_dict_with_everything_named(tmp_path, undrawn, capsys):
    data = folders(tmp_path / 'data')
    torch.save(two_outputs().state_dict(), tmp_path / 'weights.pth')
    assert run('--checkpoint', tmp_path / 'weights.pth', '--model', 'test_resnet', '--data-dir', data,
               '--known-classes', 'dog,ant', '--img-size', 32, '--scores', 'mls') == 0
    results = results_of(tmp_path / 'osr')
    assert results['unknown_classes'] == ['bee', 'cat']
    assert results['manifest']['preprocessing']['input_size'] == [3, 32, 32]


@pytest.mark.slow
def test_a_checkpoint_of_timms_own_script(tmp_path, undrawn, capsys):
    """It tells the model, the data and the preprocessing, and its classes have to be named."""
    told = argparse.Namespace(model='test_resnet', num_classes=2, in_chans=None, input_size=None, img_size=32, gp=None,
                              model_kwargs={}, dataset='', data_dir=str(folders(tmp_path / 'data')),
                              train_split='train', mean=[0.4], std=[0.2], crop_pct=0.9, interpolation='nearest')
    checkpoint = save(tmp_path / 'last.pth.tar', None, two_outputs(), args=told)
    assert '--known-classes' in refused(capsys, '--checkpoint', checkpoint)
    assert run('--checkpoint', checkpoint, '--known-classes', 'ant,bee', '--scores', 'mls') == 0
    results = results_of(tmp_path / 'osr')
    assert results['unknown_classes'] == ['cat', 'dog']
    config = results['manifest']['preprocessing']
    assert (config['input_size'], config['mean'], config['crop_pct']) == ([3, 32, 32], [0.4] * 3, 0.9)


def test_groups_of_a_protocol_file(tmp_path, undrawn, capsys):
    (tmp_path / 'mine.yaml').write_text(
        'name: mine\nknown: [dog, ant]\nunknown: [bee, cat]\ngroups: {easy: [bee], hard: [cat]}\n')
    checkpoint = save(tmp_path / 'last.pth.tar', pictures(folders(tmp_path / 'data')), two_outputs())
    assert run('--checkpoint', checkpoint, '--osr-protocol', tmp_path / 'mine.yaml', '--scores', 'mls') == 0
    results = results_of(tmp_path / 'osr')
    assert results['protocol'] == 'mine'
    assert {name: part['n_unknown'] for name, part in results['groups'].items()} == {'easy': 6, 'hard': 6}
    printed = capsys.readouterr().out
    for metric in ('auroc', 'oscr'):
        figures = [f'{100 * results["groups"][name]["scores"]["mls"][metric]:6.2f}' for name in ('easy', 'hard')]
        assert f'| mls   | {figures[0]} | {figures[1]} |' in printed


def test_unknowns_of_another_data_set(tmp_path, undrawn, capsys):
    """CIFAR+N: the unknowns are of another data set than the knowns."""
    split = load_split('cifar+10')
    known, other = folders(tmp_path / 'ten', split.known, 2), folders(tmp_path / 'hundred', split.unknown, 2)
    torch.manual_seed(0)
    checkpoint = save(tmp_path / 'last.pth.tar', pictures(
        known, known_classes=split.known, unknown_classes=split.unknown, protocol='cifar+10', trial=0,
        family=split.family, model_kwargs={'num_classes': 4}), timm.create_model('test_resnet', num_classes=4))
    assert run('--checkpoint', checkpoint, '--scores', 'mls') == 2
    assert '--unknown-data-dir DIR' in capsys.readouterr().err
    assert run('--checkpoint', checkpoint, '--scores', 'mls', '--unknown-data-dir', other) == 0
    results = results_of(tmp_path / 'osr')
    assert (results['n_known'], results['n_unknown']) == (8, 20)


@pytest.mark.slow
def test_imagenets_own_head_against_the_classes_of_ssb(tmp_path, undrawn, capsys):
    """A model by name, no checkpoint: folders by WordNet id, easy and hard unknowns apart."""
    split = load_split('imagenet')
    for blue, (root, part, names) in enumerate((('in1k', 'train', split.known), ('in1k', 'val', split.known),
                                               ('in21k', 'val', split.unknown))):
        for place, name in enumerate(names):
            (tmp_path / root / part / name).mkdir(parents=True)
            Image.new('RGB', (8, 8), (place % 256, place // 256, blue)).save(tmp_path / root / part / name / '0.png')
    assert run('--model', 'test_resnet', '--osr-protocol', 'imagenet', '--data-dir', tmp_path / 'in1k',
               '--img-size', 32,
               '--unknown-data-dir', tmp_path / 'in21k', '--scores', 'mls', '--output', tmp_path / 'out') == 0
    results = results_of(tmp_path / 'out')
    assert (results['n_known'], results['n_unknown'], results['family']) == (1000, 1980, 'ssb')
    assert {name: part['n_unknown'] for name, part in results['groups'].items()} == {'easy': 1000, 'hard': 980}
    assert results['known_classes'] == sorted(split.known)


@pytest.mark.slow
def test_several_loader_processes_give_the_same(tmp_path, undrawn, capsys):
    checkpoint = save(tmp_path / 'last.pth.tar', pictures(folders(tmp_path / 'data')), two_outputs())
    for workers in (0, 2):
        assert run('--checkpoint', checkpoint, '--scores', 'mls', '--workers', workers, '--output',
                   tmp_path / str(workers)) == 0
    assert results_of(tmp_path / '0')['scores'] == results_of(tmp_path / '2')['scores']


# ---- what a user gets wrong: status 2, one line, what to type

def refused(capsys, *argv):
    assert run(*argv) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert lines[-1].startswith('error: ')
    assert 'Traceback' not in captured.err
    assert not [line for line in captured.out.splitlines() if line.startswith('|')]
    return lines[-1]


@pytest.mark.parametrize(('argv', 'words'), [
    ((), 'nothing to evaluate: --checkpoint FILE, or --model NAME --pretrained'),
    (('--checkpoint', 'nowhere.pth.tar'), 'no checkpoint at nowhere.pth.tar'),
    (('--checkpoint', '{good}', '--scores', 'mls,enrgy'), "--scores enrgy: no score named 'enrgy': did you mean"),
    (('--checkpoint', '{text}'), 'is text, beginning'),
    (('--checkpoint', '{good}', '--bootstrap', '-1', '--seed', '0'), '--bootstrap -1: expected 0 or more'),
    (('--checkpoint', '{good}', '--batch-size', '0'), '--batch-size 0: expected 1 or more'),
    (('--checkpoint', '{good}', '--device', 'cuda:77'), 'type --device cpu'),
    (('--checkpoint', '{good}', '--output', '{text}'), 'is a file, expected a folder'),
    (('--checkpoint', '{good}', '--known-classes', '2,4'), 'the checkpoint knows 6 classes and 2 were given'),
    (('--checkpoint', '{good}', '--known-classes', '2,4', '--osr-protocol', 'digits'), 'give one'),
    (('--checkpoint', '{good}', '--osr-protocol', 'digit'), "did you mean 'digits'"),
    (('--checkpoint', '{good}', '--osr-protocol', 'digits', '--osr-trial', '1'), 'class 0 of the head'),
    (('--checkpoint', '{good}', '--test-split', 'val'), "no split 'val' in sklearn/digits"),
    (('--checkpoint', '{good}', '--dataset', '', '--data-dir', 'gone'), 'no folder at gone; --data-dir'),
    (('--checkpoint', '{bare}'), 'name the model, --model NAME|--known-classes'),
    (('--checkpoint', '{good}', '--pretrained'), 'leave out --pretrained or --checkpoint'),
    (('--model', 'test_resnte', '--known-classes', 'a,b'), "no model 'test_resnte'")])
def test_mistakes_end_in_one_line(argv, words, tmp_path, capsys):
    good = save(tmp_path / 'run' / 'last.pth.tar', digits(held_out={}))
    (tmp_path / 'notes.txt').write_text('hello there')
    torch.save({'fc.weight': torch.zeros(2, 2)}, tmp_path / 'bare.pth')
    places = {'good': good, 'text': tmp_path / 'notes.txt', 'bare': tmp_path / 'bare.pth'}
    given = [word.format(**places) for word in argv]
    code = run_console(osr.main, ['osr', *given, *(() if '--device' in given else QUICK[2:4])])
    captured = capsys.readouterr()
    assert code == 2
    error = captured.err.strip().splitlines()[-1]
    assert error.startswith('error: ')
    assert any(part in error for part in words.split('|')), error
    assert 'Traceback' not in captured.err
    assert not (tmp_path / 'run' / 'osr').exists()


def test_data_that_moved_names_the_flag(tmp_path, undrawn, capsys):
    checkpoint = save(tmp_path / 'last.pth.tar', pictures(tmp_path / 'gone'), two_outputs())
    assert '--data-dir' in refused(capsys, '--checkpoint', checkpoint)
    data = folders(tmp_path / 'here')
    assert run('--checkpoint', checkpoint, '--data-dir', data, '--scores', 'mls') == 0


def test_no_unknown_class_left(tmp_path, capsys):
    data = folders(tmp_path / 'data', ('ant', 'dog'))
    checkpoint = save(tmp_path / 'last.pth.tar', pictures(data, unknown_classes=()), two_outputs())
    assert 'none is left as unknown' in refused(capsys, '--checkpoint', checkpoint)


def test_a_class_that_the_test_split_lacks(tmp_path, capsys):
    data = folders(tmp_path / 'data')
    shutil.rmtree(data / 'test' / 'bee')
    checkpoint = save(tmp_path / 'last.pth.tar', pictures(data), two_outputs())
    assert "'bee'" in refused(capsys, '--checkpoint', checkpoint)


def test_validation_rows_of_other_data(tmp_path, capsys):
    record = pictures(folders(tmp_path / 'data'), held_out={'ant/99.png': '0' * 32})
    checkpoint = save(tmp_path / 'last.pth.tar', record, two_outputs())
    assert 'with --data-dir' in refused(capsys, '--checkpoint', checkpoint)


def test_a_broken_image_is_named(tmp_path, capsys, workers_end):
    data = folders(tmp_path / 'data')
    (data / 'test' / 'cat' / '3.png').write_bytes(b'not an image')
    checkpoint = save(tmp_path / 'last.pth.tar', pictures(data), two_outputs())
    for workers in (0, 2):
        line = refused(capsys, '--checkpoint', checkpoint, '--workers', workers)
        assert os.path.join('cat', '3.png') in line


@pytest.mark.slow
def test_a_model_that_gives_nan_leaves_the_old_files(tmp_path, capsys):
    data, model = folders(tmp_path / 'data'), two_outputs()
    checkpoint = save(tmp_path / 'last.pth.tar', pictures(data), model)
    assert run('--checkpoint', checkpoint, '--scores', 'mls') == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in (tmp_path / 'osr').rglob('*') if path.is_file()}
    with torch.no_grad():
        model.fc.bias[0] = float('nan')
    save(checkpoint, pictures(data), model)
    assert 'NaN logits' in refused(capsys, '--checkpoint', checkpoint, '--scores', 'mls')
    assert {path: path.read_bytes() for path in (tmp_path / 'osr').rglob('*') if path.is_file()} == before


@pytest.mark.slow
def test_a_score_asked_for_that_the_data_cannot_serve(tmp_path, undrawn, capsys):
    """Two images a class are too few for a covariance; unasked, it is only left out."""
    checkpoint = save(tmp_path / 'last.pth.tar', pictures(folders(tmp_path / 'data', count=1)), two_outputs())
    assert '--scores mahalanobis cannot be served' in refused(
        capsys, '--checkpoint', checkpoint, '--scores', 'mls,mahalanobis')
    assert run('--checkpoint', checkpoint) == 0
    assert 'not served: mahalanobis: ' in capsys.readouterr().out


@pytest.mark.slow
def test_the_module_is_a_door_to_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['openset', 'osr', '--checkpoint', 'nowhere.pth.tar'])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module('gradmix_timm.openset', run_name='__main__')
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith('error: no checkpoint at nowhere.pth.tar')


def test_no_command_and_an_unknown_one(capsys):
    assert run_console(osr.main, []) == 2
    assert run_console(osr.main, ['osrr']) == 2
    assert 'error: ' in capsys.readouterr().err
    assert run_console(osr.main, ['osr', '--help']) == 0
