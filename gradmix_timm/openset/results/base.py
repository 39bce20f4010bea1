"""What every command writes into results.json, as types."""
from typing import Annotated, Literal, NotRequired, TypedDict

from gradmix_timm.schema import Length, Plain, Range

__all__ = ['ClosedSet', 'Count', 'Facts', 'Figures', 'Interval', 'Manifest', 'Name', 'Names', 'RankMetric', 'Results',
           'RunFacts', 'RunResults', 'ScoreFigures', 'Scored', 'Share', 'Size', 'StudyCell']


def _is_rate(key: str) -> str:
    """The expected form of a key that is not a rate, else ''."""
    try:
        return '' if 0 <= float(key) <= 1 else 'a rate from 0 to 1'
    except ValueError:
        return 'a rate from 0 to 1, as text'


# 1 minus the end of an interval may lie a rounding error outside.
Share = Annotated[float, Range(-1e-9, 1 + 1e-9)]
Interval = Annotated[list[Share], Length(2, 2)]
Count = Annotated[int, Range(0)]
Size = Annotated[int, Range(1)]
Name = Annotated[str, Length(1, 4096)]
Names = list[Name]
#: Keys of :class:`ScoreFigures` that are metrics, in the order of the printed table.
RankMetric = Literal[
    'auroc', 'aupr_in', 'aupr_out', 'fpr_at_95_known', 'fpr_at_95_unknown', 'detection_error', 'oscr']


class ScoreFigures(TypedDict):
    """Rank metrics of one score; fractions from 0 to 1. Knownness: higher = more known.

    Attributes:
        auroc: Chance that a known image scores above an unknown one.
        aupr_in: Average precision with the knowns as positives.
        aupr_out: Average precision with the unknowns as positives.
        fpr_at_95_known: Unknowns accepted where at least 95% of the knowns are accepted.
        fpr_at_95_unknown: Knowns rejected where at least 95% of the unknowns are rejected.
        detection_error: Smallest mean of both error rates over all thresholds.
        oscr: Area under correctly classified knowns over accepted unknowns.
        top1: Known test images whose class the score's own predictor gets right, the largest that OSCR can be; of
            scores without one (all but the class-wise neighbours) the head's, as in ``closed_set``.
        ccr_at_fpr: Knowns accepted with their own class, by the share of unknowns accepted (a rate as text).
        tie_share: Pairs of a known and an unknown image with equal scores.
        degenerate: Whether all scores are one value.
        infinite: Number of infinite scores; they are ranked.
        auroc_ci: 95% interval (DeLong).
        aupr_in_ci: 95% interval (stratified bootstrap), as all that follow.
        aupr_out_ci: The same.
        fpr_at_95_known_ci: The same.
        fpr_at_95_unknown_ci: The same.
        detection_error_ci: The same.
        oscr_ci: The same.
    """

    auroc: Share
    aupr_in: Share
    aupr_out: Share
    fpr_at_95_known: Share
    fpr_at_95_unknown: Share
    detection_error: Share
    oscr: Share
    top1: NotRequired[Share]
    ccr_at_fpr: NotRequired[dict[Annotated[str, _is_rate], Share]]
    tie_share: NotRequired[Share]
    degenerate: NotRequired[bool]
    infinite: NotRequired[Count]
    auroc_ci: NotRequired[Interval]
    aupr_in_ci: NotRequired[Interval | None]
    aupr_out_ci: NotRequired[Interval | None]
    fpr_at_95_known_ci: NotRequired[Interval | None]
    fpr_at_95_unknown_ci: NotRequired[Interval | None]
    detection_error_ci: NotRequired[Interval | None]
    oscr_ci: NotRequired[Interval | None]


class ClosedSet(TypedDict):
    """Accuracy among the known classes alone.

    Attributes:
        top1: Known test images whose class is predicted correctly.
        top1_ci: 95% interval (Wilson).
    """

    top1: Share
    top1_ci: Interval


class StudyCell(TypedDict):
    """Which cell of a study a run is.

    Attributes:
        levels: Level of each axis.
    """

    levels: NotRequired[dict[str, Plain]]


class Manifest(TypedDict):
    """What the figures depend on. Entries differ by command; all are shown at the end of the report.

    Attributes:
        model: timm's name.
        parameters: Their number.
        checkpoint_sha256: Of the file.
        epoch: Of the checkpoint.
        metric: That the checkpoint was selected by.
        moving_average: Whether the weights are the exponential moving average.
        mixer: Registered name of the run's mixer, or null.
        mixer_options: Its options.
        objective: Of the training run.
        trained_with: Versions of packages in training.
        pretraining: Where the weights started: ``none``, a timm tag, or null where it is not known.
        run_folder: Folder of the checkpoint.
        data: Data set, folder, splits and numbers of images.
        list_sha256: Hash of each list of images.
        preprocessing: From file to tensor.
        preprocessing_sha256: Its hash.
        settings: Batch size, precision, resamples.
        extraction: Seconds and images of the forward passes, rows taken from the cache.
        command: As typed.
        study: Of a cell of ``gradmix-study``.
    """

    model: Name
    parameters: NotRequired[Count]
    checkpoint_sha256: NotRequired[str | None]
    epoch: NotRequired[int | None]
    metric: NotRequired[float | None]
    moving_average: NotRequired[bool | None]
    mixer: NotRequired[str | None]
    mixer_options: NotRequired[dict[str, Plain] | None]
    objective: NotRequired[str | None]
    trained_with: NotRequired[dict[str, str]]
    pretraining: NotRequired[str | None]
    run_folder: NotRequired[str]
    data: NotRequired[dict[str, Plain]]
    list_sha256: NotRequired[dict[str, str]]
    preprocessing: NotRequired[dict[str, Plain]]
    preprocessing_sha256: NotRequired[str]
    settings: NotRequired[dict[str, Plain]]
    extraction: NotRequired[dict[str, Plain]]
    command: NotRequired[str]
    study: NotRequired[StudyCell]


class RunFacts(TypedDict):
    """What was evaluated, as ``compare`` reads it.

    Attributes:
        format: 1.
        command: ``corrupt``, ``probe`` or ``shortcut``; missing after ``osr`` and ``ood``.
        protocol: Name of the protocol; ``ood`` after that command; null if classes were named individually.
        family: Of the protocol's trials, or null.
        trial: Number, or null.
        seed: Of the training run, or null.
        manifest: What the figures depend on.
    """

    format: Literal[1]
    command: NotRequired[str]
    protocol: str | None
    family: str | None
    trial: int | None
    seed: int | None
    manifest: Manifest


class Facts(RunFacts):
    """What was evaluated, where and when.

    Attributes:
        checkpoint: File that was evaluated, or timm's name of the model.
        device: Of the forward passes.
        versions: Of packages.
        created: Time, ISO 8601.
        skipped: Files that cannot be read, by set of images.
    """

    checkpoint: str
    device: str
    versions: dict[str, str]
    created: str
    skipped: NotRequired[dict[str, list[str]]]


class Scored(TypedDict):
    """Metrics of known against unknown images.

    Attributes:
        scores: By name of the score, all unknown images together.
    """

    scores: dict[Name, ScoreFigures]


class Figures(Scored):
    """What every command measures.

    Attributes:
        known_classes: In head order.
        unknown_classes: Names; of data sets after ``ood``.
        n_known: Known test images.
        n_unknown: Unknown images.
        closed_set: Accuracy among the known classes.
    """

    known_classes: Annotated[Names, Length(1)]
    unknown_classes: Names
    n_known: Size
    n_unknown: Count
    closed_set: ClosedSet


class RunResults(RunFacts, Figures):
    """What ``compare`` reads of an evaluation."""


class Results(Facts, RunResults):
    """What all commands write."""
