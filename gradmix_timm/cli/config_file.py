"""Read YAML files of flags, merged with their base file and converted as on the command line."""
from __future__ import annotations

import argparse
import ast
import csv
import difflib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradmix_timm.schema import naming, read_yaml, shown

__all__ = ['ParseKwargs', 'layer', 'read_config', 'words']

_logger = logging.getLogger('train')
# Former flags of timm's script, and their replacements.
_FORMER = {
    'alpha_kd': 'task_loss_weight', 'amp_impl': 'amp', 'aot_autograd': 'torchcompile', 'apex_amp': 'amp',
    'bn_tf': 'bn_momentum, bn_eps', 'dynamo': 'torchcompile', 'dynamo_backend': 'torchcompile',
    'initial_batch_size': 'batch_size', 'iters_to_accum': 'grad_accum_steps', 'jsd': 'jsd_loss',
    'milestones': 'decay_milestones', 'mixup_elem': 'mixup_mode', 'native_amp': 'amp', 'num_gpu': '',
    'reduce_bn': 'dist_bn', 'repp': '', 'use_kd_only_loss': 'task_loss_weight', 'use_wandb': 'log_wandb',
    'validation_batch_size_multiplier': 'validation_batch_size', 'wandb_project_name': 'wandb_project'}


def words(text: str) -> list[str]:
    """'a, b' as ['a', 'b']: the type of flags that take a list in one word (in YAML also a list).

    A name with a comma is put in double quotes, as in a CSV file.

    Raises:
        argparse.ArgumentTypeError: One of the words is empty, or a quote is not closed.

    Example:
        >>> words('cat, "dog, wild"')
        ['cat', 'dog, wild']
    """
    parts = str(text).split(',')
    if '"' in str(text):
        try:
            parts = next(csv.reader([str(text)], skipinitialspace=True, strict=True))
        except csv.Error as error:
            raise argparse.ArgumentTypeError(f'{text!r}: {error}; expected A,B,..., a name with a comma in double '
                                             'quotes') from error
    found = [word.strip() for word in parts]
    if not all(found):
        raise argparse.ArgumentTypeError(f'{text!r} has an empty word (an unset variable?); expected A,B,...')
    return found


class ParseKwargs(argparse.Action):
    """``KEY=VALUE KEY=VALUE`` as a dict, values as Python literals where they are ones; timm's, without its import."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,  # noqa: D102
                 option_string: str | None = None) -> None:
        found = {}
        for pair in values:
            key, equals, value = pair.partition('=')
            if not equals:
                parser.error(f'{option_string} takes pairs KEY=VALUE, with blanks between them and none round the =; '
                             f'got {pair}')
            try:
                found[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                found[key] = value
        setattr(namespace, self.dest, found)


def layer(text: str) -> int | str:
    """Parse a layer; whether a word such as '1' names a module is decided when the model is known.

    Example:
        >>> layer('-1'), layer('1'), layer('blocks.10')
        (-1, '1', 'blocks.10')
    """
    return int(text) if re.fullmatch(r'-\d+', str(text)) else text


def read_config(path: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Values of flags from a YAML file, keyed as the parsed namespace.

    The key ``base`` names another file (relative to this one) whose values this one builds on, one level deep. Flags
    that timm's script once had, as an older ``args.yaml`` lists them, are left out with one warning.

    Args:
        path: The file: a flat mapping, keys as the flags, with dashes or underscores.
        parser: Its flags, types and choices decide what a value may be.

    Raises:
        ValueError: Not a mapping, an unknown key (the message names the nearest flag), or a value that the flag would
            not take.
        OSError: The file cannot be read.
    """
    given = _load(path)
    base = given.pop('base', None)
    if base is None:
        return _convert_all(given, parser, path)
    if not isinstance(base, str):
        raise ValueError(f'{path}: base: expected the name of a YAML file, got {shown(base)}')
    base_path = str(Path(path).parent / base)
    try:
        with naming(f'{path}: base'):
            under = _load(base_path)
    except OSError as error:
        raise ValueError(f'{path}: base: {shown(base)} cannot be read ({error.strerror})') from error
    if 'base' in under:
        raise ValueError(f'{base_path}: base goes one level deep, and this file, the base of {path}, names another; '
                         'put the keys of both into one')
    return {**_convert_all(under, parser, base_path), **_convert_all(given, parser, path)}


def _load(path: str) -> dict[str, Any]:
    values = read_yaml(path)
    if not isinstance(values, Mapping):
        kind = 'nothing' if values is None else f'a {type(values).__name__}'
        raise ValueError(f'{path}: expected a mapping of flags to values (lr: 0.1), got {kind}')
    keys = [str(key).replace('-', '_') for key in values]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f'{path}: {twice} is there twice, with dashes and with underscores; leave one out')
    return dict(zip(keys, values.values(), strict=True))


def _convert_all(values: dict[str, Any], parser: argparse.ArgumentParser, path: str) -> dict[str, Any]:
    actions = {action.dest: action for action in parser._actions if action.dest != 'help'}
    former = [key for key in values if key in _FORMER and key not in actions]
    if former:
        named = ', '.join(f'{key} (now {_FORMER[key]})' if _FORMER[key] else key for key in former)
        _logger.warning(f"{path}: ignored, as timm's script has these flags no more: {named}")
    converted = {}
    for key, value in values.items():
        if key in former:
            continue
        if key not in actions:
            close = difflib.get_close_matches(key, (*actions, *_FORMER), n=1, cutoff=0.8)
            if close:  # misspelt; other keys are ignored as by timm's script
                raise ValueError(f'{path}: no flag is called {shown(key)} (did you mean {close[0]}?)')
            _logger.warning(f'{path}: {shown(key)} is ignored: there is no such flag')
            continue
        try:
            converted[key] = _convert(actions[key], value)
        except ValueError as error:
            raise ValueError(f'{path}: {key}: {error}') from error
    return converted


def _convert(action: argparse.Action, value: Any) -> Any:
    """The value as the command line would give it; ValueError with the expected form."""
    if value is None:
        return _unset(action)
    if isinstance(action, ParseKwargs):
        if not isinstance(value, Mapping):
            raise ValueError(f'expected a mapping (k: v), got {shown(value)}')
        return dict(value)
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f'expected true or false, got {shown(value)}')
        return value
    if action.nargs == '?' and value in (True, False):
        return action.const if value else action.default
    if action.nargs in (None, '?'):
        if action.type is words and isinstance(value, list):
            return [str(_scalar(None, item)) for item in value]
        return _chosen(action, _scalar(action.type, value))
    if not isinstance(value, list | tuple) or (isinstance(action.nargs, int) and len(value) != action.nargs):
        count = action.nargs if isinstance(action.nargs, int) else 'one or more'
        raise ValueError(f'expected a list of {count} values ([a, b]), got {shown(value)}')
    return [_chosen(action, _scalar(action.type, item)) for item in value]


def _unset(action: argparse.Action) -> Any:
    """The value of `null`: the flag's default, or off for flags whose value switches something on."""
    if not action.default or action.dest in ('color_jitter', 'decay_epochs'):
        return None if action.dest in ('color_jitter', 'decay_epochs') else action.default
    if action.type in (str, None) and action.nargs in (None, '?') and action.choices is None:
        return ''
    raise ValueError('expected a value, got null; leave the key out for the default')


def _scalar(kind: Any, value: Any) -> Any:
    if isinstance(value, bool | list | tuple | Mapping):
        raise ValueError(f'expected {_kind_name(kind)}, got {shown(value)}')
    try:
        # YAML 1.1 reads 3e-4 as a string; through str it becomes what the same word on the command line does.
        return kind(str(value)) if kind is not None else str(value)
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None
    except ValueError:
        raise ValueError(f'expected {_kind_name(kind)}, got {shown(value)}') from None


def _kind_name(kind: Any) -> str:
    return {int: 'a whole number', float: 'a number'}.get(kind, 'a word')


def _chosen(action: argparse.Action, value: Any) -> Any:
    if action.choices is not None and value not in action.choices:
        raise ValueError(f'expected one of {", ".join(map(str, action.choices))}, got {shown(value)}')
    return value
