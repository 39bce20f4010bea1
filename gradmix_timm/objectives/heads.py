"""The projection head over a classifier's features, and the module that a contrastive task trains."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.task.distillation import FeatureDistillationTrainableModule
from torch import Tensor, nn

from gradmix_timm.attribution import unwrap

__all__ = ['Projected', 'ProjectionHead', 'classifier_layers', 'feature_width']


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


class Projected(FeatureDistillationTrainableModule):
    """A timm classifier up to its features, and a projection head behind them; images to unit rows [B, P].

    timm's trainable module of two parts, from which weight-decay and layer-decay groups come. The class head is no part
    of the pass and is frozen: nothing trains it but a probe.

    Args:
        model: With timm's ``forward_features`` and ``forward_head``.
        projection: Of the model's features.

    Raises:
        ValueError: A model without these methods.
    """

    student: Any
    projection: Any

    def __init__(self, model: nn.Module, projection: ProjectionHead) -> None:
        missing = [name for name in ('forward_features', 'forward_head') if not hasattr(unwrap(model), name)]
        if missing:
            raise ValueError(f'a contrastive objective reads the features before the classifier, and '
                             f'{type(unwrap(model)).__name__} has no {missing[0]}(); use a timm model')
        super().__init__(model, projection)
        for layer in classifier_layers(model):
            layer.requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """What the classifier reads, [B, D]."""
        features = self.student.forward_head(self.student.forward_features(images), pre_logits=True)
        return features.flatten(1)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Unit rows, float32 [B, P]."""
        projected: Tensor = self.projection(self.features(images))
        return projected


def classifier_layers(model: nn.Module) -> tuple[nn.Module, ...]:
    """The last layers of a timm classifier: one, or one for each of its heads."""
    inner: Any = unwrap(model)
    found = inner.get_classifier()
    return tuple(found) if isinstance(found, tuple | list | nn.ModuleList) else (found,)


def feature_width(model: nn.Module) -> int:
    """Width of what the classifier reads.

    Raises:
        ValueError: The model does not tell.
    """
    inner = unwrap(model)
    for name in ('head_hidden_size', 'num_features'):
        width = getattr(inner, name, None)
        if isinstance(width, int) and width > 0:
            return width
    raise ValueError(f'{type(inner).__name__} does not tell the width of its features (head_hidden_size); use a timm '
                     'model')
