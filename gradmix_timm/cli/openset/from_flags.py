"""From the flags of the evaluation commands to the library, and from its messages back to flags."""
from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from gradmix_timm.checkpoint import Loaded, load_checkpoint
from gradmix_timm.cli.errors import UsageError, one_line, user_errors
from gradmix_timm.cli.plugins import import_modules
from gradmix_timm.evaluation.folder import check_output
from gradmix_timm.evaluation.model import EvaluatedModel
from gradmix_timm.evaluation.settings import DataOptions, EvaluationSettings

__all__ = ['as_flags', 'build_model', 'flag_errors', 'options_of', 'output_folder', 'read_checkpoint', 'settings_of']

_SETTINGS = ('preset', 'bootstrap', 'seed', 'batch_size', 'workers', 'channels_last', 'skip_bad', 'cache',
             'trivial_images', 'duplicates', 'feature_map', 'sensitivity')


def settings_of(args: argparse.Namespace) -> EvaluationSettings:
    """The settings that flags name; the modules of --device-modules are imported before scores are looked up.

    Raises:
        ValueError: An invalid module, score or number.
    """
    import_modules(args.device_modules)
    if args.img_size is not None and args.img_size < 1:
        raise ValueError(f'img_size={args.img_size}: expected 1 or more')
    if args.amp_dtype != 'float16' and not args.amp:
        raise ValueError(f'amp_dtype={args.amp_dtype} has no effect without --amp; add it, or leave out --amp-dtype')
    given = {name: getattr(args, name) for name in _SETTINGS if hasattr(args, name)}
    scores = getattr(args, 'scores', None)
    return EvaluationSettings(scores=None if scores is None else tuple(scores),
                              amp_dtype=getattr(torch, args.amp_dtype) if args.amp else None, **given)


def options_of(args: argparse.Namespace) -> DataOptions:
    """The data options that the flags give.

    Raises:
        ValueError: Flags that contradict each other, or that would be ignored.
    """
    return DataOptions(
        data_dir=args.data_dir, dataset=args.dataset, train_split=args.train_split, test_split=args.test_split,
        class_map=args.class_map, known_classes=None if args.known_classes is None else tuple(args.known_classes),
        osr_protocol=args.osr_protocol, osr_trial=args.osr_trial, osr_family=args.osr_family,
        unknown_dataset=args.unknown_dataset, unknown_data_dir=args.unknown_data_dir)


def read_checkpoint(args: argparse.Namespace) -> Loaded | None:
    """The checkpoint of --checkpoint; None with --model.

    Raises:
        ValueError: Neither is given, or the file is not a checkpoint.
    """
    if args.checkpoint:
        if args.pretrained:
            raise ValueError('a checkpoint brings its own weights: leave out --pretrained or --checkpoint')
        return load_checkpoint(args.checkpoint)
    if not args.model:
        raise ValueError('nothing to evaluate: --checkpoint FILE, or --model NAME --pretrained')
    return None


def build_model(args: argparse.Namespace, settings: EvaluationSettings, loaded: Loaded | None,
                num_classes: int | None) -> EvaluatedModel:
    """The model of the flags."""
    return EvaluatedModel.build(settings, loaded, args.model, num_classes, pretrained=args.pretrained,
                                img_size=args.img_size, input_img_mode=args.input_img_mode, exif=args.exif,
                                device=args.device)


def output_folder(args: argparse.Namespace, command: str) -> Path:
    """The folder of results: --output, else beside the checkpoint; checked to be writable.

    Raises:
        ValueError: It is not writable.
    """
    beside = Path(args.checkpoint).parent / command if args.checkpoint else Path('output') / f'{command}-{args.model}'
    folder = Path(args.output) if args.output else beside
    check_output(folder)
    return folder


# ---- messages

@contextmanager
def flag_errors(args: argparse.Namespace) -> Iterator[None]:
    """As :func:`~gradmix_timm.cli.errors.user_errors`; arguments that a message names become this command's flags."""
    try:
        with user_errors(renamed={'--gradmix-layers': '--layers'} if hasattr(args, 'layers') else None):
            yield
    except UsageError as error:
        raise UsageError(as_flags(one_line(error), list(vars(args)))) from error.__cause__


def as_flags(message: str, names: Sequence[str]) -> str:
    """A message of the library with flags for arguments: ``batch_size=0`` becomes ``--batch-size 0``.

    Args:
        message: Names arguments as ``name=value``.
        names: Those that have a flag.

    Example:
        >>> as_flags('known_classes=A,B,... or a=b, known=3; scores=: none', ['known_classes', 'scores'])
        '--known-classes A,B,... or a=b, known=3; --scores: none'
        >>> as_flags("overlap='drop' leaves them out", ['overlap'])
        '--overlap drop leaves them out'
    """
    def flag(found: re.Match[str]) -> str:
        name, value = found.group(1), found.group(2) or found.group(3)
        return f'--{name.replace("_", "-")}{f" {value}" if value else ""}'

    named = '|'.join(sorted(map(re.escape, names), key=len, reverse=True))
    message = message.replace("gate='off'", '--no-accuracy-gate')
    return re.sub(rf'(?<![\w.=-])({named})=(?:\'(\w+)\'|([^\s:;,]?))', flag, message)
