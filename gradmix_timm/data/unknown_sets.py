"""Data sets of unknown images by specification: folder:NAME=DIR, torchvision:svhn, timm:NAME=DIR, noise:uniform."""
from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from gradmix_timm.registry import nearest

from .class_names import shared_classes
from .images import ImageSource, TorchvisionReader
from .sources import evaluated_split, open_dataset
from .subsets import CutDataset, as_source, class_names, labels_of
from .synthetic import list_made, made_images

__all__ = ['TORCHVISION', 'Outside', 'UnknownSpec', 'check_specs', 'open_outside', 'parse_unknown']

# Our name to torchvision's class and its arguments for the test part.
TORCHVISION: dict[str, tuple[str, dict[str, Any]]] = {
    'cifar10': ('CIFAR10', {'train': False}), 'cifar100': ('CIFAR100', {'train': False}),
    'mnist': ('MNIST', {'train': False}), 'kmnist': ('KMNIST', {'train': False}),
    'fashion_mnist': ('FashionMNIST', {'train': False}), 'qmnist': ('QMNIST', {'train': False}),
    'usps': ('USPS', {'train': False}), 'svhn': ('SVHN', {'split': 'test'}), 'stl10': ('STL10', {'split': 'test'}),
    'dtd': ('DTD', {'split': 'test'}), 'places365': ('Places365', {'split': 'val', 'small': True}),
    'flowers102': ('Flowers102', {'split': 'test'}), 'food101': ('Food101', {'split': 'test'}),
    'oxford_iiit_pet': ('OxfordIIITPet', {'split': 'test'}), 'fgvc_aircraft': ('FGVCAircraft', {'split': 'test'}),
    'stanford_cars': ('StanfordCars', {'split': 'test'}), 'gtsrb': ('GTSRB', {'split': 'test'}),
    'eurosat': ('EuroSAT', {}), 'sun397': ('SUN397', {}), 'caltech101': ('Caltech101', {}),
    'country211': ('Country211', {'split': 'test'}), 'inaturalist': ('INaturalist', {'version': '2021_valid'}),
    'imagenette': ('Imagenette', {'split': 'val'}),
}
_ALIASES = {'textures': 'dtd', 'fashionmnist': 'fashion_mnist', 'pets': 'oxford_iiit_pet', 'flowers': 'flowers102'}
_KINDS = ('folder', 'torchvision', 'timm', 'noise', 'made')
_SYNTAX = ('expected folder:NAME=DIR (a folder or a .tar), torchvision:NAME, timm:NAME=DIR, or noise:NAME for images '
           'that are made')


@dataclass(frozen=True, slots=True)
class UnknownSpec:
    """Specification of a data set of unknowns.

    Attributes:
        kind: 'folder', 'torchvision', 'timm', 'noise' or 'made'.
        name: Of the group in results.
        what: The data set within its kind; '' for folders.
        place: Folder or tar, '' where none was given.
        text: As it was written, for messages.
    """

    kind: str
    name: str
    what: str
    place: str
    text: str


@dataclass(frozen=True, slots=True)
class Outside:
    """An opened set of unknown images; none of them is read.

    Attributes:
        spec: The specification.
        images: Targets are -1.
        dropped: Names of classes that were left out because they are known.
        shared: Names of known classes that were kept.
        left_out: Images of the dropped classes.
    """

    spec: UnknownSpec
    images: CutDataset
    dropped: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    left_out: int = 0


def parse_unknown(text: str) -> UnknownSpec:
    """Parse the specification of a data set of unknowns.

    Raises:
        ValueError: Another form, or an unknown name, with the nearest.

    Example:
        >>> parse_unknown('folder:textures=data/dtd').name, parse_unknown('noise:uniform').what
        ('textures', 'uniform')
    """
    kind, colon, rest = text.partition(':')
    if not colon or kind not in _KINDS or not rest:
        hint = '' if not colon or kind in _KINDS else f' ({nearest(kind, _KINDS)})'
        raise ValueError(f'unknown={text}: {_SYNTAX}{hint}')
    name, equals, place = rest.partition('=')
    if kind == 'folder':
        place = place if equals else rest
        name = name if equals else Path(place).name.removesuffix('.tar')
        if not name or not place:
            raise ValueError(f'unknown={text}: expected folder:NAME=DIR, a name for the results and a folder or tar')
        return UnknownSpec(kind, name, '', place, text)
    if kind == 'torchvision':
        what = _ALIASES.get(name.lower(), name.lower())
        if what not in TORCHVISION:
            raise ValueError(f'unknown={text}: {nearest(name.lower(), TORCHVISION)}')
        return UnknownSpec(kind, what, what, place, text)
    if kind == 'timm':
        return UnknownSpec(kind, name.rpartition('/')[2], name, place, text)
    if name not in list_made():
        raise ValueError(f'unknown={text}: {nearest(name, list_made())}')
    if equals:
        raise ValueError(f'unknown={text}: images of {kind}:{name} are made and lie in no folder; leave out '
                         f'{equals}{place} (--made-images N says how many there are)')
    return UnknownSpec(kind, name, name, '', text)


def check_specs(specs: Sequence[UnknownSpec]) -> None:
    """Reject two sets of one name, the reserved name of the whole evaluation, and a missing folder.

    Raises:
        ValueError: The message gives the remedy.
    """
    names = [spec.name for spec in specs]
    for spec in specs:
        if names.count(spec.name) > 1 or spec.name in ('all', 'near', 'far'):
            raise ValueError(f'unknown={spec.text}: the name {spec.name!r} is taken; give the set another, '
                             'folder:NAME=DIR')
        place = Path(spec.place)
        if spec.kind == 'folder' and not (place.is_dir() or (place.is_file() and place.suffix == '.tar')):
            found = f'{place} is a file of another kind' if place.is_file() else f'there is nothing at {place}'
            raise ValueError(f'unknown={spec.text}: {found}; expected a folder of images or a .tar of one')


def open_outside(spec: UnknownSpec, known: Sequence[str], *, root: str | os.PathLike[str] | None = None,
                 mode: str = 'RGB', exif: str = 'ignore', download: bool = False, overlap: str = 'refuse',
                 sizes: Sequence[tuple[int, int]] = ((32, 32),), count: int = 1000, seed: int = 0) -> Outside:
    """Open one set of unknown images.

    Args:
        spec: Of :func:`parse_unknown`.
        known: Names of the known classes, which a set of unknowns must not have.
        root: Folder of data sets specified without one.
        mode: PIL mode, 'RGB', 'L', ...
        exif: 'ignore' or 'apply' the orientation that a camera wrote beside the pixels.
        download: Fetch torchvision's sets where they are missing.
        overlap: What to do about known classes: 'refuse', 'drop' (their images are left out), 'keep'.
        sizes: (width, height) of made images, in turn.
        count: Of made images.
        seed: Of made images.

    Raises:
        ValueError: No such data, an empty set, or known classes in it.
    """
    if spec.kind in ('noise', 'made'):
        source = made_images(spec.what, count, sizes, seed, mode)
    elif spec.kind == 'torchvision':
        source = _torchvision(spec, root, mode, exif, download)
    else:
        place = spec.place or root
        source = as_source(open_dataset(
            spec.what, place, evaluated_split(spec.what, place), img_mode=mode, exif=exif, min_classes=1,
            download=download))
    if not len(source):
        raise ValueError(f'unknown={spec.name}: the set holds no image')
    # The class of synthetic images is named after their generator, which may equal the name of a known class.
    return _cut(spec, source, () if spec.kind in ('noise', 'made') else known, overlap)


def _torchvision(spec: UnknownSpec, root: Any, mode: str, exif: str, download: bool) -> ImageSource:
    place = spec.place or root
    if not place:
        raise ValueError(f'torchvision:{spec.what} lies in no folder that is named: torchvision:{spec.what}=DIR (on '
                         'the command line also --unknown-data-dir DIR)')
    name, options = TORCHVISION[spec.what]
    try:
        dataset = getattr(datasets, name)(str(place), download=download, **options)
    except Exception as error:  # torchvision raises anything: RuntimeError, FileNotFoundError, HTTP errors
        hint = '' if download else (f'; torchvision:{spec.what}=DIR says where it is (on the command line --download '
                                    'fetches it)')
        raise ValueError(f'torchvision:{spec.what} could not be opened in {place} ({" ".join(str(error).split())})'
                         f'{hint}') from error
    return ImageSource(TorchvisionReader(dataset), mode, exif)


def _cut(spec: UnknownSpec, source: ImageSource, known: Sequence[str], overlap: str) -> Outside:
    names, labels = _classes(source)
    shared = shared_classes(names, known)
    rows = np.arange(len(source))
    if shared and overlap == 'refuse':
        shown = ', '.join(repr(names[place]) for place in list(shared)[:5]) + (', ...' if len(shared) > 5 else '')
        raise ValueError(
            f'unknown={spec.name}: it has {len(shared)} of {len(names)} classes that the model knows ({shown}), so its '
            "images are not all unknown; overlap='drop' leaves those out, overlap='keep' counts them as unknown")
    spelled = tuple(names[place] for place in shared)
    if shared and overlap == 'drop':
        rows = np.flatnonzero(~np.isin(labels, list(shared)))
        if not len(rows):
            raise ValueError(f'unknown={spec.name}: all its classes are known, so no image is left')
        names = tuple(name for place, name in enumerate(names) if place not in shared)
    cut = CutDataset(source, rows, np.full(len(rows), -1), names)
    dropped, kept = (spelled, ()) if overlap == 'drop' else ((), spelled)
    return Outside(spec, cut, dropped, kept, len(source) - len(rows))


def _classes(source: ImageSource) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and labels; one unnamed class if a data set has none."""
    try:
        return class_names(source), labels_of(source)
    except (ValueError, TypeError):
        return ('',), np.zeros(len(source), dtype=np.int64)
