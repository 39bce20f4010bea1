"""One evaluation in several processes started by torchrun: each embeds a part of a set, and all receive the whole."""
from __future__ import annotations

import logging
import math
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from gradmix_timm.data import CutDataset
from gradmix_timm.records import Embeddings

__all__ = ['PartDoneError', 'is_first', 'joined', 'own_device', 'processes', 'rest_by_first']

# Set inside :func:`processes`: a process group that the caller made for other purposes is not used.
_sharing = False
# How long a failed process waits for the first one to fail as well and print the error.
_SAME_ERROR = timedelta(seconds=10)


class PartDoneError(Exception):
    """This process has embedded its part; the first one fits, measures and writes."""


@contextmanager
def processes() -> Iterator[None]:
    """A group of the processes that torchrun started, if it did.

    The first alone prints and logs; of an error that it has too, the others' carry ``silent = True``.
    """
    if int(os.environ.get('WORLD_SIZE', '1')) < 2 or dist.is_initialized():
        yield
        return
    global _sharing
    store, rank, size = next(iter(dist.rendezvous('env://')))
    dist.init_process_group(  # long, since the others wait while the first one fits
        'gloo', store=dist.PrefixStore('evaluation', store), rank=rank, world_size=size, timeout=timedelta(days=7))
    _sharing = True
    try:
        if rank == 0:
            yield
        else:
            with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere), _no_log():
                yield
    except BaseException as error:
        _leave_to_first(error, store)
        raise
    finally:
        _sharing = False
        dist.destroy_process_group()


@contextmanager
def _no_log() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _leave_to_first(error: BaseException, store: Any) -> None:
    """Mark an error as silent if the first process fails too, or is gone."""
    if is_first():
        store.set('failed', '1')
        return
    try:
        store.wait(['failed'], _SAME_ERROR)
    except dist.DistStoreError:
        return  # an error of this process alone
    except RuntimeError:
        pass  # the store went with the first process
    error.silent = True  # type: ignore[attr-defined]


def own_device(device: torch.device) -> torch.device:
    """One GPU for each process of a machine if 'cuda' has no index."""
    if not _sharing or device.type != 'cuda' or device.index is not None:
        return device
    return torch.device('cuda', int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count())


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

    Every batch holds the same images as in a single process, so the figures are equal to the last digit.

    Args:
        images: The set.
        batch_size: Of the loader.
        embed: Embeds a part.

    Raises:
        Exception: An exception of ``embed`` in any process is raised in all of them.
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
        mine = _portable(error)
    parts: list[Any] = [None] * size
    dist.all_gather_object(parts, mine)
    for part in (mine, *parts):  # the error of this process first
        if isinstance(part, Exception):
            raise part
    return Embeddings.cat([part for part in parts if part is not None])


def _portable(error: Exception) -> Exception:
    """An error in a form that can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f'{type(error).__name__}: {error}')
    return error
