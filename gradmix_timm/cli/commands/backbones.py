"""The table of a model's target layers: number, name, grid, layout, cost; the default marked."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import timm
from timm.data import resolve_input_data_config
from timm.models import resolve_model_input_args
from torch import nn

from gradmix_timm.attribution import TargetLayer, default_layer, usable_layers
from gradmix_timm.attribution.cost import cost_shares
from gradmix_timm.cli.errors import UsageError, user_errors
from gradmix_timm.models import check_name
from gradmix_timm.openset.reports.tables import columns_of, padded

__all__ = ['run']

_COLUMNS = ('', '#', 'layer', 'grid', 'layout', 'prefix', 'p')
# Models without a classifier of their own (self-supervised ones) get one of ImageNet's width.
_NUM_CLASSES = 1000


def run(args: argparse.Namespace) -> int:
    """Print the table.

    Raises:
        UsageError: No such model, or one that has no map or refuses the size; what to type is in the message.
    """
    with user_errors(RuntimeError, AssertionError):
        model, input_size = _build(args)
    with user_errors():
        layers = usable_layers(model, input_size)
        shares = cost_shares(model, layers, input_size)
    size = 'x'.join(map(str, input_size))
    print(f'{args.model} on {size} (C x H x W), usable layers: {len(layers)}, * is the default')
    print(_table(layers, shares))
    return 0


def _build(args: argparse.Namespace) -> tuple[nn.Module, tuple[int, int, int]]:
    """The untrained model as training would build it, and the size of its images."""
    for flag in ('img_size', 'in_chans', 'num_classes'):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise UsageError(f'--{flag.replace("_", "-")} is at least 1, got {value}')
    check_name(args.model)
    wanted = {name: getattr(args, name) for name in ('in_chans', 'img_size', 'input_size')}
    resolved = resolve_model_input_args(args.model, wanted, **{'num_classes': args.num_classes, **args.model_kwargs})
    if not resolved.get('num_classes'):
        resolved['num_classes'] = resolved['pretrained_cfg'].get('num_classes') or _NUM_CLASSES
    model = timm.create_model(**resolved)
    return model, _input_size(args, model, resolved)


def _input_size(args: argparse.Namespace, model: nn.Module, resolved: dict[str, Any]) -> tuple[int, int, int]:
    channels, *size = resolve_input_data_config(model, vars(args))['input_size']
    if args.img_size is None and args.input_size is None and 'img_size' in resolved:
        size = resolved['img_size']
        size = [size, size] if isinstance(size, int) else size
    return resolved.get('in_chans', channels), size[0], size[1]


def _table(layers: Sequence[TargetLayer], shares: Sequence[float]) -> str:
    """Columns as wide as their widest cell, names to the left, numbers to the right."""
    default = default_layer(layers)
    rows = [_COLUMNS] + [
        ('*' if layer is default else '', str(layer.number), str(layer), 'x'.join(map(str, layer.grid)), layer.layout,
         str(layer.prefix), f'{share:.3f}') for layer, share in zip(layers, shares, strict=True)]
    widths = [max(columns_of(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    left = (0, 2, 4)
    return '\n'.join('  '.join(padded(cell, width, right=column not in left)
                               for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
                     for row in rows)
