"""Nets of the open-set papers for images of 32 pixels, registered with timm: importing this makes them models of it."""
from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .classifier32 import Classifier32, classifier32
from .pooled import PooledNet
from .resnet_cifar import CifarResNet, resnet18_cifar
from .wide_resnet import WideResNet, wrn_28_10, wrn_40_2

__all__ = ['CifarResNet', 'Classifier32', 'WideResNet', 'classifier32', 'own_names', 'resnet18_cifar',
           'wrn_28_10', 'wrn_40_2']

_NETS: dict[str, type[CifarResNet] | type[PooledNet]] = {
    'classifier32': Classifier32, 'resnet18_cifar': CifarResNet, 'wrn_28_10': WideResNet, 'wrn_40_2': WideResNet}


def own_names(model: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model's public repositories under its names here; of any other model as they are."""
    return _NETS[model].own_names(weights) if model in _NETS else dict(weights)
