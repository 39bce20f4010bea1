"""The closed-set accuracy that a model should have, checked before anything is said of unknowns.

A wrong mean, crop or class order costs accuracy first; figures of unknowns from such a model look like any others.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ['SLACK', 'check_accuracy']

#: How far below the reference the accuracy may lie: one point.
SLACK = 0.01


def check_accuracy(correct: NDArray[np.bool_], reference: float, where: str, source: str) -> dict[str, float | str]:
    """Refuse an accuracy more than one point (and more than one image) below the reference.

    Args:
        correct: Which images were named rightly, bool [N].
        reference: Accuracy that was reached before, in [0, 1].
        where: What the images are, for the message.
        source: Where the reference is from.

    Returns:
        For results.json: 'reference', 'measured', 'n', 'source'.

    Raises:
        ValueError: With what may be wrong and what to type.

    Example:
        >>> check_accuracy(np.arange(200) < 150, 0.76, 'test images', 'a paper')['measured']
        0.75
    """
    measured, count = float(np.mean(correct)), len(correct)
    missing = reference - measured
    # One image of few is more than a point, and rounding in another device's arithmetic may turn one.
    if missing > SLACK + 1e-9 and missing * count > 1 + 1e-6:
        raise ValueError(
            f'closed-set accuracy is {measured:.2%} on {count} {where}, and {source} says {reference:.2%}: '
            'preprocessing, data or class order are not those of the reference, and figures of unknowns would mean '
            'nothing; see --data-dir, --img-size, --known-classes and the checkpoint, or type --no-accuracy-gate')
    return {'reference': reference, 'measured': measured, 'n': count, 'source': source}
