"""Open the images of an evaluation by its options, else as the checkpoint recorded them; no image is read."""
from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from gradmix_timm.checkpoint import Loaded, RunRecord, check_known
from gradmix_timm.data import (
    ClassSplit,
    CutDataset,
    ImageSource,
    Parts,
    bearing,
    check_split,
    class_names,
    evaluated_split,
    find_classes,
    inner_name,
    is_flat,
    list_protocols,
    list_splits,
    load_split,
    open_dataset,
    recorded_parts,
    select_classes,
    split_flat,
)
from gradmix_timm.data.class_names import found_classes
from gradmix_timm.data.opening import image_extensions
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.schema import naming

from .images import EvaluationImages, UnknownImages, thinned
from .settings import DataOptions

__all__ = ['head_is_imagenet', 'head_names', 'known_folders', 'named_split', 'open_known', 'open_place', 'open_split',
           'open_training', 'plan_split', 'some_classes', 'source_of', 'with_sets']

_logger = logging.getLogger(__name__)


# ---- which classes

def named_split(options: DataOptions, record: RunRecord | None) -> ClassSplit | None:
    """Known and unknown classes as options or the checkpoint name them; None if neither does. No data is read.

    Raises:
        ValueError: The options name other classes than the head's.
    """
    if options.osr_protocol:
        split = load_split(options.osr_protocol, options.osr_trial or 0, options.osr_family)
    elif options.known_classes:
        split = ClassSplit(known=tuple(options.known_classes), unknown=())
    elif record is None or not record.known_classes:
        return None
    else:
        return _recorded_split(record)
    if record is not None and record.known_classes:
        check_known(record, split.known)
    return split


def plan_split(options: DataOptions, record: RunRecord | None) -> ClassSplit:
    """:func:`named_split` of an evaluation that requires one.

    Raises:
        ValueError: Neither options nor checkpoint name the known classes, or they contradict each other.
    """
    split = named_split(options, record)
    if split is None:
        silent = 'nothing says' if record is None else 'the checkpoint does not say'
        raise ValueError(f'{silent} which classes the head knows; name them in head order, known_classes=A,B,..., or '
                         'osr_protocol=NAME')
    return split


def _recorded_split(record: RunRecord) -> ClassSplit:
    """The checkpoint's own classes, with the groups of its protocol if that is one of this package's."""
    if record.protocol in list_protocols():
        split = load_split(record.protocol, record.trial or 0, record.family)
        if split.known == record.known_classes:
            return split
    return ClassSplit(known=record.known_classes, unknown=record.unknown_classes, protocol=record.protocol,
                      family=record.family, trial=record.trial)


def head_names(net: nn.Module, folders: Sequence[str], where: str) -> tuple[str, ...]:
    """Known classes of a head without class names: ImageNet's, if timm says so, else the class folders in order.

    ImageNet's classes are matched by WordNet id or by name; the folders may be a subset of them.

    Args:
        net: Whose head it is.
        folders: Names of the class folders of known test images.
        where: What holds them, for the message.

    Raises:
        ValueError: Another number of folders than outputs.
    """
    outputs = getattr(net, 'num_classes', 0)
    if head_is_imagenet(net):
        info = ImageNetInfo(infer_imagenet_subset(net) or '')
        synsets = tuple(info.label_names())
        names = synsets if not folders or set(folders) & set(synsets) else _by_name(info, synsets, folders)
        if strays := [folder for folder in folders if names and folder not in names]:
            _logger.warning(f"{where}: {len(strays)} of {len(folders)} class folders are none of the head's classes "
                            f'and are left out ({", ".join(strays[:5])}{", ..." if len(strays) > 5 else ""})')
        if names:
            return names
    if len(folders) != outputs:
        raise ValueError(f'{where} has {len(folders)} classes and the head {outputs} outputs; name the classes in head '
                         'order, known_classes=A,B,...')
    return tuple(folders)


def head_is_imagenet(net: nn.Module) -> bool:
    """Whether a head has the outputs of one of the ImageNets, in timm's order."""
    subset = infer_imagenet_subset(net) if getattr(net, 'pretrained_cfg', None) else None
    return subset is not None and ImageNetInfo(subset).num_classes() == getattr(net, 'num_classes', 0)


def _by_name(info: ImageNetInfo, synsets: Sequence[str], folders: Sequence[str]) -> tuple[str, ...]:
    """The classes as the folders name them, by their id if they have no folder; () if no folder matches."""
    lemmas: dict[str, list[int]] = {}
    for place, synset in enumerate(synsets):
        for lemma in dict.fromkeys(info.label_name_to_description(synset, detailed=False).split(', ')):
            lemmas.setdefault(_plain(lemma), []).append(place)
    names = list(synsets)
    for folder in folders:
        places = lemmas.get(_plain(folder), [])
        if len(places) == 1:
            names[places[0]] = folder
    return tuple(names) if tuple(names) != tuple(synsets) else ()


def _plain(name: str) -> str:
    return ' '.join(name.casefold().replace('_', ' ').replace('-', ' ').split())


# ---- where

def source_of(options: DataOptions, loaded: Loaded | None) -> dict[str, Any]:
    """Data set, folder and split names: the options', else the checkpoint's."""
    # The checkpoint is consulted only if needed: it may name a reader that a file must not choose.
    dataset, folder = options.dataset, options.data_dir
    if dataset is None:  # '' is a name too: class folders
        dataset = '' if loaded is None else loaded.dataset
        # A folder from the options goes with the checkpoint's data set; a data set from the options has its own folder.
        folder = folder or (None if loaded is None else loaded.data_dir)
    if options.data_dir and inner_name(dataset).startswith('sklearn/'):
        raise ValueError(f"data_dir={options.data_dir}: the images of {dataset} come with scikit-learn; leave it out, "
                         "or say dataset='' (--dataset '') for class folders")
    splits = {} if loaded is None else loaded.splits
    return {
        'dataset': dataset, 'data_dir': folder,
        'train': options.train_split or splits.get('train') or 'train',
        'test': options.test_split or splits.get('test') or evaluated_split(dataset, folder)}


def _other_source(options: DataOptions, split: ClassSplit, source: dict[str, Any], reading: Mapping[str, Any],
                  ) -> ImageSource | None:
    """The data set of the unknown classes, if it is another."""
    if split.unknown_dataset is None:
        for given in ('unknown_dataset', 'unknown_data_dir'):
            if getattr(options, given) is not None:
                raise ValueError(f"{given}={getattr(options, given)}: the unknown classes here are of the known ones' "
                                 'own data set; leave it out')
        return None
    name = options.unknown_dataset
    if name is None and inner_name(source['dataset']).startswith('torch/'):
        name = f'torch/{split.unknown_dataset}'
    folder = options.unknown_data_dir or (source['data_dir'] if name else None)
    if name is None and folder is None:
        raise ValueError(f'the unknowns of {split.protocol} are of {split.unknown_dataset}: unknown_data_dir=DIR '
                         '(and unknown_dataset=NAME)')
    source['unknown_dataset'], source['unknown_data_dir'] = name or '', folder
    opened: ImageSource = open_dataset(name or '', folder, source['test'], **reading)
    return opened


# ---- opening

@dataclass(frozen=True)
class _Opener:
    """The data sets of one evaluation, as options and checkpoint describe them."""

    options: DataOptions
    loaded: Loaded | None
    source: dict[str, Any]
    reading: Mapping[str, Any]

    @classmethod
    def of(cls, options: DataOptions, loaded: Loaded | None, preprocessing: Preprocessing) -> _Opener:
        return cls(options, loaded, source_of(options, loaded),
                   {'class_map': options.class_map, **preprocessing.reading_options()})

    def split(self, which: str) -> ImageSource:
        """'train' or 'test'; listed by timm's rule if a plain run's classes are folders in folders."""
        where = self.source['dataset'], self.source['data_dir'], self.source[which]
        opened: ImageSource = open_dataset(*where, **self.reading)
        record = self.loaded.record if self.loaded is not None else None
        if record is None or record.unknown_classes or '/' in where[0] or (
                set(record.known_classes) <= set(class_names(opened))):
            return opened
        inner: ImageSource = open_dataset(
            *where, **self.reading, timm_rule=True, input_key=';'.join(image_extensions()))
        return inner if set(record.known_classes) <= set(class_names(inner)) else opened

    @property
    def flat(self) -> bool:
        """Whether both splits are one folder of class folders, so that it has to be cut in two."""
        source = self.source
        return is_flat(source['dataset'], source['data_dir'], (source['train'], source['test']))

    @property
    def trained_here(self) -> bool:
        """Whether the checkpoint recorded that it was trained on this data."""
        if self.loaded is None:
            return False
        trained_on = (self.loaded.args or {}).get('data_dir')
        return self.loaded.record is not None or (bool(trained_on) and (
            os.path.realpath(str(trained_on)) == os.path.realpath(str(self.source['data_dir']))))

    def training(self, names: Sequence[str], needed: bool = False) -> Parts | None:
        """Training images of the known classes, apart from those that training held out or kept for the test.

        None without any: a warning says so, and scores that are fitted are left out.
        """
        record = self.loaded.record if self.loaded is not None else None
        try:
            whole = select_classes(bearing(self.split('train'), names), names)
        except ValueError as error:
            if needed or self.options.train_split:
                raise
            _logger.warning(f'No training images, so scores that are fit on them are left out ({error})')
            return None
        return recorded_parts(whole, record)


def open_split(options: DataOptions, loaded: Loaded | None, split: ClassSplit | None, preprocessing: Preprocessing, *,
               unknown_needed: bool = True, train_needed: bool = False, most: int | None = None) -> EvaluationImages:
    """Open the train and the test split and cut the known and the unknown classes out; no image is read.

    Args:
        options: Over what the checkpoint recorded.
        loaded: The checkpoint, or None.
        split: Of :func:`named_split`; None: all classes of the data are known, in the order of its labels.
        preprocessing: How files are decoded.
        unknown_needed: Whether unknown classes are required.
        train_needed: Whether training images are required.
        most: Test images of each side, spread evenly over it; None: all.

    Raises:
        ValueError: Data is missing or lacks the classes, or test images are training images.
    """
    opener = _Opener.of(options, loaded, preprocessing)
    whole, source = opener.split('test'), opener.source
    with naming(f'split {source["test"]} of {source["data_dir"] or source["dataset"]}'):
        split = _fitted(split, class_names(whole), unknown_needed)
    others = _other_source(options, split, opener.source, opener.reading)
    if others is not None:
        split = check_split(split, class_names(whole), class_names(others))
    unknown, whole = None, bearing(whole, split.known)
    if split.unknown:
        place = whole if others is None else bearing(whole, split.known, others)
        images = thinned(select_classes(place, split.unknown, unknown=True), most)
        labels = thinned(select_classes(place, split.unknown), most).targets
        unknown = UnknownImages({'': images}, labels)
    known = select_classes(bearing(whole, split.known), split.known)
    train, held, known = _apart(opener, opener.training(split.known, train_needed), known)
    return EvaluationImages(thinned(known, most), split, unknown, train, held, opener.source)


def _fitted(split: ClassSplit | None, names: tuple[str, ...], unknown_needed: bool) -> ClassSplit:
    """A split that fits a data set of these classes, without unknown ones where all are known."""
    if split is None:
        return ClassSplit(known=names, unknown=())
    closed = not split.unknown and not split.unknown_dataset
    if not unknown_needed and closed and len(find_classes(split.known, names)) == len(names):
        return split
    return check_split(split, names)


def _apart(opener: _Opener, parts: Parts | None, known: CutDataset,
           ) -> tuple[CutDataset | None, CutDataset | None, CutDataset]:
    """Training, held-out and test images; a folder without splits is cut as training recorded, else here."""
    if parts is None:
        return None, None, known
    if not opener.flat:
        return parts.train, parts.held, known
    if parts.test is not None:
        opener.source['flat_test'] = 'as training split the folder'
        return parts.train, parts.held, parts.test
    if opener.trained_here:
        return parts.train, parts.held, known  # refused by EvaluationImages: training used the whole folder
    train, test = split_flat(known)
    opener.source['flat_test'] = f'{len(test)} of {len(known)} images, stratified, seed 0'
    return train, None, test


def open_known(options: DataOptions, loaded: Loaded | None, names: Sequence[str], preprocessing: Preprocessing,
               place: str | None = None) -> EvaluationImages:
    """Open the images of known classes alone: train and test split, or a folder in place of the test split.

    Args:
        options: Over what the checkpoint recorded.
        loaded: The checkpoint, or None.
        names: Known classes in head order.
        preprocessing: How files are decoded.
        place: Folder or tar of known test images by class; classes that it lacks are left out.

    Raises:
        ValueError: Data is missing or lacks the classes, or test images are training images.
    """
    opener = _Opener.of(options, loaded, preprocessing)
    split = ClassSplit(known=tuple(names), unknown=())
    if place is not None:
        opener.source['known'] = place
        parts = opener.training(names, needed=bool(options.data_dir or options.dataset is not None))
        known = some_classes(open_place(place, preprocessing), names, f'known={place}')
        train, held = (None, None) if parts is None else (parts.train, parts.held)
        return EvaluationImages(known, split, None, train, held, opener.source)
    known = some_classes(opener.split('test'), names, f'data_dir={opener.source["data_dir"]}')
    train, held, known = _apart(opener, opener.training(names), known)
    return EvaluationImages(known, split, None, train, held, opener.source)


def known_folders(options: DataOptions, loaded: Loaded | None, place: str | None) -> tuple[str, ...]:
    """Names of the classes of known test images, in the order of their labels.

    Raises:
        ValueError: No data, or no image in it.
    """
    if place is not None:
        return class_names(open_place(place, None))
    source = source_of(options, loaded)
    return class_names(open_dataset(source['dataset'], source['data_dir'], source['test'],
                                    class_map=options.class_map))


def with_sets(images: EvaluationImages, unknown: UnknownImages) -> EvaluationImages:
    """Known images with named sets of unknown ones, each a class and a group of its own."""
    names = tuple(unknown.sets)
    split = ClassSplit(known=images.split.known, unknown=names, protocol='ood', unknown_dataset=', '.join(names),
                       groups={name: (name,) for name in names})
    return replace(images, unknown=unknown, split=split)


def open_training(options: DataOptions, loaded: Loaded | None, names: Sequence[str], preprocessing: Preprocessing,
                  ) -> Parts:
    """The training split alone, cut as training cut it; arguments as of :func:`open_known`.

    Raises:
        ValueError: Data is missing or lacks the classes.
    """
    parts = _Opener.of(options, loaded, preprocessing).training(names, needed=True)
    assert parts is not None
    return parts


def open_place(place: str | os.PathLike[str], preprocessing: Preprocessing | None, split: str = '') -> ImageSource:
    """A folder of class folders or a tar, or the split in it.

    Args:
        place: Folder or tar.
        preprocessing: How files are decoded; None: as RGB.
        split: 'train'; '' for the one that is evaluated, 'test' or 'val'.
    """
    split = split if split in list_splits('', place) else evaluated_split('', place)
    reading = {} if preprocessing is None else preprocessing.reading_options()
    opened: ImageSource = open_dataset('', place, split, min_classes=1, **reading)
    return opened


def some_classes(dataset: ImageSource, known: Sequence[str], where: str) -> CutDataset:
    """The known classes that a data set has; targets are positions in ``known``.

    Args:
        dataset: With class names.
        known: Names in head order.
        where: What holds it, for messages.

    Raises:
        ValueError: It has none of them, or lacks one and has a name that is nearly the same.
    """
    there = found_classes(known, class_names(dataset), where)
    cut = select_classes(dataset, [known[place] for place in there])
    return CutDataset(cut.source, cut.indices, np.asarray(there)[cut.targets], known, cut.transform)
