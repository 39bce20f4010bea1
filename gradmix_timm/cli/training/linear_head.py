"""--probe-epochs: fit a class head to frozen features after a contrastive objective, and store it in checkpoints."""
from __future__ import annotations

import argparse
import copy
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import create_loader
from torch import Tensor, nn

from gradmix_timm.checkpoint import KEY, atomic_path
from gradmix_timm.objectives import classifier_layers
from gradmix_timm.objectives.linear import fit_linear_head
from gradmix_timm.records import Embeddings

from .context import Built, Data, Hardware

__all__ = ['Probe', 'check_head', 'fit_heads']

_logger = logging.getLogger('train')
_FILES = ('model_best.pth.tar', 'last.pth.tar')


@dataclass(frozen=True)
class Probe:
    """The parts of a run that fitting a head needs.

    Attributes:
        args: Checked flags.
        hardware: Device and precision.
        built: The model's preprocessing.
        data: Its images.
        model: A classifier of the run's architecture, with any weights.
    """

    args: argparse.Namespace
    hardware: Hardware
    built: Built
    data: Data
    model: nn.Module


def check_head(args: argparse.Namespace, model: nn.Module) -> None:
    """Reject, before training, a model whose class head could not be fitted afterwards.

    Raises:
        ValueError: The classifier is not a single linear layer with a bias.
    """
    if not args.probe_epochs:
        return
    layers = classifier_layers(model)
    plain = len(layers) == 1 and isinstance(layers[0], nn.Linear | nn.Conv2d) and layers[0].bias is not None
    if not plain or (isinstance(layers[0], nn.Conv2d) and layers[0].kernel_size != (1, 1)):
        kinds = ' and '.join(type(layer).__name__ for layer in layers)
        raise ValueError(f'--probe-epochs {args.probe_epochs}: the classifier of {args.model} is {kinds}, expected one '
                         'linear layer with a bias; choose another --model, or type --probe-epochs 0 and judge by '
                         'neighbours (openset osr --scores class-knn)')


def fit_heads(probe: Probe, folder: str | os.PathLike[str]) -> None:
    """Fit a head to the frozen features of a run's best and last checkpoint, and replace both files atomically.

    The head is fitted to the training images, without augmentation; its accuracy on held-out images is logged. The
    weights of the moving average get a separate head. A file that already has a head is left unchanged.
    """
    done: dict[tuple[int, int], Path] = {}
    for path in (Path(folder) / name for name in _FILES):
        if not path.is_file():
            continue
        state = path.stat()
        if (state.st_dev, state.st_ino) in done:  # one file under two names
            content = done[state.st_dev, state.st_ino].read_bytes()
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
            continue
        done[state.st_dev, state.st_ino] = path
        _fit_file(probe, path)


def _fit_file(probe: Probe, path: Path) -> None:
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, map_location='cpu', weights_only=True)
    if content[KEY].get('probe', {}).get('epochs') == probe.args.probe_epochs:
        return
    for key in ('state_dict', 'state_dict_ema'):
        if key in content:
            found = _fit_weights(probe, content[key])
            figures = ', '.join(f'{name} {value:.2f} %' for name, value in found.items())
            _logger.info(f'Probe of {path.name}{" (EMA)" if key.endswith("ema") else ""}: {figures}')
            content[KEY]['probe'] = {'epochs': probe.args.probe_epochs, **found}  # accuracies of the average, if kept
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def _fit_weights(probe: Probe, weights: dict[str, Tensor]) -> dict[str, float]:
    """Replace the head among the weights; accuracies in percent."""
    args, device = probe.args, probe.hardware.device
    model = copy.deepcopy(probe.model).to(device)
    model.load_state_dict(weights)
    train = _embed(probe, model, probe.data.train)
    weight, bias = fit_linear_head(
        train.features.to(device), train.label.to(device), args.num_classes, args.probe_epochs, args.seed)
    weight, bias = weight.cpu(), bias.cpu()
    head = classifier_layers(model)[0]
    name = next(name for name, module in model.named_modules() if module is head)
    for part, value in (('weight', weight), ('bias', bias)):
        old = weights[f'{name}.{part}']
        weights[f'{name}.{part}'] = value.reshape(old.shape).to(old.dtype)
    found = {'train_top1': _top1(train, weight, bias)}
    if probe.data.eval is not None:
        found['val_top1'] = _top1(_embed(probe, model, probe.data.eval), weight, bias)
    return found


def _embed(probe: Probe, model: nn.Module, images: Any) -> Embeddings:
    from gradmix_timm.openset.extract import extract  # SciPy and the scores, which training need not wait for
    args, hardware = probe.args, probe.hardware
    loader = create_loader(
        copy.copy(images), **probe.built.preprocessing.loader_options(), is_training=False,
        batch_size=args.validation_batch_size or args.batch_size, num_workers=args.workers, device=hardware.device,
        persistent_workers=False, use_prefetcher=True, img_dtype=hardware.dtype or torch.float32)
    loader.dataset.transform = probe.built.preprocessing.transform(normalize=False)  # the loader normalises
    amp = getattr(torch, args.amp_dtype) if args.amp else None
    return extract(model, loader, hardware.device, amp, args.channels_last)


def _top1(rows: Embeddings, weight: Tensor, bias: Tensor) -> float:
    right = (rows.features @ weight.T + bias).argmax(1) == rows.label
    return 100 * right.double().mean().item()
