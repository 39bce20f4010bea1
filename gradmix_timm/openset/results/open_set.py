"""What ``osr`` and ``ood`` write into results.json besides, as types."""
from typing import Annotated, NotRequired, TypedDict

from gradmix_timm.schema import Length, Plain, Range

from .base import ClosedSet, Count, Figures, Interval, Name, Names, Results, RunResults, ScoreFigures, Share, Size
from .conventions import PresetFigures, Tuning

__all__ = [
    'AccuracyGate', 'AtThreshold', 'Calibration', 'CalibrationErrors', 'Duplicates', 'Fit', 'Group', 'JudgedFigures',
    'KnownClass', 'Mean', 'NearPair', 'OpenSetResults', 'PartGroup', 'PartResults', 'PerClass', 'PixelStatistics',
    'Sensitivity', 'Statistic', 'Statistics', 'Threshold', 'UnknownClass', 'UnknownSet']

Scores = Annotated[dict[Name, ScoreFigures], Length(1)]


class Statistic(TypedDict):
    """How well one statistic of the pixels separates known from unknown images.

    Attributes:
        auroc: From 0.5, whichever side is higher.
        auroc_ci: 95% interval.
        higher: Side with the larger values, ``known`` or ``unknown``.
    """

    auroc: Share
    auroc_ci: Interval
    higher: NotRequired[str]


class Statistics(TypedDict):
    """Known against unknown images by pixel statistics, without a model.

    Attributes:
        n_known: Known images measured.
        n_unknown: Unknown images measured.
        statistics: By name of the statistic.
        combined: Cross-validated logistic regression on all of them; null with few images.
        worst: Name of the statistic with the highest AUROC.
    """

    n_known: Count
    n_unknown: Count
    statistics: dict[str, Statistic]
    combined: Statistic | None
    worst: str


class PixelStatistics(Statistics):
    """Pixel statistics, with warnings where they separate the sides.

    Attributes:
        warnings: Sentences.
    """

    warnings: list[str]


class UnknownSet(TypedDict, total=False):
    """What ``ood`` records of a data set of unknown images besides its figures.

    Attributes:
        source: What was given to --unknown.
        kind: ``near``, ``far`` or null.
        dropped_classes: Classes left out as their names are known.
        dropped_images: Images of those.
        known_classes_kept: Classes named like known ones that are counted as unknown nevertheless.
    """

    source: str
    kind: str | None
    dropped_classes: Names
    dropped_images: Count
    known_classes_kept: Names


class Group(UnknownSet):
    """A part of the unknown images against all known ones: a protocol's group, or a data set of ``ood``.

    Attributes:
        n_known: Known test images.
        n_unknown: Unknown images of the group.
        unknown_classes: Their classes.
        closed_set: ``shortcut``: accuracy on the known images of this view; else that of the evaluation.
        scores: Metrics by name of the score.
        trivial: ``ood``: pixel statistics of the set; null where they were not measured.
    """

    n_known: Size
    n_unknown: Size
    unknown_classes: NotRequired[Names]
    closed_set: NotRequired[ClosedSet]
    scores: Scores
    trivial: NotRequired[PixelStatistics | None]


class PartGroup(TypedDict):
    """What ``compare --part`` reads of a group; without unknown images it has its accuracy alone.

    Attributes:
        n_unknown: Unknown images of the group.
        unknown_classes: Their classes.
        closed_set: ``shortcut``: accuracy on the known images of this view; else that of the evaluation.
        scores: Metrics by name of the score.
    """

    n_unknown: Count
    unknown_classes: NotRequired[Names]
    closed_set: NotRequired[ClosedSet]
    scores: dict[Name, ScoreFigures]


class PartResults(RunResults):
    """What ``compare --part`` reads of an evaluation.

    Attributes:
        groups: Parts of the unknown images by name.
    """

    groups: dict[Name, PartGroup]


class Mean(TypedDict):
    """Unweighted means over data sets of a kind.

    Attributes:
        data_sets: Names of groups.
        n_unknown: Images of all of them.
        scores: Metrics by name of the score.
    """

    data_sets: list[Name]
    n_unknown: Count
    scores: dict[Name, dict[str, Share]]


# The functional form alone takes a Python keyword for a key.
_Lambda = TypedDict('_Lambda', {'lambda': Share})
_Class = TypedDict('_Class', {'class': str})


class AtThreshold(_Lambda):
    """Classification with rejection at the threshold.

    Attributes:
        lambda: Weight of the knowns in the normalised accuracy.
        classes_with_images: Known classes that occur, over which class means are taken.
        macro_f1: Over the known classes that occur and "unknown".
        macro_f1_ci: 95% interval; null where a class has a single image.
        balanced_accuracy: Mean recall of the known classes.
        balanced_accuracy_ci: Its interval; null as above.
        balanced_accuracy_with_unknown: The same with "unknown" as one class more.
        balanced_accuracy_with_unknown_ci: Its interval; null as above.
        normalized_accuracy: Accuracy on knowns and rejection of unknowns, weighted by lambda and 1 - lambda.
        normalized_accuracy_ci: Its interval.
        best_f1: Macro-F1 of the threshold selected on these test images: an upper bound.
    """

    classes_with_images: NotRequired[Count]
    macro_f1: Share
    macro_f1_ci: NotRequired[Interval | None]
    balanced_accuracy: Share
    balanced_accuracy_ci: NotRequired[Interval | None]
    balanced_accuracy_with_unknown: Share
    balanced_accuracy_with_unknown_ci: NotRequired[Interval | None]
    normalized_accuracy: Share
    normalized_accuracy_ci: NotRequired[Interval | None]
    best_f1: Share


class Threshold(TypedDict):
    """The one threshold, of the headline score.

    Attributes:
        score: Name of the headline score: ``mls`` where it was evaluated, else the first.
        value: Images with at least this knownness are accepted; null: infinite.
        source: Where it was set, in words.
        n: Images that it was set on.
        held_out: Whether those were held out from training (else known test images).
        known_accepted: Share of the known test images.
        unknown_accepted: Share of the unknown images.
        open_set: Metrics at the threshold.
    """

    score: Name
    value: float | None
    source: str
    n: Count
    held_out: bool
    known_accepted: Share
    unknown_accepted: Share
    open_set: NotRequired[AtThreshold]


class CalibrationErrors(TypedDict):
    """Errors of the closed-set probabilities on known test images.

    Attributes:
        ece: Expected calibration error, 15 bins of equal width.
        adaptive_ece: The same with bins of equal counts.
        nll: Mean negative log-likelihood, in nats; null: infinite.
        brier: Brier score, from 0 to 2.
    """

    ece: Share
    adaptive_ece: NotRequired[Share]
    nll: float | None
    brier: Annotated[float, Range(-1e-9, 2 + 1e-9)]


class Calibration(CalibrationErrors):
    """The same, and after temperature scaling where images were held out.

    Attributes:
        temperature: Fitted on the held-out images.
        temperature_n: Their number.
        temperature_note: What the fit warned of, or null.
        scaled: Errors at that temperature.
    """

    temperature: NotRequired[float | None]
    temperature_n: NotRequired[Count]
    temperature_note: NotRequired[str | None]
    scaled: NotRequired[CalibrationErrors]


class KnownClass(_Class):
    """One known class in numbers.

    Attributes:
        class: Name.
        n: Test images.
        accuracy: Predicted correctly among the known classes.
        accepted: At or above the threshold.
        mean_knownness: Of the headline score; null: infinite.
    """

    n: Count
    accuracy: Share
    accepted: Share
    mean_knownness: float | None


class UnknownClass(_Class):
    """One unknown class in numbers.

    Attributes:
        class: Name.
        n: Test images.
        accepted: At or above the threshold.
        mean_knownness: Of the headline score; null: infinite.
        taken_for: The known class most often predicted.
    """

    n: Count
    accepted: Share
    mean_knownness: float | None
    taken_for: str


class PerClass(TypedDict):
    """Figures class by class.

    Attributes:
        known: In head order.
        unknown: Most accepted first.
    """

    known: list[KnownClass]
    unknown: list[UnknownClass]


class AccuracyGate(TypedDict, total=False):
    """Closed-set accuracy against a reference, checked before unknown images are scored.

    Attributes:
        reference: The reference accuracy.
        measured: Accuracy here.
        n: Images.
        source: Where the reference is from.
        warning: A sentence, where the accuracy is too low.
    """

    reference: Share
    measured: Share
    n: Count
    source: str
    warning: str


class NearPair(TypedDict):
    """An unknown image and the known image nearest to it.

    Attributes:
        unknown: File.
        known: File.
        part: Set of the known image: ``test``, ``train`` or ``held-out``.
        cosine: Of their features.
    """

    unknown: str
    known: str
    part: str
    cosine: float


class Duplicates(TypedDict):
    """Whether unknown images are copies of known ones.

    Attributes:
        compared_with: Known images by set.
        looked_at: Pairs near enough for their pixels to be compared.
        n_identical: Pairs of equal pixels.
        identical: The first hundred of them.
        closest: The pairs nearest by features.
        warnings: Sentences.
    """

    compared_with: dict[str, Count]
    looked_at: Count
    n_identical: Count
    identical: list[NearPair]
    closest: list[NearPair]
    warnings: list[str]


class Sensitivity(TypedDict):
    """AUROC of a score at other values of its main option.

    Attributes:
        option: Its name.
        used: The value that the evaluation used.
        points: Pairs of value and AUROC, in rising order of the value.
    """

    option: str
    used: float | None
    points: list[tuple[float, Share]]


class Fit(TypedDict):
    """How a score was fitted.

    Attributes:
        options: By name.
        diagnostics: What the fit found: samples, rank, condition number, ...
    """

    options: dict[str, Plain]
    diagnostics: dict[str, Plain]


class JudgedFigures(Figures):
    """Results that are computed from embeddings.

    Attributes:
        fits: How each score was fitted.
        groups: Parts of the unknown images by name; of ``ood``, one each data set.
        calibration: Of the closed-set probabilities.
        threshold: One threshold, and what it accepts.
        per_class: Figures class by class.
        not_served: Scores that the model cannot serve, with the reason.
        preset: With --preset: the scores by its conventions.
    """

    fits: NotRequired[dict[Name, Fit]]
    groups: dict[Name, Group]
    calibration: Calibration
    threshold: Threshold
    per_class: PerClass
    not_served: dict[str, str]
    preset: NotRequired[PresetFigures]


class OpenSetResults(Results, JudgedFigures):
    """The results of ``osr`` and ``ood``.

    Attributes:
        means: ``ood``: ``near`` and ``far``.
        accuracy_gate: Closed-set accuracy against a reference; null where none is known.
        trivial: Pixel statistics of all unknown images; null where they were not measured.
        duplicates: Whether unknown images are copies of known ones; null where it was not looked for.
        sensitivity: By name of the score, with --sensitivity.
        tuning: With --tune: how options were picked.
    """

    means: NotRequired[dict[str, Mean] | None]
    accuracy_gate: NotRequired[AccuracyGate | None]
    trivial: NotRequired[PixelStatistics | None]
    duplicates: NotRequired[Duplicates | None]
    sensitivity: NotRequired[dict[Name, Sensitivity] | None]
    tuning: NotRequired[Tuning]
