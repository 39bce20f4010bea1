"""timm's unmodified training script with a mixer bound to its model, over the script's flags of mixing.

The script is in timm's repository and not in its wheel: GRADMIX_TIMM_SCRIPT=PATH/TO/train.py names a copy (1.0.29 or
later). Nothing in it is edited: its ``Mixup`` is a bound mixer, as docs/tutorials/mix_in_my_loop.md says.
"""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_training import TINY, rows, run_tiny, write_images

SCRIPT = os.environ.get('GRADMIX_TIMM_SCRIPT', '')
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not Path(SCRIPT).is_file(), reason="GRADMIX_TIMM_SCRIPT=FILE names timm's train.py")]

#: argv: the mixer's name, the script, its flags.
BOUND = """
import runpy
import sys
import timm.data
import timm.models
from gradmix_timm import create_mixer

name, *sys.argv = sys.argv[1:]
create_model, models = timm.models.create_model, []


def created(*args, **options):
    models.append(create_model(*args, **options))
    return models[-1]


def mixup(num_classes, label_smoothing, prob, mode, **options):
    shared = {'num_classes': num_classes, 'label_smoothing': label_smoothing, 'prob': prob}
    if name == 'timm':
        return create_mixer(mode, **shared, **options).bound_to(models[-1])
    return create_mixer(name, seed=42, **shared).bound_to(models[-1])


timm.models.create_model, timm.data.Mixup = created, mixup
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.mark.parametrize(('name', 'script', 'both'), [
    ('gradmix', '--mixup 1', '--epochs 1'),
    ('gradmix+cutmix', '--mixup 1', '--mixup-off-epoch 1 --smoothing 0'),
    ('gradmix', '--cutmix 1', '--mixup-prob 0.5 --grad-accum-steps 2 --model-ema --epochs 1'),
    ('cutmix', '--cutmix 1 --mixup-mode elem', '--bce-loss --epochs 1'),
    ('none', '--mixup 1', '--mixup-switch-prob 0.3'),
    ('timm', '', '--mixup 0.4 --cutmix 1 --mixup-mode elem --mixup-off-epoch 1'),
    ('timm', '', '--cutmix-minmax 0.2 0.8 --mixup-mode pair --mixup-prob 0.7'),
])
def test_the_script_trains_as_ours_does(name, script, both, images, tmp_path):
    """The same figures to the last digit: images, labels, mixes, the end of mixing. ``script``: what switches it on."""
    both = [*both.split(), '--no-prefetcher']
    command = [sys.executable, '-c', BOUND, name, SCRIPT, '--data-dir', str(images), '--num-classes', '4', *TINY, *both,
               *script.split(), '--output', str(tmp_path), '--experiment', 'theirs']
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'},
                          check=False)
    assert done.returncode == 0, done.stderr
    mode = () if name == 'timm' else ('--mixup-mode', name)
    assert rows(run_tiny(images, tmp_path, *both, *mode, name='ours')) == rows(tmp_path / 'theirs')
