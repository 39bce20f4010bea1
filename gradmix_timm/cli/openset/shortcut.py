"""``gradmix-openset shortcut``: how far a model relies on the mark that was drawn on its training images."""
from __future__ import annotations

import argparse
from pathlib import Path

from gradmix_timm.evaluation.folder import REPORT, draw_plain, write_files
from gradmix_timm.evaluation.opening import open_split, plan_split
from gradmix_timm.evaluation.shortcut import ShortcutOptions, draw_shortcut_examples, evaluate_shortcut
from gradmix_timm.openset.reports.shortcut_report import (
    evidence_lines,
    render_shortcut,
    shortcut_csv,
    shortcut_latex,
    shortcut_line,
    shortcut_markdown,
    shortcut_table,
)
from gradmix_timm.openset.results import ARRAYS, ShortcutResults, read_results

from .from_flags import (
    build_model,
    flag_errors,
    options_of,
    output_folder,
    read_checkpoint,
    settings_of,
)
from .table import folded, table_width

__all__ = ['draw_shortcut', 'run_shortcut', 'shortcut_options']


def run_shortcut(args: argparse.Namespace) -> int:
    """Embed, score, measure the evidence, print the table, write the files; the report's path comes last."""
    with flag_errors(args):
        settings, options = settings_of(args), options_of(args)
        chosen = shortcut_options(args)
        folder = output_folder(args, 'shortcut')
        loaded = read_checkpoint(args)
        split = plan_split(options, loaded.record if loaded is not None else None)
        model = build_model(args, settings, loaded, len(split.known))
        images = open_split(options, loaded, split, model.reading(), unknown_needed=False)
        results, arrays = evaluate_shortcut(model, images, chosen, args.command_line)
        examples = draw_shortcut_examples(model, images, chosen)
    write_files(folder, results, {
        'results.csv': shortcut_csv(results), 'results.md': shortcut_markdown(results),
        'results.tex': shortcut_latex(results)}, {ARRAYS: arrays}, {'examples.png': examples})
    draw_shortcut(folder)
    width = table_width(args)
    print(f'\n{folded(shortcut_line(results), width)}\n\n{shortcut_table(results, width)}')
    for line in evidence_lines(results):
        print(line)
    print(folder / REPORT)
    return 0


def shortcut_options(args: argparse.Namespace) -> ShortcutOptions:
    """The options of the evaluation that the flags give."""
    return ShortcutOptions(attribution=args.attribution, layers=args.layers, images=args.images)


def draw_shortcut(folder: Path) -> None:
    """The page, from files."""
    draw_plain(folder, read_results(folder, ShortcutResults), {}, render_shortcut)
