"""Help, version and errors of flags come before anything heavy is imported."""
from __future__ import annotations

import ast
import configparser
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from gradmix_timm.cli import quickstart

ROOT = Path(__file__).parents[2]
HEAVY = ('torch', 'torchvision', 'timm', 'numpy', 'scipy', 'sklearn', 'PIL', 'matplotlib', 'tqdm')
SECONDS = 0.5
# Flags of each command that fail while they are parsed: an unknown one, a wrong type, a wrong choice.
WRONG = {
    'gradmix-train': ['--gradmix-alhpa 1', '--epochs many', '--gradmix-fill white', '--model-kwargs x',
                      '--config nowhere'],
    'gradmix-openset osr': ['--checkpiont x', '--batch-size many', '--exif turn'],
    'gradmix-openset ood': ['--unknwon x', '--made-images many', '--overlap some'],
    'gradmix-openset corrupt': ['--severty 9', '--severities 9', '--scale huge'],
    'gradmix-openset probe': ['--porbes x', '--draws many', '--amp-dtype int8'],
    'gradmix-openset shortcut': ['--laeyrs x', '--images many', '--input-img-mode 3'],
    'gradmix-openset compare': ['x --piared', 'x --level high'],
    'gradmix-openset report': ['x --out-put y', ''],
    'gradmix-openset': ['oood', ''],
    'gradmix-predict': ['--checkpoint x --scroe y', '--checkpoint x --batch-size many', '--checkpoint x --exif turn'],
    'gradmix-show': ['--images x --mixr y', '--images x --num many', '--images x --mixup-kwargs y'],
    'gradmix-backbones': ['x --image-size 3', 'x --img-size large', 'x --model-kwargs y'],
    'gradmix-quickstart': ['--epcohs 1', '--epochs many'],
    'gradmix-study': ['x --jbos 2', 'x --jobs many', 'x --engine cloud'],
}
RIGHT = ('--help', '--version', '--list-recipes')
CASES = [(command, argv, 0 if argv in RIGHT else 2)
         for command, wrong in WRONG.items() for argv in [*RIGHT[:2], *wrong]] + [('gradmix-train', RIGHT[2], 0)]
RUN = """
import contextlib, importlib, io, sys
module, _, function = sys.argv[1].partition(':')
sys.argv[:2] = ['command']
status = getattr(importlib.import_module(module), function)()
sys.exit(status)
"""


def entries():
    """Name to entry point of every command that the package installs."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / 'setup.cfg')
    lines = parser['options.entry_points']['console_scripts'].strip().splitlines()
    return dict(line.replace(' ', '').split('=') for line in lines)


def test_every_command_has_cases():
    assert {command.split()[0] for command in WRONG} == set(entries())


def test_flags_are_parsed_without_heavy_packages():
    """All commands in one process, which ends with what it has imported of them."""
    script = f"""
import importlib, io, sys
from contextlib import redirect_stderr, redirect_stdout
asked = []
class Heavy:
    def find_spec(name, *_):
        if name in {HEAVY!r}:
            asked.append(name)
            raise ImportError(name)
sys.meta_path.insert(0, Heavy)
for command, argv, expected in {CASES!r}:
    name, *rest = command.split()
    module, _, function = {entries()!r}[name].partition(':')
    sys.argv = [name, *rest, *argv.split()]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = getattr(importlib.import_module(module), function)()
        except SystemExit as stop:
            status = stop.code
    assert status == expected, (sys.argv, status, out.getvalue(), err.getvalue())
    lines = (err if status else out).getvalue().splitlines()
    assert len(lines) == 1 if status or argv == '--version' else lines, (sys.argv, lines)
    assert not asked, (sys.argv, asked)
sys.path.insert(0, {str(ROOT)!r})
import train
assert callable(train.main) and train.parser.parse_args([]).epochs == 300 and callable(train._parse_args)
assert not asked
"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_quickstart_prints_the_evaluation_alone(monkeypatch, capsys):
    monkeypatch.setattr(quickstart.train, 'main', lambda flags: sys.stdout.write('--result\n[{"epoch": 9}]\n'))
    monkeypatch.setattr(quickstart.openset, 'main', lambda flags: sys.stdout.write(' '.join(flags)) and 0)
    assert quickstart.main(['--output', 'runs']) == 0
    assert capsys.readouterr().out == 'osr --checkpoint runs/quickstart/last.pth.tar'


def cpu_seconds(entry, argv):
    """User and system time of one process, and its exit status."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    status = subprocess.run([sys.executable, '-c', RUN, entry, *argv], capture_output=True, cwd=ROOT,
                            env={**os.environ, 'PYTHONDONTWRITEBYTECODE': ''}).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, status


@pytest.mark.slow
@pytest.mark.parametrize(('command', 'argv', 'expected'), CASES, ids=[f'{c} {a}' for c, a, _ in CASES])
def test_flags_take_half_a_second_of_cpu(command, argv, expected):
    name, *rest = command.split()
    seconds = []
    for _ in range(3):  # the first run may compile, and a busy machine slows any of them
        taken, status = cpu_seconds(entries()[name], [*rest, *argv.split()])
        assert status == expected
        seconds.append(taken)
        if taken <= SECONDS:
            break
    assert min(seconds) <= SECONDS, seconds


@pytest.mark.slow
def test_a_first_step_waits_for_no_package_that_training_does_not_use(tmp_path):
    """Beside what torch, torchvision and timm import: modules of these, NumPy, Pillow, tqdm and its own.

    What the report and the scores need is imported after the last step.
    """
    script = f"""
import sys
import torch, torchvision, timm
before = set(sys.modules)
from gradmix_timm.cli import train
from gradmix_timm.cli.training import run
def first(*_):
    print(sorted({{'matplotlib', 'scipy', 'sklearn', 'albumentations', 'cv2', 'pandas'}} & set(sys.modules)))
    print(sorted({{name.partition('.')[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names)))
    raise KeyboardInterrupt
run.train_one_epoch = first
sys.exit(train.console({['-c', 'quickstart', '--cache-images', '--workers', '0', '--output', str(tmp_path)]!r}))
"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, cwd=ROOT)
    heavy, beside = done.stdout.splitlines()
    assert heavy == '[]', done.stderr[-2000:]
    assert set(ast.literal_eval(beside)) <= {'PIL', 'gradmix_timm', 'numpy', 'timm', 'torch', 'torchvision', 'tqdm'}
