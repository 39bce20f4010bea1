"""Tables and plots come from the cells' files alone."""
from __future__ import annotations

import json
import re
import shutil

import pytest

from gradmix_timm.cli.study import main
from gradmix_timm.openset.runs import find_runs, read_runs
from gradmix_timm.study import draw_study, run_study, study_tables


def test_means_differences_and_wins(finished):
    table = study_tables(finished)
    rows = {row.split('|')[1].strip(): [cell.strip() for cell in row.split('|')[2:-1]]
            for row in table.splitlines() if row.startswith('| ')}
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


def test_unfinished_cells_are_counted_and_left_out(finished):
    shutil.rmtree(finished.output / finished.cells[0].name)
    assert '9 of 10 cells' in study_tables(finished)
    shutil.rmtree(finished.output)
    with pytest.raises(ValueError, match='none of its 10 cells is done'):
        study_tables(finished)


def test_other_axes_make_a_table_each(make, stubbed):
    study = make(axes={'mixer': ['none', 'gradmix'], 'epochs': [1, 2], 'seed': [0, 1]})
    run_study(study, jobs=2)
    table = study_tables(study)
    assert '**epochs 1**' in table
    assert '**epochs 2**' in table
    assert len(draw_study(study).axes) == 2


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
