"""Validation of features during training: held-out images are classified by their nearest training images."""
from __future__ import annotations

import argparse
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from timm import utils
from timm.task import evaluation_sample_limit
from torch import Tensor, nn

from gradmix_timm.objectives.gather import gather_rows
from gradmix_timm.openset.extract import extract
from gradmix_timm.openset.probes import neighbour_votes

from .context import Hardware, Loaders
from .interrupt import Interrupt
from .objectives import METRIC

__all__ = ['validate_neighbours']

_logger = logging.getLogger('train')


def validate_neighbours(args: argparse.Namespace, model: nn.Module, loaders: Loaders, hardware: Hardware,
                        interrupt: Interrupt, suffix: str = '') -> OrderedDict[str, float]:
    """Accuracy on the validation images of nearest-neighbour votes among the training images, without a head or a fit.

    One pass over the training images without augmentation (--val-interval spares some), one over the validation images.
    With several processes each reads its share of both and sees all training images.

    Args:
        args: Checked flags.
        model: The classifier whose features are evaluated.
        loaders: With ``bank`` and ``eval``.
        hardware: Of the run.
        interrupt: Checked after every batch.
        suffix: For the log line: ' (EMA)'.

    Returns:
        ``knn_top1``, in percent.
    """
    began = time.time()
    amp = getattr(torch, args.amp_dtype) if args.amp else None

    def embedded(loader: Any) -> tuple[Tensor, Tensor]:
        found = extract(model, _checked(loader, hardware, interrupt), hardware.device, amp, args.channels_last)
        return found.features.to(hardware.device), found.label.to(hardware.device)

    kept = _no_padding(len(loaders.bank.dataset), args.world_size)
    bank, labels = (gather_rows(rows)[kept] for rows in embedded(loaders.bank))
    features, truth = (rows[:evaluation_sample_limit(loaders.eval)] for rows in embedded(loaders.eval))
    right = neighbour_votes(features, bank, labels, int(labels.max()) + 1).argmax(1) == truth
    counts = torch.stack([right.sum(), right.new_tensor(len(right), dtype=torch.int64)])
    if args.distributed:
        torch.distributed.all_reduce(counts)
    top1 = 100 * counts[0].item() / counts[1].item()
    if utils.is_primary(args):
        _logger.info(f'Test{suffix}: {len(bank)} training images  Time: {time.time() - began:.3f}  kNN@1: {top1:>7.3f}')
    return OrderedDict([(METRIC, top1)])


def _no_padding(count: int, processes: int) -> Tensor:
    """Gathered rows without padding: process r has images r, r + processes, ..., one possibly twice."""
    places = torch.arange(-(-count // processes) * processes).view(-1, processes).T.flatten()
    return (places < count).nonzero().flatten()


def _checked(loader: Any, hardware: Hardware, interrupt: Interrupt) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's batches in the model's dtype, with a check for a requested stop between them."""
    for images, labels in loader:
        interrupt.check()
        yield images.to(hardware.device, hardware.dtype), labels
