"""Scores of distances in feature space: Mahalanobis, relative Mahalanobis, ViM, Residual; fits in float64, centred."""
from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from gradmix_timm.records import Embeddings

from .base import SCORES, Head, Score, chunks

__all__ = ['Gaussian', 'Mahalanobis', 'RelativeMahalanobis', 'Residual', 'Vim', 'class_means', 'class_scatter',
           'main_dimensions', 'mean_variance']

_logger = logging.getLogger(__name__)
# Of the mean variance, added to the diagonal where samples abound; dead ReLU units have no variance of their own.
_SHRINKAGE = 1e-4
# The same of both covariances of the relative distance: what they share has to cancel.
_RIDGE = 1e-6
# Fewer samples than so many times the width: the covariance is noisy enough for Ledoit and Wolf.
_AMPLE = 10
# Rows in float64 at a time, which stay in a core's cache, and columns of a panel of a product that is symmetric.
_ROWS, _PANEL = 512, 64


def _add_products(total: Tensor, rows: Tensor) -> None:
    """Add rows' rows to a matrix: its upper triangle, by panels, which takes little more than half of the work."""
    for own in chunks(rows.shape[1], _PANEL):
        total[own, own.start:].addmm_(rows[:, own].T, rows[:, own.start:])


def _mirrored(total: Tensor) -> Tensor:
    """The symmetric matrix with this upper triangle."""
    return total.triu() + total.triu(1).T


class Gaussian:
    """Squared Mahalanobis distances to the nearest of some centres, by one covariance with a ridge.

    No inverse is formed: rows are whitened by a triangular solve with the Cholesky factor of
    ``keep`` S + ``ridge`` I.

    Args:
        covariance: S, float64 [D, D], of ``samples`` rows.
        centres: float64 [C, D].
        samples: Rows that S was made from.
        shrinkage: What ``ridge`` comes from, for the messages.
        ridge: Added to the diagonal.
        keep: Share of S that is kept.

    Attributes:
        diagnostics: samples, width, shrinkage, rank (of S), condition (of the matrix with its ridge).
    """

    def __init__(self, covariance: Tensor, centres: Tensor, samples: int, shrinkage: float, ridge: float,
                 keep: float = 1.) -> None:
        width = len(covariance)
        spectrum = torch.linalg.eigvalsh(covariance).clamp(min=0)
        floor = spectrum[-1] * max(samples, width) * torch.finfo(torch.float64).eps
        low, high = (float(keep * spectrum[i] + ridge) for i in (0, -1))
        self.diagnostics: dict[str, Any] = {
            'samples': samples, 'width': width, 'shrinkage': shrinkage, 'rank': int((spectrum > floor).sum()),
            'condition': high / low if low > 0 else math.inf}
        covariance = keep * covariance
        covariance.diagonal().add_(ridge)
        self.factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed:
            raise ValueError(f'the covariance of the training features has rank {self.diagnostics["rank"]} of {width} '
                             f'and shrinkage={shrinkage:g} leaves it singular; give a larger one (1e-4 is usual)')
        # Distances to a common origin near the data: far from it the products below would cancel.
        self.origin = centres.mean(0)
        self.centres = self._whiten(centres)

    def _whiten(self, rows: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, (rows.double() - self.origin).T, upper=False).T

    @property
    def log_determinant(self) -> float:
        """Of the matrix with its ridge."""
        return 2 * float(self.factor.diagonal().log().sum())

    def nearest(self, features: Tensor) -> Tensor:
        """Smallest squared distance to a centre, float64 [N]."""
        return self.over_centres(features, lambda squares: squares.amin(1))

    def over_centres(self, features: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        """What a function makes of the squared distances to the centres: of float64 [n, C], to float64 [n]."""
        found = [of(self._squares(features[rows])) for rows in chunks(len(features))]
        return torch.cat(found) if found else self.origin.new_empty(0)

    def _squares(self, features: Tensor) -> Tensor:
        white = self._whiten(features)
        squares = white.square().sum(1, keepdim=True) + self.centres.square().sum(1)
        return (squares - 2 * white @ self.centres.T).clamp(min=0)


def _prepared(rows: Tensor, normalize: bool) -> Tensor:
    """A float64 copy of rows, of length 1 where that is asked."""
    copy = rows.to(torch.float64, copy=True)
    return F.normalize(copy, dim=1) if normalize else copy


def class_scatter(features: Tensor, label: Tensor, centres: Tensor, normalize: bool) -> Tensor:
    """Sum over rows of (f - centre)(f - centre)', float64 [D, D]."""
    total = centres.new_zeros(centres.shape[1], centres.shape[1])
    for rows in chunks(len(features), _ROWS):
        _add_products(total, _prepared(features[rows], normalize).sub_(centres[label[rows]]))
    return _mirrored(total)


def mean_variance(covariance: Tensor) -> float:
    """Trace / D of a covariance, which a ridge is measured in."""
    found = float(covariance.diagonal().mean())
    if not found > 0:
        raise ValueError('the training features do not vary about their means, so there is no covariance; '
                         'use a score of logits or neighbours')
    return found


def class_means(features: Tensor, label: Tensor, classes: int, normalize: bool = False) -> Tensor:
    """Mean of each class, float64 [classes, D]."""
    total = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device)
    for rows in chunks(len(features), _ROWS):
        total.index_add_(0, label[rows], _prepared(features[rows], normalize))
    return total / label.bincount(minlength=classes)[:, None]


class _Distances(Score):
    """Features, their class means and the scatter about these, for distances by a covariance."""

    reads = ('features',)
    needs_train = True
    least = 2

    def __init__(self, shrinkage: float | None, normalize: bool) -> None:
        if shrinkage is not None and not 0 <= shrinkage < math.inf:
            raise ValueError(f'shrinkage is a share of the mean variance, 0 or more, got {shrinkage}')
        self.shrinkage, self.normalize = shrinkage, normalize

    def _features(self, embeddings: Embeddings) -> Tensor:
        return F.normalize(embeddings.features.double(), dim=1) if self.normalize else embeddings.features

    def _moments(self, train: Embeddings) -> tuple[Tensor, Tensor]:
        """The class means [C, D] and the scatter about them [D, D]."""
        means = class_means(train.features, train.label, train.logits.shape[1], self.normalize)
        return means, class_scatter(train.features, train.label, means, self.normalize)


@SCORES.register('mahalanobis', 'minus the squared Mahalanobis distance to the nearest class mean (arXiv:1807.03888)')
class Mahalanobis(_Distances):
    """-min over c of (f - mu_c)' S^-1 (f - mu_c), S the covariance within classes, tied.

    With S of divisor N - C: S + lambda tr(S) / D I, lambda = 1e-4; with fewer than 10 D samples
    (1 - delta) S + delta tr(S) / D I with delta of Ledoit and Wolf.

    Args:
        shrinkage: lambda, the share of the mean variance added to the diagonal; None chooses as above.
        normalize: Divide features by their norm first (Mahalanobis++), which helps where norms vary.
    """

    def __init__(self, shrinkage: float | None = None, normalize: bool = False) -> None:
        super().__init__(shrinkage, normalize)

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        count, width = train.features.shape
        means, scatter = self._moments(train)
        covariance = scatter / (count - len(means))
        variance = mean_variance(covariance)
        keep, add = 1., _SHRINKAGE if self.shrinkage is None else self.shrinkage
        if self.shrinkage is None and count < _AMPLE * width:
            # Imported here, as it takes a second and most scores do not need it.
            from sklearn.covariance import ledoit_wolf_shrinkage

            off = _prepared(train.features, self.normalize).sub_(means[train.label])
            add = max(add, float(ledoit_wolf_shrinkage(off.cpu().numpy(), assume_centered=True)))
            keep = 1 - add
        self.within = Gaussian(covariance, means, count, add, add * variance, keep)
        self.diagnostics = dict(self.within.diagnostics)

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        return -self.within.nearest(self._features(embeddings))


@SCORES.register('rmahalanobis', 'Mahalanobis distance to the mean of all less that to the nearest class '
                                 '(arXiv:2106.09022)')
class RelativeMahalanobis(_Distances):
    """-(min over c of MD_c - MD_0), MD_0 the squared distance by the mean and covariance of all classes together.

    What all classes share then counts neither way, whether a query has much or little of it. That holds only where the
    two covariances agree on what is shared: as in the paper both are divided by N, and both get the same absolute
    ridge, small enough to leave the order alone (a share of each one's own variance would not cancel).

    Args:
        shrinkage: The ridge, in mean variances within classes; None: 1e-6.
        normalize: Divide features by their norm first.
    """

    def __init__(self, shrinkage: float | None = None, normalize: bool = False) -> None:
        super().__init__(shrinkage, normalize)

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        count, share = len(train.label), _RIDGE if self.shrinkage is None else self.shrinkage
        means, scatter = self._moments(train)
        ridge = share * mean_variance(scatter / count)
        counts = train.label.bincount(minlength=len(means)).double()[:, None]
        mean = (counts * means).sum(0, keepdim=True) / count
        # Squares about the mean of all are those about the class means and those of the class means: nothing cancels.
        between = counts.sqrt() * (means - mean)
        self.within = Gaussian(scatter / count, means, count, share, ridge)
        self.overall = Gaussian((scatter + between.T @ between) / count, mean, count, share, ridge)
        self.diagnostics = self.within.diagnostics | {
            f'overall_{key}': value for key, value in self.overall.diagnostics.items()}

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        features = self._features(embeddings)
        return self.overall.nearest(features) - self.within.nearest(features)


def main_dimensions(width: int) -> int:
    """Dimensions of the main subspace, as the ViM authors choose them."""
    return 1000 if width >= 2048 else 512 if width >= 768 else width // 2


class _Subspace(Score):
    """The directions in which training features vary least, about the point where the logits vanish.

    The origin is u = -W^+ b, with singular values below 1e-4 of the largest taken as zero: heads whose rows sum to zero
    have one that is only rounding. The second moment is about u, not about the mean.

    Args:
        dim: d; None: 1000 from width 2048 on, 512 from 768 on, else half the width.
    """

    reads: tuple[str, ...] = ('features',)
    needs_train = True
    needs_head = True

    def __init__(self, dim: int | None = None) -> None:
        self.dim = dim

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        assert train is not None
        assert head is not None
        name, width = self.name.partition(':')[0], train.features.shape[1]
        dim = main_dimensions(width) if self.dim is None else self.dim
        if not 0 < dim < width:
            raise ValueError(f'{name}: dim is at least 1 and less than the width {width} of the features, got {dim}')
        weight = head.weight.double()
        self.origin = -torch.linalg.pinv(weight, rtol=1e-4) @ head.bias.double()
        moment = weight.new_zeros(width, width)
        for rows in chunks(len(train.features), _ROWS):
            _add_products(moment, train.features[rows].double() - self.origin)
        spectrum, directions = torch.linalg.eigh(_mirrored(moment) / len(train.features))
        self.residual_space = directions[:, :width - dim].contiguous()
        self.mean_residual = float(self._residual(train.features).mean())
        length = float(spectrum.sum().clamp(min=0).sqrt())
        if self.mean_residual <= 1e-6 * length:
            raise ValueError(f'{name}: features leave {self.mean_residual:.3g} (of {length:.3g}) outside {dim} '
                             'dimensions, which has to be positive; give a smaller dim or use another score')
        self.options['dim'] = dim
        self.diagnostics = {
            'samples': len(train.features), 'width': width, 'dim': dim, 'origin_norm': float(self.origin.norm()),
            'rank': int(torch.linalg.matrix_rank(weight, rtol=1e-4)),
            'outside': float(spectrum[:width - dim].sum() / spectrum.sum())}

    def _residual(self, features: Tensor) -> Tensor:
        # Small results allocated between large ones would fragment the heap until it is as large as the features.
        found = self.origin.new_empty(len(features))
        for rows in chunks(len(features), _ROWS):
            found[rows] = ((features[rows].double() - self.origin) @ self.residual_space).norm(dim=1)
        return found


@SCORES.register('vim', 'energy less the scaled norm outside the main subspace of the features (arXiv:2203.10807)')
class Vim(_Subspace):
    """logsumexp(z) - alpha |R'(f - u)|: R spans the D - d directions in which training features vary least.

    alpha makes the mean of the second term on training features the mean of their largest logit.

    Args:
        dim: d; None: 1000 from width 2048 on, 512 from 768 on, else half the width.
    """

    reads = ('features', 'logits')

    @override
    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        super().fit(train, head)
        assert train is not None
        top = float(train.logits.amax(1).double().mean())
        if top <= 0:
            raise ValueError(f'vim: the mean largest logit is {top:.3g}, which has to be positive; use another score')
        self.alpha = top / self.mean_residual
        _logger.debug('vim: origin at norm %.4g, alpha %.4g', self.diagnostics['origin_norm'], self.alpha)
        self.diagnostics['alpha'] = self.alpha

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        found = self._residual(embeddings.features).mul_(-self.alpha)
        for rows in chunks(len(found), _ROWS):
            found[rows] += embeddings.logits[rows].double().logsumexp(1)
        return found


@SCORES.register('residual', 'minus the norm outside the main subspace of the features (arXiv:2203.10807)')
class Residual(_Subspace):
    """-|R'(f - u)|, the part of ViM that does not look at the logits.

    Wang et al., ViM: Out-of-Distribution with Virtual-logit Matching, CVPR 2022, where it is the baseline Residual;
    OpenOOD's ``residual``, which fits the subspace on validation images and whose ``dim`` is 512.

    Args:
        dim: d; None: 1000 from width 2048 on, 512 from 768 on, else half the width.
    """

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        return -self._residual(embeddings.features)
