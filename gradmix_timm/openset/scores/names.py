"""Scores by name with options: ``knn``, ``knn:k=5``, ``ash:variant=b,percentile=65``, ``pytorch-ood:KNN:k=5``."""
from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from gradmix_timm.registry import nearest
from gradmix_timm.schema import check

from .base import SCORES, Score
from .pytorch_ood import PREFIX, library_score, library_twin

__all__ = ['check_options', 'defaults_of', 'parse_score', 'score_kind', 'score_label']

# The papers' letters for options.
_LETTERS = {'T': 'temperature'}
# Published methods without a score here, and why.
_ABSENT = {
    'rankfeat': 'it removes the largest singular value from the feature map before pooling, which pooled features have '
                'lost',
    'mds_ensemble': 'it reads several layers, and embeddings hold the last one alone'}
_WORDS = {'true': True, 'false': False, 'none': None}


def parse_score(text: str) -> tuple[str, dict[str, Any]]:
    """A score's name without options, and the options; ``T`` means ``temperature``, as in papers.

    Raises:
        ValueError: No such score or option (with the nearest), an option without a value or twice.

    Example:
        >>> parse_score('knn:k=5')
        ('knn', {'k': 5})
    """
    name, colon, tail = _cut(text)
    _kind(name)
    options: dict[str, Any] = {}
    for part in tail.split(',') if colon else ():
        key, _, value = (piece.strip() for piece in part.partition('='))
        key = _LETTERS.get(key, key)
        if not (key and value) or key in options:
            raise ValueError(f'{text!r}: expected NAME:option=value,option=value, each option once, got {part!r}')
        options[key] = _value(value)
    check_options(name, options)
    return name, options


def score_kind(text: str) -> type[Score]:
    """The class of a score, registered here or of pytorch-ood ('pytorch-ood:NAME'), with options or without.

    Raises:
        ValueError: No such score (with the nearest); or pytorch-ood is not installed.
    """
    return _kind(_cut(text)[0])


def score_label(name: str, options: Mapping[str, Any]) -> str:
    """Row label of a score: its name and the options that differ from the defaults.

    Example:
        >>> score_label('msp', {'temperature': 1.}), score_label('msp', {'temperature': 2.})
        ('msp', 'msp:temperature=2')
    """
    changed = ','.join(f'{key}={_written(options[key])}' for key, default in defaults_of(_kind(name)).items()
                    if key in options and options[key] != default)
    return f'{name}:{changed}' if changed else name


def defaults_of(kind: type[Score]) -> dict[str, Any]:
    """Option to default."""
    return {key: parameter.default for key, parameter in inspect.signature(kind).parameters.items()}


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse what the score cannot be made with, before any image is read for it.

    Raises:
        ValueError: An option that the score does not have (with the nearest), or a value of another type or range.
    """
    kind = _kind(name)
    known, types = defaults_of(kind), get_type_hints(kind.__init__)
    for key, value in options.items():
        if key not in known:
            hint = nearest(key, known) if known else 'it takes none'
            raise ValueError(f'score {name!r} has no option {key!r}: {hint}')
        check(value, types.get(key, Any), f'score {name!r}: {key}')
    kind(**options)


def _cut(text: str) -> tuple[str, str, str]:
    """Name, colon and options; the prefix of pytorch-ood has a colon of its own."""
    prefix = PREFIX if text.startswith(PREFIX) else ''
    name, colon, tail = text.removeprefix(prefix).partition(':')
    return prefix + name, colon, tail


def _kind(name: str) -> type[Score]:
    if name.startswith(PREFIX):
        return library_score(name)
    if name not in SCORES and (why := _ABSENT.get(name.casefold().replace('-', '_'))):
        raise ValueError(f'no score named {name!r}: {why}. Available: {", ".join(sorted(SCORES))}')
    if name not in SCORES:
        raise ValueError(f'no score named {name!r}: {library_twin(name)}{nearest(name, SCORES)}')
    return SCORES[name]


def _value(text: str) -> Any:
    if text.casefold() in _WORDS:
        return _WORDS[text.casefold()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'{value:.10g}' if isinstance(value, float) else str(value)
