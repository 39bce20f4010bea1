"""Probes of frozen features: a linear classifier, a vote of neighbours, class means of a few shots.

Nothing here takes test images but the methods that classify: what is fitted cannot depend on them.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .scores.neighbours import top_cosines

__all__ = ['L2_GRID', 'LinearProbe', 'NeighbourProbe', 'PrototypeProbe', 'choose_l2', 'draw_shots', 'fit_linear',
           'fit_neighbours', 'fit_prototypes']

#: Strengths that are tried, strongest first: each fit starts where the last one ended.
L2_GRID = tuple(10.0 ** power for power in range(2, -7, -1))
# Neighbours that vote: 20, and 200 from this many images on, as for ImageNet (arXiv:1805.01978).
_NEIGHBOURS, _MANY, _LARGE = 20, 200, 500_000
_TEMPERATURE = 0.07
# Rows of one product: 65,536 x 1000 classes in float32 are 262 MB.
_ROWS = 65536


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """``logits = ((features - mean) / scale) @ weight.T + bias``.

    Attributes:
        weight: float [K, D].
        bias: float [K].
        mean: Of the training features, [D].
        scale: Their deviation, infinite where a feature is constant, [D].
        l2: Strength of the penalty, l2 / 2 times the sum of squared weights beside the mean cross-entropy.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    l2: float

    def logits(self, features: Tensor) -> Tensor:
        """float32 [N, K] of features [N, D]."""
        rows = (features.to(self.weight) - self.mean) / self.scale
        return (rows @ self.weight.T + self.bias).float().cpu()

    def parameters(self) -> dict[str, np.ndarray]:
        """Everything that was fitted."""
        return {name: getattr(self, name).cpu().numpy() for name in ('weight', 'bias', 'mean', 'scale')}


@dataclass(frozen=True, slots=True)
class NeighbourProbe:
    """A vote of the ``k`` nearest training images by cosine, each weighing exp(cosine / 0.07).

    Attributes:
        bank: Training features, [M, D].
        labels: int64 [M].
        num_classes: K.
        k: Neighbours.
    """

    bank: Tensor
    labels: Tensor
    num_classes: int
    k: int

    def logits(self, features: Tensor) -> Tensor:
        """Logarithm of each class's share of the votes, float32 [N, K]; -1e4 for a class without a vote."""
        cosines, places = top_cosines(features, self.bank, self.k)
        weights = ((cosines - 1) / _TEMPERATURE).exp()
        votes = weights.new_zeros(len(features), self.num_classes).scatter_add_(1, self.labels[places], weights)
        return (votes / votes.sum(1, keepdim=True)).log().clamp_min(-1e4).float()

    def parameters(self) -> dict[str, np.ndarray]:
        """Everything that was fitted: the training labels; the features are the training set's own."""
        return {'labels': self.labels.numpy()}


@dataclass(frozen=True, slots=True)
class PrototypeProbe:
    """The class whose mean is nearest by cosine.

    Attributes:
        means: Of the unit features of each class, less the mean of all classes, [K, D].
        center: That mean, [D].
    """

    means: Tensor
    center: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Cosines, float32 [N, K]."""
        rows = F.normalize(features.double(), dim=1) - self.center
        return (F.normalize(rows, dim=1) @ F.normalize(self.means, dim=1).T).float()

    def parameters(self) -> dict[str, np.ndarray]:
        """Everything that was fitted."""
        return {'means': self.means.numpy(), 'center': self.center.numpy()}


def fit_linear(features: Tensor, labels: Tensor, num_classes: int, l2: float, start: LinearProbe | None = None,
               iterations: int = 200) -> LinearProbe:
    """Softmax regression on standardised features, by L-BFGS on all rows.

    Minimises mean cross-entropy + l2 / 2 ||weight||^2 (the bias is free): scikit-learn's ``LogisticRegression`` with
    C = 1 / (l2 N). The minimum is one point whatever the start.

    Args:
        features: float [N, D]; computed in float64 on the CPU, in float32 on a GPU.
        labels: int64 [N] in 0..K-1.
        num_classes: K.
        l2: Above 0.
        start: Probe of the same rows with another strength, to begin at.
        iterations: At most so many.

    Raises:
        ValueError: No row, a shape or label that does not fit, a strength of zero or less.

    Example:
        >>> rows = torch.tensor([[0., 1.], [0., 2.], [5., 1.], [5., 2.]])
        >>> fit_linear(rows, torch.tensor([0, 0, 1, 1]), 2, l2=1e-3).logits(rows).argmax(1)
        tensor([0, 0, 1, 1])
    """
    _check(features, labels, num_classes)
    if not l2 > 0:
        raise ValueError(f'the strength of the penalty should lie above 0, got {l2}')
    rows = features.float() if features.is_cuda else features.double()
    deviation, mean = torch.std_mean(rows, 0, correction=0)
    scale = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)  # a constant feature tells nothing
    rows = (rows - mean) / scale
    weight, bias = (torch.zeros(shape, dtype=rows.dtype, device=rows.device) for shape in (
        (num_classes, rows.shape[1]), (num_classes,)))
    if start is not None:
        weight, bias = start.weight.clone(), start.bias.clone()
    with torch.enable_grad():
        _minimise(rows, labels.to(rows.device), weight.requires_grad_(), bias.requires_grad_(), l2, iterations)
    return LinearProbe(weight.detach(), bias.detach(), mean, scale, l2)


def choose_l2(train: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], num_classes: int,
              grid: Sequence[float] = L2_GRID) -> tuple[float, dict[float, float]]:
    """The strength with the best accuracy on held-out *training* images; the lower cross-entropy breaks a tie.

    Args:
        train: Features [N, D] and labels int64 [N].
        held: The same of images that were held out.
        num_classes: K.
        grid: Strengths, strongest first.

    Returns:
        The strength; each one's accuracy on the held-out images.
    """
    probe, best, found = None, (-1.0, 0.0, 0.0), {}
    for l2 in grid:
        probe = fit_linear(*train, num_classes, l2, start=probe)
        logits = probe.logits(held[0])
        accuracy = float((logits.argmax(1) == held[1]).double().mean())
        found[l2] = accuracy
        best = max(best, (accuracy, -float(F.cross_entropy(logits, held[1])), l2))
    return best[2], found


def fit_neighbours(features: Tensor, labels: Tensor, num_classes: int, k: int | None = None) -> NeighbourProbe:
    """A bank of training features.

    Args:
        features: float [M, D].
        labels: int64 [M] in 0..K-1.
        num_classes: K.
        k: Neighbours; None: 20, or 200 for half a million images and more; never more than there are images.
    """
    _check(features, labels, num_classes)
    k = k or (_MANY if len(features) >= _LARGE else _NEIGHBOURS)
    return NeighbourProbe(features, labels, num_classes, min(k, len(features)))


def fit_prototypes(features: Tensor, labels: Tensor, num_classes: int) -> PrototypeProbe:
    """Class means of unit features; with one image a class they are those images.

    Raises:
        ValueError: A class without an image.
    """
    _check(features, labels, num_classes)
    unit = F.normalize(features.double(), dim=1)
    counts = torch.bincount(labels, minlength=num_classes)
    if int(counts.min()) == 0:
        raise ValueError(f'class {int(counts.argmin())} has no image to take the mean of')
    means = unit.new_zeros(num_classes, unit.shape[1]).index_add_(0, labels, unit) / counts[:, None]
    return PrototypeProbe(means - means.mean(0), means.mean(0))


def draw_shots(labels: np.ndarray, shots: int, seed: int, draw: int) -> np.ndarray:
    """Rows of one draw: so many of each class without repetition, int64 [K * shots].

    A function of its arguments; draws with more shots are not extensions of those with fewer.

    Raises:
        ValueError: A class with fewer images.

    Example:
        >>> draw_shots(np.array([0, 1, 0, 1, 0]), 2, seed=0, draw=0).shape
        (4,)
    """
    generator = np.random.default_rng([seed, shots, draw])
    rows = []
    for label in np.unique(labels):
        place = np.flatnonzero(labels == label)
        if len(place) < shots:
            raise ValueError(f'class {label} has {len(place)} training images, fewer than {shots} shots')
        rows.append(generator.choice(place, shots, replace=False))
    return np.concatenate(rows)


def _minimise(rows: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, l2: float, iterations: int) -> None:
    tight = rows.dtype == torch.float64
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, history_size=20, line_search_fn='strong_wolfe',
                                  tolerance_grad=1e-7 if tight else 1e-5, tolerance_change=1e-12 if tight else 1e-9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=rows.dtype, device=rows.device)
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            loss = F.cross_entropy(rows[part] @ weight.T + bias, labels[part], reduction='sum') / len(rows)
            loss.backward()
            total += loss.detach()
        penalty = l2 / 2 * weight.square().sum()
        penalty.backward()
        return total + penalty.detach()

    optimizer.step(closure)  # type: ignore[arg-type]  # a tensor serves as well as a float


def _check(features: Tensor, labels: Tensor, num_classes: int) -> None:
    if features.dim() != 2 or not len(features) or labels.shape != features.shape[:1]:
        raise ValueError(f'expected features [N, D] and labels [N], N above 0, got {list(features.shape)} and '
                         f'{list(labels.shape)}')
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(f'labels run from {int(labels.min())} to {int(labels.max())}, expected 0..{num_classes - 1}')
