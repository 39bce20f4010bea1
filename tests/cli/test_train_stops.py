"""A signal ends a run between two updates with a checkpoint, from which it goes on to the last bit."""
from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_training import TINY, rows, run_tiny, write_images

from gradmix_timm.cli import train
from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.training import loop, validation

ROOT = Path(__file__).parent.parent.parent
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
    pytest.param(('--no-prefetcher', '--mixup', 0.4, '--mixup-mode', 'elem', '--drop', 0.3), 1, 2, id='timm mixup',
                 marks=pytest.mark.slow),
    pytest.param((*AVERAGED, '--grad-accum-steps', 2), 1, 2, id='gradmix, in a window',
                 marks=pytest.mark.slow),
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


@pytest.mark.slow
def test_a_run_that_is_stopped_twice_in_an_epoch_goes_on_exactly(images, tmp_path, signalled):
    flags = ('--drop', 0.3, '--reprob', 0.5)
    straight = run_tiny(images, tmp_path, *flags, name='straight')
    for index in (1, 0):  # counted from where it goes on
        signalled(1, index)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(images, tmp_path, *flags, '--resume', 'auto', name='parts')
    parts = run_tiny(images, tmp_path, *flags, '--resume', 'auto', name='parts')
    assert rows(parts) == rows(straight)


@pytest.mark.slow
def test_a_run_stopped_in_validation_validates_again_and_trains_no_batch_twice(images, tmp_path, monkeypatch):
    straight = run_tiny(images, tmp_path, *GRADMIX, name='straight', pictures=True)
    judge, calls = validation._judge, []

    def noticed(*args):
        calls.append(args)
        if len(calls) == 3:  # the first batch of the second epoch's validation
            os.kill(os.getpid(), signal.SIGTERM)
        judge(*args)

    monkeypatch.setattr(validation, '_judge', noticed)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(images, tmp_path, *GRADMIX, '--resume', 'auto', name='parts')
    assert len(rows(tmp_path / 'parts')) == 1
    monkeypatch.undo()
    monkeypatch.setattr(loop._Epoch, 'step', None)
    parts = run_tiny(images, tmp_path, *GRADMIX, '--resume', 'auto', name='parts', pictures=True)
    assert rows(parts) == rows(straight)
    assert (parts / 'mixes.json').read_bytes() == (straight / 'mixes.json').read_bytes()


@pytest.mark.parametrize(('number', 'status', 'words'), [
    (signal.SIGINT, 130, 'interrupted'), (signal.SIGTERM, 143, 'stopped by SIGTERM'),
    (signal.SIGUSR1, 138, 'stopped by SIGUSR1')])
def test_the_status_is_128_and_the_signal_and_a_checkpoint_is_there(number, status, words, images, tmp_path, capsys,
                                                                    signalled):
    signalled(0, 1, number)
    before = signal.getsignal(number)
    argv = ['--data-dir', str(images), '--num-classes', '4', *TINY, '--output', str(tmp_path), '--experiment', 'run']
    assert run_console(train.main, argv) == status
    printed = capsys.readouterr()
    last = tmp_path / 'run' / 'last.pth.tar'
    assert printed.err.splitlines()[-1] == f'error: {words}; last checkpoint: {last}'
    assert '--result' not in printed.out
    assert last.is_file()
    assert not (tmp_path / 'run' / 'run.lock').exists()
    assert signal.getsignal(number) is before


def test_a_position_of_other_flags_is_refused(images, tmp_path, signalled, capsys):
    signalled(0, 3)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(images, tmp_path)
    for size, batches in ((16, 2), (4, 8)):
        with pytest.raises(ValueError, match=f'after 4 of 5 batches of epoch 0, and now an epoch has {batches}'):
            run_tiny(images, tmp_path, '--resume', 'auto', '-b', size)


def test_timms_reader_trains_the_epoch_from_its_start(images, tmp_path, signalled):
    signalled(1, 1)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(images, tmp_path)
    state = content(tmp_path / 'run' / 'last.pth.tar')
    assert state['epoch'] == 0  # timm goes on with the next
    again = run_tiny(images, tmp_path, '--resume', 'auto', '--start-epoch', 1)
    assert [row['epoch'] for row in rows(again)] == ['0', '1']


def test_the_first_epoch_is_not_skipped_where_the_position_is_not_read(images, tmp_path, signalled, monkeypatch):
    """As for a checkpoint of other processes: red before, the run went on with the second epoch."""
    signalled(0, 1)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(images, tmp_path)
    assert content(tmp_path / 'run' / 'last.pth.tar')['epoch'] == -1
    monkeypatch.setattr('gradmix_timm.cli.training.run.recorded_streams', lambda *args: None)
    again = run_tiny(images, tmp_path, '--resume', 'auto')
    assert [row['epoch'] for row in rows(again)] == ['0', '1']


# ---- several processes

def start(rank, port, images, out, *flags, script=ROOT / 'train.py'):
    """One of two processes of a run, as a launcher starts it."""
    command = [sys.executable, str(script), '--data-dir', str(images), '--num-classes', '4', *TINY,
               '--output', str(out), '--experiment', 'run', *map(str, flags)]
    world = {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1',
             'MASTER_PORT': str(port), 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen(command, env={**os.environ, **world}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(('', 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_batch(images, tmp_path):
    port = free_port()
    flags = (*GRADMIX, '-b', 4, '--epochs', 400, '--resume', 'auto')
    both = [start(rank, port, images, tmp_path, *flags) for rank in range(2)]
    last, waited = tmp_path / 'run' / 'last.pth.tar', time.monotonic() + 120
    while not last.exists() and time.monotonic() < waited:
        time.sleep(0.1)
    both[1].send_signal(signal.SIGUSR1)
    told = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [138, 138], told
    errors = [[line for line in text.splitlines() if line.startswith('error: ')] for text in told]
    assert errors == [[f'error: stopped by SIGUSR1; last checkpoint: {last}'], []]
    done = len(rows(tmp_path / 'run'))
    port = free_port()
    both = [start(rank, port, images, tmp_path, *flags, '--stop-epoch', done + 1) for rank in range(2)]
    told = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert len(rows(tmp_path / 'run')) == done + 1


SIGNALLED = """
import os, signal, sys
from gradmix_timm.cli import train
from gradmix_timm.cli.training import loop
learn, asked = loop._Epoch._learn, []
def noticed(self, *rest):
    asked.append(self.epoch)
    if os.environ['RANK'] == '1' and asked.count(1) == 2:
        os.kill(os.getpid(), signal.SIGUSR1)
    return learn(self, *rest)
loop._Epoch._learn = noticed
sys.exit(train.console(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_processes_stopped_in_an_epoch_go_on_with_the_norms_of_each(images, tmp_path):
    """Red before: the moving average of the second one's BatchNorm went on from that of the first."""
    script = tmp_path / 'signalled.py'
    script.write_text(SIGNALLED)
    for out, steps in (('straight', [(ROOT / 'train.py', 0)]), ('parts', [(script, 138), (ROOT / 'train.py', 0)])):
        for run, status in steps:
            port = free_port()
            both = [start(rank, port, images, tmp_path / out, *GRADMIX, '-b', 4, '--model-ema', '--resume', 'auto',
                          script=run) for rank in range(2)]
            told = [process.communicate(timeout=240)[1] for process in both]
            assert [process.returncode for process in both] == [status, status], told
    left, right = (tmp_path / out / 'run' for out in ('straight', 'parts'))
    assert rows(right) == rows(left)
    left, right = (content(folder / 'last.pth.tar') for folder in (left, right))
    assert same(left['state_dict'], right['state_dict'])
    assert same(left['state_dict_ema'], right['state_dict_ema'])


@pytest.mark.slow
def test_an_error_of_set_up_and_a_warning_are_printed_by_one_process(images, tmp_path):
    port = free_port()
    both = [start(rank, port, images / 'nothing', tmp_path, '--cutmix', 1, '--mixup-mode', 'gradmix')
            for rank in range(2)]
    told = ''.join(process.communicate(timeout=120)[1] for process in both)
    assert [process.returncode for process in both] == [2, 2]
    assert len([line for line in told.splitlines() if line.startswith('error: ')]) == 1
    assert told.count('--cutmix unused') == 1
    assert 'Traceback' not in told
    assert not (tmp_path / 'run').exists()
