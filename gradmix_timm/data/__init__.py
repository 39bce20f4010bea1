"""Data sets, and the class cuts of the open-set protocols."""
from .class_names import find_classes, shared_classes
from .fingerprint import fingerprint
from .held_out import Parts, recorded_parts, split_flat
from .identity import Overlap, check_apart, overlap
from .images import ImageSource, UnreadableImageError
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
from .recode import Codec, parse_codec, recode
from .shortcut import Shortcut, ShortcutSource, bearing, canonical_name, inner_name, parse_shortcut, viewed
from .sources import evaluated_split, is_flat, list_splits, open_dataset
from .subsets import CutDataset, class_names, hold_out, labels_of, select_classes, take
from .synthetic import list_made, made_images
from .unknown_sets import Outside, UnknownSpec, check_specs, open_outside, parse_unknown
from .views import TwoViews, collate_views

__all__ = [
    'ClassSplit',
    'Codec',
    'CutDataset',
    'ImageSource',
    'Outside',
    'Overlap',
    'Parts',
    'Shortcut',
    'ShortcutSource',
    'TwoViews',
    'UnknownSpec',
    'UnreadableImageError',
    'bearing',
    'canonical_name',
    'check_apart',
    'check_specs',
    'check_split',
    'class_names',
    'collate_views',
    'custom_split',
    'duplicates',
    'evaluated_split',
    'find_classes',
    'fingerprint',
    'hold_out',
    'inner_name',
    'is_flat',
    'labels_of',
    'list_families',
    'list_made',
    'list_protocols',
    'list_splits',
    'load_split',
    'made_images',
    'n_distinct',
    'n_trials',
    'open_dataset',
    'open_outside',
    'overlap',
    'parse_codec',
    'parse_shortcut',
    'parse_unknown',
    'recode',
    'recorded_parts',
    'select_classes',
    'shared_classes',
    'split_flat',
    'take',
    'viewed',
]
