"""Report of an evaluation, from its files alone: the table, CSV, Markdown, figures and one self-contained page."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gradmix_timm.openset.results import (
    ARRAYS,
    Figures,
    JudgedFigures,
    Mixes,
    OpenSetResults,
    RankMetric,
    Results,
    Scored,
    ScoreFigures,
    read_arrays,
    read_mistakes,
    read_mixes,
    read_results,
)
from gradmix_timm.plots.figure import png

from . import figures
from .page import render_evaluation
from .tables import csv_text, facts_lines, interval_of, pooled_line, pretraining_note, tables_within, warnings_of

__all__ = [
    'FIGURES', 'FPR95_WORDS', 'MIXED', 'check_files', 'closed_set_line', 'draw_figures', 'means_table', 'mixes_folder',
    'operating_line', 'render_report', 'results_csv', 'results_markdown', 'score_table']

#: Folder of an evaluation's PNG files.
FIGURES = 'figures'
#: A training run's picture of mixed images.
MIXED = 'mixes.png'
# Arrays of figures that are not of a score.
_DRAWN = ('confusion', 'bin_confidence', 'bin_accuracy', 'bin_share')
# Files beside the page that it links to.
_LINKED = ('predictions.csv', 'results.csv', 'results.json', 'results.md', 'results.tex')

# Key in results.json and head in a table, in the order printed.
_COLUMNS: dict[RankMetric, str] = {
    'auroc': 'AUROC', 'aupr_in': 'AUPR in', 'aupr_out': 'AUPR out', 'fpr_at_95_known': 'FPR95 (knowns kept)',
    'fpr_at_95_unknown': 'FPR95 (unknowns caught)', 'oscr': 'OSCR'}
#: What the two metrics named FPR95 are.
FPR95_WORDS = ('FPR95 (knowns kept): unknowns accepted where 95% of the knowns are; FPR95 (unknowns caught): knowns '
               'rejected where 95% of the unknowns are.')
_CSV_METRICS = (*_COLUMNS, 'detection_error', 'tie_share', 'degenerate', 'top1')

Array = NDArray[Any]


def closed_set_line(results: Figures) -> str:
    """Accuracy on the known classes, with its interval and what it was measured on."""
    closed = results['closed_set']
    low, high = closed['top1_ci']
    return (f'closed-set accuracy {closed["top1"]:.2%} (95% interval {low:.2%} to {high:.2%}), '
            f'{results["n_known"]} known and {results["n_unknown"]} unknown images')


def operating_line(results: JudgedFigures) -> str:
    """Metrics of the labels with rejection at the threshold; empty for results without them."""
    threshold = results['threshold']
    found = threshold.get('open_set')
    if not found:
        return ''
    interval = found.get('macro_f1_ci')
    ends = f' (95% interval {interval[0]:.2%} to {interval[1]:.2%})' if interval else ''
    some, every = found.get('classes_with_images'), len(results['known_classes'])
    ends += '' if some in (None, every) else f' over the {some} of {every} known classes that have images'
    fixed = 'fixed on held-out known images' if threshold['held_out'] else 'set on the known test images themselves'
    return (f'At the threshold of {threshold["score"]}, {fixed}: macro-F1 {found["macro_f1"]:.2%}{ends}, mean recall '
            f'of the known classes {found["balanced_accuracy"]:.2%}, of these and "unknown" '
            f'{found["balanced_accuracy_with_unknown"]:.2%}, normalised accuracy ({found["lambda"]:g} times the '
            f'accuracy on known plus {1 - found["lambda"]:g} times the share of unknown images rejected) '
            f'{found["normalized_accuracy"]:.2%}')


def score_table(results: Scored, intervals: bool = False, width: int | None = None) -> str:
    """One row per score, in percent; Markdown, and readable in a terminal.

    Args:
        results: Of results.json, or one of its groups.
        intervals: Adds the 95% intervals.
        width: Of a terminal, in characters, that the table keeps to; None: any.

    Example:
        >>> values = {key: 0.5 for key in ('auroc', 'aupr_in', 'aupr_out', 'fpr_at_95_known', 'fpr_at_95_unknown')}
        >>> print(score_table({'scores': {'mls': {**values, 'oscr': 0.25}}}).splitlines()[-1])
        | mls   |  50.00 |    50.00 |     50.00 |                50.00 |                    50.00 |  25.00 |
    """
    heads, rows = ['score', *_COLUMNS.values()], [
        [name, *(_percent(values, key, intervals) for key in _COLUMNS)] for name, values in results['scores'].items()]
    return tables_within(width, heads, rows)


def means_table(results: OpenSetResults, metric: RankMetric = 'auroc', width: int | None = None) -> str:
    """One metric of every score by data set, then near and far; Markdown, in percent.

    Args:
        results: Of results.json, with groups and means.
        metric: Of the scores.
        width: Of a terminal, in characters, that the tables keep to; None: any.
    """
    groups, means = results['groups'], results.get('means') or {}
    heads = [*groups, *(f'{kind} (mean of {len(part["data_sets"])})' for kind, part in means.items())]
    values = {name: [*(group['scores'][name][metric] for group in groups.values()),
                     *(mean['scores'][name][metric] for mean in means.values())] for name in results['scores']}
    rows = [[name, *(f'{100 * value:.2f}' for value in row)] for name, row in values.items()]
    return tables_within(width, ['score', *heads], rows)


def results_csv(results: OpenSetResults) -> str:
    """One row per group and score; fractions, with the ends of the intervals; 'all' first, means over sets last."""
    parts: dict[str, Mapping[str, Mapping[str, object]]] = {'all': results['scores']}
    parts |= {name: group['scores'] for name, group in results['groups'].items()}
    parts |= {f'mean {kind}': mean['scores'] for kind, mean in (results.get('means') or {}).items()}
    return csv_text([{'group': group, 'score': name, **_flat(values)}
                     for group, scores in parts.items() for name, values in scores.items()])


def results_markdown(results: OpenSetResults) -> str:
    """The tables with intervals, in percent, and what they were measured on."""
    lines = [f'# Open set evaluation of {results["manifest"]["model"]}', '', f'{closed_set_line(results)}.', '',
             *([line, ''] if (line := pooled_line(results)) else []), score_table(results, intervals=True), '']
    lines += [f'{line}.\n' for line in [operating_line(results)] if line]
    for name, group in results['groups'].items():
        lines += [f'## {name} ({group["n_unknown"]} unknown images)', '', score_table(group, intervals=True), '']
    if results.get('means') is not None:
        lines += ['## AUROC by data set', '', means_table(results), '']
    lines += ['Percent; in brackets 95% intervals. Knownness: higher = more known. AUPR in: knowns are the positives; '
              f'out: unknowns are. {FPR95_WORDS}', '']
    lines += [f'- note: {note}' for note in [pretraining_note(results['manifest'])] if note]
    lines += [f'- not served: {name}: {reason}' for name, reason in results['not_served'].items()]
    lines += [f'- warning: {warning}' for warning in warnings_of(results)]
    lines += [f'- skipped {len(names)} of the {title} that cannot be read: {", ".join(names[:20])}'
              for title, names in (results.get('skipped') or {}).items()]
    lines += facts_lines(results, ('protocol', results['protocol']), ('family', results['family']),
                         ('trial', results['trial']))
    return '\n'.join(lines) + '\n'


def draw_figures(results: JudgedFigures, arrays: Mapping[str, Array]) -> dict[str, bytes]:
    """All figures as PNG files by name.

    Args:
        results: Of results.json.
        arrays: Of arrays.npz.
    """
    drawn = {
        'roc.png': png(figures.plot_roc(results, arrays)),
        'oscr.png': png(figures.plot_oscr(results, arrays)),
        'confusion.png': png(figures.plot_confusions(results, arrays)),
        'reliability.png': png(figures.plot_reliability(results, arrays))}
    if 'plane/known' in arrays:
        drawn['features.png'] = png(figures.plot_features(arrays))
    for name in results['scores']:
        drawn[figures.figure_name(f'histogram-{name}')] = png(figures.plot_scores(results, arrays, name))
    return drawn


def check_files(folder: Path) -> None:
    """Read everything that figures and page of an evaluation are drawn from.

    Raises:
        ValueError: A file is missing, truncated or invalid; the message names it.
    """
    results = read_results(folder)
    if 'threshold' in results:
        arrays = read_arrays(folder, results['scores'])
        missing = [name for name in (*(f'correct/{score}' for score in results['scores']), *_DRAWN)
                   if name not in arrays]
        if missing:
            raise ValueError(f'{folder / ARRAYS}: no {missing[0]}; run `openset osr` again')
        bins = [list(arrays[name].shape) for name in _DRAWN if name.startswith('bin_')]
        if len(bins[0]) != 1 or any(shape != bins[0] for shape in bins):
            raise ValueError(f'{folder / ARRAYS}: bin_confidence, bin_accuracy and bin_share: got arrays of shapes '
                             f'{", ".join(map(str, bins))}, expected one entry per bin in each; run `openset osr` '
                             'again')
        shape, known, unknown = arrays['confusion'].shape, results['known_classes'], results['unknown_classes']
        if shape != (len(known) + 1, len(known) + len(unknown)):
            raise ValueError(f'{folder / ARRAYS}: confusion: got an array of shape {list(shape)}, expected '
                             f'{[len(known) + 1, len(known) + len(unknown)]}; run `openset osr` again')
    read_mistakes(folder)
    if (place := mixes_folder(folder, results)) is not None:
        read_mixes(place)


def mixes_folder(folder: Path, results: Results) -> Path | None:
    """Where the mixes of the training run are: beside the results, or in the folder above if that is the run's.

    It is the run's if it has the name of the run folder recorded in results.json. The record is not followed, so that a
    file cannot choose what is opened.
    """
    above, run = folder.absolute().parent, Path(results['manifest'].get('run_folder', ''))
    places = (folder, above) if above.name == run.name else (folder,)
    return next((place for place in places if (place / MIXED).is_file()), None)


def render_report(folder: Path) -> str:
    """The page, from files alone: results.json, mistakes.json and figures, and a run's mixes.png and mixes.json.

    Returns:
        HTML that needs no other file and no network.

    Raises:
        ValueError: A file is invalid.
    """
    results = read_results(folder, OpenSetResults)
    images = {path.name: path.read_bytes() for path in sorted((folder / FIGURES).glob('*.png'))}
    mixes: Mixes = {}
    if (place := mixes_folder(folder, results)) is not None:
        images[MIXED] = (place / MIXED).read_bytes()
        mixes = read_mixes(place)
    files = [name for name in _LINKED if (folder / name).is_file()]
    return render_evaluation(results, images, read_mistakes(folder), mixes, files)


def _percent(values: ScoreFigures, key: RankMetric, intervals: bool) -> str:
    text, ends = f'{100 * values[key]:.2f}', interval_of(values, key)
    return f'{text} [{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]' if intervals and ends else text


def _flat(values: Mapping[str, Any]) -> dict[str, object]:
    """A score's entry with ``<metric>_low`` and ``_high`` for intervals and ``ccr_at_fpr_<rate>`` for that dict."""
    flat: dict[str, object] = {}
    for key in _CSV_METRICS:
        flat[key] = values.get(key)
        if (ends := values.get(f'{key}_ci')) is not None:
            flat[f'{key}_low'], flat[f'{key}_high'] = ends
    flat.update({f'ccr_at_fpr_{rate}': value for rate, value in values.get('ccr_at_fpr', {}).items()})
    return flat
