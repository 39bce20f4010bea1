"""The parser of ``python -m gradmix_timm.openset``, one for all sub-commands; it imports nothing that evaluates."""
from __future__ import annotations

import argparse
from typing import Any

from gradmix_timm.choices import (
    ATTRIBUTIONS,
    FAMILIES,
    OVERLAPS,
    PROBES,
    SCALES,
    SEVERITIES,
    SHORTCUT_IMAGES,
    SMALL,
    SUITES,
)
from gradmix_timm.cli.config_file import words
from gradmix_timm.cli.errors import ConsoleParser

from .flags import Names, add_evaluation_flags, add_model_flags, add_wide, score_names

__all__ = ['build_parser']


def build_parser() -> argparse.ArgumentParser:
    """The command's parser with a parser for each sub-command."""
    parser = ConsoleParser(prog='gradmix-openset',
                           description='Evaluate how well a model separates known from unknown classes.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND', parser_class=ConsoleParser)
    for add in (_add_osr, _add_ood, _add_corrupt, _add_probe, _add_shortcut, _add_compare, _add_report):
        add(commands)
    return parser


def _add_report(commands: Any) -> None:
    report = commands.add_parser('report', help='figures and pages again, from the files of evaluations',
                                 description='Draw figures and page again from results.json and arrays.npz.')
    report.add_argument('folders', nargs='+', metavar='DIR',
                        help='folders that `osr`, `ood`, `corrupt`, `probe` or `shortcut` wrote, run folders, or '
                             'folders above')
    report.add_argument('--output', metavar='DIR', help='write there, files and all (default: where the files are)')


def _add_osr(commands: Any) -> None:
    osr = commands.add_parser('osr', help='known and unknown classes of one data set, by protocol',
                              description='Evaluate a checkpoint on the known and unknown classes of its protocol.')
    add_model_flags(osr)
    add_evaluation_flags(osr, 'osr')


def _add_ood(commands: Any) -> None:
    ood = commands.add_parser(
        'ood', help='known test images against other data sets, noise and textures',
        description='Evaluate a model on its known test images and on data sets of unknown ones.')
    add_model_flags(ood)
    add = ood.add_argument_group('Known and unknown images').add_argument
    add('--known', metavar='DIR', help="known test images by class, a folder or .tar (default: the checkpoint's data)")
    add('--unknown', nargs='+', action='extend', default=[], metavar='SET',
        help='folder:NAME=DIR (or a .tar), torchvision:svhn, timm:NAME=DIR, noise:uniform, noise:blobs, ...')
    add('--ood-suite', metavar='NAME',
        help=f"a benchmark of OpenOOD by its own image lists, in place of --known and --unknown: {', '.join(SUITES)}; "
             'with --preset openood where no other is named')
    add('--ood-suite-root', metavar='DIR',
        help='folder with the lists (benchmark_imglist) and images (images_classic, images_largescale) of --ood-suite')
    add('--full-spectrum', action='store_true',
        help='known images under other conditions (ImageNet-C, -R, -V2, ...) of the suite count as known')
    add('--overlap', choices=OVERLAPS, default='refuse',
        help='what to do if an unknown set has a class with the name of a known one (default: refuse)')
    add('--near', type=words, default=[], metavar='A,B,...', help="sets that count as near (default: OpenOOD's table)")
    add('--far', type=words, default=[], metavar='A,B,...', help="sets that count as far (default: OpenOOD's table)")
    add('--codec', metavar='CODEC', help='encode and decode every image as jpeg:QUALITY or png first')
    add('--unknown-codec', metavar='CODEC', help='the same for unknown images alone')
    add('--made-images', type=int, default=1000, metavar='N', help='number of images of noise:NAME (default: 1000)')
    add('--download', action='store_true', help="download torchvision's data sets that are missing")
    add('--reference-top1', type=float, metavar='PERCENT',
        help='closed-set accuracy that the model should have (default: what the checkpoint had on held-out images)')
    add('--no-accuracy-gate', action='store_true', help='continue if the accuracy is below the reference')
    add_evaluation_flags(ood, 'ood')


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        'compare', help='groups of runs against each other, from results.json files',
        description='Means of groups of runs and paired differences with intervals, from what `osr` wrote.')
    compare.add_argument('runs', nargs='+', metavar='RUN',
                         help='run folders, folders of evaluations, studies, or folders above; files of the figures '
                              'of one run each, as in benchmarks/results')
    add = compare.add_argument
    add('--paired', action='store_true', help='differences between runs of the same trial and seed')
    add('--base', metavar='GROUP', help='group that the others are compared with (default: none if there is such a '
                                        'group, else the last)')
    add('--by', type=words, default=['mixer'], metavar='A,B,...',
        help='what makes a group: mixer, model, objective, folder, options of the mixer (confidence), or axes of a '
             'study (default: mixer)')
    add('--common', action='store_true',
        help='with --paired: leave out runs without a partner instead of refusing them')
    add('--scores', type=score_names, metavar='A,B,...', help='scores to compare (default: all that every run has)')
    add('--metrics', type=words, default=['auroc', 'oscr'], metavar='A,B,...',
        help='metrics that are printed and get verdicts, corrected for their number; the files hold all (default: '
             'auroc,oscr)')
    add('--part', metavar='NAME',
        help='compare on a part of the unknown images: easy, hard+medium, a data set of `ood` (default: all of them)')
    add('--level', type=float, default=0.95, metavar='P', help='coverage of the intervals (default: 0.95)')
    add_wide(add)
    add('--output', default='output/compare', metavar='DIR', help='folder to write to (default: output/compare)')


def _add_corrupt(commands: Any) -> None:
    corrupt = commands.add_parser(
        'corrupt', help='errors and open-set scores under 15 corruptions at 5 severities',
        description='Evaluate a checkpoint on corrupted images, generated on the fly or read from the official files.')
    add_model_flags(corrupt)
    add = corrupt.add_argument_group('Corruption').add_argument
    add('--official', metavar='DIR', help='files of CIFAR-10-C, CIFAR-100-C, Tiny-ImageNet-C or ImageNet-C in place of '
                                          'generated images; the clean test set is needed as well')
    add('--corruptions', type=words, metavar='A,B,...', help=f'names, or {", ".join(FAMILIES)} (default: the 15)')
    add('--severities', type=_severities, default=SEVERITIES, metavar='1,3,5',
        help='strengths of the corruptions (default: 1,2,3,4,5)')
    add('--scale', choices=tuple(SCALES),
        help='benchmark whose constants generated images have (default: by their side)')
    add('--corrupt-at', choices=('stored', 'input'),
        help=f"corrupt images as stored, or cut to the model's input (default: stored up to {SMALL} pixels)")
    add('--baseline', metavar='FILE', help='results.json of another model on the same images, or alexnet (for '
                                           'ImageNet-C): adds mCE and relative mCE')
    add('--images', type=int, metavar='N', help='at most N known and N unknown images, evenly chosen (default: all)')
    add = corrupt.add_argument_group('Evaluation').add_argument
    add('--scores', type=score_names, nargs='+', action=Names, default=['msp', 'mls'],
        metavar='NAME[:OPTION=VALUE,...]',
        help='scores that need no training images (default: msp,mls)')
    _add_resampling(add, 'corrupt', 'generated images and resamples')


def _add_probe(commands: Any) -> None:
    probe = commands.add_parser(
        'probe', help='linear, nearest-neighbour and few-shot probes of frozen features',
        description='Fit probes on frozen features of training images; evaluate them once on the test images.')
    add_model_flags(probe)
    add = probe.add_argument_group('Probes').add_argument
    add('--probes', type=words, default=list(PROBES), metavar='A,B,...',
        help='kinds of probes (default: linear,knn,few-shot)')
    add('--shots', type=words, default=['1', '5', '10'], metavar='1,5,10',
        help='training images per class of few-shot (default: 1,5,10)')
    add('--draws', type=int, default=10, metavar='N', help='few-shot draws of each size (default: 10)')
    add('--knn-k', type=int, metavar='N', help='neighbours of knn (default: 20; 200 from half a million images on)')
    add('--held-out', type=float, default=0.2, metavar='SHARE',
        help='share of the training images to choose the penalty on, if the checkpoint held none out (default: 0.2)')
    _add_resampling(add, 'probe', 'held-out images, draws and resamples', 1000)


def _add_shortcut(commands: Any) -> None:
    shortcut = commands.add_parser(
        'shortcut', help='accuracy and open-set scores with a shortcut present, absent and conflicting',
        description='Evaluate a checkpoint trained with --dataset shortcut:NAME on test images with the mark of '
                    'their class, without a mark and with the mark of another class; measure how much of the evidence '
                    'lies on the mark.')
    add_model_flags(shortcut)
    add = shortcut.add_argument_group('Evidence').add_argument
    add('--attribution', default='layercam', metavar='NAME', help=f'method of the map: {", ".join(ATTRIBUTIONS)} '
                                                                  '(default: layercam)')
    add('--layers', nargs='+', metavar='LAYER', help='where the map is made: module names or numbers, as of '
                                                     "--gradmix-layers (default: by the map's size)")
    add('--images', type=int, default=SHORTCUT_IMAGES, metavar='N',
        help=f'known images that maps are made of, at most (default: {SHORTCUT_IMAGES})')
    add = shortcut.add_argument_group('Evaluation').add_argument
    add('--scores', type=score_names, nargs='+', action=Names, default=['msp', 'mls'],
        metavar='NAME[:OPTION=VALUE,...]', help='scores (default: msp,mls)')
    _add_resampling(add, 'shortcut', 'resamples and random places')


def _add_resampling(add: Any, command: str, drawn: str, draws: int = 0) -> None:
    """Intervals, the seed of what is drawn, and the folder of an evaluation beside its checkpoint."""
    intervals = 'the intervals' if draws else 'the intervals of metrics other than AUROC'
    add('--bootstrap', type=int, default=draws, metavar='N',
        help=f'resamples for {intervals} (default: {draws}{"" if draws else ", none"})')
    add('--seed', type=int, default=0, metavar='N', help=f'seed of {drawn} (default: 0)')
    add('--output', metavar='DIR', help=f'folder to write to (default: {command}, beside the checkpoint)')
    add_wide(add)


def _severities(text: str) -> tuple[int, ...]:
    parts = words(text)
    if not parts or any(part not in ('1', '2', '3', '4', '5') for part in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f'severities run from 1 to 5, each named once, as in 1,3,5; got {text!r}')
    return tuple(sorted(map(int, parts)))
