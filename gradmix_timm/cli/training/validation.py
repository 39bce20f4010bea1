"""Validation during training: loss and accuracy as timm's script averages them, or timm's multi-label metrics."""
from __future__ import annotations

import argparse
import logging
import time
from collections import OrderedDict
from typing import Any

import torch
from timm import utils
from timm.task import TrainingTask, evaluation_sample_limit
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from .context import Hardware
from .interrupt import Interrupt
from .loop import Run

__all__ = ['check_metric', 'share_norms', 'validate', 'validate_run']

_logger = logging.getLogger('train')
_SINGLE_LABEL = ('loss', 'top1', 'top5')
_MULTI_LABEL = ('loss', 'map', 'micro_f1', 'macro_f1', 'sample_f1')


def check_metric(args: argparse.Namespace) -> None:
    """Reject a metric that validation does not compute.

    Raises:
        ValueError: The message lists the available ones.
    """
    if args.objective != 'ce':  # has one metric, checked with its flags
        return
    names = _MULTI_LABEL if args.task == 'multilabel' else _SINGLE_LABEL
    if args.eval_metric not in names:
        raise ValueError(f'--eval-metric {args.eval_metric}: validation of --task {args.task} gives '
                         f'{", ".join(names)}')


class _BatchMeans:
    """Loss, top-1 and top-5 in percent: means of batches, weighted by their sizes, over all processes.

    If the images do not divide by the processes, timm's sampler repeats some image; it is evaluated,
    so that all processes stay in step, but not counted (timm's script counts it).

    Args:
        world_size: Number of processes.
        limit: Images of this process that are no padding, or None: all.
        whole: Images that every process has without padding.
    """

    def __init__(self, world_size: int, limit: int | None = None, whole: int = 0) -> None:
        self.world_size, self.limit, self.whole, self.seen = world_size, limit, whole, 0
        self.meters = {name: utils.AverageMeter() for name in _SINGLE_LABEL}

    def update(self, output: Tensor, target: Tensor) -> None:
        weight: float = output.shape[0]
        self.seen += output.shape[0]
        if self.limit is not None and self.seen > self.whole:  # the same batch in every process: the last one
            values, weight = self._without_padding(output, target, self.limit)
        else:
            values = _judged(output, target)
            if self.world_size > 1:
                values = [utils.reduce_tensor(value, self.world_size) for value in values]
        for meter, value in zip(self.meters.values(), values, strict=True):
            meter.update(value.item(), weight)

    def _without_padding(self, output: Tensor, target: Tensor, limit: int) -> tuple[list[Tensor], float]:
        """Means over the images of all processes, and how many a process had on average."""
        kept = max(output.shape[0] - max(self.seen - limit, 0), 0)
        values = _judged(output[:kept], target[:kept]) if kept else [output.new_zeros(())] * len(_SINGLE_LABEL)
        sums = torch.stack([*(value.double() * kept for value in values), output.new_tensor(kept).double()])
        means = utils.reduce_tensor(sums, self.world_size)
        return list(means[:-1] / means[-1]), means[-1].item()

    def summary(self) -> OrderedDict[str, float]:
        return OrderedDict((name, meter.avg) for name, meter in self.meters.items())

    def compute(self, distributed: bool = False) -> OrderedDict[str, float]:
        return self.summary()


def _judged(output: Tensor, target: Tensor) -> list[Tensor]:
    return [nn.functional.cross_entropy(output, target), *utils.accuracy(output, target, topk=(1, 5))]


def validate(args: argparse.Namespace, task: TrainingTask, model: nn.Module, loader: Any, hardware: Hardware,
             interrupt: Interrupt, suffix: str = '') -> OrderedDict[str, float]:
    """One pass over the validation images.

    Args:
        args: Checked flags.
        task: It defines the metrics.
        model: The model to evaluate, set to evaluation mode.
        loader: Of validation batches.
        hardware: Of the run.
        interrupt: Checked after every batch.
        suffix: For log lines: ' (EMA)'.

    Returns:
        Loss, and percentages.
    """
    limit = evaluation_sample_limit(loader)
    if args.task == 'multilabel':
        evaluator: Any = task.create_evaluator(max_samples=limit)
    elif limit is None or args.tta > 1:  # a stream, or rows that are no images
        evaluator = _BatchMeans(args.world_size)
    else:
        evaluator = _BatchMeans(args.world_size, limit, len(loader.dataset) // args.world_size)
    streamed = isinstance(loader.dataset, IterableDataset)
    batch_time, began, last = utils.AverageMeter(), time.time(), len(loader) - 1
    model.eval()
    with torch.inference_mode():
        for index, batch in enumerate(loader):
            _judge(args, model, batch, hardware, evaluator)
            if not streamed:  # of which processes may have another number of batches each
                interrupt.check()
            batch_time.update(time.time() - began)
            began = time.time()
            if utils.is_primary(args) and (index == last or index % args.log_interval == 0):
                _logger.info(f'Test{suffix}: [{index:>4d}/{last}]  '
                             f'Time: {batch_time.val:.3f} ({batch_time.avg:.3f})  {_figures(evaluator)}')
    metrics: OrderedDict[str, float] = evaluator.compute(distributed=args.distributed)
    return metrics


def _judge(args: argparse.Namespace, model: nn.Module, batch: Any, hardware: Hardware, evaluator: Any) -> None:
    input, target = batch
    if not args.prefetcher:
        input, target = input.to(device=hardware.device, dtype=hardware.dtype), target.to(device=hardware.device)
    if args.channels_last and isinstance(input, Tensor):
        input = input.contiguous(memory_format=torch.channels_last)
    with hardware.autocast():
        output = model(input)
        output = output[0] if isinstance(output, tuple | list) else output
        if args.unknown_output:  # an image of a known class is scored among the known classes, as in evaluation
            output = output[:, :-1]
        if args.tta > 1:  # the views of an image lie side by side
            output = output.unfold(0, args.tta, args.tta).mean(dim=2)
            target = target[0:target.size(0):args.tta]
        evaluator.update(output, target)


def _figures(evaluator: Any) -> str:
    """For the log: each figure of the newest batch, and in brackets that of all so far, in timm's form."""
    if not isinstance(evaluator, _BatchMeans):  # timm's, of several labels, which has no figure of a batch
        return '  '.join(f'{"Loss" if name == "loss" else name}: {value:>7.3f}'
                         for name, value in evaluator.summary().items())
    loss, top1, top5 = evaluator.meters.values()
    return (f'Loss: {loss.val:>7.3f} ({loss.avg:>6.3f})  Acc@1: {top1.val:>7.3f} ({top1.avg:>7.3f})  '
            f'Acc@5: {top5.val:>7.3f} ({top5.avg:>7.3f})')


# ---- of a run

def share_norms(run: Run, module: Any) -> None:
    """BatchNorm's statistics of all processes, by --dist-bn, at the end of an epoch."""
    if run.args.distributed and run.args.dist_bn in ('broadcast', 'reduce'):
        utils.distribute_bn(module, run.args.world_size, run.args.dist_bn == 'reduce')


def validate_run(run: Run) -> OrderedDict[str, float] | None:
    """Metrics of the model, or of its moving average if one is kept on the device; None without images."""
    args, loader = run.args, run.loaders.eval
    task: Any = run.task  # timm types its modules as optional
    if loader is None:
        return None
    metrics = _validated(run, task.get_eval_model())
    average = task.get_trainable_module(ema=True)
    if average is None or args.model_ema_force_cpu:
        return metrics
    share_norms(run, average)
    return _validated(run, task.get_eval_model(ema=True), ' (EMA)')


def _validated(run: Run, model: Any, suffix: str = '') -> OrderedDict[str, float]:
    """The classifier's metrics; of a contrastive objective, whose head is not trained yet, those of its features."""
    if run.loaders.bank is not None:
        from .knn_validation import validate_neighbours  # SciPy and the probes, of contrastive objectives alone
        return validate_neighbours(run.args, model, run.loaders, run.hardware, run.interrupt, suffix)
    return validate(run.args, run.task, model, run.loaders.eval, run.hardware, run.interrupt, suffix)
