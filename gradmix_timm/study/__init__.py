"""Many trainings and their evaluations as resumable cells of a grid; tables and plots from the cells' files alone."""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cells import run_cell
    from .engines import list_engines, run_study
    from .plan import Cell, Study, read_study
    from .tables import draw_study, study_tables

__all__ = ['Cell', 'Study', 'draw_study', 'list_engines', 'read_study', 'run_cell', 'run_study', 'study_tables']

# Loaded on first use, so that `python -m gradmix_timm.study --help` does not import PyTorch.
_HOMES = {'Cell': 'plan', 'Study': 'plan', 'draw_study': 'tables', 'list_engines': 'engines', 'read_study': 'plan',
          'run_cell': 'cells', 'run_study': 'engines', 'study_tables': 'tables'}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return __all__
