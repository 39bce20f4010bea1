"""Probes of frozen features: a linear classifier, nearest-neighbour votes, few-shot class means.

Only the methods that classify take test images, so no fit can depend on them.
"""
from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gradmix_timm.ops import check_rows

from .scores.neighbours import top_cosines

__all__ = ['L2_GRID', 'LinearProbe', 'NeighbourProbe', 'PrototypeProbe', 'choose_l2', 'draw_shots', 'fit_linear',
           'fit_neighbours', 'fit_prototypes', 'neighbour_votes']

#: Strengths that are tried, strongest first: each fit starts where the last one ended.
L2_GRID = tuple(10.0 ** power for power in range(2, -7, -1))
# Neighbours that vote: 20, and 200 from this many images on, as for ImageNet (arXiv:1805.01978).
_NEIGHBOURS, _MANY, _LARGE = 20, 200, 500_000
_TEMPERATURE = 0.07
# Rows of one product: 65,536 x 1000 classes in float32 are 262 MB.
_ROWS = 65536
# Logit of a class that the training images do not hold.
_NEVER = -1e4


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """``logits = ((features - mean) / scale) @ weight.T + bias``.

    Attributes:
        weight: float [K, D].
        bias: float [K].
        mean: Of the training features, [D].
        scale: Their deviation, infinite where a feature is constant, [D].
        l2: Strength of the penalty, l2 / 2 times the sum of squared weights beside the mean cross-entropy.
        converged: Whether the fit reached its minimum.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    l2: float
    converged: bool = True

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
        votes = neighbour_votes(features, self.bank, self.labels, self.num_classes, self.k)
        return (votes / votes.sum(1, keepdim=True)).log().clamp_min(_NEVER).float()

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


def neighbour_votes(features: Tensor, bank: Tensor, labels: Tensor, num_classes: int, k: int = _NEIGHBOURS) -> Tensor:
    """Votes of the k nearest training images by cosine, each weighing exp(cosine / 0.07) (arXiv:1805.01978): [N, K].

    Args:
        features: Of the images to classify, [N, D].
        bank: Of training images, [M, D].
        labels: Of these, int64 [M].
        num_classes: K.
        k: Neighbours; all if there are fewer.
    """
    cosines, places = top_cosines(features, bank, min(k, len(bank)))
    weights = ((cosines - 1) / _TEMPERATURE).exp()
    return weights.new_zeros(len(features), num_classes).scatter_add_(1, labels[places], weights)


def fit_linear(features: Tensor, labels: Tensor, num_classes: int, l2: float, start: LinearProbe | None = None,
               iterations: int = 10_000) -> LinearProbe:
    """Softmax regression on standardised features.

    Minimises mean cross-entropy + l2 / 2 ||weight||^2 (the bias is free): scikit-learn's ``LogisticRegression`` with
    C = 1 / (l2 N), which it is on the CPU; on a GPU L-BFGS on all rows. The minimum is unique; a
    fit that does not reach it warns.

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
    check_rows(features, labels, num_classes)
    if not l2 > 0:
        raise ValueError(f'the strength of the penalty should lie above 0, got {l2}')
    rows = features.float() if features.is_cuda else features.double()
    deviation, mean = torch.std_mean(rows, 0, correction=0)
    scale = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)  # drop constant features
    rows = (rows - mean) / scale
    weight, bias = (torch.zeros(shape, dtype=rows.dtype, device=rows.device) for shape in (
        (num_classes, rows.shape[1]), (num_classes,)))
    if start is not None:
        weight, bias = start.weight.clone(), start.bias.clone()
    fit = _descend if rows.is_cuda else _regress
    converged = fit(rows, labels.to(rows.device), weight, bias, l2, iterations)
    if not converged:
        warnings.warn(f'the linear probe with l2={l2:g} has not converged after {iterations} iterations: its figures '
                      'are those of an unfinished fit; a larger l2 converges sooner', stacklevel=2)
    return LinearProbe(weight, bias, mean, scale, l2, converged)


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
    check_rows(features, labels, num_classes)
    k = k or (_MANY if len(features) >= _LARGE else _NEIGHBOURS)
    return NeighbourProbe(features, labels, num_classes, min(k, len(features)))


def fit_prototypes(features: Tensor, labels: Tensor, num_classes: int) -> PrototypeProbe:
    """Class means of unit features; with one image per class they are those images.

    Raises:
        ValueError: A class without an image.
    """
    check_rows(features, labels, num_classes)
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


def _regress(rows: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, l2: float, iterations: int) -> bool:
    """scikit-learn's minimum, written into weight and bias; whether it was reached."""
    from sklearn.exceptions import ConvergenceWarning  # a second to import
    from sklearn.linear_model import LogisticRegression

    present = labels.unique()
    if len(present) == 1:
        weight.zero_()
        bias.fill_(_NEVER)[present] = 0.
        return True
    # For two classes scikit-learn fits the difference of their weights, whose square is twice the sum of their squares.
    two = len(present) == 2
    model = LogisticRegression(C=(2 if two else 1) / (l2 * len(rows)), tol=1e-6, max_iter=iterations, warm_start=True)
    own, free = weight[present], bias[present]
    model.coef_, model.intercept_ = (part.numpy() for part in ((own[1:] - own[:1], free[1:] - free[:1]) if two
                                                               else (own, free)))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)
        model.fit(rows.numpy(), labels.numpy())
    own, free = torch.from_numpy(model.coef_).to(weight), torch.from_numpy(model.intercept_).to(bias)
    weight.zero_()[present] = torch.cat([-own / 2, own / 2]) if two else own
    bias.fill_(_NEVER)[present] = torch.cat([-free / 2, free / 2]) if two else free
    return bool(model.n_iter_.max() < iterations)


def _descend(rows: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, l2: float, iterations: int) -> bool:
    """The same by L-BFGS of PyTorch, on any device."""
    tight = rows.dtype == torch.float64
    least = 1e-6 if tight else 1e-5
    weight.requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, history_size=20, line_search_fn='strong_wolfe',
                                  tolerance_grad=least, tolerance_change=1e-12 if tight else 1e-9)

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

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]  # a tensor serves as well as a float
        closure()
    # At the limit of float32 the gradient is only rounding error.
    steepest = max(float(part.grad.abs().max()) for part in (weight, bias) if part.grad is not None)
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    weight.grad = bias.grad = None
    return steepest <= (10 if tight else 100) * least
