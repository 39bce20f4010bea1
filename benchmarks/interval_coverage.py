"""How often 95% intervals hold the true figure: ``python benchmarks/interval_coverage.py [--repeats 1000]``.

Scores of knowns and unknowns are drawn from two normal laws, of which every figure is known; ``summarize`` gives its
intervals, as for a user; counted is how often they hold it. Writes ``benchmarks/results/interval_coverage.json``.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats
from tqdm import tqdm

from gradmix_timm.openset.metrics import RANK_METRICS, summarize

OUT = Path(__file__).parent / 'results' / 'interval_coverage.json'
SIZES = ((30, 30), (215, 144))
AUROCS = (0.75, 0.9, 0.97)
RIGHT = 0.9
# Places of the numerical integrals.
_GRID = 400_000


def truth(gap: float, known: int, unknown: int) -> dict[str, float]:
    """Each figure of N(gap, 1) against N(0, 1), precision for this ratio of knowns to unknowns."""
    share = (np.arange(_GRID) + 0.5) / _GRID
    place = stats.norm.ppf(share)
    found = 1 - share  # known above a known's place
    precision_in = known * found / (known * found + unknown * stats.norm.sf(place + gap))
    precision_out = unknown * share / (unknown * share + known * stats.norm.cdf(place - gap))
    auroc = float(stats.norm.cdf(gap / 2 ** 0.5))
    return {
        'auroc': auroc, 'oscr': RIGHT * auroc, 'aupr_in': float(precision_in.mean()),
        'aupr_out': float(precision_out.mean()), 'detection_error': float(stats.norm.cdf(-gap / 2)),
        'fpr_at_95_known': float(stats.norm.sf(gap + stats.norm.ppf(0.05))),
        'fpr_at_95_unknown': float(stats.norm.cdf(stats.norm.ppf(0.95) - gap))}


def coverage(gap: float, known: int, unknown: int, repeats: int, draws: int, seed: int) -> dict[str, float]:
    """Share of intervals that hold the true figure."""
    generator = np.random.default_rng(seed)
    true, held = truth(gap, known, unknown), dict.fromkeys(RANK_METRICS, 0)
    for repeat in range(repeats):
        figures = summarize(generator.normal(gap, 1, known), generator.random(known) < RIGHT,
                            generator.normal(0, 1, unknown), draws=draws, seed=repeat)
        for name in held:
            low, high = figures[f'{name}_ci']
            held[name] += low <= true[name] <= high
    return {name: round(count / repeats, 4) for name, count in held.items()}


def main() -> None:
    """Simulate and write."""
    from conftest import machine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--repeats', type=int, default=1000)
    parser.add_argument('--draws', type=int, default=500)
    args = parser.parse_args()
    rows = []
    for known, unknown in SIZES:
        for auroc in tqdm(AUROCS, desc=f'{known} and {unknown}'):
            gap = float(2 ** 0.5 * stats.norm.ppf(auroc))
            rows.append({'known': known, 'unknown': unknown, 'auroc': auroc,
                         'coverage': coverage(gap, known, unknown, args.repeats, args.draws, seed=0)})
    OUT.write_text(json.dumps({'machine': machine(), 'repeats': args.repeats, 'draws': args.draws, 'rows': rows},
                              indent=1) + '\n')


if __name__ == '__main__':
    main()
