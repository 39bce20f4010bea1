"""A classifier that can predict "unknown": a checkpoint, a score, and a threshold from held-out known images."""
from .manifest import UNKNOWN, Prediction
from .model import OpenSetClassifier

__all__ = ['UNKNOWN', 'OpenSetClassifier', 'Prediction']
