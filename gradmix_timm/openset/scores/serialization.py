"""A fitted score as plain values and tensors, and back: what a file can hold without running anything on reading."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from . import Head, Score, score_kind
from .distance import Gaussian
from .openmax import WeibullTails

__all__ = ['restore_score', 'score_state']

# Objects that a fit may leave in a score; a file names no others.
_PARTS: dict[str, type] = {kind.__name__: kind for kind in (Gaussian, Head, WeibullTails)}
_TENSOR, _PART, _FLOAT, _LIST, _DICT = '@tensor', '@part', '@float', '@tuple', '@dict'


def score_state(score: Score) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a score is made of.

    Args:
        score: Of :func:`~gradmix_timm.openset.scores.fit_score`.

    Returns:
        Values that JSON takes, and tensors by dotted name, on the CPU, none sharing memory with another.

    Raises:
        ValueError: A score that keeps something else than numbers, text, tensors and the known parts.

    Example:
        >>> from gradmix_timm.openset.scores import fit_score
        >>> score_state(fit_score('energy', None, temperature=2.))[0]['temperature']
        2.0
    """
    tensors: dict[str, Tensor] = {}
    try:
        return {name: _plain(value, name, tensors) for name, value in score.state().items()}, tensors
    except ValueError as error:
        raise ValueError(f'{error}: score {score.name!r} cannot be kept in a file; make the classifier from its '
                         "checkpoint each time, or take a score of this package's own") from error


def restore_score(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Score:
    """The score of :func:`score_state`; the same figures, bit for bit.

    Raises:
        ValueError: A score that is not registered here, or a state that is not of a score.
    """
    name = plain.get('name')
    if not isinstance(name, str):
        raise ValueError(f'a stored score says its name, got {name!r}')
    score: Score = object.__new__(score_kind(name))
    score.take_state({key: _object(value, tensors) for key, value in plain.items()})
    return score


def _plain(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: repr(value)}  # JSON has no infinities
    if isinstance(value, Tensor):
        # The layout decides how a product is blocked, so it is kept: a transposed matrix is stored as what it is of.
        turned = value.dim() == 2 and not value.is_contiguous() and value.T.is_contiguous()
        tensors[place] = (value.T if turned else value).detach().cpu().clone().contiguous()
        return {_TENSOR: place, 'transposed': turned}
    if isinstance(value, list | tuple):
        return {_LIST: isinstance(value, tuple),
                'items': [_plain(entry, f'{place}.{i}', tensors) for i, entry in enumerate(value)]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {_DICT: {key: _plain(entry, f'{place}.{key}', tensors) for key, entry in value.items()}}
    if type(value).__name__ in _PARTS:
        fields = getattr(value, '__slots__', None) or vars(value)
        return {_PART: type(value).__name__,
                'fields': {key: _plain(getattr(value, key), f'{place}.{key}', tensors) for key in fields}}
    raise ValueError(f'{place} is a {type(value).__name__}, which is neither numbers nor text')


def _object(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        if value[_TENSOR] not in tensors:
            raise ValueError(f'the tensor {value[_TENSOR]!r} of the score is missing')
        tensor = tensors[value[_TENSOR]]
        return tensor.T if value['transposed'] else tensor
    if _FLOAT in value:
        return float(value[_FLOAT])
    if _LIST in value:
        entries = [_object(entry, tensors) for entry in value['items']]
        return tuple(entries) if value[_LIST] else entries
    if _DICT in value:
        return {key: _object(entry, tensors) for key, entry in value[_DICT].items()}
    if value.get(_PART) not in _PARTS:
        raise ValueError(f'a stored score holds {brief(value)}; known parts are {", ".join(_PARTS)}')
    part: Any = object.__new__(_PARTS[value[_PART]])
    for key, entry in value['fields'].items():
        object.__setattr__(part, key, _object(entry, tensors))  # Head is frozen
    return part


def brief(value: Mapping[str, Any]) -> str:
    """The keys of a dict, for a message."""
    return f'an entry of {", ".join(map(str, list(value)[:3]))}' if value else 'an empty entry'
