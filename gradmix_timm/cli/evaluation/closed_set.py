"""The test images of a model, by known and unknown classes; here there may be no unknown ones."""
from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradmix_timm.checkpoint import Loaded
from gradmix_timm.data import (
    ClassSplit,
    CutDataset,
    ImageSource,
    check_split,
    class_names,
    find_classes,
    open_dataset,
    select_classes,
)
from gradmix_timm.data.preprocessing import Preprocessing

from .embedding import rows_of
from .subject import other_source, plan_split, source_of

__all__ = ['TestImages', 'open_test', 'told_split']


@dataclass(frozen=True)
class TestImages:
    """Test images, opened but not read.

    Attributes:
        whole: The data set that they are of.
        known: Targets are positions in ``split.known``.
        unknown: Targets are -1; None where every class is known.
        split: Known and unknown classes.
        source: Where they are, for the manifest.
        mode: PIL mode that they are read in.
    """

    whole: ImageSource
    known: CutDataset
    unknown: CutDataset | None
    split: ClassSplit
    source: dict[str, Any]
    mode: str


def told_split(args: argparse.Namespace, loaded: Loaded | None) -> ClassSplit | None:
    """The classes that flags or checkpoint name; None where neither does, so that all are known."""
    record = loaded.record if loaded is not None else None
    told = args.osr_protocol or args.known_classes or (record is not None and record.known_classes)
    return plan_split(args, record) if told else None


def open_test(args: argparse.Namespace, loaded: Loaded | None, split: ClassSplit | None, preprocessing: Preprocessing,
              most: int | None = None) -> TestImages:
    """Open the test split and cut the classes out; no image is read.

    Args:
        args: Of :func:`~gradmix_timm.cli.evaluation.subject.add_subject_flags`.
        loaded: The checkpoint, or None.
        split: Of :func:`told_split`; None: all classes of the data are known, in the order of its labels.
        preprocessing: How files are decoded.
        most: Images of each side, spread evenly over it; None: all.

    Raises:
        ValueError: Data that is not there or does not hold the classes.
    """
    source = source_of(args, loaded)
    options = {'class_map': args.class_map, **preprocessing.reading_options()}
    whole = open_dataset(source['dataset'], source['data_dir'], source['test'], **options)
    split = fit_split(split, class_names(whole))
    others = other_source(args, split, source, options)
    if others is not None:
        split = check_split(split, class_names(whole), class_names(others))
    unknown = None
    if split.unknown:
        place = whole if others is None else others
        unknown = thinned(select_classes(place, split.unknown, unknown=True), most)
    known = thinned(select_classes(whole, split.known), most)
    return TestImages(whole, known, unknown, split, source, options['img_mode'])


def fit_split(split: ClassSplit | None, names: tuple[str, ...]) -> ClassSplit:
    """A split that fits a data set of these classes, without unknown ones where all are known."""
    if split is None:
        return ClassSplit(known=names, unknown=())
    if not split.unknown and not split.unknown_dataset and len(find_classes(split.known, names)) == len(names):
        return split
    return check_split(split, names)


def thinned(images: CutDataset, most: int | None) -> CutDataset:
    """At most so many rows, spread evenly: of every class where they lie class by class."""
    if most is None or len(images) <= most:
        return images
    return rows_of(images, np.linspace(0, len(images) - 1, most).round().astype(int))
