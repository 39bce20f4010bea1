"""Images that show where a model errs, with thumbnails: for the report, which reads files alone."""
from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gradmix_timm.openset.results import JudgedFigures, Mistake, Mistakes

from .images import EvaluationImages

__all__ = ['find_mistakes', 'thumbnail']

# Thumbnails of each kind, and their side in pixels (a page shows 96; screens have two pixels for one).
_SHOWN, _SIDE = 12, 160


def find_mistakes(results: JudgedFigures, arrays: Mapping[str, NDArray[Any]],
                  probability: Mapping[str, NDArray[np.float64]], images: EvaluationImages,
                  ) -> Mistakes:
    """Unknown images that were accepted, known ones that were rejected, and known ones accepted as another class.

    Args:
        results: Of results.json.
        arrays: Of arrays.npz; ``known_index`` and ``unknown_index`` are rows of the sets.
        probability: Of the class predicted, by side.
        images: The sets.

    Returns:
        'accepted' by falling knownness, 'rejected' by rising, 'confused' the most probable first.
    """
    assert images.unknown is not None
    name, threshold = results['threshold']['score'], results['threshold']['value']
    assert threshold is not None
    known, unknown = arrays[f'known/{name}'], arrays[f'unknown/{name}']
    wrong = np.flatnonzero(~arrays['known_correct'] & (known >= threshold))

    def shown(side: str, row: int) -> Mistake:
        cut: Any = images.known if side == 'known' else images.unknown
        classes = results['known_classes'] if side == 'known' else results['unknown_classes']
        place = int(arrays[f'{side}_index'][row])
        png, size = thumbnail(cut.picture(place))
        return {'class': classes[arrays[f'{side}_label'][row]],
                'knownness': float(arrays[f'{side}/{name}'][row]),
                'answer': results['known_classes'][arrays[f'{side}_pred'][row]], 'file': cut.filename(place),
                'probability': float(probability[side][row]), 'size': size, 'png': png}

    return {'accepted': [shown('unknown', row) for row in _first(-unknown) if unknown[row] >= threshold],
            'rejected': [shown('known', row) for row in _first(known) if known[row] < threshold],
            'confused': [shown('known', wrong[place]) for place in _first(-probability['known'][wrong])]}


def _first(values: NDArray[Any]) -> NDArray[np.int64]:
    """Positions of the smallest values, as many as a page shows."""
    return np.argsort(values, kind='stable')[:_SHOWN]


def thumbnail(image: Image.Image) -> tuple[str, list[int]]:
    """An image of the data set as base64 PNG, shrunk if it is large, and its original size."""
    size = list(image.size)
    small = image.convert('RGB' if image.mode not in ('L', 'RGB') else image.mode)
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, format='PNG', optimize=True)
    return base64.b64encode(file.getvalue()).decode(), size
