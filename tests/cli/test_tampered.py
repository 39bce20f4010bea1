"""Commands on files from elsewhere: exit 2 and one line with the file's name; nothing is opened, fetched or run."""
from __future__ import annotations

import argparse
import json
import socket

import pytest
import timm.data.dataset_factory
import timm.models
import torch
from tiny_checkpoints import class_folders, save_checkpoint

from gradmix_timm.checkpoint import KEY
from gradmix_timm.classifier import OpenSetClassifier
from gradmix_timm.cli import predict, show
from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.openset.main import main as openset

QUICK = ('--device', 'cpu', '--workers', '0')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp('data'), count=8)


@pytest.fixture
def checkpoint(data, tmp_path):
    return save_checkpoint(tmp_path / 'theirs.pth.tar', data, held=[0, 1, 2, 16, 17, 18])


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch, tmp_path):
    """The readers and hubs that a file may not choose, and the network, end the test."""
    monkeypatch.chdir(tmp_path)
    readers = timm.data.dataset_factory

    def trap(*args, **kwargs):
        raise SystemError(f'a file made this run: {args} {kwargs}')

    monkeypatch.setattr(socket.socket, 'connect', trap)
    monkeypatch.setattr(readers, 'IterableImageDataset', trap)
    monkeypatch.setattr(timm.models._factory, 'load_model_config_from_hf', trap)
    monkeypatch.setattr(timm.models._factory, 'load_model_config_from_path', trap)
    monkeypatch.setattr(timm.models._factory, 'load_checkpoint', trap)
    monkeypatch.setattr(timm.models._builder, 'load_pretrained', trap)


def commands(path, data):
    acceptance = () if path.is_dir() else ('--known-acceptance', '0.5')
    image = next((data / 'test' / 'cat').iterdir())
    return {
        'osr': (openset, ('osr', '--checkpoint', path, '--scores', 'mls', '--bootstrap', '0', *QUICK)),
        'ood': (openset, ('ood', '--checkpoint', path, '--scores', 'mls', '--unknown', 'noise:uniform', *QUICK)),
        'corrupt': (openset, ('corrupt', '--checkpoint', path, '--scores', 'mls', *QUICK)),
        'probe': (openset, ('probe', '--checkpoint', path, *QUICK)),
        'predict': (predict.main, ('--checkpoint', path, '--device', 'cpu', image, *acceptance)),
        'show': (show.main, ('--checkpoint', path, '--images', data / 'test', '--device', 'cpu'))}


def refused(command, path, data, capsys):
    main, argv = commands(path, data)[command]
    status = run_console(main, list(map(str, argv)))
    errors = capsys.readouterr().err.splitlines()
    assert (status, len([line for line in errors if line.startswith('error: ')])) == (2, 1), errors[-5:]
    assert not [line for line in errors if 'Traceback' in line]
    assert 'theirs' in errors[-1]
    assert len(errors[-1]) < 1500
    return errors[-1]


def change(path, where, **entries):
    content = torch.load(path, weights_only=True)
    if where == KEY:
        content[KEY] = {**content[KEY], **entries}
    else:  # a plain checkpoint of timm's training
        del content[KEY]
        content['args'] = argparse.Namespace(model='test_resnet', num_classes=2, **entries)
    torch.save(content, path)


def crossed(entries, commands):
    """Every entry with the first command and with one of the others in turn; the rest are slow."""
    return [pytest.param(entry, command, id=f'{command} {entry}',
                         marks=() if number in (0, 1 + place % (len(commands) - 1)) else pytest.mark.slow)
            for place, entry in enumerate(entries) for number, command in enumerate(commands)]


@pytest.mark.parametrize(('entries', 'command'), crossed([
    {'dataset': 'wds/x', 'data_dir': 'pipe:touch hacked'}, {'dataset': 'hfids/x'}, {'dataset': 'tfds/x'},
    {'data_dir': 'pipe:touch hacked'}, {'data_dir': 's3://bucket'}], ['osr', 'ood', 'corrupt', 'probe', 'predict']))
def test_a_record_never_picks_a_reader_or_a_scheme(entries, command, checkpoint, data, capsys, tmp_path):
    change(checkpoint, KEY, **entries)
    line = refused(command, checkpoint, data, capsys)
    assert '--data-dir' in line
    assert not (tmp_path / 'hacked').exists()


@pytest.mark.parametrize('command', ['osr', 'ood', 'corrupt', 'probe'])
def test_timms_arguments_never_do_either(command, checkpoint, data, capsys, tmp_path):
    change(checkpoint, 'args', dataset='wds/x', data_dir='pipe:touch hacked')
    main, argv = commands(checkpoint, data)[command]
    status = run_console(main, [*map(str, argv), '--known-classes', 'cat,ant'])
    assert status == 2
    assert 'theirs.pth.tar names the data set' in capsys.readouterr().err
    assert not (tmp_path / 'hacked').exists()


@pytest.mark.parametrize(('entries', 'command'), crossed([
    {'model': 'hf-hub:x/y'}, {'model': 'local-dir:/etc'}, {'model_kwargs': {'num_classes': 2, 'cache_dir': '/tmp'}},
    {'model_kwargs': {'num_classes': 2, 'checkpoint_path': '/etc/passwd'}},
    {'model_kwargs': {'num_classes': 2, 'pretrained': True}}, {'data_config': {'input_size': [3, 'x', 32]}},
    {'data_config': {'input_size': [3, 32, 32], 'pipeline': {'path': 'a', 'transform': {
        '__class_fullname__': 'TextImage', 'font_path': '/etc/passwd', 'p': 1.0}}, 'mean': [0.5], 'std': [0.5]}},
    {'known_classes': 3}, {'held_out': [[1]]}, {'data_config': {'input_size': [5, 32, 32]}}
    ], ['osr', 'ood', 'predict', 'show']))
def test_a_record_never_says_what_else_is_loaded(entries, command, checkpoint, data, capsys):
    change(checkpoint, KEY, **entries)
    refused(command, checkpoint, data, capsys)


def test_what_the_user_types_goes_over_what_a_file_may_not_choose(checkpoint, data, capsys, undrawn):
    change(checkpoint, KEY, dataset='wds/x', data_dir='pipe:touch hacked')
    main, argv = commands(checkpoint, data)['osr']
    typed = ('--dataset', '', '--data-dir', data, '--feature-map', '0', '--trivial-images', '0', '--duplicates', '0')
    assert run_console(main, [*map(str, argv), *map(str, typed)]) == 0, capsys.readouterr().err


def test_a_saved_classifier_without_a_threshold_is_refused(checkpoint, data, capsys, tmp_path):
    OpenSetClassifier.from_checkpoint(checkpoint, known_acceptance=0.5, device='cpu').save(tmp_path / 'theirs')
    path = tmp_path / 'theirs' / 'classifier.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'threshold': float('nan')}))
    assert 'NaN is no number' in refused('predict', tmp_path / 'theirs', data, capsys)
