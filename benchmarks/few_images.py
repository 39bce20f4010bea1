"""Link a random part of a folder of classes, the same for everyone: 500 training and 300 test images of each class.

SOURCE/train/CLASS/IMAGE and SOURCE/test/CLASS/IMAGE become TARGET/train/CLASS/IMAGE and TARGET/test/CLASS/IMAGE. A
source without splits, SOURCE/CLASS/IMAGE, is divided::

    python benchmarks/few_images.py CIFAR10 data/cifar10-few
    python benchmarks/few_images.py CIFAR10 data/cifar10-50 --train 50
    python benchmarks/few_images.py data/textures data/textures-split --train 14 --test 6
"""
from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import numpy as np


def link(source: Path, target: Path, counts: dict[str, int]) -> None:
    """Link so many images of each class of each split; no image of a source without splits is in two of them.

    Raises:
        SystemExit: A split is missing, or a class has fewer images.
    """
    divided = all((source / split).is_dir() for split in counts)
    parts = [(source / split, {split: count}) for split, count in counts.items()] if divided else [(source, counts)]
    for folder, sizes in parts:
        classes = sorted(path for path in folder.glob('*') if path.is_dir())
        if not classes or {*counts} & {place.name for place in classes}:
            raise SystemExit(f'{folder}: expected a folder of class folders, or train and test with a folder a class')
        for number, place in enumerate(classes):
            files, needed = sorted(path.name for path in place.iterdir()), sum(sizes.values())
            if len(files) < needed:
                raise SystemExit(f'{place}: {len(files)} images; expected {needed} or more')
            chosen = iter(np.random.default_rng([0, number]).choice(files, needed, replace=False))
            for split, count in sizes.items():
                (target / split / place.name).mkdir(parents=True, exist_ok=True)
                for name in islice(chosen, count):
                    link = target / split / place.name / name
                    link.unlink(missing_ok=True)
                    link.symlink_to((place / name).resolve())


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('source', type=Path)
    parser.add_argument('target', type=Path)
    parser.add_argument('--train', type=int, default=500, metavar='N', help='of each class (default: %(default)s)')
    parser.add_argument('--test', type=int, default=300, metavar='N', help='of each class (default: %(default)s)')
    given = parser.parse_args()
    link(given.source, given.target, {'train': given.train, 'test': given.test})
