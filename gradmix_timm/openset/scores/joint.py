"""Scores of features together with the classifier's prediction: SHE, fDBD, NCI, GradNorm."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from gradmix_timm.records import Embeddings

from .base import SCORES, FewSamples, Head, Score, blocks, by_rows, feature_mean
from .logit import positive_temperature

__all__ = ['BoundaryDistance', 'GradNorm', 'Hopfield', 'NeuralCollapse']

# Length below which a vector is taken for zeros.
_TINY = 1e-12


@SCORES.register('she', 'inner product with the mean training feature of the predicted class (SHE, ICLR 2023)')
class Hopfield(Score):
    """<f, S_y>, S_y the mean feature of the correctly classified training images of class y, y the predicted class.

    Zhang et al., Out-of-Distribution Detection based on In-Distribution Data Patterns Memorization with Modern Hopfield
    Energy, ICLR 2023 (the simplified Hopfield energy; https://openreview.net/forum?id=KkazG4lgKL); OpenOOD's ``she``,
    whose ``metric`` has the same three values.

    Args:
        metric: inner_product; euclidean (minus the distance) or cosine.
    """

    reads = ('features', 'logits')
    needs_train = True

    def __init__(self, metric: str = 'inner_product') -> None:
        if metric not in ('inner_product', 'euclidean', 'cosine'):
            raise ValueError(f'she: metric is inner_product, euclidean or cosine, got {metric!r}')
        self.metric = metric

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        classes = train.logits.shape[1]
        total = train.features.new_zeros(classes, train.features.shape[1], dtype=torch.float64)
        count = train.features.new_zeros(classes, dtype=torch.int64)
        for rows in blocks(train.features):
            label = train.label[rows]
            right = train.logits[rows].argmax(1) == label
            total.index_add_(0, label[right], train.features[rows][right].double())
            count += label[right].bincount(minlength=classes)
        if count.min() < 1:
            raise FewSamples('she needs a training sample of every class that is classified right', count.tolist(), 1,
                             'train the model longer or use another score')
        self.patterns = total / count[:, None]
        self.diagnostics = {'samples': int(count.sum()), 'right': int(count.sum()) / len(train.label)}

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        return by_rows(self._rows, embeddings.features, embeddings.logits, arrays=2)

    def _rows(self, features: Tensor, logits: Tensor) -> Tensor:
        pattern = self.patterns[logits.argmax(1)]
        if self.metric == 'cosine':
            return F.cosine_similarity(features.double(), pattern, dim=1, eps=_TINY)
        return pattern.mul_(features).sum(1) if self.metric == 'inner_product' else -pattern.sub_(features).norm(dim=1)


@SCORES.register('fdbd', "mean distance to the classes' boundaries over that to the training mean (arXiv:2312.11536)")
class BoundaryDistance(Score):
    """Mean over c other than y of (z_y - z_c) / |w_y - w_c|, over |f - mu|: y predicted, mu the training mean.

    (z_y - z_c) / |w_y - w_c| is the distance of f from where the classifier would predict c instead. Liu and Qin, Fast
    Decision Boundary based Out-of-Distribution Detector, ICML 2024 (arXiv:2312.11536); OpenOOD's ``fdbd``, which sums
    where the paper and this take the mean. Classes of equal weights have no boundary between them and count nothing.

    Args:
        normalizer: distance: |f - mu| as in the paper; norm: |f|, OpenOOD's ``distance_as_normalizer: False``.
    """

    reads = ('features', 'logits')
    needs_train = True
    needs_head = True

    def __init__(self, normalizer: str = 'distance') -> None:
        if normalizer not in ('distance', 'norm'):
            raise ValueError(f'fdbd: normalizer is distance (to the training mean) or norm, got {normalizer!r}')
        self.normalizer = normalizer

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        assert head is not None
        self.mean = feature_mean(train.features)
        weight = head.weight.double()
        apart = torch.cdist(weight, weight, compute_mode='donot_use_mm_for_euclid_dist')
        self.per_apart = torch.where(apart > _TINY, 1 / apart, 0.) / max(1, len(weight) - 1)
        self.diagnostics = {'samples': len(train.features)}

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        return by_rows(self._rows, embeddings.features, embeddings.logits, arrays=3)

    def _rows(self, features: Tensor, logits: Tensor) -> Tensor:
        top, answer = logits.double().max(1, keepdim=True)
        far = ((top - logits) * self.per_apart[answer[:, 0]]).sum(1)
        from_where = features - self.mean if self.normalizer == 'distance' else features.double()
        return far / from_where.norm(dim=1).clamp_(min=_TINY)


@SCORES.register('nci', "the predicted class's weights along the centred feature, plus a share of its L1 norm "
                        '(arXiv:2311.01479)')
class NeuralCollapse(Score):
    """w_y . (f - mu) / |f - mu| + alpha |f|_1, y the predicted class, mu the training mean.

    Liu and Qin, Detecting Out-of-Distribution through the Lens of Neural Collapse, CVPR 2025 (arXiv:2311.01479);
    OpenOOD's ``nci``.

    Args:
        alpha: Weight of the L1 norm; OpenOOD's fixed value by default.
    """

    reads = ('features', 'logits')
    needs_train = True
    needs_head = True

    def __init__(self, alpha: float = 1e-4) -> None:
        if not 0 <= alpha < float('inf'):
            raise ValueError(f'nci: alpha is the weight of the L1 norm, 0 or more, got {alpha}')
        self.alpha = float(alpha)

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        assert head is not None
        self.mean, self.weight = feature_mean(train.features), head.weight.double()
        self.diagnostics = {'samples': len(train.features)}

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        return by_rows(self._rows, embeddings.features, embeddings.logits, arrays=3)

    def _rows(self, features: Tensor, logits: Tensor) -> Tensor:
        centred = features - self.mean
        along = self.weight[logits.argmax(1)].mul_(centred).sum(1) / centred.norm(dim=1).clamp_(min=_TINY)
        return along + self.alpha * features.abs().sum(1, dtype=torch.float64)


@SCORES.register('gradnorm', "L1 norm of the gradient of the classifier's weights, by uniform labels "
                             '(arXiv:2110.00218)')
class GradNorm(Score):
    """|f|_1 |p - 1/K|_1 / T, which is the L1 norm of the last layer's gradient, and needs no backward pass.

    The loss is KL(uniform || softmax(z / T)), whose gradient by the weight matrix is the outer product of
    (p - 1/K) / T and f. Huang et al., On the Importance of Gradients for Detecting Distributional Shifts in the Wild,
    NeurIPS 2021 (arXiv:2110.00218), which notes this product; OpenOOD's ``gradnorm`` sums over classes where the paper
    takes the mean, a factor K.

    Args:
        temperature: T.
    """

    reads = ('features', 'logits')

    def __init__(self, temperature: float = 1.) -> None:
        self.temperature = positive_temperature(temperature)

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        return by_rows(self._rows, embeddings.features, embeddings.logits)

    def _rows(self, features: Tensor, logits: Tensor) -> Tensor:
        gap = (logits.double() / self.temperature).softmax(1).sub_(1 / logits.shape[1])
        return features.abs().sum(1, dtype=torch.float64) * gap.abs_().sum(1) / self.temperature
