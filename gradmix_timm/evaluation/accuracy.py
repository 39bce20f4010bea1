"""The closed-set accuracy that a model should have, checked before any unknown image is scored.

A wrong mean, crop or class order lowers accuracy, whereas the open-set figures of such a model may look plausible.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradmix_timm.checkpoint import Loaded
from gradmix_timm.data import CutDataset
from gradmix_timm.data.recode import Recoded
from gradmix_timm.openset.results import AccuracyGate
from gradmix_timm.records import Embeddings

__all__ = ['GATES', 'SLACK', 'accuracy_block', 'as_stored', 'check_accuracy', 'check_gate', 'recorded_top1']

#: What to do about a model that is less accurate than its reference: raise, warn, or skip the check.
GATES = ('refuse', 'warn', 'off')
#: Largest accepted shortfall of the accuracy from the reference: one point.
SLACK = 0.01


def check_gate(gate: str, reference_top1: Any) -> None:
    """Reject settings of the gate that cannot be meant; a share in place of percent would be passed by any model.

    Args:
        gate: One of :data:`GATES`.
        reference_top1: Percent, or None.

    Raises:
        ValueError: They are something else.
    """
    if gate not in GATES:
        raise ValueError(f'gate={gate!r}: expected {", ".join(GATES)}')
    number = isinstance(reference_top1, int | float | np.number)
    if reference_top1 is not None and not (number and 1 <= reference_top1 <= 100):
        raise ValueError(f'reference_top1={reference_top1}: expected percent, from 1 to 100; 76.5 means 76.5%')


def check_accuracy(correct: NDArray[np.bool_], reference: float, where: str, source: str) -> AccuracyGate:
    """Refuse an accuracy more than one point (and more than one image) below the reference.

    Args:
        correct: Which images were classified correctly, bool [N].
        reference: The reference accuracy, in [0, 1].
        where: What the images are, for the message.
        source: Where the reference is from.

    Returns:
        For results.json: 'reference', 'measured', 'n', 'source'.

    Raises:
        ValueError: The accuracy is too low; the message names likely causes and the settings to check.

    Example:
        >>> check_accuracy(np.arange(200) < 150, 0.76, 'test images', 'a paper')['measured']
        0.75
    """
    measured, count = float(np.mean(correct)), len(correct)
    missing = reference - measured
    # In a small set one image is more than a point, and rounding on another device may flip one prediction.
    if missing > SLACK + 1e-9 and missing * count > 1 + 1e-6:
        raise ValueError(
            f'closed-set accuracy is {measured:.2%} on {count} {where}, and {source} says {reference:.2%}: '
            'preprocessing, data or class order differ from those of the reference, so open-set figures would be '
            "meaningless; see data_dir=DIR, img_size=N, known_classes=A,B,... and the checkpoint, or pass gate='off'")
    return {'reference': reference, 'measured': measured, 'n': count, 'source': source}


def recorded_top1(loaded: Loaded | None) -> float | None:
    """Closed-set accuracy, in [0, 1], that a checkpoint had on its held-out images; None if it does not say."""
    if loaded is None or loaded.metric is None or (loaded.args or {}).get('eval_metric') != 'top1':
        return None
    return loaded.metric / 100


def accuracy_block(gate: str, reference_top1: float | None, loaded: Loaded | None, known: Embeddings,
                   held_out: Callable[[], Embeddings | None]) -> AccuracyGate | None:
    """The block ``accuracy_gate`` of results.json.

    Args:
        gate: One of :data:`GATES`.
        reference_top1: Percent that the model should reach on the known test images; None: what the checkpoint had on
            its held-out images.
        loaded: The checkpoint, or None.
        known: Of the known test images.
        held_out: Returns the embeddings of the held-out images as training read them, if there are any.

    Returns:
        None if there is no reference accuracy.

    Raises:
        ValueError: The model is less accurate than its reference and ``gate='refuse'``.
    """
    if gate == 'off':
        return {'source': 'switched off'}
    if reference_top1 is not None:
        reference, right, where, source = (
            reference_top1 / 100, _right(known), 'known test images', f'reference_top1={reference_top1:g}')
    else:
        recorded = recorded_top1(loaded)
        held = None if recorded is None else held_out()
        if recorded is None or held is None:
            return None
        reference, right, where, source = recorded, _right(held), 'training images that were held out', 'the checkpoint'
    try:
        return check_accuracy(right, reference, where, source)
    except ValueError:
        if gate == 'refuse':
            raise
        return {'reference': reference, 'measured': float(right.mean()), 'n': len(right), 'source': source,
                'warning': f'closed-set accuracy is {right.mean():.2%} on {len(right)} {where}, and {source} says '
                           f'{reference:.2%}: preprocessing or data are not those of the reference, and the figures '
                           'are not its (see the image size, the folder and the precision)'}


def as_stored(images: CutDataset | None) -> CutDataset | None:
    """Images without the evaluation's codec, that is, as training read them."""
    if images is None or not isinstance(images.source, Recoded):
        return images
    return CutDataset(images.source.inner, images.indices, images.targets, images.classes)


def _right(embeddings: Embeddings) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = (embeddings.logits.argmax(1) == embeddings.label).numpy()
    return right
