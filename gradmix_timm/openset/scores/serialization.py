"""Convert a fitted score to plain values and tensors and back, so that reading a file runs no code from it."""
from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

from torch import Tensor

from gradmix_timm.schema import Length, Plain, Range, check, shown

from . import Head, Score, score_kind
from .distance import Gaussian
from .openmax import WeibullTails
from .pytorch_ood import PREFIX

__all__ = ['restore_score', 'score_state']

# Objects that a fit may leave in a score; a file names no others.
_PARTS: dict[str, type] = {kind.__name__: kind for kind in (Gaussian, Head, WeibullTails)}
_TENSOR, _PART, _FLOAT, _LIST, _DICT = '@tensor', '@part', '@float', '@tuple', '@dict'
# Kinds of dicts in a file, by the key that marks each.
_Tensor = TypedDict('_Tensor', {'@tensor': str, 'transposed': bool})
_Part = TypedDict('_Part', {'@part': Literal['Gaussian', 'Head', 'WeibullTails'], 'fields': dict[str, Plain]})
_Float = TypedDict('_Float', {'@float': Literal['inf', '-inf', 'nan']})
_List = TypedDict('_List', {'@tuple': bool, 'items': list[Plain]})
_Dict = TypedDict('_Dict', {'@dict': dict[str, Plain]})
_NODES: dict[str, Any] = {_TENSOR: _Tensor, _PART: _Part, _FLOAT: _Float, _LIST: _List, _DICT: _Dict}


class _State(TypedDict):
    """What every score has."""

    name: str
    options: dict[str, Any]
    diagnostics: dict[str, Any]
    _widths: dict[str, Annotated[int, Range(1, 10_000_000)]]
    reads: tuple[Literal['logits', 'features', 'projection'], ...]


def score_state(score: Score) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Plain values and tensors of a score.

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
    check(plain, dict[str, Plain], 'score')
    name = check(plain.get('name'), Annotated[str, Length(1, 100)], 'score: name')
    try:
        kind = score_kind(name)
    except ValueError as error:
        own = '' if name.startswith(PREFIX) else ('. If it is a score of your own, import the module that registers it '
                                                  'first (--device-modules MODULE)')
        raise ValueError(f'{error}{own}') from error
    state = {key: _object(value, tensors, key) for key, value in plain.items()}
    check(state, _State, f'score {shown(name)}')
    for key in state:
        if not key.isidentifier() or key.startswith('__') or callable(getattr(kind, key, None)):
            raise ValueError(f'score {shown(name)} keeps no {shown(key)}')
    score: Score = object.__new__(kind)
    try:
        kind(**{key: state[key] for key in inspect.signature(kind).parameters if key in state})  # checks its options
        score.take_state(state)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f'score {shown(name)}: its options or its fit are not those of such a score '
                         f'({str(error)[:300]})') from error
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


def _object(value: Any, tensors: Mapping[str, Tensor], place: str) -> Any:
    if not isinstance(value, dict):
        return value
    kind = next((kind for kind in _NODES if kind in value), None)
    if kind is None:
        raise ValueError(f'score: {place[:60]}: got {shown(value)}, expected one of {", ".join(_NODES)} in it')
    node: dict[str, Any] = check(value, _NODES[kind], f'score: {place[:60]}')
    if kind == _FLOAT:
        return float(node[_FLOAT])
    if kind == _TENSOR:
        return _tensor(node, tensors, place)
    if kind == _LIST:
        entries = [_object(entry, tensors, f'{place}.{i}') for i, entry in enumerate(node['items'])]
        return tuple(entries) if node[_LIST] else entries
    if kind == _DICT:
        return {key: _object(entry, tensors, f'{place}.{key}') for key, entry in node[_DICT].items()}
    return _part(node, tensors, place)


def _part(node: Mapping[str, Any], tensors: Mapping[str, Tensor], place: str) -> Any:
    part: Any = object.__new__(_PARTS[node[_PART]])
    for key, entry in node['fields'].items():
        if callable(getattr(type(part), key, None)):
            raise ValueError(f'score: {place[:60]}: {node[_PART]} keeps no {shown(key)}')
        object.__setattr__(part, key, _object(entry, tensors, f'{place}.{key}'))  # Head is frozen
    if isinstance(part, Head):
        try:
            part.__post_init__()  # which compares their shapes
        except AttributeError as error:
            raise ValueError(f'score: {place[:60]}: a head is weight and bias ({error})') from error
    return part


def _tensor(node: Mapping[str, Any], tensors: Mapping[str, Tensor], place: str) -> Tensor:
    name = node[_TENSOR]
    if name not in tensors:
        raise ValueError(f'score: {place[:60]}: the tensor {shown(name)} is missing')
    if node['transposed'] and tensors[name].dim() != 2:
        raise ValueError(f'score: {place[:60]}: {shown(name)} is no matrix, and none that is transposed')
    return tensors[name].T if node['transposed'] else tensors[name]
