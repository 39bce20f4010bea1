"""Attribution maps from captured layers: the differentiated scores, the methods, and the fusion of layers."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradmix_timm.ops import as_targets, image_size
from gradmix_timm.records import AttributionMap, Captured
from gradmix_timm.registry import Registry

from .capture import capture, input_gradient
from .layers import resolve_layers
from .model_guard import check_classifies, unwrap

__all__ = [
    'CONTROLS', 'METHODS', 'TARGET_SCORES', 'attribute', 'capture_for', 'fuse', 'layer_maps', 'score_function',
    'to_pixels', 'two_classes',
]

#: Controls without a model: a random position, the centre of the image.
CONTROLS = ('random', 'center')

#: Differentiated scores: (logits float32 [B, K], labels) -> float32 [B].
TARGET_SCORES: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry('score')
#: How activation and gradient make a map: (A, G) float32 [B, C, h, w] -> [B, h, w], before its ReLU.
METHODS: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry('attribution')


def two_classes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A single logit z, the log-odds of the second of two classes, as the logits of both: -z / 2 and z / 2.

    Args:
        logits: [B, K]; those of more than one class stay as they are.
        labels: int64 [B] or float [B, K]; the share of the second class, [B, 1], becomes that of both.

    Example:
        >>> two_classes(torch.tensor([[3.]]), torch.tensor([0]))
        (tensor([[-1.5000,  1.5000]]), tensor([0]))
    """
    if logits.shape[1] != 1:
        return logits, labels
    if labels.shape == logits.shape:
        labels = torch.cat([1 - labels, labels], 1)
    return torch.cat([-logits, logits], 1) / 2, labels


def _weigh(values: Tensor, labels: Tensor) -> Tensor:
    """The entry of each row's label, or their sum weighted by soft labels."""
    if labels.dim() == 1:
        return values.gather(1, labels[:, None])[:, 0]
    return (values * labels).sum(1)


@TARGET_SCORES.register('evidence', 'log-odds of the label, z_y - logsumexp of the others')
def evidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-odds of the label: z_y - logsumexp_{k != y} z_k, float32 [B].

    Its gradient is that of -CE divided by (1 - p_y): the same direction for every image, without fading as the model
    grows sure. Soft labels [B, K] weight the log-odds of every class. A single logit z is that of the second
    of two classes: z for label 1, -z for label 0.
    """
    logits, labels = two_classes(logits, labels)
    if labels.dim() == 1:
        own = F.one_hot(labels, logits.shape[1]).bool()
        return _weigh(logits, labels) - logits.masked_fill(own, -torch.inf).logsumexp(1)
    # log(1 - p) is exact from p below the top class (p <= 1/2); for the top class leave it out of the sum instead.
    top = F.one_hot(logits.argmax(1), logits.shape[1]).bool()
    total = logits.logsumexp(1, keepdim=True)
    others = logits.masked_fill(top, -torch.inf).logsumexp(1, keepdim=True)
    share = (logits - total).exp().masked_fill(top, 0.0)
    return _weigh(logits - torch.where(top, others, total + torch.log1p(-share)), labels)


@TARGET_SCORES.register('logit', "the label's logit z_y")
def logit(logits: Tensor, labels: Tensor) -> Tensor:
    """z_y, or the logits weighted by soft labels, float32 [B]; of a single one see :func:`two_classes`."""
    if labels.shape != logits.shape:  # a multi-hot label has a logit of its own, one of one too
        logits, labels = two_classes(logits, labels)
    return _weigh(logits, labels)


@TARGET_SCORES.register('loss', "+cross-entropy, the direction of the authors' code: evidence against the label")
def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, float32 [B]; of a single logit see :func:`two_classes`."""
    logits, labels = two_classes(logits, labels)
    return -_weigh(logits.log_softmax(1), labels)


def score_function(score: str | Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A registered score by name, or the callable, whose return value is then checked.

    Raises:
        ValueError: An unknown name; in the call, a result other than one number per image.
    """
    if not callable(score):
        return TARGET_SCORES[score]

    def checked(logits: Tensor, labels: Tensor) -> Tensor:
        values = score(logits, labels)
        if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f'a score is one number per image, (logits, labels) -> [{logits.shape[0]}], got {got}')
        return values

    return checked


def _checked_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels that fit the logits, on their device.

    Raises:
        ValueError: Another shape, kind or range.
    """
    batch, classes = logits.shape
    if labels.dim() == 2 and labels.shape == logits.shape and labels.is_floating_point():
        return labels.to(logits.device)
    if labels.shape != (batch,) or labels.dtype != torch.int64:
        raise ValueError(f'expected labels int64 [{batch}] or float [{batch}, {classes}], got {labels.dtype} '
                         f'{list(labels.shape)}')
    low, high, last = int(labels.min()), int(labels.max()), max(classes, 2) - 1  # a single logit is of two classes
    if low < 0 or high > last:
        raise ValueError(f'labels run from {low} to {high}, expected 0..{last}, the classes of the model')
    return labels.to(logits.device)


@METHODS.register('layercam', 'sum over channels of relu(G) * A (LayerCAM, Jiang et al. 2021)')
def layercam(activation: Tensor, gradient: Tensor) -> Tensor:
    """LayerCAM: sum_c relu(G) * A."""
    return (gradient.relu() * activation).sum(1)


@METHODS.register('hirescam', 'sum over channels of G * A (HiResCAM, arXiv:2011.08891); keeps signed activations')
def hirescam(activation: Tensor, gradient: Tensor) -> Tensor:
    """HiResCAM: sum_c G * A."""
    return (gradient * activation).sum(1)


@METHODS.register('gradcam', 'sum over channels of mean(G) * A (Grad-CAM, arXiv:1610.02391)')
def gradcam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM: sum_c mean_hw(G) * A."""
    return (gradient.mean((2, 3), keepdim=True) * activation).sum(1)


@METHODS.register('input-gradient', 'norm over channels of the gradient at the input; a full backward')
def _input_gradient(activation: Tensor, gradient: Tensor) -> Tensor:
    """Euclidean norm over channels of d score / d image."""
    return gradient.norm(dim=1)


def layer_maps(captured: Sequence[Captured], method: str = 'layercam') -> list[Tensor]:
    """One map a layer, float32 [B, h, w] >= 0, each row divided by its own maximum; a flat or broken row is all zero.

    No absolute epsilon: maxima at initialisation run from 1e-12 to 1 over timm's families.
    """
    maps = []
    for layer in captured:
        raw = METHODS[method](layer.activation.float(), layer.gradient.float()).relu()
        peak = raw.amax((1, 2), keepdim=True)
        usable = peak.isfinite() & (peak > 0)
        maps.append(torch.where(usable, raw / peak, torch.zeros_like(raw)))
    return maps


def fuse(maps: Sequence[Tensor], image_size: tuple[int, int]) -> AttributionMap:
    """Maps of several layers resized bilinearly to the finest grid among them, summed, divided by the row's sum.

    Args:
        maps: float32 [B, h_l, w_l], from :func:`layer_maps`.
        image_size: (H, W), for the stride.
    """
    grid = max(((m.shape[1], m.shape[2]) for m in maps), key=lambda g: g[0] * g[1])
    total = torch.stack([to_pixels(m, grid) for m in maps]).sum(0)
    mass = total.sum((1, 2), keepdim=True)
    degenerate = mass[:, 0, 0] <= 0
    share = torch.where(mass > 0, total / mass, torch.zeros_like(total))
    return AttributionMap(share, degenerate, (image_size[0] / grid[0], image_size[1] / grid[1]))


def to_pixels(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps on a grid, resized bilinearly (align_corners=False) to pixels or a finer grid: float32 [B, H, W]."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return F.interpolate(maps[:, None], size=size, mode='bilinear', align_corners=False)[:, 0]


def capture_for(model: nn.Module, images: Tensor, labels: Tensor, layers: object = None, method: str = 'layercam',
                score: str | Callable = 'evidence') -> list[Captured]:
    """Capture what ``method`` needs in one pass: the target layers, or the input for 'input-gradient'."""
    function = score_function(score)
    if method == 'input-gradient':
        return [input_gradient(model, images, labels, function)]
    targets = resolve_layers(model, (images.shape[1], *image_size(images)), layers)
    return capture(model, images, labels, targets, function)


@torch.compiler.disable
def attribute(model: nn.Module, images: Tensor, labels: Tensor, layers: object = None, method: str = 'layercam',
              score: str | Callable = 'evidence') -> AttributionMap:
    """Attribution map of each image for its label; the model is left bit for bit unchanged.

    G = d score / d A at the layer's output A. layercam: relu(sum_c relu(G) A); hirescam: relu(sum_c G A); gradcam:
    relu(sum_c mean(G) A). Each layer's map is divided by its own per-image maximum in float32, resized to the finest
    grid among the layers, summed, divided by its sum.

    Args:
        model: Any classifier, timm's or not, in any mode.
        images: [B, C, H, W] float, B above 0.
        labels: Class indices [B] (a tensor of any integer type, an array, a list) or float [B, K]; 0 or 1 where the
            model has a single logit.
        layers: None for the default rule, stage numbers (-1 the deepest usable), module names, or several of them.
        method: A name of ``METHODS``.
        score: A name of ``TARGET_SCORES`` or a callable ``(logits, labels) -> [B]``.

    Returns:
        Map float32 [B, h, w] on the finest grid; degenerate rows (flat or not finite) are all zero and flagged.

    Raises:
        ValueError: Unknown layer, method or score; a model without a spatial map; images, labels or a callable's result
            of another shape, kind or range.
        TypeError: Labels are not numbers.
    """
    if method in CONTROLS:
        raise ValueError(f'{method!r} is a control without a map; maps are made by: {", ".join(METHODS)}')
    METHODS[method]
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point() or not len(images):
        got = f'{images.dtype} {list(images.shape)}' if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f'expected normalised float images [B, C, H, W], B above 0, got {got}')
    check_classifies(unwrap(model))
    function, targets = score_function(score), as_targets(labels)

    def checked(logits: Tensor, given: Tensor) -> Tensor:
        return function(logits, _checked_labels(given, logits))

    captured = capture_for(model, images, targets, layers, method, checked)
    return fuse(layer_maps(captured, method), image_size(images))
