"""Fit the score of a checkpoint or a live module, and set its threshold on held-out images of the known classes."""
from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from gradmix_timm.checkpoint import Loaded, check_known, load_checkpoint
from gradmix_timm.data import CutDataset, ImageSource, Parts, shared_classes
from gradmix_timm.data.identity import check_apart
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.data.readers import FileReader
from gradmix_timm.evaluation.door import open_known
from gradmix_timm.evaluation.images import check_held_out
from gradmix_timm.evaluation.model import EvaluatedModel
from gradmix_timm.evaluation.opening import open_training
from gradmix_timm.evaluation.settings import DataOptions, EvaluationSettings, listed
from gradmix_timm.openset.extract import extract, head_of, without_unknown_output
from gradmix_timm.openset.metrics.thresholds import conformal_threshold
from gradmix_timm.openset.scores import Score, fit_score, score_kind
from gradmix_timm.records import Embeddings
from gradmix_timm.registry import nearest

from .images import batches, each

__all__ = ['Plan', 'Source', 'calibrate', 'calibrate_module', 'source_of']

_logger = logging.getLogger(__name__)
# Levels of folders above a validation image that may be named after its class.
_LEVELS = 3
# Folders whose images are not those of a folder train beside them.
_APART = {'val', 'valid', 'validation', 'test'}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Options of the training images; None: as recorded in the checkpoint."""

    data_dir: str | os.PathLike[str] | None = None
    dataset: str | None = None
    train_split: str | None = None
    class_map: str = ''
    workers: int = 0


def source_of(given: Mapping[str, Any]) -> Source:
    """The further keywords of :meth:`OpenSetClassifier.from_checkpoint`.

    Raises:
        TypeError: One that it does not have.
    """
    names = [field.name for field in fields(Source)]
    unknown = next((name for name in given if name not in names), None)
    if unknown is not None:
        known = [*(field.name for field in fields(Plan) if field.name not in ('path', 'source')), *names]
        raise TypeError(f'OpenSetClassifier.from_checkpoint has no keyword {unknown!r}: {nearest(unknown, known)}')
    return Source(**given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The arguments of :meth:`OpenSetClassifier.from_checkpoint`."""

    path: str | os.PathLike[str]
    score: str
    known_acceptance: float
    validation: Any
    threshold: float | None
    score_options: Mapping[str, Any]
    known_classes: Sequence[str] | None
    model: str | None
    img_size: int | None
    input_img_mode: str | None
    exif: str | None
    device: torch.device | str | None
    amp_dtype: torch.dtype | None
    batch_size: int
    ema: bool | None
    source: Source


def calibrate(plan: Plan) -> tuple[nn.Module, nn.Module | None, Score, dict[str, Any]]:
    """The model, its projection head, the score fit on training images, and the manifest's entries with the threshold.

    Raises:
        ValueError: As for :meth:`OpenSetClassifier.from_checkpoint`; checks without images come before any is read.
    """
    _check(plan)
    settings = EvaluationSettings(
        batch_size=plan.batch_size, workers=plan.source.workers, amp_dtype=plan.amp_dtype)
    loaded = load_checkpoint(plan.path, plan.ema)
    names = _known_names(plan, loaded)
    if plan.threshold is None and plan.validation is None:
        _check_held_out(plan, loaded)
    # Embeddings are computed on the device that predicts.
    model = EvaluatedModel.build(settings, loaded, plan.model, len(names), img_size=plan.img_size,
                                 input_img_mode=plan.input_img_mode, exif=plan.exif, device=plan.device)
    train, held = _cuts(plan, model, names)
    if plan.validation is not None:
        plan = replace(plan, validation=_validation(plan, model, names, train))
    embedded = None if train is None else model.embed(train, 'known training images')
    head = head_of(model.net) if score_kind(plan.score).needs_head else None
    score = fit_score(plan.score, embedded, head=head, **plan.score_options)
    threshold, count, source = _threshold(plan, score, model, held)
    name = str(plan.model or loaded.model)
    kwargs = dict(loaded.model_kwargs) if name == loaded.model else {
        key: value for key, value in loaded.model_kwargs.items() if key in ('in_chans',)}
    if plan.img_size is not None and hasattr(model.net, 'set_input_size'):
        kwargs['img_size'] = int(plan.img_size)  # position embeddings fit one size
    return model.net, model.projection, score, {
        'known_classes': names, 'threshold': threshold, 'threshold_source': source, 'n_validation': count,
        'known_acceptance': float(plan.known_acceptance) if plan.threshold is None else None, 'model': name,
        'model_kwargs': {**kwargs, 'num_classes': len(names)}, 'data_config': model.reading().as_config(),
        'amp_dtype': None if plan.amp_dtype is None else str(plan.amp_dtype).removeprefix('torch.'),
        'checkpoint': _origin(loaded)}


def calibrate_module(module: nn.Module, plan: Plan, train: Any, preprocessing: Preprocessing | None,
                     model_kwargs: Mapping[str, Any], unknown_output: bool) -> tuple[nn.Module, Score, dict[str, Any]]:
    """As :func:`calibrate` of a live module: a copy of it, the score, and the manifest's entries.

    Raises:
        ValueError: As for :meth:`OpenSetClassifier.from_model`.
        TypeError: No module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f'from_model takes a live module, got {type(module).__name__}; of a checkpoint it is '
                        'OpenSetClassifier.from_checkpoint(PATH)')
    _check(plan)
    if plan.threshold is None and plan.validation is None:
        raise ValueError('there is nothing to set a threshold on; pass images of known classes that took no part in '
                         'training, validation=IMAGES, or threshold=NUMBER')
    if score_kind(plan.score).needs_train and train is None:
        raise ValueError(f'score {plan.score!r} is fitted; pass un-augmented training images, train=IMAGES, or take a '
                         'score that needs none, such as mls')
    settings = EvaluationSettings(batch_size=plan.batch_size, amp_dtype=plan.amp_dtype)
    net = without_unknown_output(module) if unknown_output else copy.deepcopy(unwrap_model(module))
    model = EvaluatedModel.of(net, settings, preprocessing)
    if model.preprocessing is None:
        raise ValueError(f'{model.name} does not say how a picture becomes its input, which predictions need; pass '
                         "preprocessing=Preprocessing.of({'input_size': (C, H, W), 'mean': ..., 'std': ...}), of "
                         'gradmix_timm.data.preprocessing')
    reading, names = model.reading(), tuple(listed(plan.known_classes) or ())
    fitted = open_known(model, train, names, 'known training images', 'train')
    held = open_known(model, plan.validation, names, 'validation images')
    _check_module(model, reading, names, (fitted, held))
    check_held_out(fitted, held, 'validation')
    head = head_of(model.net) if score_kind(plan.score).needs_head else None
    score = fit_score(plan.score, None if fitted is None else model.embed(fitted, 'known training images'), head=head,
                      **plan.score_options)
    threshold, count, source = _threshold(plan, score, model, None) if held is None else _threshold_of(
        plan, score, model.embed(held, 'validation images'))
    kwargs = {'num_classes': len(names), **({'in_chans': reading.channels} if reading.channels != 3 else {})}
    return model.net, score, {
        'known_classes': names, 'threshold': threshold, 'threshold_source': source, 'n_validation': count,
        'known_acceptance': float(plan.known_acceptance) if plan.threshold is None else None, 'model': model.name,
        'model_kwargs': {**kwargs, **model_kwargs}, 'data_config': reading.as_config(),
        'amp_dtype': None if plan.amp_dtype is None else str(plan.amp_dtype).removeprefix('torch.'), 'checkpoint': {}}


# ---- checks that need no image

def _check(plan: Plan) -> None:
    if not isinstance(plan.score, str):
        raise TypeError(f"score={plan.score!r}: expected a name, score='mls'")
    if score_kind(plan.score).requires_model:  # an unknown name raises, with the nearest
        raise ValueError(f'score {plan.score!r} takes passes over the model of its own, and a classifier makes one for '
                         'each prediction; take a score that is computed from that one, such as mls')
    if not (isinstance(plan.known_acceptance, SupportsFloat) and 0 < plan.known_acceptance < 1):
        raise ValueError('known_acceptance is a share of the known images between 0 and 1, got '
                         f'{plan.known_acceptance!r}')
    names = listed(plan.known_classes) or ()
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'known_classes=[...] has {", ".join(map(repr, repeated))} more than once; predictions go by '
                         'the name, so each class needs its own')
    if plan.threshold is not None and plan.validation is not None:
        raise ValueError('validation images and a threshold were given; the first would set the second, give one')
    if plan.img_size is not None and not (isinstance(plan.img_size, int | np.integer) and plan.img_size >= 1):
        raise ValueError(f'img_size={plan.img_size!r}: expected the side in pixels, an integer of 1 or more')
    if plan.threshold is not None and not (isinstance(plan.threshold, SupportsFloat) and math.isfinite(plan.threshold)):
        raise ValueError(f'threshold={plan.threshold!r}; give a finite number')


def _check_module(model: EvaluatedModel, reading: Preprocessing, names: Sequence[str],
                  cuts: Sequence[CutDataset | None]) -> None:
    noise = torch.zeros(1, *reading.input_size)
    width = extract(model.net, [(noise, torch.zeros(1, dtype=torch.int64))], model.device,
                    features_needed=False).logits.shape[1]
    if width != len(names):
        raise ValueError(f'{model.name} gives {width} logits and {len(names)} known classes are named; '
                         'known_classes=[...] has a name for each, in head order')
    for height, width in (size for cut in cuts for size in getattr(cut, 'sizes', ())):
        if (height, width) != reading.input_size[1:]:
            raise ValueError(f'images are tensors of {height} x {width} pixels and predictions are made at '
                             f'{reading.input_size[1]} x {reading.input_size[2]}; pass preprocessing=Preprocessing.of('
                             f"{{'input_size': ({reading.channels}, {height}, {width})}}, model), of "
                             'gradmix_timm.data.preprocessing')


def _known_names(plan: Plan, loaded: Loaded) -> tuple[str, ...]:
    recorded, names = loaded.record.known_classes if loaded.record is not None else (), listed(plan.known_classes)
    if names is None and not recorded:
        raise ValueError(f'{loaded.path} does not say which classes its head knows; name them in head order, '
                         'known_classes=[...] (--known-classes A,B,...)')
    if names is None:
        return recorded
    if loaded.record is not None and recorded:
        check_known(loaded.record, names)
    return names


def _check_held_out(plan: Plan, loaded: Loaded) -> None:
    held = len(loaded.record.held_out) if loaded.record is not None else 0
    if not held:
        why = ('comes without a record of its training' if loaded.record is None
               else 'was trained without held-out images (--osr-val-fraction 0)')
        raise ValueError(f'{loaded.path} {why}, so there is nothing to set a threshold on; pass images '
                         'of known classes that took no part in training, validation=[...] (--validation PATH ...), or '
                         'threshold=NUMBER (--threshold)')
    _check_enough(held, plan.known_acceptance)


def _check_enough(count: int, acceptance: float) -> None:
    needed = math.ceil(1 / (1 - acceptance) - 1e-9) - 1
    if count < needed:
        raise ValueError(f'{count} held-out images are too few to promise known_acceptance={acceptance:g}: {needed} '
                         f'are needed; ask for {count / (count + 1):.4g} at most (--known-acceptance), or pass more '
                         'images of known classes, validation=[...] (--validation PATH ...)')


# ---- images

def _cuts(plan: Plan, model: EvaluatedModel, names: Sequence[str]) -> tuple[CutDataset | None, CutDataset | None]:
    """Known training images (None if the score needs none) and those held out (None if not needed)."""
    held_wanted = plan.threshold is None and plan.validation is None
    train_wanted = score_kind(plan.score).needs_train
    if not held_wanted and not train_wanted:
        return None, None
    try:
        parts = _training(plan, model, names)
    except ValueError as error:
        raise ValueError(f'the training images, of which the threshold and the score are made, could not be opened: '
                         f'{error}. Where they moved: data_dir=FOLDER (--data-dir)') from error
    return parts.train if train_wanted else None, parts.held if held_wanted else None


def _training(plan: Plan, model: EvaluatedModel, names: Sequence[str]) -> Parts:
    source = plan.source
    options = DataOptions(
        data_dir=None if source.data_dir is None else os.fspath(source.data_dir), dataset=source.dataset,
        train_split=source.train_split, class_map=source.class_map)
    return open_training(options, model.loaded, names, model.reading())


def _of_known_classes(images: Any, names: Sequence[str], unknown: Sequence[str]) -> Any:
    """Validation images without those of other classes, as far as their folders are named by classes.

    Args:
        images: Paths, of folders too; images of other kinds are kept.
        names: Of the known classes.
        unknown: Names of the classes that training left out.

    Raises:
        ValueError: All of them are of other classes, or some lie in a folder train and some beside it.
    """
    images = [images] if isinstance(images, str | os.PathLike) else images
    if not isinstance(images, Sequence) or not all(isinstance(item, str | os.PathLike) for item in images):
        return images
    images = list(each(images))
    chains = [[folder.name for folder in Path(item).absolute().parents[:_LEVELS]] for item in images]
    apart = next((name for chain in chains if 'train' not in chain for name in chain if name in _APART), None)
    if apart is not None and any('train' in chain for chain in chains):
        raise ValueError(f'the validation images lie in train and in {apart}: the model was trained on those of train, '
                         f'so that the threshold would be too high; name the folder {apart} alone')
    listed = list(dict.fromkeys(name for chain in chains for name in chain))
    known = {listed[place] for place in shared_classes(listed, names)}
    classes = known | {listed[place] for place in shared_classes(listed, unknown)}
    folders = [next((name for name in chain if name in classes), chain[0]) for chain in chains]
    others = [name for name in dict.fromkeys(folders) if name not in known]
    if not others or not classes:
        return images
    kept = [item for item, folder in zip(images, folders, strict=True) if folder in known]
    if not kept:
        raise ValueError(f'all {len(images)} validation images lie in folders of classes that are not known '
                         f'({", ".join(others[:5])}); name images of {", ".join(names[:5])}')
    _logger.warning(f'{len(images) - len(kept)} of {len(images)} validation images lie in folders of no known class '
                    f'({", ".join(others[:5])}{", ..." if len(others) > 5 else ""}) and are left out')
    return kept


def _validation(plan: Plan, model: EvaluatedModel, names: Sequence[str], train: CutDataset | None) -> Any:
    """Validation images of known classes.

    Raises:
        ValueError: They are files that were trained on.
    """
    record = None if model.loaded is None else model.loaded.record
    images = _of_known_classes(plan.validation, names, () if record is None else record.unknown_classes)
    if not isinstance(images, list) or not all(isinstance(item, str | os.PathLike) for item in images):
        return images
    if train is None:
        with suppress(ValueError):  # training images that are not here cannot be compared
            train = _training(plan, model, names).train
    if train is not None:
        files = ImageSource(FileReader(os.curdir, [(os.fspath(item), 0) for item in images]))
        check_apart(train, files, 'the threshold would be too high; pass images of known classes that took no part in '
                                  'training, validation=[...] (--validation PATH ...)', 'validation')
    return images


def _threshold(plan: Plan, score: Score, model: EvaluatedModel, held: CutDataset | None) -> tuple[float, int, str]:
    if plan.threshold is not None:
        return float(plan.threshold), 0, 'given by hand'
    if held is not None:
        return _threshold_of(plan, score, model.embed(held, 'held-out images'),
                             'training images of the known classes that were held out',
                             '; it may be fewer, since the same images pick model_best in training')
    images = batches(plan.validation, model.reading(), plan.batch_size)
    return _threshold_of(plan, score, model.embed_batches(images, 'validation images'))


def _threshold_of(plan: Plan, score: Score, embedded: Embeddings, kind: str = 'validation images', doubt: str = '',
                  ) -> tuple[float, int, str]:
    _check_enough(len(embedded.label), plan.known_acceptance)
    values: Tensor = score(embedded)
    threshold = conformal_threshold(values.numpy(), 1 - plan.known_acceptance)
    if not math.isfinite(threshold):
        raise ValueError(f'{plan.score} of the held-out images gives the threshold {threshold}; choose another score')
    return (threshold, len(values),
            f'set on {len(values)} {kind}, so as to accept on average at least '
            f'{plan.known_acceptance:g} of new known images{doubt}')


def _origin(loaded: Loaded) -> dict[str, Any]:
    facts: dict[str, Any] = {'file': Path(loaded.path).name, 'sha256': loaded.sha256, 'epoch': loaded.epoch,
                             'moving_average': loaded.ema}
    if loaded.record is not None:
        record = loaded.record
        facts |= {name: getattr(record, name) for name in ('protocol', 'family', 'trial', 'mixer', 'objective', 'seed')}
    return facts
