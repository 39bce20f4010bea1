"""Open set evaluation of embeddings: scores, metrics, reports; :func:`gradmix_timm.evaluate` takes a model."""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradmix_timm.openset import metrics, scores
    from gradmix_timm.openset.judge import EmbeddedSets
    from gradmix_timm.openset.model_scores import score_images
    from gradmix_timm.openset.scores import fit_score, list_scores
    from gradmix_timm.records import Embeddings

__all__ = ['EmbeddedSets', 'Embeddings', 'fit_score', 'list_scores', 'metrics', 'score_images', 'scores']

_HOMES = {'EmbeddedSets': 'gradmix_timm.openset.judge', 'Embeddings': 'gradmix_timm.records',
          'fit_score': 'gradmix_timm.openset.scores', 'list_scores': 'gradmix_timm.openset.scores',
          'score_images': 'gradmix_timm.openset.model_scores'}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in __all__:
        return import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return __all__
