"""``openset osr``: known and unknown classes of one data set, by protocol."""
from __future__ import annotations

import argparse
from pathlib import Path

from gradmix_timm.evaluation.opening import open_split, plan_split
from gradmix_timm.evaluation.steps import evaluate_images
from gradmix_timm.evaluation.validation_unknown import open_validation_unknown
from gradmix_timm.openset.reports.report import means_table
from gradmix_timm.openset.results import RankMetric

from .from_flags import (
    build_model,
    flag_errors,
    options_of,
    output_folder,
    read_checkpoint,
    settings_of,
)
from .table import print_results, score_bar, table_width

__all__ = ['run_osr']


def run_osr(args: argparse.Namespace) -> int:
    """Open, evaluate, print the table, write the files; the report's path comes last."""
    with flag_errors(args):
        settings, options = settings_of(args), options_of(args)
        loaded = read_checkpoint(args)
        split = plan_split(options, loaded.record if loaded is not None else None)
        folder = output_folder(args, 'osr')
        model = build_model(args, settings, loaded, len(split.known))
        images = open_split(options, loaded, split, model.reading())
        tune = None if args.tune is None else (args.tune, open_validation_unknown(
            args.tune, images, model.reading(), args.unknown_data_dir))
        with score_bar(settings.scores) as on_score:
            # A broken image, or weights that give NaN, are errors that the user can fix as well.
            evaluation = evaluate_images(model, images, on_score=on_score, tune=tune, command=args.command_line)
    width = table_width(args)
    print_results(evaluation.results, width)
    if evaluation.groups:
        titles: dict[RankMetric, str] = {'auroc': 'AUROC', 'oscr': 'OSCR'}
        for metric, title in titles.items():
            print(f'\n{title} by part of the unknown classes\n\n{means_table(evaluation.results, metric, width)}')
    print(evaluation.save(folder, Path(args.checkpoint).parent if args.checkpoint else None, report=not args.no_report))
    return 0
