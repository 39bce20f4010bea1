"""``gradmix-openset corrupt``: errors and open-set scores under the corruptions of CIFAR-C and ImageNet-C."""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from gradmix_timm.evaluation.corruption import (
    CorruptionOptions,
    check_scores,
    draw_examples,
    evaluate_corruptions,
    open_files,
    plan_corruptions,
)
from gradmix_timm.evaluation.folder import REPORT, draw_plain, write_files
from gradmix_timm.evaluation.opening import named_split, open_split
from gradmix_timm.openset.reports.corruption_report import (
    corruption_csv,
    corruption_figures,
    corruption_latex,
    corruption_line,
    corruption_markdown,
    corruption_table,
    render_corruption,
)
from gradmix_timm.openset.results import ARRAYS, CorruptionResults, read_results

from .from_flags import (
    build_model,
    flag_errors,
    options_of,
    output_folder,
    read_checkpoint,
    settings_of,
)
from .table import folded, table_width

__all__ = ['corruption_options', 'draw_corrupt', 'run_corrupt']

_GROUPS, _EXAMPLES = 'groups.jsonl', 'examples.png'
_TELL_EVERY = 10.


def run_corrupt(args: argparse.Namespace) -> int:
    """Embed clean images, then every corruption and severity; print the table, write the files."""
    with flag_errors(args):
        settings, options = settings_of(args), options_of(args)
        check_scores(settings)
        chosen = corruption_options(args)
        official, names = open_files(chosen)
        folder = output_folder(args, 'corrupt')
        loaded = read_checkpoint(args)
        split = named_split(options, loaded.record if loaded is not None else None)
        model = build_model(args, settings, loaded, None if split is None else len(split.known))
        images = open_split(options, loaded, split, model.reading(), unknown_needed=False, most=chosen.images)
        plan = plan_corruptions(model, images, chosen, official, names)
        results, arrays = evaluate_corruptions(plan, folder / _GROUPS, _watched, args.command_line)
    write_files(folder, results, {
        'results.csv': corruption_csv(results), 'results.md': corruption_markdown(results),
        'results.tex': corruption_latex(results)}, {ARRAYS: arrays}, {_EXAMPLES: draw_examples(plan)})
    draw_corrupt(folder)
    width = table_width(args)
    print(f'\n{folded(corruption_line(results), width)}\n\n{corruption_table(results, width)}')
    for key in ('no_mce', 'no_relative_mce'):
        if key in results['corruption']:
            print(f'note: {results["corruption"][key]}')
    print(folder / REPORT)
    return 0


def corruption_options(args: argparse.Namespace) -> CorruptionOptions:
    """The corruptions that the flags give."""
    return CorruptionOptions(
        official=args.official, corruptions=args.corruptions, severities=args.severities, scale=args.scale,
        corrupt_at=args.corrupt_at, baseline=args.baseline, images=args.images)


def draw_corrupt(folder: Path) -> None:
    """Figures and page, from files."""
    results = read_results(folder, CorruptionResults)
    draw_plain(folder, results, corruption_figures(results), render_corruption)


def _watched(names: Sequence[str], total: int) -> Iterator[tuple[str, Callable[[str], None]]]:
    """Yield each name with a progress callback; prints the estimated time left."""
    started = told = time.monotonic()
    with tqdm(total=total, initial=total - len(names), desc='corruptions', unit='group', disable=None, leave=False,
              file=sys.stderr) as bar:
        for number, name in enumerate(names, 1):
            said: list[str] = []
            yield name, said.append
            bar.set_postfix_str(f'{name}: {"".join(said)}')
            bar.update()
            now = time.monotonic()
            if bar.disable and now - told > _TELL_EVERY and number < len(names):
                told = now
                left = (now - started) / number * (len(names) - number)
                print(f'{total - len(names) + number} of {total} groups, {name}: {"".join(said)}; about {left:.0f} s '
                      'left', file=sys.stderr, flush=True)
