"""k nearest neighbours with and without faiss on one thread: ``python benchmarks/neighbour_search.py``.

benchmarks/results/neighbour_search.json holds processor seconds, medians of three, and whether the figures are equal.
``--imagenet FOLDER --queries N`` searches ImageNet's 1,281,167 x 2048 training features, once, for N of its 50,000
validation images; the features, 9.8 GiB, stay in FOLDER for another time.
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import faiss
import torch
from large_fit import features_of, watched

from gradmix_timm.checkpoint import versions
from gradmix_timm.openset.scores import neighbours

RESULT = Path(__file__).parent / 'results' / 'neighbour_search.json'
CASES = ((100_000, 512, 2000), (100_000, 2048, 1000))
K, ALL_QUERIES = 50, 50_000


def measured(samples: torch.Tensor, queries: torch.Tensor, times: int) -> tuple[float, torch.Tensor]:
    """Processor seconds, their median, and the rows that were found."""
    seconds = []
    for _ in range(times):
        began = time.process_time()
        found = neighbours.kth_neighbours(queries, samples, K)
        seconds.append(time.process_time() - began)
    return statistics.median(seconds), found


def race(samples: torch.Tensor, queries: torch.Tensor, times: int = 3) -> dict[str, float | bool]:
    """Both ways, and whether every neighbour is the same."""
    large, found = neighbours._LARGE, {}
    for name, least in (('torch', len(samples) + 1), ('faiss', large)):
        neighbours._LARGE = least
        found[name] = measured(samples, queries, times)
    (ours, rows), (theirs, same) = found.values()
    return {'torch_seconds': round(ours, 2), 'faiss_seconds': round(theirs, 2), 'equal': bool((rows == same).all())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--imagenet', type=Path, metavar='FOLDER')
    parser.add_argument('--queries', type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures = json.loads(RESULT.read_text())['figures'] if args.imagenet and RESULT.exists() else {}
    for count, width, asked in () if args.imagenet else CASES:
        generator = torch.Generator().manual_seed(0)
        samples = torch.randn(count, width, generator=generator).relu()
        figures[f'{count} x {width}, {asked} queries'] = race(
            samples, torch.randn(asked, width, generator=generator).relu())
    if args.imagenet:
        args.imagenet.mkdir(parents=True, exist_ok=True)
        samples = features_of(args.imagenet / 'features.npy')
        queries = torch.randn(args.queries, samples.shape[1], generator=torch.Generator().manual_seed(1)).relu()
        found, _, most = watched(lambda: race(samples, queries, times=1))
        case = f'{len(samples)} x {samples.shape[1]}, {len(queries)} of {ALL_QUERIES} queries'
        figures[case] = {**found, 'own_gib': round(most / 2**30, 2)}
    RESULT.write_text(json.dumps({'k': K, 'threads': 1, 'versions': {**versions(), 'faiss': faiss.__version__},
                                  'figures': figures}, indent=1) + '\n')
    print(RESULT.read_text())


if __name__ == '__main__':
    main()
