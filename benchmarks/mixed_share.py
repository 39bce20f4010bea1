"""How many images of each epoch GradMix mixes with eighty classes: ``python benchmarks/mixed_share.py``.

Trains the first cell of ``benchmarks/studies/glyphs.yaml`` that mixes by confidence, reads "Mixed: 64/320" in its log,
and writes ``benchmarks/results/mixed_share.json``.
"""
from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from gradmix_timm.checkpoint import write_atomic
from gradmix_timm.study import read_study
from gradmix_timm.study.cells import as_flags

ROOT = Path(__file__).parent.parent


def main() -> None:
    study = read_study(ROOT / 'benchmarks' / 'studies' / 'glyphs.yaml')
    cell = next(cell for cell in study.cells if cell.levels['method'] == 'confident-90-keep')
    with tempfile.TemporaryDirectory() as folder:
        words = [*as_flags(cell.train), '--output', folder]
        log = subprocess.run([sys.executable, 'train.py', *words], cwd=ROOT, stderr=subprocess.STDOUT,
                             stdout=subprocess.PIPE, text=True, check=True).stdout
    last = {int(epoch): (int(mixed), int(images))
            for epoch, mixed, images in re.findall(r'^Train: (\d+) .*Mixed: (\d+)/(\d+)', log, flags=re.MULTILINE)}
    found = {'cell': cell.name, 'images': max(images for _, images in last.values()),
             'mixed': [last[epoch][0] for epoch in sorted(last)]}
    write_atomic(ROOT / 'benchmarks' / 'results' / 'mixed_share.json', json.dumps(found) + '\n')


if __name__ == '__main__':
    main()
