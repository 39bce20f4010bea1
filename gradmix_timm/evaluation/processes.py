"""Several processes of one evaluation, as torchrun starts them: each embeds a part of a set, all get the whole."""
from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from gradmix_timm.data import CutDataset
from gradmix_timm.records import Embeddings

__all__ = ['PartDoneError', 'is_first', 'joined', 'processes', 'rest_by_first']

# Whether :func:`processes` shares evaluations out: a caller's own process group is none of ours.
_sharing = False


class PartDoneError(Exception):
    """What this process embeds is done; the first one fits, measures and writes."""


@contextmanager
def processes() -> Iterator[None]:
    """A group of the processes that torchrun started, if it did; all but the first are silent on standard output."""
    if int(os.environ.get('WORLD_SIZE', '1')) < 2 or dist.is_initialized():
        yield
        return
    global _sharing
    dist.init_process_group('gloo', timeout=timedelta(days=7))  # of fits, which the others wait for
    _sharing = True
    try:
        with open(os.devnull, 'w') as nowhere, nullcontext() if is_first() else redirect_stdout(nowhere):
            yield
    finally:
        _sharing = False
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process fits, measures and writes; True without torchrun."""
    return not _sharing or dist.get_rank() == 0


def rest_by_first() -> None:
    """Leave the rest of an evaluation to the first process.

    Raises:
        PartDoneError: In the others.
    """
    if not is_first():
        raise PartDoneError


def joined(images: CutDataset, batch_size: int, embed: Callable[[CutDataset], Embeddings]) -> Embeddings:
    """Embeddings of a set whose whole batches are shared out over the processes, in the set's order again.

    Every batch holds the images that it holds in one process, so that the figures are the same to the last digit.

    Args:
        images: The set.
        batch_size: Of the loader.
        embed: Embeds a part.

    Raises:
        Exception: Whatever ``embed`` raises in any of the processes, in all of them.
    """
    if not _sharing:
        return embed(images)
    rank, size, count = dist.get_rank(), dist.get_world_size(), len(images)
    share = math.ceil(math.ceil(count / batch_size) / size) * batch_size
    start, stop = min(rank * share, count), min((rank + 1) * share, count)
    mine: Embeddings | Exception | None = None
    try:
        if stop > start:
            part = embed(images.rows(slice(start, stop)))
            mine = replace(part, index=part.index + start)
    except Exception as error:
        mine = error
    parts: list[Any] = [None] * size
    dist.all_gather_object(parts, mine)
    for part in (mine, *parts):  # its own error first
        if isinstance(part, Exception):
            raise part
    return Embeddings.cat([part for part in parts if part is not None])
