"""Labels as float32 rows: one-hot, smoothed, mixed; and the logits that stand against them."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ['as_targets', 'check_rows', 'logits_of', 'mix_targets', 'soft_targets']


def as_targets(targets: Any) -> Tensor:
    """Labels as a tensor: class indices of any integer type as int64, float64 as float32, the rest as it is.

    float64 is what NumPy makes of rows; not every device has it (Apple's mps).

    Args:
        targets: A tensor, a NumPy array or a list of numbers.

    Raises:
        TypeError: Something else.

    Example:
        >>> as_targets([2, 0]), as_targets(torch.tensor([3], dtype=torch.uint8))
        (tensor([2, 0]), tensor([3]))
    """
    if not isinstance(targets, Tensor):
        try:
            array = np.asarray(targets)
            targets = torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)
        except (TypeError, ValueError) as error:
            raise TypeError('labels are class indices [B] or rows of weights [B, K], in a tensor, an array or a list; '
                            f'got {type(targets).__name__}') from error
    if targets.dtype == torch.float64:
        return targets.float()
    whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    return targets.long() if whole and targets.dim() == 1 else targets


def check_rows(features: Tensor, labels: Tensor, num_classes: int) -> None:
    """Check rows that a classifier is fitted to.

    Args:
        features: [N, D], N above 0.
        labels: int [N] in 0..K-1.
        num_classes: K.

    Raises:
        ValueError: They are not that.
    """
    if features.dim() != 2 or not len(features) or labels.shape != features.shape[:1]:
        raise ValueError(f'expected features [N, D] and labels [N], N above 0, got {list(features.shape)} and '
                         f'{list(labels.shape)}')
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f'labels run from {low} to {high}, expected 0..{num_classes - 1}')


def soft_targets(
        targets: Tensor,
        num_classes: int,
        smoothing: float = 0.0,
        device: torch.device | None = None,
        multi_label: bool = False,
) -> Tensor:
    """Labels as smoothed rows by timm's conventions: t (1 - s) + s / K, of multi-hot ones t (1 - s) + s / 2.

    Args:
        targets: int [B] in 0..K-1, or float [B, K]; see :func:`as_targets`.
        num_classes: K.
        smoothing: s in [0, 1).
        device: Where the rows go; default: where the labels are.
        multi_label: Each of the K labels is there or not by itself: s / 2 in place of s / K.

    Returns:
        float32 [B, K]; rows sum to 1 where the given ones do.

    Example:
        >>> soft_targets(torch.tensor([1]), 4, smoothing=0.2)
        tensor([[0.0500, 0.8500, 0.0500, 0.0500]])
        >>> soft_targets(torch.tensor([[1., 1., 0.]]), 3, smoothing=0.2, multi_label=True)
        tensor([[0.9000, 0.9000, 0.1000]])
    """
    targets = as_targets(targets)
    targets = targets.to(device or targets.device, non_blocking=True)
    off = smoothing / (2 if multi_label else num_classes)
    if targets.dim() == 2:
        return targets.float() * (1 - smoothing) + off
    rows = torch.full((targets.shape[0], num_classes), off, dtype=torch.float32, device=targets.device)
    return rows.scatter_(1, targets[:, None], 1 - smoothing + off)


def mix_targets(rows: Tensor, partner: Tensor, weight: Tensor, union: bool = False, unknown: Tensor | None = None,
                unknown_output: bool = False) -> Tensor:
    """``weight[:, 0] * rows + weight[:, 1] * rows[partner] + unknown / K``, float32 [B, K].

    Args:
        rows: float32 [B, K].
        partner: int64 [B].
        weight: Label weights (own, partner), float32 [B, 2].
        union: The larger of the two in place of the weighted sum, as far as a weight is above 0: every label of which
            something is seen.
        unknown: Share of the label that goes to no class and so to all of them alike, float32 [B]; None: nothing.
        unknown_output: The last of the K columns means no class and gets all of that share.

    Example:
        >>> rows = torch.tensor([[1., 1., 0.], [0., 1., 1.]])
        >>> mix_targets(rows, torch.tensor([1, 0]), torch.tensor([[0.75, 0.25], [1., 0.]]), union=True)
        tensor([[1., 1., 1.],
                [0., 1., 1.]])
        >>> mix_targets(torch.eye(2), torch.tensor([1, 0]), torch.tensor([[0.5, 0.], [1., 0.]]),
        ...             unknown=torch.tensor([0.5, 0.]))
        tensor([[0.7500, 0.2500],
                [0.0000, 1.0000]])
    """
    if union:
        seen = (weight > 0).to(rows.dtype)
        return torch.maximum(rows * seen[:, :1], rows[partner] * seen[:, 1:])
    mixed = rows * weight[:, :1] + rows[partner] * weight[:, 1:]
    if unknown is None:
        return mixed
    if unknown_output:
        return torch.cat([mixed[:, :-1], mixed[:, -1:] + unknown[:, None]], 1)
    return mixed + unknown[:, None] / rows.shape[1]


def logits_of(output: object) -> Tensor:
    """The logits [B, K] in what a classifier gives: a tensor, or a field or key ``logits``.

    Of several heads with outputs of one shape it is their mean, as of timm's distilled transformers; of another tuple
    the first.

    Raises:
        ValueError: None of these, or not two-dimensional.

    Example:
        >>> logits_of({'logits': torch.zeros(2, 5), 'loss': None}).shape
        torch.Size([2, 5])
        >>> logits_of((torch.zeros(1, 2), torch.ones(1, 2)))
        tensor([[0.5000, 0.5000]])
    """
    output = output.get('logits', output) if isinstance(output, Mapping) else getattr(output, 'logits', output)
    if isinstance(output, tuple | list) and output:
        heads = [part for part in output if isinstance(part, Tensor)]
        alike = len(heads) == len(output) and len({part.shape for part in heads}) == 1
        output = torch.stack(heads).float().mean(0) if alike else output[0]
    if not isinstance(output, Tensor) or output.dim() != 2:
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f'the model gives {got}, logits [B, K] are expected: give the whole classifier')
    return output
