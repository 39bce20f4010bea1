"""Scores of the logits alone: MSP, maximum logit, energy, entropy, GEN. No fit.

Softmax in float32 is exactly 1 once the other logits are 17 lower, and in float64 once they are 37 lower; samples
beyond would tie. Here nothing saturates: what is left of the probability is carried as a logarithm.
"""
from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gradmix_timm.records import Embeddings

from .base import SCORES, Score, by_rows, checked_rows

__all__ = ['Energy', 'Entropy', 'Gen', 'LogitScore', 'MaxLogit', 'MaxSoftmax', 'log_odds_parts', 'unsaturated']

# Below this distance from 1 a probability goes on by the logarithm of the distance.
_CLOSE = 1e-9
# Powers of two take three fifths of the time of exponentials.
_BITS = 1 / math.log(2)
# Sums of exponentials below this may have lost terms to the end of float64's range.
_VANISHED = 1e-290


def log_odds_parts(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of p and 1 - p, p the largest softmax probability; float64 [N] each, both with all digits.

    Args:
        logits: float64 [N, K].
    """
    top, place = logits.max(1, keepdim=True)
    gap = logits.scatter(1, place, -math.inf).logsumexp(1) - top[:, 0]
    zero = torch.zeros_like(gap)
    return -torch.logaddexp(zero, gap), -torch.logaddexp(zero, -gap)


def _shift(logits: Tensor, temperature: float = 1.) -> Tensor:
    """Logits less the largest, over T ln 2: what two is raised to; float64 [N, K] of float [N, K].

    A product with 1 / ln 2 is off by half an ulp, a weight 2^-x thus by x / 1.4 of its own ulps: of a sum that holds a
    weight of 1 no digit is lost.
    """
    return logits.to(torch.float64, copy=True).sub_(logits.amax(1, keepdim=True)).mul_(_BITS / temperature)


def _rest(weight: Tensor) -> Tensor:
    """Sum of the weights but one of the largest, which is 1; float64 [N]; the weights of 1 are set to 0.

    A subtraction would lose what is left of the probability once it is small, so there the others are summed: the
    fractions, as they are below 1. Where it is not small (a tie) the subtraction loses nothing.
    """
    total = weight.sum(1)
    return torch.where(total > 1.5, total - 1, weight.frac_().sum(1))


def unsaturated(log_p: Tensor, log_rest: Tensor) -> Tensor:
    """A probability in (0, 1) whose order survives where exp(log_p) would round to 1.

    p as it is, but the last 1e-9 below 1 is spent on a scale in which the distance to 1 falls as 1 / -log(1 - p): never
    off by more than 1e-9, strictly increasing, 0.00001 of a logit told apart at a gap of 40 and 0.0001 at 100.

    Args:
        log_p: log p, float64.
        log_rest: log(1 - p), float64.
    """
    limit = math.log(_CLOSE)
    rest = torch.where(log_rest < limit, _CLOSE * limit / log_rest, log_rest.exp())
    return torch.where(log_p < -math.log(2), log_p.exp(), 1 - rest)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f'{name} is a positive number, got {value}')
    return float(value)


class LogitScore(Score):
    """A function of the logits alone, row by row; a few rows at a time, so that float64 costs no memory traffic."""

    checks_values = True
    arrays: ClassVar[int] = 1

    @abstractmethod
    def of(self, logits: Tensor) -> Tensor:
        """Knownness float64 [N] of logits [N, K], all at once."""

    def quick(self, logits: Tensor) -> Tensor:
        """The same in fewer steps, not finite where these leave the range of float64."""
        return self.of(logits)

    def knownness(self, embeddings: Embeddings) -> Tensor:
        """As the base class says."""
        def checked(rows: Tensor) -> Tensor:
            if not math.isfinite(float(rows.sum())):  # while they are in the cache
                checked_rows(self.name, embeddings, 'logits')
            return self.quick(rows)

        found = by_rows(checked, embeddings.logits, self.arrays)
        if not math.isfinite(float(found.sum())):
            beyond = (~found.isfinite()).nonzero()[:, 0]
            found[beyond] = self.of(embeddings.logits[beyond])
        return found


@SCORES.register('msp', 'largest softmax probability (arXiv:1610.02136)')
class MaxSoftmax(LogitScore):
    """Largest softmax probability of logits / T, in (0, 1), without ties by saturation (:func:`unsaturated`).

    Args:
        temperature: T; changes the order.
    """

    def __init__(self, temperature: float = 1.) -> None:
        self.temperature = _positive('temperature', temperature)

    def of(self, logits: Tensor) -> Tensor:
        """As the base class says."""
        return unsaturated(*log_odds_parts(logits.double() / self.temperature))

    def quick(self, logits: Tensor) -> Tensor:
        """By the sum of the other exponentials rather than its logarithm."""
        rest = _rest(_shift(logits, self.temperature).exp2_())
        left = rest / (1 + rest)
        scale = _CLOSE * math.log(_CLOSE) / left.log()  # as in unsaturated
        return torch.where(left < _CLOSE, scale, left).neg_().add_(1).masked_fill_(rest < _VANISHED, torch.nan)


@SCORES.register('mls', 'largest logit (arXiv:1911.11132, arXiv:2110.06207)')
class MaxLogit(LogitScore):
    """Largest logit."""

    def of(self, logits: Tensor) -> Tensor:
        """As the base class says."""
        return logits.amax(1).double()


@SCORES.register('energy', 'T logsumexp(logits / T) (arXiv:2010.03759)')
class Energy(LogitScore):
    """Negative free energy, T logsumexp(z / T).

    Args:
        temperature: T; changes the order.
    """

    def __init__(self, temperature: float = 1.) -> None:
        self.temperature = _positive('temperature', temperature)

    def of(self, logits: Tensor) -> Tensor:
        """As the base class says."""
        return self.temperature * (logits.double() / self.temperature).logsumexp(1)

    def quick(self, logits: Tensor) -> Tensor:
        """Without taking off the largest: logits of several hundred T, either way, are the exception."""
        total = logits.to(torch.float64, copy=True).mul_(_BITS / self.temperature).exp2_().sum(1)
        return F.threshold(total, _VANISHED, 0.).log_().mul_(self.temperature)


@SCORES.register('entropy', 'negative entropy of the softmax')
class Entropy(LogitScore):
    """Sum over classes of p log p, in [-log K, 0]."""

    arrays = 2

    def of(self, logits: Tensor) -> Tensor:
        """As the base class says."""
        shift = _shift(logits)
        weight = shift.exp2()
        rest = _rest(weight)
        return weight.mul_(shift).sum(1).div_(_BITS) / (1 + rest) - rest.log1p()


@SCORES.register('gen', 'generalised entropy of the largest probabilities (GEN, CVPR 2023)')
class Gen(LogitScore):
    """Minus the sum over the M largest probabilities of p^gamma (1 - p)^gamma.

    Args:
        gamma: Exponent in (0, 1]; small ones weigh the tail.
        top: M; all classes where there are fewer.
    """

    arrays = 2

    def __init__(self, gamma: float = 0.1, top: int = 100) -> None:
        if not 0 < gamma <= 1 or top < 1:
            raise ValueError(f'gen takes gamma in (0, 1] and top >= 1, got gamma={gamma}, top={top}')
        self.gamma, self.top = gamma, top

    def of(self, logits: Tensor) -> Tensor:
        """As the base class says."""
        shift = _shift(logits)
        weight = shift.exp2()
        rest = _rest(weight)[:, None]
        # 1 - p times the sum: of the largest what is left; of the others, none above a half, by subtraction.
        other = torch.where(shift == 0, rest, (1 + rest) - weight)
        terms = other.log2_().add_(shift).sub_(2 * _BITS * rest.log1p()).mul_(self.gamma).exp2_()
        if self.top < terms.shape[1]:
            terms = terms.gather(1, shift.topk(self.top, dim=1).indices)
        return -terms.sum(1)
