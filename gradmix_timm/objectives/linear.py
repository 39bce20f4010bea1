"""A linear classifier on frozen features: softmax regression by Adam."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gradmix_timm.ops import check_rows

__all__ = ['fit_linear_head']

# The authors' learning rate and batch.
_RATE, _BATCH = 0.01, 64


def fit_linear_head(features: Tensor, labels: Tensor, num_classes: int, epochs: int, seed: int = 0,
                    ) -> tuple[Tensor, Tensor]:
    """Weights of ``logits = features @ weight.T + bias`` that minimise cross-entropy on these rows.

    Starts at zero; every feature is centred and scaled to unit deviation while fitting, which is folded into weight
    and bias afterwards, so that one learning rate serves any backbone. A function of its arguments: the order of rows
    comes from a generator of its own.

    Args:
        features: float [N, D], any device.
        labels: int64 [N] in 0..K-1.
        num_classes: K.
        epochs: Passes over the rows, 1 or more.
        seed: Of the order of rows.

    Returns:
        weight float32 [K, D] and bias float32 [K], on the features' device.

    Raises:
        ValueError: No rows, another shape, labels out of range, no epochs.

    Example:
        >>> rows = torch.tensor([[0., 1.], [0., 2.], [5., 1.], [5., 2.]])
        >>> weight, bias = fit_linear_head(rows, torch.tensor([0, 0, 1, 1]), 2, epochs=50)
        >>> (rows @ weight.T + bias).argmax(1)
        tensor([0, 0, 1, 1])
    """
    check_rows(features, labels, num_classes)
    if epochs < 1:
        raise ValueError(f'a head is fitted in 1 epoch or more, got {epochs}')
    deviation, mean = torch.std_mean(features.float(), 0, correction=0)
    scale = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)  # constant: no information
    rows = (features.float() - mean) / scale
    weight = torch.zeros(num_classes, features.shape[1], device=features.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=features.device, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=_RATE)
    updates = epochs * -(-len(rows) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
        for _ in range(epochs):
            for part in torch.randperm(len(rows), generator=generator).to(features.device).split(_BATCH):
                optimizer.zero_grad()
                F.cross_entropy(rows[part] @ weight.T + bias, labels[part]).backward()
                optimizer.step()
                schedule.step()
    folded = weight.detach() / scale
    return folded, bias.detach() - folded @ mean
