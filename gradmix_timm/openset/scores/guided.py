"""Scores of training neighbours weighted by the classifier's outputs: NNGuide, the relation graph."""
from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from gradmix_timm.records import Embeddings

from .base import SCORES, Head, Score, blocks, by_rows, chunks
from .neighbours import NeighbourScore, top_cosines, unit

__all__ = ['NeighbourGuide', 'Relation']

# Values of queries in float64 taken at a time, 34 MB, and training samples of one block.
_QUERIES, _SAMPLES = 2 ** 22, 1024
# Far above the rounding of a bound, which is compared with a threshold.
_SLACK = 1e-9


@SCORES.register('nnguide', 'energy times the mean energy-weighted cosine to the k nearest training features '
                            '(arXiv:2309.14888)')
class NeighbourGuide(NeighbourScore):
    """E(z) times the mean of the k largest E(z_i) cos(f, f_i) over training samples i; E = logsumexp.

    Park et al., Nearest Neighbor Guidance for Out-of-Distribution Detection, ICCV 2023; OpenOOD's ``nnguide`` takes
    k = 100 of the first hundredth of the shuffled training images (``alpha: 0.01``).

    Args:
        k: Neighbours; default 10, as in the authors' code, or all samples if there are fewer.
        share: Share of the training samples that is searched, evenly spaced in the order they come in; in (0, 1].
    """

    reads = ('features', 'logits')
    usual = 10

    def __init__(self, k: int | None = None, share: float = 1.) -> None:
        super().__init__(k)
        if not 0 < share <= 1:
            raise ValueError(f'nnguide: share is a share of the training samples in (0, 1], got {share}')
        self.share = float(share)

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        count = max(1, round(self.share * len(train.features)))
        if count < len(train.features):
            train = train.rows(torch.arange(count, device=train.features.device) * len(train.features) // count)
        super().fit(train, head)
        self.energy = _energy(train.logits)

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        guidance = top_cosines(embeddings.features, self.samples, self.k, self.energy)[0].mean(1)
        return guidance * _energy(embeddings.logits)


def _energy(logits: Tensor) -> Tensor:
    return by_rows(lambda rows: rows.double().logsumexp(1), logits)


@SCORES.register('relation', 'sum over training samples of cosine times agreement of the softmax (arXiv:2301.12321)')
class Relation(Score):
    """Sum over training samples i of r_i^t, r_i = max(0, cos(f, f_i)) <p, p_i>, where r_i exceeds a threshold.

    Kim et al., Neural Relation Graph: A Unified Framework for Identifying Label Noise and Outlier Data, NeurIPS 2023;
    OpenOOD's ``relation``, whose ``pow`` is t and whose threshold is fixed at 0.03.

    Samples are kept in blocks of one predicted class, from sure to unsure. With a and b the block's largest probability
    of that class c and of any other, <p, p_i> <= p_c a + (1 - p_c) b: queries whose bound does not reach the threshold
    pass the block by, which changes nothing and leaves few comparisons where a net is sure.

    Args:
        power: t.
        threshold: Relations up to this count nothing.
    """

    reads = ('features', 'logits')
    needs_train = True

    def __init__(self, power: float = 1., threshold: float = 0.03) -> None:
        if not 0 < power < float('inf') or not 0 <= threshold < 1:
            raise ValueError('relation takes a positive power and a threshold in [0, 1), got '
                             f'power={power}, threshold={threshold}')
        self.power, self.threshold = float(power), float(threshold)

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        answer = train.label.new_empty(len(train.label))
        top, other = (train.logits.new_zeros(len(train.label), dtype=torch.float64) for _ in range(2))
        for rows in blocks(train.logits):
            p = train.logits[rows].double().softmax(1)
            top[rows], answer[rows] = p.max(1)
            other[rows] = p.scatter(1, answer[rows, None], 0.).amax(1)
        self.samples, self.logits = train.features, train.logits
        self.order = (2 * answer - top).argsort(stable=True)
        counts = answer.bincount(minlength=train.logits.shape[1]).tolist()
        parts = [part for own in self.order.split(counts) for part in own.split(_SAMPLES) if len(part)]
        self.sizes = [len(part) for part in parts]
        self.answers = torch.stack([answer[part[0]] for part in parts])
        self.most = torch.stack([top[part].amax() for part in parts])
        self.others = torch.stack([other[part].amax() for part in parts])
        self.diagnostics = {'samples': len(train.label), 'blocks': len(parts)}

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        found = self.most.new_zeros(len(embeddings.label))
        for rows in chunks(len(found), max(1, _QUERIES // max(1, sum(
                getattr(embeddings, field).shape[1] for field in self.reads)))):
            found[rows] = self._rows(embeddings.features[rows], embeddings.logits[rows])
        return found

    def _rows(self, features: Tensor, logits: Tensor) -> Tensor:
        query, p = unit(features), logits.double().softmax(1)
        found = p.new_zeros(len(p))
        own = p[:, self.answers]
        reach = own * self.most + (1 - own) * self.others > self.threshold - _SLACK
        for number, part in enumerate(self.order.split(self.sizes)):
            rows = reach[:, number].nonzero()[:, 0]
            if len(rows):
                relation = (query[rows] @ unit(self.samples[part]).T).clamp_(min=0)
                relation *= p[rows] @ self.logits[part].double().softmax(1).T
                relation.masked_fill_(relation <= self.threshold, 0.)
                found[rows] += (relation if self.power == 1 else relation.pow_(self.power)).sum(1)
        return found
