"""The command line of training: timm's flags and ours over a YAML file, with contradictions refused."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import yaml
from timm.utils import ParseKwargs

from gradmix_timm.cli.config_file import layer, read_config, words
from gradmix_timm.cli.errors import ConsoleParser, one_line
from gradmix_timm.cli.plugins import import_modules
from gradmix_timm.mixers import OPTIONS, TIMM_MODES, list_mixers

from .aug_flags import AUGMENTATION
from .flag_checks import VAL_FRACTION, check_args
from .objectives import OBJECTIVE
from .timm_flags import TAKES_EMPTY, Flag, add_flags, add_timm_flags, flag
from .tracking import TRACKING

__all__ = ['build_config_parser', 'build_parser', 'parse_args']

_MIXING = (
    flag('--mixup-prob-elem', type=float, default=1.0, metavar='P',
         text='probability that an image of a mixed batch is mixed; registered mixers only'),
    flag('--mixup-model', type=str, choices=('live', 'ema'), default='live',
         text='where a mixer reads its maps: the model in training, or its running average (--model-ema)'),
    flag('--multi-label-mix', type=str, choices=('weight', 'union'),
         text='labels of --task multilabel under a registered mixer: by weight, or every label that is still seen'),
    flag('--unknown-output', action='store_true', default=False,
         text='one more output of the head, for what a mixer gives to no class (openmix, or label open of gradmix, its '
              'controls and cutmix) in place of a uniform target; hidden from the known classes'),
    flag('--mixup-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V',
         text='options of any mixer; with two joined by + each key names its mixer: gradmix.alpha=0.5'),
)

_OPEN_SET = (
    flag('--known-classes', type=words, metavar='A,B,...',
         text='train on these classes alone, in this order; all others are unknown'),
    flag('--osr-protocol', type=str, metavar='NAME',
         text='class split: digits, mnist, svhn, cifar10, cifar+10, cifar+50, tinyimagenet, cub, aircraft, cars, '
              'imagenet or a YAML file'),
    flag('--osr-trial', type=int, default=0, metavar='N', text='trial of the protocol (default: 0)'),
    flag('--osr-family', type=str, metavar='NAME', text="whose trials: arpl2020, neal2018_cac, ... (default: the "
                                                        "protocol's own)"),
    flag('--osr-val-fraction', type=float, default=VAL_FRACTION, metavar='P',
         text='share of the known train images, by class, that is the validation set in place of --val-split'),
    flag('--osr-test-split', type=str, metavar='NAME',
         text='split that the evaluation will read; training never opens it (default: --val-split, else test)'),
)

_RUN = (
    flag('--overwrite', action='store_true', default=False,
         text='replace an existing run of that --experiment'),
    flag('--skip-nonfinite', action='store_true', default=False,
         text='drop an update whose loss is infinite or not a number, on all processes, instead of stopping'),
)


def build_config_parser() -> argparse.ArgumentParser:
    """The parser of --config alone, which is read before the others."""
    parser = ConsoleParser(description='Training configuration', add_help=False)
    parser.add_argument('-c', '--config', default='', type=str, metavar='FILE',
                        help='YAML file of flags; the command line goes over it, `base: FILE` inside names one below')
    return parser


def build_parser() -> argparse.ArgumentParser:
    """Every flag of timm's script and ours."""
    parser = ConsoleParser(
        description="timm's training with any registered mixer.",
        takes_empty=TAKES_EMPTY)
    # Shown here; the parser of --config has taken it before this one looks.
    parser.add_argument('-c', '--config', dest='help', default=argparse.SUPPRESS, metavar='FILE',
                        help='YAML file of flags; the command line goes over it')
    add_timm_flags(parser)
    group = parser.add_argument_group(
        'Mixers', "--mixup-mode takes timm's modes, a registered mixer, which switches mixing on by itself, or two "
                  f'joined by +. Registered: {", ".join(name for name in list_mixers() if name not in TIMM_MODES)}')
    add_flags(group, _MIXING)
    group = parser.add_argument_group('GradMix', 'options of --mixup-mode gradmix, random-box and center-box')
    add_flags(group, tuple(_gradmix_flag(name) for name in OPTIONS))
    add_flags(parser.add_argument_group('Image transforms'), AUGMENTATION)
    add_flags(parser.add_argument_group('Open set recognition'), _OPEN_SET)
    add_flags(parser.add_argument_group('Objective'), OBJECTIVE)
    add_flags(parser.add_argument_group('Run'), _RUN + TRACKING)
    return parser


def _gradmix_flag(name: str) -> Flag:
    """--gradmix-NAME; unset means the recipe's value, so that explicit options override a recipe."""
    option = OPTIONS[name]
    default, choices = option.default, option.metadata['choices']
    shown = ' '.join(map(str, default)) if isinstance(default, tuple) else default
    text = option.metadata['help'] + ('' if default is None else f' (default: {shown})')
    option_string = f'--gradmix-{name.replace("_", "-")}'
    if isinstance(default, bool):
        return flag(option_string, text=text, action=argparse.BooleanOptionalAction)
    if name == 'layers':
        return flag(option_string, text=text, type=layer, nargs='+', metavar='LAYER')
    if isinstance(default, tuple):
        return flag(option_string, text=text, type=float, nargs=len(default), metavar='X')
    kind = type(default) if isinstance(default, int | float) else str
    return flag(option_string, text=text, type=kind, choices=choices)


class _NotGiven:
    """Marks a flag in a namespace that the command line does not give."""


def parse_args(config_parser: argparse.ArgumentParser, parser: argparse.ArgumentParser,
               argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, str]:
    """Defaults, under the YAML file, under the command line; checked, older spellings folded.

    Args:
        config_parser: Takes ``--config``.
        parser: Takes the rest.
        argv: Arguments without the program's name; None: those of the process.

    Returns:
        The namespace, and the same as YAML text that, given to ``--config``, reruns the job.

    Raises:
        SystemExit: With status 2 after any error; one ``error:`` line is printed.
    """
    config, remaining = config_parser.parse_known_args(argv)
    given = _given(parser, remaining)
    values: dict[str, Any] = {}
    if config.config:
        try:
            values = read_config(config.config, parser)
        except (ValueError, OSError) as error:
            parser.error(_config_error(config.config, error))
    args = argparse.Namespace(**{**vars(parser.parse_args([])), **values, **given})
    if 'data' in given:
        if given.get('data_dir') not in (None, args.data):
            parser.error(f'DIR {args.data} with --data-dir {args.data_dir}: two data folders; leave one out')
        args.data_dir = args.data  # over that of the YAML file
    try:
        import_modules(args.device_modules)
        check_args(args, {*values, *given})
    except (ValueError, TypeError, OSError) as error:
        parser.error(one_line(error))
    # Without --overwrite: running the saved flags again must not remove their own run.
    return args, yaml.safe_dump({**vars(args), 'overwrite': False}, default_flow_style=False)


def _given(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """The flags given on the command line, without defaults."""
    actions = [action for action in parser._actions if action.dest != 'help']
    not_given = _NotGiven()
    namespace = argparse.Namespace(**{action.dest: not_given for action in actions})
    found = {name: value for name, value in vars(parser.parse_args(argv, namespace)).items() if value is not not_given}
    # argparse stores the default of an optional positional even if it is not given.
    absent = [action.dest for action in actions if not action.option_strings and found.get(action.dest) is None]
    return {name: value for name, value in found.items() if name not in absent}


def _config_error(path: str, error: ValueError | OSError) -> str:
    if isinstance(error, OSError):
        return f'{error.filename or path}: {error.strerror}; --config takes a YAML file of flags'
    return str(error)
