"""``gradmix-openset corrupt``: errors and open-set scores under the corruptions of CIFAR-C and ImageNet-C."""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gradmix_timm.cli.config_file import words
from gradmix_timm.data.corruption import FAMILIES, SCALES, SEVERITIES
from gradmix_timm.evaluation.corruption import (
    SMALL,
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

from .flags import (
    Names,
    add_model_flags,
    build_model,
    flag_errors,
    options_of,
    output_folder,
    read_checkpoint,
    score_names,
    settings_of,
)

__all__ = ['add_corrupt', 'draw_corrupt', 'run_corrupt']

_GROUPS, _EXAMPLES = 'groups.jsonl', 'examples.png'
_TELL_EVERY = 10.


def add_corrupt(commands: Any) -> None:
    """Register the sub-command.

    Args:
        commands: Of ``add_subparsers``.
    """
    corrupt = commands.add_parser(
        'corrupt', help='errors and open-set scores under 15 corruptions at 5 severities',
        description='Evaluate a checkpoint on corrupted images, generated on the fly or read from the official files.')
    add_model_flags(corrupt)
    add = corrupt.add_argument_group('Corruption').add_argument
    add('--official', metavar='DIR', help='files of CIFAR-10-C, CIFAR-100-C, Tiny-ImageNet-C or ImageNet-C in place of '
                                          'generated images; the clean test set is needed as well')
    add('--corruptions', type=words, metavar='A,B,...', help=f'names, or {", ".join(FAMILIES)} (default: the 15)')
    add('--severities', type=_severities, default=SEVERITIES, metavar='1,3,5', help='(default: 1,2,3,4,5)')
    add('--scale', choices=tuple(SCALES), help='whose constants generated images have (default: by their side)')
    add('--corrupt-at', choices=('stored', 'input'),
        help=f"corrupt images as stored, or cut to the model's input (default: stored up to {SMALL} pixels)")
    add('--baseline', metavar='FILE', help='results.json of another model on the same images, or alexnet (for '
                                           'ImageNet-C): adds mCE and relative mCE')
    add('--images', type=int, metavar='N', help='at most N known and N unknown images, evenly chosen (default: all)')
    add = corrupt.add_argument_group('Evaluation').add_argument
    add('--scores', type=score_names, nargs='+', action=Names, default=['msp', 'mls'],
        metavar='NAME[:OPTION=VALUE,...]',
        help='that need no training images (default: msp,mls)')
    add('--bootstrap', type=int, default=0, metavar='N', help="resamples for intervals but AUROC's (default: 0, none)")
    add('--seed', type=int, default=0, metavar='N', help='of generated images and resamples (default: 0)')
    add('--output', metavar='DIR', help='(default: the folder corrupt beside the checkpoint)')
    corrupt.set_defaults(run=run_corrupt)


def _severities(text: str) -> tuple[int, ...]:
    parts = words(text)
    if not parts or any(part not in ('1', '2', '3', '4', '5') for part in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f'severities run from 1 to 5, each named once, as in 1,3,5; got {text!r}')
    return tuple(sorted(map(int, parts)))


def run_corrupt(args: argparse.Namespace) -> int:
    """Embed clean images, then every corruption and severity; print the table, write the files."""
    with flag_errors(args):
        settings, options = settings_of(args), options_of(args)
        check_scores(settings)
        chosen = CorruptionOptions(
            official=args.official, corruptions=args.corruptions, severities=args.severities, scale=args.scale,
            corrupt_at=args.corrupt_at, baseline=args.baseline, images=args.images)
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
    print(f'\n{corruption_line(results)}\n\n{corruption_table(results)}')
    for key in ('no_mce', 'no_relative_mce'):
        if key in results['corruption']:
            print(f'note: {results["corruption"][key]}')
    print(folder / REPORT)
    return 0


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
