"""A signal ends a run between two updates with a checkpoint, from which it goes on to the last bit."""
from __future__ import annotations

import argparse
import os
import signal

import pytest
import torch
from tiny_training import rows, run_tiny, write_images

from gradmix_timm.cli.training import loop

GRADMIX = ('--mixup-mode', 'gradmix', '--drop', 0.3)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


def content(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def signalled(monkeypatch):
    """Sends this process a signal in a batch, once."""
    def at(epoch, index, number=signal.SIGUSR1):
        learn, sent = loop._Epoch._learn, []

        def noticed(self, *args):
            self.asked = getattr(self, 'asked', -1) + 1
            if (self.epoch, self.asked) == (epoch, index) and not sent:
                sent.append(number)
                os.kill(os.getpid(), number)
            return learn(self, *args)

        monkeypatch.setattr(loop._Epoch, '_learn', noticed)
    return at


PLAIN = ('--reprob', 0.5, '--drop', 0.3)
AVERAGED = (*GRADMIX, '--model-ema', '--model-ema-decay', 0.9, '--opt', 'adamw', '--sched-on-updates')


@pytest.mark.parametrize(('flags', 'epoch', 'index'), [
    pytest.param(PLAIN, 0, 0, id='plain, first batch'),
    pytest.param(('--no-prefetcher', '--mixup', 0.4, '--mixup-mode', 'elem', '--drop', 0.3), 1, 2, id='timm mixup'),
    pytest.param((*AVERAGED, '--grad-accum-steps', 2), 1, 2, id='gradmix, in a window'),
    pytest.param(AVERAGED, 2, 4, id='gradmix, last batch', marks=pytest.mark.slow),
    pytest.param((*GRADMIX, '--known-classes', 'bee,dog,cat', '--osr-val-fraction', 0.2, '--workers', 1), 0, 1,
                 id='workers', marks=pytest.mark.slow),
])
def test_a_run_stopped_in_an_epoch_goes_on_as_if_it_had_not_been(flags, epoch, index, images, tmp_path, signalled):
    classes = None if '--known-classes' in flags else 4
    flags = ('--epochs', 3, *flags)
    straight = run_tiny(images, tmp_path, *flags, name='straight', classes=classes)
    signalled(epoch, index)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(images, tmp_path, *flags, '--resume', 'auto', name='parts', classes=classes)
    assert len(rows(tmp_path / 'parts')) == epoch if epoch else not (tmp_path / 'parts' / 'summary.csv').exists()
    torch.rand(3)
    parts = run_tiny(images, tmp_path, *flags, '--resume', 'auto', name='parts', classes=classes)
    assert rows(parts) == rows(straight)
    left, right = (content(folder / 'last.pth.tar') for folder in (straight, parts))
    assert same(left['state_dict'], right['state_dict'])
    assert same(left.get('state_dict_ema', {}), right.get('state_dict_ema', {}))
    assert {path.name for path in parts.iterdir()} == {path.name for path in straight.iterdir()}
