"""Evaluation of any model on known and unknown images: :func:`evaluate`, and the records that its steps pass on."""
from .door import evaluate
from .images import EvaluationImages, UnknownImages
from .model import EvaluatedModel
from .result import Evaluation, Predictions
from .settings import DataOptions, EvaluationSettings
from .steps import evaluate_images

__all__ = [
    'DataOptions', 'EvaluatedModel', 'Evaluation', 'EvaluationImages', 'EvaluationSettings', 'Predictions',
    'UnknownImages', 'evaluate', 'evaluate_images']
