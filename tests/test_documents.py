"""Documents: the tutorials run, their pages show their code, links lead somewhere, and the site builds."""
from __future__ import annotations

import argparse
import importlib
import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from browser import axe_probe, needs_axe, needs_browser, opened

ROOT = Path(__file__).parent.parent
DOCS = ROOT / 'docs'
EXECUTE = runpy.run_path(str(DOCS / 'tutorials' / 'execute.py'))


def code_of(script: str) -> list[str]:
    """The code cells of a script in percent format."""
    cells = re.split(r'^# %%(.*)$', script, flags=re.MULTILINE)[1:]
    return [body.strip() for kind, body in zip(cells[::2], cells[1::2], strict=True)
            if 'markdown' not in kind and body.strip()]


@pytest.mark.parametrize('name', EXECUTE['TUTORIALS'])
def test_pages_of_tutorials_show_the_code_of_their_scripts(name):
    page = (DOCS / 'tutorials' / f'{name}.md').read_text()
    shown = [block.strip() for block in re.findall(r'```python\n(.*?)```', page, flags=re.DOTALL)]
    assert shown == code_of((DOCS / 'tutorials' / f'{name}.py').read_text()), 'python docs/tutorials/execute.py'


@pytest.mark.slow
@pytest.mark.parametrize('name', EXECUTE['TUTORIALS'])
def test_tutorials_run(name):
    pytest.importorskip('jupytext')
    pytest.importorskip('nbconvert')
    notebook = EXECUTE['executed'](name)  # an error in a cell raises
    assert any(cell.get('outputs') for cell in notebook.cells)


@pytest.mark.parametrize('path', sorted([*DOCS.rglob('*.md'), ROOT / 'CHANGELOG.md']),
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path):
    for target in re.findall(r'\]\((?!http|#)([^)#]+)', re.sub(r'```.*?```', '', path.read_text(), flags=re.DOTALL)):
        assert (path.parent / target).exists(), target


def commands_of(text: str) -> list[str]:
    """Command lines of this package in the code blocks of a page, without comments and placeholders."""
    lines = [line.strip() for block in re.findall(r'```\w*\n(.*?)```', text.replace('\\\n', ' '), flags=re.DOTALL)
             for line in block.splitlines()]
    lines = [re.sub(r'^(PYTHONPATH=\S+|srun|--no-python) ', '', line) for line in lines]
    return [re.sub(r'(\s+#.*|\s\.\.\.|\s&)$', '', line) for line in lines if line.startswith('gradmix-')]


@cache
def parser_of(command: str) -> argparse.ArgumentParser:
    others = {'train': 'training.args', 'openset': 'openset.parser'}
    return importlib.import_module(f'gradmix_timm.cli.{others.get(command, command)}').build_parser()


@pytest.mark.parametrize('path', sorted([ROOT / 'README.md', *DOCS.rglob('*.md')]),
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_parsed(path):
    """Every command line of a page has flags and values that its command takes."""
    for line in commands_of(path.read_text()):
        name, *words = shlex.split(line)
        try:
            parser_of(name.removeprefix('gradmix-')).parse_args(words)
        except SystemExit:
            pytest.fail(line)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The folder of the built site."""
    pytest.importorskip('mkdocs')
    folder = tmp_path_factory.mktemp('docs') / 'site'
    done = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '-q', '-d', folder],
                          cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_without_warnings(site):
    assert 'create_mixer' in (site / 'reference' / 'mixers' / 'index.html').read_text()


@needs_browser
@needs_axe
@pytest.mark.slow
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('page', ['.', 'tutorials/compare_mixers', 'slurm', 'howto/onnx', 'reference/scores'])
def test_everybody_can_read_the_site(site, page, dark, tmp_path):
    found, log = opened((site / page / 'index.html').read_text(), site / page, 375, dark, axe_probe())
    assert found['rules'] > 10, log
    assert found['grave'] == []
