"""What an evaluation judges: a checkpoint or a timm model with its preprocessing, its classes, its images."""
from __future__ import annotations

import argparse
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradmix_timm.checkpoint import (
    Loaded,
    ProjectionHead,
    RunRecord,
    build_model,
    check_known,
    find_device,
    load_checkpoint,
)
from gradmix_timm.cli.config_file import words
from gradmix_timm.cli.plugins import MODULES_HELP, import_modules
from gradmix_timm.data import (
    ClassSplit,
    CutDataset,
    check_split,
    class_names,
    list_protocols,
    list_splits,
    load_split,
    open_dataset,
    select_classes,
    take,
)
from gradmix_timm.data.preprocessing import Preprocessing

from .embedding import Subject, open_cache

__all__ = [
    'Images', 'add_subject_flags', 'check_output', 'check_positive', 'list_hash', 'load_subject',
    'open_images', 'other_source', 'plan_split', 'read_checkpoint', 'source_of']

_logger = logging.getLogger(__name__)
_MAY_BE_ZERO = ('bootstrap', 'workers', 'seed', 'trivial_images', 'feature_map', 'duplicates')


@dataclass(frozen=True)
class Images:
    """The images of an open-set evaluation, opened but not read.

    Attributes:
        train: Of known classes, without those held out.
        validation: Those held out, or None.
        known: Of known classes, from the test split.
        unknown: Of unknown classes, from the test split; targets are -1.
        unknown_label: Positions in the split's unknown classes.
        split: Known and unknown classes.
        source: Where they are, for the manifest.
    """

    train: CutDataset
    validation: CutDataset | None
    known: CutDataset
    unknown: CutDataset
    unknown_label: Any
    split: ClassSplit
    source: dict[str, Any]


def add_subject_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that judges a model; what a checkpoint of ours tells need not be given."""
    add = parser.add_argument_group('Model').add_argument
    add('--checkpoint', nargs='+', metavar='FILE',
        help="of train.py, timm's, or a bare state dict with --model; several are judged one after the other")
    add('--model', metavar='NAME', help="timm's model name (default: the checkpoint's)")
    add('--pretrained', action='store_true', help="timm's weights, in place of a checkpoint")
    add('--img-size', type=int, metavar='N', help="image side in pixels (default: the checkpoint's)")
    add('--device-modules', nargs='+', metavar='NAME', help=MODULES_HELP)
    add('--device', metavar='NAME', help='cpu, cuda, cuda:1 (default: cuda where there is one)')
    add('--amp', action='store_true', help='run the model in mixed precision')
    add('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='with --amp (default: float16)')
    add('--channels-last', action='store_true', help='channels-last memory format')
    add = parser.add_argument_group('Images').add_argument
    add('--data-dir', '--data', metavar='DIR', help="folder of the data (default: the checkpoint's)")
    add('--dataset', metavar='NAME', help="timm's data set name, or sklearn/digits (default: the checkpoint's)")
    add('--train-split', metavar='NAME', help="split with the training images (default: the checkpoint's)")
    add('--test-split', metavar='NAME', help="split that is judged (default: the checkpoint's)")
    add('--class-map', default='', metavar='FILE', help='class name to label, as in training')
    add('--batch-size', type=int, default=128, metavar='N', help='(default: 128)')
    add('--workers', type=int, metavar='N', help='loader processes (default: by the number of images, at most 4)')
    add('--cache', metavar='DIR', help='keep embeddings there: a second run reads them, one cut short goes on')
    add('--skip-bad', action='store_true', help='leave out images that cannot be read, and name them')
    add = parser.add_argument_group('Known and unknown classes').add_argument
    add('--known-classes', type=words, metavar='A,B,...', help='in head order; all others are unknown')
    add('--osr-protocol', metavar='NAME', help='a protocol or a YAML file; see train.py --help')
    add('--osr-trial', type=int, default=0, metavar='N', help='trial of the protocol (default: 0)')
    add('--osr-family', metavar='NAME', help="whose trials (default: the protocol's own)")
    add('--unknown-dataset', metavar='NAME', help='data set of the unknowns where it is another (cifar+10, cifar+50)')
    add('--unknown-data-dir', metavar='DIR', help='its folder (default: --data-dir)')


def load_subject(args: argparse.Namespace, loaded: Loaded | None, num_classes: int | None) -> Subject:
    """Build the model, check its width, find its preprocessing.

    Args:
        args: Of :func:`add_subject_flags`.
        loaded: The checkpoint, or None.
        num_classes: Outputs that its head should have.

    Raises:
        ValueError: A model that cannot be built, has another number of outputs, or a device that is not there.
    """
    device = find_device(args.device)
    fresh = loaded is None and args.pretrained  # keeps its own head
    model = build_model(loaded, args.model, None if fresh else num_classes, args.pretrained)
    outputs = getattr(model, 'num_classes', num_classes)
    if num_classes is not None and outputs != num_classes:
        raise ValueError(f'the head of {args.model} has {outputs} outputs and {num_classes} known classes are named; '
                         'train a head for them, or name one class an output with --known-classes')
    if args.img_size:
        resize: Any = getattr(model, 'set_input_size', None)  # of models whose position embeddings fit one size
        if resize is not None:
            resize((args.img_size, args.img_size))
    preprocessing = Preprocessing.of({} if loaded is None else loaded.data_config, model, args.img_size)
    preprocessing.transform()  # a pipeline refuses another --img-size than it can make
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    return Subject(
        model=model.to(device).eval(), name=str(args.model or (loaded and loaded.model)),
        loaded=loaded, preprocessing=preprocessing, device=device, args=args,
        amp_dtype=getattr(torch, args.amp_dtype) if args.amp else None, projection=_projection(loaded, device),
        cache=open_cache(args.cache))


def _projection(loaded: Loaded | None, device: torch.device) -> nn.Module | None:
    """The projection head of a contrastive objective; says so where its class head was never fitted."""
    record = loaded.record if loaded is not None else None
    if record is not None and record.objective != 'ce' and not record.probe:
        _logger.warning(f'The class head was not trained: --objective {record.objective} without --probe-epochs, or '
                        'before its last epoch. Logits, and all scores of them, mean nothing; class-knn, knn and other '
                        'scores of features do.')
    if loaded is None or loaded.projection is None:
        return None
    return ProjectionHead.from_state(loaded.projection).to(device)


def read_checkpoint(args: argparse.Namespace) -> Loaded | None:
    """The checkpoint that is named; None where a model is.

    Raises:
        ValueError: Neither is given, or the file is something else.
    """
    import_modules(getattr(args, 'device_modules', None))
    if args.checkpoint:
        if args.pretrained:
            raise ValueError('a checkpoint brings its own weights: leave out --pretrained or --checkpoint')
        return load_checkpoint(args.checkpoint)
    if not args.model:
        raise ValueError('nothing to judge: --checkpoint FILE, or --model NAME --pretrained')
    return None


def plan_split(args: argparse.Namespace, record: RunRecord | None) -> ClassSplit:
    """Known and unknown classes by name: the flags', else the checkpoint's; no data is read.

    Raises:
        ValueError: Nobody says which classes are known, or the flags name others than the head's.
    """
    if args.osr_protocol and args.known_classes:
        raise ValueError('--osr-protocol and --known-classes both say which classes are known; give one')
    if args.osr_protocol:
        split = load_split(args.osr_protocol, args.osr_trial, args.osr_family)
    elif args.known_classes:
        split = ClassSplit(known=tuple(args.known_classes), unknown=())
    elif record is None or not record.known_classes:
        raise ValueError('the checkpoint does not say which classes its head knows; name them in head order, '
                         '--known-classes A,B,..., or --osr-protocol NAME')
    else:
        return _recorded_split(record)
    if record is not None and record.known_classes:
        check_known(record, split.known)
    return split


def open_images(args: argparse.Namespace, loaded: Loaded | None, split: ClassSplit,
                preprocessing: Preprocessing) -> Images:
    """Open the train and the test split and cut the classes out; no image is read.

    Args:
        args: Of :func:`add_subject_flags`.
        loaded: The checkpoint, or None.
        split: Of :func:`plan_split`.
        preprocessing: How files are decoded.

    Raises:
        ValueError: Data that is not there or does not hold the classes; no unknown class left.
    """
    record = loaded.record if loaded is not None else None
    source = source_of(args, loaded)
    options = {'class_map': args.class_map, **preprocessing.reading_options()}
    train = open_dataset(source['dataset'], source['data_dir'], source['train'], **options)
    test = open_dataset(source['dataset'], source['data_dir'], source['test'], **options)
    others = other_source(args, split, source, options)
    split = check_split(split, class_names(test), None if others is None else class_names(others))
    whole = select_classes(train, split.known)
    held = [] if record is None else list(record.val_indices)
    kept = sorted(set(whole.indices.tolist()) - set(held))
    return Images(
        train=take(whole, kept) if held else whole, validation=take(whole, held) if held else None,
        known=select_classes(test, split.known),
        unknown=select_classes(test if others is None else others, split.unknown, unknown=True),
        unknown_label=select_classes(test if others is None else others, split.unknown).targets,
        split=split, source=source)


def list_hash(images: CutDataset) -> str:
    """SHA-256 of the names and labels of images, in order: the same list gives the same."""
    digest = hashlib.sha256()
    for name, target in zip(images.filenames(), images.targets, strict=True):
        digest.update(f'{name}\t{target}\n'.encode())
    return digest.hexdigest()


def _recorded_split(record: RunRecord) -> ClassSplit:
    """The checkpoint's own classes, with the groups of its protocol where that is one of this package's."""
    if record.protocol in list_protocols():
        split = load_split(record.protocol, record.trial or 0, record.family)
        if split.known == record.known_classes:
            return split
    return ClassSplit(known=record.known_classes, unknown=record.unknown_classes, protocol=record.protocol,
                      family=record.family, trial=record.trial)


def source_of(args: argparse.Namespace, loaded: Loaded | None) -> dict[str, Any]:
    """Data set, folder and split names: the flags', else the checkpoint's."""
    record = loaded.record if loaded is not None else None
    told: dict[str, Any] = (loaded.args or {}) if loaded is not None else {}
    # '' is a name too: class folders.
    dataset = args.dataset if args.dataset is not None else _first(
        record and record.dataset, told.get('dataset'), '')
    # A folder given by hand goes with the data set of the checkpoint; a data set given by hand has its own folder.
    recorded = record.data_dir if record is not None else told.get('data_dir')
    folder = args.data_dir or (recorded if args.dataset is None else None)
    splits = dict(record.splits) if record is not None else {}
    there = list_splits(dataset, folder)
    return {
        'dataset': dataset, 'data_dir': folder,
        'train': _first(args.train_split, splits.get('train'), told.get('train_split'), 'train'),
        'test': _first(args.test_split, splits.get('test'),
                       next((name for name in ('test', 'val', 'validation') if name in there), 'test'))}


def _first(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


def other_source(args: argparse.Namespace, split: ClassSplit, source: dict[str, Any],
                  options: dict[str, Any]) -> Any:
    """The data set of the unknowns, where it is another."""
    if split.unknown_dataset is None:
        return None
    name = args.unknown_dataset
    if name is None and source['dataset'].startswith('torch/'):
        name = f'torch/{split.unknown_dataset}'
    folder = args.unknown_data_dir or (source['data_dir'] if name else None)
    if name is None and folder is None:
        raise ValueError(f'the unknowns of {split.protocol} are of {split.unknown_dataset}: --unknown-data-dir DIR '
                         '(and --unknown-dataset NAME)')
    source['unknown_dataset'], source['unknown_data_dir'] = name or '', folder
    return open_dataset(name or '', folder, source['test'], **options)


def check_output(folder: Path) -> None:
    """Refuse a folder that cannot be made or written, before anything is computed.

    Raises:
        ValueError: With the part of the path that stands in the way.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f'--output: {existing} is a file, expected a folder; choose another, --output DIR')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f'--output: no right to write in {existing}; choose another folder, --output DIR')


def check_positive(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse counts below their least value; some may be 0.

    Raises:
        ValueError: With the flag.
    """
    for name in names:
        value, least = getattr(args, name), 0 if name in _MAY_BE_ZERO else 1
        if value is not None and value < least:
            raise ValueError(f'--{name.replace("_", "-")} {value}: expected {least} or more')
