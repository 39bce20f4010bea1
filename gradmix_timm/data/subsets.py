"""Subsets of a data set: some of its classes, a held-out share, given rows. No image is decoded to make one."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from timm.data import ImageDataset
from torch.utils.data import Dataset, IterableDataset
from torchvision.datasets import VisionDataset

from .class_names import find_classes
from .images import ImageSource, TorchvisionReader

__all__ = ['CutDataset', 'as_source', 'class_names', 'evenly', 'hold_out', 'labels_of', 'select_classes',
           'stratified', 'take']


class CutDataset(Dataset):
    """Rows of a data set with targets of their own; ``timm.data.create_loader`` sets its transform as it does timm's.

    Args:
        source: Where the images are.
        indices: Positions in ``source``, int64 [N].
        targets: Target of each item, int64 [N]; -1 for an unknown class.
        classes: Names of the cut's classes; of known ones in the order of ``targets``.
        transform: From a PIL image; of this subset alone.
    """

    def __init__(self, source: ImageSource, indices: np.ndarray, targets: np.ndarray, classes: Sequence[str],
                 transform: Any = None) -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.targets = np.asarray(targets, dtype=np.int64)
        self.classes = tuple(classes)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.picture(index)
        return (self.source.transformed(int(self.indices[index]), image, self.transform), int(self.targets[index]))

    def __repr__(self) -> str:
        return f'CutDataset({len(self)} of {len(self.source)} images, {len(self.classes)} classes)'

    def rows(self, rows: np.ndarray | slice) -> CutDataset:
        """The subset at these positions of this one (or under a mask)."""
        return CutDataset(self.source, self.indices[rows], self.targets[rows], self.classes, self.transform)

    def picture(self, index: int) -> Any:
        """An image of the data set, before any transform."""
        return self.source.read(int(self.indices[index]))[0]

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """Name of an image's file, as timm's ``ImageDataset.filename``."""
        return self.source.filename(int(self.indices[index]), basename, absolute)

    def filenames(self, basename: bool = False, absolute: bool = False) -> list[str]:
        """Names of all files."""
        return [self.filename(index, basename, absolute) for index in range(len(self))]


def as_source(dataset: Any) -> ImageSource:
    """An :class:`ImageSource` over timm's or torchvision's data set.

    Raises:
        TypeError: The data set cannot be indexed, or is not of timm or torchvision.
    """
    if isinstance(dataset, ImageSource):
        return dataset
    if isinstance(dataset, ImageDataset):
        return ImageSource(
            dataset.reader, dataset.input_img_mode, load_bytes=dataset.load_bytes, transform=dataset.transform,
            target_transform=dataset.target_transform, additional_features=dataset.additional_features)
    if isinstance(dataset, IterableDataset):
        raise TypeError('a data set that is streamed has no rows to choose from; use its form on disk, hfds/ for '
                        'hfids/, a folder or a tar')
    if isinstance(dataset, VisionDataset):
        reader = TorchvisionReader(dataset)
        return ImageSource(reader, 'RGB' if hasattr(reader, 'samples') else None)
    raise TypeError(f"expected timm's ImageDataset or a torchvision data set, got {type(dataset).__name__}")


def class_names(dataset: Any, numbers: bool = True) -> tuple[str, ...]:
    """Names of the classes of a data set, in the order of its labels.

    Args:
        dataset: A data set or a cut of one.
        numbers: Use numbers as the names of a data set that has none.

    Raises:
        ValueError: Labels with gaps (a class map that skips numbers), or no names, without ``numbers``.
    """
    if isinstance(dataset, CutDataset):
        return dataset.classes
    reader = as_source(dataset).reader
    mapping = getattr(reader, 'class_to_idx', None) or getattr(reader, 'class_name_to_idx', None)
    if mapping:
        named = {int(label): str(name) for name, label in reversed(mapping.items())}
        if sorted(named) != list(range(len(named))):
            raise ValueError(f'the class map should number the classes from 0 without gaps, got labels '
                             f'{sorted(named)[:5]}...; correct --class-map')
        return tuple(named[label] for label in range(len(named)))
    classes = getattr(reader, 'classes', None)
    if classes is None and not numbers:
        raise ValueError(f'{type(reader).__name__} does not name its classes')
    return tuple(map(str, classes if classes is not None else range(int(labels_of(dataset).max()) + 1)))


def labels_of(dataset: Any) -> np.ndarray:
    """Label of every image, int64 [N], without decoding one.

    Raises:
        ValueError: A data set that does not list its labels, or has not one class an image.
    """
    if isinstance(dataset, CutDataset):
        return dataset.targets.copy()
    reader = as_source(dataset).reader
    if hasattr(reader, 'iter_targets'):
        labels: Any = list(reader.iter_targets())
    elif getattr(reader, 'targets', None) is not None:
        labels = reader.targets
    elif hasattr(reader, 'samples'):
        labels = [target for _, target in reader.samples]
    else:
        raise ValueError(f'{type(reader).__name__} does not list its labels, so that classes cannot be cut out of it; '
                         'use a folder of class folders')
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f'one class an image is expected, got labels of type {array.dtype} and shape {array.shape}; '
                         'name the label column with --target-key')
    return array.astype(np.int64)


def select_classes(dataset: Any, names: Sequence[str], unknown: bool = False) -> CutDataset:
    """Only the images of some classes.

    Args:
        dataset: A data set or a cut of one.
        names: Classes, found as :func:`find_classes` does.
        unknown: False: the target is the position in ``names``; True: it is -1.

    Raises:
        ValueError: A class is missing, or has no image.
    """
    places = find_classes(names, class_names(dataset))
    whole = _whole(dataset)
    table = {label: position for position, label in enumerate(places)}
    targets = np.array([table.get(int(label), -1) for label in labels_of(dataset)], dtype=np.int64)
    rows = np.flatnonzero(targets >= 0)
    empty = [name for name, count in zip(names, np.bincount(targets[rows], minlength=len(names)), strict=True)
             if not count]
    if empty:
        raise ValueError(f'class {empty[0]!r} has no image in this split; {len(names) - len(empty)} of {len(names)} '
                         'classes have')
    chosen = targets[rows]
    return CutDataset(
        whole.source, whole.indices[rows], np.full_like(chosen, -1) if unknown else chosen, names, whole.transform)


def hold_out(dataset: Any, fraction: float, seed: int = 0) -> tuple[CutDataset, CutDataset]:
    """Split off a held-out share of every class, as a function of the labels and the seed.

    Args:
        dataset: A data set or a cut of one.
        fraction: Share to hold out, in (0, 1); at least one image of each class lies on each side.
        seed: Not negative.

    Returns:
        (train, held), each with ``.indices`` into the source.

    Raises:
        ValueError: A share outside (0, 1), or a class with a single image.
    """
    whole = _whole(dataset)
    held = stratified(whole.targets, fraction, seed, whole.classes)
    mask = np.zeros(len(whole), dtype=bool)
    mask[held] = True
    return whole.rows(~mask), whole.rows(held)


def take(dataset: Any, indices: Sequence[int]) -> CutDataset:
    """The rows of a data set or cut whose positions in the source are ``indices``, in the data set's order.

    Raises:
        ValueError: A position is missing, so the data has changed.
    """
    whole = _whole(dataset)
    found = np.isin(whole.indices, np.asarray(indices, dtype=np.int64))
    if found.sum() != len(set(indices)):
        raise ValueError(f'{len(set(indices)) - int(found.sum())} of {len(set(indices))} rows are not in the data set '
                         f'({len(whole)} images); it is not the one that the rows were chosen from, check --data-dir')
    return whole.rows(found)


def evenly(count: int, most: int) -> np.ndarray:
    """Positions of ``most`` of ``count`` rows, evenly spaced, so that rows sorted by class keep every class; int64.

    Example:
        >>> evenly(5, 3), evenly(2, 3)
        (array([0, 2, 4]), array([0, 1]))
    """
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).round().astype(np.int64)


def stratified(labels: np.ndarray, fraction: float, seed: int, names: Sequence[str] = ()) -> np.ndarray:
    """Positions of a random share of every class, ascending, int64.

    Args:
        labels: int [N].
        fraction: In (0, 1), rounded class by class; at least one and not all of a class.
        seed: Of its own generator.
        names: Of the classes, for the message.

    Raises:
        ValueError: A share outside (0, 1), or a class with one image.

    Example:
        >>> stratified(np.array([0, 0, 0, 0, 1, 1]), 0.25, seed=0).shape
        (2,)
    """
    if not 0 < fraction < 1:
        raise ValueError(f'the share to hold out should lie between 0 and 1, got {fraction}')
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            name = names[label] if 0 <= label < len(names) else label
            raise ValueError(f'class {name!r} has one image, too few to hold one out; add images, or hold out none '
                             '(--osr-val-fraction 0)')
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        chosen.append(generator.permutation(rows)[:count])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _whole(dataset: Any) -> CutDataset:
    if isinstance(dataset, CutDataset):
        return dataset
    source, labels = as_source(dataset), labels_of(dataset)
    return CutDataset(source, np.arange(len(labels)), labels, class_names(dataset), source.transform)
