"""Studies whose commands are stubs: a cell takes a fraction of a second."""
from __future__ import annotations

import pytest
import yaml
from stub_job import stub_command

from gradmix_timm.study import Study, cells, forking, read_study


@pytest.fixture
def stubbed(monkeypatch):
    monkeypatch.setattr(forking, '_PRELOADED', [])
    monkeypatch.setattr(cells, '_command', stub_command)


@pytest.fixture
def make(tmp_path):
    def write(**entries) -> Study:
        path = tmp_path / 'study.yaml'
        path.write_text(yaml.safe_dump({
            'axes': {'mixer': ['none', 'gradmix'], 'seed': [0, 1, 2]}, **entries}, sort_keys=False))
        return read_study(path)
    return write
