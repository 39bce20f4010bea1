"""Flags that several evaluation commands have; :mod:`.from_flags` makes the library's settings of them."""
from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from gradmix_timm.choices import EMBEDDING_SCORES, EXIF_RULES, MODEL_SCORES, MODES, PRESETS
from gradmix_timm.cli.config_file import words
from gradmix_timm.cli.plugins import MODULES_HELP

__all__ = ['Names', 'add_evaluation_flags', 'add_model_flags', 'add_wide', 'join_options', 'score_names']


class Names(argparse.Action):
    """Names in one word or several, ``msp,mls`` or ``msp mls``; options after a name: ``ash:variant=b,alpha=2``."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,  # noqa: D102
                 option_string: str | None = None) -> None:
        setattr(namespace, self.dest, join_options(name for part in values for name in part))


def join_options(parts: Iterable[str]) -> list[str]:
    """Names from words between commas or blanks, which part options too: ``option=value`` belongs to the one before.

    Example:
        >>> join_options('msp,ash:variant=b,percentile=65,mls'.split(','))
        ['msp', 'ash:variant=b,percentile=65', 'mls']
    """
    found: list[str] = []
    for part in parts:
        if found and '=' in part and ':' not in part and ':' in found[-1]:
            found[-1] += f',{part}'
        else:
            found.append(part)
    return found


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
        help='checkpoint of train.py, of timm, or a bare state dict with --model; several are evaluated in turn')
    add('--model', metavar='NAME', help="timm's model name (default: the checkpoint's)")
    add('--pretrained', action='store_true', help="timm's weights, in place of a checkpoint")
    add('--img-size', type=int, metavar='N', help="image side in pixels (default: the checkpoint's)")
    add('--device-modules', nargs='+', metavar='NAME', help=MODULES_HELP)
    add('--device', metavar='NAME', help='cpu, cuda, cuda:1 (default: cuda if available)')
    add('--amp', action='store_true', help='run the model in mixed precision')
    add('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='dtype of --amp (default: float16)')
    add('--channels-last', action='store_true', help='channels-last memory format')
    add = parser.add_argument_group('Images').add_argument
    add('--data-dir', '--data', metavar='DIR', help="folder of the data (default: the checkpoint's)")
    add('--dataset', metavar='NAME', help="timm's data set name, or sklearn/digits (default: the checkpoint's)")
    add('--train-split', metavar='NAME', help="split with the training images (default: the checkpoint's)")
    add('--test-split', metavar='NAME', help="split to evaluate (default: the checkpoint's)")
    add('--class-map', default='', metavar='FILE', help='file of class names in label order, as in training')
    add('--input-img-mode', choices=tuple(MODES), metavar='MODE',
        help=f"PIL mode that files are read in: {', '.join(MODES)} (default: the checkpoint's)")
    add('--exif', choices=EXIF_RULES,
        help="orientation that a camera wrote beside the pixels (default: the checkpoint's, else ignore)")
    add('--batch-size', type=int, default=128, metavar='N', help='images per batch (default: 128)')
    add('--workers', type=int, metavar='N', help='loader processes (default: by the number of images, at most 4)')
    add('--cache', metavar='DIR', help='keep embeddings there: a second run reads them, and an interrupted run resumes')
    add('--skip-bad', action='store_true', help='leave out images that cannot be read, and name them')
    add = parser.add_argument_group('Known and unknown classes').add_argument
    add('--known-classes', type=words, metavar='A,B,...',
        help='names in the order of the head; all others are unknown; a name with a comma in double quotes')
    add('--osr-protocol', metavar='NAME', help='a protocol or a YAML file; see train.py --help')
    add('--osr-trial', type=int, metavar='N', help='trial of the protocol (default: 0)')
    add('--osr-family', metavar='NAME', help="publication whose class lists are used (default: the protocol's own)")
    add('--unknown-dataset', metavar='NAME',
        help='data set of the unknown classes, if it is another one (cifar+10, cifar+50)')
    add('--unknown-data-dir', metavar='DIR', help='its folder (default: --data-dir)')


def add_evaluation_flags(parser: argparse.ArgumentParser, folder: str) -> None:
    """Flags of scores, intervals, pixel statistics and output.

    Args:
        parser: Of the command.
        folder: Default name of the output beside the checkpoint.
    """
    add = parser.add_argument_group('Evaluation').add_argument
    add('--scores', type=score_names, nargs='+', action=Names, metavar='NAME[:OPTION=VALUE,...]',
        help='scores, with options as in knn:k=5 ash:variant=b,percentile=65 (default: all of '
             f'{", ".join(EMBEDDING_SCORES)}); on request {", ".join(MODEL_SCORES)}, which runs the model again, and '
             'pytorch-ood:NAME, a detector of that package')
    add('--preset', metavar='NAME',
        help='scores, options and metrics by the conventions of published tables, beside our own figures: '
             f'{", ".join(PRESETS)} (default: none)')
    add('--tune', metavar='SET',
        help="pick options of scores by AUROC of held-out known images against this set of unknown ones, by OpenOOD's "
             'grids; as for `ood --unknown`, apart from the images and classes that are evaluated (default: none)')
    add('--bootstrap', type=int, default=1000, metavar='N',
        help='resamples for the intervals of rank metrics other than AUROC; 0: none (default: 1000)')
    add('--seed', type=int, default=0, metavar='N', help='seed of the resamples (default: 0)')
    add('--trivial-images', type=int, default=500, metavar='N',
        help='images of each set whose brightness, sharpness, ... are compared; 0: none (default: 500)')
    add('--duplicates', type=int, default=1000, metavar='N',
        help='unknown images nearest to a known one by features whose pixels are compared; 0: none (default: 1000)')
    add('--sensitivity', action='store_true',
        help='score again with other settings (neighbours, dimensions, percentiles, ...), to see how much '
             'each score depends on them')
    add('--feature-map', type=int, default=1000, metavar='N',
        help='test images in the figure of the features (PCA, t-SNE); 0: none (default: 1000)')
    add('--no-report', action='store_true',
        help='write results and arrays alone; gradmix-openset report draws figures and report.html from them later')
    add('--output', metavar='DIR', help=f'folder to write to (default: {folder}, beside the checkpoint)')
    add_wide(add)


def add_wide(add: Any) -> None:
    """The flag of all printed tables, with the ``add_argument`` of a parser or group."""
    add('--wide', action='store_true',
        help='print tables as wide as they are, as Markdown (default: within 80 columns, with headings over '
             'several lines, or as several tables)')
