"""Files of an evaluation: types of their content, and readers that check it."""
from .base import ClosedSet, Facts, Figures, Interval, Manifest, RankMetric, Results, RunResults, Scored, ScoreFigures
from .conventions import PresetFigures, TunedScore, Tuning
from .corrupt_and_probe import (
    AurocBySide,
    ByCorruption,
    CorruptedFigures,
    Corruption,
    CorruptionGroup,
    CorruptionMeans,
    CorruptionResults,
    ProbeGroup,
    ProbeParameters,
    ProbeResults,
)
from .files import (
    ARRAYS,
    MISTAKES,
    MIXES,
    RESULTS,
    ClosePair,
    Mistake,
    Mistakes,
    Mixes,
    is_figures,
    read_arrays,
    read_figures,
    read_mistakes,
    read_mixes,
    read_parts,
    read_results,
    read_run,
)
from .open_set import (
    AccuracyGate,
    AtThreshold,
    Calibration,
    CalibrationErrors,
    Duplicates,
    Fit,
    Group,
    JudgedFigures,
    KnownClass,
    Mean,
    NearPair,
    OpenSetResults,
    PartGroup,
    PartResults,
    PerClass,
    PixelStatistics,
    Sensitivity,
    Statistic,
    Statistics,
    Threshold,
    UnknownClass,
    UnknownSet,
)
from .shortcut import Evidence, ShortcutGroup, ShortcutOfRun, ShortcutResults

__all__ = [
    'ARRAYS', 'MISTAKES', 'MIXES', 'RESULTS', 'AccuracyGate', 'AtThreshold', 'AurocBySide', 'ByCorruption',
    'Calibration', 'CalibrationErrors', 'ClosePair', 'ClosedSet', 'CorruptedFigures', 'Corruption', 'CorruptionGroup',
    'CorruptionMeans', 'CorruptionResults', 'Duplicates', 'Evidence', 'Facts', 'Figures', 'Fit', 'Group', 'Interval',
    'JudgedFigures', 'KnownClass', 'Manifest', 'Mean', 'Mistake', 'Mistakes', 'Mixes', 'NearPair', 'OpenSetResults',
    'PartGroup', 'PartResults', 'PerClass', 'PixelStatistics', 'PresetFigures', 'ProbeGroup', 'ProbeParameters',
    'ProbeResults', 'RankMetric', 'Results', 'RunResults', 'ScoreFigures', 'Scored', 'Sensitivity', 'ShortcutGroup',
    'ShortcutOfRun', 'ShortcutResults', 'Statistic', 'Statistics', 'Threshold', 'TunedScore', 'Tuning', 'UnknownClass',
    'UnknownSet', 'is_figures', 'read_arrays', 'read_figures', 'read_mistakes', 'read_mixes', 'read_parts',
    'read_results', 'read_run']
