"""What README says is what the files say."""
from __future__ import annotations

import re
import runpy
from pathlib import Path

from gradmix_timm import list_mixers
from gradmix_timm.mixers import OPTIONS

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


def test_tables_are_those_of_the_studies():
    figures = runpy.run_path(str(ROOT / 'benchmarks' / 'study_figures.py'))
    for page in figures['PAGES']:
        text = page.read_text()
        assert text.count('<!-- table ') == text.count('<!-- end -->') > 0
        assert figures['filled'](text) == text


def test_documents_are_those_that_their_commands_write():
    attribution = runpy.run_path(str(ROOT / 'benchmarks' / 'attribution_tables.py'))
    assert attribution['block']() in (ROOT / 'docs' / 'results' / 'attribution.md').read_text()


def test_links_work_on_pypi_and_lead_to_files_that_are_there():
    url = re.search(r'^url = (\S+)$', (ROOT / 'setup.cfg').read_text(), re.MULTILINE)[1]
    ours = (f'{url}/blob/main/', url.replace('github.com', 'raw.githubusercontent.com') + '/main/')
    for target in re.findall(r'\]\((?!#)([^)#]+)', README):
        assert target.startswith('https://'), f'{target}: PyPI resolves no relative link'
        for prefix in ours:
            if target.startswith(prefix):
                assert (ROOT / target.removeprefix(prefix)).exists(), target


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_mixers_and_flags_that_it_names_exist():
    for name in ('none', 'mixup', 'cutmix', 'random-box', 'center-box', 'gradmix', 'batch', 'pair', 'elem', 'half'):
        assert f'`{name}`' in README
        assert name in list_mixers()
    for flag in re.findall(r'`--gradmix-([a-z-]+)', README):
        assert flag.replace('-', '_') in OPTIONS, flag
