"""Print errors common to all processes only once."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.utils.distributed import is_distributed_env, world_info_from_env

from gradmix_timm.cli.errors import UsageError

__all__ = ['is_first', 'said_once']


def is_first() -> bool:
    """Whether this process is the first of its run, by the environment, before a process group exists."""
    return not is_distributed_env() or world_info_from_env()[1] == 0


@contextmanager
def said_once() -> Iterator[None]:
    """If several processes raise a :class:`UsageError`, the first one prints it and the others end silently."""
    try:
        yield
    except UsageError as error:
        error.silent = not _first_to_fail()
        raise


def _first_to_fail() -> bool:
    """Count errors in the store of the process group, since the failing process need not be the first."""
    if not torch.distributed.is_initialized():
        return is_first()
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        return int(store.add('gradmix_timm_failed', 1)) == 1
    except RuntimeError:  # the first process, and the store with it, has ended
        return is_first()
