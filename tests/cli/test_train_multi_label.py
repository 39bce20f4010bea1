"""--task multilabel with a registered mixer: labels by weight and by union reach the loss, and validation is timm's."""
from __future__ import annotations

import pytest
import torch
from timm.loss import ZlprLoss
from tiny_training import TINY, rows, run_tiny, write_images

from gradmix_timm.cli import train
from gradmix_timm.cli.training import loaders
from gradmix_timm.cli.training.flag_checks import create_loss
from gradmix_timm.cli.training.mixing import plan_mixing

UNION, WEIGHT = (('--task', 'multilabel', '--multi-label-mix', rule) for rule in ('union', 'weight'))


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'), train=4, validation=2)


@pytest.fixture
def many_labels(monkeypatch):
    """Every third image without a label, the others with that of their folder and the next one."""
    def open_dataset(*args, **options):
        dataset = opened(*args, **options)
        dataset.reader.samples = [(path, [] if number % 3 == 2 else [label, (label + 1) % 4])
                                  for number, (path, label) in enumerate(dataset.reader.samples)]
        return dataset

    opened = loaders.open_dataset
    monkeypatch.setattr(loaders, 'open_dataset', open_dataset)


@pytest.mark.parametrize('flags', [
    (*UNION, '--mixup-mode', 'gradmix'),
    (*WEIGHT, '--mixup-mode', 'gradmix', '--gradmix-label', 'mass', '--loss', 'asl'),
    (*UNION, '--mixup-mode', 'cutmix+gradmix', '--loss', 'zlpr'),
])
def test_a_run_learns_from_mixed_rows(flags, images, tmp_path, many_labels, monkeypatch):
    seen = []

    def spy(self, output, target):
        seen.append(target)
        return forward(self, output, target)

    args = train._parse_args(['--data-dir', 'x', '--num-classes', '4', *flags])[0]
    kind = type(create_loss(args, plan_mixing(args), 4))
    forward = kind.forward
    monkeypatch.setattr(kind, 'forward', spy)
    folder = run_tiny(images, tmp_path, *flags, '--epochs', 1)
    assert {'eval_map', 'eval_micro_f1'} <= set(rows(folder)[0])
    targets = torch.cat(seen)
    assert (targets.sum(1) != 1).any(), 'rows of several labels'
    binary = ((targets == 0) | (targets == 1)).all()
    assert binary == ('union' in flags)
    if 'union' in flags:
        assert targets.sum(1).max() > 2, 'labels of both images'


def test_a_loss_of_binary_targets_goes_with_the_union_alone(capsys):
    def parse(*flags):
        return train._parse_args(['--data-dir', 'x', '--mixup-mode', 'gradmix', '--loss', 'zlpr', *flags])[0]

    args = parse(*UNION)
    assert isinstance(create_loss(args, plan_mixing(args)), ZlprLoss)
    for flags in (WEIGHT, (*UNION, '--smoothing', '0.1')):
        with pytest.raises(SystemExit):
            parse(*flags)
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith('error: --loss zlpr: ')
        assert 'binary targets' in line


@pytest.mark.parametrize('name', ['tokenmix', 'snapmix'])
def test_weights_beyond_one_name_the_flags_that_were_typed(name, capsys):
    with pytest.raises(SystemExit):
        train._parse_args(['--data-dir', 'x', *WEIGHT, '--mixup-mode', name])
    line = capsys.readouterr().err.splitlines()[-1]
    assert f'--multi-label-mix weight with --mixup-mode {name}' in line
    assert '--bce-loss' not in line


def test_class_folders_have_one_label_an_image(images, tmp_path, capsys):
    line = ['--data-dir', str(images), '--num-classes', '4', *TINY, '--output', str(tmp_path), *UNION, '--mixup-mode',
            'gradmix']
    assert train.console(line) == 2
    errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith('error: ')]
    assert len(errors) == 1
    assert '--task multilabel' in errors[0]
    assert 'hfds/' in errors[0]
