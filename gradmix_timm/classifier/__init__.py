"""A classifier that can predict "unknown": a checkpoint, a score, and a threshold from held-out known images."""
from .model import UNKNOWN, OpenSetClassifier, Prediction

__all__ = ['UNKNOWN', 'OpenSetClassifier', 'Prediction']
