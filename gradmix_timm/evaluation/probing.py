"""Evaluation of frozen features by linear, nearest-neighbour and few-shot probes, once on the test images."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradmix_timm.choices import PROBES
from gradmix_timm.data.subsets import stratified
from gradmix_timm.openset.metrics.intervals import draws_ci, top1
from gradmix_timm.openset.metrics.summary import summarize
from gradmix_timm.openset.probes import choose_l2, draw_shots, fit_linear, fit_neighbours, fit_prototypes
from gradmix_timm.openset.results import ClosedSet, ProbeGroup, ProbeParameters, ProbeResults, ScoreFigures
from gradmix_timm.openset.scores import fit_score
from gradmix_timm.records import Embeddings
from gradmix_timm.registry import nearest

from .images import EvaluationImages
from .manifest import facts_of
from .model import EvaluatedModel
from .processes import rest_by_first
from .settings import EvaluationSettings, check_counts

__all__ = ['ProbeOptions', 'evaluate_probes']

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions:
    """Which probes, and how they are fitted.

    Attributes:
        probes: Of :data:`~gradmix_timm.choices.PROBES`.
        shots: Training images of a class for few-shot probes.
        draws: Few-shot draws of each size.
        knn_k: Neighbours; None: 20, or 200 for half a million images.
        held_out: Share of the training images for choosing the penalty, if training held none out.
    """

    probes: Sequence[str] = PROBES
    shots: Sequence[int] = (1, 5, 10)
    draws: int = 10
    knn_k: int | None = None
    held_out: float = 0.2

    def __post_init__(self) -> None:
        """Reject unknown names and numbers out of range."""
        check_counts(self)
        for name in self.probes:
            if name not in PROBES:
                raise ValueError(f'probes={name}: no such probe: {nearest(name, PROBES)}')
        if not self.probes:
            raise ValueError(f'probes=: expected one or more of {", ".join(PROBES)}')
        if not self.shots or min(self.shots) < 1:
            raise ValueError(f'shots={",".join(map(str, self.shots))}: expected training images of a class, as in '
                             '1,5,10')
        if not 0 < self.held_out < 1:
            raise ValueError(f'held_out={self.held_out:g}: expected a share between 0 and 1')


@dataclass(frozen=True)
class _Task:
    """Embeddings of one evaluation of probes.

    Attributes:
        fit: Training images, none of ``held`` among them.
        held: Training images for choosing hyperparameters.
        known: Test images of known classes.
        unknown: Of unknown ones, or None.
        num_classes: K.
        settings: Of the evaluation.
        options: Of the probes.
        device: Where fits run.
    """

    fit: Embeddings
    held: Embeddings
    known: Embeddings
    unknown: Embeddings | None
    num_classes: int
    settings: EvaluationSettings
    options: ProbeOptions
    device: torch.device

    @property
    def train(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and labels of all training images, held-out ones included."""
        return (torch.cat([self.fit.features, self.held.features]), torch.cat([self.fit.label, self.held.label]))


def evaluate_probes(model: EvaluatedModel, images: EvaluationImages, options: ProbeOptions, command: str = '',
                    ) -> tuple[ProbeResults, dict[str, Arrays]]:
    """Embed, fit, evaluate.

    Args:
        model: Whose features are read; its head need not fit the classes.
        images: With training images.
        options: Of the probes.
        command: For the manifest.

    Returns:
        The content of results.json, and arrays by file name: labels and fitted parameters.

    Raises:
        ValueError: Images that cannot be read, a class with too few, or no probe that could be served.
    """
    began = time.monotonic()
    task = _embed(model, images, options)
    rest_by_first()
    groups, fitted, missing = _probe_all(model, task)
    first, split = next(iter(groups.values())), images.split
    results: ProbeResults = {
        **facts_of(model, images, images.cuts(), time.monotonic() - began, command), 'command': 'probe',
        'known_classes': list(split.known), 'unknown_classes': list(split.unknown),
        'n_known': first['n_known'], 'n_unknown': first['n_unknown'], 'closed_set': first['closed_set'],
        'scores': first['scores'], 'groups': groups, 'not_served': missing, 'warnings': _warnings(model, images)}
    arrays = {'known_label': task.known.label.numpy(), 'known_index': task.known.index.numpy()}
    return results, {'arrays.npz': arrays, 'probes.npz': fitted}


def _embed(model: EvaluatedModel, images: EvaluationImages, options: ProbeOptions) -> _Task:
    assert images.train is not None
    train = model.embed(images.train, 'known training images')
    if images.held_out is not None:
        fit, held = train, model.embed(images.held_out, 'held-out images')
    else:
        labels, names = train.label.numpy(), images.train.classes
        _check_two_each(labels, names)
        chosen = torch.zeros(len(train.label), dtype=torch.bool)
        chosen[torch.from_numpy(stratified(labels, options.held_out, model.settings.seed, names))] = True
        fit, held = train.rows(~chosen), train.rows(chosen)
    unknown = None if images.unknown is None else model.embed(images.unknown.sets[''], 'unknown test images')
    return _Task(fit, held, model.embed(images.known, 'known test images'), unknown, len(images.split.known),
                 model.settings, options, model.device)


def _check_two_each(labels: NDArray[Any], names: Sequence[str]) -> None:
    """Reject classes with one image: hyperparameters are chosen on held-out images of every class."""
    few = np.flatnonzero(np.bincount(labels, minlength=len(names)) < 2)
    if len(few):
        raise ValueError(f'class {names[few[0]]!r} has fewer than two training images; the probes hold a share of '
                         'every class out to choose on (held_out=SHARE), so two of each are needed: add images')


# ---- fitting

def _probe_all(model: EvaluatedModel, task: _Task) -> tuple[dict[str, ProbeGroup], Arrays, dict[str, str]]:
    """Groups by probe, all fitted parameters, and why a probe could not be served."""
    groups: dict[str, ProbeGroup] = {}
    fitted: Arrays = {}
    missing: dict[str, str] = {}
    options = task.options
    if 'linear' in options.probes:
        groups['linear'] = _linear(task, fitted)
    if 'knn' in options.probes:
        groups['knn'] = _neighbours(task, fitted)
    for shots in sorted(set(options.shots)) if 'few-shot' in options.probes else ():
        try:
            groups[f'few-shot-{shots}'] = _few_shots(task, shots, fitted)
        except ValueError as error:
            missing[f'few-shot-{shots}'] = str(error)
    if not groups:
        raise ValueError('no probe could be served: ' + '; '.join(f'{k}: {v}' for k, v in missing.items()))
    record = model.loaded.record if model.loaded is not None else None
    if record is not None and task.known.logits.shape[1] == task.num_classes and (
            record.objective == 'ce' or record.probe):
        groups['own head'] = _group(task, 'head', len(task.fit.label), {}, task.known.logits,
                                    _logit_scores(task.known, task.unknown))
    return groups, fitted, missing


def _linear(task: _Task, fitted: Arrays) -> ProbeGroup:
    count, device = task.num_classes, task.device
    fit = (task.fit.features.to(device), task.fit.label.to(device))
    l2, by_l2 = choose_l2(fit, (task.held.features.to(device), task.held.label), count)
    rows, labels = task.train
    probe = fit_linear(rows.to(device), labels.to(device), count, l2)
    fitted |= {f'linear/{name}': value for name, value in probe.parameters().items()}
    known = replace(task.known, logits=probe.logits(task.known.features.to(device)))
    unknown = None if task.unknown is None else replace(
        task.unknown, logits=probe.logits(task.unknown.features.to(device)))
    parameters: ProbeParameters = {
        'l2': l2, 'converged': probe.converged, 'held_out_by_l2': {f'{key:g}': top for key, top in by_l2.items()},
        'n_held_out': len(task.held.label)}
    found = _group(task, 'linear', len(labels), parameters, known.logits, _logit_scores(known, unknown))
    found['held_out_top1'] = by_l2[l2]
    return found


def _neighbours(task: _Task, fitted: Arrays) -> ProbeGroup:
    rows, labels = task.train
    probe = fit_neighbours(rows, labels, task.num_classes, task.options.knn_k)
    part = fit_neighbours(task.fit.features, task.fit.label, task.num_classes, task.options.knn_k)
    fitted |= {f'knn/{name}': value for name, value in probe.parameters().items()}
    held = part.logits(task.held.features).argmax(1) == task.held.label
    score = fit_score('knn', Embeddings.cat([task.fit, task.held]), k=probe.k)
    found = _group(task, 'knn', len(labels), {'k': probe.k}, probe.logits(task.known.features),
                   {} if task.unknown is None else {'knn': (score(task.known), score(task.unknown))})
    found['held_out_top1'] = float(held.double().mean())
    return found


def _few_shots(task: _Task, shots: int, fitted: Arrays) -> ProbeGroup:
    rows, labels = task.train
    right = np.empty((task.options.draws, len(task.known.label)), dtype=bool)
    for draw in range(task.options.draws):
        chosen = torch.from_numpy(draw_shots(labels.numpy(), shots, task.settings.seed, draw))
        probe = fit_prototypes(rows[chosen], labels[chosen], task.num_classes)
        fitted |= {f'few-shot-{shots}/{draw}/{name}': value for name, value in probe.parameters().items()}
        right[draw] = (probe.logits(task.known.features).argmax(1) == task.known.label).numpy()
    values = right.mean(1).tolist()
    closed: ClosedSet = top1(right[0])
    if len(right) > 1:
        closed = {'top1': float(right.mean()), 'top1_ci': list(draws_ci(right))}
    return {'probe': 'few-shot', 'n_train': shots * task.num_classes, 'n_known': len(task.known.label),
            'n_unknown': 0 if task.unknown is None else len(task.unknown.label), 'closed_set': closed,
            'top1_sd': float(np.std(values, ddof=1)) if len(values) > 1 else None, 'scores': {},
            'parameters': {'shots': shots, 'draws': task.options.draws, 'top1_by_draw': values}}


def _group(task: _Task, probe: str, n_train: int, parameters: ProbeParameters, logits: torch.Tensor,
           knownness: Mapping[str, tuple[Any, Any]]) -> ProbeGroup:
    """Accuracy of logits on the known test images, and metrics of each score's knownness of knowns and unknowns."""
    right = (logits.argmax(1) == task.known.label).numpy()
    scores: dict[str, ScoreFigures] = {
        name: summarize(known, right, unknown, draws=task.settings.bootstrap, seed=task.settings.seed)
        for name, (known, unknown) in knownness.items()}
    return {'probe': probe, 'n_train': n_train, 'parameters': parameters, 'n_known': len(right),
            'n_unknown': 0 if task.unknown is None else len(task.unknown.label), 'closed_set': top1(right),
            'scores': scores}


def _logit_scores(known: Embeddings, unknown: Embeddings | None) -> dict[str, tuple[Any, Any]]:
    if unknown is None:
        return {}
    return {name: (score(known), score(unknown)) for name, score in (('msp', fit_score('msp', None)),
                                                                   ('mls', fit_score('mls', None)))}


def _warnings(model: EvaluatedModel, images: EvaluationImages) -> list[str]:
    if images.unknown is None:
        return []
    record = model.loaded.record if model.loaded is not None else None
    if record is None:
        return ['the training data of these features is unknown and may include the unknown classes']
    if set(images.split.unknown) & set(record.known_classes):
        return ['the features were trained on classes that count as unknown here']
    return []
