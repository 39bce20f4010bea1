"""Checks of the metrics' input: lists, NumPy arrays or tensors become float64 or int64 vectors."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    'ArrayLike',
    'as_array',
    'check_level',
    'correctness',
    'fraction',
    'infinite_count',
    'labels',
    'scores',
    'sides',
]

ArrayLike: TypeAlias = 'Tensor | NDArray | Sequence[float] | Sequence[int] | Sequence[bool]'


def as_array(values: ArrayLike) -> NDArray:
    """Any accepted input as a NumPy array on the host; half precision tensors as float32.

    Raises:
        ValueError: A NumPy masked array with values masked.
    """
    if isinstance(values, np.ma.MaskedArray):
        hidden = int(np.ma.getmaskarray(values).sum())
        if hidden:
            raise ValueError(f'{hidden} of {values.size} values are masked, and a metric takes every sample it is '
                             'given; leave them out of all arrays first (scores.compressed(), correct[~scores.mask])')
        return values.data
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    return np.asarray(values)


def scores(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Knownness as float64 [N]; infinities are allowed, they have a place in the order.

    Raises:
        ValueError: Not one-dimensional, empty, or NaN somewhere (count and first positions).
    """
    array = as_array(values)
    if array.ndim != 1 or array.dtype.kind not in 'fiub':
        raise ValueError(f'{name} is a one-dimensional array of numbers, got {array.dtype} {list(array.shape)}')
    if not array.size:
        raise ValueError(f'{name} is empty: a rank metric compares knowns with unknowns, give at least one of each')
    array = array.astype(np.float64)
    bad = np.flatnonzero(np.isnan(array))
    if bad.size:
        shown = ', '.join(map(str, bad[:5])) + (', ...' if bad.size > 5 else '')
        raise ValueError(f'{name} has {bad.size} NaN of {array.size} scores, at position {shown}; '
                         'a NaN has no rank, so find out where it comes from or leave those samples out')
    return array


def sides(known: ArrayLike, unknown: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both sides of a rank metric, checked."""
    return scores('known', known), scores('unknown', unknown)


def correctness(correct: ArrayLike, size: int) -> NDArray[np.bool_]:
    """Which knowns got their own class, bool [size].

    Raises:
        ValueError: Another length, or values other than 0 and 1.
    """
    array = as_array(correct)
    if array.shape != (size,) or not ((array == 0) | (array == 1)).all():
        raise ValueError(f'correct says for each of the {size} knowns whether its class was right (bool [{size}]), '
                         f'got {array.dtype} {list(array.shape)}')
    return array.astype(bool)


def labels(name: str, values: ArrayLike, size: int | None = None) -> NDArray[np.int64]:
    """Class indices as int64 [N].

    Raises:
        ValueError: Not a vector of integers, empty, or of another length than ``size``.
    """
    array = as_array(values)
    if array.ndim != 1 or array.dtype.kind not in 'iu' or not array.size or size not in (None, array.size):
        expected = 'at least one' if size is None else size
        raise ValueError(f'{name} is a vector of {expected} class indices (integers), '
                         f'got {array.dtype} {list(array.shape)}')
    return array.astype(np.int64)


def infinite_count(known: ArrayLike, unknown: ArrayLike) -> int:
    """Number of infinite scores: they rank, but indicate an overflow."""
    return sum(int(np.isinf(side).sum()) for side in sides(known, unknown))


def fraction(name: str, value: float, ends: bool = True) -> float:
    """A rate as it is, or ValueError outside [0, 1] (outside (0, 1) without ``ends``)."""
    if not (0 <= value <= 1 if ends else 0 < value < 1):
        between = '[0, 1]' if ends else '(0, 1)'
        raise ValueError(f'{name} is a fraction in {between}, got {value}' + (
            f'; for {value} percent give {value / 100:g}' if 1 < value <= 100 else ''))
    return float(value)


def check_level(level: float) -> float:
    """The probability that an interval is to cover, in (0, 1)."""
    return fraction('level', level, ends=False)
