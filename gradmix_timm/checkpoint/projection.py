"""The projection head that a contrastive objective trains over a classifier's features, as a checkpoint holds it."""
from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['ProjectionHead']


class ProjectionHead(nn.Module):
    """Two linear layers with a ReLU between, then length 1: z = g(h) / |g(h)| (SimCLR, arXiv:2002.05709).

    Args:
        width: D, of the features.
        dim: P, of the projection; the GradMix authors use 128.
        hidden: Width between the layers; None: D.

    Example:
        >>> head = ProjectionHead(8, dim=4)
        >>> head(torch.randn(3, 8)).norm(dim=1).allclose(torch.ones(3))
        True
    """

    def __init__(self, width: int, dim: int = 128, hidden: int | None = None) -> None:
        super().__init__()
        for name, value in (('width', width), ('dim', dim), ('hidden', hidden or width)):
            if value < 1:
                raise ValueError(f'{name} of a projection head is 1 or more, got {value}')
        self.fc1 = nn.Linear(width, hidden or width)
        self.fc2 = nn.Linear(hidden or width, dim)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ProjectionHead:
        """The head of a checkpoint, in evaluation mode; its widths are read off the weights.

        Raises:
            ValueError: Weights of something else.
        """
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        if set(shapes) != {'fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias'}:
            raise ValueError(f'expected the weights of a projection head, fc1 and fc2, got {sorted(shapes)[:6]}')
        (hidden, width), (dim, _) = shapes['fc1.weight'], shapes['fc2.weight']
        head = cls(width, dim, hidden)
        head.load_state_dict(dict(state))
        return head.eval()

    def forward(self, features: Tensor) -> Tensor:
        """Unit rows, float32 (the length in half precision is off in the third digit): [B, D] to [B, P]."""
        projected = self.fc2(F.relu(self.fc1(features)))
        with torch.autocast(projected.device.type, enabled=False):
            return F.normalize(projected.float(), dim=1)
