"""``openset ood``: known test images against whole data sets of unknown ones, one group each, near and far."""
from __future__ import annotations

import argparse
from pathlib import Path

from gradmix_timm.data.image_lists import SUITES
from gradmix_timm.evaluation.accuracy import check_gate
from gradmix_timm.evaluation.opening import head_names, known_folders, named_split, open_known, with_sets
from gradmix_timm.evaluation.steps import evaluate_images
from gradmix_timm.evaluation.suites import list_order, open_suite
from gradmix_timm.evaluation.unknown import UnknownOptions, open_unknown
from gradmix_timm.evaluation.validation_unknown import open_validation_unknown
from gradmix_timm.openset.reports.report import means_table

from .from_flags import (
    build_model,
    flag_errors,
    options_of,
    output_folder,
    read_checkpoint,
    settings_of,
)
from .table import print_results, score_bar, table_width

__all__ = ['run_ood', 'unknown_options']


def run_ood(args: argparse.Namespace) -> int:
    """Open, check the accuracy, evaluate, print the tables, write the files; the report's path comes last."""
    with flag_errors(args):
        unknown = unknown_options(args)
        settings, options = settings_of(args), options_of(args)
        check_gate('refuse', args.reference_top1)
        folder = output_folder(args, 'ood')
        loaded = read_checkpoint(args)
        split = named_split(options, loaded.record if loaded is not None else None)
        model = build_model(args, settings, loaded, None if split is None else len(split.known))
        if args.ood_suite:
            suite = SUITES[args.ood_suite]
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
    width = table_width(args)
    print_results(evaluation.results, width)
    if evaluation.results['accuracy_gate'] is None:
        print('note: no reference accuracy is known; pass --reference-top1 PERCENT to check it')
    print(f'\nAUROC by data set\n\n{means_table(evaluation.results, width=width)}')
    print(evaluation.save(folder, Path(args.checkpoint).parent if args.checkpoint else None, report=not args.no_report))
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
    suite = SUITES[args.ood_suite]
    if not args.ood_suite_root:
        raise ValueError(f'ood_suite={suite.name} is read from a folder with its lists and images; add '
                         'ood_suite_root=DIR')
    for name in ('known', 'unknown', 'near', 'far', 'codec', 'unknown_codec'):
        if getattr(args, name):
            raise ValueError(f'ood_suite={args.ood_suite} brings its own images; leave out {name}=')
    args.preset = args.preset or 'openood'


def unknown_options(args: argparse.Namespace) -> UnknownOptions:
    """The sets of unknown images that the flags give, none beside a suite, which sets the preset."""
    _check_suite(args)
    return UnknownOptions(
        sets=tuple(args.unknown), overlap=args.overlap, near=tuple(args.near), far=tuple(args.far), codec=args.codec,
        unknown_codec=args.unknown_codec, made_images=args.made_images, made_seed=args.seed, download=args.download,
        data_dir=args.unknown_data_dir)
