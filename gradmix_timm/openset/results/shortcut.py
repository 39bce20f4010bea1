"""What ``shortcut`` writes into results.json besides, as types."""
from typing import Annotated, NotRequired, TypedDict

from .base import ClosedSet, Count, Interval, Name, Results, ScoreFigures, Share, Size

__all__ = ['Evidence', 'ShortcutGroup', 'ShortcutOfRun', 'ShortcutResults']

_Ends = tuple[float, float]


class ShortcutGroup(TypedDict):
    """Test images in one view.

    Attributes:
        view: Of the known images: ``own``, with the mark of their class; ``absent``; ``conflict``, with that of another
            known class. Unknown ones carry that of a known class, or none in ``absent``.
        n_known: Known test images.
        n_unknown: Unknown images.
        closed_set: Accuracy on the known ones.
        scores: By name.
    """

    view: Name
    n_known: Size
    n_unknown: Count
    closed_set: ClosedSet
    scores: dict[Name, ScoreFigures]


class ShortcutOfRun(TypedDict):
    """The mark, as in the data set's name.

    Attributes:
        kind: What is drawn; several joined by +.
        side: In pixels.
        share: Of the training images that carry it.
        place: ``random`` or ``fixed``.
        seed: Of everything that is drawn at random.
        size: Shorter side to which images are resized before; 0: as stored.
        strength: Opacity; 1 covers the image below.
    """

    kind: Name
    side: Size
    share: Share
    place: Name
    seed: Count
    size: Count
    strength: Share


class Evidence(TypedDict):
    """Evidence for the label on the mark, of known images with their own; means over images, normal intervals.

    Attributes:
        attribution: Method of the map.
        layers: Target layers of the map.
        n: Images.
        left_out: Images without a mark in the model's input, or whose map is degenerate.
        cut_off: Of those, images with a mark of which the model's resize and crop leave nothing.
        area: Share of the pixels that are the mark: the mass that a uniform map has there.
        area_ci: 95% interval, as all that follow.
        mass: Share of the map on the mark.
        mass_ci: Its interval.
        peak: Images whose map is largest on the mark.
        peak_ci: Its interval.
        fall: Drop of the label's log-odds when the mark is hidden under the mean colour.
        fall_ci: Its interval.
        random_fall: The same when as many pixels of the same shape are hidden at a random place.
        random_fall_ci: Its interval.
        fall_difference: The first less the second, image by image.
        fall_difference_ci: Its interval.
    """

    attribution: Name
    layers: list[Name]
    n: Count
    left_out: Count
    cut_off: NotRequired[Count]
    area: Share | None
    area_ci: Interval | None
    mass: Share | None
    mass_ci: Interval | None
    peak: Share | None
    peak_ci: Interval | None
    fall: float | None
    fall_ci: _Ends | None
    random_fall: float | None
    random_fall_ci: _Ends | None
    fall_difference: float | None
    fall_difference_ci: _Ends | None


def _three_views(groups: dict[str, ShortcutGroup]) -> str:
    return '' if {'own', 'absent', 'conflict'} <= set(groups) else 'the views own, absent and conflict'


class ShortcutResults(Results):
    """The results of ``shortcut``; ``closed_set`` and ``scores`` are of the view ``own``.

    Attributes:
        groups: By view.
        shortcut: The mark.
        evidence: On it.
    """

    groups: Annotated[dict[Name, ShortcutGroup], _three_views]
    shortcut: ShortcutOfRun
    evidence: Evidence
