"""Stratified bootstrap: knowns and unknowns are resampled apart, so that their numbers stay as they are."""
from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from .checks import check_level
from .intervals import rule_of_three
from .rank_counts import Ladder, Metric, cells, count

__all__ = ['EVERY_SCORE', 'FEW', 'rank_intervals']

Floats = NDArray[np.float64]
#: Scores of both sides up to which intervals of rank metrics resample every score; beyond, counts in cells.
EVERY_SCORE = 50_000
# Counts drawn at a time: one array of them stays in the cache of a core.
_CELLS = 1 << 17
# Metrics whose intervals are taken on a logit scale: their largest value, the power of the samples' number by which one
# sample changes the metric (a pair out of order changes average precision by about 1 / size^2), and how many times the
# resamples' bias the estimate's own is: of the least error, whose threshold is chosen on the same samples, about twice
# (-.12 for -.066 with 215 and 144 scores of AUROC .75, -.36 for -.17 with 30 a side, -.045 for -.024 with 1,000).
# Its largest value is chance, which a score may well have and the logit scale leaves out.
_SCALES = {'aupr_in': (1., 2, 1), 'aupr_out': (1., 2, 1), 'detection_error': (0.5, 1, 2)}
#: Scores of the smaller side below which percentiles hold too few true values (90% of 95% at 30) and OSCR is taken on
#: the logit scale as well, the 95% rates by :func:`_rates_at_95`.
FEW = 100
_OF_FEW = {'oscr': (1., 1, 1)}


def _interval(draws: NDArray[np.float64], value: float, size: int, level: float,
              scale: tuple[float, int, int] | None = None) -> tuple[float, float]:
    """An interval from the draws that contains the value; by the rule of three if no draw differs from it.

    Percentiles, or with a scale, for a figure in (0, scale) that is skewed near its ends: a normal interval of
    log(value / (scale - value)), once round the value and once round the value less its bias, from the lower of the low
    ends to the upper of the high ends. The bias is that of the draws, times what the scale says. Where the largest
    value is below 1 (chance), the high end without logits counts as well: of 30 or 400 scores a side that did not
    differ the interval on logits held 0.5 in at most 3% of the cases, with this end it does in 90 to 97%.

    Args:
        draws: Of resamples, float64 [R].
        value: The figure.
        size: Samples of the smaller side.
        level: Coverage, in (0, 1).
        scale: Largest value that the figure can have, the power of ``size`` by which a sample moves it, and how many
            times the draws' bias its own is.
    """
    if np.ptp(draws) == 0 and 0 <= value <= 1:
        top = 1. if scale is None else scale[0]
        low, high = (top * end for end in rule_of_three(value / top, size, level))
    elif scale is None:
        low, high = (float(end) for end in np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]))
    else:
        top, power, times = scale
        room = top / (2 * size ** power + 2)  # half a step from the ends, at which the logit is infinite
        odds, middle = (logit(np.clip(x, room, top - room) / top) for x in (draws, value))
        wide = NormalDist().inv_cdf((1 + level) / 2)
        half, bias = wide * odds.std(ddof=1), times * (odds.mean() - middle)
        low, high = (float(top * expit(end)) for end in (middle - max(bias, 0) - half, middle - min(bias, 0) + half))
        if top < 1:
            plain = value - times * min(draws.mean() - value, 0) + wide * draws.std(ddof=1)
            high = max(high, min(top, float(plain)))
    return min(low, value), max(high, value)


class _Cells:
    """Resampled counts in cells: multinomial, as the counts of resampled samples are.

    Args:
        counts: Samples in each cell, [m].
    """

    def __init__(self, counts: Floats) -> None:
        self.total = int(counts.sum())
        self.shares = counts / self.total

    def draw(self, rows: int, generator: np.random.Generator) -> Floats:
        """Counts [rows, m] of as many samples each."""
        return generator.multinomial(self.total, self.shares, rows).astype(np.float64)


class _Resampler:
    """Counts at the values of a ladder after resampling one side.

    Args:
        place: Position of each sample on the ladder, int64 [n].
        size: Positions, m.
    """

    def __init__(self, place: NDArray[np.intp], size: int) -> None:
        self.place, self.size = place, size

    def draw(self, rows: int, generator: np.random.Generator) -> Floats:
        """Counts [rows, m] of n samples each, with replacement."""
        picked = self.place[generator.integers(0, len(self.place), (rows, len(self.place)), dtype=np.int32)]
        picked += np.arange(rows)[:, None] * self.size
        return np.bincount(picked.ravel(), minlength=rows * self.size).reshape(rows, self.size).astype(np.float64)


def rank_intervals(
        metrics: Mapping[str, Metric],
        known: Floats,
        unknown: Floats,
        correct: NDArray[np.bool_] | None = None,
        draws: int = 1000,
        seed: int = 0,
        level: float = 0.95,
        counted: tuple[Floats, Ladder] | None = None,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of several rank metrics from the same resamples.

    The scores are ranked once; a resample only changes how often each counts. Of more than :data:`EVERY_SCORE` scores,
    counts in about 2,500 cells of neighbouring scores are resampled
    (:func:`~gradmix_timm.openset.metrics.rank_counts.cells`), and the draws are shifted by the change that cells make
    to the metric: the interval equals that of all scores up to the noise of the draws, and a million of them take
    as long as a hundred thousand.

    Args:
        metrics: Name to a function of a :class:`~gradmix_timm.openset.metrics.rank_counts.Ladder`.
        known: Checked scores of the knowns, float64 [N].
        unknown: Checked scores of the unknowns, float64 [M].
        correct: Which knowns got their class, bool [N]; resampled along with their scores.
        draws: Resamples.
        seed: The same seed gives the same interval.
        level: Coverage aimed at, in (0, 1).
        counted: The result of :func:`~gradmix_timm.openset.metrics.rank_counts.count` for these scores, if available.

    Returns:
        Name to (low, high), which holds the estimate: percentiles; for average precision and detection error, which are
        skewed near their ends, on a logit scale (:func:`_interval`); for OSCR and the 95% rates of fewer than
        :data:`FEW` scores on a side as described there. A metric that no draw moved gets the interval of the rule of
        three.

    Raises:
        ValueError: No draw, or a level outside (0, 1).
    """
    if draws < 1:
        raise ValueError(f'draws is the number of resamples, at least 1 (1000 is usual), got {draws}')
    check_level(level)
    values, ladder = count(known, unknown, correct) if counted is None else counted
    fewest = min(len(known), len(unknown))
    # Right and wrong knowns at a value are two cells of one ladder, drawn together.
    kinds = 1 if correct is None else 2
    if len(known) + len(unknown) <= EVERY_SCORE:
        place = np.searchsorted(values, known) * kinds + (0 if correct is None else correct)
        sides = _Resampler(place, len(values) * kinds), _Resampler(np.searchsorted(values, unknown), len(values))
        found = _drawn(metrics, sides, len(values), kinds, draws, seed)
    else:
        starts = cells(ladder)
        of_known, of_unknown = (np.add.reduceat(side, starts) for side in (ladder.known, ladder.unknown))
        right = None if ladder.correct is None else np.add.reduceat(ladder.correct, starts)
        both = of_known if right is None else np.stack([of_known - right, right], 1).ravel()
        found = _drawn(metrics, (_Cells(both), _Cells(of_unknown)), len(starts), kinds, draws, seed)
        coarse = Ladder.of(of_known, of_unknown, right)
        found = {name: np.clip(found[name] + float(metric(ladder)) - float(metric(coarse)), 0, 1)
                 for name, metric in metrics.items()}
    scales: dict[str, tuple[float, int, int]] = _SCALES
    if fewest < FEW:
        found |= {name: draws_of for name, draws_of in _rates_at_95(ladder, draws, seed).items() if name in found}
        scales = _SCALES | _OF_FEW
    return {name: _interval(found[name], float(metric(ladder)), fewest, level, scales.get(name))
            for name, metric in metrics.items()}


def _rates_at_95(ladder: Ladder, draws: int, seed: int) -> dict[str, Floats]:
    """Draws of both rates at a 95% threshold that account for small samples: name to float64 [draws].

    The 5% quantile of n samples lies between the j-th and the next of them with the probability that a binomial law
    of n and 5% gives to j (beyond the last sample as well, of which resamples know nothing); the share of the other
    side beyond it has the law of Jeffreys' interval, beta of c + 1/2 and m - c + 1/2.
    """
    generator = np.random.default_rng(seed)
    known, unknown = (side.astype(np.intp) for side in (ladder.known, ladder.unknown))
    # Counted from the rejected end: samples of the other side at each sample.
    beyond = {'fpr_at_95_known': (np.repeat(ladder.unknown_kept, known), ladder.n_unknown),
              'fpr_at_95_unknown': (np.repeat(ladder.known_cut, unknown)[::-1], ladder.n_known)}
    found = {}
    for name, (counted, total) in beyond.items():
        ends = np.r_[total, counted, 0]
        place, between = generator.binomial(len(counted), 0.05, draws), generator.random(draws)
        count = ends[place] + between * (ends[place + 1] - ends[place])
        found[name] = generator.beta(count + 0.5, total - count + 0.5)
    return found


def _drawn(metrics: Mapping[str, Metric], sides: tuple[_Resampler, _Resampler] | tuple[_Cells, _Cells], size: int,
           kinds: int, draws: int, seed: int) -> dict[str, Floats]:
    """Every metric of resampled counts at ``size`` places, float64 [draws]."""
    generator = np.random.default_rng(seed)
    found: dict[str, list[Floats]] = {name: [] for name in metrics}
    step = max(1, _CELLS // size)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        counts = sides[0].draw(rows, generator).reshape(rows, size, kinds)
        right = None if kinds == 1 else np.ascontiguousarray(counts[..., 1])
        drawn = Ladder.of(counts.sum(-1), sides[1].draw(rows, generator), right)
        for name, metric in metrics.items():
            found[name].append(metric(drawn))
    return {name: np.concatenate(parts) for name, parts in found.items()}
