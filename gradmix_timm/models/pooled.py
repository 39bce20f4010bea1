"""What timm expects of a net beside its layers: features, pooling, a classifier that can be replaced."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

__all__ = ['CIFAR', 'PooledNet']

#: timm's configuration of a net for images of CIFAR's size, their mean and deviation; without ``pool_size``.
CIFAR: dict[str, Any] = {
    'num_classes': 10, 'input_size': (3, 32, 32), 'crop_pct': 1.0, 'interpolation': 'bicubic',
    'mean': (0.4914, 0.4822, 0.4465), 'std': (0.2470, 0.2435, 0.2616), 'first_conv': 'conv1', 'classifier': 'fc'}


class PooledNet(nn.Module):
    """A net whose last grid is pooled and classified by one linear layer, ``fc``.

    A subclass adds its layers in the order in which they run, then calls :meth:`add_head`.

    Args:
        num_classes: Outputs; 0: the features themselves.
        drop_rate: Dropout of the features before the classifier.
        head_bias: Whether the classifier has a bias.
    """

    def __init__(self, num_classes: int, drop_rate: float = 0.0, head_bias: bool = True) -> None:
        super().__init__()
        self.num_classes, self.drop_rate, self.head_bias = num_classes, drop_rate, head_bias
        self.num_features = self.head_hidden_size = 0
        self.feature_info: list[dict[str, Any]] = []

    def add_head(self, num_features: int, global_pool: str) -> None:
        """Pooling and classifier, after all other layers."""
        self.num_features = num_features
        self.reset_classifier(self.num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; None keeps the pooling, '' leaves the grid as it is, as timm's nets do."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        like = next(self.parameters())
        self.fc: nn.Module = nn.Identity() if not num_classes else nn.Linear(
            self.head_hidden_size, num_classes, bias=self.head_bias, device=like.device, dtype=like.dtype)
        self.fc.train(self.training)

    @overload
    def get_classifier(self, name_only: Literal[True]) -> str: ...
    @overload
    def get_classifier(self, name_only: Literal[False] = False) -> nn.Module: ...

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The classifier, or its name."""
        return 'fc' if name_only else self.fc

    def forward_features(self, x: Tensor) -> Tensor:
        """The last grid, [B, C, h, w]."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [B, K] of the last grid, or the pooled features."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W]."""
        return self.forward_head(self.forward_features(x))

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Not supported, since these nets are small.

        Raises:
            ValueError: ``enable``.
        """
        if enable:
            raise ValueError(f'{type(self).__name__} has no gradient checkpointing; leave out --grad-checkpointing')

    @staticmethod
    def own_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of public repositories under this net's names."""
        return dict(weights)
