"""Wide residual networks for images of 32 pixels (Zagoruyko and Komodakis, arXiv:1605.07146)."""
from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from typing_extensions import override

from .pooled import CIFAR, PooledNet

__all__ = ['WideResNet', 'wrn_28_10', 'wrn_40_2']

default_cfgs = generate_default_cfgs({
    name: {**CIFAR, 'pool_size': (8, 8)} for name in ('wrn_40_2.untrained', 'wrn_28_10.untrained')})


class _Block(nn.Module):
    """Pre-activation block; where the width changes, the shortcut reads the activated input, as in the public code."""

    def __init__(self, width: int, channels: int, stride: int, drop: float) -> None:
        super().__init__()
        self.drop, self.same = drop, width == channels
        self.bn1, self.relu1 = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(width, channels, 3, stride, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.convShortcut = None if self.same else nn.Conv2d(width, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        out = self.relu2(self.bn2(self.conv1(active)))
        out = self.conv2(F.dropout(out, self.drop, self.training))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class _Stage(nn.Module):
    def __init__(self, blocks: int, width: int, channels: int, stride: int, drop: float) -> None:
        super().__init__()
        self.layer = nn.Sequential(*(
            _Block(width if not number else channels, channels, stride if not number else 1, drop)
            for number in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(PooledNet):
    """WRN-depth-factor; weights of the public PyTorch code (xternalz, OpenOOD and others) have the same names.

    Args:
        depth: Layers, 6 n + 4.
        factor: Width of the stages over 16, 32 and 64 channels.
        num_classes: Outputs.
        in_chans: Channels of the images.
        global_pool: Of the last grid.
        drop_rate: Dropout of the features before the classifier.
        block_drop: Dropout between the convolutions of a block (0.3 in the paper's second column).

    Raises:
        ValueError: A depth that is not 6 n + 4.
    """

    def __init__(self, depth: int = 40, factor: int = 2, num_classes: int = 10, in_chans: int = 3,
                 global_pool: str = 'avg', drop_rate: float = 0.0, block_drop: float = 0.0) -> None:
        super().__init__(num_classes, drop_rate)
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f'depth={depth}: expected 6 n + 4, as in 16, 28, 40')
        blocks, width = (depth - 4) // 6, 16
        self.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
        for number, channels in enumerate((16 * factor, 32 * factor, 64 * factor), 1):
            self.add_module(f'block{number}', _Stage(blocks, width, channels, min(number, 2), block_drop))
            width = channels
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.feature_info = [{'num_chs': 16 * factor * 2 ** place, 'reduction': 2 ** place, 'module': module}
                             for place, module in enumerate(('block1', 'block2', 'relu'))]
        self.add_head(width, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @override
    def forward_features(self, x: Tensor) -> Tensor:
        for name in ('conv1', 'block1', 'block2', 'block3', 'bn1', 'relu'):
            x = getattr(self, name)(x)
        return x


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> WideResNet:
    net: WideResNet = build_model_with_cfg(
        WideResNet, name, pretrained, feature_cfg={'out_indices': (0, 1, 2)}, **options)
    return net


@register_model
def wrn_40_2(pretrained: bool = False, **options: Any) -> WideResNet:
    """WRN-40-2, of outlier exposure and OpenOOD's older tables."""
    return _create('wrn_40_2', pretrained, {'depth': 40, 'factor': 2, **options})


@register_model
def wrn_28_10(pretrained: bool = False, **options: Any) -> WideResNet:
    """WRN-28-10."""
    return _create('wrn_28_10', pretrained, {'depth': 28, 'factor': 10, **options})
