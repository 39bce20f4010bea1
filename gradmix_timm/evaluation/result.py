"""The result of an evaluation: metrics of every score and predictions of every image, saved to a folder and loaded."""
from __future__ import annotations

import csv
import json
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, overload

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gradmix_timm.openset.reports import figures
from gradmix_timm.openset.reports.latex import results_latex
from gradmix_timm.openset.reports.page import render_evaluation
from gradmix_timm.openset.reports.preset_table import preset_csv
from gradmix_timm.openset.reports.report import (
    closed_set_line,
    draw_figures,
    results_csv,
    results_markdown,
    score_table,
)
from gradmix_timm.openset.reports.tables import csv_text, without_guard
from gradmix_timm.openset.results import (
    ARRAYS,
    MISTAKES,
    RESULTS,
    ClosedSet,
    Group,
    JudgedFigures,
    Mistakes,
    OpenSetResults,
    ScoreFigures,
    read_arrays,
    read_mistakes,
    read_results,
)

from .folder import PREDICTIONS, REPORT, check_output, draw, finite, write_files

__all__ = ['Evaluation', 'Predictions']


def _truth(text: str) -> bool:
    if text.casefold() not in ('true', 'false'):  # spreadsheets write them in capitals
        raise ValueError(f'got {text[:40]!r}, expected True or False')
    return text.casefold() == 'true'


# Of the cells in a column; others hold numbers.
_READERS: dict[str, Callable[[str], Any]] = {
    'file': without_guard, 'label': without_guard, 'predicted': without_guard, 'known': _truth}


class Predictions(Sequence[dict[str, Any]]):
    """One row per image, known ones first: file, label, known, predicted, probability, and the knownness by each score.

    A sequence of dicts, kept by column; ``pandas.DataFrame(predictions.columns)`` takes it as it is.

    Args:
        columns: Name to values, all of one length. ``label`` is the true class (of named unknown sets their name),
            ``predicted`` the known class that is answered, ``probability`` its softmax.

    Example:
        >>> rows = Predictions({'file': ['a.png'], 'label': ['cat'], 'known': [True], 'predicted': ['dog'],
        ...                     'probability': [0.5], 'mls': [1.25]})
        >>> rows[0]['predicted'], len(rows)
        ('dog', 1)
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(self.columns['file'])

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return {name: values[index] for name, values in self.columns.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for values in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, values, strict=True))

    def __repr__(self) -> str:
        return f'Predictions({len(self)} images; {", ".join(self.columns)})'

    def to_csv(self) -> str:
        """The text of predictions.csv; numbers with all their digits."""
        return csv_text(self, list(self.columns))

    @classmethod
    def read_csv(cls, path: Path) -> Predictions:
        """The rows of predictions.csv.

        Raises:
            ValueError: Another kind of file.
        """
        try:
            with open(path, encoding='utf-8-sig', newline='') as file:  # spreadsheets begin with a byte order mark
                heads, *rows = [*csv.reader(file)] or [[]]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f'{path}: not a CSV file in UTF-8: {error}') from error
        if heads[:5] != ['file', 'label', 'known', 'predicted', 'probability']:
            raise ValueError(f'{path} does not begin with the columns file, label, known, predicted, probability')
        readers, columns = [_READERS.get(name, float) for name in heads], {name: list[Any]() for name in heads}
        for number, row in enumerate(rows, 2):
            try:
                for values, read, text in zip(columns.values(), readers, row, strict=True):
                    values.append(read(text))
            except ValueError as error:
                raise ValueError(f'{path}: row {number}: {error}') from error
        return cls(columns)


@dataclass(frozen=True)
class Evaluation:
    """Figures of known against unknown images.

    Attributes:
        results: Everything of results.json; docs/results-schema.md describes it.
        arrays: Of each image: knownness by score, predictions, labels; see docs/results-schema.md.
        predictions: One row per image.
        mistakes: Thumbnails for the report.
    """

    results: OpenSetResults
    arrays: dict[str, NDArray[Any]]
    predictions: Predictions
    mistakes: Mistakes

    @property
    def scores(self) -> dict[str, ScoreFigures]:
        """Score to its metrics, fractions in [0, 1]: ``scores['mls']['auroc']``, ``['auroc_ci']``, ..."""
        return self.results['scores']

    @property
    def closed_set(self) -> ClosedSet:
        """Accuracy on the known classes: ``top1``, ``top1_ci``."""
        return self.results['closed_set']

    @property
    def groups(self) -> dict[str, Group]:
        """Parts of the unknown images, or their data sets, to the same metrics."""
        return self.results['groups']

    @property
    def left_out(self) -> dict[str, str]:
        """Scores that could not be served, with the reason."""
        return self.results['not_served']

    def table(self, width: int | None = 80) -> str:
        """Accuracy and one row per score, in percent, readable in a terminal.

        Args:
            width: Characters that lines keep to, heads over several lines; None: any, as Markdown.
        """
        accuracy = closed_set_line(self.results)
        if width is not None:
            accuracy = textwrap.fill(accuracy, width)
        return f'{accuracy}\n\n{score_table(self.results, width=width)}'

    def __repr__(self) -> str:
        return f'Evaluation of {self.results["checkpoint"]}\n{self.table()}'

    def _repr_html_(self) -> str:
        heads, _, *rows = ([cell.strip() for cell in line.strip('|').split('|')]
                           for line in score_table(self.results).splitlines())
        body = ''.join(f'<tr>{"".join(f"<td>{escape(cell)}</td>" for cell in row)}</tr>' for row in rows)
        head = ''.join(f'<th>{escape(cell)}</th>' for cell in heads)
        return (f'<p>{escape(closed_set_line(self.results))}</p><table><thead><tr>{head}</tr></thead>'
                f'<tbody>{body}</tbody></table>')

    def plot_roc(self, scores: Sequence[str] | None = None, ax: Axes | None = None) -> Figure:
        """ROC curves, one a score; see :func:`gradmix_timm.openset.reports.figures.plot_roc`.

        Args:
            scores: Names of evaluated scores; None: all.
            ax: Axes to draw into; None: a new figure.

        Raises:
            ValueError: A score that was not evaluated.
        """
        return figures.plot_roc(self.results, self.arrays, scores, ax)

    def plot_oscr(self, scores: Sequence[str] | None = None, ax: Axes | None = None) -> Figure:
        """Known images accepted with their own class over unknown images accepted; arguments as of plot_roc."""
        return figures.plot_oscr(self.results, self.arrays, scores, ax)

    def plot_scores(self, score: str | None = None, ax: Axes | None = None) -> Figure:
        """Distribution of a score over known and unknown images.

        Args:
            score: Its name; None: the one that the threshold is set on, with the threshold as a line.
            ax: Axes to draw into; None: a new figure.

        Raises:
            ValueError: A score that was not evaluated.
        """
        return figures.plot_scores(self.results, self.arrays, score, ax)

    def plot_confusions(self, ax: Axes | None = None) -> Figure:
        """Predictions with the threshold applied, as shares of each true class."""
        return figures.plot_confusions(self.results, self.arrays, ax)

    def plot_reliability(self, ax: Axes | None = None) -> Figure:
        """Accuracy against confidence of the closed-set predictions, in bins of equal width."""
        return figures.plot_reliability(self.results, self.arrays, ax)

    def report(self) -> str:
        """The page that :meth:`save` writes as report.html, without what is beside it: links to files, a run's mixes.

        Returns:
            HTML that needs no other file and no network.
        """
        return render_evaluation(finite(self.results), draw_figures(self.results, self.arrays), finite(self.mistakes),
                                 {})

    def save(self, folder: str | os.PathLike[str], run_folder: str | os.PathLike[str] | None = None,
             report: bool = True) -> Path:
        """Write results.json, results.csv, results.md, predictions.csv, arrays, figures and report.html.

        With a preset, also the figures by its conventions, as PRESET.csv.

        Args:
            folder: Made if it is missing; files of an older evaluation in it are replaced, each whole.
            run_folder: Of the training run, whose picture of mixes is copied and shown in the report.
            report: Draw figures and report.html; False: ``gradmix-openset report FOLDER`` can do so later.

        Returns:
            Path of the report, or without one of results.json.

        Raises:
            ValueError: A folder that cannot be written.
        """
        folder = Path(folder)
        check_output(folder)
        write_files(folder, self.results, {
            MISTAKES: json.dumps(finite(self.mistakes)) + '\n', 'results.csv': results_csv(self.results),
            'results.md': results_markdown(self.results), 'results.tex': results_latex(self.results),
            PREDICTIONS: self.predictions.to_csv(),
            **({f'{self.results["preset"]["name"]}.csv': preset_csv(self.results)} if 'preset' in self.results else {}),
        }, {ARRAYS: self.arrays}, run_folder=None if run_folder is None else Path(run_folder))
        if not report:
            return folder / RESULTS
        draw(folder)
        return folder / REPORT

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Evaluation:
        """The evaluation of :meth:`save`, or of ``openset osr`` and ``ood``.

        Raises:
            ValueError: Files are missing or of another kind.
        """
        folder = Path(folder)
        results, arrays = read_results(folder, OpenSetResults), read_arrays(folder)
        for name in (PREDICTIONS, MISTAKES):
            if not (folder / name).is_file():
                raise ValueError(f'no {name} in {folder}; evaluate again: `openset osr`, or evaluate(...).save(folder)')
        return cls(results, arrays, Predictions.read_csv(folder / PREDICTIONS), read_mistakes(folder))


def predictions_of(results: JudgedFigures, arrays: Mapping[str, NDArray[Any]], files: Sequence[str],
                   probability: Mapping[str, NDArray[np.float64]]) -> Predictions:
    """The rows of an evaluation, from its arrays.

    Args:
        results: Of results.json.
        arrays: Of arrays.npz.
        files: Of the known images that could be read, then of the unknown.
        probability: The classifier's softmax of the class answered, by side.
    """
    sides = ('known', 'unknown')
    classes = {'known': results['known_classes'], 'unknown': results['unknown_classes']}
    columns: dict[str, Sequence[Any]] = {
        'file': list(files),
        'label': [classes[side][place] for side in sides for place in arrays[f'{side}_label'].tolist()],
        'known': [side == 'known' for side in sides for _ in arrays[f'{side}_label']],
        'predicted': [results['known_classes'][place] for side in sides for place in arrays[f'{side}_pred'].tolist()],
        'probability': np.concatenate([probability[side] for side in sides]).tolist()}
    columns |= {name: np.concatenate([arrays[f'{side}/{name}'] for side in sides]).tolist()
                for name in results['scores']}
    return Predictions(columns)
