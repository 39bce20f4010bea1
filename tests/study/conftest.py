"""Studies whose commands are stubs: a cell takes a fraction of a second."""
from __future__ import annotations

import shutil

import pytest
import yaml
from stub_job import stub_command

from gradmix_timm.study import Study, cells, forking, read_study, run_study


def stub(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(forking, '_PRELOADED', [])
    patch.setattr(cells, '_command', stub_command)


def written(folder, **entries) -> Study:
    path = folder / 'study.yaml'
    path.write_text(yaml.safe_dump({'axes': {'mixer': ['none', 'gradmix'], 'seed': [0, 1, 2]}, **entries},
                                   sort_keys=False))
    return read_study(path)


@pytest.fixture
def stubbed(monkeypatch):
    stub(monkeypatch)


@pytest.fixture
def make(tmp_path):
    def write(**entries) -> Study:
        return written(tmp_path, **entries)
    return write


@pytest.fixture(scope='module')
def ten_cells(tmp_path_factory) -> Study:
    study = written(tmp_path_factory.mktemp('study'), axes={'mixer': ['none', 'gradmix'], 'seed': [0, 1, 2, 3, 4]})
    with pytest.MonkeyPatch.context() as patch:
        stub(patch)
        assert run_study(study, jobs=2) == {}
    return study


@pytest.fixture
def finished(ten_cells, tmp_path) -> Study:
    """A copy of a study of ten cells that were run."""
    shutil.copytree(ten_cells.source.parent, tmp_path, dirs_exist_ok=True)
    return read_study(tmp_path / 'study.yaml')
