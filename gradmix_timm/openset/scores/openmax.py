"""OpenMax: logits give up mass to an unknown class the farther they lie from their class's mean."""
from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from gradmix_timm.records import Embeddings

from .base import SCORES, FewSamples, Head, Score, chunks
from .logit import unsaturated

__all__ = ['OpenMax', 'WeibullTails']

_STEPS = 80
_STEP = 1e-150  # its square is still a number


class WeibullTails:
    """A Weibull law for the largest distances of each class, fit by maximum likelihood, all classes at once.

    As libMR fits it: distances less the smallest of the tail, plus a shift. With t = log(1 + y / shift) the
    Weibull law of y + shift is the Gumbel law of minima of t, whose scale s solves
    sum t e^(t/s) / sum e^(t/s) - mean t = s. The left side falls and the right side rises, so bisection finds it, and
    no digits are lost to the shift.

    Args:
        distance: Tails, float64 [C, T].
        present: Which entries count, bool [C, T]; at least one a class.
        shift: In the units of the distances.
    """

    def __init__(self, distance: Tensor, present: Tensor, shift: float = 1e4) -> None:
        self.shift, distance = shift, distance.double()
        self.least = torch.where(present, distance, torch.inf).amin(1)
        t = torch.where(present, torch.log1p((distance - self.least[:, None]) / shift), 0.)
        count = present.sum(1)
        mean = t.sum(1) / count
        room = t.amax(1) - mean
        # A tail of one value has no room: the law is then a step.
        low, high = (room * 1e-9).clamp(min=_STEP), room.clamp(min=_STEP)
        for _ in range(_STEPS):
            middle = (low * high).sqrt()
            weight = torch.where(present, t / middle[:, None], -torch.inf).softmax(1)
            above = (weight * t).sum(1) - mean > middle
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        self.scale = high
        exponent = torch.where(present, t / self.scale[:, None], -torch.inf)
        self.place = self.scale * (exponent.logsumexp(1) - count.log())

    @property
    def shape(self) -> Tensor:
        """The Weibull law's shape, float64 [C]."""
        return 1 / self.scale

    def cdf(self, distance: Tensor, which: Tensor) -> Tensor:
        """P(tail distance <= distance) by the law of class ``which``; both of one shape."""
        t = torch.log1p(((distance - self.least[which]) / self.shift).clamp(min=-1))
        return -torch.expm1(-((t - self.place[which]) / self.scale[which]).exp())


@SCORES.register('openmax', 'minus the unknown mass of OpenMax (arXiv:1511.06233)')
class OpenMax(Score):
    """-p_0: what the largest logits lose by their distance from the class mean, as a class of its own in the softmax.

    Mean logits per class over the training samples that are classified right, Euclidean distances to them, a Weibull
    law on the largest. The logit of rank r = 1..alpha is multiplied by 1 - w (alpha + 1 - r) / alpha with w the law's
    probability of a distance no larger; what they lose in sum is the unknown logit. As in the paper a negative logit
    rises when it is multiplied; with few classes keep alpha small. Each row is scored by itself.

    Args:
        tailsize: Largest distances of each class that the law is fit on; all if there are fewer.
        alpha: Logits revised, from the largest; all if there are fewer.
        shift: Added to the distances before the law is fit; 1 in libMR as its Python package and OpenOOD call it.
    """

    needs_train = True
    least = 1

    def __init__(self, tailsize: int = 20, alpha: int = 3, shift: float = 1e4) -> None:
        if tailsize < 2 or alpha < 1 or not 0 < shift < math.inf:
            raise ValueError('openmax takes tailsize >= 2, alpha >= 1 and a positive shift, got '
                             f'tailsize={tailsize}, alpha={alpha}, shift={shift}')
        self.tailsize, self.alpha, self.shift = tailsize, alpha, shift

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        classes = train.logits.shape[1]
        right = (train.logits.argmax(1) == train.label).nonzero()[:, 0]
        label = train.label[right]
        counts = label.bincount(minlength=classes)
        if counts.min() < 2:
            raise FewSamples('openmax needs two training samples of every class that are classified right',
                             counts.tolist(), 2, 'train the model longer or use another score')
        # Block by block: the logits of ImageNet in float64 are 10 GB.
        total = train.logits.new_zeros(classes, classes, dtype=torch.float64)
        for rows in chunks(len(right), 8192):
            total.index_add_(0, label[rows], train.logits[right[rows]].double())
        self.means = total / counts[:, None]
        distance = torch.cat([(train.logits[right[rows]].double() - self.means[label[rows]]).norm(dim=1)
                              for rows in chunks(len(right), 8192)])
        tails = [distance[label == c].topk(min(self.tailsize, int(counts[c]))).values for c in range(classes)]
        tail = torch.nn.utils.rnn.pad_sequence(tails, batch_first=True, padding_value=torch.nan)
        present = ~tail.isnan()
        self.law = WeibullTails(torch.where(present, tail, 0.), present, self.shift)
        self.revised = min(self.alpha, classes)
        self.options['alpha'] = self.revised
        self.diagnostics = {'samples': len(right), 'right': len(right) / len(train.label),
                            'tail': int(present.sum(1).min()), 'shape': self.law.shape.tolist()}

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        found = [self._rows(embeddings.logits[rows].double()) for rows in chunks(len(embeddings.logits), 1024)]
        return torch.cat(found) if found else self.means.new_empty(0)

    def _rows(self, logits: Tensor) -> Tensor:
        value, place = logits.topk(self.revised, dim=1)
        distance = (logits[:, None] - self.means[place]).norm(dim=2)
        rank = 1 - torch.arange(self.revised, device=logits.device).double() / self.revised
        share = self.law.cdf(distance, place) * rank
        lost = (value * share).sum(1)
        rest = logits.scatter(1, place, value * (1 - share)).logsumexp(1)
        both = torch.logaddexp(lost, rest)
        return -unsaturated(lost - both, rest - both)
