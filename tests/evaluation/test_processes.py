"""Evaluations of several processes: the figures of one, to the last digit."""
from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tiny_checkpoints import class_folders, save_checkpoint

MORE = {'osr': ('--scores', 'mls,knn', '--trivial-images', '20', '--feature-map', '16'),
        'ood': ('--unknown', 'noise:uniform', '--made-images', '21', '--scores', 'mls,knn', '--feature-map', '16'),
        'corrupt': ('--corruptions', 'brightness', '--severities', '1'), 'probe': ('--shots', '1', '--draws', '2')}


@pytest.mark.slow
@pytest.mark.parametrize('name', list(MORE))
def test_two_processes_give_what_one_gives(name, tmp_path):
    checkpoint = save_checkpoint(tmp_path / 'run' / 'last.pth.tar', class_folders(tmp_path / 'data'))
    found = []
    for launch in ((), ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2')):
        folder = tmp_path / str(len(launch))
        done = subprocess.run(
            [sys.executable, *launch, '-m', 'gradmix_timm.openset', name, '--checkpoint', str(checkpoint), '--device',
             'cpu', '--bootstrap', '0', '--batch-size', '16', '--output', str(folder), *MORE[name]],
            env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count('report.html') == 1
        with np.load(folder / 'arrays.npz') as arrays:
            found.append((json.loads((folder / 'results.json').read_text()), dict(arrays)))
    (one, arrays), (two, others) = found
    for key in ('scores', 'groups', 'closed_set', 'n_known', 'n_unknown'):
        assert one[key] == two[key]
    assert list(arrays) == list(others)
    assert all(np.array_equal(arrays[key], others[key], equal_nan=arrays[key].dtype.kind == 'f') for key in arrays)
