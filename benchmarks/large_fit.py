"""Fits and queries on ImageNet's number of training features, memory-mapped: ``python benchmarks/large_fit.py FOLDER``.

Made features of 1,281,167 images, 2048 wide, 9.8 GiB in one file, which stays in FOLDER.
benchmarks/results/large_fit.json says how long each score took and how much memory of its own it held: Linux counts it,
and pages of the file do not count.
"""
from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradmix_timm.checkpoint import versions
from gradmix_timm.openset.scores import fit_score
from gradmix_timm.records import Embeddings

RESULT = Path(__file__).parent / 'results' / 'large_fit.json'
IMAGES, WIDTH, CLASSES, QUERIES = 1_281_167, 2048, 1000, 2000
SCORES = ('knn', 'mahalanobis')


def features_of(path: Path) -> torch.Tensor:
    """Half-rectified clouds round the classes' centres; written once."""
    if not path.exists():
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(CLASSES, WIDTH, generator=generator)
        beside = path.with_suffix('.partial')
        rows = np.lib.format.open_memmap(beside, 'w+', np.float32, (IMAGES, WIDTH))
        for start in range(0, IMAGES, 8192):
            label = torch.arange(start, min(IMAGES, start + 8192)) % CLASSES
            noise = torch.randn(len(label), WIDTH, generator=generator)
            rows[start:start + len(label)] = (centres[label] + 2 * noise).relu().numpy()
        rows.flush()
        beside.rename(path)
    return torch.from_numpy(np.load(path, mmap_mode='c'))


def own_memory() -> int:
    """Bytes that this process holds beside the pages of files."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith('RssAnon')).split()[1])


def watched(work: Callable[[], Any]) -> tuple[Any, float, int]:
    """What work returns, its seconds, and the most bytes it held above the start."""
    start, most, done = own_memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            most[0] = max(most[0], own_memory() - start)

    watcher, began = threading.Thread(target=watch), time.perf_counter()
    watcher.start()
    found = work()
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    return found, seconds, most[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    label = torch.arange(IMAGES) % CLASSES
    features = features_of(folder / 'features.npy')
    train = Embeddings(torch.zeros(1, CLASSES).expand(IMAGES, -1), features, None, label, torch.arange(IMAGES))
    rows = torch.randn(QUERIES, WIDTH, generator=torch.Generator().manual_seed(1)).relu()
    query = Embeddings(torch.zeros(QUERIES, CLASSES), rows, None, label[:QUERIES], torch.arange(QUERIES))
    found: dict[str, Any] = {}
    for name in SCORES:
        score, fit, held = watched(lambda name=name: fit_score(name, train))
        _, ask, more = watched(lambda score=score: score(query))
        found[name] = {'fit_seconds': round(fit, 1), 'fit_own_gib': round(held / 2**30, 2),
                       'query_seconds': round(ask, 1), 'query_own_gib': round(more / 2**30, 2)}
        print(name, found[name])
    RESULT.write_text(json.dumps({
        'images': IMAGES, 'width': WIDTH, 'queries': QUERIES, 'file_gib': round(IMAGES * WIDTH * 4 / 2**30, 2),
        'threads': torch.get_num_threads(), 'versions': versions(), 'figures': found}, indent=1) + '\n')


if __name__ == '__main__':
    main()
