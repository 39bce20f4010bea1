"""Studies whose commands are stubs: a cell takes a fraction of a second."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from gradmix_timm.study import Study, cells, read_study

STUB = Path(__file__).parent / 'stub.py'


@pytest.fixture
def stubbed(monkeypatch):
    monkeypatch.setattr(cells, '_module', lambda name: [sys.executable, str(STUB), name])


@pytest.fixture
def make(tmp_path):
    def write(**entries) -> Study:
        path = tmp_path / 'study.yaml'
        path.write_text(yaml.safe_dump({
            'axes': {'mixer': ['none', 'gradmix'], 'seed': [0, 1, 2]}, **entries}, sort_keys=False))
        return read_study(path)
    return write
