"""Killed at any moment, out of disk: the last whole checkpoint goes on, bit for bit, and nothing good is lost."""
from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import TINY, rows, run_tiny, write_images

# What each victim does to itself, once the first epoch's checkpoint is written.
HALF_A_FILE = """
import os, signal
from timm.utils import checkpoint_saver
save, calls = checkpoint_saver.torch.save, []
def half(state, path):
    calls.append(path)
    save(state, path)
    if len(calls) == 2:
        with open(path, 'r+b') as file:
            file.truncate(os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint_saver.torch.save = half
"""
MID_EPOCH = """
import os, signal
from gradmix_timm.cli.training import loop
update = loop._Epoch._updated
def killed(self, index, *rest):
    if (self.epoch, index) == (1, 2):
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, index, *rest)
loop._Epoch._updated = killed
"""
DISK_FULL = """
import resource
from gradmix_timm.cli.training import loop
from gradmix_timm.cli.training import run as stages
step = stages.train_one_epoch
def full(run, epoch):
    if epoch == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return step(run, epoch)
stages.train_one_epoch = full
"""
DEAD_WORKER = """
import os, signal
from pathlib import Path
from PIL import Image
from torch.utils.data import get_worker_info
read = Image.open
def dying(*args, **kwargs):
    if get_worker_info() and Path(LAST).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*args, **kwargs)
Image.open = dying
"""
FLAGS = ('--mixup-mode', 'gradmix', '--drop', '0.3', '--epochs', '3', '--model-ema', '--model-ema-decay', '0.9')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


def victim(images: Path, out: Path, harm: str, *flags: str) -> subprocess.CompletedProcess:
    """A run in a process of its own that meets its end."""
    argv = ['train.py', '--data-dir', str(images), '--num-classes', '4', *TINY, '--output', str(out), '--experiment',
            'run', *FLAGS, *flags]
    code = f'{harm}\nimport sys\nfrom gradmix_timm.cli import train\nsys.exit(train.console({argv[1:]!r}))\n'
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, 'OMP_NUM_THREADS': str(torch.get_num_threads())})


def weights(path: Path) -> dict:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize('harm', [
    pytest.param(HALF_A_FILE, id='in a checkpoint'), pytest.param(MID_EPOCH, id='in an epoch'),
])
def test_a_killed_run_goes_on_as_if_it_had_not_been(harm, images, tmp_path):
    straight = run_tiny(images, tmp_path, *FLAGS, name='straight')
    assert victim(images, tmp_path, harm).returncode == -signal.SIGKILL
    assert weights(tmp_path / 'run' / 'last.pth.tar')['epoch'] == 0
    run = run_tiny(images, tmp_path, *FLAGS, '--resume', 'auto')
    assert rows(run) == rows(straight)
    left, right = (weights(folder / 'last.pth.tar') for folder in (straight, run))
    for key in ('state_dict', 'state_dict_ema'):
        assert all(torch.equal(left[key][name], right[key][name]) for name in left[key])
    names = [{path.name for path in folder.iterdir()} for folder in (straight, run)]
    assert names[0] == names[1], 'the broken file is gone'


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_earlier_checkpoint_stays(images, tmp_path):
    ended = victim(images, tmp_path, DISK_FULL)
    assert ended.returncode == 1, ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1
    last = tmp_path / 'run' / 'last.pth.tar'
    assert 'Traceback' not in ended.stderr
    for words in ('could not be written', 'disk full', '--resume auto', f'last checkpoint: {last}'):
        assert words in errors[0]
    for name in ('last.pth.tar', 'model_best.pth.tar', 'checkpoint-0.pth.tar'):
        assert weights(tmp_path / 'run' / name)['epoch'] == 0
    again = run_tiny(images, tmp_path, *FLAGS, '--resume', 'auto')
    assert [row['epoch'] for row in rows(again)] == ['0', '1', '2']


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run_with_one_line_and_the_last_checkpoint(images, tmp_path):
    last = tmp_path / 'run' / 'last.pth.tar'
    ended = victim(images, tmp_path, f'LAST = {str(last)!r}\n{DEAD_WORKER}', '--workers', '1')
    assert ended.returncode == 1, ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1
    assert 'worker' in errors[0]
    assert f'last checkpoint: {last}' in errors[0]
    assert weights(last)['epoch'] == 0
