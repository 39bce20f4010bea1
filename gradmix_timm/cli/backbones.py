"""Flags of ``python -m gradmix_timm.backbones``; what it does is in :mod:`.commands.backbones`."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from .config_file import ParseKwargs
from .errors import ConsoleParser

__all__ = ['build_parser', 'main']


def build_parser() -> argparse.ArgumentParser:
    """The command's flags, named as in training."""
    parser = ConsoleParser(
        prog='gradmix-backbones',
        description='Layers of a timm model where an attribution map can be taken, in forward order. # or the name is '
                    'what --gradmix-layers takes; * is its default; p is the share of the forward pass behind the '
                    'layer: a map costs 1 + p forward passes, a plain training step about 3.')
    parser.add_argument('model', metavar='MODEL', help='a name of timm.list_models()')
    parser.add_argument('--img-size', type=int, metavar='N', help="side of the images (default: the model's own)")
    parser.add_argument('--input-size', type=int, nargs=3, metavar='N', help='channels, height and width')
    parser.add_argument('--in-chans', type=int, metavar='N', help="channels of the images (default: the model's own)")
    parser.add_argument('--num-classes', type=int, metavar='N', help="classes (default: the model's own)")
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V',
                        help="arguments of the model's constructor, as in training")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = build_parser().parse_args(argv)
    from .commands.backbones import run  # imports PyTorch, which flags need not wait for
    return run(args)
