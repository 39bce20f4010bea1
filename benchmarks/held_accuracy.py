"""Does --cache-images learn as well as timm's loader? Both on digits, several seeds, the same flags otherwise.

    python benchmarks/held_accuracy.py --output output/held

Run folders that are complete are not run again; figures go to ``benchmarks/results/held_accuracy.json``.
"""
from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

from scipy.stats import t

ROOT = Path(__file__).parent.parent
EPOCHS = 8
FLAGS = ('--dataset sklearn/digits --model resnet10t --img-size 56 --in-chans 1 --mean 0.3 --std 0.38 --batch-size 32 '
         '--opt adamw --lr 0.002 --weight-decay 0.05 --warmup-epochs 1 --scale 0.7 1.0 --ratio 0.9 1.1 --hflip 0 '
         '--color-jitter 0 --smoothing 0 --workers 1 --device cpu --checkpoint-hist 1 --num-classes 10 '
         f'--val-split test --mixup-mode none --epochs {EPOCHS}').split()


def last_top1(folder: Path) -> float | None:
    """Accuracy after the last epoch as a fraction; None for a run that is not there or not whole."""
    path = folder / 'summary.csv'
    lines = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    return float(lines[-1]['eval_top1']) / 100 if len(lines) == EPOCHS else None


def train(output: Path, name: str, seed: int) -> float:
    """Accuracy of one run."""
    found = last_top1(output / name)
    if found is None:
        held = ['--cache-images'] if name.startswith('held') else []
        subprocess.run([sys.executable, 'train.py', *FLAGS, *held, '--seed', str(seed), '--output', str(output),
                        '--experiment', name], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        found = last_top1(output / name)
    if found is None:
        raise SystemExit(f'{output / name} ended without its last epoch; remove the folder and run again')
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--seeds', type=int, default=6)
    args = parser.parse_args()
    output = args.output.absolute()
    runs = {kind: [round(train(output, f'{kind}-{seed}', seed), 5) for seed in range(args.seeds)]
            for kind in ('timm', 'held')}
    gaps = [held - loader for loader, held in zip(runs['timm'], runs['held'], strict=True)]
    half = float(t.ppf(0.975, len(gaps) - 1)) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    page = {'epochs': EPOCHS, 'top1': runs, 'mean': {kind: round(statistics.mean(v), 5) for kind, v in runs.items()},
            'sd': {kind: round(statistics.stdev(v), 5) for kind, v in runs.items()},
            'difference': round(statistics.mean(gaps), 5), 'half_width_of_95_percent': round(half, 5)}
    (ROOT / 'benchmarks' / 'results' / 'held_accuracy.json').write_text(json.dumps(page, indent=1) + '\n')
    print(json.dumps(page, indent=1))


if __name__ == '__main__':
    main()
