"""A page in a headless browser: what a script in it finds, and axe-core, by `make node_modules/axe-core`."""
from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason='no chromium here')

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
  const found = {
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
    found.enlarged = [button.getAttribute('aria-label'), image.clientWidth / image.naturalWidth];
    dialog.querySelector('button').click();
    found.closed = document.querySelector('dialog[open]') === null;
  }
  parent.postMessage(JSON.stringify(found), '*');
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
AXE = Path(os.environ.get('AXE_CORE', Path(__file__).parents[1] / 'node_modules' / 'axe-core' / 'axe.min.js'))
needs_axe = pytest.mark.skipif(
    not AXE.is_file(), reason='no axe-core here: `make node_modules/axe-core` (needs npm), or AXE_CORE=FILE')


def opened(page: str, folder: Path, width: int, dark: bool = False, probe: str = PROBE) -> tuple[dict, str]:
    """What the page says of itself at a width, in the light or the dark, and the browser's log."""
    (folder / 'page.html').write_text(page.replace('</body>', f'{probe}</body>'))
    # A headless window has a least width; a frame has none.
    (folder / 'frame.html').write_text(
        '<body><pre id="found"></pre><script>onmessage = event => {found.textContent = event.data}</script>'
        f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe></body>')
    done = subprocess.run(
        [BROWSER, *FLAGS, *['--blink-settings=preferredColorScheme=0'][:dark], f'--user-data-dir={folder / "profile"}',
         '--dump-dom', (folder / 'frame.html').as_uri()],
        capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), done.stderr


def axe_probe() -> str:
    return f'<script>{AXE.read_text()}</script>{AXE_PROBE}'
