"""Data sets, and the class cuts of the open-set protocols."""
from .cuts import CutDataset, class_names, hold_out, labels_of, select_classes, take
from .images import ImageSource, UnreadableImageError
from .naming import find_classes
from .protocols import (
    ClassSplit,
    check_split,
    custom_split,
    duplicates,
    list_families,
    list_protocols,
    load_split,
    n_distinct,
    n_trials,
)
from .sources import list_splits, open_dataset
from .views import TwoViews, collate_views

__all__ = [
    'ClassSplit',
    'CutDataset',
    'ImageSource',
    'TwoViews',
    'UnreadableImageError',
    'check_split',
    'class_names',
    'collate_views',
    'custom_split',
    'duplicates',
    'find_classes',
    'hold_out',
    'labels_of',
    'list_families',
    'list_protocols',
    'list_splits',
    'load_split',
    'n_distinct',
    'n_trials',
    'open_dataset',
    'select_classes',
    'take',
]
