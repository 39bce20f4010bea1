"""The nine-layer net of the open-set papers on images of 32 pixels (Neal et al., ECCV 2018; ARPL, arXiv:2103.00953)."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from typing_extensions import override

from .pooled import CIFAR, PooledNet

__all__ = ['Classifier32', 'classifier32']

default_cfgs = generate_default_cfgs({'classifier32.untrained': {**CIFAR, 'pool_size': (4, 4)}})
_CHANNELS = (64, 64, 128, 128, 128, 128, 128, 128, 128)


class Classifier32(PooledNet):
    """Three groups of three 3 x 3 convolutions, the third of each with stride 2; channel dropout before each group.

    As in ARPL's public code and that of "Open-Set Recognition: A Good Closed-Set Classifier is All You Need?", whose
    weights are taken: a classifier without bias, leaky ReLU of slope 0.2, weights drawn from N(0, 0.05).

    Args:
        num_classes: Outputs.
        in_chans: Channels of the images.
        global_pool: Of the last grid.
        drop_rate: Dropout of the features before the classifier; the papers have none.
        channel_drop: Probability with which a channel is dropped before each group.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 3, global_pool: str = 'avg', drop_rate: float = 0.0,
                 channel_drop: float = 0.2) -> None:
        super().__init__(num_classes, drop_rate, head_bias=False)
        width = in_chans
        for number, channels in enumerate(_CHANNELS, 1):
            if number % 3 == 1:
                self.add_module(f'dr{number // 3 + 1}', nn.Dropout2d(channel_drop))
            stride = 2 if number % 3 == 0 else 1
            self.add_module(f'conv{number}', nn.Conv2d(width, channels, 3, stride, 1, bias=False))
            self.add_module(f'bn{number}', nn.BatchNorm2d(channels))
            self.add_module(f'act{number}', nn.LeakyReLU(0.2))
            width = channels
            if stride == 2:
                self.feature_info.append({'num_chs': channels, 'reduction': 2 ** (number // 3),
                                          'module': f'act{number}'})
        self.add_head(width, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.05)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    @override
    def forward_features(self, x: Tensor) -> Tensor:
        for name, module in self.named_children():
            if name != 'global_pool' and name != 'fc':
                x = module(x)
        return x

    @staticmethod
    @override
    def own_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of public repositories, without ``bn10``, which they hold and never use."""
        return {key: value for key, value in weights.items() if 'bn10.' not in key}


@register_model
def classifier32(pretrained: bool = False, **options: Any) -> Classifier32:
    """The VGG-like net of the CIFAR-10, CIFAR+N, SVHN and TinyImageNet protocols."""
    net: Classifier32 = build_model_with_cfg(
        Classifier32, 'classifier32', pretrained, pretrained_filter_fn=lambda weights, net: net.own_names(weights),
        feature_cfg={'out_indices': (0, 1, 2)}, **options)
    return net
