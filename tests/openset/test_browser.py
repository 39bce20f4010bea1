"""The pages in a real browser: no error in the console, every figure drawn, words readable, nothing too wide."""
from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
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

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason='no chromium here')]

FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync', '--hide-scrollbars',
         '--enable-logging=stderr', '--virtual-time-budget=5000')

# Run in the page, with everything unfolded: what is too wide, which pictures did not load, how small the words are.
PROBE = """<script>
addEventListener('load', () => {
  for (const fold of document.querySelectorAll('details')) fold.open = true;
  const table = document.querySelector('table.sortable:has(button)');
  const column = () => [...table.tBodies[0].rows].map(row => parseFloat(row.cells[1].textContent));
  const sorted = [];
  for (let click = 0; table && click < 2; click++) {
    table.tHead.rows[0].cells[1].firstChild.click();
    sorted.push(column(), table.tHead.rows[0].cells[1].getAttribute('aria-sort'));
  }
  const seen = element => element.getClientRects().length > 0;
  const texts = [...document.querySelectorAll('body *')].filter(element => seen(element)
    && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(value => {
      const c = value / 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!colour.endsWith(', 0)')) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const contrast = element => {
    const [a, b] = [getComputedStyle(element).color, ground(element)].map(luminance).sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const told = {
    width: document.documentElement.clientWidth,
    over: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    images: document.images.length,
    broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.alt),
    narrow: [...document.images].filter(image => !seen(image) || image.clientWidth < 90).map(image => image.alt),
    smallest: Math.min(...texts.map(element => parseFloat(getComputedStyle(element).fontSize))),
    contrast: Math.min(...texts.map(contrast)),
    dark: luminance(getComputedStyle(document.body).backgroundColor) < 0.1,
    sorted: sorted,
    anchors: [...document.querySelectorAll('nav a')].map(link => document.querySelector(link.hash) !== null),
    headings: [...document.querySelectorAll('h1, h2')].map(element => element.textContent),
  };
  const button = document.querySelector('figure button');
  if (button) {
    button.click();
    const dialog = document.querySelector('dialog[open]'), image = dialog.querySelector('img');
    told.enlarged = [button.getAttribute('aria-label'), image.clientWidth / image.naturalWidth];
    dialog.querySelector('button').click();
    told.closed = document.querySelector('dialog[open]') === null;
  }
  parent.postMessage(JSON.stringify(told), '*');
});
</script>"""

# What axe-core finds with everything unfolded, those that keep somebody from reading the page.
AXE_PROBE = """<script>
addEventListener('load', async () => {
  for (const fold of document.querySelectorAll('details')) fold.open = true;
  const found = await axe.run(document, {resultTypes: ['violations']});
  const grave = found.violations.filter(rule => ['serious', 'critical'].includes(rule.impact));
  parent.postMessage(JSON.stringify({rules: found.passes.length, grave: grave.map(
    rule => [rule.id, ...rule.nodes.slice(0, 3).map(node => node.html.slice(0, 200))])}), '*');
});
</script>"""
AXE = Path(os.environ.get('AXE_CORE', Path(__file__).parents[2] / 'node_modules' / 'axe-core' / 'axe.min.js'))
needs_axe = pytest.mark.skipif(
    not AXE.is_file(), reason='no axe-core here: npm install --no-save axe-core, or AXE_CORE=FILE')


def opened(page: str, folder: Path, width: int, dark: bool = False, probe: str = PROBE) -> tuple[dict, str]:
    """What the page says of itself at a width, in the light or the dark, and the browser's log."""
    (folder / 'page.html').write_text(page.replace('</body>', f'{probe}</body>'))
    # A headless window has a least width; a frame has none.
    (folder / 'frame.html').write_text(
        '<body><pre id="told"></pre><script>onmessage = event => {told.textContent = event.data}</script>'
        f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe></body>')
    done = subprocess.run(
        [BROWSER, *FLAGS, *['--blink-settings=preferredColorScheme=0'][:dark], f'--user-data-dir={folder / "profile"}',
         '--dump-dom', (folder / 'frame.html').as_uri()],
        capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="told">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), done.stderr


def axe_probe() -> str:
    return f'<script>{AXE.read_text()}</script>{AXE_PROBE}'


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
    told, log = opened(page, tmp_path, width, dark)
    assert told['width'] == width
    assert told['dark'] == dark
    if command == 'compare':  # of one score: there is nothing to sort
        assert told['sorted'] == []
    else:
        falling, first, rising, second = told['sorted']
        assert (falling, first) == (sorted(falling, reverse=True), 'descending')
        assert (rising, second) == (sorted(falling), 'ascending')
    assert told['anchors']
    assert all(told['anchors'])
    assert told['over'] <= 0
    assert told['images'] == pictures
    assert told['broken'] == []
    assert told['narrow'] == []
    assert told['smallest'] >= 11
    assert told['contrast'] >= 4.5  # WCAG 2.1 AA
    label, enlarged = told['enlarged']
    assert label.startswith('Enlarge: ')
    assert enlarged >= 1
    assert told['closed']
    assert len(told['headings']) > 2
    assert not [line for line in log.splitlines() if 'CONSOLE' in line]


@needs_axe
@SCREENS
def test_axe_finds_nothing_serious(page, width, dark, tmp_path):
    told, log = opened(page[1], tmp_path, width, dark, axe_probe())
    assert told['rules'] > 10, log
    assert told['grave'] == []


FAULTY = ('<!DOCTYPE html><html><body style="margin:0"><h1 style="width:600px">wide</h1><p style="font-size:7px;'
          'color:#bbb">pale</p><img src="data:image/png;base64,AAAA" alt="broken"><script>console.error("no")'
          '</script></body></html>')


@needs_axe
def test_axe_sees_what_is_wrong(tmp_path):
    told, _ = opened(FAULTY.replace(' alt="broken"', ''), tmp_path, 375, probe=axe_probe())
    assert {'color-contrast', 'html-has-lang', 'image-alt'} <= {rule[0] for rule in told['grave']}


def test_the_probe_sees_what_is_wrong(tmp_path):
    """A page with each fault: the tests above would fail on it."""
    told, log = opened(FAULTY, tmp_path, 375)
    assert told['over'] == 225
    assert told['broken'] == ['broken']
    assert told['smallest'] == 7
    assert told['contrast'] < 2
    assert any('CONSOLE' in line for line in log.splitlines())
