"""What a classifier says of an image, and what a saved one says of itself: plain values."""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ['UNKNOWN', 'Manifest', 'Prediction']

UNKNOWN = 'unknown'


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one image; ``label, knownness = prediction`` takes it apart.

    Attributes:
        label: Name of a known class, or ``'unknown'``. The class is the model's, or that of a score with a predictor of
            its own (``class-knn``, ``class-knn-share``), and then need not be the first of ``top_k``.
        knownness: The score; higher = more known. Accepted if at least the classifier's threshold.
        nearest: The known class that is predicted, whether the image is accepted or not.
        probability: Its softmax among the known classes by the model's head, in [0, 1]; it says nothing about unknown
            ones.
        top_k: By the same softmax the most probable known classes with their probabilities, in descending order.
        path: File of the image; None if it was handed in as pixels. Not compared.
    """

    label: str
    knownness: float
    nearest: str
    probability: float
    top_k: tuple[tuple[str, float], ...]
    path: Path | None = field(default=None, compare=False)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.label, self.knownness))

    def __getitem__(self, index: int) -> Any:
        return (self.label, self.knownness)[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything of a classifier except its weights and its fitted score; plain values, as in the saved file.

    Attributes:
        known_classes: Names in head order.
        threshold: An image is accepted if its knownness is at least this.
        known_acceptance: Share of new known images that is accepted on average, at least; None: the threshold was
            given.
        threshold_source: Description of what the threshold was set on.
        n_validation: Held-out images it was set on.
        model: timm's model name.
        model_kwargs: For ``timm.create_model``.
        data_config: Of :meth:`~gradmix_timm.data.preprocessing.Preprocessing.as_config`.
        amp_dtype: 'bfloat16', 'float16', or None for full precision; the threshold holds for this one.
        checkpoint: Name and SHA-256 of the file, and the run's protocol, family, trial, mixer and seed; empty of a live
            module.
    """

    known_classes: tuple[str, ...]
    threshold: float
    known_acceptance: float | None
    threshold_source: str
    n_validation: int
    model: str
    model_kwargs: dict[str, Any]
    data_config: dict[str, Any]
    amp_dtype: str | None
    checkpoint: dict[str, Any]

    def __post_init__(self) -> None:
        """Reject a class named like rejected images, and a threshold that is not finite."""
        if not math.isfinite(self.threshold):
            raise ValueError(f'threshold {self.threshold}: expected a finite number')
        if UNKNOWN in self.known_classes:
            raise ValueError(f'a known class is called {UNKNOWN!r}, which is what a rejected image is called; name the '
                             'classes otherwise, known_classes=[...] in head order')
