"""The command line of training: timm's flags and ours over a YAML file, with contradictions refused."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import yaml

from gradmix_timm.choices import MIXERS, TIMM_MODES
from gradmix_timm.cli.config_file import read_config
from gradmix_timm.cli.errors import ConsoleParser, one_line
from gradmix_timm.cli.plugins import import_modules
from gradmix_timm.cli.recipes import ListRecipes, find_recipe

from .own_flags import AUGMENTATION, GRADMIX, MIXING, OBJECTIVE, OPEN_SET, RUN
from .timm_flags import TAKES_EMPTY, add_flags, add_timm_flags

__all__ = ['build_config_parser', 'build_parser', 'parse_args']


def build_config_parser() -> argparse.ArgumentParser:
    """The parser of --config alone, which is read before the others."""
    parser = ConsoleParser(description='Training configuration', add_help=False)
    parser.add_argument('-c', '--config', default='', type=str, metavar='FILE',
                        help='YAML file of flags, or the name of a recipe; `base: FILE` inside names one below')
    return parser


def build_parser() -> argparse.ArgumentParser:
    """Every flag of timm's script and ours."""
    parser = ConsoleParser(
        description="timm's training with any registered mixer.",
        takes_empty=TAKES_EMPTY)
    # Shown here; the parser of --config has taken it before this one looks.
    parser.add_argument('-c', '--config', dest='help', default=argparse.SUPPRESS, metavar='FILE',
                        help='YAML file of flags, or the name of a recipe; the command line goes over it')
    parser.add_argument('--list-recipes', action=ListRecipes, dest='help', default=argparse.SUPPRESS, nargs=0,
                        help='list the recipes and exit')
    add_timm_flags(parser)
    group = parser.add_argument_group(
        'Mixers', "--mixup-mode takes timm's modes, a registered mixer, which switches mixing on by itself, or two "
                  f'joined by +. Registered: {", ".join(name for name in MIXERS if name not in TIMM_MODES)}')
    add_flags(group, MIXING)
    group = parser.add_argument_group('GradMix', 'options of --mixup-mode gradmix, random-box and center-box')
    add_flags(group, GRADMIX)
    add_flags(parser.add_argument_group('Image transforms'), AUGMENTATION)
    add_flags(parser.add_argument_group('Open set recognition'), OPEN_SET)
    add_flags(parser.add_argument_group('Objective'), OBJECTIVE)
    add_flags(parser.add_argument_group('Run'), RUN)
    return parser


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
            values = read_config(find_recipe(config.config), parser)
        except (ValueError, OSError) as error:
            parser.error(_config_error(config.config, error))
    args = argparse.Namespace(**{**vars(parser.parse_args([])), **values, **given})
    if 'data' in given:
        if given.get('data_dir') not in (None, args.data):
            parser.error(f'DIR {args.data} with --data-dir {args.data_dir}: two data folders; leave one out')
        args.data_dir = args.data  # over that of the YAML file
    from .flag_checks import check_args  # of values, by timm's own rules: it imports PyTorch
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
