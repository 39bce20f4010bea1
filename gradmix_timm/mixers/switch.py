"""Alternate two mixers: ``a+b`` picks b with ``switch_prob`` for each batch."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from gradmix_timm.records import Captured, MixDraw, Mixed

from .base import BatchMixer

__all__ = ['SwitchMixer']


class SwitchMixer(BatchMixer):
    """Alternates two mixers batch by batch, as timm alternates mixup and CutMix.

    Args:
        first: Mixes with probability 1 - ``switch_prob``.
        second: Mixes with probability ``switch_prob``.
        switch_prob: In [0, 1].

    Raises:
        ValueError: ``switch_prob`` is no probability; the mixers have one name, or targets of two kinds.
    """

    def __init__(self, first: BatchMixer, second: BatchMixer, switch_prob: float = 0.5) -> None:
        if not 0 <= switch_prob <= 1:
            raise ValueError(f'switch_prob is a probability in [0, 1], got {switch_prob}')
        if first.name == second.name:
            raise ValueError(f'two mixers that alternate have different names, by which their draws are known; got '
                             f'{first.name!r} twice')
        for option in ('num_classes', 'multi_label', 'unknown_output'):
            given = getattr(first, option), getattr(second, option)
            if given[0] != given[1]:
                raise ValueError(f'two mixers that alternate give targets of one kind, got {option}={given[0]} for '
                                 f'{first.name!r} and {given[1]} for {second.name!r}')
        super().__init__(first.num_classes, first.label_smoothing, seed=first.seed, rank=first.rank,
                         multi_label_mix=first.multi_label_mix, unknown_output=first.unknown_output)
        self.first, self.second, self.switch_prob = first, second, float(switch_prob)
        self.name = f'{first.name}+{second.name}'
        for flag in ('requires_model', 'requires_grad', 'changes_labels', 'gives_unknown', 'labels_after_forward'):
            setattr(self, flag, getattr(first, flag) or getattr(second, flag))
        for flag in ('rows_sum_to_one', 'tells_lam'):
            setattr(self, flag, getattr(first, flag) and getattr(second, flag))
        self.rows_per_image = max(first.rows_per_image, second.rows_per_image)

    @property
    @override
    def parts(self) -> tuple[BatchMixer, ...]:
        return (*self.first.parts, *self.second.parts)

    @property
    def options(self) -> dict[str, Any]:
        """Options of both, by name, and the switch."""
        shared = ('num_classes', 'label_smoothing', 'seed', 'rank', 'prob', 'prob_elem', 'multi_label_mix',
                  'unknown_output')
        common = {k: v for k, v in self.first.options.items() if k in shared}
        parts = {m.name: {k: v for k, v in m.options.items() if k not in common or v != common[k]}
                 for m in (self.first, self.second)}
        return {**common, 'switch_prob': self.switch_prob, 'parts': parts}

    @override
    def set_step(self, epoch: int, step: int) -> None:
        super().set_step(epoch, step)
        self.first.set_step(epoch, step)
        self.second.set_step(epoch, step)

    @override
    def prepare(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        self.first.prepare(model, input_size)
        self.second.prepare(model, input_size)

    @torch.compiler.disable
    def draw(self, images: Tensor, targets: Tensor, model: nn.Module | None = None,
             generator: torch.Generator | np.random.Generator | None = None) -> MixDraw:
        """The draw of one of the two, identified by its ``name``."""
        rng = self._generator(generator)
        chosen = self.second if rng.random() < self.switch_prob else self.first
        return chosen.draw(images, targets, model, rng)

    @override
    def draw_from(self, images: Tensor, captured: Sequence[Captured], targets: Tensor | None = None,
                  rows: slice = slice(None), generator: torch.Generator | np.random.Generator | None = None) -> MixDraw:
        rng = self._generator(generator)
        chosen = self.second if rng.random() < self.switch_prob else self.first
        return chosen.draw_from(images, captured, targets, rows, rng)

    @override
    def apply(self, images: Tensor, targets: Tensor, draw: MixDraw) -> tuple[Tensor, Tensor]:
        return self._drawer(draw).apply(images, targets, draw)

    @override
    def _mixed(self, images: Tensor, targets: Tensor, draw: MixDraw) -> Mixed:
        return self._drawer(draw)._mixed(images, targets, draw)

    @override
    def batch_of(self, images: Tensor, targets: Tensor, draw: MixDraw) -> tuple[Tensor, Tensor]:
        return self._drawer(draw).batch_of(images, targets, draw)

    @contextmanager
    @override
    def watch(self, model: nn.Module, mixed: Mixed) -> Iterator[Callable[[object], Tensor]]:
        one = self if mixed.draw is None else self._drawer(mixed.draw)
        with super().watch(model, mixed) if one is self else one.watch(model, mixed) as finish:
            yield finish

    def _drawer(self, draw: MixDraw) -> BatchMixer:
        return self.second if draw.name == self.second.name else self.first
