"""Files of an evaluation read and checked: a ValueError names the file, the field, what was got and expected."""
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from gradmix_timm.schema import Length, Range, check, read_json, shown

from .base import Count, Name, Results, RunResults, ScoreFigures, Share, Size
from .corrupt_and_probe import CorruptionResults, ProbeResults
from .open_set import NearPair, OpenSetResults, PartResults
from .shortcut import ShortcutResults

__all__ = ['ARRAYS', 'MISTAKES', 'MIXES', 'RESULTS', 'ClosePair', 'Mistake', 'Mistakes', 'Mixes', 'RunFigures',
           'is_figures', 'read_arrays', 'read_figures', 'read_mistakes', 'read_mixes', 'read_parts', 'read_results',
           'read_run']

#: Names of the files in an evaluation's folder; the last is of the training run.
RESULTS, ARRAYS, MISTAKES, MIXES = 'results.json', 'arrays.npz', 'mistakes.json', 'mixes.json'
_ARRAY_BYTES = 4 * 2 ** 30
_KINDS: dict[str, Any] = {'corrupt': CorruptionResults, 'probe': ProbeResults, 'shortcut': ShortcutResults}

Array = NDArray[Any]
T = TypeVar('T')
R = TypeVar('R', bound=Results)


# ---- results.json

@overload
def read_results(folder: Path) -> Results: ...
@overload
def read_results(folder: Path, kind: type[R]) -> R: ...


def read_results(folder: Path, kind: Any = None) -> Any:
    """results.json of an evaluation's folder.

    Args:
        folder: Of the evaluation.
        kind: :class:`~gradmix_timm.openset.results.OpenSetResults`,
            :class:`~gradmix_timm.openset.results.CorruptionResults`,
            :class:`~gradmix_timm.openset.results.ProbeResults` or
            :class:`~gradmix_timm.openset.results.ShortcutResults`; None: whichever it is by its ``command``.

    Raises:
        ValueError: The file is missing or invalid, or was written by another command.
    """
    value = _read(folder)
    command = str(value.get('command'))
    found = _KINDS.get(command, OpenSetResults)
    if kind not in (None, found):
        wanted = next((f'openset {name}' for name, other in _KINDS.items() if other is kind), 'openset osr')
        raise ValueError(f'{folder / RESULTS} is of `openset {command if found in _KINDS.values() else "osr"}`, '
                         f'expected results of `{wanted}`')
    manifest = value['manifest']
    if found is OpenSetResults and 'per_class' not in value and isinstance(manifest, dict) and 'study' in manifest:
        raise ValueError(f'{folder / RESULTS} is of a cell of a study, which keeps no details to draw; run the study '
                         'with --keep-runs and another folder (`output: DIR`), then name DIR/CELL/work/osr (or ood)')
    results = check(value, found, str(folder / RESULTS))
    for problem in _inconsistent(results, found):
        raise ValueError(f'{folder / RESULTS}: {problem}')
    return results


def read_run(folder: Path) -> RunResults:
    """The part of results.json that a comparison needs.

    Raises:
        ValueError: The file is missing or invalid.
    """
    results: RunResults = check(_read(folder), RunResults, str(folder / RESULTS))
    return results


def read_parts(folder: Path) -> PartResults:
    """The part of results.json that a comparison on some of the unknown images needs.

    Raises:
        ValueError: As :func:`read_run`.
    """
    results: PartResults = check(_read(folder), PartResults, str(folder / RESULTS))
    return results


class RunFigures(TypedDict):
    """The figures of one run in a file of their own, as benchmarks/results keeps them.

    Attributes:
        mixer: Registered name.
        trial: Of its protocol.
        seed: Of the training run.
        top1: Closed-set accuracy.
        scores: Metrics by name of the score.
        n_known: Known test images.
        n_unknown: Unknown images.
    """

    mixer: Name
    trial: int
    seed: int
    top1: Share
    scores: dict[Name, ScoreFigures]
    n_known: NotRequired[Size]
    n_unknown: NotRequired[Size]


def read_figures(path: Path) -> RunFigures:
    """The figures of one run, of a JSON file by itself.

    Raises:
        ValueError: It does not conform to its type.
    """
    found: RunFigures = check(read_json(path), RunFigures, str(path))
    return found


def is_figures(path: Path) -> bool:
    """Whether a JSON file looks like those of :func:`read_figures`."""
    try:
        value = read_json(path)
    except (ValueError, OSError):
        return False
    return isinstance(value, dict) and {'mixer', 'trial', 'seed', 'top1', 'scores'} <= set(value)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / RESULTS
    if not path.is_file():
        raise ValueError(f'no {RESULTS} in {folder}; name the folder that `openset osr` wrote')
    try:
        value = read_json(path)
    except ValueError as error:
        raise ValueError(f'{error}; run `openset osr` again') from error
    if not isinstance(value, dict) or value.get('format') != 1 or 'manifest' not in value:
        raise ValueError(f'{path} is not an evaluation of format 1; run `openset osr` again')
    return value


def _inconsistent(results: Results, kind: Any) -> Iterator[str]:
    """Problems that types cannot express: names in one place that must occur in another."""
    if kind is OpenSetResults:
        yield from _unknown_scores(cast(OpenSetResults, results))
    elif kind is CorruptionResults:
        yield from _missing_means(cast(CorruptionResults, results))
    elif kind is ShortcutResults:
        yield from _other_scores(cast(ShortcutResults, results))
    else:
        for name, group in cast(ProbeResults, results)['groups'].items():
            needed = {'linear': ('l2', 'held_out_by_l2'), 'few-shot': ('shots',)}.get(group['probe'], ())
            yield from (f'groups.{name}.parameters.{key} is missing' for key in needed
                        if key not in group['parameters'])


def _unknown_scores(results: OpenSetResults) -> Iterator[str]:
    names = list(results['scores'])
    if not names:
        yield 'scores is empty, expected one at least'
    elif results['threshold']['score'] not in names:
        yield f'threshold.score: got {shown(results["threshold"]["score"])}, expected a name in scores'
    parts = {'scores': results['scores']}
    parts |= {f'groups.{name}.scores': group['scores'] for name, group in results['groups'].items()}
    for place, scores in parts.items():
        rates = {tuple(entry.get('ccr_at_fpr', ())) for entry in scores.values()}
        if list(scores) != names:
            yield f'{place}: got {shown(list(scores))}, expected those of scores, {shown(names)}'
        elif len(rates) > 1:
            yield f'{place}: expected the same rates in every ccr_at_fpr'
    for kind, mean in (results.get('means') or {}).items():
        yield from (f'means.{kind}.scores.{name}.auroc is missing' for name in names
                    if 'auroc' not in mean['scores'].get(name, {}))


def _other_scores(results: ShortcutResults) -> Iterator[str]:
    names = list(results['scores'])
    for view, group in results['groups'].items():
        if list(group['scores']) != names:
            yield f'groups.{view}.scores: got {shown(list(group["scores"]))}, expected those of scores, {shown(names)}'
        yield from (f'groups.{view}.scores.{name}.auroc_ci is missing' for name, entry in group['scores'].items()
                    if 'auroc_ci' not in entry)


def _missing_means(results: CorruptionResults) -> Iterator[str]:
    part, names = results['corruption'], sorted(results['scores'])
    if part['severities'] != sorted(set(part['severities'])):
        yield 'corruption.severities: expected each once, in rising order'
    if missing := {str(severity) for severity in part['severities']} - set(part['by_severity']):
        yield f'corruption.by_severity.{min(missing)} is missing'
    rows = {f'{kind}.{name}': row['auroc'] for kind, rows in (
        ('by_corruption', part['by_corruption']), ('by_severity', part['by_severity'])) for name, row in rows.items()}
    sides = {frozenset(entry) for row in rows.values() for entry in row.values()}
    for place, row in rows.items():
        if sorted(row) != names:
            yield f'corruption.{place}.auroc: got {shown(sorted(row))}, expected those of scores, {shown(names)}'
    if names and (len(sides) > 1 or 'clean' not in next(iter(sides), ())):
        yield 'corruption: expected the same sides, clean among them, in every auroc'


# ---- mistakes.json and mixes.json

_Pixels = Annotated[list[Size], Length(2, 2)]


class _Thumbnail(TypedDict):
    """A picture of a test image.

    Attributes:
        file: Name.
        size: Width and height of the image, in pixels.
        png: Shrunk, base64.
    """

    file: str
    size: _Pixels
    png: str


_Class = TypedDict('_Class', {'class': str})


class Mistake(_Thumbnail, _Class):
    """A test image that was decided wrongly.

    Attributes:
        class: Its own.
        answer: The class predicted.
        knownness: Of the headline score; null: infinite.
        probability: The classifier's softmax of the predicted class.
        file: Name.
        size: Width and height of the image, in pixels.
        png: Shrunk, base64.
    """

    answer: str
    knownness: float | None
    probability: NotRequired[Share]


class ClosePair(NearPair):
    """An unknown image beside the known image nearest to it.

    Attributes:
        unknown: File.
        known: File.
        part: Set of the known image.
        cosine: Of their features.
        unknown_png: Shrunk, base64.
        known_png: The same.
        unknown_size: Width and height in pixels.
        known_size: The same.
    """

    unknown_png: str
    known_png: str
    unknown_size: _Pixels
    known_size: _Pixels


class Mistakes(TypedDict, total=False):
    """The file mistakes.json.

    Attributes:
        confused: Known images accepted as another known class, the most probable first.
        accepted: Unknown images accepted with the highest knownness.
        rejected: Known images rejected with the lowest knownness.
        closest: Unknown images nearest to known ones.
    """

    confused: list[Mistake]
    accepted: list[Mistake]
    rejected: list[Mistake]
    closest: list[ClosePair]


# float32 weights sum to 1 up to rounding.
_Weight = Annotated[float, Range(-1e-4, 1 + 1e-4)]


class Mix(_Class):
    """A training image of one batch; one with ``lam`` 1 was left as it is, and its partner is itself.

    Attributes:
        class: Its own.
        partner_class: Of the image pasted into it.
        lam: Share of its pixels that are kept.
        weight: Label weights, own and partner's.
        box: Rows from and to, columns from and to, in pixels, half open.
        fallback: Whether the attribution was degenerate.
    """

    partner_class: str
    lam: _Weight
    weight: tuple[_Weight, _Weight]
    box: tuple[Count, Count, Count, Count]
    fallback: NotRequired[bool]


class Mixes(TypedDict, total=False):
    """The file mixes.json of a training run.

    Attributes:
        mixer: Registered name.
        layers: Target layers of the attribution.
        images: One row of mixes.png each.
    """

    mixer: str
    layers: list[str]
    images: list[Mix]


def read_mistakes(folder: Path) -> Mistakes:
    """mistakes.json of an evaluation's folder; empty if missing.

    Raises:
        ValueError: It does not conform to its type.
    """
    return _optional(folder / MISTAKES, Mistakes)


def read_mixes(folder: Path) -> Mixes:
    """mixes.json of a training run's folder; empty if missing.

    Raises:
        ValueError: It does not conform to its type.
    """
    return _optional(folder / MIXES, Mixes)


def _optional(path: Path, kind: type[T]) -> T:
    found: T = check(read_json(path), kind, str(path)) if path.exists() else kind()
    return found


# ---- arrays.npz

def read_arrays(folder: Path, scores: Collection[Name] = ()) -> dict[str, Array]:
    """arrays.npz of an evaluation's folder.

    Args:
        folder: Of the evaluation.
        scores: Names whose ``known/NAME`` and ``unknown/NAME`` have to be there.

    Returns:
        Arrays by name, numbers or booleans; rows of one side are as many in each.

    Raises:
        ValueError: The file is missing, truncated or too large, or holds non-numbers, NaN scores or unequal rows.
    """
    path = folder / ARRAYS
    if not path.is_file():
        raise ValueError(f'no {ARRAYS} in {folder}; run `openset osr` again')
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _ARRAY_BYTES:
            raise ValueError(f'{size:,} bytes of arrays, expected at most {_ARRAY_BYTES:,}')
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
    except (ValueError, OSError, EOFError, KeyError, MemoryError, SyntaxError, NotImplementedError, RuntimeError,
            zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f'{path} cannot be read ({" ".join(str(error).split())[:160]}); run `openset osr` '
                         'again') from error
    for problem in _wrong_arrays(arrays, scores):
        raise ValueError(f'{path}: {problem}; run `openset osr` again')
    return arrays


def _wrong_arrays(arrays: Mapping[str, Array], scores: Collection[Name]) -> Iterator[str]:
    yield from (f'no {side}/{name}' for name in scores for side in ('known', 'unknown')
                if f'{side}/{name}' not in arrays)
    counts: dict[str, int] = {}
    for name, array in arrays.items():
        side = name.partition('/')[0]
        rows = {'correct': 'known', 'known_label': 'known', 'known_pred': 'known', 'known_index': 'known',
                'known_correct': 'known', 'unknown_label': 'unknown', 'unknown_pred': 'unknown',
                'unknown_index': 'unknown'}.get(side, side)
        if array.dtype.kind not in 'biuf':
            yield f'{name}: got an array of {array.dtype}, expected numbers'
        elif rows in ('known', 'unknown', 'right', 'plane'):
            dimensions = 2 if side == 'plane' and name != 'plane/known' else 1
            if array.ndim != dimensions or counts.setdefault(rows, len(array)) != len(array):
                yield (f'{name}: got an array of shape {list(array.shape)}, expected {counts.get(rows, "some")} rows '
                       f'in {dimensions} dimensions')
            elif side in ('known', 'unknown', 'correct', 'plane') and np.isnan(array).any():
                yield f'{name}: NaN among the values'
