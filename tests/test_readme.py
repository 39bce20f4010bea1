"""What README says is what the files say."""
from __future__ import annotations

import re
import runpy
from pathlib import Path

from gradmix_timm import list_mixers
from gradmix_timm.mixers import OPTIONS

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


def test_quickstart_figures_are_those_of_the_result_files():
    assert runpy.run_path(str(ROOT / 'benchmarks' / 'readme_figures.py'))['block']() in README


def test_documents_are_those_that_their_commands_write():
    showcase = runpy.run_path(str(ROOT / 'benchmarks' / 'showcase.py'))
    document = (ROOT / 'docs' / 'results' / 'cifar10.md').read_text()
    assert showcase['page'](document) == document
    attribution = runpy.run_path(str(ROOT / 'benchmarks' / 'attribution_tables.py'))
    assert attribution['block']() in (ROOT / 'docs' / 'results' / 'attribution.md').read_text()


def test_pictures_and_documents_are_there():
    for target in re.findall(r'\]\((?!http)([^)#]+)\)', README):
        assert (ROOT / target).exists(), target


def test_mixers_and_flags_that_it_names_exist():
    for name in ('none', 'mixup', 'cutmix', 'random-box', 'center-box', 'gradmix', 'batch', 'pair', 'elem', 'half'):
        assert f'`{name}`' in README
        assert name in list_mixers()
    for flag in re.findall(r'`--gradmix-([a-z-]+)', README):
        assert flag.replace('-', '_') in OPTIONS, flag
