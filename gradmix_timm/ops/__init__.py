"""Pure tensor functions: no randomness of their own, no model."""
from .boxes import (
    argmax_center,
    box_lam,
    box_mask,
    box_mass,
    boxes_at,
    boxes_inside,
    image_size,
    sample_center,
    share_of,
    whole_boxes,
    window_boxes,
)
from .paste import blend, like, noise_fill, paste, paste_donors, paste_resized
from .saliency import spectral_residual
from .targets import as_targets, check_rows, logits_of, mix_targets, soft_targets
from .transfer import to_device
from .warp import rotation, warp

__all__ = [
    'argmax_center',
    'as_targets',
    'blend',
    'box_lam',
    'box_mask',
    'box_mass',
    'boxes_at',
    'boxes_inside',
    'check_rows',
    'image_size',
    'like',
    'logits_of',
    'mix_targets',
    'noise_fill',
    'paste',
    'paste_donors',
    'paste_resized',
    'rotation',
    'sample_center',
    'share_of',
    'soft_targets',
    'spectral_residual',
    'to_device',
    'warp',
    'whole_boxes',
    'window_boxes',
]
