"""``openset ood``: known test images against whole data sets of unknown ones, one group each, near and far."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gradmix_timm.cli.config_file import words
from gradmix_timm.data import OVERLAPS
from gradmix_timm.data.image_lists import SUITES, find_suite
from gradmix_timm.evaluation.opening import head_names, known_folders, named_split, open_known, with_sets
from gradmix_timm.evaluation.steps import evaluate_images
from gradmix_timm.evaluation.suites import list_order, open_suite
from gradmix_timm.evaluation.unknown import UnknownOptions, open_unknown
from gradmix_timm.evaluation.validation_unknown import open_validation_unknown
from gradmix_timm.openset.reports.report import means_table

from .flags import (
    add_evaluation_flags,
    add_model_flags,
    build_model,
    flag_errors,
    options_of,
    output_folder,
    read_checkpoint,
    settings_of,
)
from .table import print_results, score_bar

__all__ = ['add_ood', 'run_ood']


def add_ood(commands: Any) -> None:
    """Register the sub-command.

    Args:
        commands: Of ``add_subparsers``.
    """
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
        help='folder with its lists (benchmark_imglist) and images (images_classic, images_largescale)')
    add('--full-spectrum', action='store_true',
        help='known images under other conditions (ImageNet-C, -R, -V2, ...) of the suite count as known')
    add('--overlap', choices=OVERLAPS, default='refuse',
        help='what to do where an unknown set has classes of known names (default: refuse)')
    add('--near', type=words, default=[], metavar='A,B,...', help="sets that count as near (default: OpenOOD's table)")
    add('--far', type=words, default=[], metavar='A,B,...', help="sets that count as far (default: OpenOOD's table)")
    add('--codec', metavar='CODEC', help='turn every image through jpeg:QUALITY or png first')
    add('--unknown-codec', metavar='CODEC', help='the same for unknown images alone')
    add('--made-images', type=int, default=1000, metavar='N', help='images of noise:NAME (default: 1000)')
    add('--download', action='store_true', help="fetch torchvision's sets where they are missing")
    add('--reference-top1', type=float, metavar='PERCENT',
        help='closed-set accuracy that the model should have (default: what the checkpoint had on held-out images)')
    add('--no-accuracy-gate', action='store_true', help='continue if the accuracy is below the reference')
    add_evaluation_flags(ood, 'ood')
    ood.set_defaults(run=run_ood)


def run_ood(args: argparse.Namespace) -> int:
    """Open, check the accuracy, evaluate, print the tables, write the files; the report's path comes last."""
    with flag_errors(args):
        _check_suite(args)
        settings, options, unknown = settings_of(args), options_of(args), _unknown_of(args)
        if args.reference_top1 is not None and not 0 <= args.reference_top1 <= 100:
            raise ValueError(f'reference_top1={args.reference_top1:g}: expected percent, from 0 to 100')
        folder = output_folder(args, 'ood')
        loaded = read_checkpoint(args)
        split = named_split(options, loaded.record if loaded is not None else None)
        model = build_model(args, settings, loaded, None if split is None else len(split.known))
        if args.ood_suite:
            suite = find_suite(args.ood_suite)
            known = split.known if split is not None else head_names(model.net, list_order(suite) or tuple(
                map(str, range(suite.classes))), suite.name)
            images = open_suite(suite, args.ood_suite_root, known, model.reading(), args.full_spectrum)
        else:
            names = split.known if split is not None else head_names(
                model.net, known_folders(options, loaded, args.known), args.known or args.data_dir or 'the data')
            images = open_known(options, loaded, names, model.reading(), args.known)
            sets = open_unknown(unknown, images, model.reading(), imagenet=split is None and len(names) == 1000)
            images = with_sets(images.recoded(unknown.known_codec), sets)
        tune = None if args.tune is None else (args.tune, open_validation_unknown(
            args.tune, images, model.reading(), args.unknown_data_dir))
        with score_bar(settings.scores) as on_score:
            evaluation = evaluate_images(
                model, images, gate='off' if args.no_accuracy_gate else 'refuse', reference_top1=args.reference_top1,
                on_score=on_score, tune=tune, command=args.command_line)
    print_results(evaluation.results)
    if evaluation.results['accuracy_gate'] is None:
        print('note: no reference accuracy is known; pass --reference-top1 PERCENT to check it')
    print(f'\nAUROC by data set\n\n{means_table(evaluation.results)}')
    print(evaluation.save(folder, Path(args.checkpoint).parent if args.checkpoint else None))
    return 0


def _check_suite(args: argparse.Namespace) -> None:
    """Apply --ood-suite, which brings all images and defaults to OpenOOD's conventions."""
    if not args.ood_suite:
        for name in ('ood_suite_root', 'full_spectrum'):
            if getattr(args, name):
                raise ValueError(f'{name}= is of a suite; add ood_suite=NAME, or leave it out')
        if not args.unknown:
            raise ValueError('unknown=: name a set of unknown images, as in unknown=folder:NAME=DIR, or ood_suite=NAME')
        return
    find_suite(args.ood_suite)
    if not args.ood_suite_root:
        raise ValueError(f'ood_suite={args.ood_suite} is read from a folder with its lists and images; add '
                         'ood_suite_root=DIR')
    for name in ('known', 'unknown', 'near', 'far', 'codec', 'unknown_codec'):
        if getattr(args, name):
            raise ValueError(f'ood_suite={args.ood_suite} brings its own images; leave out {name}=')
    args.preset = args.preset or 'openood'


def _unknown_of(args: argparse.Namespace) -> UnknownOptions:
    return UnknownOptions(
        sets=tuple(args.unknown), overlap=args.overlap, near=tuple(args.near), far=tuple(args.far), codec=args.codec,
        unknown_codec=args.unknown_codec, made_images=args.made_images, made_seed=args.seed, download=args.download,
        data_dir=args.unknown_data_dir)
