"""Flags of the evaluation commands, and the settings of the library that they make."""
from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gradmix_timm.checkpoint import Loaded, load_checkpoint
from gradmix_timm.cli.config_file import words
from gradmix_timm.cli.errors import UsageError, one_line, user_errors
from gradmix_timm.cli.plugins import MODULES_HELP, import_modules
from gradmix_timm.data.decoding import EXIF_RULES, MODES
from gradmix_timm.evaluation.folder import check_output
from gradmix_timm.evaluation.model import EvaluatedModel
from gradmix_timm.evaluation.settings import DataOptions, EvaluationSettings
from gradmix_timm.openset.presets import PRESETS
from gradmix_timm.openset.scores import join_options, list_scores

__all__ = ['Names', 'add_evaluation_flags', 'add_model_flags', 'as_flags', 'build_model', 'flag_errors', 'options_of',
           'output_folder', 'read_checkpoint', 'score_names', 'settings_of']


class Names(argparse.Action):
    """Names in one word or several, ``msp,mls`` or ``msp mls``; options after a name: ``ash:variant=b,alpha=2``."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,  # noqa: D102
                 option_string: str | None = None) -> None:
        names: list[str] = []
        for name in (name for part in values for name in part):
            if '=' in name and ':' not in name and names and '=' in names[-1]:
                names[-1] += f',{name}'  # one more option of the name before
            else:
                names.append(name)
        setattr(namespace, self.dest, names)


def score_names(text: str) -> list[str]:
    """Scores between commas, each with its options: the type of --scores.

    Raises:
        argparse.ArgumentTypeError: One of the words is empty.
    """
    return join_options(words(text))


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that evaluates a model; their defaults are what a checkpoint recorded."""
    add = parser.add_argument_group('Model').add_argument
    add('--checkpoint', nargs='+', metavar='FILE',
        help="of train.py, timm's, or a bare state dict with --model; several are evaluated one after the other")
    add('--model', metavar='NAME', help="timm's model name (default: the checkpoint's)")
    add('--pretrained', action='store_true', help="timm's weights, in place of a checkpoint")
    add('--img-size', type=int, metavar='N', help="image side in pixels (default: the checkpoint's)")
    add('--device-modules', nargs='+', metavar='NAME', help=MODULES_HELP)
    add('--device', metavar='NAME', help='cpu, cuda, cuda:1 (default: cuda if available)')
    add('--amp', action='store_true', help='run the model in mixed precision')
    add('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='with --amp (default: float16)')
    add('--channels-last', action='store_true', help='channels-last memory format')
    add = parser.add_argument_group('Images').add_argument
    add('--data-dir', '--data', metavar='DIR', help="folder of the data (default: the checkpoint's)")
    add('--dataset', metavar='NAME', help="timm's data set name, or sklearn/digits (default: the checkpoint's)")
    add('--train-split', metavar='NAME', help="split with the training images (default: the checkpoint's)")
    add('--test-split', metavar='NAME', help="split to evaluate (default: the checkpoint's)")
    add('--class-map', default='', metavar='FILE', help='class name to label, as in training')
    add('--input-img-mode', choices=tuple(MODES), metavar='MODE',
        help=f"PIL mode that files are read in: {', '.join(MODES)} (default: the checkpoint's)")
    add('--exif', choices=EXIF_RULES,
        help="orientation that a camera wrote beside the pixels (default: the checkpoint's, else ignore)")
    add('--batch-size', type=int, default=128, metavar='N', help='(default: 128)')
    add('--workers', type=int, metavar='N', help='loader processes (default: by the number of images, at most 4)')
    add('--cache', metavar='DIR', help='keep embeddings there: a second run reads them, and an interrupted run resumes')
    add('--skip-bad', action='store_true', help='leave out images that cannot be read, and name them')
    add = parser.add_argument_group('Known and unknown classes').add_argument
    add('--known-classes', type=words, metavar='A,B,...',
        help='in head order; all others are unknown; a name with a comma in double quotes')
    add('--osr-protocol', metavar='NAME', help='a protocol or a YAML file; see train.py --help')
    add('--osr-trial', type=int, metavar='N', help='trial of the protocol (default: 0)')
    add('--osr-family', metavar='NAME', help="whose trials (default: the protocol's own)")
    add('--unknown-dataset', metavar='NAME', help='data set of the unknowns where it is another (cifar+10, cifar+50)')
    add('--unknown-data-dir', metavar='DIR', help='its folder (default: --data-dir)')


def add_evaluation_flags(parser: argparse.ArgumentParser, folder: str) -> None:
    """Flags of scores, intervals, pixel statistics and output.

    Args:
        parser: Of the command.
        folder: Default name of the output beside the checkpoint.
    """
    add = parser.add_argument_group('Evaluation').add_argument
    add('--scores', type=score_names, nargs='+', action=Names, metavar='NAME[:OPTION=VALUE,...]',
        help=f'with options as in knn:k=5 ash:variant=b,percentile=65 (default: all of {", ".join(list_scores())}); '
             'pytorch-ood:NAME for a detector of that package')
    add('--preset', metavar='NAME',
        help='scores, options and metrics by the conventions of published tables, beside our own figures: '
             f'{", ".join(PRESETS)} (default: none)')
    add('--tune', metavar='SET',
        help="pick options of scores by AUROC of held-out known images against this set of unknown ones, by OpenOOD's "
             'grids; as for `ood --unknown`, apart from the images and classes that are evaluated (default: none)')
    add('--bootstrap', type=int, default=1000, metavar='N', help='resamples for the intervals (default: 1000)')
    add('--seed', type=int, default=0, metavar='N', help='of the resamples (default: 0)')
    add('--trivial-images', type=int, default=500, metavar='N',
        help='images of each set whose brightness, sharpness, ... are compared; 0: none (default: 500)')
    add('--duplicates', type=int, default=1000, metavar='N',
        help='unknown images nearest to a known one by features whose pixels are compared; 0: none (default: 1000)')
    add('--sensitivity', action='store_true',
        help='score again with other settings (neighbours, dimensions, percentiles, ...), to see how much '
             'each score depends on them')
    add('--feature-map', type=int, default=1000, metavar='N',
        help='test images in the figure of the features (PCA, t-SNE); 0: none (default: 1000)')
    add('--output', metavar='DIR', help=f'(default: the folder {folder} beside the checkpoint)')


# ---- from flags to the library

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
        with user_errors():
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
    """
    def flag(found: re.Match[str]) -> str:
        name, value = found.group(1), found.group(2)
        return f'--{name.replace("_", "-")}{f" {value}" if value else ""}'

    named = '|'.join(sorted(map(re.escape, names), key=len, reverse=True))
    message = message.replace("gate='off'", '--no-accuracy-gate')
    return re.sub(rf'(?<![\w.=-])({named})=([^\s:;,]?)', flag, message)
