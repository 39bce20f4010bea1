"""A density of the features: a mixture of one Gaussian a class."""
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from gradmix_timm.records import Embeddings

from .base import SCORES, Head, Score
from .distance import Gaussian, class_means, class_scatter, mean_variance

__all__ = ['GaussianMixture']

# Of the covariances of all classes, in bytes; beyond it the one that they share is the choice.
_MOST = 2 ** 31


@SCORES.register('gmm', 'log density of the features by a mixture of one Gaussian a class (arXiv:2102.11582)')
class GaussianMixture(Score):
    """log sum over classes c of pi_c N(f; mu_c, S_c), pi_c the class's share of the training samples.

    Mukhoti et al., Deep Deterministic Uncertainty: A New Simple Baseline, CVPR 2023, take a covariance of each class's
    own, as pytorch-ood's ``GMM`` does; tied, it is the Mahalanobis distance with all classes in place of the nearest.
    OpenOOD's ``gmm`` has one covariance too, but components that EM finds from a random start without labels, on
    features projected to 50 dimensions, and is not what this computes.

    Args:
        covariance: tied (within classes, one for all) or full (one of each class).
        shrinkage: Ridge on every covariance, as a share of the mean variance within classes: the same for all, so that
            their determinants can be compared.
    """

    reads = ('features',)
    needs_train = True
    least = 2

    def __init__(self, covariance: str = 'tied', shrinkage: float = 1e-4) -> None:
        if covariance not in ('tied', 'full'):
            raise ValueError(f'gmm: covariance is tied (one for all classes) or full (one of each), got {covariance!r}')
        if not 0 <= shrinkage < math.inf:
            raise ValueError(f'gmm: shrinkage is a share of the mean variance, 0 or more, got {shrinkage}')
        self.covariance, self.shrinkage = covariance, float(shrinkage)

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        classes, (count, width) = train.logits.shape[1], train.features.shape
        if self.covariance == 'full' and 8 * classes * width ** 2 > _MOST:
            raise ValueError(f'gmm:covariance=full keeps {classes} matrices of {width} x {width}, '
                             f'{8e-9 * classes * width ** 2:.0f} GB; gmm:covariance=tied keeps one')
        means = class_means(train.features, train.label, classes)
        total = class_scatter(train.features, train.label, means, normalize=False)
        ridge = self.shrinkage * mean_variance(total / count)
        counts = train.label.bincount(minlength=classes)
        self.log_shares = (counts.double() / count).log()
        if self.covariance == 'tied':
            self.parts = [Gaussian(total / count, means, count, self.shrinkage, ridge)]
        else:
            self.parts = []
            for label, mean in enumerate(means):
                own = train.features[train.label == label]
                spread = class_scatter(own, torch.zeros_like(train.label[:len(own)]), mean[None], normalize=False)
                self.parts.append(Gaussian(spread / len(own), mean[None], len(own), self.shrinkage, ridge))
        self.log_constants = self.log_shares.new_tensor(
            [-(width * math.log(2 * math.pi) + part.log_determinant) / 2 for part in self.parts])
        self.diagnostics: dict[str, Any] = self.parts[0].diagnostics | {
            'samples': count, 'rank': min(part.diagnostics['rank'] for part in self.parts),
            'condition': max(part.diagnostics['condition'] for part in self.parts)}

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        if self.covariance == 'tied':
            return self.log_constants[0] + self.parts[0].over_centres(
                embeddings.features, lambda squares: (self.log_shares - squares / 2).logsumexp(1))
        found = torch.full_like(self.log_shares[:1], -math.inf).expand(len(embeddings.features))
        for part, share, constant in zip(self.parts, self.log_shares, self.log_constants, strict=True):
            found = torch.logaddexp(found, share + constant - part.nearest(embeddings.features) / 2)
        return found
