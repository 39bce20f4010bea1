"""The pages in a real browser: no error in the console, every figure drawn, words readable, nothing too wide."""
from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import axe_probe, needs_axe, needs_browser, opened
from test_comparison import GAPS
from test_comparison import made as made_runs
from test_report import made
from tiny_checkpoints import class_folders, save_checkpoint

from gradmix_timm.cli.errors import run_console
from gradmix_timm.openset.__main__ import main
from gradmix_timm.openset.comparison import compare_runs
from gradmix_timm.openset.reports.comparison_page import render_comparison
from gradmix_timm.openset.reports.feature_map import project_features
from gradmix_timm.openset.reports.figures import plot_differences
from gradmix_timm.openset.reports.report import draw_figures, render_report
from gradmix_timm.plots.figure import png

pytestmark = [pytest.mark.slow, needs_browser]


def evaluation_page(folder: Path) -> tuple[str, int]:
    """A report with every section, and how many pictures it should show."""
    results, arrays = made()
    rng = np.random.default_rng(0)
    arrays = {**arrays, **project_features(torch.from_numpy(rng.normal(size=(20, 4))),
                                           torch.from_numpy(rng.normal(size=(20, 4))))}
    (folder / 'figures').mkdir()
    (folder / 'results.json').write_text(json.dumps(results))
    drawn = draw_figures(results, arrays)
    for name, content in drawn.items():
        (folder / 'figures' / name).write_bytes(content)
    assert 'features.png' in drawn
    return render_report(folder), len(drawn)


def comparison_page(folder: Path) -> tuple[str, int]:
    comparison = compare_runs(made_runs(GAPS), paired=True)
    gaps = {'ours': {'mls': (0.02, 0.01, 0.03)}}
    images = {'differences-auroc.png': png(plot_differences(gaps, 'difference in AUROC'))}
    return render_comparison(comparison, images), 1


def command_page(command: str, *flags: str) -> Callable[[Path], tuple[str, int]]:
    """The page that a command of ``openset`` writes for a tiny checkpoint, and how many figures it drew."""
    def make(folder: Path) -> tuple[str, int]:
        class_folders(folder / 'data')
        checkpoint = save_checkpoint(folder / 'run' / 'model_best.pth.tar', folder / 'data')
        out = folder / 'judged'
        argv = [command, '--checkpoint', str(checkpoint), '--output', str(out), '--device', 'cpu', '--bootstrap', '10']
        assert run_console(main, [*argv, *flags]) == 0
        pictures = re.findall(r'<img[^>]+src="data:image/', (out / 'report.html').read_text())
        assert len(pictures) >= len(list((out / 'figures').glob('*.png')))
        return (out / 'report.html').read_text(), len(pictures)
    return make


PAGES = {
    'osr': evaluation_page,
    'compare': comparison_page,
    'ood': command_page('ood', '--unknown', 'noise:gaussian', 'noise:uniform', '--no-accuracy-gate'),
    'corrupt': command_page('corrupt', '--corruptions', 'fog,contrast', '--severities', '1,5'),
    'probe': command_page('probe', '--draws', '3', '--shots', '1,5'),
}


@pytest.fixture(scope='module', params=PAGES)
def page(request, tmp_path_factory):
    """A command's name, its page, and how many pictures that should show."""
    return request.param, *PAGES[request.param](tmp_path_factory.mktemp(request.param))


SCREENS = pytest.mark.parametrize(
    ('width', 'dark'), [(375, True), (1200, False)], ids=['phone, dark', 'desktop, light'])


@SCREENS
def test_a_page_is_whole_at_every_width(page, width, dark, tmp_path):
    command, page, pictures = page
    found, log = opened(page, tmp_path, width, dark)
    assert found['width'] == width
    assert found['dark'] == dark
    if command == 'compare':  # of one score: there is nothing to sort
        assert found['sorted'] == []
    else:
        falling, first, rising, second = found['sorted']
        assert (falling, first) == (sorted(falling, reverse=True), 'descending')
        assert (rising, second) == (sorted(falling), 'ascending')
    assert found['anchors']
    assert all(found['anchors'])
    assert found['over'] <= 0
    assert found['images'] == pictures
    assert found['broken'] == []
    assert found['narrow'] == []
    assert found['smallest'] >= 11
    assert found['contrast'] >= 4.5  # WCAG 2.1 AA
    label, enlarged = found['enlarged']
    assert label.startswith('Enlarge: ')
    assert enlarged >= 1
    assert found['closed']
    assert len(found['headings']) > 2
    assert not [line for line in log.splitlines() if 'CONSOLE' in line]


@needs_axe
@SCREENS
def test_axe_finds_nothing_serious(page, width, dark, tmp_path):
    found, log = opened(page[1], tmp_path, width, dark, axe_probe())
    assert found['rules'] > 10, log
    assert found['grave'] == []


FAULTY = ('<!DOCTYPE html><html><body style="margin:0"><h1 style="width:600px">wide</h1><p style="font-size:7px;'
          'color:#bbb">pale</p><img src="data:image/png;base64,AAAA" alt="broken"><script>console.error("no")'
          '</script></body></html>')


@needs_axe
def test_axe_sees_what_is_wrong(tmp_path):
    found, _ = opened(FAULTY.replace(' alt="broken"', ''), tmp_path, 375, probe=axe_probe())
    assert {'color-contrast', 'html-has-lang', 'image-alt'} <= {rule[0] for rule in found['grave']}


def test_the_probe_sees_what_is_wrong(tmp_path):
    """A page with each fault: the tests above would fail on it."""
    found, log = opened(FAULTY, tmp_path, 375)
    assert found['over'] == 225
    assert found['broken'] == ['broken']
    assert found['smallest'] == 7
    assert found['contrast'] < 2
    assert any('CONSOLE' in line for line in log.splitlines())
