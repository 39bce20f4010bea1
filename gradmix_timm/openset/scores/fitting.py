"""A score by its name, fit on training embeddings that were checked."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from gradmix_timm.records import Embeddings

from .base import SCORES, FewSamples, Head, Score, checked_rows
from .names import check_options, defaults_of, parse_score, score_kind, score_label

__all__ = ['fit_score', 'list_scores']

# Largest |W f + b - z| over the largest |z|: above bfloat16's rounding, far below what another head gives.
_HEAD_TOLERANCE = 0.02
_HEAD_ROWS = 4096


def list_scores() -> dict[str, str]:
    """Registered scores: name to one line."""
    return SCORES.describe()


def fit_score(name: str, train: Embeddings | None, head: Head | nn.Linear | None = None,
              held_out: Embeddings | None = None, **options: Any) -> Score:
    """A score of knownness, fit on training embeddings of the known classes.

    Fit on un-augmented training images of the known classes, and choose options on held-out ones: no unknown sample,
    and no test sample, may take part.

    Args:
        name: Of :func:`list_scores`, or 'pytorch-ood:NAME' for a detector of that package; options may follow, as in
            'knn:k=5' and 'ash:variant=b,percentile=65'.
        train: Training embeddings with labels 0..K-1; None will do for scores of the logits alone.
        head: The classifier's weights, or the linear layer itself, for scores that recompute logits.
        held_out: Embeddings of known images that took no part in training; scores whose papers fit them on such images
            (``klm``, ``temperature``) take these in place of ``train``.
        **options: The score's own, before those in ``name``; the error for an unknown one lists them.

    Returns:
        A callable, Embeddings -> float64 [N] knownness, with ``predict``, ``diagnostics``, ``options`` and ``name``,
        which says what differs from the defaults.

    Raises:
        ValueError: Unknown name or option, missing or wrong head, values that are not finite, labels out of range, a
            class with too few samples.

    Example:
        >>> logits = torch.tensor([[2., 0.], [0., 1.]])
        >>> known = Embeddings(logits, logits, None, torch.tensor([0, 1]), torch.arange(2))
        >>> fit_score('mls', known)(known)
        tensor([2., 1.], dtype=torch.float64)
    """
    name, written = parse_score(name)
    options = written | {key: value.item() if isinstance(value, np.generic) else value
                         for key, value in options.items()}
    check_options(name, options)
    kind = score_kind(name)
    score = kind(**options)
    score.name, score.diagnostics, score._widths = score_label(name, options), {}, {}
    score.options = defaults_of(kind) | options
    own_images = kind.fits_on_held_out and held_out is not None and len(held_out.label) > 0
    train = held_out if own_images else train
    score.reads = score.fields(train)
    if kind.needs_train:
        _check_train(score, train)
    if kind.needs_head:
        head = _checked_head(score, train, head)
    with torch.no_grad():
        score.fit(train, None if head is None else Head.of(head))
    if kind.fits_on_held_out:
        score.diagnostics['fit_on'] = 'held-out images' if own_images else 'training images'
    return score


def _check_train(score: Score, train: Embeddings | None) -> None:
    name = score.name
    if train is None:
        raise ValueError(f'score {name!r} is fit on training samples of the known classes; pass their embeddings')
    for field in score.reads:
        score._widths[field] = checked_rows(name, train, field).shape[1]
    classes, count = train.logits.shape[1], len(train.label)
    if not count or any(len(getattr(train, field)) != count for field in score.reads):
        raise ValueError(f'{name}: training embeddings need rows, and as many labels, got {count} labels')
    low, high = int(train.label.min()), int(train.label.max())
    if low < 0 or high >= classes:
        raise ValueError(f'{name}: training labels go from 0 to {classes - 1}, one a logit, got {low} to {high}; '
                         'unknown samples (-1) take no part in a fit')
    counts = train.label.bincount(minlength=classes).tolist()
    if min(counts) < score.least:
        raise FewSamples(f'{name} needs {score.least} training samples of every class', counts, score.least,
                         'give a larger training part')


def _checked_head(score: Score, train: Embeddings | None, head: Head | nn.Linear | None) -> Head:
    """The head on the embeddings' device; it is there and gives the training logits (as far as there are any)."""
    if head is None:
        raise ValueError(f'score {score.name!r} needs the classifier: pass head=Head(weight [K, D], bias [K])')
    head = Head.of(head)
    if train is None:
        return head
    head = Head(head.weight.to(train.features.device), head.bias.to(train.features.device))
    if head.weight.shape != (train.logits.shape[1], train.features.shape[1]):
        raise ValueError(f'{score.name}: the head is {list(head.weight.shape)}, but the embeddings have '
                         f'{train.logits.shape[1]} logits and features {train.features.shape[1]} wide')
    rows = slice(None, None, max(1, len(train.logits) // _HEAD_ROWS))
    error = float((head(train.features[rows]) - train.logits[rows].double()).abs().max())
    scale = float(train.logits[rows].abs().max())
    if not error <= _HEAD_TOLERANCE * scale:  # NaN too
        raise ValueError(f'{score.name}: weight f + bias is off the logits by up to {error:.3g} where the largest is '
                         f'{scale:.3g}, so this is not the head that made them, or something follows it; '
                         'scores of logits or features alone need no head')
    return head
