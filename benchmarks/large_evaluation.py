"""A million test images by every score, from stored embeddings: ``python benchmarks/large_evaluation.py FOLDER``.

Half of the images are known, half unknown; made features 64 wide, ten classes, 5000 training images; what is timed is
everything between stored embeddings and results.json: 17 scores or those named, metrics, intervals, threshold.
benchmarks/results/large_evaluation.json holds the processor's seconds by stage, the seconds of intervals at a million
scores a side, and how much memory of its own the process held: Linux counts it, and pages of files do not count.
"""
from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import machine
from large_fit import watched

from gradmix_timm.openset import judge as judging
from gradmix_timm.openset.judge import EmbeddedSets, judge
from gradmix_timm.openset.metrics import summarize
from gradmix_timm.openset.scores import Head
from gradmix_timm.records import Embeddings

RESULT = Path(__file__).parent / 'results' / 'large_evaluation.json'
WIDTH, CLASSES, TRAIN = 64, 10, 5000
SCORES = ('msp', 'mls', 'energy', 'entropy', 'gen', 'knn', 'knn-mean', 'class-knn', 'class-knn-share', 'mahalanobis',
          'rmahalanobis', 'vim', 'openmax', 'react', 'ash', 'scale', 'dice')


def stored(folder: Path, part: str, count: int, head: Head, seed: int) -> Embeddings:
    """Half-rectified clouds round the classes' centres, or of unknown images between two of them; written once."""
    places = {name: folder / f'{part}-{count}-{name}.npy' for name in ('features', 'logits', 'label')}
    if not places['label'].exists():
        generator = torch.Generator().manual_seed(seed)
        centres = 4 * head.weight.float()
        label = torch.randint(CLASSES, (count,), generator=generator)
        other = torch.randint(CLASSES, (count,), generator=generator)
        arrays = {name: np.lib.format.open_memmap(places[name], 'w+', np.float32, (count, width))
                  for name, width in (('features', WIDTH), ('logits', CLASSES))}
        for start in range(0, count, 8192):
            rows = slice(start, min(start + 8192, count))
            middle = centres[label[rows]] if part != 'unknown' else (centres[label[rows]] + centres[other[rows]]) / 2
            features = (middle + torch.randn(len(middle), WIDTH, generator=generator)).relu()
            arrays['features'][rows], arrays['logits'][rows] = features.numpy(), head(features).float().numpy()
        np.save(places['label'], (label if part != 'unknown' else -torch.ones_like(label)).numpy())
    read = {name: torch.from_numpy(np.load(place, mmap_mode='c')) for name, place in places.items()}
    return Embeddings(read['logits'], read['features'], None, read['label'], torch.arange(count))


def main() -> None:
    """Make, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--images', type=int, default=1_000_000)
    parser.add_argument('--side', type=int, default=1_000_000, help='scores a side in the timing of intervals')
    parser.add_argument('--scores', nargs='+', default=SCORES)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    weight = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0)) / 4
    head = Head(weight, torch.zeros(CLASSES))
    half = args.images // 2
    sets = EmbeddedSets(
        train=stored(args.folder, 'train', TRAIN, head, 1), known=stored(args.folder, 'known', half, head, 2),
        unknown=stored(args.folder, 'unknown', half, head, 3), held_out=stored(args.folder, 'held-out', 5000, head, 4),
        unknown_label=np.zeros(half, np.int64), known_classes=tuple(map(str, range(CLASSES))),
        unknown_classes=('other',), head=head)
    stages: dict[str, float] = {}

    def timed(name: str, work: Any) -> Any:
        def wrapped(*given: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return work(*given, **options)
            finally:
                stages[name] = stages.get(name, 0.) + time.process_time() - began
        return wrapped

    judging.summarize = timed('metrics and intervals', judging.summarize)
    judging.at_threshold = timed('threshold', judging.at_threshold)
    judging._calibrate = timed('calibration', judging._calibrate)
    began = time.process_time()
    turns: list[tuple[str, float]] = []
    judged, wall, most = watched(lambda: judge(
        sets, args.scores, on_score=lambda name: turns.append((name, time.process_time()))))
    total = time.process_time() - began
    ends = [when for _, when in turns[1:]]  # the last one's end is not known
    count = len(judged.results['scores'])
    stages['fits and scores'] = total - sum(stages.values())
    generator = np.random.default_rng(0)
    known, unknown = generator.normal(1.5, 1, args.side), generator.normal(0, 1, args.side)
    correct = generator.random(args.side) < .8
    began = time.process_time()
    _, _, held = watched(lambda: summarize(known, correct, unknown))
    interval = time.process_time() - began
    found = {'machine': machine(), 'test_images': args.images, 'train_images': TRAIN, 'width': WIDTH,
             'classes': CLASSES, 'scores': list(judged.results['scores']),
             'seconds_by_stage': {name: round(value, 1) for name, value in stages.items()},
             'seconds_by_score': {name: round(end - start, 1) for (name, start), end in zip(turns, ends, strict=False)},
             'processor_seconds': round(total, 1), 'wall_seconds': round(wall, 1),
             'metrics_seconds_a_score': round(stages['metrics and intervals'] / count, 2),
             'peak_own_gib': round(most / 2**30, 2), 'scores_a_side': args.side,
             'metrics_seconds_at_a_million_a_side': round(interval, 2), 'metrics_own_gib': round(held / 2**30, 2)}
    print(json.dumps(found, indent=1))
    RESULT.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
