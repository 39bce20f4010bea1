"""Interleaved timing: every variant in every round, ratios within the round, medians over rounds."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def once(function: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
         ) -> float:
    """Seconds of one call: by events on CUDA, by the clock elsewhere."""
    if device.type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    begin = clock()
    function()
    return clock() - begin


def interleaved(variants: dict[str, Callable[[], object]], base: str, device: torch.device, rounds: int = 9,
                clock: Callable[[], float] = time.perf_counter) -> dict:
    """Median seconds of each variant, and the median (and range) of its ratio to ``base`` within a round.

    ``time.process_time`` as the clock leaves out what other processes take of the machine.
    """
    for function in variants.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        order = list(variants) if turn % 2 else list(reversed(variants))
        for name in order:
            times[name].append(once(variants[name], device, clock))
    figures = {}
    for name, values in times.items():
        ratios = sorted(v / b for v, b in zip(values, times[base], strict=True))
        figures[name] = {'seconds': round(statistics.median(values), 5),
                         'ratio': round(statistics.median(ratios), 4),
                         'ratio_range': [round(ratios[0], 4), round(ratios[-1], 4)]}
    return figures
