"""Values are what their types say, or one line names file, place, what was got and what was expected."""
from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
import torch
import yaml

from gradmix_timm.schema import Length, Plain, Range, check, read_json, read_yaml, shown

Share = Annotated[float, Range(0, 1)]


class Score(TypedDict):
    auroc: Share
    curve: NotRequired[list[Share]]


class Loose(TypedDict, total=False):
    name: str


class Results(TypedDict):
    format: Literal[1, 2]
    scores: dict[str, Score]
    loose: NotRequired[Loose]


@dataclass
class Record:
    model: Annotated[str, Length(1, 10)]
    sizes: tuple[int, int] | None = None
    names: tuple[str, ...] = ()
    options: dict[str, Plain] = field(default_factory=dict)


@pytest.mark.parametrize(('value', 'kind'), [
    (1, int), (1, float), (1.5, float), (True, bool), ('a', str), (None, None), ([1, 2], list[int]), ((1,), list[int]),
    ([1, 'a'], tuple[int, str]), ([], tuple[int, ...]), ({'a': 1}, dict[str, int]), ({'a': 1}, Mapping[str, int]),
    ((1,), Sequence[int]), (object(), Any), (None, int | None), ('x', Literal['x', 'y']), (0, Share), ([1], list),
    ({'format': 1, 'scores': {'mls': {'auroc': 1, 'curve': [0, .5]}}, 'more': 3}, Results),
    ({'format': 2, 'scores': {}, 'loose': {}}, Results), ({'model': 'a'}, Record),
    ({'model': 'a', 'sizes': [1, 2], 'names': ['b'], 'options': {'k': [1, {'a': None}]}}, Record)])
def test_what_fits_comes_back_as_it_is(value, kind):
    assert check(value, kind, 'f') is value


@pytest.mark.parametrize(('value', 'kind', 'message'), [
    (True, int, 'f: got True (bool), expected a whole number'),
    (1.0, int, 'f: got 1.0 (float), expected a whole number'),
    (float('nan'), float, 'f: got nan (float), expected a finite number'),
    (10 ** 400, float, 'f: got a number of 1329 bits (int), expected a finite number'),
    (1, bool, 'f: got 1 (int), expected true or false'),
    (True, Literal[1, 2], 'f: got True (bool), expected 1 or 2'),
    ('z', Literal['x', 'y'], "f: got 'z' (str), expected 'x' or 'y'"),
    (1.7, Share, 'f: got 1.7 (float), expected a number from 0 to 1'),
    (-3, Annotated[int, Range(0)], 'f: got -3 (int), expected a number 0 or more'),
    ('', Annotated[str, Length(1, 10)], "f: got '' (str), expected 1 to 10 characters"),
    ([1], tuple[int, int], 'f: got [1] (list), expected a list of 2'),
    ('ab', list[str], "f: got 'ab' (str), expected a list"),
    ({1: 1}, dict[str, int], 'f: a key: got 1 (int), expected a string'),
    ({'a': [1, None]}, dict[str, list[int]], 'f: a[1]: got None (NoneType), expected a whole number'),
    ('a', int | None, "f: got 'a' (str), expected a whole number or null"),
    ({'auroc': 'a'}, Score | None, "f: auroc: got 'a' (str), expected a finite number"),
    ({'format': 1}, Results, 'f: scores is missing, expected a mapping'),
    ({'format': 1, 'scores': {'mls': {'curve': []}}}, Results, 'f: scores.mls.auroc is missing, expected a finite'),
    ({'model': 'a', 'options': {'k': float('inf')}}, Record, 'expected finite numbers'),
    ({'model': 'a', 'options': {'k': torch.zeros(2)}}, Record, 'f: options.k: got Tensor (Tensor), expected numbers')],
    ids=lambda part: part if isinstance(part, str) else '')
def test_what_does_not_fit_is_named_with_its_place(value, kind, message):
    with pytest.raises(ValueError) as caught:
        check(value, kind, 'f')
    assert message in str(caught.value)


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize('value', [
    'x' * 10 ** 6, list(range(10 ** 6)), nested(3000), 10 ** 10000, {'k' * 10 ** 6: 1}, torch.zeros(1000),
    {'a\nb' * 100: ['c'] * 100}, {i: {i: 'x' * 50} for i in range(100)}, b'\0' * 10 ** 5, [10 ** 10000]],
    ids=lambda value: type(value).__name__)
def test_no_message_prints_a_whole_value(value):
    assert len(shown(value)) <= 80
    assert '\n' not in shown(value)
    with pytest.raises(ValueError) as caught:
        check({'a': {'b': value}}, dict[str, dict[str, None]], 'f')
    assert len(str(caught.value)) < 200


def test_deep_values_are_refused_by_plain():
    with pytest.raises(ValueError, match='at most 32 levels'):
        check(nested(5000), Plain, 'f')


@pytest.mark.parametrize(('text', 'words'), [
    ('{"a": NaN}', 'NaN is no number'), ('[-Infinity]', '-Infinity is no number'), ('[1e999]', '1e999 is no number'),
    ('{', 'not JSON'), ('', 'not JSON'), ('[' * 100_000, 'nested too deeply'), ('1' * 10_000, 'not JSON'),
    ('"\udcff"', 'not UTF-8')], ids=lambda text: text[:20])
def test_json_that_is_none_names_the_file(text, words, tmp_path):
    path = tmp_path / 'x.json'
    path.write_bytes(text.encode(errors='surrogateescape'))
    with pytest.raises(ValueError, match=words) as caught:
        read_json(path)
    assert str(caught.value).startswith(f'{path}: ')


def bomb(levels: int) -> str:
    lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]']
    lines += [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]' for i in range(1, levels)]
    return '\n'.join(lines)


@pytest.mark.parametrize(('text', 'words'), [
    (bomb(9), r'more than 100,000 values'), ('&a [*a]', r'\*a stands inside what it names'),
    ('[' * 50, 'nested more than 32'), ('{a: ' * 40 + '1' + '}' * 40, 'nested more than 32'),
    ('\n'.join(' ' * i + '- ' for i in range(500)), 'nested more than 32'),
    ('a: [', 'not YAML'), ('a: *none', 'not YAML'), ('!!python/object/apply:os.system [ls]', 'not YAML'),
    ('a: !!bool foo', 'not YAML'), ('a: !!timestamp foo', 'not YAML'), ('a: !!int ""', 'not YAML'),
    ('a: 2001-99-99', 'not YAML'), ('a: ' + '9' * 10_000, 'not YAML'), ('? [a, b]\n: c', 'not YAML'),
    ('a: \x07', 'not YAML'), ('a: "\udcff"', 'not UTF-8'), ('--- a\n--- b\n', 'not YAML'),
    ('lr: 0.1\nepochs: 3\nlr: 0.2\n', "not YAML: 'lr' twice in line 3"), ('a: {b: 1, "b": 2}', "'b' twice in line 1"),
    ('known:\n- 010', 'not YAML: 010, which YAML reads as 8, without quotes in line 2'), ('a: 0x1F', 'reads as 31'),
    ('a: 1:30', 'reads as 90'), ('a: 1_000', 'reads as 1000')],
    ids=lambda text: ascii(text[:20]))
def test_yaml_that_is_none_names_the_file_soon(text, words, tmp_path):
    path = tmp_path / 'x.yaml'
    path.write_bytes(text.encode(errors='surrogateescape'))
    start = time.perf_counter()
    with pytest.raises(ValueError, match=words) as caught:
        read_yaml(path)
    assert time.perf_counter() - start < 5
    assert str(caught.value).startswith(f'{path}: ')
    assert len(str(caught.value)) < 300 + len(str(path))


def test_merges_of_merges_are_measured_too(tmp_path):
    lines = ['a0: &a0 {k: 1}'] + [f'a{i}: &a{i} {{<<: [{", ".join([f"*a{i - 1}"] * 9)}]}}' for i in range(1, 12)]
    (tmp_path / 'x.yaml').write_text('\n'.join(lines))
    with pytest.raises(ValueError, match=r'more than 100,000 values'):
        read_yaml(tmp_path / 'x.yaml')


def test_ordinary_files_are_read(tmp_path):
    value = {'lr': 0.1, 'mean': [0.5, 0.5], 'names': ['a', '010'], 'none': None, 'n': [0, 10, -3]}
    (tmp_path / 'x.yaml').write_text('a: &a [1, 2]\nb: *a\nc: {<<: {d: 1}}\n' + yaml.safe_dump(value))
    assert read_yaml(tmp_path / 'x.yaml') == {'a': [1, 2], 'b': [1, 2], 'c': {'d': 1}, **value}
    (tmp_path / 'x.json').write_text(json.dumps(value))
    assert read_json(tmp_path / 'x.json') == value


def test_files_of_other_kinds_and_sizes_are_refused(tmp_path):
    (tmp_path / 'big.json').write_text('[' + '1,' * 100 + '1]')
    with pytest.raises(ValueError, match=r'big\.json: 203 bytes, expected at most 100'):
        read_json(tmp_path / 'big.json', 100)
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(ValueError, match=r'pipe: expected a file, got a pipe'):
        read_yaml(tmp_path / 'pipe')
    with pytest.raises(ValueError, match='got a folder'):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / 'none.json')


def shared(levels: int, width: int = 1000) -> list:
    """As a pickle can hold it: few lists that stand for many."""
    value: list = [0] * width
    for _ in range(levels):
        value = [value] * width
    return value


@pytest.mark.parametrize('kind', [list[list[list[float]]], Plain])
def test_lists_that_are_shared_do_not_keep_a_check_for_ever(kind, monkeypatch):
    monkeypatch.setattr('gradmix_timm.schema._CHECKED', 10_000)
    with pytest.raises(ValueError, match=r'10,000 values|100,000 values'):
        check(shared(2), kind, 'f')
