"""Tracking of a run: loss terms, statistics of mixing, TensorBoard, Weights & Biases, a progress bar."""
from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gradmix_timm.data.opening import open_image
from gradmix_timm.mixers import BatchMixer, Mixer
from gradmix_timm.records import MixDraw

__all__ = ['LossParts', 'MixStats', 'Tracker', 'check_tracking', 'open_bar']

_PACKAGES = {'log_tensorboard': 'tensorboard', 'log_wandb': 'wandb'}


def check_tracking(args: argparse.Namespace) -> None:
    """Reject a tracker whose package is not installed, before anything is built.

    Raises:
        ValueError: The message names the package to install.
    """
    for name, package in _PACKAGES.items():
        if getattr(args, name) and find_spec(package) is None:
            raise ValueError(f'--{name.replace("_", "-")} needs a package that is not installed: pip install {package}')
    if args.wandb_resume_id and not (args.log_wandb and args.resume):
        raise ValueError('--wandb-resume-id goes with --log-wandb and --resume')
    if args.log_mixes_interval < 0:
        raise ValueError(f'--log-mixes-interval is a number of epochs from 0 on, got {args.log_mixes_interval}')


class LossParts:
    """Means of a task's loss terms, summed on the device and read once an epoch.

    Values that are not finite are left out: such a batch ends the run, or is dropped.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def update(self, result: dict[str, Any], count: int) -> None:
        """Add what a task returned for ``count`` images."""
        for name in (name for name in result if name.startswith('loss_')):
            value = result[name].detach().float()
            usable = value.isfinite()
            self.sums[name] = self.sums.get(name, 0) + torch.where(usable, value, 0) * count
            self.counts[name] = self.counts.get(name, 0) + usable * count

    def means(self) -> dict[str, float]:
        """Mean of each part over the images."""
        return {name: float(value / self.counts[name].clamp_min(1)) for name, value in self.sums.items()}


class MixStats:
    """How much of an epoch was mixed, and how long that took; summed on the device, read once.

    Args:
        mixer: The registered mixer, or None.
        device: Of the run; on CUDA time is that of the device.
    """

    def __init__(self, mixer: Mixer | None, device: torch.device) -> None:
        parts = mixer.parts if isinstance(mixer, BatchMixer) else ()
        self.readers = {part.name for part in parts if part.requires_model}
        self.alternates = len(parts) > len(self.readers) > 0
        self.tells_lam = isinstance(mixer, BatchMixer) and mixer.tells_lam
        self.cuda = device.type == 'cuda'
        self.sums: Tensor | None = None
        self.seconds, self.began = 0.0, time.perf_counter()
        self._pair: tuple[Any, Any] | None = None

    def update(self, draw: MixDraw | None) -> None:
        """Count the images of a batch; no draw, no images."""
        if draw is None:
            return
        mixed = draw.lam < 1
        all_ = torch.ones_like(draw.lam)
        reads = all_ if draw.name in self.readers else torch.zeros_like(all_)
        read = mixed & reads.bool()
        counts = torch.stack([(draw.fallback & read).sum(), read.sum(), mixed.sum(), (draw.lam * mixed).sum(),
                              all_.sum(), reads.sum()])
        self.sums = counts if self.sums is None else self.sums.to(counts.device) + counts

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time that the block takes."""
        if self.cuda:
            self._drain()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._pair = start, end
        else:
            begin = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - begin

    def line(self) -> str:
        """For the log: mixed images of all, and of those mixed by a map the ones whose box is random, as it was flat.

        Empty without maps. Of two mixers that alternate, the images of one without maps have no random boxes.
        """
        if self.sums is None or not self.readers:
            return ''
        flat, read, mixed, _, images, _ = map(int, self.sums.tolist())
        return f'  Mixed: {mixed}/{images}  Random boxes: {flat}/{read}'

    def values(self) -> dict[str, float]:
        """The figures of the epoch so far; empty if nothing was drawn."""
        if self.sums is None:
            return {}
        self._drain()
        flat, read, mixed, kept, images, drawn = self.sums.tolist()
        found = {'mix/mixed_images': mixed / images}
        if self.alternates and drawn:
            found['mix/mixed_by_maps'] = read / drawn
        if mixed and self.tells_lam:
            found['mix/lam'] = kept / mixed
        if read:
            found['mix/random_boxes'] = flat / read
        if self.seconds:
            found['time/mixing'] = self.seconds / (time.perf_counter() - self.began)
        return found

    def _drain(self) -> None:
        """Read the time of the last pair of events; the step has waited for it since."""
        if self._pair is not None:
            self._pair[1].synchronize()
            self.seconds += self._pair[0].elapsed_time(self._pair[1]) / 1000
            self._pair = None


class Tracker:
    """Write epochs to the trackers of the flags, on the first process.

    Args:
        args: Checked flags.
        folder: Of the run.
        name: Of the run.
        first: Epoch that it begins with; what TensorBoard has of later ones is dropped.
    """

    def __init__(self, args: argparse.Namespace, folder: str, name: str, first: int = 0) -> None:
        self.board = self.wandb = None
        self.interval = args.log_mixes_interval
        if args.log_tensorboard:
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(folder, purge_step=first or None)
        if args.log_wandb:
            self.wandb = _open_wandb(args, name)

    def log(self, epoch: int, metrics: Mapping[str, float], mixes: Mapping[str, float]) -> None:
        """The figures of an epoch. W&B gets ``metrics`` from timm's own summary, which also closes the step."""
        if self.board is not None:
            for key, value in {**metrics, **mixes}.items():
                self.board.add_scalar(key, value, epoch)
            self.board.flush()
        if self.wandb is not None and mixes:
            self.wandb.log(dict(mixes), commit=False)

    def wants_picture(self, epoch: int) -> bool:
        """Whether this epoch ends with a picture of mixes: the first, and each after an interval."""
        return bool((self.board or self.wandb) and self.interval and epoch % self.interval == 0)

    def picture(self, epoch: int, path: Path) -> None:
        """A picture of mixes."""
        if self.board is not None:
            with open_image(path) as image:
                self.board.add_image('mixes', np.asarray(image.convert('RGB')), epoch, dataformats='HWC')
        if self.wandb is not None:
            self.wandb.log({'mixes': self.wandb.Image(str(path))}, commit=False)

    def close(self) -> None:
        """Write what is left."""
        if self.board is not None:
            self.board.close()


def _open_wandb(args: argparse.Namespace, name: str) -> Any:
    import wandb
    wandb.init(project=args.wandb_project, name=name, config=vars(args), tags=args.wandb_tags,
               resume='must' if args.wandb_resume_id else None, id=args.wandb_resume_id or None)
    return wandb

# ---- the progress bar

def open_bar(updates: int) -> Any:
    """A bar over all updates with the time that is left, on a terminal; None elsewhere."""
    if not (sys.stderr.isatty() and _columns()):
        return None
    return tqdm(total=updates, unit='update', dynamic_ncols=True)


def _columns() -> int:
    """Width of the terminal; 0 of one that has none (some containers and recorders), where a bar would be blank."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 80
