"""How often 95% intervals hold the true figure: ``python benchmarks/interval_coverage.py [--repeats 1000]``.

Scores of knowns and unknowns are drawn from two normal laws, of which every figure is known; ``summarize`` gives its
intervals, as for a user; counted is how often they hold it. For figures at a threshold labels and rejections are drawn
class by class. Writes ``benchmarks/results/interval_coverage.json``; ``--only threshold`` keeps what it holds else.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from gradmix_timm.openset.metrics import RANK_METRICS, summarize
from gradmix_timm.openset.operating import at_threshold
from gradmix_timm.openset.results import AtThreshold

OUT = Path(__file__).parent / 'results' / 'interval_coverage.json'
SIZES = ((30, 30), (215, 144))
AUROCS = (0.75, 0.9, 0.97)
RIGHT = 0.9
# Known images of each class, unknown images, share of the known ones that are classified right.
AT_THRESHOLD = (([5] * 6, 30, 0.75), ([5] * 6, 30, 0.95), ([3] * 10, 30, 0.75), ([36] * 6, 144, 0.75),
                ([36] * 6, 144, 0.97))
# Shares of known and of unknown images that are rejected at the threshold.
REJECTED = 0.08, 0.7
FIGURES = ('macro_f1', 'balanced_accuracy', 'balanced_accuracy_with_unknown', 'normalized_accuracy')
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


def answers(images: Sequence[int], unknown: int, recall: float, generator: np.random.Generator) -> AtThreshold:
    """The figures of drawn images."""
    classes, label = len(images), np.repeat(np.arange(len(images)), images)
    other = (label + 1 + generator.integers(0, classes - 1, len(label))) % classes
    pred = np.where(generator.random(len(label)) < recall, label, other)
    kept = [1. - 2 * (generator.random(count) < share) for count, share in zip((len(label), unknown), REJECTED,
                                                                               strict=True)]
    return at_threshold(pred, label, kept[0], generator.integers(0, classes, unknown), kept[1], 0., classes)


def coverage_at_threshold(images: Sequence[int], unknown: int, recall: float, repeats: int,
                          seed: int) -> dict[str, float]:
    """Share of intervals that hold the figure of two thousand times as many images."""
    generator = np.random.default_rng(seed)
    true = answers([2000 * count for count in images], 2000 * unknown, recall, generator)
    found = [answers(images, unknown, recall, generator) for _ in range(repeats)]
    return {name: round(sum(one[f'{name}_ci'][0] <= true[name] <= one[f'{name}_ci'][1] for one in found) / repeats, 4)
            for name in FIGURES}


def main() -> None:
    """Simulate and write."""
    from conftest import machine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--repeats', type=int, default=1000)
    parser.add_argument('--draws', type=int, default=500)
    parser.add_argument('--only', choices=('ranks', 'threshold'))
    args = parser.parse_args()
    page = json.loads(OUT.read_text()) if args.only else {}
    if args.only != 'ranks':
        page['at_threshold'] = [
            {'classes': len(images), 'images_a_class': images[0], 'unknown': unknown, 'recall': recall,
             'repeats': args.repeats, 'coverage': coverage_at_threshold(images, unknown, recall, args.repeats, seed=0)}
            for images, unknown, recall in AT_THRESHOLD]
    if args.only != 'threshold':
        page |= {'repeats': args.repeats, 'draws': args.draws, 'rows': of_ranks(args.repeats, args.draws)}
    OUT.write_text(json.dumps({**page, 'machine': machine()}, indent=1) + '\n')


def of_ranks(repeats: int, draws: int) -> list[dict[str, Any]]:
    """Rank metrics at every size and AUROC."""
    rows = []
    for known, unknown in SIZES:
        for auroc in tqdm(AUROCS, desc=f'{known} and {unknown}'):
            gap = float(2 ** 0.5 * stats.norm.ppf(auroc))
            rows.append({'known': known, 'unknown': unknown, 'auroc': auroc,
                         'coverage': coverage(gap, known, unknown, repeats, draws, seed=0)})
    return rows


if __name__ == '__main__':
    main()
