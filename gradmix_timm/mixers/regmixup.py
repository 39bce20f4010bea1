"""RegMixup: the clean batch and its mixup, trained on together."""
from __future__ import annotations

from typing import Any

from .plain import Mixup

__all__ = ['RegMixup']


class RegMixup(Mixup):
    """CE(x, y) + CE(x~, y~), mean over both: the clean batch first, then its mixup, 2 B rows.

    Pinto et al., "RegMixup: Mixup as a Regularizer Can Surprisingly Improve Accuracy and Out Distribution Robustness",
    arXiv:2206.14502, equation 4 with eta = 1, which their code too makes of one concatenated batch and one mean.
    lam ~ Beta(alpha, alpha) near one half; their alpha is 20 on CIFAR-10 and 10 on CIFAR-100. A step costs two. In a
    batch that ``prob`` leaves alone, the clean rows come twice.

    Args:
        num_classes: K.
        alpha: Of Beta(alpha, alpha).
        lam: 'image' for a draw each, 'batch' for one, as theirs.
        **common: See :class:`BatchMixer`.
    """

    name = 'regmixup'
    rows_per_image = 2

    def __init__(self, num_classes: int, alpha: float = 20.0, lam: str = 'image', **common: Any) -> None:
        super().__init__(num_classes, alpha, lam, **common)
