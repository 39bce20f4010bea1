"""Scores of the logits alone: MSP, maximum logit, energy, entropy, GEN. No fit.

Softmax in float32 is exactly 1 once the other logits are 17 lower, and in float64 once they are 37 lower; samples
beyond would tie. Here nothing saturates: what is left of the probability is carried as a logarithm.
"""
from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from gradmix_timm.records import Embeddings

from .base import SCORES, Score, by_rows, checked_rows

__all__ = ['Energy', 'Entropy', 'Gen', 'LogitScore', 'MaxLogit', 'MaxSoftmax', 'log_odds_parts', 'positive',
           'unsaturated']

# Below this distance from 1 a probability is continued by the logarithm of the distance.
_CLOSE = 1e-9
# Below this, near the end of float64's range, a value is continued by its logarithm.
_VANISHED = 1e-290


def _gaps(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of float64 logits [N, K]: how far each is below a largest (-inf for that one), and the logsumexp of these."""
    top, place = logits.max(1, keepdim=True)
    below = (logits - top).scatter_(1, place, -math.inf)
    return below, below.logsumexp(1)


def log_odds_parts(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of p and 1 - p, p the largest softmax probability; float64 [N] each, both with all digits.

    Args:
        logits: float64 [N, K].
    """
    rest = _gaps(logits)[1]
    zero = torch.zeros_like(rest)
    return -torch.logaddexp(zero, rest), -torch.logaddexp(zero, -rest)


def _ordered(value: Tensor, log_value: Tensor) -> Tensor:
    """``value``, continued by its logarithm where it would underflow, with the same order.

    Args:
        value: float64 [N], 0 or more.
        log_value: Its logarithm, float64 [N]; looked at below 1e-290 only.
    """
    return torch.where(value < _VANISHED, _VANISHED * math.log(_VANISHED) / log_value, value)


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


def positive(name: str, value: float) -> float:
    """The number, where it is positive and finite.

    Raises:
        ValueError: It is not.
    """
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

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        def checked(rows: Tensor) -> Tensor:
            if not math.isfinite(float(rows.sum())):  # while they are in the cache
                checked_rows(self.name, embeddings, 'logits')
            return self.of(rows.double())

        return by_rows(checked, embeddings.logits, arrays=self.arrays)


@SCORES.register('msp', 'largest softmax probability (arXiv:1610.02136)')
class MaxSoftmax(LogitScore):
    """Largest softmax probability of logits / T, in (0, 1), without ties by saturation (:func:`unsaturated`).

    Args:
        temperature: T; changes the order.
    """

    def __init__(self, temperature: float = 1.) -> None:
        self.temperature = positive('temperature', temperature)

    @override
    def of(self, logits: Tensor) -> Tensor:
        return unsaturated(*log_odds_parts(logits.double() / self.temperature))


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
        self.temperature = positive('temperature', temperature)

    @override
    def of(self, logits: Tensor) -> Tensor:
        return self.temperature * (logits.double() / self.temperature).logsumexp(1)


@SCORES.register('entropy', 'negative entropy of the softmax')
class Entropy(LogitScore):
    """Sum over classes of p log p, in [-log K, 0]."""

    arrays = 3

    @override
    def of(self, logits: Tensor) -> Tensor:
        below, rest = _gaps(logits.double())
        below = below.nan_to_num_(neginf=-1e300)  # no weight, and 0 times infinity is not a number
        total = rest.exp().log1p_()
        value = total - (below.exp() * below).sum(1) / total.exp()
        return -_ordered(value, (below + torch.log1p(-below)).logsumexp(1))


@SCORES.register('gen', 'generalised entropy of the largest probabilities (GEN, CVPR 2023)')
class Gen(LogitScore):
    """Minus the sum over the M largest probabilities of p^gamma (1 - p)^gamma.

    Args:
        gamma: Exponent in (0, 1]; small ones weigh the tail.
        top: M; all classes if there are fewer.
    """

    arrays = 3

    def __init__(self, gamma: float = 0.1, top: int = 100) -> None:
        if not 0 < gamma <= 1 or top < 1:
            raise ValueError(f'gen takes gamma in (0, 1] and top >= 1, got gamma={gamma}, top={top}')
        self.gamma, self.top = gamma, top

    @override
    def of(self, logits: Tensor) -> Tensor:
        below, rest = _gaps(logits.double())
        zero = torch.zeros_like(rest)
        total = torch.logaddexp(zero, rest)
        others = below if self.top > below.shape[1] else below.topk(self.top - 1, dim=1).values
        others = others - total[:, None]  # log p, none above log 1/2
        # Of the largest, p is 1 less the rest, which is small where the others are.
        logs = torch.cat([(rest - 2 * total)[:, None], others + torch.log1p(-others.exp())], 1).mul_(self.gamma)
        return -_ordered(logs.exp().sum(1), logs.logsumexp(1))
