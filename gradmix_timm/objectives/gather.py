"""Rows of every process, with gradients, so that a contrastive loss sees the whole batch."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ['gather_rows', 'own_rows', 'shuffle_rows', 'world_size']


def world_size() -> int:
    """Processes that train together; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def own_rows(batch: int, device: torch.device) -> Tensor | None:
    """Where the rows of this process are among the gathered ones, int64 [batch]; None with one process: all."""
    if world_size() == 1:
        return None
    return distributed.get_rank() * batch + torch.arange(batch, device=device)


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums the gradients of all processes for each row.

    torch.distributed.nn has one, but its backward is a reduce-scatter that gloo does not offer.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        found = [torch.empty_like(rows) for _ in range(world_size())]
        distributed.all_gather(found, rows.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        distributed.all_reduce(grad)
        return grad.chunk(world_size())[distributed.get_rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks; every process holds as many.

    The gradient of a row is the sum over the losses of all processes. With each process's loss the mean
    over its own anchors, and gradients averaged as DistributedDataParallel does, that is the gradient of one process
    with the joined batch.

    Args:
        rows: [B, ...], any dtype that the backend takes.

    Returns:
        [processes * B, ...]; the same tensor with one process.
    """
    if world_size() == 1:
        return rows
    if rows.requires_grad and torch.is_grad_enabled():
        gathered: Tensor = _Gather.apply(rows)
        return gathered
    found = [torch.empty_like(rows) for _ in range(world_size())]
    distributed.all_gather(found, rows.contiguous())
    return torch.cat(found)


def shuffle_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """As many rows as this process has, of those of all processes in one random order, which the first one draws.

    Rows computed from them come back by ``gather_rows(computed)[order.argsort()]``, in the order of the ranks.

    Args:
        rows: [B, ...], as many in every process.

    Returns:
        The share, [B, ...]; the order, int64 [processes * B]: place i of the joined shares holds row ``order[i]`` of
        the joined rows. Drawn from torch's random stream, in every process alike.
    """
    order = torch.randperm(world_size() * len(rows)).to(rows.device)
    if world_size() == 1:
        return rows[order], order
    distributed.broadcast(order, 0)
    share = order[own_rows(len(rows), rows.device)]
    return gather_rows(rows)[share], order
