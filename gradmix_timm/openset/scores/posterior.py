"""Scores of the softmax that are fitted: KL matching, MSP at a fitted temperature."""
from __future__ import annotations

import warnings

import torch
from torch import Tensor
from typing_extensions import override

from gradmix_timm.openset.metrics.calibration import fit_temperature
from gradmix_timm.records import Embeddings

from .base import SCORES, Head, blocks
from .logit import Gaps, GapScore, MaxSoftmax

__all__ = ['KLMatching', 'TemperatureScaled']

# Below float64's smallest normal number a probability counts as this one: its logarithm stays finite.
_LEAST = torch.finfo(torch.float64).tiny


@SCORES.register('klm', 'minus the KL divergence from the nearest mean softmax of a predicted class (arXiv:1911.11132)')
class KLMatching(GapScore):
    """-min over k of KL(p || d_k), d_k the mean softmax of the images that are predicted as class k.

    Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, ICML 2022 (arXiv:1911.11132);
    OpenOOD's ``klm``. The paper takes the d_k from validation images: on training images, which a net fits
    closely, they are nearly one-hot. A class that is predicted for no image has no d_k and is left out. Labels are not
    looked at.
    """

    needs_train = True
    fits_on_held_out = True

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        classes = train.logits.shape[1]
        total = train.logits.new_zeros(classes, classes, dtype=torch.float64)
        count = train.logits.new_zeros(classes, dtype=torch.int64)
        for rows in blocks(train.logits):
            answer = train.logits[rows].argmax(1)
            total.index_add_(0, answer, train.logits[rows].double().softmax(1))
            count += answer.bincount(minlength=classes)
        seen = count > 0
        self.log_means = (total[seen] / count[seen, None]).clamp_(min=_LEAST).log_()
        self.diagnostics = {'samples': len(train.logits), 'classes': int(seen.sum())}

    @override
    def of(self, logits: Tensor) -> Tensor:
        return super().of(logits.double())  # a difference that is small where the net is sure

    @override
    def of_gaps(self, gaps: Gaps) -> Tensor:
        # With s the sum of powers, p = powers / s and log p = below - log s.
        nearest = (gaps.powers @ self.log_means.T).amax(1)
        total = gaps.rest.exp().log1p_()
        return (nearest - (gaps.powers * gaps.below).sum(1)) / total.exp() + total


@SCORES.register('temperature', 'largest softmax probability at the temperature that suits labels best '
                                '(arXiv:1706.04599)')
class TemperatureScaled(MaxSoftmax):
    """MSP of logits / T with the T in [0.01, 100] of least negative log-likelihood.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2; OpenOOD's ``temp_scaling``, which
    takes at most 50 steps of length 0.01 from T = 1.5 and may stop before the optimum; here it is reached. T belongs on
    images that took no part in training: on training images a net is surer than it is right.
    """

    needs_train = True
    fits_on_held_out = True

    def __init__(self) -> None:
        super().__init__()

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            self.temperature = fit_temperature(train.logits.float().cpu().numpy(), train.label.cpu().numpy())
        self.diagnostics = {'samples': len(train.logits), 'temperature': self.temperature,
                            'note': str(caught[0].message) if caught else None}
