"""A classifier that says "unknown": a checkpoint, a score and a threshold from held-out known images, ready to use."""
from .model import UNKNOWN, OpenSetClassifier, Prediction

__all__ = ['UNKNOWN', 'OpenSetClassifier', 'Prediction']
