"""--device-modules: a mixer of the user's own from the command line, and modules that cannot be imported."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_training import TINY, rows, write_images

from gradmix_timm.checkpoint import load_checkpoint
from gradmix_timm.cli import train

ROOT = Path(__file__).parents[2]
MODULE = """
import torch
from gradmix_timm import register_mixer

@register_mixer('stripes', 'every other row from the neighbour', function=True)
def stripes(images, labels, share=0.5):
    mixed = images.clone()
    every = round(1 / share)
    mixed[:, :, ::every] = images.roll(1, 0)[:, :, ::every]
    rows = torch.nn.functional.one_hot(labels, 3).float()
    print('STRIPES', len(images))
    return mixed, rows.lerp(rows.roll(1, 0), 1 / every)
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / 'modules').mkdir()
    (tmp_path / 'modules' / 'my_stripes.py').write_text(MODULE)
    return tmp_path / 'modules'


def call(own, *command):
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, cwd=own.parent, check=False,
        env={**os.environ, 'PYTHONPATH': f'{own}{os.pathsep}{ROOT}', 'OMP_NUM_THREADS': '1'})


@pytest.mark.slow
@pytest.mark.parametrize('where', ['line', 'yaml'])
def test_a_users_mixer_trains_is_recorded_judged_and_shown(where, own, tmp_path):
    images = write_images(tmp_path / 'images')
    modules = ['--device-modules', 'my_stripes']
    if where == 'yaml':
        (tmp_path / 'own.yaml').write_text(yaml.safe_dump({'device-modules': ['my_stripes']}))
        modules = ['--config', tmp_path / 'own.yaml']
    done = call(own, ROOT / 'train.py', '--data-dir', images, *TINY, '--known-classes', 'ant,bee,cat', '--epochs', 1,
                '--osr-val-fraction', 0.3, '--output', tmp_path, '--experiment', 'run', '--mixup-mode', 'stripes',
                '--mixup-kwargs', 'share=0.25', *modules)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('STRIPES 6') >= 2, 'two steps and more'
    folder = tmp_path / 'run'
    assert float(rows(folder)[0]['train_loss']) > 0
    record = load_checkpoint(folder / 'last.pth.tar').record
    assert (record.mixer, record.mixer_options['share']) == ('stripes', 0.25)
    assert (folder / 'mixes.png').is_file()
    done = call(own, '-m', 'gradmix_timm.openset', 'osr', '--checkpoint', folder / 'last.pth.tar', '--device', 'cpu')
    assert done.returncode == 0, done.stderr
    assert '| mls ' in done.stdout
    shown = ['-m', 'gradmix_timm.show', '--checkpoint', folder / 'last.pth.tar', '--images', images / 'test', '--out',
             tmp_path / 'shown.png']
    done = call(own, *shown)
    assert done.returncode == 2
    assert 'stripes' in done.stderr.splitlines()[-1]
    done = call(own, *shown, '--device-modules', 'my_stripes')
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(('text', 'words'), [
    (None, 'no such module; install it, or name its folder in PYTHONPATH'),
    ('import not_there_at_all', 'it needs the module not_there_at_all'),
    ('1 / 0', 'its import fails with ZeroDivisionError'),
    ('def (', 'its import fails with SyntaxError'),
])
def test_a_module_that_cannot_be_imported_is_one_line_before_anything_else(text, words, tmp_path, monkeypatch, capsys):
    if text is not None:
        (tmp_path / 'broken_plugin.py').write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop('broken_plugin', None)
    assert train.console(['--data-dir', '/nowhere', *TINY, '--device-modules', 'broken_plugin']) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: --device-modules broken_plugin: ')
    assert words in error


def test_without_its_module_the_name_is_unknown(capsys):
    assert train.console(['--data-dir', '/nowhere', *TINY, '--mixup-mode', 'stripes']) == 2
    assert "no mixer 'stripes'" in capsys.readouterr().err
