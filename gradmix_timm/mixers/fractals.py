"""Pictures of random iterated function systems, made from a seed."""
from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

__all__ = ['fractal', 'fractals']

_POINTS, _STEPS, _WARM = 1000, 50, 10
# Least share of the pixels that are hit: some systems are a line, or a few dots.
_LEAST = 0.15


def fractal(rng: np.random.Generator, side: int) -> np.ndarray:
    """The attractor of 2 to 6 random contractions, coloured by the map that was applied last.

    The chaos game (Barnsley): points are sent through maps drawn with probability |det A| and the visits of each pixel
    are counted; brightness is their logarithm, on a ground of one colour.

    Args:
        rng: Of all that is random.
        side: Pixels.

    Returns:
        float32 [side, side, 3] in [0, 1].
    """
    count = int(rng.integers(2, 7))
    turns, shrink = rng.uniform(0, 2 * np.pi, (count, 2)), rng.uniform(0.2, 0.85, (count, 2))

    def turned(angle: np.ndarray) -> np.ndarray:
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)

    maps = turned(turns[:, 0]) @ (shrink[:, :, None] * turned(turns[:, 1]))
    shift, colours = rng.uniform(-1, 1, (count, 2)), rng.random((count, 3))
    weight = np.maximum(shrink.prod(1), 0.02)
    bounds = np.cumsum(weight[:-1]) / weight.sum()
    points, visits = rng.uniform(-1, 1, (_POINTS, 2)), []
    for step in range(_STEPS):
        chosen = np.searchsorted(bounds, rng.random(_POINTS))
        points = (maps[chosen] * points[:, None]).sum(2) + shift[chosen]
        if step >= _WARM:
            visits.append((points, chosen))
    places, last = np.concatenate([p for p, _ in visits]), np.concatenate([c for _, c in visits])
    low, high = np.quantile(places, [0.005, 0.995], axis=0)
    cells = ((places - low) / np.maximum(high - low, 1e-6) * side).astype(np.int64)
    inside = ((cells >= 0) & (cells < side)).all(1)
    flat = cells[inside] @ [side, 1]
    hits = np.bincount(flat, minlength=side * side).astype(np.float64)
    if (hits > 0).mean() < _LEAST:
        return fractal(rng, side)
    colour = np.stack([np.bincount(flat, colours[last[inside], c], side * side) for c in range(3)], 1)
    light = (np.log1p(hits) / np.log1p(hits.max()))[:, None] ** 0.5
    picture = light * colour / np.maximum(hits, 1)[:, None] + (1 - light) * rng.random(3)
    return picture.reshape(side, side, 3).astype(np.float32)


@lru_cache(maxsize=4)
def fractals(count: int, side: int, seed: int = 0) -> Tensor:
    """A bank of fractals, float32 [count, 3, side, side] in [0, 1]; each a function of (seed, position, side) alone.

    Made at the first call, about 0.01 s each, and cached; do not modify it.

    Example:
        >>> bank = fractals(2, 32)
        >>> bank.shape, bool(bank.std((1, 2, 3)).min() > 0.02)
        (torch.Size([2, 3, 32, 32]), True)
    """
    pictures = [fractal(np.random.default_rng([seed, place]), side) for place in range(count)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
