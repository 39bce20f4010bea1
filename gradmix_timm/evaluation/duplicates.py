"""Search for unknown images that repeat known ones: compares the pixels of the pairs closest in feature space."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gradmix_timm.data import CutDataset
from gradmix_timm.openset.judge import EmbeddedSets
from gradmix_timm.openset.results import ClosePair, Duplicates, NearPair
from gradmix_timm.openset.scores.neighbours import top_cosines
from gradmix_timm.records import Embeddings

from .images import EvaluationImages
from .mistakes import thumbnail

__all__ = ['Pair', 'closest_pairs', 'find_duplicates']

# Pairs with a lower cosine are skipped; the margin allows for a pass in bfloat16, which rounds to about 1e-3.
_ALIKE = 0.99
# Pairs shown in the report, and pairs listed by name.
_SHOWN, _LISTED = 8, 100


@dataclass(frozen=True, slots=True)
class Pair:
    """An unknown image and the known image nearest to it in feature space.

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


def find_duplicates(sets: EmbeddedSets, images: EvaluationImages, count: int,
                    ) -> tuple[Duplicates | None, list[ClosePair]]:
    """Pairs of an unknown image and the known one nearest by features; whether their pixels are the same.

    Equal pixels give equal features up to rounding, so a copy is the nearest neighbour. In a net whose features have
    collapsed, another image may be as near and hide it.

    Args:
        sets: Embeddings; training images are included if a score reads them.
        images: The same sets.
        count: Pairs whose pixels are compared; 0: no comparison.

    Returns:
        The block ``duplicates`` of results.json, or None; thumbnails of the closest pairs for mistakes.json.
    """
    unknown: Any = images.unknown
    known = {'test': (images.known, sets.known), 'train': (images.train, sets.train),
             'held-out': (images.held_out, sets.held_out)}
    parts = {name: part for name, (cut, part) in known.items() if cut is not None and part is not None}
    cuts = {name: cut for name, (cut, part) in known.items() if cut is not None and part is not None}
    pairs = closest_pairs(parts, sets.unknown, count) if count else []
    if not pairs:
        return None, []
    alike = [pair for pair in pairs if pair.cosine >= _ALIKE]
    same = [pair for pair in alike if _same_pixels(unknown.picture(pair.unknown), cuts[pair.part].picture(pair.known))]
    block: Duplicates = {
        'compared_with': {name: len(cut) for name, cut in cuts.items()}, 'looked_at': len(alike),
        'n_identical': len(same), 'identical': [_names(pair, cuts, unknown) for pair in same[:_LISTED]],
        'closest': [_names(pair, cuts, unknown) for pair in pairs[:_SHOWN]], 'warnings': _warnings(same, cuts, unknown)}
    return block, [_shown(pair, cuts, unknown) for pair in pairs[:_SHOWN]]


def _same_pixels(one: Image.Image, other: Image.Image) -> bool:
    """Whether two pictures have equal size and pixels, in any file format."""
    return one.size == other.size and one.convert('RGB').tobytes() == other.convert('RGB').tobytes()


def _names(pair: Pair, cuts: Mapping[str, CutDataset], unknown: Any) -> NearPair:
    return {'unknown': unknown.filename(pair.unknown), 'known': cuts[pair.part].filename(pair.known),
            'part': pair.part, 'cosine': round(pair.cosine, 6)}


def _warnings(same: Sequence[Pair], cuts: Mapping[str, CutDataset], unknown: Any) -> list[str]:
    if not same:
        return []
    first = _names(same[0], cuts, unknown)
    count = 'an unknown image has' if len(same) == 1 else f'{len(same)} unknown images have'
    return [f'{count} the very pixels of known ones ({first["unknown"]} is {first["known"]} of the {first["part"]} '
            'images, ...): take them out of the unknown set']


def _shown(pair: Pair, cuts: Mapping[str, CutDataset], unknown: Any) -> ClosePair:
    png, size = thumbnail(unknown.picture(pair.unknown))
    known_png, known_size = thumbnail(cuts[pair.part].picture(pair.known))
    return {**_names(pair, cuts, unknown), 'unknown_png': png, 'unknown_size': size, 'known_png': known_png,
            'known_size': known_size}
