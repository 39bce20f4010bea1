"""Settings of an evaluation, apart from the model and the images; checked on construction."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from gradmix_timm.openset.judge import check_names
from gradmix_timm.openset.presets import PRESETS

__all__ = ['DataOptions', 'EvaluationSettings', 'check_counts', 'listed', 'one_or_more']

_ZERO_IS_NONE = ('bootstrap', 'workers', 'seed', 'trivial_images', 'feature_map', 'duplicates', 'made_seed')


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """Settings of an evaluation.

    Attributes:
        scores: Names, with options as in 'knn:k=5'; None: all that are registered, those that cannot be served left out
            with their reason.
        preset: 'openood' or 'paper': whose scores, options and metric conventions (openset/presets.py); None: the
            library's own.
        bootstrap: Resamples for the intervals of rank metrics other than AUROC; 0: none of these.
        seed: Of the resamples, of folds and of figures.
        batch_size: Images at a time.
        workers: Loader processes; None: by the number of images, at most 4.
        amp_dtype: torch.bfloat16 or torch.float16: run the model in mixed precision; None: full.
        channels_last: Memory format of the images.
        skip_bad: Leave out images that cannot be read, and name them, rather than raise.
        cache: Folder that keeps embeddings: a second run reads them, and an interrupted run resumes.
        trivial_images: Images of each set whose brightness, sharpness, ... are compared; 0: none.
        duplicates: Unknown images nearest to a known one whose pixels are compared; 0: none.
        feature_map: Images in the figure of the features; 0: none.
        sensitivity: Whether to score again with other settings of each score.

    Raises:
        ValueError: A score that is not registered, or a number out of range, named as here.
    """

    scores: Sequence[str] | None = None
    preset: str | None = None
    bootstrap: int = 1000
    seed: int = 0
    batch_size: int = 128
    workers: int | None = None
    amp_dtype: torch.dtype | None = None
    channels_last: bool = False
    skip_bad: bool = False
    cache: str | None = None
    trivial_images: int = 500
    duplicates: int = 1000
    feature_map: int = 1000
    sensitivity: bool = False

    def __post_init__(self) -> None:
        """Reject values out of range, before anything is opened."""
        preset = None if self.preset is None else PRESETS[self.preset]
        if self.scores is not None:
            names = check_names(one_or_more(self.scores))
            if not names:
                raise ValueError('scores=(): name one score or more; None means all')
            object.__setattr__(self, 'scores', names if preset is None else preset.named(names))
        if self.amp_dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f'amp_dtype={self.amp_dtype}: expected torch.bfloat16, torch.float16 or None')
        check_counts(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Options of the data, which override what a checkpoint recorded; None: as recorded.

    Attributes:
        data_dir: Folder or tar.
        dataset: timm's data set name, or 'sklearn/digits'; '' for class folders.
        train_split: Split with the training images.
        test_split: Split that is evaluated.
        class_map: File of class name to label, as in training.
        known_classes: Names in head order; all others are unknown.
        osr_protocol: A protocol's name or a YAML file, in place of ``known_classes``.
        osr_trial: Of the protocol; None: 0.
        osr_family: Whose trials; None: the protocol's own.
        unknown_dataset: Data set of the unknown classes, for protocols whose unknowns are of another.
        unknown_data_dir: Its folder.
    """

    data_dir: str | None = None
    dataset: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    class_map: str = ''
    known_classes: tuple[str, ...] | None = None
    osr_protocol: str | None = None
    osr_trial: int | None = None
    osr_family: str | None = None
    unknown_dataset: str | None = None
    unknown_data_dir: str | None = None

    def __post_init__(self) -> None:
        """Reject options that exclude each other or would be ignored."""
        if self.osr_protocol and self.known_classes:
            raise ValueError('osr_protocol=NAME and known_classes=A,B,... both say which classes are known; give one')
        for name in ('osr_trial', 'osr_family'):
            if getattr(self, name) is not None and not self.osr_protocol:
                raise ValueError(f'{name}={getattr(self, name)} chooses among the trials of a protocol; add '
                                 'osr_protocol=NAME, or leave it out')
        if self.osr_trial is not None and self.osr_trial < 0:
            raise ValueError(f'osr_trial={self.osr_trial}: expected 0 or more')


def check_counts(settings: Any) -> None:
    """Reject whole numbers that are of another type, or below their minimum: 1, or 0 where 0 means none.

    Args:
        settings: A dataclass with postponed annotations, of which it looks at ``int`` and ``int | None``.

    Raises:
        ValueError: With the field's name.
    """
    for field in fields(settings):
        value, least = getattr(settings, field.name), 0 if field.name in _ZERO_IS_NONE else 1
        if field.type not in ('int', 'int | None') or (value is None and field.type != 'int'):
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ValueError(f'{field.name}={value!r}: expected a whole number')
        if value < least:
            raise ValueError(f'{field.name}={value}: expected {least} or more')


def one_or_more(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names of which a single one may be a text, which is no sequence of letters here."""
    return (names,) if isinstance(names, str) else tuple(names)


def listed(known_classes: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of classes as a caller gave them; None as it is.

    Raises:
        ValueError: A text, which would be a class a letter.
        TypeError: Not an iterable of strings.
    """
    if known_classes is not None and not isinstance(known_classes, Iterable):
        raise TypeError(f'known_classes={known_classes!r}: expected a list of names in head order')
    if isinstance(known_classes, str):
        raise ValueError(f'known_classes={known_classes!r} is one text; expected a list of names in head order, '
                         f'known_classes={known_classes.split(",")}')
    names = None if known_classes is None else tuple(known_classes)
    if not all(isinstance(name, str) for name in names or ()):
        raise TypeError(f'known_classes={known_classes!r}: expected strings, '
                        f'known_classes={list(map(str, names or ()))}')
    return names
