"""Scores, metrics and one threshold from embeddings of known and unknown images."""
from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradmix_timm.openset.results import (
    Calibration,
    CalibrationErrors,
    Fit,
    Group,
    JudgedFigures,
    KnownClass,
    PerClass,
    ScoreFigures,
    Threshold,
    UnknownClass,
)
from gradmix_timm.records import Embeddings

from .metrics.calibration import adaptive_ece, brier, ece, fit_temperature, nll, reliability
from .metrics.intervals import top1
from .metrics.summary import summarize
from .metrics.thresholds import conformal_threshold, observed_threshold
from .operating import at_threshold
from .presets import Preset, preset_figures
from .scores import FewSamples, Head, Score, fit_score, list_scores, parse_score, score_kind, score_label

__all__ = ['EmbeddedSets', 'Judged', 'check_names', 'fitted_on', 'judge', 'needs_train',
           'refuse_model_scores']

_logger = logging.getLogger(__name__)
Array = NDArray[Any]
Floats = NDArray[np.float64]
# The score whose threshold, classes and mistakes are shown: chosen beforehand, never by the test images.
_HEADLINE = 'mls'
# Share of the knowns to reject at the threshold.
_ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class EmbeddedSets:
    """Embeddings of the image sets to evaluate.

    Attributes:
        train: Known training images, without those held out, un-augmented; None if no score needs them.
        known: Known test images; labels are positions in ``known_classes``.
        unknown: Unknown test images.
        unknown_label: Positions in ``unknown_classes``, int64 [M].
        known_classes: Names in head order.
        unknown_classes: Names.
        held_out: Known training images that were held out, or None.
        head: The classifier, or None.
        head_missing: Why ``head`` is None.
        groups: Name to unknown classes that are also reported separately.
        model_pass: From a score that goes back to the model, and 'known', 'unknown' or 'held_out', to the knownness of
            these images, float64 in the order of their embeddings; None if only embeddings are available.
    """

    train: Embeddings | None
    known: Embeddings
    unknown: Embeddings
    unknown_label: NDArray[np.int64]
    known_classes: tuple[str, ...]
    unknown_classes: tuple[str, ...]
    held_out: Embeddings | None = None
    head: Head | None = None
    head_missing: str = ''
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    model_pass: Callable[[Any, str], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        """Reject labels that are no class, and logits whose number differs from that of the known classes.

        Raises:
            ValueError: The message names the label and the row.
        """
        parts = {'known': self.known, 'training': self.train, 'held-out': self.held_out}
        labels = [(name, part.label, 'known') for name, part in parts.items() if part is not None]
        for name, label, side in (*labels, ('unknown', torch.as_tensor(self.unknown_label), 'unknown')):
            count = len(self.known_classes if side == 'known' else self.unknown_classes)
            bad = ((label < 0) | (label >= count)).nonzero().flatten()
            if len(bad):
                raise ValueError(f'label {int(label[bad[0]])} of {name} image {int(bad[0])} is no class: expected 0 to '
                                 f'{count - 1}, positions in {side}_classes; where the data set names its classes, '
                                 f'{side}_classes=[...] matches them by name, else number labels in that order')
        for side, embeddings in (('known', self.known), ('unknown', self.unknown)):
            if embeddings.logits.shape[1] != len(self.known_classes):
                raise ValueError(f'{embeddings.logits.shape[1]} logits of the {side} images and '
                                 f'{len(self.known_classes)} known classes; expected one logit a class, in head order')
        if len(self.unknown_label) != len(self.unknown.label):
            raise ValueError(f'{len(self.unknown_label)} labels for {len(self.unknown.label)} unknown images')


@dataclass(frozen=True, slots=True)
class Judged:
    """Metrics and per-image arrays of an evaluation.

    Attributes:
        results: The part of results.json that depends on embeddings.
        arrays: What figures are drawn from: ``known/SCORE`` and ``unknown/SCORE`` float64 knownness, ``correct/SCORE``
            bool, labels, the confusion counts, bins of confidence; ``known_pred``, ``known_correct``, ``unknown_pred``:
            classes by the predictor of the score whose threshold is shown, which is the classifier unless that score
            has its own (class-wise neighbours).
    """

    results: JudgedFigures
    arrays: dict[str, Array]


def judge(sets: EmbeddedSets, names: Sequence[str] | None = None, draws: int = 1000, seed: int = 0,
          on_score: Callable[[str], None] = lambda _: None, preset: Preset | None = None,
          tuned: Mapping[str, str] | None = None) -> Judged:
    """Score, measure, and set one threshold.

    Args:
        sets: Embeddings of known and unknown images.
        names: Scores; None: all that are registered, those that the model cannot serve, or that take passes over it,
            left out with their reason. Without training embeddings, scores that are fitted are left out, named or not.
        draws: Resamples for the intervals.
        seed: Of the resamples.
        on_score: Called with the name of each score as its turn comes.
        preset: Its scores are the default, and it sets the scores to fit on held-out images and the metric conventions
            to add.
        tuned: Names of scores to their replacements, with options chosen on validation images.

    Raises:
        ValueError: An unknown score, or one asked for by name that the model cannot serve; no score at all.
    """
    names = check_names(names)
    arrays = _answers(sets)
    closed_set = top1(arrays['known_correct'])
    scores, fits, own_answers, missing = _score(sets, arrays, names, draws, seed, on_score, preset, tuned or {})
    in_preset = None
    if preset is not None:
        rows = {name: _rows_of(sets, classes) for name, classes in sets.groups.items()}
        in_preset = preset_figures(preset, arrays, list(scores), {k: v for k, v in rows.items() if v.any()})
    main = _HEADLINE if _HEADLINE in scores else next(iter(scores))
    arrays |= own_answers.get(main, {})
    value, source, count = _set_threshold(sets, arrays, main, preset)
    accepted = {side: arrays[f'{side}/{main}'] >= value for side in ('known', 'unknown')}
    threshold: Threshold = {
        'score': main, 'value': value, 'source': source, 'n': count or len(sets.known.label), 'held_out': count > 0,
        'known_accepted': float(accepted['known'].mean()), 'unknown_accepted': float(accepted['unknown'].mean()),
        'open_set': at_threshold(
            arrays['known_pred'], arrays['known_label'], arrays[f'known/{main}'], arrays['unknown_pred'],
            arrays[f'unknown/{main}'], value, len(sets.known_classes))}
    arrays['confusion'] = _confusion(sets, arrays, accepted)
    results: JudgedFigures = {
        'known_classes': list(sets.known_classes), 'unknown_classes': list(sets.unknown_classes),
        'n_known': len(arrays['known_pred']), 'n_unknown': len(arrays['unknown_pred']),
        'closed_set': closed_set, 'scores': scores, 'fits': fits,
        'groups': _groups(sets, arrays, list(scores), draws, seed),
        'calibration': _calibrate(sets, arrays), 'threshold': threshold,
        'per_class': _per_class(sets, arrays, accepted, main), 'not_served': missing}
    if in_preset is not None:
        results['preset'] = in_preset
    return Judged(results, arrays)


def _answers(sets: EmbeddedSets) -> dict[str, Array]:
    """Labels, closed-set predictions and rows of both sides."""
    arrays: dict[str, Array] = {'unknown_label': np.asarray(sets.unknown_label)}
    for side, embeddings in (('unknown', sets.unknown), ('known', sets.known)):
        arrays[f'{side}_pred'] = embeddings.logits.argmax(1).numpy()
        arrays[f'{side}_index'] = embeddings.index.numpy()
    arrays['known_label'] = sets.known.label.numpy()
    arrays['known_correct'] = arrays['known_pred'] == arrays['known_label']
    return arrays


def _score(sets: EmbeddedSets, arrays: dict[str, Array], names: Sequence[str] | None, draws: int, seed: int,
           on_score: Callable[[str], None], preset: Preset | None, tuned: Mapping[str, str],
           ) -> tuple[dict[str, ScoreFigures], dict[str, Fit], dict[str, dict[str, Array]], dict[str, str]]:
    """Metrics and fit of each score, answers of those with a predictor of their own, and why others were not served.

    Knownness goes into ``arrays``.
    """
    scores: dict[str, ScoreFigures] = {}
    fits: dict[str, Fit] = {}
    answers: dict[str, dict[str, Array]] = {}
    missing: dict[str, str] = {}
    # Scores that take passes of their own over the model are costly: only where they are named.
    usual = [name for name in list_scores() if not score_kind(name).requires_model]
    for name in names or (usual if preset is None else preset.labels):
        name = tuned.get(name, name)
        on_score(name)
        if reason := _unservable(sets, name):
            missing[name] = reason
            continue
        try:
            score = fit_score(name, fitted_on(sets, name, preset), sets.head, sets.held_out)
            known, unknown = (_values(name, _knownness(sets, score, side)) for side in ('known', 'unknown'))
            # A class and its score come from one predictor; class-wise neighbours have their own.
            predicted = score.predict(sets.known)
            right = (predicted == sets.known.label).numpy()
            if type(score).predict is not Score.predict:
                answers[name] = {'known_pred': predicted.numpy(), 'known_correct': right,
                                 'unknown_pred': score.predict(sets.unknown).numpy()}
            scores[name] = summarize(known, right, unknown, draws=draws, seed=seed)
            fits[name] = {'options': dict(score.options), 'diagnostics': dict(score.diagnostics)}
        except ValueError as error:
            reason = _reason(name, error, sets.known_classes)
            wants_head = sets.head is None and sets.head_missing and 'head' in reason
            missing[name] = f'{reason} ({sets.head_missing})' if wants_head else reason
            if names:
                raise ValueError(f'scores={name} cannot be served: {missing[name]}') from error
            continue
        arrays |= {f'known/{name}': known, f'unknown/{name}': unknown, f'correct/{name}': right}
    if sets.train is None and (unfitted := [name for name in missing if score_kind(name).needs_train]):
        _logger.warning(f'No training images: scores that are fitted are left out ({", ".join(unfitted)})')
    if not scores:
        raise ValueError('no score could be served: ' + '; '.join(f'{k}: {v}' for k, v in missing.items()))
    return scores, fits, answers, missing


def _reason(name: str, error: ValueError, classes: Sequence[str]) -> str:
    """Why a score is not served, without its name, which the list of reasons has already."""
    text = error.message(classes) if isinstance(error, FewSamples) else ' '.join(str(error).split())
    title = name if text.startswith(name) else parse_score(name)[0]  # most messages do not say options
    return text.removeprefix(title).lstrip(': ') if text.startswith((f'{title}: ', f'{title} ')) else text


def fitted_on(sets: EmbeddedSets, name: str, preset: Preset | None) -> Embeddings | None:
    """Training images, or those that a preset takes."""
    held_out = preset is not None and parse_score(name)[0] in preset.on_held_out and sets.held_out is not None
    return sets.held_out if held_out else sets.train


def _knownness(sets: EmbeddedSets, score: Score, side: str) -> torch.Tensor:
    if score.requires_model and sets.model_pass is not None:
        return sets.model_pass(score, side)
    return score(getattr(sets, side))


def _unservable(sets: EmbeddedSets, name: str) -> str:
    """Why a score cannot be served; '' if it can."""
    kind = score_kind(name)
    if kind.needs_train and sets.train is None and not (kind.fits_on_held_out and sets.held_out is not None):
        return 'it is fitted on training images, and there are none'
    return ''


def check_names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of scores with the options that differ from the defaults, as in the rows of a table.

    Raises:
        ValueError: A name or option that is not known, with the nearest; or pytorch-ood is not installed.

    Example:
        >>> check_names(['msp:temperature=1', 'knn:k=5'])
        ('msp', 'knn:k=5')
    """
    if names is None:
        return None
    labels = []
    for name in names:
        try:
            labels.append(score_label(*parse_score(name)))
        except ValueError as error:
            raise ValueError(f'scores={name}: {error}') from None
    return tuple(dict.fromkeys(labels))


def needs_train(names: Sequence[str] | None) -> bool:
    """Whether any of these scores (None: all) is fit on training images."""
    return any(score_kind(name).needs_train for name in names or list_scores())


def refuse_model_scores(names: Sequence[str] | None) -> None:
    """For evaluations that keep embeddings alone.

    Raises:
        ValueError: A score that takes passes of its own over the model; the message names the first.
    """
    for name in names or ():
        if score_kind(name).requires_model:
            raise ValueError(f'scores={name} takes passes of its own over the model, which osr and ood alone make; '
                             'leave it out here')


def _values(name: str, values: Any) -> Floats:
    array = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64)
    bad = np.flatnonzero(np.isnan(array))
    if len(bad):
        raise ValueError(f'{name} gives NaN for {len(bad)} of {len(array)} images (image {bad[0]} first)')
    return array


def _set_threshold(sets: EmbeddedSets, arrays: Mapping[str, Array], name: str, preset: Preset | None,
                   ) -> tuple[float, str, int]:
    """The threshold, a description of its source, and the number of held-out images; 0 if set on test images."""
    held, why = sets.held_out, ''
    fit_on = fitted_on(sets, name, preset)
    if held is not None and (score_kind(name).fits_on_held_out or fit_on is held):
        held, why = None, 'the score is fit on the held-out images'
    # A conformal threshold for 95% needs 19 held-out images.
    if held is not None and len(held.label) >= math.ceil(1 / _ALPHA) - 1:
        score = fit_score(name, fit_on, head=sets.head)
        value = conformal_threshold(_values(name, _knownness(sets, score, 'held_out')), _ALPHA)
        source = (f'set on {len(held.label)} training images of the known classes that were held out, so as to reject '
                  f'on average at most {_ALPHA:.0%} of new ones; more may be where the same images picked the '
                  'checkpoint, as they pick model_best in training')
        return value, source, len(held.label)
    count = 0 if held is None else len(held.label)
    why = why or f'{count} images were held out from training, too few for a threshold'
    return observed_threshold(arrays[f'known/{name}'], _ALPHA), (
        f'set on the known test images themselves, {1 - _ALPHA:.0%} of which pass ({why})'), 0


def _calibrate(sets: EmbeddedSets, arrays: dict[str, Array]) -> Calibration:
    """Calibration errors of the closed-set probabilities, without and with the temperature fitted on held-out images.

    The bins go into ``arrays``.
    """
    found: Calibration = {**_errors(sets.known.logits, sets.known.label)}
    bins = reliability(sets.known.logits.double().softmax(1).numpy(), sets.known.label.numpy())
    arrays |= {'bin_confidence': bins.confidence, 'bin_accuracy': bins.accuracy,
               'bin_share': bins.count / bins.count.sum()}
    held = sets.held_out
    if held is not None and len(held.label):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            temperature = fit_temperature(held.logits, held.label)
        found |= {'temperature': temperature, 'temperature_n': len(held.label),
                  'temperature_note': str(caught[0].message) if caught else None,
                  'scaled': _errors(sets.known.logits.double() / temperature, sets.known.label)}
    return found


def _errors(logits: torch.Tensor, label: torch.Tensor) -> CalibrationErrors:
    probs, classes = logits.double().softmax(1).numpy(), label.numpy()
    return {'ece': ece(probs, classes), 'adaptive_ece': adaptive_ece(probs, classes),
            'nll': nll(logits, classes), 'brier': brier(probs, classes)}


def _confusion(sets: EmbeddedSets, arrays: Mapping[str, Array], accepted: Mapping[str, Array]) -> NDArray[np.int64]:
    """Images by prediction (K classes, then rejected) and true class (K known, U unknown), int64 [K + 1, K + U]."""
    k, u = len(sets.known_classes), len(sets.unknown_classes)
    counts = np.zeros((k + 1, k + u), dtype=np.int64)
    for side, offset in (('known', 0), ('unknown', k)):
        answer = np.where(accepted[side], arrays[f'{side}_pred'], k)
        np.add.at(counts, (answer, arrays[f'{side}_label'] + offset), 1)
    return counts


def _rows_of(sets: EmbeddedSets, classes: Sequence[str]) -> NDArray[np.bool_]:
    """Unknown images of these classes."""
    return np.isin(sets.unknown_label, [sets.unknown_classes.index(name) for name in classes])


def _groups(sets: EmbeddedSets, arrays: Mapping[str, Array], names: Sequence[str], draws: int,
            seed: int) -> dict[str, Group]:
    found: dict[str, Group] = {}
    for group, classes in sets.groups.items():
        rows = _rows_of(sets, classes)
        if not rows.any():
            continue
        found[group] = {
            'n_known': len(arrays['known_pred']), 'n_unknown': int(rows.sum()), 'unknown_classes': list(classes),
            'scores': {name: summarize(arrays[f'known/{name}'], arrays[f'correct/{name}'],
                                       arrays[f'unknown/{name}'][rows], draws=draws, seed=seed) for name in names}}
    return found


def _per_class(sets: EmbeddedSets, arrays: Mapping[str, Array], accepted: Mapping[str, Array],
               name: str) -> PerClass:
    known: list[KnownClass] = []
    unknown: list[UnknownClass] = []
    for place, title in enumerate(sets.known_classes):
        rows = arrays['known_label'] == place
        if rows.any():
            known.append({
                'class': title, 'n': int(rows.sum()), 'accuracy': float(arrays['known_correct'][rows].mean()),
                'accepted': float(accepted['known'][rows].mean()),
                'mean_knownness': _mean(arrays, 'known', name, rows)})
    for place, title in enumerate(sets.unknown_classes):
        rows = arrays['unknown_label'] == place
        if rows.any():
            taken = np.bincount(arrays['unknown_pred'][rows], minlength=len(sets.known_classes)).argmax()
            unknown.append({
                'class': title, 'n': int(rows.sum()), 'accepted': float(accepted['unknown'][rows].mean()),
                'mean_knownness': _mean(arrays, 'unknown', name, rows), 'taken_for': sets.known_classes[taken]})
    unknown.sort(key=lambda row: -row['accepted'])
    return {'known': known, 'unknown': unknown}


def _mean(arrays: Mapping[str, Array], side: str, name: str, rows: NDArray[np.bool_]) -> float | None:
    mean = float(arrays[f'{side}/{name}'][rows].mean())
    return mean if math.isfinite(mean) else None
