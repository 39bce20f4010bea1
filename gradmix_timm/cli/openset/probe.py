"""``gradmix-openset probe``: evaluate frozen features by linear, nearest-neighbour and few-shot probes."""
from __future__ import annotations

import argparse
from pathlib import Path

from gradmix_timm.evaluation.folder import REPORT, draw_plain, write_files
from gradmix_timm.evaluation.opening import named_split, open_split
from gradmix_timm.evaluation.probing import ProbeOptions, evaluate_probes
from gradmix_timm.openset.reports.probe_report import (
    probe_csv,
    probe_figures,
    probe_latex,
    probe_line,
    probe_markdown,
    probe_table,
    render_probe,
)
from gradmix_timm.openset.results import ProbeResults, read_results

from .from_flags import (
    build_model,
    flag_errors,
    options_of,
    output_folder,
    read_checkpoint,
    settings_of,
)
from .table import folded, table_width

__all__ = ['draw_probe', 'probe_options', 'run_probe']


def run_probe(args: argparse.Namespace) -> int:
    """Embed, fit, evaluate, print the table, write the files; the report's path comes last."""
    with flag_errors(args):
        settings, options, chosen = settings_of(args), options_of(args), probe_options(args)
        folder = output_folder(args, 'probe')
        loaded = read_checkpoint(args)
        model = build_model(args, settings, loaded, None)  # features are read: the head need not fit the classes
        split = named_split(options, loaded.record if loaded is not None else None)
        images = open_split(options, loaded, split, model.reading(), unknown_needed=False, train_needed=True)
        results, arrays = evaluate_probes(model, images, chosen, args.command_line)
    write_files(folder, results, {
        'results.csv': probe_csv(results), 'results.md': probe_markdown(results),
        'results.tex': probe_latex(results)}, arrays)
    draw_probe(folder)
    width = table_width(args)
    print(f'\n{folded(probe_line(results), width)}\n\n{probe_table(results, width)}')
    for name, reason in results['not_served'].items():
        print(f'not served: {name}: {reason}')
    for warning in results['warnings']:
        print(f'warning: {warning}')
    print(folder / REPORT)
    return 0


def probe_options(args: argparse.Namespace) -> ProbeOptions:
    """The probes that the flags give."""
    if any(not part.isdecimal() for part in args.shots):
        raise ValueError(f'shots={",".join(args.shots)}: expected training images of a class, as in 1,5,10')
    return ProbeOptions(probes=args.probes, shots=[int(part) for part in args.shots], draws=args.draws,
                        knn_k=args.knn_k, held_out=args.held_out)


def draw_probe(folder: Path) -> None:
    """Figures and page, from files."""
    results = read_results(folder, ProbeResults)
    draw_plain(folder, results, probe_figures(results), render_probe)
