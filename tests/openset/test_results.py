"""What a results file may say: every field has its type and range, anything else is one line that names it."""
from __future__ import annotations

import copy
import importlib.util
import json
import random
import typing
from pathlib import Path

import numpy as np
import pytest
from test_report import made

from gradmix_timm.cli.errors import run_console
from gradmix_timm.openset.__main__ import main
from gradmix_timm.openset.reports.report import render_report
from gradmix_timm.openset.results import (
    CorruptionResults,
    OpenSetResults,
    ProbeResults,
    read_arrays,
    read_mistakes,
    read_mixes,
    read_results,
    read_run,
)
from gradmix_timm.schema import check

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def evaluation():
    return made()


@pytest.fixture
def folder(tmp_path, evaluation):
    """An evaluation's folder without figures."""
    write(tmp_path, evaluation[0])
    np.savez_compressed(tmp_path / 'arrays.npz', **evaluation[1])
    return tmp_path


def write(folder: Path, results: dict) -> None:
    (folder / 'results.json').write_text(json.dumps(results))


def changed(results: dict, place: tuple, value: object) -> dict:
    results = copy.deepcopy(results)
    at = results
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return results


AUROC = ('scores', 'mls', 'auroc')


@pytest.mark.parametrize('value', [1.7, -3, 1e6, True, 'x', None, [0.5], float('nan')])
@pytest.mark.parametrize('command', ['compare', 'report'])
def test_a_metric_out_of_its_range_is_refused_by_file_and_field(folder, evaluation, command, value, capsys):
    write(folder, changed(evaluation[0], AUROC, value))
    assert run_console(main, [command, str(folder), '--output', str(folder / 'out')]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert len(err.splitlines()) == 1
    assert err.startswith(f'error: {folder / "results.json"}: ')
    assert 'NaN' in err if value != value else 'scores.mls.auroc' in err
    assert not (folder / 'out').exists()


@pytest.mark.parametrize(('place', 'value'), [
    (('n_known',), True), (('n_known',), -1), (('n_unknown',), 2.5), (('trial',), '0'), (('seed',), True),
    (('known_classes',), 'cat'), (('known_classes',), []), (('known_classes', 0), 3), (('closed_set',), {}),
    (('closed_set', 'top1'), 90.), (('scores',), []), (('scores', 'mls', 'ccr_at_fpr'), {'often': 0.5}),
    (('scores', 'mls', 'oscr_ci'), [0.5]), (('scores', 'mls', 'oscr_ci'), [0.5, 7]), (('manifest',), []),
    (('manifest', 'model'), None), (('manifest', 'mixer_options'), [1]), (('protocol',), 3)])
def test_compare_and_report_refuse_the_same_field(folder, evaluation, place, value):
    write(folder, changed(evaluation[0], place, value))
    for read in (read_run, read_results):
        with pytest.raises(ValueError, match=rf'results\.json: .*{place[0]}'):
            read(folder)


@pytest.mark.parametrize(('place', 'value', 'words'), [
    (('threshold', 'score'), 'nil', 'threshold.score'), (('threshold',), None, 'threshold'),
    (('groups', 'easy', 'scores'), {}, 'groups.easy.scores'), (('groups', 'easy', 'n_unknown'), 0, 'groups.easy'),
    (('means',), {'near': {'data_sets': [], 'n_unknown': 1, 'scores': {}}}, 'means.near'),
    (('per_class', 'known', 0, 'n'), '<script>alert(1)</script>', r'per_class.known\[0\].n'),
    (('not_served',), [], 'not_served'), (('calibration', 'ece'), 2, 'calibration.ece'),
    (('scores', 'mls', 'ccr_at_fpr'), {}, 'ccr_at_fpr'), (('versions',), 3, 'versions')])
def test_the_report_refuses_what_its_page_cannot_show(folder, evaluation, place, value, words):
    write(folder, changed(evaluation[0], place, value))
    with pytest.raises(ValueError, match=rf'results\.json: .*{words}'):
        read_results(folder)


def leaves(value, place=()):
    yield place
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(entry, (*place, key))


def test_no_change_of_a_field_ends_in_a_traceback(folder, evaluation):
    """Any field of any other type: refused in one line that names the file, or shown."""
    places = [place for place in leaves(evaluation[0]) if place]
    pick = random.Random(0)
    refused = 0
    for _ in range(250):
        place = pick.choice(places)
        value = pick.choice(['<script>x</script>', True, -3, 1e6, None, [], {}, [[]], {'a': 'b'}])
        write(folder, changed(evaluation[0], place, value))
        try:
            page = render_report(folder)
        except ValueError as error:
            refused += 1
            page = ''
            message = str(error)
        assert '<script>x' not in page, place
        assert page or (str(folder / 'results.json') in message and '\n' not in message), (place, value)
    assert refused > 100


@pytest.mark.parametrize('name', ['results.json', 'arrays.npz'])
@pytest.mark.parametrize('share', [0, 0.3, 0.99])
def test_a_file_cut_short_is_one_line(folder, name, share, capsys):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:int(share * len(content))])
    assert run_console(main, ['report', str(folder)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert str(folder / name) in err


@pytest.mark.parametrize(('name', 'array', 'words'), [
    ('known/mls', None, 'no known/mls'), ('known/mls', np.zeros(7), r'known/mls: got an array of shape \[7\]'),
    ('known/mls', np.zeros((60, 2)), 'known/mls: got an array of shape'), ('known/mls', np.full(60, np.nan), 'NaN'),
    ('unknown_index', np.array(['a'] * 60), 'expected numbers'),
    ('known/mls', np.zeros(60, complex), 'expected numbers'),
    ('known/mls', np.array([None] * 60), 'cannot be read')])
def test_arrays_that_do_not_fit_are_refused(folder, evaluation, name, array, words):
    arrays = {**evaluation[1], name: array}
    np.savez(folder / 'arrays.npz', **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=rf'arrays\.npz.*{words}'):
        read_arrays(folder, ['mls'])


@pytest.mark.parametrize(('read', 'name', 'content', 'words'), [
    (read_mistakes, 'mistakes.json', {'accepted': [{}]}, r'accepted\[0\]'),
    (read_mistakes, 'mistakes.json', {'rejected': 3}, 'rejected'), (read_mistakes, 'mistakes.json', [], 'a mapping'),
    (read_mixes, 'mixes.json', {'images': [{'class': 'a', 'partner_class': 'b', 'lam': 0.5, 'weight': [0.5, 0.5],
                                            'box': ['<script>', 1, 2, 3]}]}, r'images\[0\].box\[0\]'),
    (read_mixes, 'mixes.json', {'layers': 'layer4'}, 'layers'), (read_mixes, 'mixes.json', {'mixer': ['a']}, 'mixer')])
def test_what_lies_beside_the_results_has_types_too(tmp_path, read, name, content, words):
    assert read(tmp_path) == {}
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf'{name}: .*{words}'):
        read(tmp_path)


@pytest.mark.parametrize(('name', 'content', 'words'), [
    ('mistakes.json', '{"accepted": [3]}', 'accepted[0]'), ('mistakes.json', '{"accepted": [', 'not JSON'),
    ('mixes.json', '{"images": 1}', 'images'), ('mixes.json', '', 'not JSON')])
def test_the_report_says_which_file_beside_the_results_is_broken(folder, name, content, words, capsys):
    (folder / 'mixes.png').touch()
    (folder / name).write_text(content)
    assert run_console(main, ['report', str(folder)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert name in err
    assert words in err
    assert not (folder / 'report.html').exists()


@pytest.mark.parametrize('change', [
    {'confusion': None}, {'confusion': np.zeros((3, 3))}, {'correct/mls': None}, {'bin_share': None},
    {'bin_share': np.zeros(3)}])
def test_the_report_needs_every_array_that_it_draws(folder, evaluation, change, capsys):
    np.savez(folder / 'arrays.npz', **{
        key: value for key, value in {**evaluation[1], **change}.items() if value is not None})
    assert run_console(main, ['report', str(folder)]) == 2
    err = capsys.readouterr().err
    assert f'{folder / "arrays.npz"}: ' in err
    assert next(iter(change)) in err


@pytest.mark.parametrize('argv', [
    ['report', '.', '--output', ''], ['compare', '.', '--output', ' '], ['compare', '.', '--by', ''],
    ['compare', '.', '--scores', ''], ['compare', '.', '--metrics', ',']])
def test_an_empty_word_is_no_value_of_a_flag(folder, argv, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob('*'))
    assert run_console(main, argv) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert argv[2] in err
    assert sorted(folder.rglob('*')) == before


@pytest.mark.parametrize('words', [[''], ['  '], ['.', '']])
@pytest.mark.parametrize('command', ['compare', 'report'])
def test_an_empty_word_is_no_folder(folder, command, words, capsys, monkeypatch):
    """As of a variable that is not set; everything below the current folder would be read."""
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob('*'))
    assert run_console(main, [command, *words]) == 2
    err = capsys.readouterr().err
    assert 'empty word' in err
    assert len(err.splitlines()) == 1
    assert sorted(folder.rglob('*')) == before


@pytest.mark.parametrize(('name', 'kind'), [
    ('osr', OpenSetResults), ('ood', OpenSetResults), ('corrupt', CorruptionResults), ('probe', ProbeResults)])
def test_results_of_earlier_versions_are_read(name, kind):
    """Of evaluations of 2026-11-23, without what is not measured (manifest, checkpoint)."""
    results = json.loads((Path(__file__).parent / 'data' / 'earlier' / f'{name}.json').read_text())
    assert check({**results, 'manifest': {'model': 'm'}, 'checkpoint': 'c'}, kind, name)


def test_the_page_of_the_schema_is_what_the_types_say():
    """Made by `python benchmarks/results_schema.py`; every key has words of its own, and nothing else has."""
    spec = importlib.util.spec_from_file_location('results_schema', ROOT / 'benchmarks' / 'results_schema.py')
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    assert (ROOT / 'docs' / 'results-schema.md').read_text() == schema.page()
    everything = schema.nested(tuple(kind for kinds in schema.SECTIONS.values() for kind in kinds))
    assert len(everything) > 25
    for kind in everything:
        keys, told = set(typing.get_type_hints(kind)), set(schema.descriptions(kind))
        assert told <= keys, kind
        missing = keys - told
        inherited = [set(typing.get_type_hints(base)) for base in schema.bases_of(kind)]
        assert missing <= set().union(*inherited) <= keys, kind
