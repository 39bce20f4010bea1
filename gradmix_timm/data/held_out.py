"""Find the rows that a run held out or kept for the test in the data as it is now."""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .identity import digest_of, row_names, rows_of, shared_rows
from .images import ImageSource
from .subsets import CutDataset, hold_out, take

__all__ = ['FLAT_SHARE', 'Parts', 'RecordedRows', 'find_rows', 'recorded_parts', 'split_flat']

_logger = logging.getLogger(__name__)
#: Share of each class that a folder without splits keeps for the test, as sklearn/digits does.
FLAT_SHARE = 0.2
_SHOWN = 3


class RecordedRows(Protocol):
    """A checkpoint's record of its held-out images.

    Attributes:
        held_out: Name in the training split to digest.
        flat_test: The same of images kept for the test, if the data had no test split.
    """

    @property
    def held_out(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def flat_test(self) -> Mapping[str, str]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Parts:
    """A training split as a run used it.

    Attributes:
        train: What was trained on.
        held: Held out for validation, or None.
        test: Kept for the test where the data had no test split, or None.
    """

    train: CutDataset
    held: CutDataset | None
    test: CutDataset | None


def recorded_parts(images: CutDataset | ImageSource, record: RecordedRows | None) -> Parts:
    """A training split divided as in the run: trained on, held out, and kept for the test.

    Args:
        images: The training split, or a cut of it, as it is now.
        record: Of the run; None: unknown, all are training images.

    Raises:
        ValueError: An image is gone or has other content, see :func:`find_rows`.
    """
    held = test = np.zeros(0, dtype=np.int64)
    if record is not None:
        held, test = (find_rows(images, recorded, kind) for recorded, kind in (
            (record.held_out, 'held-out'), (record.flat_test, 'test')))
    train = np.setdiff1d(rows_of(images)[1], np.concatenate([held, test]))
    return Parts(take(images, train.tolist()), take(images, held.tolist()) if len(held) else None,
                 take(images, test.tolist()) if len(test) else None)


def split_flat(images: CutDataset | ImageSource, share: float = FLAT_SHARE, seed: int = 0,
               ) -> tuple[CutDataset, CutDataset]:
    """Split a folder of class folders into train and test, with a line in the log.

    Stratified and seeded; copies of one image stay together, in the training part.

    Args:
        images: The whole folder, or a cut of it.
        share: Of each class that is kept for the test, in (0, 1).
        seed: Not negative.

    Raises:
        ValueError: A class with a single image.
    """
    train, test = hold_out(images, share, seed)
    copies = [row for row, _ in shared_rows(train, test)[0]]
    if copies:
        train = take(images, np.union1d(train.indices, copies).tolist())
        test = take(images, np.setdiff1d(test.indices, copies).tolist())
    _logger.warning(f'{_root(train.source)} has no split folders: {len(test)} of its {len(train) + len(test)} images '
                    f'({share:.0%} of each class, seed {seed}) are kept for the test, the others train')
    return train, test


def find_rows(images: CutDataset | ImageSource, recorded: Mapping[str, str], kind: str) -> np.ndarray:
    """Positions in the source of the rows of these names and digests, ascending, int64.

    Args:
        images: Where to look.
        recorded: Of :func:`identities`.
        kind: For the message: 'held-out', 'test'.

    Raises:
        ValueError: A name is missing, or its content has changed.
    """
    source, rows = rows_of(images)
    place = dict(zip(row_names(images), rows.tolist(), strict=True))
    gone = [name for name in recorded if name not in place]
    where = _root(source)
    if gone:
        raise ValueError(f'{len(gone)} of {len(recorded)} {kind} images are not in {where} ({_some(gone)}): they were '
                         'renamed, moved or removed since training, or the data is another; restore the names, or '
                         'name the folder with --data-dir')
    found = {name: place[name] for name in recorded}
    other = [name for name, row in found.items() if digest_of(source, row) != recorded[name]]
    if other:
        raise ValueError(f'{len(other)} of {len(recorded)} {kind} images in {where} have other content than at '
                         f'training ({_some(other)}), so that training may have used them under another name; restore '
                         'the files, or name the folder with --data-dir')
    return np.array(sorted(found.values()), dtype=np.int64)


def _root(source: ImageSource) -> str:
    return str(getattr(source.reader, 'root', None) or 'the data set')


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')
