"""Link a random part of a folder of classes, the same for everyone: 500 training and 300 test images of each class.

SOURCE/train/CLASS/IMAGE and SOURCE/test/CLASS/IMAGE become TARGET/train/CLASS/IMAGE and TARGET/test/CLASS/IMAGE::

    python benchmarks/few_images.py CIFAR10 data/cifar10-few
    python benchmarks/few_images.py CIFAR10 data/cifar10-50 --train 50
"""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def link(source: Path, target: Path, counts: dict[str, int]) -> None:
    """Link so many images of each class of each split.

    Raises:
        SystemExit: A split is missing, or a class has fewer images.
    """
    for split, count in counts.items():
        classes = sorted(path for path in (source / split).glob('*') if path.is_dir())
        if not classes:
            raise SystemExit(f'{source / split}: expected a folder of class folders')
        for number, place in enumerate(classes):
            files = sorted(path.name for path in place.iterdir())
            if len(files) < count:
                raise SystemExit(f'{place}: {len(files)} images; expected {count} or more')
            (target / split / place.name).mkdir(parents=True, exist_ok=True)
            for name in np.random.default_rng([0, number]).choice(files, count, replace=False):
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
