"""Attribution maps of a model's evidence: target layers, one borrowed pass, fused maps."""
from .capture import activations, capture, check_input_gradient, watch
from .class_attention import check_class_attention, watch_class_attention
from .layers import TargetLayer, default_layer, resolve_layers, usable_layers
from .maps import (
    CONTROLS,
    METHODS,
    TARGET_SCORES,
    attribute,
    capture_for,
    fuse,
    layer_maps,
    score_function,
    to_pixels,
    two_classes,
)
from .model_guard import borrow, unwrap

__all__ = [
    'CONTROLS',
    'METHODS',
    'TARGET_SCORES',
    'TargetLayer',
    'activations',
    'attribute',
    'borrow',
    'capture',
    'capture_for',
    'check_class_attention',
    'check_input_gradient',
    'default_layer',
    'fuse',
    'layer_maps',
    'resolve_layers',
    'score_function',
    'to_pixels',
    'two_classes',
    'unwrap',
    'usable_layers',
    'watch',
    'watch_class_attention',
]
