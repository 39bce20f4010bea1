"""Nets of the open-set papers for images of 32 pixels, registered with timm: importing this makes them models of it."""
from __future__ import annotations

import difflib
from collections.abc import Mapping

import timm
from timm.models import parse_model_name
from torch import Tensor

from .classifier32 import Classifier32, classifier32
from .pooled import PooledNet
from .resnet_cifar import CifarResNet, resnet18_cifar
from .wide_resnet import WideResNet, wrn_28_10, wrn_40_2

__all__ = ['CifarResNet', 'Classifier32', 'WideResNet', 'check_name', 'classifier32', 'own_names', 'resnet18_cifar',
           'wrn_28_10', 'wrn_40_2']

_NETS: dict[str, type[CifarResNet] | type[PooledNet]] = {
    'classifier32': Classifier32, 'resnet18_cifar': CifarResNet, 'wrn_28_10': WideResNet, 'wrn_40_2': WideResNet}


def check_name(model: str, where: str = '') -> None:
    """Check that timm has a model; those of a hub or a folder are not looked up.

    Args:
        model: As timm takes it.
        where: Put before the message.

    Raises:
        ValueError: It has none of that name; the message has the nearest.
    """
    if ':' in model or timm.is_model(name := parse_model_name(model)[1]):
        return
    close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
    hint = f'did you mean {" or ".join(close)}? ' if close else ''
    raise ValueError(f"{where}timm has no model {name[:80]!r}: {hint}timm.list_models('*resnet*') lists them")


def own_names(model: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model's public repositories under its names here; of any other model as they are."""
    return _NETS[model].own_names(weights) if model in _NETS else dict(weights)
