"""OpenOOD's image lists: one line an image, its path below a folder and its class; and the suites they make up."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from gradmix_timm.registry import Registry
from gradmix_timm.schema import shown

from .images import ImageSource
from .readers import FileReader
from .subsets import CutDataset

__all__ = ['SUITES', 'Suite', 'read_list', 'suite_images']

_CLASSIC, _LARGE = 'images_classic', 'images_largescale'


@dataclass(frozen=True, slots=True)
class Suite:
    """A benchmark of OpenOOD v1.5 (openood/evaluation_api/datasets.py).

    Attributes:
        name: As typed on the command line; also the folder of its lists.
        classes: Known classes.
        near: Unknown sets that are near.
        far: The same for far.
        shifted: Known classes under other conditions, which count as known in the full spectrum.
        folder: Of the known images.
    """

    name: str
    classes: int
    near: tuple[str, ...]
    far: tuple[str, ...]
    shifted: Mapping[str, str]
    folder: str

    def files(self, part: str) -> tuple[str, str]:
        """List and folder of images below the suite's root.

        Args:
            part: 'train', 'val' or 'test' of the known images, an unknown or a shifted set.
        """
        if part in ('train', 'val', 'test'):
            name, folder = f'{part}_{self.name}', self.folder
        else:
            name, folder = self.shifted.get(part, f'test_{part}'), self.folder
            folder = _CLASSIC if part == 'textures' else folder
        return f'benchmark_imglist/{self.name}/{name}.txt', folder


_SMALL_FAR, _LARGE_NEAR = ('mnist', 'svhn', 'texture', 'places365'), ('ssb_hard', 'ninco')
_LARGE_FAR = ('inaturalist', 'textures', 'openimage_o')
SUITES: Registry[Suite] = Registry('OOD suite')
for _suite in (
    Suite('cifar10', 10, ('cifar100', 'tin'), _SMALL_FAR, {'cifar10c': 'test_cifar10c'}, _CLASSIC),
    Suite('cifar100', 100, ('cifar10', 'tin'), _SMALL_FAR, {}, _CLASSIC),
    Suite('imagenet200', 200, _LARGE_NEAR, _LARGE_FAR, {
        f'imagenet_{kind}': f'test_imagenet200_{kind}' for kind in ('v2', 'c', 'r')}, _LARGE),
    Suite('imagenet', 1000, _LARGE_NEAR, _LARGE_FAR, {
        f'imagenet_{kind}': f'test_imagenet_{kind}' for kind in ('v2', 'c', 'r', 'es')}, _LARGE)):
    SUITES.register(_suite.name, f'near {", ".join(_suite.near)}; far {", ".join(_suite.far)}')(_suite)


def read_list(path: Path, folder: Path) -> list[tuple[str, int]]:
    """Path and label of each line ``PATH LABEL``; in place of a label may be a mapping, which has none (-1).

    Raises:
        ValueError: The list is missing, a line has another form, or a path leads out of the folder.
    """
    if not path.is_file():
        raise ValueError(f'no image list at {path}; expected the lists of OpenOOD (benchmark_imglist/) and its folders '
                         f'of images ({_CLASSIC}/, {_LARGE}/) in one folder, ood_suite_root=DIR')
    samples = []
    for number, line in enumerate(path.read_text(encoding='utf-8-sig').splitlines(), 1):
        name, _, label = line.strip().partition(' ')
        if not name:
            continue
        place = PurePosixPath(name)
        if place.is_absolute() or '..' in place.parts:
            raise ValueError(f'{path}, line {number}: {shown(name)} leads out of the folder of images; expected a path '
                             'below it')
        label = label.strip()
        if not label.startswith('{') and not label.removeprefix('-').isdigit():
            raise ValueError(f'{path}, line {number}: expected "PATH LABEL", LABEL a number, got {shown(line)}')
        samples.append((str(folder / place), -1 if label.startswith('{') else int(label)))
    if not samples:
        raise ValueError(f'{path} names no image')
    if not Path(samples[0][0]).is_file():
        raise ValueError(f'{path} names {samples[0][0]}, which is not there; the folder of images belongs below '
                         'ood_suite_root=DIR')
    return samples


def suite_images(suite: Suite, root: Path, parts: Sequence[str], classes: Sequence[str], reading: Mapping[str, Any],
                 known: bool = True) -> CutDataset:
    """Images of one part of a suite, or of several one after another.

    Args:
        suite: Which.
        root: Folder with the lists and images.
        parts: Of :meth:`Suite.files`.
        classes: Names of the known classes, in the order of the lists' labels.
        reading: Options of :class:`ImageSource`.
        known: Whether labels are classes; else all are -1.

    Raises:
        ValueError: A list is missing or invalid, or a label is not a class.
    """
    samples = []
    for part in parts:
        file, folder = suite.files(part)
        found = read_list(root / file, root / folder)
        bad = next((label for _, label in found if not 0 <= label < len(classes)), None) if known else None
        if bad is not None:
            raise ValueError(f'{root / file}: label {bad} is none of the {len(classes)} known classes')
        samples += found
    source = ImageSource(FileReader(root, samples), **reading)
    labels = np.array([label for _, label in samples]) if known else np.full(len(samples), -1)
    return CutDataset(source, np.arange(len(samples)), labels, classes if known else ())
