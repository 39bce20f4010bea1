"""A study's YAML file: axes, flags, cells, and what is refused."""
from __future__ import annotations

import argparse

import pytest

from gradmix_timm.choices import SWITCHES
from gradmix_timm.cli.openset.parser import build_parser as openset_parser
from gradmix_timm.cli.training.args import build_parser as train_parser
from gradmix_timm.study import read_study
from gradmix_timm.study.cells import as_flags


def test_cells_are_the_product_of_the_axes(make):
    study = make(train={'epochs': 3, 'img-size': 32}, axes={
        'method': {'none': {'mixup_mode': 'none'}, 'kept': {'mixup_mode': 'gradmix', 'gradmix-label': 'keep'}},
        'trial': [0, 1], 'seed': [7]})
    assert [dict(cell.levels) for cell in study.cells] == [
        {'method': method, 'trial': trial, 'seed': '7'} for method in ('none', 'kept') for trial in ('0', '1')]
    assert study.cells[2].train == {
        'epochs': 3, 'img_size': 32, 'mixup_mode': 'gradmix', 'gradmix_label': 'keep', 'osr_trial': 0, 'seed': 7}
    assert study.base == 'none'
    assert len({cell.name for cell in study.cells}) == 4


def test_a_cell_of_other_flags_has_another_name(make):
    names = [{cell.name for cell in make(train={'epochs': epochs}).cells} for epochs in (3, 4)]
    assert not names[0] & names[1]
    assert names[0] == {cell.name for cell in make(train={'epochs': 3}).cells}


def test_a_cell_whose_file_of_flags_changed_has_another_name(make, tmp_path):
    config, base = tmp_path / 'config.yaml', tmp_path / 'base.yaml'
    base.write_text('lr: 0.1')
    config.write_text('base: base.yaml')
    before = make(train={'config': str(config)}).cells[0].name
    assert make(train={'config': str(config)}).cells[0].name == before
    base.write_text('lr: 0.2')
    assert make(train={'config': str(config)}).cells[0].name != before


def test_a_cell_has_another_name_when_a_file_changed_that_a_file_of_flags_or_an_evaluation_names(make, tmp_path):
    config, base, protocol, classes = (tmp_path / name for name in ('config.yaml', 'base.yaml', 'own.yaml', 'map.txt'))
    base.write_text(f'osr_protocol: {protocol}')
    config.write_text('base: base.yaml')
    names = set()
    for file in (None, protocol, classes):
        if file is not None:
            file.write_text('known: [a]')
        entries = {'train': {'config': str(config)}, 'evaluate': {'osr': {'class_map': str(classes)}}}
        names.add(make(**entries).cells[0].name)
    assert len(names) == 3


def test_a_study_file_without_a_suffix_is_not_its_own_folder(tmp_path):
    file = tmp_path / 'study'
    file.write_text('axes: {seed: [0]}')
    with pytest.raises(ValueError, match=f'output: {file}; expected the name of a folder'):
        read_study(file)


def test_cells_of_several_processes_are_other_cells(make):
    assert make(processes=1).cells == make().cells
    assert not {cell.name for cell in make(processes=2).cells} & {cell.name for cell in make().cells}


def test_cells_can_be_excluded(make):
    study = make(exclude=[{'mixer': 'gradmix', 'seed': 2}])
    assert [cell.levels for cell in study.cells if cell.levels['seed'] == '2'] == [{'mixer': 'none', 'seed': '2'}]


@pytest.mark.parametrize(('entries', 'message'), [
    ({'axis': {}}, "no key 'axis'.*axes"),
    ({'axes': {}}, 'at least one axis'),
    ({'axes': {'seed': 3}}, 'axes.seed: expected a list'),
    ({'axes': {'seed': []}}, 'axes.seed: expected one or more levels'),
    ({'axes': {'seed': [1, 1]}}, 'each named once'),
    ({'base': 'cutmix'}, "base: 'cutmix' is no level of the first axis, mixer"),
    ({'evaluate': {'ors': {}}}, "no command 'ors'.*osr"),
    ({'processes': 0}, 'processes: 0; expected'),
    ({'processes': '2'}, "processes: '2'; expected"),
    ({'checkpoint': 'lst'}, "checkpoint: 'lst'.*last"),
    ({'train': {'output': 'x'}}, 'train: output is set for each cell'),
    ({'train': {'amp': None}}, 'amp has no value'),
    ({'train': [1]}, 'train: expected flags'),
    ({'axes': {'method': {'a': {'lr': 1}, 'b': {'lr': 2}}, 'lr': [2, 3]}},
     r'axes\.lr: level 2 sets lr: 2, and one of another axis lr: 1; leave lr to one axis'),
    ({'exclude': [{'mixr': 'none'}]}, "exclude: no axis 'mixr'.*mixer"),
    ({'exclude': [{'mixer': 'nine'}]}, "exclude: mixer has no level 'nine'"),
    ({'exclude': [{'mixer': 'none'}, {'mixer': 'gradmix'}]}, 'exclude: no cell is left of the 6 combinations'),
    ({'train': {'batch_size': 8, 'batch-size': 16}}, 'train: a flag is there twice'),
    ({'exclude': 5}, 'exclude: expected a list of mappings .*got int'),
    ({'exclude': {'mixer': 'none'}}, 'exclude: expected a list of mappings .*got dict'),
    ({'output': 5}, 'output: 5; expected the name of a folder'),
    ({'axes': {axis: list(range(300)) for axis in ('lr', 'seed', 'epochs')}}, '27,000,000 combinations of levels'),
    ({'axes': {'lr': [float('nan')]}}, 'axes.lr: lr: nan; expected a finite number'),
])
def test_what_is_wrong_is_said(make, entries, message):
    with pytest.raises(ValueError, match=message):
        make(**entries)


@pytest.mark.parametrize('text', ['[1, 2]', 'a: [', 'x', ''])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / 'study.yaml'
    path.write_text(text)
    with pytest.raises(ValueError, match=r'study\.yaml'):
        read_study(path)
    with pytest.raises(ValueError, match='No such file'):
        read_study(tmp_path / 'other.yaml')


@pytest.mark.parametrize(('command', 'flags'), [
    ('train', {'known_classes': ['cat', 'dog, wild', 'a "b"', 7], 'mean': [.5, .4, .3]}),
    ('ood', {'near': ['a', 'b'], 'far': ['c'], 'known_classes': ['x']}),
    ('ood', {'unknown': ['folder:a=b,c', 'noise:uniform'], 'scores': ['msp', 'knn:k=5']}),
    ('corrupt', {'corruptions': ['fog', 'snow'], 'severities': [1, 3]}),
    ('probe', {'probes': ['knn', 'few-shot'], 'shots': [1, 5], 'known_classes': ['a']})])
def test_lists_are_what_the_commands_read(command, flags):
    """Flags of train.py as its own YAML files give them; those of openset as written."""
    if command == 'train':
        args = train_parser().parse_args(as_flags(flags))
        assert (args.known_classes, args.mean) == (['cat', 'dog, wild', 'a "b"', '7'], [.5, .4, .3])
        return
    args = openset_parser().parse_args([command, *as_flags(flags)])
    assert {flag: list(map(str, getattr(args, flag))) for flag in flags} == {
        flag: list(map(str, value)) for flag, value in flags.items()}


def test_false_switches_off_what_is_on_by_default():
    parser = train_parser()
    found = {action.dest for action in parser._actions if isinstance(action, argparse.BooleanOptionalAction)}
    assert found == {*SWITCHES}
    assert parser.parse_args(as_flags({'gradmix_correct_lam': False})).gradmix_correct_lam is False
    assert as_flags({'amp': False}) == []


def test_levels_that_agree_may_set_a_flag_twice(make):
    study = make(axes={'method': {'a': {'lr': 2, 'epochs': 1}, 'b': {'lr': 2}}, 'lr': [2]})
    assert [cell.train['lr'] for cell in study.cells] == [2, 2]


def test_flags_become_words():
    assert as_flags({'mixup_kwargs': {'a': 1, 'b': 'c'}, 'no_resume_opt': True, 'lr': 0.1}) == [
        '--mixup-kwargs', 'a=1', 'b=c', '--no-resume-opt', '--lr', '0.1']
