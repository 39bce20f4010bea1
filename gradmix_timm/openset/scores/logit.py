"""Scores of the logits alone: MSP, maximum logit, energy, entropy, GEN. No fit.

Softmax in float32 is exactly 1 once the other logits are 17 lower, and in float64 once they are 37 lower; samples
beyond would tie. Here nothing saturates: what is left of the probability is carried as a logarithm.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor

from gradmix_timm.records import Embeddings

from .fitting import SCORES, Score

__all__ = ['Energy', 'Entropy', 'Gen', 'MaxLogit', 'MaxSoftmax', 'log_odds_parts', 'unsaturated']

# Below this distance from 1 a probability goes on by the logarithm of the distance.
_CLOSE = 1e-9


def log_odds_parts(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of p and 1 - p, p the largest softmax probability; float64 [N] each, both with all digits.

    Args:
        logits: float64 [N, K].
    """
    top, place = logits.max(1, keepdim=True)
    gap = logits.scatter(1, place, -math.inf).logsumexp(1) - top[:, 0]
    zero = torch.zeros_like(gap)
    return -torch.logaddexp(zero, gap), -torch.logaddexp(zero, -gap)


def _shifted(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits less the largest, their exponentials, where the largest is, and the sum of the other exponentials.

    That sum is taken without the largest, whose exponential is 1, rather than by subtraction, which would lose what is
    left of the probability once it is small.

    Args:
        logits: float64 [N, K].
    """
    shift = logits - logits.amax(1, keepdim=True)
    weight, top = shift.exp(), shift == 0
    return shift, weight, top, weight.masked_fill(top, 0.).sum(1) + (top.sum(1) - 1)


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


@SCORES.register('msp', 'largest softmax probability (arXiv:1610.02136)')
class MaxSoftmax(Score):
    """Largest softmax probability of logits / T, in (0, 1), without ties by saturation (:func:`unsaturated`).

    Args:
        temperature: T; changes the order.
    """

    def __init__(self, temperature: float = 1.) -> None:
        self.temperature = _positive('temperature', temperature)

    def knownness(self, embeddings: Embeddings) -> Tensor:
        """As the base class says."""
        return unsaturated(*log_odds_parts(embeddings.logits.double() / self.temperature))


@SCORES.register('mls', 'largest logit (arXiv:1911.11132, arXiv:2110.06207)')
class MaxLogit(Score):
    """Largest logit."""

    def knownness(self, embeddings: Embeddings) -> Tensor:
        """As the base class says."""
        return embeddings.logits.amax(1).double()


@SCORES.register('energy', 'T logsumexp(logits / T) (arXiv:2010.03759)')
class Energy(Score):
    """Negative free energy, T logsumexp(z / T).

    Args:
        temperature: T; changes the order.
    """

    def __init__(self, temperature: float = 1.) -> None:
        self.temperature = _positive('temperature', temperature)

    def knownness(self, embeddings: Embeddings) -> Tensor:
        """As the base class says."""
        return self.temperature * (embeddings.logits.double() / self.temperature).logsumexp(1)


@SCORES.register('entropy', 'negative entropy of the softmax')
class Entropy(Score):
    """Sum over classes of p log p, in [-log K, 0]."""

    def knownness(self, embeddings: Embeddings) -> Tensor:
        """As the base class says."""
        shift, weight, _, rest = _shifted(embeddings.logits.double())
        return (weight * shift).sum(1) / (1 + rest) - rest.log1p()


@SCORES.register('gen', 'generalised entropy of the largest probabilities (GEN, CVPR 2023)')
class Gen(Score):
    """Minus the sum over the M largest probabilities of p^gamma (1 - p)^gamma.

    Args:
        gamma: Exponent in (0, 1]; small ones weigh the tail.
        top: M; all classes where there are fewer.
    """

    def __init__(self, gamma: float = 0.1, top: int = 100) -> None:
        if not 0 < gamma <= 1 or top < 1:
            raise ValueError(f'gen takes gamma in (0, 1] and top >= 1, got gamma={gamma}, top={top}')
        self.gamma, self.top = gamma, top

    def knownness(self, embeddings: Embeddings) -> Tensor:
        """As the base class says."""
        shift, weight, top, rest = (part[:, None] if part.dim() == 1 else part
                                    for part in _shifted(embeddings.logits.double()))
        # log (1 - p), of the largest from what is left.
        log_rest = torch.where(top, rest.log() - rest.log1p(), torch.log1p(-weight / (1 + rest)))
        terms = (self.gamma * (shift - rest.log1p() + log_rest)).exp()
        if self.top < terms.shape[1]:
            terms = terms.gather(1, shift.topk(self.top, dim=1).indices)
        return -terms.sum(1)
