"""README quickstart figures from benchmarks/results/quickstart: ``python benchmarks/readme_figures.py``."""
from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).parent.parent
START, END = '<!-- quickstart figures -->', '<!-- end of quickstart figures -->'
SCORES = ('msp', 'mls', 'energy', 'knn', 'mahalanobis')


def block() -> str:
    """The paragraph and the table, between their markers."""
    files = sorted((ROOT / 'benchmarks' / 'results' / 'quickstart').glob('gradmix-t0-*.json'))
    runs = [json.loads(path.read_text()) for path in files]

    def cell(values: list[float]) -> str:
        return f'{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}'

    lines = [START, '', f'Mean ± standard deviation in percent over seeds {", ".join(str(r["seed"]) for r in runs)} of '
             f'trial 0 ({runs[0]["n_known"]} known and {runs[0]["n_unknown"]} unknown test images), from '
             '`benchmarks/results/quickstart`, made by',
             '`python benchmarks/study.py quickstart --mixers gradmix --trials 0 --seeds 0 1 2`:', '',
             f'closed-set accuracy {cell([r["top1"] for r in runs])}', '',
             '| score | AUROC | OSCR |', '|---|---|---|']
    lines += [f'| {name} | {cell([r["scores"][name]["auroc"] for r in runs])} | '
              f'{cell([r["scores"][name]["oscr"] for r in runs])} |' for name in SCORES]
    return '\n'.join([*lines, '', END])


def main() -> None:
    readme = ROOT / 'README.md'
    text = readme.read_text()
    if END not in text:
        text = text.replace(START, f'{START}\n{END}')
    readme.write_text(re.sub(f'{START}.*?{END}', lambda match: block(), text, flags=re.DOTALL))


if __name__ == '__main__':
    main()
