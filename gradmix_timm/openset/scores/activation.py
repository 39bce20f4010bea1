"""Scores that reshape the features and apply the classifier again: ReAct, VRA, ASH, SCALE, DICE; all use the energy.

They presume features that are not negative (after a ReLU); on GELU or LayerNorm backbones they may rank the wrong way
round, and a warning says so.
"""
from __future__ import annotations

import math
import warnings
from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from gradmix_timm.records import Embeddings

from .base import SCORES, Head, Score, blocks, by_rows, feature_mean

__all__ = ['Ash', 'Dice', 'React', 'Scale', 'Vra', 'percentile_of']

# exp overflows float64 at 709; sums of features that are not negative stay far below.
_MAX_EXPONENT = 700.
# Values of which a percentile may copy all: 268 MB of float32.
_FEW = 2 ** 26


def percentile_of(rows: Tensor, percentile: float) -> float:
    """A percentile of all values, interpolated as NumPy does; of many values without a copy of them.

    float32 numbers are in the order of their bits (negative ones turned), so two counts, by the upper and by the lower
    16 bits, find the exact ones.

    Args:
        rows: float [N, D], finite.
        percentile: In percent.

    Example:
        >>> percentile_of(torch.arange(11.)[None], 25)
        2.5
    """
    if rows.numel() <= _FEW or rows.dtype != torch.float32:
        # NumPy has no bfloat16, and interpolates float16 in float16.
        exact = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        return float(np.percentile(exact.cpu().numpy(), percentile))
    place = (rows.numel() - 1) * percentile / 100
    low, high = (_nth_smallest(rows, number) for number in (math.floor(place), math.ceil(place)))
    return low + (high - low) * (place - math.floor(place))


def _nth_smallest(rows: Tensor, number: int) -> float:
    """The value of rank ``number``, from 0, of float32 values."""
    prefix = 0
    for turn in (0, 1):
        counts = np.zeros(2 ** 16, dtype=np.int64)
        for block in blocks(rows):
            bits = rows[block].flatten().view(torch.int32).cpu().numpy().view(np.uint32)
            keys = bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
            digits = keys >> 16 if not turn else keys[keys >> 16 == prefix] & np.uint32(0xFFFF)
            counts += np.bincount(digits, minlength=2 ** 16)
        digit = int(np.searchsorted(counts.cumsum(), number, side='right'))
        number -= int(counts[:digit].sum())
        prefix = prefix << 16 | digit
    found = np.array([prefix ^ (0x80000000 if prefix >> 31 else 0xFFFFFFFF)], dtype=np.uint32)
    return float(found.view(np.float32)[0])


def _percent(option: str, value: float) -> float:
    if not 0 <= value < 100 or 0 < value < 1:
        raise ValueError(f'{option} is in percent, at least 0 and below 100, got {value}'
                         + (f'; for a share give {100 * value:g}' if 0 < value < 1 else ''))
    return float(value)


class _Reshaped(Score):
    """Energy of the classifier on features that :meth:`reshape` returns.

    Args:
        percentile: In percent; the meaning is each score's own.
    """

    reads = ('features',)
    needs_head = True
    needs_train = True

    def __init__(self, percentile: float) -> None:
        self.percentile = _percent('percentile', percentile)

    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        """Keep the classifier; warn of negative features."""
        assert train is not None
        assert head is not None
        self.head = Head(head.weight.double(), head.bias.double())
        low = float(train.features.min())
        if low < 0:
            warnings.warn(f'{self.name} presumes features that are not negative; these go down to {low:.3g} (no ReLU '
                          'before the classifier), where it may rank unknowns above knowns', stacklevel=4)
        self.diagnostics = {'samples': len(train.features), 'lowest_feature': low}

    @abstractmethod
    def reshape(self, features: Tensor) -> Tensor:
        """Reshape features, float [n, D], into the classifier's input, float64 [n, D], row by row."""

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        return by_rows(lambda rows: self.head(self.reshape(rows)).logsumexp(1), embeddings.features, arrays=2)


@SCORES.register('react', 'energy with features clipped at a percentile of the training ones (arXiv:2111.12797)')
class React(_Reshaped):
    """Energy of the classifier on min(f, c).

    Args:
        percentile: c is this percentile of all training activations, in percent.
    """

    def __init__(self, percentile: float = 90.) -> None:
        super().__init__(percentile)

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        super().fit(train, head)
        self.clip = percentile_of(train.features, self.percentile)
        self.diagnostics['clip'] = self.clip

    @override
    def reshape(self, features: Tensor) -> Tensor:
        return features.to(torch.float64, copy=True).clamp_(max=self.clip)


@SCORES.register('vra', 'energy with low features removed and high ones clipped at percentiles (arXiv:2302.11716)')
class Vra(_Reshaped):
    """Energy of the classifier on features that are 0 below a, b above b, and between them moved up by gamma.

    Xu et al., VRA: Variational Rectified Activation for Out-of-distribution Detection, NeurIPS 2023: low and high
    features are suppressed and those between amplified, by piecewise functions whose ends are percentiles of the
    training features (VRA-P). OpenOOD's ``vra`` does not amplify, raises low features to a (``below='clip'``) and takes
    percentiles of validation images; its sweep tries 85 to 99 and 1 to 15.

    Args:
        upper: b is this percentile of all training activations, in percent.
        lower: a, the same.
        below: What becomes of features below a: zero, or clip for a itself.
        amplify: gamma.
    """

    def __init__(self, upper: float = 90., lower: float = 10., below: str = 'zero', amplify: float = 0.) -> None:
        super().__init__(_percent('upper', upper))
        self.lower, self.below, self.amplify = _percent('lower', lower), below, float(amplify)
        if lower > upper:
            raise ValueError(f'vra: lower is a percentile no higher than upper={upper:g}, got {lower:g}')
        if below not in ('zero', 'clip'):
            raise ValueError(f'vra: below is zero or clip, got {below!r}')
        if not math.isfinite(amplify):
            raise ValueError(f'vra: amplify is a number, got {amplify}')

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        super().fit(train, head)
        self.low, self.high = (percentile_of(train.features, percent) for percent in (self.lower, self.percentile))
        self.diagnostics |= {'low': self.low, 'high': self.high}

    @override
    def reshape(self, features: Tensor) -> Tensor:
        shaped = features.to(torch.float64, copy=True)
        if self.amplify:
            shaped += self.amplify
        shaped.masked_fill_(features < self.low, 0. if self.below == 'zero' else self.low)
        return shaped.masked_fill_(features > self.high, self.high)


def _largest(features: Tensor, percentile: float) -> tuple[Tensor, Tensor, Tensor]:
    """The largest features of each row in float64 [n, k], their places [n, k], and the sum of all, float64 [n, 1]."""
    width = features.shape[1]
    values, places = features.topk(max(1, width - round(width * percentile / 100)), dim=1, sorted=False)
    return values.double(), places, features.sum(1, keepdim=True, dtype=torch.float64)


def _scale(whole: Tensor, largest: Tensor) -> Tensor:
    """exp(S1 / S2); 1 if the ratio is undefined, for inactive or negative features."""
    return torch.where(largest > 0, whole / largest, 0.).clamp_(max=_MAX_EXPONENT).exp_()


@SCORES.register('ash', 'energy with small features removed, the rest scaled up, flattened or kept (arXiv:2209.09858)')
class Ash(_Reshaped):
    """Energy of the classifier on the largest features alone.

    What becomes of them is the variant's: ASH-S multiplies them by exp(sum before / sum after), ASH-B sets all to
    sum before / their number, ASH-P keeps them. Features are pooled, as in OpenOOD, whose ``ash`` is ASH-B.

    Args:
        percentile: Share of each sample's features that is removed, in percent.
        variant: s, b or p.
    """

    def __init__(self, percentile: float = 90., variant: str = 's') -> None:
        super().__init__(percentile)
        self.variant = str(variant).casefold()
        if self.variant not in ('s', 'b', 'p'):
            raise ValueError(f'ash: variant is s (scaled), b (binary) or p (pruned), got {variant!r}')

    @override
    def reshape(self, features: Tensor) -> Tensor:
        values, places, whole = _largest(features, self.percentile)
        if self.variant == 's':
            values *= _scale(whole, values.sum(1, keepdim=True))
        elif self.variant == 'b':
            values = (whole / values.shape[1]).expand_as(values)
        return whole.new_zeros(features.shape).scatter_(1, places, values)


@SCORES.register('scale', "energy with features scaled as ASH's, none removed (arXiv:2310.00227)")
class Scale(_Reshaped):
    """Energy of the classifier on features times exp(sum of all / sum of the largest).

    Args:
        percentile: Share of each sample's features that is not among the largest, in percent.
    """

    def __init__(self, percentile: float = 85.) -> None:
        super().__init__(percentile)

    @override
    def reshape(self, features: Tensor) -> Tensor:
        values, _, whole = _largest(features, self.percentile)
        return features * _scale(whole, values.sum(1, keepdim=True))


@SCORES.register('dice', 'energy with only the weights that contribute most on average (arXiv:2111.09805)')
class Dice(_Reshaped):
    """Energy of the classifier whose weights are zero unless mean training feature x weight is among the largest.

    Args:
        percentile: Share of all K x D weights that is set to zero, in percent.
    """

    def __init__(self, percentile: float = 90.) -> None:
        super().__init__(percentile)

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        assert head is not None
        super().fit(train, head)
        contribution = head.weight.double() * feature_mean(train.features)
        bar = float(np.percentile(contribution.cpu().numpy(), self.percentile)) if self.percentile else -math.inf
        mask = contribution > bar
        self.head = Head(head.weight.double() * mask, head.bias.double())
        self.diagnostics['kept'] = float(mask.double().mean())

    @override
    def reshape(self, features: Tensor) -> Tensor:
        return features.double()
