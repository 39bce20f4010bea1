"""`gradmix-predict`: a row an image, JSON for programs, saved classifiers, and what a user gets wrong."""
from __future__ import annotations

import json
import re
import runpy
import sys

import pytest
from tiny_checkpoints import class_folders, save_checkpoint

from gradmix_timm import OpenSetClassifier
from gradmix_timm.cli import predict
from gradmix_timm.cli.errors import run_console
from gradmix_timm.openset.scores import SCORES


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def checkpoint(data, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp('run') / 'model_best.pth.tar', data)


@pytest.fixture(scope='module')
def expected(checkpoint, data):
    """Predictions for every test image, in the order of their paths."""
    files = sorted((data / 'test').rglob('*.png'))
    return files, OpenSetClassifier.from_checkpoint(checkpoint, device='cpu').predict(files)


def run(*argv):
    return run_console(predict.main, [*map(str, argv), '--device', 'cpu'])


def told(capsys, *argv):
    assert run(*argv, '--json') == 0
    return json.loads(capsys.readouterr().out)


def test_json_holds_what_the_classifier_says(checkpoint, data, expected, capsys):
    found = told(capsys, '--checkpoint', checkpoint, data / 'test')
    assert [row['file'] for row in found['images']] == [str(path) for path in expected[0]]
    assert [(row['label'], row['knownness']) for row in found['images']] == [tuple(one) for one in expected[1]]
    assert all(row['accepted'] == (row['knownness'] >= found['threshold']) for row in found['images'])
    assert [row['nearest'] for row in found['images']] == [one.nearest for one in expected[1]]
    assert [row['probability'] for row in found['images']] == [one.probability for one in expected[1]]
    assert all([(best['label'], best['probability']) for best in row['top_k']] == list(one.top_k)
               for row, one in zip(found['images'], expected[1], strict=True))
    assert found['unreadable'] == []
    assert (found['score'], found['known_acceptance'], found['known_classes']) == ('mls', 0.95, ['cat', 'ant'])


def test_the_table_has_a_row_an_image_and_says_where_the_threshold_is_from(checkpoint, data, expected, capsys):
    assert run('--checkpoint', checkpoint, *expected[0][:3], data / 'test' / 'bee') == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1
    assert [cell.strip() for cell in lines[0].strip('|').split('|')] == [
        'image', 'label', 'knownness', 'nearest known', 'probability']
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:-1]]
    assert [row[0] for row in rows] == [str(path) for path in expected[0][:3] + expected[0][30:60]]
    for row, one in zip(rows, expected[1][:3] + expected[1][30:60], strict=True):
        assert (row[1], row[2]) == (one.label, f'{one.knownness:.4f}')
        assert (row[3] in ('cat', 'ant')) == (one.label == 'unknown')
    rejected = sum(row[1] == 'unknown' for row in rows)
    assert re.match(rf'{rejected} of 33 images unknown \(mls below -?\d+\.\d{{4}}; threshold set on 40 training images '
                    r'of the known classes that were held out', lines[-1])
    assert run('--checkpoint', checkpoint, expected[0][0], '--threshold', 1e3, '--score', 'msp') == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        '1 of 1 image unknown (msp below 1000.0000; threshold given by hand)')


def test_flags_reach_the_classifier(checkpoint, data, expected, capsys):
    image = expected[0][0]
    assert told(capsys, '--checkpoint', checkpoint, image, '--score', 'knn')['score'] == 'knn'
    assert told(capsys, '--checkpoint', checkpoint, image, '--known-acceptance', 0.5)['known_acceptance'] == 0.5
    given = told(capsys, '--checkpoint', checkpoint, image, '--threshold', 1e9)
    assert (given['threshold'], given['images'][0]['label'], given['known_acceptance']) == (1e9, 'unknown', None)
    own = told(capsys, '--checkpoint', checkpoint, image, '--validation', data / 'test' / 'cat')
    assert '30 validation images' in own['threshold_source']
    # Of a whole test folder only the classes that the model knows, cat and ant, count; bee says itself that it is none.
    whole = told(capsys, '--checkpoint', checkpoint, image, '--validation', data / 'test')
    assert '60 validation images' in whole['threshold_source']
    half = told(capsys, '--checkpoint', checkpoint, image, '--amp')
    assert half['images'][0]['knownness'] == pytest.approx(expected[1][0].knownness, abs=0.02)


def test_a_saved_classifier_is_taken_as_a_checkpoint(checkpoint, expected, tmp_path, capsys):
    folder = tmp_path / 'kept'
    assert run('--checkpoint', checkpoint, '--score', 'energy', '--save', folder) == 0
    assert capsys.readouterr().out == f'{folder}\n'
    first = told(capsys, '--checkpoint', checkpoint, '--score', 'energy', *expected[0])
    assert told(capsys, '--checkpoint', folder, *expected[0]) == first
    assert run('--checkpoint', folder, expected[0][0], '--score', 'mls') == 2
    assert 'leave out --score' in capsys.readouterr().err


def test_scores_of_ones_own_are_known_once_imported(checkpoint, expected, tmp_path, monkeypatch, capsys):
    (tmp_path / 'margin_of_mine.py').write_text(
        'from gradmix_timm.openset.scores import SCORES\n'
        'from gradmix_timm.openset.scores.logit import LogitScore\n\n\n'
        '@SCORES.register("margin-of-mine", "gap of the two largest logits")\n'
        'class Margin(LogitScore):\n'
        '    def of(self, logits):\n'
        '        top = logits.double().topk(2).values\n'
        '        return top[:, 0] - top[:, 1]\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    image = expected[0][0]
    assert run('--checkpoint', checkpoint, image, '--score', 'margin-of-mine') == 2
    assert 'no score' in capsys.readouterr().err
    asked = ('--score', 'margin-of-mine', '--device-modules', 'margin_of_mine')
    try:
        first = told(capsys, '--checkpoint', checkpoint, image, *asked, '--save', tmp_path / 'kept')
        assert first['score'] == 'margin-of-mine'
        assert told(capsys, '--checkpoint', tmp_path / 'kept', image, *asked[2:]) == first
    finally:
        SCORES._entries.pop('margin-of-mine', None)
    assert run('--checkpoint', checkpoint, image, '--device-modules', 'nowhere') == 2
    assert '--device-modules nowhere: no such module' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['tensor', 'image'])
def test_a_graph_is_exported(checkpoint, tmp_path, capsys, kind):
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxscript')
    assert run('--checkpoint', checkpoint, '--onnx', tmp_path / 'm.onnx', '--onnx-input', kind) == 0
    read, = onnx.load(tmp_path / 'm.onnx').graph.input
    assert read.name == {'tensor': 'images', 'image': 'image'}[kind]


def test_broken_images_are_named_and_the_others_told(checkpoint, expected, tmp_path, capsys):
    for name in ('a.png', 'b.jpg'):
        (tmp_path / name).write_bytes(b'broken')
    assert run('--checkpoint', checkpoint, tmp_path, expected[0][0], '--json') == 2
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [row['file'] for row in found['images']] == [str(expected[0][0])]
    assert found['images'][0]['knownness'] == pytest.approx(expected[1][0].knownness, rel=1e-5)
    assert [row['file'] for row in found['unreadable']] == [str(tmp_path / 'a.png'), str(tmp_path / 'b.jpg')]
    assert err.startswith(f'error: {tmp_path / "a.png"} cannot be read')
    assert 'and 1 more of 3' in err
    assert len(err.splitlines()) == 1


def mistakes(tmp_path, checkpoint, image):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'notes.pth.tar').write_text('notes')
    return {
        'no image given': ('--checkpoint', checkpoint),
        f'--validation took a {image}: name the images before it': (
            '--checkpoint', checkpoint, '--validation', 'a', image),
        'there is no file or folder nowhere': ('--checkpoint', checkpoint, 'nowhere'),
        'no image in the folder': ('--checkpoint', checkpoint, tmp_path / 'empty'),
        'no checkpoint at nowhere': ('--checkpoint', 'nowhere', image),
        'is a folder, a checkpoint is a file': ('--checkpoint', tmp_path / 'empty', image),
        "text, beginning 'notes'": ('--checkpoint', tmp_path / 'notes.pth.tar', image),
        "did you mean 'mls'": ('--checkpoint', checkpoint, image, '--score', 'mlss'),
        'between 0 and 1': ('--checkpoint', checkpoint, image, '--known-acceptance', '95'),
        'too few to promise': ('--checkpoint', checkpoint, image, '--known-acceptance', '0.99'),
        '--batch-size 0': ('--checkpoint', checkpoint, image, '--batch-size', '0'),
        '--validation: there is no file': ('--checkpoint', checkpoint, image, '--validation', 'nowhere'),
        'no folder at nowhere': ('--checkpoint', checkpoint, image, '--data-dir', 'nowhere'),
        '--onnx-input image is of an exported graph': ('--checkpoint', checkpoint, image, '--onnx-input', 'image'),
        'neither a folder here nor a repository': ('--checkpoint', 'hf-hub:', image),
        'its score, threshold and preprocessing are fixed': ('--checkpoint', 'hf-hub:a/b', image, '--score', 'mls'),
        '--checkpoint': (image,)}


def test_what_a_user_gets_wrong_ends_in_one_line(tmp_path, checkpoint, expected, capsys):
    for words, argv in mistakes(tmp_path, checkpoint, expected[0][0]).items():
        assert run(*argv) == 2, argv
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith(('usage:', '  '))]
        assert len(lines) == 1, err
        assert lines[0].startswith('error: ')
        assert words in lines[0]
        assert out == ''


def test_the_door_leads_to_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['predict', '--help'])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module('gradmix_timm.predict', run_name='__main__')
    assert stop.value.code == 0
    assert '--known-acceptance' in capsys.readouterr().out
