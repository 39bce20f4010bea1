"""Groups of runs against each other: means over class splits, paired differences with intervals, Holm's correction.

The unit is the class split: trials whose class sets are the same (reordered) count once, and seeds of one split are
averaged first. If all runs share one split the unit is the run, and the findings hold for that split alone; a
single pair is compared image by image. Verdicts follow p-values corrected by Holm over all tested differences, and
need five pairs.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from .metrics.intervals import (
    FEWEST_PAIRS,
    NO_SPREAD,
    Difference,
    holm,
    over_trials,
    paired_delong,
    paired_difference,
    too_few_pairs,
)
from .runs import CLOSED_SET, Run, Split, check_runs, notes

__all__ = ['LOWER_IS_BETTER', 'Compared', 'Comparison', 'Gap', 'GroupFacts', 'GroupMean', 'compare_runs']

LOWER_IS_BETTER = ('fpr_at_95_known', 'fpr_at_95_unknown', 'detection_error')

Arrays = Mapping[str, NDArray[Any]]
Key = tuple[str, str]


class GroupMean(TypedDict):
    """A metric of one group, a mean over units; None where there is no spread to tell from.

    Attributes:
        mean: Fraction.
        sd: Standard deviation over units.
        low: Lower end of Student's interval.
        high: Upper end.
        n: Units.
        seed_sd: Standard deviation within class splits, pooled.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int
    seed_sd: float | None


class Gap(TypedDict):
    """A difference of one group to the base.

    Attributes:
        value: Fraction.
        low: Lower end of its interval, or None.
        high: Upper end, or None.
        error: Standard error, or None.
        p: Of no difference, or None where it was not tested.
        n: Units; of a single pair images.
        n_pairs: Runs with their partners.
        unit: Of the comparison.
        p_holm: ``p`` corrected over all tests.
        verdict: ``better``, ``worse`` or ``not distinguishable`` by ``p_holm`` against 1 - level, so if no difference
            exists a whole comparison shows any ``better`` or ``worse`` with that probability at most;
            ``too few pairs (n)`` below five; ``cannot say (no spread)``; None for metrics that were not asked for.
    """

    value: float
    low: float | None
    high: float | None
    error: float | None
    p: float | None
    n: int
    n_pairs: int
    unit: str
    p_holm: float | None
    verdict: str | None


class Compared(TypedDict):
    """One metric.

    Attributes:
        groups: By name.
        differences: To the base, by group; empty unless paired.
    """

    groups: dict[str, GroupMean]
    differences: dict[str, Gap]


class GroupFacts(TypedDict):
    """The runs of a group.

    Attributes:
        n_runs: Their number.
        n_distinct: Class splits among them.
        trials: Numbers.
        seeds: Of training.
        runs: Folders.
    """

    n_runs: int
    n_distinct: int
    trials: list[int]
    seeds: list[int]
    runs: list[str]


class Comparison(TypedDict):
    """Every metric of every score, by group, and the differences to one group.

    Attributes:
        format: 1.
        protocol: Name, or None.
        family: Of its trials, or None.
        paired: Whether differences were taken.
        base: Group that they are taken to, or None.
        level: Coverage of the intervals.
        unit: ``class split``, ``run`` or ``image``.
        n_distinct: Class splits.
        tests: Differences that Holm's correction is over.
        groups: By name.
        notes: Differences among runs that the grouping does not cover.
        left_out: Scores that some runs lack, with how many.
        left_out_runs: Folders of runs without a partner.
        closed_set: By metric.
        scores: By score and metric.
        part: Of the unknown images that everything is of, as a command was asked for it; None: all.
    """

    format: int
    protocol: str | None
    family: str | None
    paired: bool
    base: str | None
    level: float
    unit: str
    n_distinct: int
    tests: int
    groups: dict[str, GroupFacts]
    notes: list[str]
    left_out: dict[str, str]
    left_out_runs: list[str]
    closed_set: dict[str, Compared]
    scores: dict[str, dict[str, Compared]]
    part: NotRequired[str | None]


def compare_runs(
        runs: Sequence[Run],
        base: str | None = None,
        paired: bool = False,
        common: bool = False,
        level: float = 0.95,
        arrays_of: Callable[[Run], Arrays | None] = lambda _: None,
        metrics: Sequence[str] | None = None,
) -> Comparison:
    """Every metric of every score, by group, and the differences to one group.

    Args:
        runs: Of :func:`~gradmix_timm.openset.runs.read_runs`.
        base: Group that differences are taken to; None: the group ``none`` if there is one, else the last group.
        paired: Take differences; each run needs its partner of the same trial, seed and fold.
        common: Leave out runs without partners instead of refusing them.
        level: Coverage of the intervals, in (0, 1).
        arrays_of: A run's arrays.npz, for a comparison of a single pair image by image; None if it has none.
        metrics: Metrics whose differences get a verdict, beside the closed-set accuracy; None: all. Each further one
            makes Holm's correction over all of them stricter.

    Raises:
        ValueError: Runs that do not belong together, missing partners, an unknown base.
    """
    if not runs:
        raise ValueError('no run to compare; name run folders')
    check_runs(runs)
    groups = {name: [run for run in runs if run.group == name] for name in dict.fromkeys(run.group for run in runs)}
    base = _base(groups, base, paired)
    left_out_runs: list[str] = []
    if paired:
        groups, left_out_runs = _partners(groups, base, common)
    keys, left_out = _keys([run for part in groups.values() for run in part])
    unit = _unit(groups, paired)
    table: dict[Key, Compared] = {key: {'groups': {name: _mean(part, key, level) for name, part in groups.items()},
                   'differences': {name: _difference(part, groups[base], key, level, unit, arrays_of)
                                   for name, part in groups.items() if paired and name != base}} for key in keys}
    tests = _decide(table, level, metrics)
    splits = {run.split for part in groups.values() for run in part}
    first = runs[0]
    return {
        'format': 1, 'protocol': first.protocol[0], 'family': first.protocol[1], 'paired': paired,
        'base': base if paired else None, 'level': level, 'unit': unit, 'n_distinct': len(splits), 'tests': tests,
        'groups': {name: _facts(part) for name, part in groups.items()}, 'notes': notes(runs),
        'left_out': left_out, 'left_out_runs': left_out_runs,
        'closed_set': {metric: entry for (score, metric), entry in table.items() if score == CLOSED_SET},
        'scores': {score: {metric: entry for (name, metric), entry in table.items() if name == score}
                   for score in dict.fromkeys(score for score, _ in table) if score != CLOSED_SET}}


# ---- groups and pairs

def _base(groups: Mapping[str, Any], base: str | None, paired: bool) -> str:
    names = list(groups)
    if base is not None and base not in groups:
        raise ValueError(f'--base {base}: no such group; there are {", ".join(names)}')
    if paired and len(names) < 2:
        raise ValueError(f'all {len(groups[names[0]])} runs are of {names[0]}; name runs of two groups, or make groups '
                         'of them, --by model (or an option of the mixer, or folder)')
    return base or ('none' if 'none' in groups else names[-1])


def _partners(groups: dict[str, list[Run]], base: str, common: bool) -> tuple[dict[str, list[Run]], list[str]]:
    """Runs in the same order of (trial, seed, fold) in every group; those without partners left out or refused."""
    cells = {name: {run.cell: run for run in part} for name, part in groups.items()}
    shared = [cell for cell in cells[base] if all(cell in there for there in cells.values())]
    single = [run for part in groups.values() for run in part if run.cell not in shared]
    if not shared:
        have = '; '.join(f'{name}: {", ".join(run.cell_name for run in part)}' for name, part in groups.items())
        raise ValueError(f'no trial and seed that all groups have ({have}); pairs share the trial and the seed')
    if single and not common:
        run = single[0]
        lacks = next(name for name, there in cells.items() if run.cell not in there)
        raise ValueError(f'{len(single)} runs have no partner: {lacks} has no run of {run.cell_name}, which '
                         f'{run.group} has ({run.folder}); run it, or --common to leave such runs out')
    order = sorted(shared, key=lambda cell: tuple((value is None, value) for value in cell))
    return {name: [there[cell] for cell in order] for name, there in cells.items()}, [str(run.folder) for run in single]


def _keys(runs: Sequence[Run]) -> tuple[list[Key], dict[str, str]]:
    """(score, metric) that all runs have, in the order of the first; scores that some lack, with how many."""
    everywhere = [key for key in runs[0].values if all(key in run.values for run in runs)]
    scores = {score for score, _ in everywhere}
    lacking: dict[str, str] = {}
    for score in dict.fromkeys(score for run in runs for score, _ in run.values):
        if score not in scores and score != CLOSED_SET:
            count = sum(not any(score == other for other, _ in run.values) for run in runs)
            lacking[score] = f'not in {count} of {len(runs)} runs'
    if lacking and not scores - {CLOSED_SET}:
        raise ValueError('no score that all runs have; evaluate them with the same --scores')
    return everywhere, lacking


def _unit(groups: Mapping[str, Sequence[Run]], paired: bool) -> str:
    parts = list(groups.values())
    if all(len({run.split for run in part}) > 1 for part in parts):
        return 'class split'
    return 'image' if paired and len(parts[0]) == 1 else 'run'


# ---- figures

def _by_split(part: Sequence[Run], values: Sequence[float]) -> dict[Split, list[float]]:
    found: dict[Split, list[float]] = {}
    for run, value in zip(part, values, strict=True):
        found.setdefault(run.split, []).append(value)
    return found


def _units(part: Sequence[Run], values: Sequence[float]) -> list[float]:
    """One value per class split, or per run if there is only one split."""
    splits = _by_split(part, values)
    return [float(np.mean(row)) for row in splits.values()] if len(splits) > 1 else list(values)


def _mean(part: Sequence[Run], key: Key, level: float) -> GroupMean:
    values = [run.values[key] for run in part]
    found = over_trials(_units(part, values), level)
    return {'mean': found.mean, 'sd': _finite(found.sd), 'low': _finite(found.low), 'high': _finite(found.high),
            'n': found.n, 'seed_sd': _seed_spread(list(_by_split(part, values).values()))}


def _seed_spread(rows: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within class splits, pooled; None without repeats."""
    freedom = sum(len(row) - 1 for row in rows)
    return math.sqrt(sum((len(row) - 1) * float(np.var(row, ddof=1)) for row in rows if len(row) > 1) / freedom
                     ) if freedom else None


def _difference(part: Sequence[Run], base: Sequence[Run], key: Key, level: float, unit: str,
                arrays_of: Callable[[Run], Arrays | None]) -> Gap:
    gaps = [one.values[key] - other.values[key] for one, other in zip(part, base, strict=True)]
    units = _units(part, gaps)
    if len(units) > 1:
        found: Difference | None = paired_difference(units, [0.] * len(units), level)
    else:
        found = _by_images(part[0], base[0], key, level, arrays_of)
    entry: Gap = {'value': float(np.mean(units)), 'low': None, 'high': None, 'error': None, 'p': None, 'n': len(units),
                  'n_pairs': len(gaps), 'unit': unit, 'p_holm': None, 'verdict': None}
    if found is not None:
        entry |= {'low': _finite(found.low), 'high': _finite(found.high), 'error': found.error, 'p': found.p,
                  'n': found.n}
    return entry


def _by_images(one: Run, other: Run, key: Key, level: float, arrays_of: Callable[[Run], Arrays | None],
               ) -> Difference | None:
    """A single pair: AUROC image by image, if both runs kept the scores of each image."""
    if key[1] != 'auroc':
        return None
    first, second = arrays_of(one), arrays_of(other)
    if first is None or second is None:
        return None
    names = [f'{side}_index' for side in ('known', 'unknown')]
    if not all(np.array_equal(first[name], second[name]) for name in names):
        return None
    known, unknown = ((first[f'{side}/{key[0]}'], second[f'{side}/{key[0]}']) for side in ('known', 'unknown'))
    return paired_delong(known, unknown, level)


def _decide(table: Mapping[Key, Compared], level: float, metrics: Sequence[str] | None) -> int:
    """Add Holm's p-values and verdicts of all differences that get one; returns the number of tested differences."""
    asked = [(metric, entry) for (score, metric), both in table.items() for entry in both['differences'].values()
             if score == CLOSED_SET or metrics is None or metric in metrics]
    tested = [(entry, p) for _, entry in asked if (p := entry['p']) is not None]
    for (entry, _), raised in zip(tested, holm([p for _, p in tested]) if tested else [], strict=True):
        entry['p_holm'] = raised
    for metric, entry in asked:
        entry['verdict'] = _verdict(entry, level, metric)
    return len(tested)


def _verdict(entry: Gap, level: float, metric: str) -> str:
    pairs = 1 if entry['unit'] == 'image' else entry['n']
    if pairs < FEWEST_PAIRS:
        return too_few_pairs(pairs)
    if not entry['error']:
        return NO_SPREAD if entry['value'] else 'not distinguishable'
    if entry['p_holm'] is None or entry['p_holm'] > 1 - level:
        return 'not distinguishable'
    return 'better' if (entry['value'] > 0) != (metric in LOWER_IS_BETTER) else 'worse'


def _facts(part: Sequence[Run]) -> GroupFacts:
    return {'n_runs': len(part), 'n_distinct': len({run.split for run in part}),
            'trials': sorted({run.trial for run in part if run.trial is not None}),
            'seeds': sorted({run.seed for run in part if run.seed is not None}),
            'runs': [str(run.folder) for run in part]}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
