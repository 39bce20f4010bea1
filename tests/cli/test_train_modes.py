"""Training with a registered mixer under compilation, several processes and the other paths that take their time."""
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

from gradmix_timm.checkpoint import KEY, load_checkpoint
from gradmix_timm.cli.training.run_state import STREAMS

ROOT = Path(__file__).parent.parent.parent
GRADMIX = ('--mixup-mode', 'gradmix')

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


def torchrun(images, out, *flags, name='run'):
    """Train in two processes on the CPU."""
    with socket.socket() as probe:
        probe.bind(('', 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={port}',
        str(ROOT / 'train.py'), '--data-dir', str(images), '--num-classes', '4', *TINY, '--output', str(out),
        '--experiment', name, *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'},
                          check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return out / name


def test_two_processes_train_draw_apart_and_resume_exactly(images, tmp_path):
    flags = (*GRADMIX, '--batch-size', 4, '--grad-accum-steps', 2, '--model-ema', '--drop', 0.3)
    straight = torchrun(images, tmp_path, *flags, name='straight')
    torchrun(images, tmp_path, *flags, '--stop-epoch', 1, '--resume', 'auto', name='parts')
    parts = torchrun(images, tmp_path, *flags, '--resume', 'auto', name='parts')
    assert len(rows(straight)) == 2
    assert rows(parts) == rows(straight)
    left, right = (load_checkpoint(f / 'last.pth.tar', ema=False).state_dict for f in (straight, parts))
    assert all(torch.equal(left[key], right[key]) for key in left)
    with torch.serialization.safe_globals([argparse.Namespace]):
        streams = torch.load(straight / 'last.pth.tar', weights_only=True)[KEY][STREAMS]
    assert len(streams) == 2
    assert not torch.equal(streams[0]['torch'], streams[1]['torch'])


@pytest.mark.parametrize('flags', [
    (), ('--grad-accum-steps', 2), ('--model-ema', '--model-ema-decay', 0.9), ('--drop', 0.3),
    ('--gradmix-keep-clean',)],
    ids=['plain', 'accumulation', 'average', 'dropout', 'keep clean'])
def test_a_compiled_run_gives_the_figures_of_an_eager_one(flags, images, tmp_path):
    eager = run_tiny(images, tmp_path, *GRADMIX, *flags, name='eager')
    compiled = run_tiny(images, tmp_path, *GRADMIX, *flags, '--torchcompile', 'aot_eager', name='compiled')
    names = load_checkpoint(eager / 'last.pth.tar').state_dict.keys()
    assert load_checkpoint(compiled / 'last.pth.tar').state_dict.keys() == names
    for left, right in zip(rows(eager), rows(compiled), strict=True):
        # Other kernels for the backward pass; dropout draws in another order once compiled.
        tolerance = 0.3 if '--drop' in flags else 1e-3
        assert float(right['train_loss']) == pytest.approx(float(left['train_loss']), rel=tolerance)


def test_multi_epochs_loader_and_images_on_disk(images, tmp_path):
    folder = run_tiny(images, tmp_path, *GRADMIX, '--use-multi-epochs-loader', '--save-images', '--workers', 1)
    assert len(rows(folder)) == 2
    assert list(folder.glob('train-batch-*.jpg'))


@pytest.mark.parametrize(('number', 'status', 'words'), [
    (signal.SIGINT, 130, 'interrupted'), (signal.SIGTERM, 143, 'stopped by SIGTERM'),
    (signal.SIGUSR1, 138, 'stopped by SIGUSR1')])
def test_a_signal_to_a_run_with_workers_ends_it_and_names_the_last_checkpoint(number, status, words, images, tmp_path):
    command = [sys.executable, str(ROOT / 'train.py'), '--data-dir', str(images), '--num-classes', '4', *TINY,
               '--output', str(tmp_path), '--experiment', 'run', '--epochs', '500', '--workers', '2', *GRADMIX]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    last, waited = tmp_path / 'run' / 'last.pth.tar', time.monotonic() + 120
    while not last.exists() and running.poll() is None and time.monotonic() < waited:
        time.sleep(0.1)
    os.killpg(running.pid, number)  # as terminals and schedulers do: to every process of the run
    told = running.communicate(timeout=60)[1]
    assert running.returncode == status, told
    assert told.splitlines()[-1] == f'error: {words}; last checkpoint: {last}'
    assert 'Traceback' not in told


def test_the_script_itself_ends_with_one_line(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / 'train.py'), '--device', 'cpu', '--output', str(tmp_path)],
                          capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith('error: no data given: --data-dir DIR')
    assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_labels_that_are_known_after_the_forward_pass(tmp_path):
    images = write_images(tmp_path / 'images')
    folder = run_tiny(images, tmp_path, '--model', 'test_vit', '--mixup-mode', 'mixup+transmix', '--amp', '--amp-dtype',
                      'bfloat16', '--mixup-switch-prob', 0.8)
    assert len(rows(folder)) == 2
    with pytest.raises(ValueError, match='has no class token'):
        run_tiny(images, tmp_path, '--mixup-mode', 'transmix', name='refused')
