"""The evaluation commands on odd data: training images, ImageNet by folders, names that are not UTF-8, empty words."""
from __future__ import annotations

import json
import os
import shutil
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_checkpoints import class_folders, save_checkpoint

from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.openset import main as command
from gradmix_timm.evaluation import Evaluation

QUICK = ('--bootstrap', '0', '--device', 'cpu', '--workers', '0')
MORE = {'osr': ('--trivial-images', '0', '--feature-map', '0'),
        'ood': ('--trivial-images', '0', '--feature-map', '0', '--unknown', 'noise:clouds', '--made-images', '4'),
        'corrupt': ('--corruptions', 'brightness', '--severities', '1'), 'probe': ('--shots', '1', '--draws', '2')}


def run(name, *argv):
    return run_console(command.main, [name, *map(str, argv), *QUICK, *MORE[name]])


def refused(capsys, name, *argv):
    capsys.readouterr()
    assert run(name, *argv) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith('error: ')
    return line


def results_of(folder):
    return json.loads((folder / 'results.json').read_text())


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp('commands')
    data = class_folders(root / 'data', count=10)
    return data, save_checkpoint(root / 'run' / 'last.pth.tar', data, held=())


# ---- images that training used

@pytest.mark.parametrize('name', ['osr', 'ood', 'corrupt', 'probe'])
@pytest.mark.parametrize('how', ['flat', 'split', 'copies', 'links'])
def test_no_command_evaluates_on_training_images(name, how, place, tmp_path, capsys):
    data, checkpoint, argv = place[0], place[1], ()
    if how == 'flat':
        data, checkpoint = data / 'train', save_checkpoint(tmp_path / 'last.pth.tar', data / 'train', held=())
    elif how == 'split':
        argv = ('--test-split', 'train')
    else:
        (tmp_path / 'd').mkdir()
        shutil.copytree(data / 'train', tmp_path / 'd' / 'train')
        shutil.copytree(data / 'train', tmp_path / 'd' / 'test', copy_function=(
            shutil.copy if how == 'copies' else os.symlink))
        for folder in (tmp_path / 'd' / 'test').iterdir():  # other names
            for path in folder.iterdir():
                path.rename(path.with_name(f'x{path.name}'))
        argv = ('--data-dir', tmp_path / 'd')
    line = refused(capsys, name, '--checkpoint', checkpoint, *argv, '--output', tmp_path / 'out')
    assert 'test images are training images' in line
    assert '--test-split NAME' in line
    assert not (tmp_path / 'out').exists()


@pytest.mark.usefixtures('undrawn')
def test_a_flat_folder_is_split_and_said_if_the_weights_are_of_other_data(place, tmp_path, caplog):
    torch.manual_seed(0)
    torch.save(timm.create_model('test_resnet', num_classes=2).state_dict(), tmp_path / 'bare.pth')
    for name in ('one', 'two'):
        assert run('osr', '--checkpoint', tmp_path / 'bare.pth', '--model', 'test_resnet', '--img-size', '32',
                   '--data-dir', place[0] / 'train', '--known-classes', 'cat,ant', '--output', tmp_path / name) == 0
    one, two = (results_of(tmp_path / name) for name in ('one', 'two'))
    assert (one['n_known'], one['manifest']['data']['n_train']) == (4, 16)
    assert one['manifest']['data']['flat_test'] == '4 of 20 images, stratified, seed 0'
    assert one['manifest']['list_sha256'] == two['manifest']['list_sha256']
    assert 'has no split folders: 4 of its 20 images' in caplog.text


# ---- ImageNet as people have it

def imagenet(root, names, split='val'):
    rng = np.random.default_rng(0)
    for name in names:
        (root / split / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / name / f'{number}.png')
    return root


@pytest.mark.parametrize('folders', [('n01440764', 'n02123045'), ('tench', 'tabby')], ids=['synset', 'name'])
@pytest.mark.usefixtures('undrawn')
def test_a_net_of_imagenet_is_evaluated_with_val_alone(folders, tmp_path, caplog):
    data = imagenet(tmp_path / 'ILSVRC', (*folders, 'zebra crossing'))
    assert run('ood', '--model', 'test_resnet', '--data-dir', data, '--img-size', '64', '--output', tmp_path) == 0
    results = results_of(tmp_path)
    assert len(results['known_classes']) == 1000
    assert results['known_classes'][281] == folders[1]
    assert results['n_known'] == 8
    assert {'msp', 'mls', 'energy'} <= set(results['scores'])
    assert 'knn' in results['not_served']
    assert 'has 2 of the 1000 known classes' in caplog.text
    assert 'left out (zebra crossing)' in caplog.text
    assert caplog.text.count('scores that are fitted are left out') == 1
    assert set(np.load(tmp_path / 'arrays.npz')['known_label']) == {0, 281}


# ---- names

@pytest.mark.slow
@pytest.mark.parametrize('name', ['osr', 'ood', 'corrupt', 'probe'])
def test_names_that_are_not_utf8_lose_nothing(name, tmp_path, capsys):
    data = class_folders(tmp_path / 'data', count=10)
    odd = os.fsdecode(b'b\xe9e')
    for split in ('train', 'test'):
        (data / split / 'bee').rename(data / split / odd)
        (data / split / 'cat' / '00.png').rename(data / split / 'cat' / os.fsdecode(b'\xff.png'))
    checkpoint = save_checkpoint(tmp_path / 'run' / 'last.pth.tar', data, unknown_classes=(odd,), held=())
    argv = ('--unknown', f'folder:{odd}={data / "test"}', '--overlap', 'drop') if name == 'ood' else ()
    assert run(name, '--checkpoint', checkpoint, *argv) == 0
    folder = tmp_path / 'run' / name
    for path in folder.iterdir():
        if path.suffix in ('.json', '.csv', '.md', '.tex', '.html'):
            path.read_text(encoding='utf-8')
    if name == 'osr':
        assert results_of(folder)['unknown_classes'] == [odd]
        assert any('\\udcff.png' in row['file'] for row in Evaluation.load(folder).predictions)


# ---- words

@pytest.mark.parametrize(('name', 'argv', 'message'), [
    ('osr', ('--scores', ''), '--scores: got an empty word'),
    ('ood', ('--scores', ''), '--scores: got an empty word'),
    ('corrupt', ('--scores', ''), '--scores: got an empty word'),
    ('osr', ('--output', ''), '--output: got an empty word'), ('probe', ('--data-dir', ''), '--data: got an empty'),
    ('corrupt', ('--cache', ''), '--cache: got an empty word'),
    ('osr', ('--known-classes', ''), '--known-classes: got an empty word'),
    ('osr', ('--osr-trial', '1'), '--osr-trial 1 chooses among the trials of a protocol; add --osr-protocol NAME'),
    ('probe', ('--osr-family', 'neal2018_cac'), '--osr-family neal2018_cac chooses'),
    ('osr', ('--unknown-dataset', 'nope'), "--unknown-dataset nope: the unknown classes here are of the known ones'"),
    ('osr', ('--unknown-data-dir', 'nope'), '--unknown-data-dir nope: the unknown'),
    ('osr', ('--amp-dtype', 'bfloat16'), '--amp-dtype bfloat16 has no effect without --amp'),
    ('ood', ('--reference-top1', '0.99'), 'expected percent, from 1 to 100'),
    ('osr', ('--img-size', '0'), '--img-size 0: expected 1 or more'),
    ('osr', ('stray',), 'stray'), ('probe', ('--probes', ''), '--probes: got an empty word')])
def test_words_that_would_be_ignored_are_refused(name, argv, message, place, capsys):
    assert message in refused(capsys, name, '--checkpoint', place[1], *argv)


@pytest.mark.usefixtures('undrawn')
def test_modules_of_the_user_are_imported_before_scores_are_looked_up(place, tmp_path, monkeypatch):
    (tmp_path / 'my_margin.py').write_text(
        'from gradmix_timm.openset.scores import SCORES\nfrom gradmix_timm.openset.scores.base import Score\n\n'
        "@SCORES.register('my-margin', 'first minus second logit')\nclass Margin(Score):\n"
        '    def knownness(self, embeddings):\n'
        '        top = embeddings.logits.double().topk(2, 1).values\n        return top[:, 0] - top[:, 1]\n')
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert run('osr', '--checkpoint', place[1], '--device-modules', 'my_margin', '--scores', 'my-margin',
                   '--output', tmp_path / 'out') == 0
    finally:
        from gradmix_timm.openset.scores import SCORES
        SCORES._entries.pop('my-margin', None)
        sys.modules.pop('my_margin', None)
    assert list(results_of(tmp_path / 'out')['scores']) == ['my-margin']
