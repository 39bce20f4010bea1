"""The corruptions of CIFAR-C, Tiny-ImageNet-C and ImageNet-C: made on the fly, or read from the published files."""
from .catalog import (
    alexnet_errors,
    corrupt,
    find_corruptions,
    list_corruptions,
    nearest_scale,
    official_name,
    severity_constants,
)
from .images import CorruptedSource, OfficialSet, corrupted, open_official

__all__ = [
    'CorruptedSource', 'OfficialSet', 'alexnet_errors', 'corrupt', 'corrupted',
    'find_corruptions', 'list_corruptions', 'nearest_scale', 'official_name', 'open_official', 'severity_constants']
