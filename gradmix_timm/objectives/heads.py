"""The module that a contrastive task trains: a classifier up to its features, and a projection head behind them."""
from __future__ import annotations

from typing import Any

from timm.task.distillation import FeatureDistillationTrainableModule
from torch import Tensor, nn

from gradmix_timm.attribution import unwrap
from gradmix_timm.checkpoint import ProjectionHead

__all__ = ['Projected', 'classifier_layers', 'feature_width']


class Projected(FeatureDistillationTrainableModule):
    """A timm classifier up to its features, and a projection head behind them; images to unit rows [B, P].

    timm's trainable module of two parts, from which weight-decay and layer-decay groups come. The class head takes
    no part in the pass and is frozen: only a probe trains it.

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
        """The classifier's input, [B, D]."""
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
    """Width of the classifier's input.

    Raises:
        ValueError: The model does not declare it.
    """
    inner = unwrap(model)
    for name in ('head_hidden_size', 'num_features'):
        width = getattr(inner, name, None)
        if isinstance(width, int) and width > 0:
            return width
    raise ValueError(f'{type(inner).__name__} does not declare the width of its features (head_hidden_size); use a '
                     'timm model')
