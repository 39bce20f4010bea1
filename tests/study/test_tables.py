"""Tables and plots come from the cells' files alone."""
from __future__ import annotations

import json
import re
import shutil

import pytest

from gradmix_timm.cli.study import main
from gradmix_timm.openset.runs import find_runs, read_runs
from gradmix_timm.study import draw_study, run_study, study_tables


def rows_of(table):
    return {row.split('|')[1].strip(): [cell.strip() for cell in row.split('|')[2:-1]]
            for row in table.splitlines() if row.startswith('| ')}


def change(study, chosen, add=0., **entries):
    """Change the results of cells whose levels ``chosen`` holds: accuracy and AUROC by ``add``, entries by name."""
    for cell in study.cells:
        if all(cell.levels[axis] == level for axis, level in chosen.items()):
            file = study.output / cell.name / 'results.json'
            told = {**json.loads(file.read_text()), **entries}
            told['closed_set']['top1'] += add
            told['scores']['mls']['auroc'] += add
            file.write_text(json.dumps(told))


def remove(study, mixer, *seeds):
    for cell in study.cells:
        if cell.levels['mixer'] == mixer and cell.levels['seed'] in seeds:
            shutil.rmtree(study.output / cell.name)


def test_means_differences_and_wins(finished):
    table = study_tables(finished)
    rows = rows_of(table)
    assert rows[''] == ['none', 'gradmix']
    assert rows['accuracy'][0] == '0.520 ± 0.016'  # .50 to .54
    assert re.match(r'0\.620 ± 0\.016 \(\+0\.100.*, wins 5/5\)', rows['accuracy'][1])
    assert re.match(r'0\.420 ± 0\.016$', rows['oscr mls'][0])
    assert rows['cells'] == ['5', '5']
    assert '10 of 10 cells' in table


def test_intervals_hold_for_all_differences_at_once(finished):
    """Bonferroni: with one metric fewer in the family each interval is narrower."""
    def width(table):
        low, high = map(float, re.search(r'accuracy +\|.*\[([-+.\d]+), ([-+.\d]+)\]', table).groups())
        return high - low

    noisy = finished.output / finished.cells[-1].name / 'results.json'
    told = json.loads(noisy.read_text())
    told['closed_set']['top1'] += .05
    noisy.write_text(json.dumps(told))
    wide = study_tables(finished)
    narrow = study_tables(finished, scores=['mls'], metrics=['auroc'])
    assert width(wide) > width(narrow) > 0


def test_a_lower_rate_of_false_positives_is_a_win(finished):
    assert 'fpr_at_95_known mls' in (table := study_tables(finished, metrics=['fpr_at_95_known']))
    assert re.search(r'fpr_at_95_known mls +\| .*\(-0\.100.*wins 5/5', table)


@pytest.mark.parametrize(('mass', 'row'), [
    ({'none': .6, 'gradmix': .2}, r'mass on the mark layercam +\| 0\.600.*\(-0\.400.*wins 2/2\)'),
    ({'none': None, 'gradmix': .2}, None)])
def test_less_evidence_on_the_mark_is_a_win_and_none_is_left_out(make, stubbed, mass, row):
    study = make(axes={'mixer': ['none', 'gradmix'], 'seed': [0, 1]}, evaluate={'shortcut': {}})
    run_study(study, jobs=2)
    for mixer, share in mass.items():
        change(study, {'mixer': mixer}, evidence={'attribution': 'layercam', 'mass': share, 'fall_difference': 1.})
    table = study_tables(study, scores=['mls'], metrics=['auroc'])
    assert re.search(row, table) if row else 'mass on the mark' not in table


@pytest.mark.parametrize(('trials', 'has'), [(range(2), False), (range(5), True)])
def test_intervals_are_of_five_class_splits_and_not_of_their_seeds(make, stubbed, trials, has):
    study = make(axes={'mixer': ['none', 'gradmix'], 'trial': list(trials), 'seed': [0, 1, 2]})
    run_study(study, jobs=2)
    for trial in trials:
        change(study, {'trial': str(trial)}, trial=trial, known_classes=[f'{trial}a', f'{trial}b'])
        change(study, {'trial': str(trial), 'mixer': 'gradmix'}, .01 * trial)
    assert ('intervals' in study_tables(study)) == has


def test_levels_of_a_trial_may_have_names(make, stubbed):
    trials = {'animals': {'known_classes': ['a', 'b']}, 'vehicles': {'known_classes': ['c', 'd']}}
    study = make(axes={'mixer': ['none', 'gradmix'], 'trial': trials, 'seed': [0]})
    run_study(study, jobs=2)
    for name, flags in trials.items():
        change(study, {'trial': name}, known_classes=flags['known_classes'])
    assert rows_of(study_tables(study))['cells'] == ['2', '2']


def test_a_table_of_corruptions_says_which_images_its_figures_are_of(make, stubbed):
    study = make(axes={'mixer': ['none', 'gradmix'], 'seed': [0]}, evaluate={'corrupt': {}, 'osr': {}})
    run_study(study, jobs=2)
    change(study, {'mixer': 'gradmix'}, corruption={'mean_error': .25})
    change(study, {'mixer': 'none'}, corruption={'mean_error': .5})
    table = study_tables(study)
    assert 'corrupt (also done: osr): accuracy of clean images, and the mean over the corruptions' in table
    assert rows_of(table)['accuracy of corrupted images'][1].startswith('0.750 (+0.250')


def test_a_plot_of_a_score_that_a_cell_lacks_is_refused(finished):
    file = finished.output / finished.cells[0].name / 'results.json'
    told = json.loads(file.read_text())
    del told['scores']['mls']
    file.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r'not all cells of .* have auroc of mls'):
        draw_study(finished)


def test_the_level_is_said_as_it_is(finished):
    change(finished, {'mixer': 'gradmix', 'seed': '1'}, .05)
    assert 'simultaneous 99.5% intervals' in study_tables(finished, level=.995)


def test_unfinished_cells_are_counted_and_left_out(finished):
    shutil.rmtree(finished.output / finished.cells[0].name)
    assert '9 of 10 cells' in study_tables(finished)
    shutil.rmtree(finished.output)
    with pytest.raises(ValueError, match='none of its 10 cells is done'):
        study_tables(finished)


@pytest.fixture
def three(make, stubbed):
    """Three levels of six seeds; gradmix is .03 further above none with seed 5."""
    study = make(axes={'mixer': ['none', 'gradmix', 'cutmix'], 'seed': [0, 1, 2, 3, 4, 5]})
    assert run_study(study, jobs=2) == {}
    change(study, {'mixer': 'gradmix', 'seed': '5'}, .03)
    return study


def test_a_level_that_lacks_cells_changes_nothing_of_the_others(three):
    whole = rows_of(study_tables(three, ['mls'], ['auroc']))
    assert re.fullmatch(r'0\.630 ± .* \(\+0\.105 \[.*\], wins 6/6\)', whole['auroc mls'][1])
    remove(three, 'cutmix', '2', '3', '4', '5')
    rows = rows_of(study_tables(three, ['mls'], ['auroc']))
    for name in ('accuracy', 'auroc mls'):
        assert rows[name][:2] == whole[name][:2]
        assert rows[name][2] == '0.605 ± 0.007 (+0.100, wins 2/2)', 'of two pairs there is no interval'
    assert rows['cells'] == ['6', '6', '2']


def test_each_level_is_paired_with_the_base_alone(three):
    """gradmix shares the seeds 0 to 4 with none; cutmix, of seed 5 alone, shares none."""
    remove(three, 'none', '5')
    remove(three, 'cutmix', '0', '1', '2', '3', '4')
    rows = rows_of(study_tables(three, ['mls'], ['auroc']))
    assert rows['auroc mls'] == ['0.520 ± 0.016', '0.630 ± 0.028 (+0.100, wins 5/5)', '0.650']
    assert draw_study(three).axes[0].get_xlim()[1] > .65


def test_levels_without_a_common_seed_leave_the_other_tables_as_they_are(make, stubbed):
    study = make(axes={'mixer': ['none', 'gradmix'], 'epochs': [1, 2], 'seed': [0, 1]})
    run_study(study, jobs=2)
    for cell in study.cells:
        if tuple(cell.levels.values()) in {('none', '1', '0'), ('gradmix', '1', '1')}:
            shutil.rmtree(study.output / cell.name)
    first, second = map(rows_of, study_tables(study).split('**epochs 2**'))
    assert first['accuracy'] == ['0.510', '0.600']
    assert second['accuracy'] == ['0.505 ± 0.007', '0.605 ± 0.007 (+0.100, wins 2/2)']


def test_the_heading_has_intervals_where_the_tables_have_some(finished):
    change(finished, {'mixer': 'gradmix', 'seed': '4'}, .05)
    assert study_tables(finished).startswith(
        '10 of 10 cells; differences to none with simultaneous 95% intervals\n')
    remove(finished, 'none', '0')
    assert study_tables(finished).startswith('9 of 10 cells; differences to none\n')
    remove(finished, 'none', '1', '2', '3', '4')
    assert study_tables(finished).startswith('5 of 10 cells\n')


def test_other_axes_make_a_table_each(make, stubbed):
    study = make(axes={'mixer': ['none', 'gradmix'], 'epochs': [1, 2], 'seed': [0, 1]})
    run_study(study, jobs=2)
    table = study_tables(study)
    assert '**epochs 1**' in table
    assert '**epochs 2**' in table
    assert len(draw_study(study).axes) == 2


def test_a_level_has_its_row_in_every_panel(make, stubbed):
    study = make(axes={'mixer': ['none', 'gradmix'], 'epochs': [1, 2], 'seed': [0]})
    run_study(study, jobs=2)
    shutil.rmtree(study.output / study.cells[0].name)
    first, second = draw_study(study).axes
    rows = {label.get_text(): row for label, row in zip(first.get_yticklabels(), first.get_yticks(), strict=True)}
    dots = [{round(float(line.get_xdata()[0]), 2): line.get_ydata()[0] for line in panel.lines}
            for panel in (first, second)]
    assert dots == [{.6: rows['gradmix']}, {.5: rows['none'], .6: rows['gradmix']}]


def test_folds_are_replicates(make, stubbed):
    """Each has images of its own, of the same classes; a pair shares the fold too."""
    study = make(axes={'mixer': ['none', 'gradmix'], 'fold': {name: {'data_dir': name} for name in 'abcde'},
                       'seed': [0, 1]})
    assert run_study(study, jobs=2) == {}
    for fold in 'abcde':
        manifest = json.loads(next(study.output.glob(f'none-{fold}-0-*/results.json')).read_text())['manifest']
        change(study, {'fold': fold}, manifest={**manifest, 'list_sha256': {'known': fold, 'unknown': fold}})
    rows = rows_of(study_tables(study, ['mls'], ['auroc']))
    assert rows['cells'] == ['10', '10']
    assert rows['accuracy'][1].endswith('(+0.100, wins 10/10)')


def test_a_shortcut_has_a_table_for_each_view(make, stubbed):
    study = make(axes={'mixer': ['none', 'gradmix'], 'seed': [0, 1]}, evaluate={'shortcut': {}})
    run_study(study, jobs=2)
    page = study_tables(study, scores=['mls'], metrics=['auroc'])
    assert page.startswith('4 of 4 cells')
    tables = page.split('**')
    accuracies = {tables[place]: re.search(r'accuracy +\| ([.\d]+)', tables[place + 1]).group(1)
                  for place in range(1, len(tables), 2)}
    assert accuracies == {"images with their own class's mark": '0.505', 'images without a mark': '0.405',
                          "images with another class's mark": '0.205'}


def test_many_levels_are_rows(make, stubbed):
    study = make(axes={'mixer': ['none', 'a', 'b', 'c', 'd', 'e'], 'seed': [0]})
    run_study(study, jobs=2)
    table = study_tables(study, scores=['mls'], metrics=['auroc'])
    rows = [[cell.strip() for cell in line.split('|')] for line in table.splitlines()]
    assert ['', '', 'accuracy', 'auroc mls', 'cost', 'cells', ''] in rows
    assert ['', 'none', '0.500', '0.500'] in [row[:4] for row in rows]


def test_a_bar_in_a_level_is_no_cell_and_columns_are_straight(make, stubbed):
    study = make(axes={'mixer': ['none', 'a|b'], 'seed': [0]})
    run_study(study, jobs=2)
    lines = [line for line in study_tables(study).splitlines() if line.startswith('|')]
    assert 'a\\|b' in lines[0]
    assert len({(len(line), len(re.split(r'(?<!\\)\|', line))) for line in lines}) == 1


def test_the_command_writes_tables_and_a_plot(finished, tmp_path, capsys):
    page, plot = tmp_path / 'study.md', tmp_path / 'study.svg'
    assert main([str(finished.source), '--table', '--write', str(page), '--plot', str(plot)]) == 0
    assert capsys.readouterr().out == page.read_text()
    assert '<svg' in plot.read_text()
    assert main([str(finished.source), '--list']) == 0
    assert capsys.readouterr().out.count('done  ') == 10


def test_compare_reads_the_cells(finished):
    runs = read_runs(find_runs([finished.output]), ['mixer'])
    assert sorted((run.group, run.seed) for run in runs) == sorted(
        (mixer, seed) for mixer in ('none', 'gradmix') for seed in range(5))
