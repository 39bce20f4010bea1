"""Presets that reproduce published tables: scores with fixed options, and metric conventions."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradmix_timm.registry import Registry

from .metrics import arpl, openood, rank_counts
from .metrics.checks import correctness, sides
from .results import PresetFigures
from .scores import parse_score, score_label

__all__ = ['PRESETS', 'Preset', 'preset_figures']

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Preset:
    """Scores and metrics by the conventions of a paper or benchmark.

    Attributes:
        name: As typed on the command line.
        scores: Names with the options that are fixed.
        on_held_out: Scores that are fit on held-out images of the known classes rather than on training images.
        heads: Columns of its table, figures in percent.
        figures: (known, correct, unknown, closed-set accuracy) to the figures under ``heads``, fractions.
    """

    name: str
    scores: tuple[str, ...]
    on_held_out: frozenset[str]
    heads: tuple[str, ...]
    figures: Callable[[Floats, NDArray[np.bool_], Floats, float], tuple[float, ...]]

    def named(self, names: Sequence[str]) -> tuple[str, ...]:
        """These scores with the preset's options, unless a name gives others.

        Example:
            >>> PRESETS['openood'].named(['knn', 'openmax', 'ash:percentile=65'])
            ('knn:k=50', 'openmax:shift=1', 'ash:percentile=65,variant=b')
        """
        fixed = dict(map(parse_score, self.scores))
        return tuple(score_label(name, fixed.get(name, {}) | options) for name, options in map(parse_score, names))

    @property
    def labels(self) -> tuple[str, ...]:
        """Row names of its own scores."""
        return tuple(score_label(*parse_score(name)) for name in self.scores)


def _as_openood(known: Floats, correct: NDArray[np.bool_], unknown: Floats, top1: float) -> tuple[float, ...]:
    _, ladder = rank_counts.count(known, unknown, correct)
    return (openood.fpr_at_95(ladder), float(rank_counts.auroc(ladder)), openood.aupr_in(ladder),
            openood.aupr_out(ladder), top1, openood.ccr_at_fpr(ladder, 0.01), openood.ccr_at_fpr(ladder, 0.1))


def _as_arpl(known: Floats, correct: NDArray[np.bool_], unknown: Floats, top1: float) -> tuple[float, ...]:
    return (top1, arpl.auroc(known, unknown), arpl.aupr_in(known, unknown), arpl.aupr_out(known, unknown),
            1 - arpl.fpr_at_95_known(known, unknown), arpl.oscr(known, correct, unknown))


#: Options of ``openood`` are those of configs/postprocessors/*.yml of OpenOOD v1.5; what it fits on its validation
#: images is fit on held-out ones here.
PRESETS: Registry[Preset] = Registry('preset')
PRESETS.register('openood', "OpenOOD v1.5's postprocessors with their default options, and its evaluator's figures")(
    Preset('openood', (
        'msp', 'temperature', 'mls', 'energy:temperature=1', 'gen:gamma=0.1,top=100', 'knn:k=50',
        'mahalanobis:shrinkage=1e-6', 'rmahalanobis', 'vim:dim=256', 'residual:dim=512', 'openmax:shift=1',
        'react:percentile=90', 'ash:variant=b,percentile=90', 'scale:percentile=85', 'dice:percentile=90', 'klm',
        'she:metric=inner_product', 'nnguide:k=100,share=0.01', 'fdbd:normalizer=distance', 'nci:alpha=1e-4',
        'gradnorm', 'relation:power=1', 'vra:upper=90,lower=10,below=clip'),
        frozenset(('react', 'klm', 'vra', 'residual', 'temperature')),
        ('FPR@95', 'AUROC', 'AUPR_IN', 'AUPR_OUT', 'ACC', 'CCR@FPR1', 'CCR@FPR10'), _as_openood))
PRESETS.register('paper', "the GradMix authors' class-wise neighbours, and the figures of ARPL's code")(
    Preset('paper', ('class-knn-share:k=3', 'msp', 'mls'), frozenset(),
           ('ACC', 'AUROC', 'AUIN', 'AUOUT', 'TNR@TPR95', 'OSCR'), _as_arpl))


def preset_figures(preset: Preset, arrays: Mapping[str, Array], names: Sequence[str],
                   groups: Mapping[str, Array]) -> PresetFigures:
    """Every score's figures by a preset's conventions, on all unknown images and on each group of them.

    Args:
        preset: Whose.
        arrays: Of an evaluation.
        names: Scores.
        groups: Name to the rows of unknown images, bool [M].
    """
    top1 = float(arrays['known_correct'].mean())
    rows = {'all': np.ones(len(arrays['unknown_pred']), bool), **groups}
    return {'name': preset.name, 'columns': list(preset.heads), 'scores': {name: {
        group: list(_figures(preset, arrays, name, some, top1)) for group, some in rows.items()} for name in names}}


def _figures(preset: Preset, arrays: Mapping[str, Array], name: str, rows: Array, top1: float) -> tuple[float, ...]:
    known, unknown = sides(arrays[f'known/{name}'], arrays[f'unknown/{name}'][rows])
    return preset.figures(known, correctness(arrays[f'correct/{name}'], len(known)), unknown, top1)
