"""Many small runs of train.py and ``openset osr`` by one command: resumable, one small JSON a run, a table at the end.

    python benchmarks/study.py digits --config configs/quickstart.yaml --mixers none cutmix random-box gradmix \
        --trials 0 1 2 3 4 --seeds 0 1 2

A run whose JSON is there is not repeated. ``--table`` only reads. Everything after ``--`` goes to train.py.
"""
from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / 'results'
START, END = '<!-- study table -->', '<!-- end of study table -->'
METRICS = ('auroc', 'oscr', 'fpr_at_95_known')


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('name', help='of the folder in benchmarks/results')
    parser.add_argument('--config', default='configs/quickstart.yaml')
    parser.add_argument('--mixers', nargs='+', default=['gradmix'])
    parser.add_argument('--trials', nargs='+', type=int, default=[0])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--base', default='none', help='mixer that differences are taken to')
    parser.add_argument('--table', action='store_true', help='only print the table of what is there')
    parser.add_argument('--write', metavar='FILE', help='put the table between the markers of a document too')
    argv = sys.argv[1:]
    end = argv.index('--') if '--' in argv else len(argv)
    return parser.parse_args(argv[:end], argparse.Namespace(rest=argv[end + 1:]))


def run(args: argparse.Namespace, mixer: str, trial: int, seed: int, out: Path) -> None:
    """One training and its evaluation in a folder of its own; only the JSON stays."""
    with tempfile.TemporaryDirectory() as folder:
        train = [sys.executable, 'train.py', '--config', args.config, '--mixup-mode', mixer, '--osr-trial', str(trial),
                 '--seed', str(seed), '--output', folder, '--experiment', 'run', *args.rest]
        judge = [sys.executable, '-m', 'gradmix_timm.openset', 'osr', '--output', f'{folder}/osr',
                 '--checkpoint', f'{folder}/run/model_best.pth.tar']
        for command in (train, judge):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f'{" ".join(command)}\n{done.stderr[-2000:]}')
        found = json.loads(Path(folder, 'osr', 'results.json').read_text())
    scores = {name: {k: v for k, v in values.items() if not k.endswith('_ci') and isinstance(v, int | float)}
              for name, values in found['scores'].items() if isinstance(values, dict)}
    kept = {'mixer': mixer, 'trial': trial, 'seed': seed, 'top1': found['closed_set']['top1'], 'scores': scores,
            'n_known': found['n_known'], 'n_unknown': found['n_unknown'], 'versions': found['versions'],
            'command': ' '.join(['train.py', *train[2:train.index('--output')], *args.rest])}
    temporary = out.with_suffix('.tmp')
    temporary.write_text(json.dumps(kept, indent=1) + '\n')
    os.replace(temporary, out)


def interval(values: list[float]) -> float:
    """Half width of the 95% t interval of a mean; nan for fewer than two values."""
    if len(values) < 2:
        return math.nan
    from scipy.stats import t
    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def paired(runs: list[dict], mixer: str, base: str, value: Callable[[dict], float]) -> list[float]:
    """Differences to ``base`` at equal trial and seed: a mean a trial, or, with one trial alone, a run each."""
    cells = {(r['trial'], r['seed']): value(r) for r in runs if r['mixer'] == base}
    gaps: dict[int, list[float]] = {}
    for run in runs:
        if run['mixer'] == mixer and (run['trial'], run['seed']) in cells:
            gaps.setdefault(run['trial'], []).append(value(run) - cells[run['trial'], run['seed']])
    if len(gaps) == 1:
        return next(iter(gaps.values()))
    return [statistics.mean(values) for values in gaps.values()]


def table(runs: list[dict], base: str) -> str:
    """Markdown: mean ± sd over runs, and the paired difference to ``base`` with its 95% interval over trials."""
    mixers = list(dict.fromkeys(r['mixer'] for r in runs))
    names = sorted(set.intersection(*(set(r['scores']) for r in runs)))
    lines = []

    def row(title, value):
        out = [f'| {title} ']
        for mixer in mixers:
            values = [value(r) for r in runs if r['mixer'] == mixer]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            cell = f'{statistics.mean(values):.3f} ± {spread:.3f}'
            gaps = paired(runs, mixer, base, value) if mixer != base else []
            if gaps:
                cell += f' ({statistics.mean(gaps):+.3f} ± {interval(gaps):.3f}, n={len(gaps)})'
            out.append(f'| {cell} ')
        lines.append(''.join(out) + '|')

    lines += ['| | ' + ' | '.join(mixers) + ' |', '|---|' + '---|' * len(mixers)]
    row('closed-set accuracy', lambda r: r['top1'])
    for metric in METRICS:
        for name in names:
            row(f'{metric} {name}', lambda r, n=name, m=metric: r['scores'][n][m])
    return '\n'.join(lines)


def main() -> None:
    args = parse()
    folder = RESULTS / args.name
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(folder / f'{mixer}-t{trial}-s{seed}.json', mixer, trial, seed)
              for seed, trial, mixer in itertools.product(args.seeds, args.trials, args.mixers)]
    if not args.table:
        missing = [case for case in wanted if not case[0].exists()]
        for out, mixer, trial, seed in tqdm(missing, desc=args.name):
            run(args, mixer, trial, seed, out)
    runs = [json.loads(case[0].read_text()) for case in wanted if case[0].exists()]
    if not runs:
        raise SystemExit(f'no run in {folder}')
    found = table(runs, args.base)
    print(found)
    if args.write:
        page = Path(args.write)
        page.write_text(re.sub(f'{START}.*?{END}', lambda match: f'{START}\n\n{found}\n\n{END}', page.read_text(),
                               flags=re.DOTALL))


if __name__ == '__main__':
    main()
