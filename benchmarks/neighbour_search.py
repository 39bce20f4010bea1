"""k nearest neighbours with and without faiss on one thread: ``python benchmarks/neighbour_search.py``.

benchmarks/results/neighbour_search.json holds processor seconds, medians of three, and whether the figures are equal.
``--imagenet FOLDER --queries N`` searches ImageNet's 1,281,167 x 2048 training features, once, for N of its 50,000
validation images, 5,000 at a time by torch and then by faiss, so that a busy machine slows both alike. The file is
written after every 5,000, and the same command goes on from there. The features, 9.8 GiB, stay in FOLDER.
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import faiss
import torch
from large_fit import IMAGES, WIDTH, features_of, watched

from gradmix_timm.checkpoint import versions
from gradmix_timm.openset.scores import neighbours

RESULT = Path(__file__).parent / 'results' / 'neighbour_search.json'
CASES = ((100_000, 512, 2000), (100_000, 2048, 1000))
K, ALL_QUERIES, ROUND = 50, 50_000, 5_000
NOTHING = {'queries': 0, 'torch_seconds': 0., 'faiss_seconds': 0., 'equal': True, 'own_gib': 0.}


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


def imagenet(folder: Path, wanted: int, done: dict[str, float | bool]) -> Iterator[dict[str, float | bool]]:
    """Sums after every round of queries, from those that are done already."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = features_of(folder / 'features.npy')
    queries = torch.randn(ALL_QUERIES, samples.shape[1], generator=torch.Generator().manual_seed(1)).relu()
    for start in range(int(done['queries']), wanted, ROUND):
        some = queries[start:min(start + ROUND, wanted)]
        found, _, most = watched(partial(race, samples, some, times=1))
        done = {'queries': start + len(some), 'of': ALL_QUERIES,
                **{side: round(done[side] + found[side], 2) for side in ('torch_seconds', 'faiss_seconds')},
                'equal': bool(done['equal'] and found['equal']),
                'own_gib': max(done['own_gib'], round(most / 2**30, 2))}
        yield done


def save(figures: dict[str, dict[str, float | bool]]) -> None:
    """Write the file with the versions that the figures come from."""
    beside = RESULT.with_suffix('.partial')
    beside.write_text(json.dumps({'k': K, 'threads': 1, 'versions': {**versions(), 'faiss': faiss.__version__},
                                  'figures': figures}, indent=1) + '\n')
    beside.replace(RESULT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--imagenet', type=Path, metavar='FOLDER')
    parser.add_argument('--queries', type=int, default=ALL_QUERIES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures = json.loads(RESULT.read_text())['figures'] if RESULT.exists() else {}
    if args.imagenet:
        case = f'{IMAGES} x {WIDTH}'
        for sums in imagenet(args.imagenet, args.queries, figures.get(case, NOTHING)):
            save(figures | {case: sums})
            print(case, sums, flush=True)
        return
    for count, width, asked in CASES:
        generator = torch.Generator().manual_seed(0)
        samples = torch.randn(count, width, generator=generator).relu()
        figures[f'{count} x {width}'] = {'queries': asked, 'of': asked, **race(
            samples, torch.randn(asked, width, generator=generator).relu())}
    save(figures)
    print(RESULT.read_text())


if __name__ == '__main__':
    main()
