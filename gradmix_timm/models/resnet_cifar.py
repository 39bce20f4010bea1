"""ResNets for small images: timm's, with a 3 x 3 stem of stride 1 and no pooling before the stages."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from .pooled import CIFAR

__all__ = ['CifarResNet', 'resnet18_cifar']

default_cfgs = generate_default_cfgs({'resnet18_cifar.untrained': {**CIFAR, 'pool_size': (4, 4)}})


class CifarResNet(ResNet):
    """A ResNet whose stem keeps the size of the image, so that stages have 1, 1/2, 1/4 and 1/8 of its side.

    The net that the literature on CIFAR calls ResNet-18 (Liu's public code; `resnet18_32x32` of OpenOOD is the same in
    every layer). Weights of those repositories are taken under their own names.

    Args:
        layers: Blocks of each stage.
        width: Channels of the stem and the first stage; each later stage has twice those of the one before.
        in_chans: Channels of the images.
        **options: Of timm's ``ResNet``: num_classes, global_pool, drop_rate, drop_path_rate, act_layer, ...

    Raises:
        ValueError: A width that is odd or below 2.
    """

    def __init__(self, layers: Sequence[int] = (2, 2, 2, 2), width: int = 64, in_chans: int = 3, **options: Any,
                 ) -> None:
        if width < 2 or width % 2:
            raise ValueError(f'width={width}: expected an even number, 2 or more')
        channels = tuple(width * 2 ** stage for stage in range(len(layers)))
        # timm's stem has 64 channels unless it is deep, where it has twice stem_width; its conv1 is replaced.
        block: Any = BasicBlock  # timm's annotation says an instance
        super().__init__(block, tuple(layers), in_chans=in_chans, channels=channels, stem_type='deep',
                         stem_width=width // 2, zero_init_last=options.pop('zero_init_last', False), **options)
        stem = nn.Conv2d(in_chans, width, 3, stride=1, padding=1, bias=False, device=options.get('device'),
                         dtype=options.get('dtype'))
        nn.init.kaiming_normal_(stem.weight, mode='fan_out', nonlinearity='relu')
        replaced: Any = {'conv1': stem, 'maxpool': nn.Identity()}  # timm's annotations say Sequential
        for name, module in replaced.items():
            setattr(self, name, module)
        for info, reduction in zip(self.feature_info, (1, *(2 ** stage for stage in range(len(layers)))), strict=True):
            info['reduction'] = reduction

    @staticmethod
    def own_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of public repositories under this net's names: ``shortcut`` and ``linear`` there are ours here."""
        return {key.replace('.shortcut.', '.downsample.').replace('linear.', 'fc.'): value
                for key, value in weights.items()}


@register_model
def resnet18_cifar(pretrained: bool = False, **options: Any) -> CifarResNet:
    """ResNet-18 for images of 32 pixels; ``width=16`` and ``layers=[1,1,1,1]`` make a small one of it."""
    net: CifarResNet = build_model_with_cfg(
        CifarResNet, 'resnet18_cifar', pretrained, pretrained_filter_fn=lambda weights, net: net.own_names(weights),
        **options)
    return net
