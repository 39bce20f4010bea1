"""The images of known classes alone: train and test split of a checkpoint's data, or a folder of test images."""
from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradmix_timm.checkpoint import Loaded
from gradmix_timm.data import (
    CutDataset,
    class_names,
    list_splits,
    open_dataset,
    select_classes,
    shared_classes,
    take,
)
from gradmix_timm.data.preprocessing import Preprocessing

from .subject import source_of

__all__ = ['KnownImages', 'folder_classes', 'open_known']

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownImages:
    """The images of known classes alone.

    Attributes:
        train: Without those held out; None where there is no training data.
        validation: Those held out, or None.
        test: Targets are positions in the known classes; some may have none.
        source: Where they are, for the manifest.
    """

    train: CutDataset | None
    validation: CutDataset | None
    test: CutDataset
    source: dict[str, Any]


def open_known(args: argparse.Namespace, loaded: Loaded | None, known: Sequence[str], preprocessing: Preprocessing,
               place: str | None = None) -> KnownImages:
    """Open the known classes of the train and test split, or of a folder in place of the test split.

    Args:
        args: Of :func:`add_subject_flags`.
        loaded: The checkpoint, or None.
        known: Names in head order.
        preprocessing: How files are decoded.
        place: Folder or tar of known test images by class; classes that it lacks are left out.

    Raises:
        ValueError: Data that is not there, or without the classes. With ``place`` training data may be missing.
    """
    record = loaded.record if loaded is not None else None
    source = source_of(args, loaded)
    options = {'class_map': args.class_map, **preprocessing.reading_options()}
    train = held = None
    try:
        whole = select_classes(open_dataset(source['dataset'], source['data_dir'], source['train'], **options), known)
        rows = [] if record is None else list(record.val_indices)
        train = take(whole, sorted(set(whole.indices.tolist()) - set(rows))) if rows else whole
        held = take(whole, rows) if rows else None
    except ValueError as error:
        if place is None or args.data_dir or args.dataset is not None:
            raise
        _logger.warning(f'No training images, so scores that are fit on them are left out ({error})')
    if place is not None:
        source['known'] = place
        return KnownImages(train, held, _some_classes(_open_place(place, preprocessing), known, place), source)
    test = open_dataset(source['dataset'], source['data_dir'], source['test'], **options)
    return KnownImages(train, held, select_classes(test, known), source)


def folder_classes(place: str) -> tuple[str, ...]:
    """Names of the class folders of a folder or tar of test images, sorted.

    Raises:
        ValueError: No folder, or no image in it.
    """
    return class_names(_open_place(place, None))


def _open_place(place: str, preprocessing: Preprocessing | None) -> Any:
    splits = list_splits('', place)
    split = next((name for name in ('test', 'val', 'validation') if name in splits), 'test')
    reading = {} if preprocessing is None else preprocessing.reading_options()
    return open_dataset('', place, split, min_classes=1, **reading)


def _some_classes(dataset: Any, known: Sequence[str], place: str) -> CutDataset:
    """The known classes that a data set has; targets are positions in ``known``."""
    there = sorted(shared_classes(known, class_names(dataset)))
    if not there:
        raise ValueError(f'--known {place}: none of its classes ({", ".join(class_names(dataset)[:5])}, ...) is known '
                         f'to the model ({", ".join(known[:5])}, ...)')
    if len(there) < len(known):
        _logger.warning(f'{place} has {len(there)} of the {len(known)} known classes')
    cut = select_classes(dataset, [known[place] for place in there])
    return CutDataset(cut.source, cut.indices, np.asarray(there)[cut.targets], known, cut.transform)
