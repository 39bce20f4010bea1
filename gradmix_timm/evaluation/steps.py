"""The steps of an evaluation of known against unknown images: check, embed, score, measure."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradmix_timm.data import CutDataset
from gradmix_timm.openset.judge import EmbeddedSets, judge, needs_train
from gradmix_timm.openset.near_far import set_means
from gradmix_timm.openset.presets import PRESETS
from gradmix_timm.openset.reports.feature_map import project_features
from gradmix_timm.openset.results import Group, Mean, Mistakes, OpenSetResults, PixelStatistics, TunedScore
from gradmix_timm.openset.scores import list_scores
from gradmix_timm.openset.scores.odin import ModelScore
from gradmix_timm.openset.sensitivity import sensitivity
from gradmix_timm.openset.tuning import choose_options
from gradmix_timm.records import Embeddings

from .accuracy import accuracy_block, as_stored
from .duplicates import find_duplicates
from .images import EvaluationImages, UnknownImages
from .manifest import facts_of
from .mistakes import find_mistakes
from .model import EvaluatedModel
from .pixels import trivial_blocks
from .processes import rest_by_first
from .result import Evaluation, predictions_of

__all__ = ['evaluate_images']


def evaluate_images(model: EvaluatedModel, images: EvaluationImages, *, gate: str = 'warn',
                    reference_top1: float | None = None, on_score: Callable[[str], None] = lambda _: None,
                    tune: tuple[str, CutDataset] | None = None, command: str = '') -> Evaluation:
    """Embed every set once, score, measure.

    Args:
        model: What is evaluated.
        images: With unknown ones.
        gate: What to do about a model that is less accurate than its reference: 'refuse' (before any unknown image is
            read), 'warn', 'off'.
        reference_top1: Percent that it should reach on the known test images; None: what the checkpoint had on its
            held-out images.
        on_score: Called with each score's name as its turn comes.
        tune: A validation set of unknown images to pick options of scores on: its name, and the images.
        command: For the manifest.

    Raises:
        ValueError: Images that cannot be read, NaN among the logits, a score asked for by name that cannot be served.
    """
    began, settings, split = time.monotonic(), model.settings, images.split
    assert images.unknown is not None
    known = model.embed(images.known, 'known test images')
    held: Embeddings | None = None

    def held_as_trained() -> Embeddings | None:
        nonlocal held
        stored = as_stored(images.held_out)
        found = None if stored is None else model.embed(stored, 'held-out images')
        held = found if stored is images.held_out else held
        return found

    accuracy = accuracy_block(gate, reference_top1, model.loaded, known, held_as_trained)
    if held is None and images.held_out is not None:
        held = model.embed(images.held_out, 'held-out images')
    train = None
    if images.train is not None and needs_train(settings.scores):
        train = model.embed(images.train, 'known training images')
    unknown = _embed_unknown(model, images.unknown)
    validation = None if tune is None else model.embed(tune[1], 'validation images of unknown classes')
    rest_by_first()
    seconds = time.monotonic() - began
    head, missing = model.head()
    sets = EmbeddedSets(
        train=train, known=known, unknown=unknown, held_out=held, head=head, head_missing=missing,
        unknown_label=images.unknown.label[unknown.index.numpy()],  # rows that could not be read have no embedding
        known_classes=split.known, unknown_classes=split.unknown, groups=split.groups)
    sets = replace(sets, model_pass=lambda score, side: _model_pass(model, images, sets, score, side))
    trivial = trivial_blocks(model, images, known, unknown)
    shown = images.pictured and known.features.shape[1] > 0
    duplicates, closest = find_duplicates(sets, images, settings.duplicates if shown else 0)
    preset = None if settings.preset is None else PRESETS[settings.preset]
    tuned: dict[str, TunedScore] = {}
    if validation is not None:
        names = settings.scores or (tuple(list_scores()) if preset is None else preset.labels)
        tuned = choose_options(sets, validation, names, preset, on_score)
    judged = judge(sets, settings.scores, settings.bootstrap, settings.seed, on_score, preset,
                   {name: found['chosen'] for name, found in tuned.items()})
    if known.features.shape[1]:
        judged.arrays.update(project_features(known.features, unknown.features, settings.feature_map, settings.seed))
    results: OpenSetResults = {
        **facts_of(model, images, images.cuts(), seconds, command), **judged.results, 'accuracy_gate': accuracy,
        'trivial': trivial.get(''), 'duplicates': duplicates,
        'sensitivity': sensitivity(
            sets, list(judged.results['scores']), on_score, preset) if settings.sensitivity else {}}
    if tune is not None and validation is not None and sets.held_out is not None:
        results['tuning'] = {'unknown': tune[0], 'n_known': len(sets.held_out.label),
                             'n_unknown': len(validation.label), 'scores': tuned}
    if images.unknown.facts:
        results['means'] = _complete(results['groups'], images.unknown, trivial)
    files = [images.known.filename(row) for row in known.index.tolist()]
    files += [images.unknown.filename(row) for row in unknown.index.tolist()]
    probability = {side: _softmax_of(part.logits, judged.arrays[f'{side}_pred'])
                   for side, part in (('known', known), ('unknown', unknown))}
    mistakes = find_mistakes(results, judged.arrays, probability, images) if images.pictured else Mistakes()
    mistakes['closest'] = closest
    return Evaluation(results, judged.arrays, predictions_of(results, judged.arrays, files, probability), mistakes)


def _softmax_of(logits: Tensor, predicted: NDArray[np.int64]) -> NDArray[np.float64]:
    """The classifier's probability of the class that is answered."""
    shares: NDArray[np.float64] = logits.double().softmax(1).numpy()
    return shares[np.arange(len(shares)), predicted]


def _embed_unknown(model: EvaluatedModel, unknown: UnknownImages) -> Embeddings:
    """One pass over each set; ``index`` counts the images of all."""
    found = []
    for name, images, start in unknown.parts():
        part = model.embed(images, f'images of {name}' if name else 'unknown test images')
        found.append(replace(part, index=part.index + start))
    return Embeddings.cat(found)


def _model_pass(model: EvaluatedModel, images: EvaluationImages, sets: EmbeddedSets, score: ModelScore,
                side: str) -> Tensor:
    """Knownness of a side by a score that goes back to the model, in the order of the side's embeddings."""
    assert images.unknown is not None
    if side == 'unknown':
        parts = [(f'images of {name}' if name else 'unknown test images', part, start)
                 for name, part, start in images.unknown.parts()]
    else:
        part = images.known if side == 'known' else images.held_out
        assert part is not None
        parts = [('known test images' if side == 'known' else 'held-out images', part, 0)]
    index, found = getattr(sets, side).index, []
    for title, part, start in parts:
        rows = index[(index >= start) & (index < start + len(part))] - start
        found.append(model.knownness(score, part, rows.numpy(), title))
    return torch.cat(found)


def _complete(groups: dict[str, Group], unknown: UnknownImages, trivial: dict[str, PixelStatistics | None],
              ) -> dict[str, Mean]:
    """Add the sets' facts to their groups, in place, and return the means over near and far sets."""
    kinds: dict[str, list[str]] = {}
    for name, facts in unknown.facts.items():
        groups[name] |= {**facts, 'trivial': trivial[name]}
        if kind := facts.get('kind'):
            kinds.setdefault(kind, []).append(name)
    return set_means(groups, {kind: kinds[kind] for kind in ('near', 'far') if kind in kinds})
