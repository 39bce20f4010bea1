"""Data sets, and the class cuts of the open-set protocols."""
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

__all__ = [
    'ClassSplit',
    'check_split',
    'custom_split',
    'duplicates',
    'find_classes',
    'list_families',
    'list_protocols',
    'load_split',
    'n_distinct',
    'n_trials',
]
