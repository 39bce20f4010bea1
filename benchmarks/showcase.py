"""docs/results/cifar10.md's tables from the results of one net's evaluations.

    python benchmarks/showcase.py --take osr=RUN/osr ood=RUN/ood probe=RUN/probe corrupt=RUN/corrupt
    python benchmarks/showcase.py

The first copies what the tables need of each evaluation's results.json, without folders; both write the document.
"""
from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from gradmix_timm.openset.reports.corruption_report import corruption_line, corruption_table
from gradmix_timm.openset.reports.probe_report import probe_line, probe_table
from gradmix_timm.openset.reports.report import closed_set_line, means_table, score_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / 'benchmarks' / 'results' / 'cifar10'
DOCUMENT = ROOT / 'docs' / 'results' / 'cifar10.md'
# They hold where the run lay.
LEFT_OUT = ('checkpoint', 'manifest', 'skipped')


def short(value: Any) -> Any:
    """Floats of seven digits and file names without their folders, within whatever."""
    if isinstance(value, float):
        return round(value, 7)
    if isinstance(value, str):
        return re.sub(r'/\S*/', '', value)
    if isinstance(value, dict):
        return {key: short(entry) for key, entry in value.items()}
    return [short(entry) for entry in value] if isinstance(value, list) else value


def take(name: str, folder: Path) -> None:
    """Keep an evaluation's results."""
    results = json.loads((folder / 'results.json').read_text())
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = {key: short(value) for key, value in results.items() if key not in LEFT_OUT}
    (RESULTS / f'{name}.json').write_text(json.dumps(kept, separators=(',', ':')) + '\n')


def pixels(results: dict) -> str:
    """What statistics of the pixels alone reach."""
    found = results['trivial']
    worst = found['worst']
    alone, together = found['statistics'][worst]['auroc'], found['combined']['auroc']
    return (f'Pixels alone: {worst} separates unknown from known with an AUROC of {alone:.1%}, all '
            f'{len(found["statistics"])} statistics together {together:.1%}.')


def tables() -> dict[str, str]:
    """Marker -> text."""
    osr, ood, probe, corrupt = (
        json.loads((RESULTS / f'{name}.json').read_text()) for name in ('osr', 'ood', 'probe', 'corrupt'))
    return {'osr': f'{closed_set_line(osr)}\n\n{score_table(osr)}\n\n{pixels(osr)}',
            'ood': means_table(ood), 'probe': f'{probe_line(probe)}\n\n{probe_table(probe)}',
            'corrupt': f'{corruption_line(corrupt)}\n\n{corruption_table(corrupt)}'}


def page(text: str) -> str:
    """The document with its tables."""
    for name, found in tables().items():
        start, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
        text = re.sub(f'{start}.*?{end}', lambda match, s=start, f=found, e=end: f'{s}\n\n{f}\n\n{e}', text,
                      flags=re.DOTALL)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--take', nargs='*', default=[], metavar='NAME=FOLDER')
    for pair in parser.parse_args().take:
        name, _, folder = pair.partition('=')
        take(name, Path(folder))
    DOCUMENT.write_text(page(DOCUMENT.read_text()))


if __name__ == '__main__':
    main()
