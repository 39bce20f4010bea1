"""Unknown images that are known ones, or nearly: the closest pairs by features."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradmix_timm.records import Embeddings

from .scores.neighbours import top_cosines

__all__ = ['Pair', 'closest_pairs']


@dataclass(frozen=True, slots=True)
class Pair:
    """An unknown image and the known one whose features are most like its own.

    Attributes:
        unknown: Its ``index`` in the embeddings.
        known: That of the known image.
        part: Name of the set that holds the known image.
        cosine: Of their features, in [-1, 1]; 1 for images of the same pixels, but for the rounding of the pass.
    """

    unknown: int
    known: int
    part: str
    cosine: float


def closest_pairs(known: Mapping[str, Embeddings], unknown: Embeddings, count: int) -> list[Pair]:
    """The unknown images that come closest to any known one, closest first, each once.

    Args:
        known: Sets of known images by name, training images too.
        unknown: Unknown images.
        count: Pairs at most.

    Returns:
        Pairs; none where features are not finite.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1., 0.], [0., 1.]])
        >>> there = Embeddings(rows, rows, None, torch.tensor([0, 1]), torch.arange(2))
        >>> new = Embeddings(rows, 3 * rows.flip(0), None, torch.tensor([-1, -1]), torch.arange(2))
        >>> [(pair.unknown, pair.known, pair.part) for pair in closest_pairs({'test': there}, new, 5)]
        [(0, 1, 'test'), (1, 0, 'test')]
    """
    if not all(bool(part.features.isfinite().all()) for part in (unknown, *known.values())):
        return []
    best: NDArray[np.float64] = np.full(len(unknown.index), -np.inf)
    where = np.zeros(len(best), dtype=np.int64)
    part_of = np.zeros(len(best), dtype=np.int64)
    for place, part in enumerate(known.values()):
        cosine, row = top_cosines(unknown.features, part.features, 1)
        value = cosine[:, 0].cpu().numpy()
        closer = value > best
        best[closer], part_of[closer] = value[closer], place
        where[closer] = part.index[row[:, 0].to(part.index.device)].cpu().numpy()[closer]
    names, index = list(known), unknown.index.cpu().numpy()
    order = np.argsort(-best, kind='stable')[:count]
    return [Pair(int(index[i]), int(where[i]), names[part_of[i]], min(float(best[i]), 1.)) for i in order]
