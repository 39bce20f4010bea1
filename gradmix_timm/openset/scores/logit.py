"""Scores of the logits alone: MSP, maximum logit, energy, entropy, GEN. No fit.

Softmax in float32 is exactly 1 once the other logits are 17 lower, and in float64 once they are 37 lower; samples
beyond would tie. Here nothing saturates: what is left of the probability is carried as a logarithm.
"""
from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from gradmix_timm.records import Embeddings

from .base import SCORES, Score, by_rows, checked_rows

__all__ = ['Energy', 'Entropy', 'GapScore', 'Gaps', 'Gen', 'LogitScore', 'MaxLogit', 'MaxSoftmax',
           'positive_temperature', 'unsaturated']

# Below this distance from 1 a probability is continued by the logarithm of the distance.
_CLOSE = 1e-9
# Below this, near the end of float64's range, a value is continued by its logarithm.
_VANISHED = 1e-290
# Logarithm of 1 - p below which float64 takes over: float32 ends at -87.
_SURE = -60.


class Gaps(NamedTuple):
    """How far logits are below their largest, of which every function of the softmax is made.

    Attributes:
        below: Distances over the temperature, [N, K] at most 0, in the precision of the logits.
        powers: Their exponentials.
        rest: Logarithm of the sum of the powers without one largest, float64 [N]: its digits do not depend on how
            small that sum is beside 1.
    """

    below: Tensor
    powers: Tensor
    rest: Tensor

    @classmethod
    def of(cls, logits: Tensor, temperature: float = 1.) -> Gaps:
        """Of logits [N, K]; in float32 ``rest`` is -inf from a distance of 104 on."""
        below = logits - logits.amax(1, keepdim=True)
        if temperature != 1:
            below /= temperature
        powers = below.exp()
        rest = powers.frac().sum(1)  # of all but the largest, whose powers are 1: one, or several where they tie
        rest = (rest + ((powers.sum(1) - rest).round() - 1)).double()
        log_rest = rest.log()
        if logits.dtype == torch.float64:
            log_rest = _continued(rest, log_rest, lambda: _without_largest(below).logsumexp(1))
        return cls(below, powers, log_rest)

    def log_odds_parts(self) -> tuple[Tensor, Tensor]:
        """Logarithms of p and 1 - p, p the largest softmax probability; float64 [N] each."""
        zero = torch.zeros_like(self.rest)
        return -torch.logaddexp(zero, self.rest), -torch.logaddexp(zero, -self.rest)


def _without_largest(below: Tensor) -> Tensor:
    """Distances [N, K] with -inf in place of one largest."""
    return below.scatter(1, below.argmax(1, keepdim=True), -math.inf)


def _continued(value: Tensor, found: Tensor, otherwise: Callable[[], Tensor]) -> Tensor:
    """``found``, but ``otherwise`` for rows whose ``value`` is near the end of float64's range.

    Such rows are rare, and what to do about them takes as long as all else: it is computed where there is one, and in
    an exported graph, which must serve every input.
    """
    vanished = value < _VANISHED
    if torch.compiler.is_compiling() or bool(vanished.any()):
        return torch.where(vanished, otherwise(), found)
    return found


def _ordered(value: Tensor, log_value: Callable[[], Tensor]) -> Tensor:
    """``value``, continued by its logarithm where it would underflow, with the same order.

    Args:
        value: float64 [N], 0 or more.
        log_value: Gives its logarithm, float64 [N]; looked at below 1e-290 only.
    """
    return _continued(value, value, lambda: _VANISHED * math.log(_VANISHED) / log_value())


def unsaturated(log_p: Tensor, log_rest: Tensor) -> Tensor:
    """A probability in (0, 1) whose order survives where exp(log_p) would round to 1.

    p as it is, but the last 1e-9 below 1 is spent on a scale in which the distance to 1 falls as 1 / -log(1 - p): never
    off by more than 1e-9, strictly increasing, resolving 0.00001 of a logit at a gap of 40 and 0.0001 at 100.

    Args:
        log_p: log p, float64.
        log_rest: log(1 - p), float64.
    """
    limit = math.log(_CLOSE)
    rest = torch.where(log_rest < limit, _CLOSE * limit / log_rest, log_rest.exp())
    return torch.where(log_p < -math.log(2), log_p.exp(), 1 - rest)


def positive_temperature(value: float) -> float:
    """The temperature, where it is positive and finite.

    Raises:
        ValueError: It is not.
    """
    if not 0 < value < math.inf:
        raise ValueError(f'temperature is a positive number, got {value}')
    return float(value)


class LogitScore(Score):
    """A function of the logits alone, row by row, a few rows at a time so that they stay in the cache."""

    checks_values = True

    @abstractmethod
    def of(self, logits: Tensor) -> Tensor:
        """Knownness float64 [N] of logits [N, K], all at once; float64 ones are computed in float64 throughout."""

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        def checked(rows: Tensor) -> Tensor:
            if not math.isfinite(float(rows.sum())):  # while they are in the cache
                checked_rows(self.name, embeddings, 'logits')
            return self.of(rows if rows.dtype == torch.float64 else rows.float())

        return by_rows(checked, embeddings.logits)


class GapScore(LogitScore):
    """A function of the distances from the largest logit.

    Exponentials are taken in the precision of the logits, which bounds what can be had: of float32 logits a score is
    within a millionth of its size of that in float64, in half the time. Rows so near certainty that float32 would
    underflow are computed in float64.
    """

    temperature: float = 1.

    @abstractmethod
    def of_gaps(self, gaps: Gaps) -> Tensor:
        """Knownness float64 [N]."""

    @override
    def of(self, logits: Tensor) -> Tensor:
        gaps = Gaps.of(logits, self.temperature)
        found = self.of_gaps(gaps)
        if logits.dtype != torch.float64 and bool((sure := gaps.rest < _SURE).any()):
            found[sure] = self.of(logits[sure].double())
        return found


@SCORES.register('msp', 'largest softmax probability (arXiv:1610.02136)')
class MaxSoftmax(GapScore):
    """Largest softmax probability of logits / T, in (0, 1), without ties by saturation (:func:`unsaturated`).

    Args:
        temperature: T; changes the order.
    """

    def __init__(self, temperature: float = 1.) -> None:
        self.temperature = positive_temperature(temperature)

    @override
    def of_gaps(self, gaps: Gaps) -> Tensor:
        return unsaturated(*gaps.log_odds_parts())


@SCORES.register('mls', 'largest logit (arXiv:1911.11132, arXiv:2110.06207)')
class MaxLogit(LogitScore):
    """Largest logit."""

    @override
    def of(self, logits: Tensor) -> Tensor:
        return logits.amax(1).double()


@SCORES.register('energy', 'T logsumexp(logits / T) (arXiv:2010.03759)')
class Energy(LogitScore):
    """Negative free energy, T logsumexp(z / T).

    Args:
        temperature: T; changes the order.
    """

    def __init__(self, temperature: float = 1.) -> None:
        self.temperature = positive_temperature(temperature)

    @override
    def of(self, logits: Tensor) -> Tensor:
        top = logits.amax(1, keepdim=True)
        below = logits - top
        if self.temperature != 1:
            below /= self.temperature
        return top[:, 0].double() + self.temperature * below.exp_().sum(1).double().log_()


@SCORES.register('entropy', 'negative entropy of the softmax')
class Entropy(GapScore):
    """Sum over classes of p log p, in [-log K, 0]."""

    @override
    def of_gaps(self, gaps: Gaps) -> Tensor:
        total = gaps.rest.exp().log1p_()
        value = total - (gaps.powers * gaps.below).sum(1) / total.exp()

        def log_value() -> Tensor:
            others = _without_largest(gaps.below).nan_to_num_(neginf=-1e300)  # no weight, and infinities would cancel
            return (others + torch.log1p(-others)).logsumexp(1)

        return -_ordered(value, log_value)


@SCORES.register('gen', 'generalised entropy of the largest probabilities (GEN, CVPR 2023)')
class Gen(GapScore):
    """Minus the sum over the M largest probabilities of p^gamma (1 - p)^gamma.

    Args:
        gamma: Exponent in (0, 1]; small ones weigh the tail.
        top: M; all classes if there are fewer.
    """

    def __init__(self, gamma: float = 0.1, top: int = 100) -> None:
        if not 0 < gamma <= 1 or top < 1:
            raise ValueError(f'gen takes gamma in (0, 1] and top >= 1, got gamma={gamma}, top={top}')
        self.gamma, self.top = gamma, top

    @override
    def of_gaps(self, gaps: Gaps) -> Tensor:
        below, powers, rest = gaps.below, gaps.powers, gaps.rest
        if self.top < below.shape[1]:
            below = below.topk(self.top, dim=1).values
            powers = below.exp()
        total = torch.logaddexp(torch.zeros_like(rest), rest)
        largest = self.gamma * (rest - 2 * total)  # log (p (1 - p))^gamma of the largest, with the digits of 1 - p
        # With s the sum of powers, p (1 - p) = powers (s - powers) / s^2; only where p is the largest may s - powers
        # lose digits, and there it is put in their place.
        whole, scale = total.exp().to(below.dtype), (2 * total).to(below.dtype)
        terms = (whole[:, None] - powers).log_().add_(below).sub_(scale[:, None]).mul_(self.gamma).exp_()
        lossy = (whole - 1).log_().sub_(scale).mul_(self.gamma).exp_()
        value = (terms.sum(1) - lossy).double() + largest.exp()

        def log_value() -> Tensor:
            others = _without_largest(below) - total[:, None]
            others = self.gamma * (others + torch.log1p(-others.exp()))
            return torch.cat([largest[:, None], others], 1).logsumexp(1)

        return -_ordered(value, log_value)
