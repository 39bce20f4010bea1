"""Scores of nearest neighbours among the training samples: k-th distance, mean cosine, class by class."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gradmix_timm.ops.neighbours import class_neighbour_shares, class_neighbour_sums
from gradmix_timm.records import Embeddings

from .fitting import SCORES, Head, Score, chunks

__all__ = ['ClassNeighbourShare', 'ClassNeighbours', 'Neighbour', 'NeighbourMean', 'top_cosines']

# Queries and training samples compared at a time: 134 MB of float64.
_QUERIES, _SAMPLES = 512, 32768
# Of 50,000 CIFAR-10 images, after arXiv:2204.06507; larger training sets want more (200, 1000).
_K = 50


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1 in float64; a row of zeros stays."""
    return F.normalize(rows.double(), dim=1)


def top_cosines(queries: Tensor, samples: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest cosine similarities of each query and where they are, largest first.

    Args:
        queries: [Q, D].
        samples: [N, D], N >= k, kept as they are: blocks are turned into float64 as they are used.
        k: Neighbours.

    Returns:
        Cosines float64 [Q, k] and rows of ``samples``, int64 [Q, k].
    """
    cosines, places = [], []
    for rows in chunks(len(queries), _QUERIES):
        query = _unit(queries[rows])
        best, where = query.new_empty(len(query), 0), torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
        for block in chunks(len(samples), _SAMPLES):
            near = query @ _unit(samples[block]).T
            value, place = near.topk(min(k, near.shape[1]), dim=1)
            both, whose = torch.cat([best, value], 1), torch.cat([where, place + block.start], 1)
            best, order = both.topk(min(k, both.shape[1]), dim=1)
            where = whose.gather(1, order)
        cosines.append(best)
        places.append(where)
    if not cosines:
        empty = torch.empty(0, k, device=queries.device)
        return empty.double(), empty.long()
    return torch.cat(cosines), torch.cat(places)


def _check_k(name: str, k: int | None) -> None:
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise ValueError(f'{name}: k is the number of neighbours, a whole number from 1 on, got {k!r}')


class _Neighbours(Score):
    """Holds the training features.

    Args:
        k: Neighbours; default 50, or all training samples where there are fewer.
    """

    reads = ('features',)
    needs_train = True

    def __init__(self, k: int | None = None) -> None:
        _check_k('knn', k)
        self.k = k or _K

    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        """Keep the features."""
        assert train is not None
        count = len(train.features)
        if self.k > count:
            if self.options['k'] is not None:
                raise ValueError(f'{self.name}: k={self.k} neighbours of {count} training samples; give a smaller k')
            self.k = count
        self.options['k'] = self.k
        self.samples = train.features
        self.diagnostics = {'samples': count}


@SCORES.register('knn', 'minus the distance to the k-th nearest training feature, normalised (arXiv:2204.06507)')
class Neighbour(_Neighbours):
    """-|f - f_(k)| of features of length 1; in [-2, 0].

    The neighbour is found by its cosine and its distance then taken directly, so that near ones keep their digits
    (sqrt(2 - 2 cos) leaves 1e-8 for a duplicate).
    """

    def knownness(self, embeddings: Embeddings) -> Tensor:
        """As the base class says."""
        place = top_cosines(embeddings.features, self.samples, self.k)[1][:, -1]
        far = [(_unit(embeddings.features[rows]) - _unit(self.samples[place[rows]])).norm(dim=1)
               for rows in chunks(len(place))]
        return -torch.cat(far) if far else place.double()


@SCORES.register('knn-mean', 'mean cosine similarity to the k nearest training features')
class NeighbourMean(_Neighbours):
    """Mean of the k largest cosine similarities; in [-1, 1]."""

    def knownness(self, embeddings: Embeddings) -> Tensor:
        """As the base class says."""
        return top_cosines(embeddings.features, self.samples, self.k)[0].mean(1)


@SCORES.register('class-knn', "sum of the k largest cosines to one class's training samples, of the best class")
class ClassNeighbours(Score):
    """max over c of S_c, the sum of the k largest cosine similarities to training samples of class c.

    The evaluation of the GradMix authors, with k = 3. It reads the projection head's output where there is one, else
    the features, and it is a predictor of its own: argmax S_c (:meth:`predict`).

    Args:
        k: Neighbours of each class.
    """

    needs_train = True

    def __init__(self, k: int = 3) -> None:
        _check_k('class-knn', k)
        self.k = k

    def fields(self, train: Embeddings | None) -> tuple[str, ...]:
        """The projection where the model has one."""
        return ('features',) if train is None or train.projection is None else ('projection',)

    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        """Keep the samples."""
        assert train is not None
        rows = getattr(train, self.reads[0])
        self.samples, self.label, self.classes = rows, train.label, train.logits.shape[1]
        self.diagnostics = {'samples': len(rows), 'reads': self.reads[0]}
        self._sums(rows[:1])  # refuses classes with fewer than k samples

    def _sums(self, queries: Tensor) -> Tensor:
        return class_neighbour_sums(self.samples.double(), self.label, queries.double(), self.k, self.classes)

    def knownness(self, embeddings: Embeddings) -> Tensor:
        """As the base class says."""
        return self._sums(getattr(embeddings, self.reads[0])).amax(1)

    def predict(self, embeddings: Embeddings) -> Tensor:
        """Class with the largest sum, int64 [N]."""
        return self._sums(getattr(embeddings, self.reads[0])).argmax(1)


@SCORES.register('class-knn-share', "the best class's share of the sums of class-knn, as the GradMix authors score")
class ClassNeighbourShare(ClassNeighbours):
    """max over c of S_c / sum_j S_j: a share, not a closeness; a sample far from everything may have a high one.

    Cosines are signed; where the sums of a sample add up to zero or less it has no shares, and the call raises
    ValueError naming ``class-knn``.

    Args:
        k: Neighbours of each class.
    """

    def knownness(self, embeddings: Embeddings) -> Tensor:
        """As the base class says."""
        sums = self._sums(getattr(embeddings, self.reads[0]))
        try:
            return class_neighbour_shares(sums).amax(1)
        except ValueError as error:
            raise ValueError(f'{self.name}: {error}; score by class-knn') from None
