"""Checkpoints: the record of a run, reading of any file that timm can load, and atomic writing."""
from .allowed import Count, DataConfig, Name, check_model_kwargs, check_model_name
from .atomic import atomic_path, write_atomic
from .build import build_model, check_input, find_device, pretraining
from .projection import ProjectionHead
from .reading import Loaded, load_checkpoint
from .record import KEY, RunRecord, check_known, versions

__all__ = [
    'KEY', 'Count', 'DataConfig', 'Loaded', 'Name', 'ProjectionHead', 'RunRecord', 'atomic_path', 'build_model',
    'check_input', 'check_known', 'check_model_kwargs', 'check_model_name', 'find_device', 'load_checkpoint',
    'pretraining', 'versions', 'write_atomic']
