"""Scores of nearest neighbours among the training samples: k-th distance, mean cosine, class by class."""
from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from gradmix_timm.records import Embeddings

from .base import SCORES, FewSamples, Head, Score, chunks

__all__ = [
    'ClassNeighbourShare',
    'ClassNeighbours',
    'Neighbour',
    'NeighbourMean',
    'NeighbourScore',
    'check_k',
    'class_neighbour_sums',
    'kth_neighbours',
    'top_cosines',
    'unit',
]

# Queries and training samples compared at a time: 67 MB of float32.
_QUERIES, _SAMPLES = 512, 32768
# Samples of one class at a time, in float64.
_CLASS_ROWS = 4096
# Of 50,000 CIFAR-10 images, after arXiv:2204.06507; larger training sets want more (200, 1000).
_K = 50
# Neighbours beyond the k-th that are looked at again in float64: those that float32 may have put in another order.
_MARGIN = 16
# Cosines in float32 that differ by more than this, times the root of the width, are in the order of the true ones:
# eight times what the rounding of that many sums amounts to.
_SLACK = 2 ** -21
# Length below which a row is taken for zeros, as in F.normalize.
_TINY = 1e-12
# Training samples from which on faiss searches, where it is installed: below, its threads cost more than they gain.
_LARGE = 16384
# Columns that are folded into one while the largest of a row are searched.
_FOLD = 16


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1 in float64; a row of zeros stays."""
    return F.normalize(rows.double(), dim=1)


def top_cosines(queries: Tensor, samples: Tensor, k: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest cosine similarities of each query and where they are, largest first; or cosines times a weight.

    Candidates, 16 more than k, are found by a product in float32; their cosines are computed in float64, so that
    neither they nor their order depend on how a product is blocked.

    Args:
        queries: [Q, D].
        samples: [N, D], N >= k, kept as they are: blocks are normalised as they are used.
        k: Neighbours.
        weight: Of each sample, float64 [N], which its cosines are multiplied by first.

    Returns:
        Cosines float64 [Q, k] and rows of ``samples``, int64 [Q, k].
    """
    places = _candidates(queries, samples, min(k + _MARGIN, len(samples)), weight)[1]
    near = _exact(queries, samples, places)
    if weight is not None:
        near *= weight[places]
    best, order = near.topk(k, dim=1)
    return best, places.gather(1, order)


def kth_neighbours(queries: Tensor, samples: Tensor, k: int) -> Tensor:
    """Row of ``samples`` with the k-th largest cosine to each query, int64 [Q].

    As :func:`top_cosines`, but only the candidates of rank k - 16 to k + 16 are computed anew in float64, and these
    only where the k-th lies so close to the one before or after it that float32 may have put them in another order.

    Args:
        queries: [Q, D].
        samples: [N, D], N >= k.
        k: Neighbours.
    """
    first = max(0, k - 1 - _MARGIN)
    cosines, places = _candidates(queries, samples, min(k + _MARGIN, len(samples)))
    steps = cosines[:, max(0, k - 2):k + 1].diff(dim=1).neg()  # largest first
    close = (steps <= _SLACK * queries.shape[1] ** 0.5).any(1).nonzero()[:, 0]
    found, places = places[:, k - 1].clone(), places[close, first:]
    order = _exact(queries[close], samples, places).topk(k - first, dim=1).indices
    found[close] = places.gather(1, order[:, -1:])[:, 0]
    return found


def _exact(queries: Tensor, samples: Tensor, places: Tensor) -> Tensor:
    """Cosines of each query and its own samples, float64 [Q, C]."""
    found = queries.new_empty(places.shape, dtype=torch.float64)
    for rows in chunks(len(queries), max(1, 2 ** 20 // max(1, places.shape[1] * queries.shape[1]))):
        near = samples[places[rows].flatten()].double()
        cosines = (near.view(*places[rows].shape, -1) @ unit(queries[rows])[:, :, None])[..., 0]
        found[rows] = cosines / near.norm(dim=1).clamp(min=_TINY).view(cosines.shape)
    return found


def _candidates(queries: Tensor, samples: Tensor, count: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The largest, weighted, by float32 [Q, count], largest first, and rows of ``samples``, int64 [Q, count]."""
    best = queries.new_full((len(queries), 0), 0., dtype=torch.float32)
    where = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    by_faiss = len(samples) >= _LARGE and queries.device.type == 'cpu' and find_spec('faiss') is not None
    search: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] = (
        _faiss_search if by_faiss else _Products(len(queries), len(samples), best))
    for block in chunks(len(samples), _SAMPLES):
        sample = torch.cat([unit(samples[block][rows]).float() for rows in chunks(len(samples[block]), _QUERIES)])
        if weight is not None:
            sample *= weight[block, None]
        kept = min(count, best.shape[1] + len(sample))
        values, places = best.new_empty(len(queries), kept), where.new_empty(len(queries), kept)
        for rows in chunks(len(queries), _QUERIES):
            value, place = search(unit(queries[rows]).float(), sample, min(count, len(sample)))
            both, whose = torch.cat([best[rows], value], 1), torch.cat([where[rows], place + block.start], 1)
            values[rows], order = both.topk(kept, dim=1)
            places[rows] = whose.gather(1, order)
        best, where = values, places
    return best, where


class _Products:
    """Search by torch: all products of a block, and the largest of them."""

    def __init__(self, queries: int, samples: int, like: Tensor) -> None:
        # One array for all products: a new one each time costs a fifth of the product in page faults.
        self.room = like.new_empty(min(_QUERIES, queries) * min(_SAMPLES, samples))

    def __call__(self, query: Tensor, sample: Tensor, k: int) -> tuple[Tensor, Tensor]:
        out = self.room[:len(query) * len(sample)].view(len(query), len(sample))
        return _largest(torch.mm(query, sample.T, out=out), k)


def _faiss_search(query: Tensor, sample: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same by faiss's exact search, which keeps the largest while it multiplies."""
    import faiss
    faiss.omp_set_num_threads(torch.get_num_threads())
    values, places = faiss.knn(query.numpy(), sample.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(values), torch.from_numpy(places)


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns: those of the k columns that stand highest for ``_FOLD`` each."""
    width = values.shape[1] // _FOLD
    if width < 2 * k:
        return values.topk(k, dim=1, sorted=False)
    even = width * _FOLD
    group = values[:, :even].unflatten(1, (_FOLD, width)).amax(1).topk(k, dim=1, sorted=False).indices
    steps = torch.arange(0, even, width, device=values.device)
    left = torch.arange(even, values.shape[1], device=values.device).expand(len(values), -1)
    places = torch.cat([(group[:, None] + steps[:, None]).flatten(1), left], 1)
    value, order = values.gather(1, places).topk(k, dim=1, sorted=False)
    return value, places.gather(1, order)


def check_k(k: int | None) -> None:
    """Reject an invalid number of neighbours.

    Raises:
        ValueError: Neither None nor a whole number from 1 on.
    """
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise ValueError(f'k is the number of neighbours, a whole number from 1 on, got {k!r}')


class NeighbourScore(Score):
    """Holds the training features.

    Args:
        k: Neighbours; None: :attr:`usual`, or all training samples if there are fewer.

    Attributes:
        usual: Neighbours by default.
    """

    reads: tuple[str, ...] = ('features',)
    needs_train = True
    usual: ClassVar[int] = _K

    def __init__(self, k: int | None = None) -> None:
        check_k(k)
        self.k = k or self.usual

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
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
class Neighbour(NeighbourScore):
    """-|f - f_(k)| of features of length 1; in [-2, 0].

    The neighbour is found by its cosine and its distance then taken directly, so that near ones keep their digits
    (sqrt(2 - 2 cos) leaves 1e-8 for a duplicate).
    """

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        place = kth_neighbours(embeddings.features, self.samples, self.k)
        far = [(unit(embeddings.features[rows]) - unit(self.samples[place[rows]])).norm(dim=1)
               for rows in chunks(len(place))]
        return -torch.cat(far) if far else place.double()


@SCORES.register('knn-mean', 'mean cosine similarity to the k nearest training features')
class NeighbourMean(NeighbourScore):
    """Mean of the k largest cosine similarities; in [-1, 1]."""

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        return top_cosines(embeddings.features, self.samples, self.k)[0].mean(1)


def class_neighbour_sums(samples: Tensor, label: Tensor, queries: Tensor, k: int, classes: int) -> Tensor:
    """Sum of the k largest cosine similarities between each query and the samples of each class.

    S_c(x) = sum of the k largest f_i . x / |f_i| |x| over samples i of class c, the class-wise kNN of the GradMix
    authors' code (k = 3 for open sets). Samples are kept as they are: blocks are normalised as they are used. A query
    that is itself a sample finds itself.

    Args:
        samples: [N, D].
        label: Class of each sample, int64 [N] in 0..C-1.
        queries: [Q, D].
        k: Neighbours of each class.
        classes: C.

    Returns:
        float64 [Q, C], each in [-k, k].

    Raises:
        FewSamples: A class has fewer than ``k`` samples.

    Example:
        >>> samples = torch.tensor([[1., 0.], [2., 0.], [0., 1.], [0., -1.]])
        >>> class_neighbour_sums(samples, torch.tensor([0, 0, 1, 1]), torch.tensor([[3., 0.], [0., 1.]]), 1, 2)
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    counts = label.bincount(minlength=classes).tolist()
    if min(counts) < k:
        raise FewSamples(f'k={k} neighbours need {k} samples of every class', counts, k,
                         'give more samples or a smaller k')
    sums = queries.new_empty(len(queries), classes, dtype=torch.float64)
    members = label.argsort(stable=True).split(counts)
    for rows in chunks(len(queries)):
        query = unit(queries[rows])
        for place, own in enumerate(members):
            best = query.new_empty(len(query), 0)
            for part in chunks(len(own), _CLASS_ROWS):
                cosines = query @ unit(samples[own[part]]).T
                best = torch.cat([best, cosines.topk(min(k, cosines.shape[1]), dim=1).values], 1)
                best = best.topk(min(k, best.shape[1]), dim=1).values
            sums[rows, place] = best.sum(1)
    return sums


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
        check_k(k)
        self.k = k

    def fields(self, train: Embeddings | None) -> tuple[str, ...]:
        """The projection where the model has one."""
        return ('features',) if train is None or train.projection is None else ('projection',)

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        rows = getattr(train, self.reads[0])
        self.samples, self.label, self.classes = rows, train.label, train.logits.shape[1]
        self.diagnostics = {'samples': len(rows), 'reads': self.reads[0]}
        class_neighbour_sums(rows, self.label, rows[:0], self.k, self.classes)  # no query: refuses small classes

    def _sums(self, embeddings: Embeddings) -> Tensor:
        queries = getattr(embeddings, self.reads[0])
        return class_neighbour_sums(self.samples, self.label, queries, self.k, self.classes)

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        return self._sums(embeddings).amax(1)

    def predict(self, embeddings: Embeddings) -> Tensor:
        """Class with the largest sum, int64 [N]."""
        return self._sums(embeddings).argmax(1)


@SCORES.register('class-knn-share', "the best class's share of the sums of class-knn, as the GradMix authors score")
class ClassNeighbourShare(ClassNeighbours):
    """max over c of S_c / sum_j S_j: a share, not a closeness; a sample far from everything may have a high one.

    Cosines are signed: near a sum of zero and below it the order of the classes turns round and shares leave [0, 1]. On
    features that spread over the sphere the largest share ranked knowns over unknowns with AUROC 0.60 where the largest
    sum gave 0.96. A sample whose sums add up to zero or less has no shares, and the call raises ValueError naming
    ``class-knn``.

    Args:
        k: Neighbours of each class.
    """

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        sums = self._sums(embeddings)
        total = sums.sum(1)
        bad = (total <= 0).nonzero()[:, 0].tolist()
        if bad:
            raise ValueError(f'{self.name}: the neighbour sums of {len(bad)} of {len(sums)} queries add up to zero or '
                             f'less (query {bad[0]}: {float(total[bad[0]]):.4g}), so they have no shares; score by '
                             'class-knn')
        return sums.amax(1) / total
