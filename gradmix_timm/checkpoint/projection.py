"""The projection head that a contrastive objective trains over a classifier's features, as a checkpoint holds it."""
from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradmix_timm.schema import shown

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
            ValueError: They are not the weights of a projection head.
        """
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        hidden, width = (*shapes.get('fc1.weight', ()), 0, 0)[:2]
        dim = next(iter(shapes.get('fc2.weight', ())), 0)
        if shapes != {'fc1.weight': (hidden, width), 'fc1.bias': (hidden,), 'fc2.weight': (dim, hidden),
                      'fc2.bias': (dim,)}:
            raise ValueError('expected the weights of a projection head, fc1 [H, D] and fc2 [P, H] with a bias each, '
                             f'got {shown({name: list(shape) for name, shape in shapes.items()})}')
        head = cls(width, dim, hidden)
        head.load_state_dict(dict(state))
        return head.eval()

    def forward(self, features: Tensor) -> Tensor:
        """Unit rows, float32 (the length in half precision is off in the third digit): [B, D] to [B, P]."""
        projected = self.fc2(F.relu(self.fc1(features)))
        with torch.autocast(projected.device.type, enabled=False):
            return F.normalize(projected.float(), dim=1)
