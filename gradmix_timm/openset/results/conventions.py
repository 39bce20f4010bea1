"""What --preset and --tune write into results.json, as types."""
from typing import TypedDict

from .base import Name, Share, Size

__all__ = ['PresetFigures', 'TunedScore', 'Tuning']


class PresetFigures(TypedDict):
    """The scores by the metric conventions of a preset.

    Attributes:
        name: Of the preset.
        columns: Its metrics, as its tables call them.
        scores: By name of the score, then of the part of the unknown images (``all``: all of them): a fraction for each
            column.
    """

    name: str
    columns: list[str]
    scores: dict[Name, dict[Name, list[float]]]


class TunedScore(TypedDict):
    """Options of a score that were picked on validation images.

    Attributes:
        chosen: The score with them.
        tried: AUROC on the validation images by score and options.
    """

    chosen: Name
    tried: dict[Name, Share]


class Tuning(TypedDict):
    """How options were picked: by AUROC of held-out images against a validation set of unknown ones.

    Attributes:
        unknown: The validation set, as given to --tune.
        n_known: Held-out images.
        n_unknown: Images of the validation set.
        scores: By name of the score before.
    """

    unknown: str
    n_known: Size
    n_unknown: Size
    scores: dict[Name, TunedScore]
