"""k nearest neighbours with and without faiss on one thread: ``python benchmarks/neighbour_search.py``.

benchmarks/results/neighbour_search.json holds processor seconds, medians of three, and whether the figures are equal.
Seconds grow with queries x training images x width: ImageNet's 1,281,167 x 2048 against 50,000 queries is 641 times the
larger case here.
"""
from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import faiss
import torch

from gradmix_timm.checkpoint import versions
from gradmix_timm.openset.scores import neighbours

RESULT = Path(__file__).parent / 'results' / 'neighbour_search.json'
CASES = ((100_000, 512, 2000), (100_000, 2048, 1000))
K = 50


def measured(samples: torch.Tensor, queries: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Processor seconds, median of three, and the rows that were found."""
    seconds = []
    for _ in range(3):
        began = time.process_time()
        found = neighbours.kth_neighbours(queries, samples, K)
        seconds.append(time.process_time() - began)
    return statistics.median(seconds), found


def main() -> None:
    torch.set_num_threads(1)
    large, figures = neighbours._LARGE, {}
    for count, width, asked in CASES:
        generator = torch.Generator().manual_seed(0)
        samples = torch.randn(count, width, generator=generator).relu()
        queries = torch.randn(asked, width, generator=generator).relu()
        neighbours._LARGE = count + 1
        ours, found = measured(samples, queries)
        neighbours._LARGE = large
        theirs, same = measured(samples, queries)
        figures[f'{count} x {width}, {asked} queries'] = {
            'torch_seconds': round(ours, 2), 'faiss_seconds': round(theirs, 2), 'equal': bool((found == same).all())}
    RESULT.write_text(json.dumps({'k': K, 'threads': 1, 'versions': {**versions(), 'faiss': faiss.__version__},
                                  'figures': figures}, indent=1) + '\n')
    print(RESULT.read_text())


if __name__ == '__main__':
    main()
