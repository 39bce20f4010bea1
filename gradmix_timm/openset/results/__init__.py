"""What an evaluation leaves in files: types of their content, and reading that checks it."""
from .base import ClosedSet, Manifest, Results, RunResults, ScoreFigures
from .corrupt_and_probe import Corruption, CorruptionGroup, CorruptionResults, ProbeGroup, ProbeResults
from .files import (
    ARRAYS,
    MISTAKES,
    MIXES,
    RESULTS,
    ClosePair,
    Mistake,
    Mistakes,
    Mixes,
    read_arrays,
    read_mistakes,
    read_mixes,
    read_parts,
    read_results,
    read_run,
)
from .open_set import Group, OpenSetResults, PartResults, Threshold
from .shortcut import Evidence, ShortcutGroup, ShortcutResults

__all__ = [
    'ARRAYS', 'MISTAKES', 'MIXES', 'RESULTS', 'ClosePair', 'ClosedSet', 'Corruption', 'CorruptionGroup',
    'CorruptionResults', 'Evidence', 'Group', 'Manifest', 'Mistake', 'Mistakes', 'Mixes', 'OpenSetResults',
    'PartResults', 'ProbeGroup', 'ProbeResults', 'Results', 'RunResults', 'ScoreFigures', 'ShortcutGroup',
    'ShortcutResults', 'Threshold', 'read_arrays', 'read_mistakes', 'read_mixes', 'read_parts', 'read_results',
    'read_run']
