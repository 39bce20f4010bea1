"""OpenOOD's benchmarks, opened by its lists of images: known, training, validation, near, far and shifted."""
from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from timm.data import ImageNetInfo

from gradmix_timm.data import ClassSplit, CutDataset, find_classes
from gradmix_timm.data.image_lists import Suite, suite_images
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.data.protocols import class_names_of
from gradmix_timm.openset.results import UnknownSet

from .images import EvaluationImages, UnknownImages
from .opening import with_sets

__all__ = ['list_order', 'open_suite']

_logger = logging.getLogger(__name__)


def list_order(suite: Suite) -> tuple[str, ...]:
    """Names of the known classes in the order of the lists' labels; () if only the lists define it (imagenet200)."""
    if suite.name == 'imagenet':
        return tuple(ImageNetInfo().label_names())
    return class_names_of(suite.name) if suite.name.startswith('cifar') else ()


def open_suite(suite: Suite, root: str, names: Sequence[str], preprocessing: Preprocessing,
               full_spectrum: bool = False) -> EvaluationImages:
    """Every part of a suite; no image is read.

    Args:
        suite: Which.
        root: Folder with ``benchmark_imglist`` and the folders of images.
        names: Known classes in head order; labels of the lists are theirs by name, else by position.
        preprocessing: How files are decoded.
        full_spectrum: Whether shifted images of the known classes count as known test images.

    Raises:
        ValueError: Another number of classes, or lists or images that are not there.
    """
    if len(names) != suite.classes:
        raise ValueError(f'ood_suite={suite.name} has {suite.classes} known classes, the model {len(names)}')
    if full_spectrum and not suite.shifted:
        raise ValueError(f'ood_suite={suite.name} has no shifted sets: full_spectrum=True is for the others')
    order, place = list_order(suite), Path(root)
    try:
        head = np.asarray(find_classes(order, names)) if order else np.arange(len(names))
    except ValueError:
        head = np.arange(len(names))
        _logger.warning(f'the classes of {suite.name} are not called as those of the model; labels of the lists are '
                        'taken for places in its head')
    reading = {'input_img_mode': preprocessing.image_mode, 'exif': preprocessing.exif}

    def of_known(*parts: str) -> CutDataset:
        images = suite_images(suite, place, parts, names, reading)
        images.targets = head[images.targets]
        return images

    def where_listed(part: str) -> CutDataset | None:
        """Training and validation images, which only fits need, so their lists may be missing."""
        if (place / suite.files(part)[0]).is_file():
            return of_known(part)
        _logger.warning(f'no list {place / suite.files(part)[0]}: without it scores that are fit on it are left out')
        return None

    shifted = tuple(suite.shifted) if full_spectrum else ()
    sets, facts = {}, {}
    for kind, members in (('near', suite.near), ('far', suite.far)):
        for name in members:
            sets[name] = suite_images(suite, place, (name,), names, reading, known=False)
            facts[name] = UnknownSet(source=suite.files(name)[0], kind=kind, dropped_classes=[], dropped_images=0,
                                     known_classes_kept=[])
    source = {'dataset': suite.name, 'data_dir': root, 'train': suite.files('train')[0], 'test': suite.files('test')[0],
              'ood_suite': suite.name, 'shifted': list(shifted)}
    images = EvaluationImages(of_known('test', *shifted), ClassSplit(known=tuple(names), unknown=()), None,
                              where_listed('train'), where_listed('val'), source)
    return with_sets(images, UnknownImages.named(sets, facts))
