"""Flags of ``python -m gradmix_timm.predict``; what it does is in :mod:`.commands.predict`."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from gradmix_timm.choices import EMBEDDING_SCORES, EXIF_RULES, MODES, ONNX_INPUTS

from .config_file import words
from .errors import ConsoleParser
from .plugins import MODULES_HELP

__all__ = ['build_parser', 'main']


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ConsoleParser(prog='gradmix-predict', description='The class of each image, or "unknown".')
    parser.add_argument('images', nargs='*', metavar='IMAGES', help='image files, and folders of them')
    add = parser.add_argument_group('Classifier').add_argument
    add('--checkpoint', metavar='C', required=True, help='a checkpoint, the folder of a saved classifier, or '
                                                        'hf-hub:ORG/NAME of the Hugging Face Hub')
    add('--score', metavar='NAME', help='score of knownness (default: mls): '
                                        f'{", ".join(EMBEDDING_SCORES)}; or pytorch-ood:NAME')
    add('--known-acceptance', type=float, metavar='P',
        help='accept on average at least this share of new known images (default: 0.95)')
    add('--threshold', type=float, metavar='X',
        help='accept images of at least this knownness, in place of --known-acceptance')
    add('--validation', nargs='+', metavar='PATH', help='images of known classes that took no part in training, to set '
                                                        'the threshold on (default: those the checkpoint held out)')
    add('--known-classes', type=words, metavar='A,B,...',
        help="names in the order of the head (default: the checkpoint's)")
    add('--model', metavar='NAME', help="timm's model name (default: the checkpoint's)")
    add('--img-size', type=int, metavar='N', help="image side in pixels (default: the checkpoint's)")
    add('--input-img-mode', choices=tuple(MODES), metavar='MODE',
        help=f"PIL mode that files are read in: {', '.join(MODES)} (default: the checkpoint's)")
    add('--exif', choices=EXIF_RULES,
        help="orientation that a camera wrote beside the pixels (default: the checkpoint's, else ignore)")
    add('--device', metavar='NAME', help='cpu, cuda, cuda:1 (default: cuda if available)')
    add('--amp', action='store_true', default=None, help='run the model in bfloat16')
    add('--batch-size', type=int, default=64, metavar='N', help='images per batch (default: 64)')
    add('--device-modules', nargs='+', metavar='NAME', help=MODULES_HELP)
    add = parser.add_argument_group('Training images, for the threshold and for scores with a fit').add_argument
    add('--data-dir', '--data', metavar='DIR', help="folder of the data (default: the checkpoint's)")
    add('--dataset', metavar='NAME', help="timm's data set name, or sklearn/digits (default: the checkpoint's)")
    add('--train-split', metavar='NAME', help="split with the training images (default: the checkpoint's)")
    add('--class-map', metavar='FILE', help='file of class names in label order, as in training')
    add('--workers', type=int, metavar='N', help='processes that read training images (default: 0)')
    add = parser.add_argument_group('Output').add_argument
    add('--json', action='store_true', help='print JSON, for programs, in place of the table')
    add('--save', metavar='DIR', help='keep the classifier; --checkpoint DIR takes it')
    add('--onnx', metavar='FILE', help='export the classifier as one ONNX graph, and its model card, FILE.md')
    add('--onnx-input', choices=ONNX_INPUTS, metavar='KIND',
        help='what the graph reads: tensor, prepared pixels; image, uint8 [H, W, 3] of any size (default: tensor)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = build_parser().parse_args(argv)
    from .commands.predict import run  # imports PyTorch, which flags need not wait for
    return run(args)
