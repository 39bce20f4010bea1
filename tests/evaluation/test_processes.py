"""Evaluations of several processes: the figures of one, to the last digit; one line where they fail."""
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from tiny_checkpoints import class_folders, save_checkpoint

pytestmark = pytest.mark.slow
MORE = {'osr': ('--scores', 'mls,knn', '--trivial-images', '20', '--feature-map', '0'),
        'ood': ('--unknown', 'noise:uniform', '--made-images', '21', '--scores', 'mls,knn', '--feature-map', '0',
                '--trivial-images', '0'),
        'corrupt': ('--corruptions', 'brightness,fog', '--severities', '1'),
        'probe': ('--shots', '1', '--draws', '2')}
TORCHRUN = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2')


def words(name, checkpoints, output):
    return ['-m', 'gradmix_timm.openset', name, '--checkpoint', *map(str, checkpoints), '--device', 'cpu',
            '--batch-size', '16', '--bootstrap', '0', '--output', str(output), *MORE[name]]


def run(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], env={**os.environ, 'OMP_NUM_THREADS': '1'},
                          capture_output=True, text=True, check=False, timeout=400)


def errors(text):
    return [line for line in text.splitlines() if line.startswith('error: ')]


@pytest.fixture
def data(tmp_path):
    return class_folders(tmp_path / 'data', count=24)


@pytest.fixture
def checkpoint(tmp_path, data):
    return save_checkpoint(tmp_path / 'run' / 'last.pth.tar', data, held=range(8))


@pytest.mark.parametrize('name', list(MORE))
def test_two_processes_give_what_one_gives(name, checkpoint, tmp_path):
    found = []
    for launch in ((), TORCHRUN):
        folder = tmp_path / f'out{len(launch)}'
        done = run(*launch, *words(name, [checkpoint], folder))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count('report.html') == 1
        with np.load(folder / 'arrays.npz') as arrays:
            found.append((json.loads((folder / 'results.json').read_text()), dict(arrays)))
    (one, arrays), (two, others) = found
    for key in ('scores', 'groups', 'closed_set', 'n_known', 'n_unknown'):
        assert one[key] == two[key]
    assert list(arrays) == list(others)
    assert all(np.array_equal(arrays[key], others[key], equal_nan=arrays[key].dtype.kind == 'f') for key in arrays)


def test_a_score_that_goes_back_to_the_model_is_that_of_one_process(checkpoint, tmp_path):
    """Embeddings are shared out; the passes of ODIN are the first process's."""
    name, found = 'odin:temperature=10', []
    for launch in ((), TORCHRUN):
        folder = tmp_path / f'out{len(launch)}'
        done = run(*launch, *words('osr', [checkpoint], folder), '--scores', name)
        assert done.returncode == 0, done.stderr
        with np.load(folder / 'arrays.npz') as arrays:
            found.append([arrays[f'{side}/{name}'] for side in ('known', 'unknown')])
    assert [len(side) for side in found[0]] == [48, 24]
    assert all(map(np.array_equal, *found))


def test_an_error_of_every_process_is_one_line(checkpoint, tmp_path):
    done = run(*TORCHRUN, *words('osr', [checkpoint], tmp_path / 'out'), '--train-split', 'nowhere')
    [line] = errors(done.stderr)
    assert 'nowhere' in line
    assert 'exitcode  : 2 ' in done.stderr


def test_a_broken_image_in_the_part_of_one_process_is_one_line(checkpoint, data, tmp_path):
    file = data / 'test' / 'cat' / '23.png'  # the last of the known test images
    file.write_bytes(b'no image')
    done = run(*TORCHRUN, *words('osr', [checkpoint], tmp_path / 'out'))
    [line] = errors(done.stderr)
    assert str(file) in line


def test_no_process_waits_for_a_first_one_that_failed(checkpoint, data, tmp_path):
    """The first cannot write the first results, while the other is at the second checkpoint; nothing stops it."""
    another = save_checkpoint(tmp_path / 'more' / 'last.pth.tar', data, held=range(8))
    (tmp_path / 'out' / 'run' / 'arrays.npz' / 'in the way').mkdir(parents=True)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    both = [subprocess.Popen(
        [sys.executable, *words('osr', [checkpoint, another], tmp_path / 'out')], text=True, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, 'OMP_NUM_THREADS': '1', 'MASTER_ADDR': '127.0.0.1',
                                     'MASTER_PORT': str(port), 'WORLD_SIZE': '2', 'RANK': str(rank),
                                     'LOCAL_RANK': str(rank)})
        for rank in range(2)]
    try:
        said = [process.communicate(timeout=200)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert all(process.returncode == 1 for process in both)
    assert [len(errors(text)) for text in said] == [1, 0]
