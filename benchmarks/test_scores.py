"""Fit and query of every score that pytorch-ood has too, against it on the same embeddings and in the same run.

30,000 training features of width 512, 20,000 queries, 100 classes. A ratio is the library's time over ours, median over
rounds, so that 1 is as fast and 10 ten times faster. Times are of the processor, all threads together, so that other
programs on the machine count for little. The other test fits scores on features that lie on disk and
counts what they hold in memory meanwhile.

    python -m pytest benchmarks/test_scores.py --benchmark-only
"""
from __future__ import annotations

import ctypes
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradmix_timm.openset.scores import Head, fit_score
from gradmix_timm.records import Embeddings

TRAIN, QUERIES, WIDTH, CLASSES = 30_000, 20_000, 512, 100
# Ours, its options, the library's, its arguments, least ratio of the queries that is hoped for.
PAIRS: dict[str, tuple[dict[str, Any], str, dict[str, Any], float]] = {
    'msp': ({}, 'MaxSoftmax', {'model': None}, 0.9), 'mls': ({}, 'MaxLogit', {'model': None}, 0.9),
    'energy': ({}, 'EnergyBased', {'model': None}, 0.9), 'entropy': ({}, 'Entropy', {'model': None}, 0.9),
    'gen': ({}, 'GEN', {'model': None}, 0.9), 'knn': ({'k': 50}, 'KNN', {'encoder': None, 'k': 50}, 2.),
    'mahalanobis': ({}, 'Mahalanobis', {'encoder': None}, 10.), 'rmahalanobis': ({}, 'RMD', {'encoder': None}, 10.),
    'vim': ({'dim': 256}, 'ViM', {'encoder': None, 'd': 256, 'w': ..., 'b': ...}, 0.9),
    'openmax': ({}, 'OpenMax', {'model': None, 'tailsize': 20, 'alpha': 3}, 10.),
    'react': ({}, 'ReAct', {'backbone': None, 'head': ...}, 0.9),
    'ash': ({}, 'ASH', {'backbone': None, 'head': ..., 'percentile': 0.9}, 0.9),
    'scale': ({}, 'SCALE', {'backbone': None, 'head': ..., 'percentile': 0.85}, 0.9),
    'dice': ({}, 'DICE', {'encoder': None, 'w': ..., 'b': ..., 'p': 0.9}, 0.9),
    'klm': ({}, 'KLMatching', {'model': None}, 0.9), 'temperature': ({}, 'TemperatureScaling', {'model': None}, 0.9),
    'she': ({}, 'SHE', {'encoder': None, 'head': ...}, 0.9), 'fdbd': ({}, 'fDBD', {'encoder': None, 'head': ...}, 0.9),
    'nci': ({}, 'NCI', {'encoder': None, 'head': ..., 'alpha': 1e-4}, 0.9),
    'nnguide': ({}, 'NNGuide', {'encoder': None, 'head': ..., 'k': 10}, 0.9),
    'gradnorm': ({}, 'GradNorm', {'model': ..., 'param_filter': lambda name: name == 'weight'}, 10.),
    'gmm': ({'covariance': 'full'}, 'GMM', {'encoder': None}, 0.9),
    'vra': ({'below': 'clip'}, 'VRA', {'backbone': None, 'head': ..., 'lower_percentile': .1, 'upper_percentile': .9},
            0.9)}
# Queries of detectors that hold queries x classes x width in float64 several times at once: 25 GB of 20,000.
FEWER = {'gmm': 1000}


@pytest.fixture(scope='module')
def embedded() -> tuple[Embeddings, Embeddings, Head]:
    """Training samples, queries and the head that gave their logits."""
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(CLASSES, WIDTH, generator=generator) / 8, torch.randn(CLASSES, generator=generator) / 8)

    def made(count: int) -> Embeddings:
        label = torch.arange(count) % CLASSES
        features = (head.weight[label] * 6 + torch.randn(count, WIDTH, generator=generator)).relu()
        wrong = torch.rand(count, generator=generator) < .05  # else no temperature but the lowest suits the labels
        label = torch.where(wrong, (label + 1) % CLASSES, label)
        return Embeddings(features @ head.weight.T + head.bias, features, None, label, torch.arange(count))
    return made(TRAIN), made(QUERIES), head


def _library(name: str, given: dict[str, Any], head: Head) -> tuple[Any, str]:
    """A detector of the library, and the ends of its methods' names."""
    detectors = pytest.importorskip('pytorch_ood.detector')
    layer = torch.nn.Linear(WIDTH, CLASSES).requires_grad_(False)
    layer.weight.copy_(head.weight)
    layer.bias.copy_(head.bias)
    kind = getattr(detectors, name)
    # Of the gradients of its model, which is the head here.
    ending = next((f'_{end}' for end in ('logits', 'features', 'feature_maps') if hasattr(kind, f'predict_{end}')), '')
    of_maps = ending == '_feature_maps'
    parts = {'w': head.weight, 'b': head.bias, 'model': layer,
             'head': (lambda maps: layer(maps.flatten(1))) if of_maps else layer}
    return kind(**{key: parts[key] if value is ... else value for key, value in given.items()}), ending


def _input(embeddings: Embeddings, ending: str) -> torch.Tensor:
    values = embeddings.logits if ending == '_logits' else embeddings.features
    return values[..., None, None] if ending == '_feature_maps' else values


def _seconds(function: Callable[[], Any]) -> float:
    """Of the processor."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def _race(ours: Callable[[], Any], theirs: Callable[[], Any]) -> dict[str, Any]:
    """Medians of both and of their ratio, turn by turn; fewer rounds where one takes long."""
    first = (_seconds(ours), _seconds(theirs))  # warms up as well
    rounds = 41 if sum(first) < 0.1 else 15 if sum(first) < 0.5 else 5 if sum(first) < 5 else 1
    found = [(_seconds(ours), _seconds(theirs)) for _ in range(rounds)] if rounds > 1 else [first]
    ratios = sorted(b / a for a, b in found)
    return {'ours': round(statistics.median(a for a, _ in found), 5),
            'theirs': round(statistics.median(b for _, b in found), 5),
            'ratio': round(statistics.median(ratios), 3), 'ratio_range': [round(ratios[0], 3), round(ratios[-1], 3)],
            'rounds': len(found)}


@pytest.mark.parametrize('name', PAIRS)
def test_against_pytorch_ood(name, embedded, benchmark, record):
    train, queries, head = embedded
    options, library, given, hoped = PAIRS[name]
    queries = queries.rows(slice(0, FEWER.get(name, QUERIES)))
    torch.set_num_threads(1)
    detector, ending = _library(library, given, head)
    fits = bool(getattr(detector, 'requires_fit', False))
    score = fit_score(name, train, head=head, **options)
    if fits:
        getattr(detector, f'fit{ending}')(_input(train, ending), train.label)
    predict = getattr(detector, f'predict{ending}')
    figures = {'library': library, 'hoped': hoped, 'queries': len(queries.label),
               'query': _race(lambda: score(queries), lambda: predict(_input(queries, ending)))}
    if fits:
        figures['fit'] = _race(
            lambda: fit_score(name, train, head=head, **options),
            lambda: getattr(_library(library, given, head)[0], f'fit{ending}')(_input(train, ending), train.label))
        ours, theirs = (sum(figures[part][who] for part in ('fit', 'query')) for who in ('ours', 'theirs'))
        figures['both'] = {'ours': round(ours, 5), 'theirs': round(theirs, 5), 'ratio': round(theirs / ours, 3)}
    # What the table of pytest-benchmark shows is our query.
    benchmark.pedantic(lambda: score(queries), rounds=1)
    record('scores', name, figures)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_matrix_products(dtype, benchmark, record):
    """What bounds the scores of features: that of 512 rows with half the width."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    rows, space = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((512, WIDTH), (WIDTH, WIDTH // 2)))
    flops = 2 * rows.numel() * space.shape[1]
    rates = [20 * flops / _seconds(lambda: [rows @ space for _ in range(20)]) / 1e9 for _ in range(15)]
    benchmark.pedantic(lambda: rows @ space, rounds=1)
    record('scores', f'product in {str(dtype).removeprefix("torch.")}', {'gflops': round(statistics.median(rates), 1)})


class _OwnMemory:
    """The most memory that this process took for itself inside the block (Linux), in bytes."""

    def __enter__(self) -> _OwnMemory:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work has left would be taken again, unseen
        self.peak, self._stop, self._start = 0, threading.Event(), self._now()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, self._now() - self._start)

    @staticmethod
    def _now() -> int:
        line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('RssAnon'))
        return 1024 * int(line.split()[1])


ROWS, DISK_WIDTH = 160_000, 512


@pytest.mark.parametrize('name', ['mahalanobis', 'rmahalanobis', 'vim', 'knn', 'react', 'openmax', 'dice'])
def test_fit_on_features_that_lie_on_disk(name, tmp_path, benchmark, record):
    """An eighth of ImageNet's images at a quarter of a ResNet-50's width, 328 MB, read as a memory map.

    Read is the memory of the process that no file stands behind, every few milliseconds, whoever takes it; a copy of
    the features would be 1.0 of them. What a fit takes does not grow with the number of images.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(100, DISK_WIDTH, generator=generator) / 8
    stored = np.lib.format.open_memmap(tmp_path / 'features.npy', mode='w+', dtype=np.float32,
                                       shape=(ROWS, DISK_WIDTH))
    label = torch.arange(ROWS) % 100
    for start in range(0, ROWS, 20_000):
        rows = slice(start, start + 20_000)
        stored[rows] = (weight[label[rows]] * 6 + torch.randn(20_000, DISK_WIDTH, generator=generator)).relu().numpy()
    stored.flush()
    del stored
    features = torch.from_numpy(np.load(tmp_path / 'features.npy', mmap_mode='c'))
    logits = torch.cat([features[start:start + 20_000] @ weight.T for start in range(0, ROWS, 20_000)])
    train = Embeddings(logits, features, None, label, torch.arange(ROWS))
    head = Head(weight, torch.zeros(100))
    fit_score('mls', None)
    with _OwnMemory() as memory:
        seconds = _seconds(lambda: fit_score(name, train, head=head))
    benchmark.pedantic(lambda: None, rounds=1)
    size = features.numel() * 4
    record('scores', f'{name}, fit on {ROWS} x {DISK_WIDTH} from disk', {
        'seconds': round(seconds, 2), 'features_bytes': size, 'peak_bytes': memory.peak,
        'peak_share': round(memory.peak / size, 3)})
    assert memory.peak < size / 2
