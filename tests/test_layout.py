"""The rooms import one way."""
from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / 'gradmix_timm'
# Room -> rooms it may import besides itself; torch, NumPy and the standard library are free.
ROOMS = {
    'choices': set(),
    'records': set(),
    'registry': set(),
    'schema': set(),
    'options': {'registry'},
    'models': {'registry', 'timm'},
    'plots': {'records'},
    'ops': {'records', 'registry', 'schema'},
    'attribution': {'records', 'registry', 'schema', 'ops', 'timm'},
    'mixers': {'choices', 'options', 'records', 'registry', 'schema', 'ops', 'attribution', 'plots', 'timm'},
    'objectives': {'records', 'registry', 'schema', 'ops', 'attribution', 'mixers', 'checkpoint', 'timm'},
    'data': {'choices', 'records', 'registry', 'schema', 'ops', 'timm'},
    'openset': {'records', 'registry', 'schema', 'ops', 'plots', 'timm'},
    'checkpoint': {'records', 'registry', 'schema', 'models', 'timm'},
    'evaluation': {'choices', 'records', 'registry', 'schema', 'attribution', 'data', 'openset', 'checkpoint', 'timm'},
    'classifier': {'records', 'registry', 'schema', 'data', 'openset', 'checkpoint', 'evaluation', 'timm'},
    'study': {'choices', 'registry', 'schema', 'checkpoint', 'openset'},
    'cli': {'*'},
}
# Thin modules that call the command line: `python -m gradmix_timm.show`.
DOORS = {'openset/__main__.py', 'study/__main__.py', 'show.py', 'predict.py', 'backbones.py', 'quickstart.py'}
LIMITED = {'albumentations': {'data/transforms.py'}, 'cv2': {'data/corruption/kernels.py'},
           'faiss': {'openset/scores/neighbours.py'}, 'huggingface_hub': {'classifier/hub.py'}}
FILES = sorted(path for path in ROOT.rglob('*.py') if path != ROOT / '__init__.py')


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def import_nodes(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """A file's imports, those for types alone or inside functions too."""
    return [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Import | ast.ImportFrom)]


def imported(path: Path) -> set[str]:
    """Rooms and limited packages that a file imports."""
    found: set[str] = set()
    for node in import_nodes(path):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ''
            names = [f'{module}.{a.name}' for a in node.names] if module == 'gradmix_timm' else [module]
        for name in names:
            parts = name.split('.')
            found.add(parts[1] if parts[0] == 'gradmix_timm' and len(parts) > 1 else parts[0])
    return found & (set(ROOMS) | set(LIMITED) | {'timm', 'gradmix_timm'})


def test_imports_go_one_way():
    wrong = []
    for path in FILES:
        place = str(path.relative_to(ROOT))
        room = place.split('/')[0].removesuffix('.py')
        allowed = {'cli'} if place in DOORS else ROOMS[room] | {room}
        for name in imported(path):
            if name in LIMITED:
                wrong += [f'{place}: {name} belongs in {LIMITED[name]}'] * (place not in LIMITED[name])
            elif not {'*', name} & allowed:
                wrong.append(f'{place} imports {name}; {room} may import {sorted(allowed)}')
    assert not wrong


@pytest.mark.parametrize(('room', 'other'), [('training', 'openset'), ('openset', 'training')])
def test_training_and_evaluation_know_nothing_of_each_other(room: str, other: str):
    files = sorted((ROOT / 'cli' / room).glob('*.py'))
    assert files
    for path in files:
        for node in import_nodes(path):
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2, f'{path.name} climbs out of its room'
                names = [f'{node.module or ""}.{alias.name}.' for alias in node.names]
                banned = tuple(f'gradmix_timm.cli.{name}.' for name in (other, 'train'))
                assert not [name for name in names if name.startswith(banned)], f'{path.name} imports {names}'


def files_imported(path: Path) -> set[Path]:
    """Files of the package that a file imports, for types alone or inside functions too."""
    found = set()
    for node in import_nodes(path):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = path.parent if node.level else ROOT.parent
        place = base.joinpath(*(node.module or '').split('.'))
        targets = [place / f'{alias.name}.py' for alias in node.names]
        if node.module:  # `from . import a` takes the file a, not what the room's door says
            targets += [place.with_suffix('.py'), place / '__init__.py']
        found |= {target for target in targets if target.exists() and ROOT in target.parents and target != path}
    return found


def test_no_files_import_each_other_in_a_circle():
    graph = {path: files_imported(path) for path in ROOT.rglob('*.py') if path.parent != ROOT}
    assert sum(map(len, graph.values())) > 300
    list(TopologicalSorter(graph).static_order())  # a CycleError names the circle


def test_files_of_tests_have_names_of_their_own():
    """pytest imports them by name, and collects nothing where two share one."""
    names = [path.name for path in Path(__file__).parent.rglob('test_*.py')]
    assert sorted(names) == sorted(set(names))
    assert all('def test_' in path.read_text() for path in Path(__file__).parent.rglob('test_*.py'))


def test_a_test_is_slow_as_a_whole_or_by_its_parameters():
    """A mark of the function hides those of its parameters, and with them the quick ones."""
    found = []
    for path in Path(__file__).parent.rglob('test_*.py'):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                marks = [ast.unparse(decorator) for decorator in node.decorator_list]
                inner = [mark for mark in marks if 'parametrize' in mark and 'slow' in mark.lower()]
                found += [f'{path.name}::{node.name}'] * ('pytest.mark.slow' in marks and bool(inner))
    assert not found


def test_results_name_no_folder_of_one_machine():
    for path in (ROOT.parent / 'benchmarks' / 'results').rglob('*.json'):
        assert not re.search(r'"/\w+/', path.read_text()), path


def test_no_room_is_called_utils():
    assert not list(ROOT.rglob('*util*'))


def test_files_are_short_and_say_their_purpose():
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert not [path for path in FILES if not ast.get_docstring(parsed(path))], 'no first line'
    assert not {place: count for place, count in lines.items() if count > 400}
