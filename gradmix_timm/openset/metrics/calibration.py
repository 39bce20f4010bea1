"""Calibration on the closed set: calibration errors, proper scores, temperature."""
from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from .checks import ArrayLike, as_array
from .checks import labels as as_labels

__all__ = ['Reliability', 'adaptive_ece', 'brier', 'ece', 'fit_temperature', 'nll', 'reliability']

Floats = NDArray[np.float64]
# Values in float64 at a time, 8 MB.
_BLOCK = 2 ** 20


@dataclass(frozen=True, slots=True)
class Reliability:
    """Bins of confidence, for a reliability diagram; bins without samples have NaN means.

    Attributes:
        edges: Upper edges, float64 [bins]; bin i holds confidences in (edges[i - 1], edges[i]].
        count: Samples in each bin, int64 [bins].
        confidence: Their mean confidence, float64 [bins].
        accuracy: Their accuracy, float64 [bins].
    """

    edges: Floats
    count: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """Sum over bins of the bin's share times |accuracy - confidence|."""
        some = self.count > 0
        gap = np.abs(self.accuracy[some] - self.confidence[some])
        return float((self.count[some] * gap).sum() / self.count.sum())


def _matrix(name: str, values: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray[np.int64]]:
    """Finite rows [N, K] and their labels in 0..K-1."""
    array = as_array(values)
    if array.dtype.kind in 'iub':
        array = array.astype(np.float64)
    if array.ndim != 2 or array.dtype.kind != 'f' or 0 in array.shape:
        raise ValueError(f'{name} is a float array [N, K], got {array.dtype} {list(array.shape)}')
    target = as_labels('labels', labels, len(array))
    if not np.isfinite(array).all():
        raise ValueError(f'{name} has {int((~np.isfinite(array)).any(1).sum())} rows that are not finite')
    if target.min() < 0 or target.max() >= array.shape[1]:
        raise ValueError(f'labels go from 0 to {array.shape[1] - 1}, got {target.min()} to {target.max()}; '
                         'calibration is a matter of the known classes, leave unknown samples out')
    return array, target


def _probabilities(probs: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray[np.int64]]:
    array, target = _matrix('probs', probs, labels)
    off = np.abs(array.sum(1, dtype=np.float64) - 1).max()
    if array.min() < 0 or off > 1e-2:
        raise ValueError(f'probs are probabilities whose rows sum to 1 (smallest entry {array.min():.4g}, '
                         f'a row off by {off:.4g}); apply softmax to logits first')
    return array, target


def _check_bins(bins: int) -> None:
    if bins < 1 or bins % 1:
        raise ValueError(f'bins is the number of bins, a whole number of at least 1, got {bins}')


def _binned(probs: NDArray, target: NDArray[np.int64], edges: NDArray) -> Reliability:
    confidence = probs.max(1)
    right = (probs.argmax(1) == target).astype(np.float64)
    # Edges in the dtype of the confidences: float32(0.2) then lies on the edge 3 / 15, not just above it.
    place = np.searchsorted(edges[:-1].astype(confidence.dtype), confidence, side='left')
    count = np.bincount(place, minlength=len(edges))
    with np.errstate(invalid='ignore'):
        means = [np.bincount(place, x.astype(np.float64), len(edges)) / count for x in (confidence, right)]
    return Reliability(edges, count, *means)


def reliability(probs: ArrayLike, labels: ArrayLike, bins: int = 15) -> Reliability:
    """Confidence against accuracy in bins (a, b] of equal width.

    Args:
        probs: Probabilities, [N, K], rows summing to 1.
        labels: Classes 0..K-1, int [N].
        bins: Number of bins over [0, 1].
    """
    _check_bins(bins)
    return _binned(*_probabilities(probs, labels), np.arange(1, bins + 1) / bins)


def ece(probs: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: mean over samples of |accuracy - confidence| of the sample's bin.

    Bins of equal width, confidence in (a, b]. Guo et al., arXiv:1706.04599.

    Args:
        probs: Probabilities, [N, K], rows summing to 1.
        labels: Classes 0..K-1, int [N].
        bins: Number of bins over [0, 1].

    Returns:
        Fraction in [0, 1].

    Example:
        >>> round(ece([[0.9, 0.1], [0.8, 0.2]], [0, 1], bins=2), 2)
        0.35
    """
    return reliability(probs, labels, bins).error


def adaptive_ece(probs: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """As :func:`ece` with bins that hold equally many samples; equal confidences stay in one bin.

    Args:
        probs: Probabilities, [N, K], rows summing to 1.
        labels: Classes 0..K-1, int [N].
        bins: Their number.

    Returns:
        Fraction in [0, 1].

    Raises:
        ValueError: Rows that are no probabilities, labels that are no classes, or no bin.
    """
    _check_bins(bins)
    array, target = _probabilities(probs, labels)
    ordered = np.sort(array.max(1))
    last = np.ceil(np.arange(1, bins + 1) * len(ordered) / bins).astype(int) - 1
    return _binned(array, target, np.unique(ordered[last])).error


def nll(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-likelihood of the labels, in nats, in float64.

    Args:
        logits: [N, K].
        labels: Classes 0..K-1, int [N].

    Example:
        >>> round(nll([[0., 0.], [0., 0.]], [0, 1]), 4)
        0.6931
    """
    return _nll(*_matrix('logits', logits, labels), 1.)


def _nll(array: NDArray, target: NDArray[np.int64], scale: float) -> float:
    """Of scaled logits; a block of rows in float64 at a time, since those of ImageNet would take 10 GB."""
    total, rows = 0., max(1, _BLOCK // array.shape[1])
    for start in range(0, len(array), rows):
        block, label = array[start:start + rows].astype(np.float64) * scale, target[start:start + rows]
        total -= log_softmax(block, axis=1)[np.arange(len(label)), label].sum()
    return float(total / len(array))


def brier(probs: ArrayLike, labels: ArrayLike) -> float:
    """Mean over samples of the summed squared error, sum over classes of (p - y)^2; not halved.

    Args:
        probs: Probabilities, [N, K], rows summing to 1.
        labels: Classes 0..K-1, int [N].

    Returns:
        In [0, 2].

    Raises:
        ValueError: Rows that are no probabilities, or labels that are no classes.

    Example:
        >>> round(brier([[0.8, 0.2]], [0]), 2)
        0.08
    """
    array, target = _probabilities(probs, labels)
    errors = array.astype(np.float64)
    errors[np.arange(len(target)), target] -= 1
    return float((errors ** 2).sum(1).mean())


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature T that minimises the negative log-likelihood of logits / T; one dimension, over log T.

    Fit on validation data of the known classes, never on test. It changes the order by MSP, energy and entropy, not by
    the maximum logit.

    Args:
        logits: [N, K].
        labels: Classes 0..K-1, int [N].

    Returns:
        T in [0.01, 100]; an end of it comes with a warning (0.01: all samples are classified right; 100: the logits
        say nothing about the labels), as does 1 for logits that are equal in every sample.
    """
    from scipy.optimize import minimize_scalar  # imported here, as it takes a second

    array, target = _matrix('logits', logits, labels)
    span = np.log(100.)
    if (array.max(1) == array.min(1)).all():
        warnings.warn('the logits of every sample are equal, so that the temperature changes nothing', stacklevel=2)
        return 1.
    if (array[np.arange(len(target)), target] == array.max(1)).all():
        warnings.warn('the validation samples are all classified right, so the likelihood only grows as the '
                      'temperature falls; 0.01 is the end of the range', stacklevel=2)
        return 0.01
    found = minimize_scalar(lambda t: _nll(array, target, np.exp(-t)), bounds=(-span, span), method='bounded',
                            options={'xatol': 1e-9})
    if abs(found.x) > span - 1e-3:
        warnings.warn(f'the best temperature lies at an end of the range ({np.exp(found.x):.3g}); at 100 the logits '
                      'say nothing about the labels', stacklevel=2)
    return float(np.exp(found.x))
