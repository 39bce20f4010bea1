"""What ``corrupt`` and ``probe`` write into results.json besides, as types."""
from typing import Annotated, NotRequired, TypedDict

from gradmix_timm.schema import Length, Range

from .base import ClosedSet, Count, Interval, Name, Results, ScoreFigures, Share, Size

__all__ = ['AurocBySide', 'ByCorruption', 'CorruptedFigures', 'Corruption', 'CorruptionGroup', 'CorruptionMeans',
           'CorruptionResults', 'ProbeGroup', 'ProbeParameters', 'ProbeResults']

Severity = Annotated[int, Range(1, 5)]


# ---- corrupt

class AurocBySide(TypedDict, total=False):
    """Mean AUROC of corrupted known images.

    Attributes:
        corrupted: Against unknown images with the same corruption.
        clean: Against unknown images as they are.
    """

    corrupted: Share
    clean: Share


class CorruptedFigures(TypedDict):
    """Figures of corrupted known images.

    Attributes:
        n_known: Known test images.
        n_unknown: Unknown images.
        closed_set: Accuracy on corrupted known images.
        error: 1 - top1.
        error_ci: 95% interval.
        scores: Against unknown images with the same corruption; empty without unknown classes.
        scores_clean_unknown: Against unknown images as they are.
    """

    n_known: Size
    n_unknown: Count
    closed_set: ClosedSet
    error: Share
    error_ci: Interval
    scores: dict[Name, ScoreFigures]
    scores_clean_unknown: NotRequired[dict[Name, ScoreFigures]]


class CorruptionGroup(CorruptedFigures):
    """One corruption at one severity.

    Attributes:
        corruption: Name.
        severity: From 1 to 5.
        family: ``noise``, ``blur``, ``weather``, ``digital`` or ``extra``.
    """

    corruption: Name
    severity: Severity
    family: Name


class ByCorruption(TypedDict):
    """Means of one corruption over its severities.

    Attributes:
        error: Mean error.
        auroc: By name of the score.
        ce: Corruption error: over that of the reference model.
        relative_ce: What corruption adds, over what it adds to the reference model.
    """

    error: Share
    auroc: dict[Name, AurocBySide]
    ce: NotRequired[float]
    relative_ce: NotRequired[float]


class BySeverity(TypedDict):
    """Means of one severity over corruptions.

    Attributes:
        error: Mean error.
        auroc: By name of the score.
    """

    error: Share
    auroc: dict[Name, AurocBySide]


class CorruptionMeans(TypedDict):
    """Means over corruptions and severities.

    Attributes:
        clean_error: Without corruption.
        mean_error: Over corruptions and severities.
        mean_error_ci: 95% interval; the image is the unit.
        severities: Evaluated, in rising order.
        by_corruption: Means by name of the corruption.
        by_severity: Means by severity, as text.
        mce: Mean corruption error, with --baseline.
        relative_mce: Its relative form.
        no_mce: Why there is none.
        no_relative_mce: Why there is none.
    """

    clean_error: Share
    mean_error: Share
    mean_error_ci: Interval
    severities: Annotated[list[Severity], Length(1, 5)]
    by_corruption: Annotated[dict[Name, ByCorruption], Length(1)]
    by_severity: dict[str, BySeverity]
    mce: NotRequired[float]
    relative_mce: NotRequired[float]
    no_mce: NotRequired[str]
    no_relative_mce: NotRequired[str]


class Corruption(CorruptionMeans):
    """Summary over corruptions and severities, and what they are.

    Attributes:
        official: Whether the images are the benchmark's own files.
        source: What the images are, in words.
        scale: Whose constants generated images have.
        at: ``stored`` or ``input``: the size that was corrupted.
        seed: Of generated images.
        complete: Whether all corruptions and severities of the benchmark were evaluated.
        reference: --baseline, or null.
    """

    official: bool
    source: str
    scale: NotRequired[str]
    at: NotRequired[str]
    seed: NotRequired[int]
    complete: bool
    reference: NotRequired[str | None]


class CorruptionResults(Results):
    """The results of ``corrupt``; ``closed_set`` and ``scores`` are of clean images.

    Attributes:
        groups: By ``CORRUPTION/SEVERITY``.
        corruption: Summary.
    """

    groups: dict[Name, CorruptionGroup]
    corruption: Corruption


# ---- probe

class ProbeParameters(TypedDict, total=False):
    """What a probe was fitted with.

    Attributes:
        l2: ``linear``: strength of the penalty.
        converged: ``linear``: whether the fit reached its optimum.
        held_out_by_l2: ``linear``: held-out accuracy by strength, as text.
        n_held_out: ``linear``: images the strength was chosen on.
        k: ``knn``: neighbours.
        shots: ``few-shot``: training images of each class.
        draws: ``few-shot``: draws of them.
        top1_by_draw: ``few-shot``: accuracy of each.
    """

    l2: float
    converged: bool
    held_out_by_l2: dict[str, Share]
    n_held_out: Count
    k: Count
    shots: Size
    draws: Size
    top1_by_draw: list[Share]


class ProbeGroup(TypedDict):
    """One probe.

    Attributes:
        probe: ``linear``, ``knn``, ``few-shot`` or ``head``.
        n_train: Training images.
        n_known: Known test images.
        n_unknown: Unknown images.
        closed_set: Accuracy; of few-shot probes the mean over draws, its interval over draws and test images.
        top1_sd: Standard deviation over draws, or null.
        held_out_top1: Accuracy on held-out training images.
        scores: By name; empty without unknown classes and for few-shot probes.
        parameters: What it was fitted with.
    """

    probe: Name
    n_train: Count
    n_known: Size
    n_unknown: Count
    closed_set: ClosedSet
    top1_sd: NotRequired[float | None]
    held_out_top1: NotRequired[Share | None]
    scores: dict[Name, ScoreFigures]
    parameters: ProbeParameters


class ProbeResults(Results):
    """The results of ``probe``; ``closed_set`` and ``scores`` are of the first probe.

    Attributes:
        groups: By name of the probe.
        not_served: Probes that cannot be fitted, with the reason.
        warnings: Sentences.
    """

    groups: Annotated[dict[Name, ProbeGroup], Length(1)]
    not_served: dict[str, str]
    warnings: list[str]
