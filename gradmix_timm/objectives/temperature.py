"""Temperature of the training loss: a constant, or the negative cosine schedule over the epochs."""
from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

__all__ = ['LossTemperature', 'TemperedLoss']

#: Epochs of a cycle in the paper.
_PERIOD = 200


@dataclass(frozen=True)
class LossTemperature:
    """A temperature for every epoch: the negative cosine schedule, constant where ``low`` equals ``high``.

    Kundu, Patil, JaJa, "Boosting open set recognition performance through modulated representation learning" (ICLR
    2026; their code: amit31416/NegCosSch), with P the period, E the epochs of the run and t the epoch, from 0 (in their
    code from 1)::

        tau(t) = low + (high - low) (1 + cos(2 pi (t - P / 2) / P)) / 2    for t < E - P / 2
        tau(t) = high                                                      from there on

    Every cycle starts at ``low``; the last half-cycle stays at ``high``. For cross-entropy the authors use low = 0.5,
    high = 2 and P = 200 in runs of 600 epochs. A run shorter than a cycle has no hold, which would be most of it: by
    default its period is 2 E, so that the temperature rises once, from ``low`` in the first epoch towards ``high`` at
    the end, as their README proposes.

    Attributes:
        low: Temperature at the start of a cycle.
        high: Temperature in the middle of a cycle and at the end.
        period: Epochs of a cycle; None: 200, in a run of fewer epochs twice their number.

    Raises:
        ValueError: A temperature that is not positive and finite, ``low`` above ``high``, a period below 2.

    Example:
        >>> schedule = LossTemperature()
        >>> [round(schedule.at(epoch, 600), 2) for epoch in (0, 50, 100, 200, 300, 499, 599)]
        [0.5, 1.25, 2.0, 0.5, 2.0, 2.0, 2.0]
        >>> [round(schedule.at(epoch, 30), 2) for epoch in (0, 15, 29)]
        [0.5, 1.25, 2.0]
    """

    low: float = 0.5
    high: float = 2.0
    period: int | None = None

    def __post_init__(self) -> None:
        for name in ('low', 'high'):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f'{name} is a temperature, a finite number above 0, got {value:g}')
        if self.low > self.high:
            raise ValueError(f'low is at most high, got low={self.low:g} and high={self.high:g}')
        if self.period is not None and self.period < 2:
            raise ValueError(f'period is 2 epochs or more, got {self.period}')

    @classmethod
    def parse(cls, text: str) -> LossTemperature:
        """The schedule that a flag names: ``2``, ``negcos`` or ``negcos:low=0.5,high=2,period=200``.

        Raises:
            ValueError: Neither form, an unknown or repeated option, a value out of range.

        Example:
            >>> LossTemperature.parse('negcos:high=4')
            LossTemperature(low=0.5, high=4.0, period=None)
        """
        name, colon, tail = text.partition(':')
        if name != 'negcos':
            value = _number(text, float, 'a positive number, negcos or negcos:low=0.5,high=2,period=200')
            return cls(value, value)
        options: dict[str, Any] = {}
        for part in tail.split(',') if colon else ():
            key, _, value = part.partition('=')
            if key not in (field.name for field in fields(cls)) or key in options:
                raise ValueError(f'{part!r}: expected each of low, high and period at most once, as '
                                 'negcos:low=0.5,high=2,period=200')
            options[key] = _number(value, int if key == 'period' else float, f'a number after {key}=')
        return cls(**options)

    def at(self, epoch: int, epochs: int) -> float:
        """The temperature of an epoch, counted from 0, in a run of ``epochs`` epochs."""
        period = self.period or (_PERIOD if epochs >= _PERIOD else 2 * epochs)
        if period <= epochs and epoch >= epochs - period / 2:
            return self.high
        phase = 2 * math.pi * (epoch - period / 2) / period
        return self.low + (self.high - self.low) * (1 + math.cos(phase)) / 2


def _number(text: str, kind: Any, expected: str) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f'expected {expected}, got {text!r}') from error


class TemperedLoss(nn.Module):
    """A loss of logits divided by the temperature of the current epoch, in float32.

    Args:
        loss: Takes logits and targets.
        schedule: Of the temperature.
        epochs: Length of the run.
    """

    def __init__(self, loss: nn.Module, schedule: LossTemperature, epochs: int) -> None:
        super().__init__()
        self.loss, self.schedule, self.epochs = loss, schedule, epochs
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Take the temperature of an epoch, counted from 0."""
        self.temperature = self.schedule.at(epoch, self.epochs)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of logits [B, K] and targets, int64 [B] or float [B, K]."""
        loss: Tensor = self.loss(output.float() / self.temperature, target)
        return loss
