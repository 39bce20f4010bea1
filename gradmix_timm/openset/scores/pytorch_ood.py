"""Detectors of the package pytorch-ood as scores of this one: ``pytorch-ood:NAME``, fit on the same embeddings.

The library's scores are outlier scores, larger for unknowns; here they are negated. Detectors that go back to images
(gradients, several layers, dropout) have no embedding to be computed from and are refused.
"""
from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from gradmix_timm.records import Embeddings
from gradmix_timm.registry import nearest

from .base import Head, Score, chunks
from .distance import main_dimensions

__all__ = ['PREFIX', 'library_score', 'library_twin']

#: Of the names.
PREFIX = 'pytorch-ood:'
# Parameters of constructors that are not options: what maps images to features or logits, and the head.
_ABSENT = ('model', 'encoder', 'backbone', 'detector')
_HEAD = ('head', 'w', 'b')
# Base class to the field it reads and the ends of its methods' names.
_KINDS = {'LogitsDetector': ('logits', 'logits'), 'FeaturesDetector': ('features', 'features'),
          'FeatureMapsDetector': ('features', 'feature_maps')}
# Of these kinds, yet in need of what embeddings do not hold: text, weights of a loss, the singular values of maps.
_OTHERS = ('MCM', 'WeightedEBO', 'RankFeat')
# Options that the library requires, and their usual values.
_USUAL = {'DICE': {'p': 0.9}}


@functools.cache
def library_score(name: str) -> type[Score]:
    """The score class of one detector.

    Args:
        name: With its prefix; upper and lower case as in the library, or any.

    Raises:
        ValueError: The package is not installed, has no such detector, or one that needs more than embeddings.
    """
    wanted = name.removeprefix(PREFIX)
    found = _detectors()
    there = next((entry for entry in found if entry.casefold() == wanted.casefold()), None)
    if there is None:
        if hasattr(_library(), wanted):
            raise ValueError(f'{name} goes back to the model or to other data, and scores here are computed from '
                             f'logits and features alone; of pytorch-ood these can: {", ".join(found)}')
        raise ValueError(f'no score {name!r}: {nearest(wanted, found)} (of pytorch-ood)')
    return _adapted(found[there])


def library_twin(name: str) -> str:
    """Words for a score that exists in pytorch-ood alone: ``pytorch-ood:NAME``; '' without it."""
    try:
        found = next((entry for entry in _detectors() if entry.casefold() == name.casefold()), None)
    except ValueError:
        return ''
    return f'only through {PREFIX}{found}. ' if found else ''


def _library() -> ModuleType:
    try:
        import pytorch_ood.detector
    except ImportError as error:
        raise ValueError('scores named pytorch-ood:NAME need the package pytorch-ood: '
                         f"pip install 'gradmix-timm[scores]' ({error})") from error
    return pytorch_ood.detector  # type: ignore[no-any-return]


def _detectors() -> dict[str, type]:
    """Detectors of logits, features, or feature maps (which pooled features are too, one by one pixel large)."""
    library, found = _library(), {}
    for name in sorted(vars(library)):
        kind = getattr(library, name)
        if inspect.isclass(kind) and name not in _OTHERS and _reads(kind) is not None:
            found[name] = kind
    if not found:
        raise ValueError("this pytorch-ood is too old: pip install --upgrade 'gradmix-timm[scores]'")
    return found


def _reads(kind: type) -> tuple[str, str] | None:
    return next((_KINDS[base.__name__] for base in kind.__mro__ if base.__name__ in _KINDS), None)


class _LibraryScore(Score):
    """Minus a detector's outlier score.

    Args:
        **options: The detector's own.
    """

    kind: type
    method: str
    takes: frozenset[str]

    def __init__(self, **options: Any) -> None:
        self.given = options

    def fit(self, train: Embeddings | None, head: Head | None) -> None:
        """Build the detector and fit it, in float32 as the library expects."""
        self.head, self.resolved = head, _USUAL.get(self.kind.__name__, {}) | self.given
        if self.kind.__name__ == 'ViM' and train is not None:
            self.resolved.setdefault('d', main_dimensions(train.features.shape[1]))
        self.options |= {name: self.resolved[name] for name in self.options if name in self.resolved}
        try:
            self.detector = self._fresh()
            if train is not None and getattr(self.kind, 'requires_fit', False):
                getattr(self.detector, f'fit_{self.method}')(self._input(train, slice(None)), train.label.clone())
        except (RuntimeError, ValueError, AssertionError, TypeError, NotImplementedError) as error:
            raise ValueError(f'{self.name} could not be fitted: {error or type(error).__name__}') from error

    def _fresh(self) -> Any:
        """The detector before a fit. Without a detector of its own a reshaping method takes the energy."""
        options: dict[str, Any] = dict.fromkeys(self.takes.intersection(_ABSENT))
        if self.head is not None:
            options |= {name: value for name, value in _head_options(self.head).items() if name in self.takes}
        return self.kind(**options | self.resolved)

    def state(self) -> dict[str, Any]:
        """What the fit has left in the detector, for :meth:`take_state` to set on a new one."""
        fresh, own = vars(self._fresh()), dict(vars(self))
        learned = {name: value for name, value in vars(own.pop('detector')).items()
                   if not isinstance(value, _Flat) and (name not in fresh or value is not fresh[name])}
        return own | {'learned': learned, 'library': version('pytorch-ood')}

    def take_state(self, state: Mapping[str, Any]) -> None:
        """Set on a new detector what :meth:`state` gave.

        Raises:
            ValueError: The state is of another version of the library.
        """
        own = dict(state)
        learned, made_by, here = own.pop('learned'), own.pop('library'), version('pytorch-ood')
        if made_by != here:
            raise ValueError(f'{own["name"]} was fit by pytorch-ood {made_by} and {here} is installed: '
                             f'pip install pytorch-ood=={made_by}, or fit and save it again')
        super().take_state(own)
        self.detector = self._fresh()
        vars(self.detector).update(learned)

    def _input(self, embeddings: Embeddings, rows: slice) -> Tensor:
        values: Tensor = getattr(embeddings, self.reads[0])[rows].float()
        return values[..., None, None] if self.method == 'feature_maps' else values

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        predict = getattr(self.detector, f'predict_{self.method}')
        found = [-predict(self._input(embeddings, rows)).double().cpu() for rows in chunks(len(embeddings.logits))]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)


def _head_options(head: Head) -> dict[str, Any]:
    weight, bias = head.weight.float(), head.bias.float()
    return {'head': _Flat(weight, bias), 'w': weight, 'b': bias}


class _Flat(nn.Linear):
    """A linear layer that takes pooled feature maps too; some detectors ask it for ``weight`` and ``bias``."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], device=weight.device)
        self.load_state_dict({'weight': weight, 'bias': bias})
        self.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """Logits of [N, D] or [N, D, 1, 1]."""
        return super().forward(input.flatten(1))


def _adapted(detector: type) -> type[Score]:
    """A score class made for a detector, with the detector's options in its signature."""
    field, ending = _reads(detector) or ('', '')
    parameters = {name: parameter for name, parameter in inspect.signature(detector).parameters.items()
                  if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)}
    usual = _USUAL.get(detector.__name__, {})
    defaults = {name: None if parameter.default is parameter.empty else parameter.default
                for name, parameter in parameters.items() if name not in (*_ABSENT, *_HEAD)} | usual
    options = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
               for name, default in defaults.items()]
    return type(f'Library{detector.__name__}', (_LibraryScore,), {
        '__doc__': f'-{detector.__name__} of pytorch-ood.', '__signature__': inspect.Signature(options),
        'kind': detector, 'method': ending, 'takes': frozenset(parameters), 'reads': (field,),
        # The head is checked against training embeddings where there are any.
        'needs_train': bool(getattr(detector, 'requires_fit', False)),
        'needs_head': not set(_HEAD).isdisjoint(parameters), 'least': 1})
