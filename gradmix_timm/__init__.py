"""GradMix and its peers as batch mixers for timm, and a harness that evaluates open set recognition."""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradmix_timm.attribution import attribute
    from gradmix_timm.classifier import OpenSetClassifier
    from gradmix_timm.evaluation import evaluate
    from gradmix_timm.mixers import GradMix, create_mixer, list_mixers, register_mixer
    from gradmix_timm.mixers.scene import plot_mixes
    from gradmix_timm.plots.pictures import plot_attribution

__version__ = '0.1.0'
__all__ = ['GradMix', 'OpenSetClassifier', 'attribute', 'create_mixer', 'evaluate', 'list_mixers', 'plot_attribution',
           'plot_mixes', 'register_mixer']

# Loaded on first use, so that `gradmix_timm.openset` does not import the mixers that it evaluates.
_HOMES = {
    'GradMix': 'gradmix_timm.mixers',
    'OpenSetClassifier': 'gradmix_timm.classifier',
    'attribute': 'gradmix_timm.attribution',
    'create_mixer': 'gradmix_timm.mixers',
    'evaluate': 'gradmix_timm.evaluation',
    'list_mixers': 'gradmix_timm.mixers',
    'plot_attribution': 'gradmix_timm.plots.pictures',
    'plot_mixes': 'gradmix_timm.mixers.scene',
    'register_mixer': 'gradmix_timm.mixers',
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return [*__all__, '__version__']
