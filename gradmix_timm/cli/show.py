"""Flags of ``python -m gradmix_timm.show``; what it does is in :mod:`.commands.show`."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from .config_file import ParseKwargs
from .errors import ConsoleParser
from .plugins import MODULES_HELP

__all__ = ['build_parser', 'main']


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ConsoleParser(prog='gradmix-show',
                           description='Draw what a mixer does to images, or run the deletion test.')
    parser.add_argument('--checkpoint', metavar='FILE',
                        help='checkpoint of train.py, of timm, or a bare state dict with --model')
    parser.add_argument('--model', metavar='NAME', help="timm's model name (default: the checkpoint's)")
    parser.add_argument('--pretrained', action='store_true', help="timm's weights (with --model)")
    parser.add_argument('--num-classes', type=int, metavar='N',
                        help='width of the classifier (default: that of the checkpoint or model)')
    parser.add_argument('--images', metavar='DIR', required=True, help='a folder of images, or of class folders')
    parser.add_argument('--img-size', type=int, metavar='N',
                        help='image side in pixels (default: that of the checkpoint or model)')
    parser.add_argument('--mixer', metavar='NAME', default=None,
                        help='a registered name or a+b (default: the one of the checkpoint, else gradmix)')
    parser.add_argument('--mixup-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V',
                        help="the mixer's options")
    parser.add_argument('--device-modules', nargs='+', metavar='NAME', help=MODULES_HELP)
    parser.add_argument('--layers', metavar='L[,L]', help='target layers: numbers or names (gradmix)')
    parser.add_argument('--out', metavar='FILE',
                        help='the picture (default: mixes.png); with --deletion a .json for the table (default: none)')
    parser.add_argument('--num', type=int, metavar='N', help='images shown (default: 6)')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='which images and partners (default: 0)')
    parser.add_argument('--device', default='cpu', metavar='NAME', help='cpu, cuda, cuda:1 (default: cpu)')
    parser.add_argument('--deletion', action='store_true',
                        help="instead of a picture: how far the label's log-odds fall when a box covers each place")
    parser.add_argument('--deletion-sides', type=float, nargs='+', default=[0.25, 0.4375, 0.625], metavar='S',
                        help='box sides as shares of the image (default: 0.25 0.4375 0.625)')
    parser.add_argument('--deletion-layers', nargs='+', default=['default', '-1', '-2', '-2,-1'], metavar='L',
                        help="layer sets compared (default: default -1 -2 '-2,-1')")
    parser.add_argument('--deletion-images', type=int, default=500, metavar='N', help='images used (default: 500)')
    parser.add_argument('--shift', type=int, default=0, metavar='PX',
                        help='deletion test: move each image by up to PX pixels, so that objects are not centred')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = build_parser().parse_args(argv)
    from .commands.show import run  # imports PyTorch, which flags need not wait for
    return run(args)
