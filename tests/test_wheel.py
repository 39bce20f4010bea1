"""The wheel and the source distribution, built and tried in an empty environment outside the repository.

The environment sees the packages of the running one, so that PyTorch is not downloaded again, but behind its own: a
path file names their folder. An editable install of the project there is not seen.
"""
from __future__ import annotations

import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import gradmix_timm
from gradmix_timm.cli.recipes import list_recipes

pytest.importorskip('setuptools', minversion='68')
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
BUILD = 'import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])'
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith('PYTHON')}
NAME = f'gradmix_timm-{gradmix_timm.__version__}'


def build(kind, source, target):
    done = subprocess.run([sys.executable, '-c', BUILD, f'build_{kind}', target], cwd=source, env=CLEAN,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'absent from the `packages`' not in done.stderr
    return next(Path(target).glob('*.tar.gz' if kind == 'sdist' else '*.whl'))


@pytest.fixture(scope='module')
def sdist(tmp_path_factory):
    """Built from a copy, as a build leaves folders behind."""
    copy = tmp_path_factory.mktemp('copy') / 'source'
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(
        '.*', '__pycache__', 'build', 'dist', 'output', 'site', '*.egg-info'))
    return build('sdist', copy, tmp_path_factory.mktemp('sdist'))


@pytest.fixture(scope='module')
def wheel(sdist, tmp_path_factory):
    """Built from the source distribution, as packagers do."""
    folder = tmp_path_factory.mktemp('unpacked')
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter='data')
    return build('wheel', folder / NAME, tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory):
    """Folder of an environment's scripts, in which the wheel is installed."""
    folder = tmp_path_factory.mktemp('environment')
    venv.create(folder, symlinks=True)
    scripts = folder / ('Scripts' if os.name == 'nt' else 'bin')
    site = Path(subprocess.run([scripts / 'python', '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'],
                               env=CLEAN, capture_output=True, text=True, check=True).stdout.strip())
    (site / 'packages_of_the_tests.pth').write_text(sysconfig.get_path('purelib') + '\n')
    subprocess.run([sys.executable, '-m', 'pip', '--python', scripts / 'python', 'install', '-q', '--no-deps',
                    '--no-index', '--ignore-installed', wheel], env=CLEAN, check=True)
    return scripts


def run(environment, folder, command, *argv):
    return subprocess.run([environment / command, *map(str, argv)], cwd=folder, env=CLEAN, capture_output=True,
                          text=True)


def test_the_wheel_holds_the_package_alone_with_its_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition('/')[0] for name in names} == {'gradmix_timm', f'{NAME}.dist-info'}
    package = ROOT / 'gradmix_timm'
    ours = {path.relative_to(ROOT).as_posix() for path in package.rglob('*')
            if path.is_file() and '__pycache__' not in path.parts}
    recipes = {f'gradmix_timm/{path.relative_to(ROOT).as_posix()}' for path in (ROOT / 'configs').rglob('*.yaml')}
    assert len(recipes) > 20
    assert {name for name in names if name.startswith('gradmix_timm/')} == ours | recipes
    assert {'gradmix_timm/py.typed', f'{NAME}.dist-info/licenses/LICENSE'} <= set(names)


def test_the_source_distribution_holds_what_a_clone_does(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f'{NAME}/') for name in archive.getnames()}
    assert {'LICENSE', 'README.md', 'CHANGELOG.md', 'Makefile', 'train.py', 'setup.py', 'configs/finetune.yaml',
            'tests/test_wheel.py', 'docs/index.md', 'examples/plain_pytorch.py'} <= names


def test_metadata_is_that_of_the_project(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f'{NAME}.dist-info/METADATA'))
    links = re.findall(r'\]\((?!#)([^)]+)', metadata.get_payload())
    assert len(links) > 10
    assert all(link.startswith('https://') for link in links)
    assert {line.split(',')[0] for line in metadata.get_all('Project-URL')} >= {'Documentation', 'Source', 'Changelog'}
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    assert set(metadata.get_all('Provides-Extra')) == set(setup['options.extras_require'])
    assert 'Programming Language :: Python :: {}.{}'.format(*sys.version_info) in metadata.get_all('Classifier')


def test_commands_are_installed_and_know_the_recipes(environment, tmp_path):
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    for line in setup['options.entry_points']['console_scripts'].strip().splitlines():
        command = line.partition('=')[0].strip()
        assert run(environment, tmp_path, command, '--version').stdout == f'gradmix-timm {gradmix_timm.__version__}\n'
    listed = run(environment, tmp_path, 'gradmix-train', '--list-recipes').stdout
    assert re.findall(r'^(\S+)$', listed, re.MULTILINE)[:-1] == list(list_recipes())
    assert str(environment.parent) in listed
    # With its base, which lies beside it; the data is missing, which is seen after the flags.
    done = run(environment, tmp_path, 'gradmix-train', '-c', 'osr/cifar+10', '--data-dir', 'nowhere', '--device', 'cpu')
    assert (done.returncode, done.stderr.count('error: ')) == (2, 1)
    assert 'nowhere' in done.stderr


def test_the_quickstart_trains_evaluates_and_writes_its_report(environment, tmp_path):
    done = run(environment, tmp_path, 'gradmix-quickstart', '--epochs', 1, '--output', 'here')
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert any(line.startswith('| mls ') for line in lines)
    report = tmp_path / lines[-1]
    assert report.name == 'report.html'
    assert report.stat().st_size > 10_000
    assert (tmp_path / 'here' / 'quickstart' / 'mixes.png').is_file()
