"""One forward and a partial backward: outputs and gradients of the score at the target layers."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from gradmix_timm.ops import image_size, logits_of
from gradmix_timm.records import Captured

from .dry_run import HALF_SCALE, Size, ask, called
from .layers import TargetLayer, fold
from .model_guard import borrow, frozen, unwrap

__all__ = ['Watch', 'activations', 'capture', 'check_input_gradient', 'input_gradient', 'watch']

ScoreFn = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def _plain_modes(device_type: str) -> Iterator[None]:
    """Leave inference mode, record nothing yet, and keep the caller's autocast without writing to its weight cache."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
            stack.enter_context(torch.autocast(device_type, dtype=dtype, cache_enabled=False))
        yield


def _element(output: object, index: int | None) -> Tensor:
    return output if index is None else output[index]  # type: ignore[index,return-value]


def _with_element(output: object, index: int | None, tensor: Tensor) -> object:
    if index is None:
        return tensor
    items = list(output)  # type: ignore[call-overload]
    items[index] = tensor
    return type(output)(*items) if hasattr(output, '_fields') else type(output)(items)  # type: ignore[call-arg]


class Watch:
    """Outputs of the target layers of one forward pass, kept for a gradient.

    The layer's consumers get a clone: an in-place operation behind the layer would otherwise overwrite what is kept.

    Args:
        targets: Layers to watch.
        cut: Start the graph at the first target reached (separate pass); else keep the forward's own graph.
    """

    def __init__(self, targets: Sequence[TargetLayer], cut: bool) -> None:
        self.targets = tuple(targets)
        self.outputs: list[Tensor | None] = [None] * len(self.targets)
        self.fired = [0] * len(self.targets)
        self._cut = cut

    def hook(self, position: int) -> Callable:
        """The forward hook of one target."""
        index = self.targets[position].index

        def keep(module: nn.Module, args: object, output: object) -> object:
            self.fired[position] += 1
            tensor = _element(output, index)
            if not tensor.requires_grad:  # nothing before it is trained, or the graph starts here
                tensor = tensor.detach().requires_grad_()
            if self._cut:
                torch.set_grad_enabled(True)
            self.outputs[position] = tensor
            return _with_element(output, index, tensor.clone())

        return keep

    def captured(self, logits: Tensor, score: Tensor, image_size: tuple[int, int], retain_graph: bool = False,
                 ) -> list[Captured]:
        """Gradient of the summed score at every target; no parameter's ``.grad`` is touched.

        Args:
            logits: [B, K], for the record.
            score: float32 [B], or a scalar already summed over images.
            image_size: (H, W) of the images, for tokens.
            retain_graph: Keep the graph for a training backward.

        Raises:
            RuntimeError: A target did not run exactly once.
            ValueError: A target has no path to the score.
        """
        for target, count in zip(self.targets, self.fired, strict=True):
            if count != 1:
                raise RuntimeError(f'layer {target} ran {count} times in one forward, expected once; '
                                   'choose another, layers=... (--gradmix-layers)')
        outputs = [output for output in self.outputs if output is not None]
        half = any(output.dtype == torch.float16 for output in outputs)
        scale = HALF_SCALE if half else 1.0
        grads = torch.autograd.grad(score.sum() * scale, outputs, retain_graph=retain_graph, allow_unused=True)
        found = []
        for target, output, grad in zip(self.targets, outputs, grads, strict=True):
            if grad is None:
                raise ValueError(f'layer {target} does not lead to the logits; choose another, layers=... '
                                 '(--gradmix-layers)')
            found.append(Captured(
                activation=fold(output.detach(), target, image_size),
                gradient=fold(grad.float() / scale if half else grad, target, image_size),
                logits=logits.detach(),
                layer=str(target)))
        return found


@contextmanager
def watch(model: nn.Module, targets: Sequence[TargetLayer], cut: bool = False) -> Iterator[Watch]:
    """Hooks on the targets for the duration of the block; with ``cut=False`` a training forward serves attribution too.

    Example:
        >>> from gradmix_timm.attribution import resolve_layers
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))
        >>> with watch(net, resolve_layers(net, (1, 8, 8))) as seen:
        ...     logits = net(torch.rand(3, 1, 8, 8))
        >>> seen.captured(logits, logits[:, 0], (8, 8), retain_graph=True)[0].gradient.shape
        torch.Size([3, 4, 8, 8])
    """
    kept = Watch(targets, cut)
    inner = unwrap(model)
    handles = []
    try:
        for position, target in enumerate(kept.targets):
            handles.append(_module_of(inner, target).register_forward_hook(kept.hook(position)))
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _module_of(model: nn.Module, target: TargetLayer) -> nn.Module:
    try:
        return model.get_submodule(target.name)
    except AttributeError as error:
        raise ValueError(f'{called(model)} has no layer {target}: it was found in another model, or before this one '
                         'was changed; find layers again, resolve_layers(model, input_size, ...)') from error


def _own_copy(model: nn.Module, images: Tensor) -> Tensor:
    """The images for a pass of their own: a copy, as some models write on their input, in a dtype that the model takes.

    A training step's forward may run under autocast or on images cast later; this pass meets the images as they come.
    """
    weights = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    # Norms may be kept in float32 in a model of half precision; their weights have one dimension.
    dtypes = [weight.dtype for weight in weights if weight.dim() > 1] or [weight.dtype for weight in weights]
    return images.clone() if not dtypes or images.dtype in dtypes else images.to(dtypes[0])


def _plain(tensor: Tensor) -> Tensor:
    """An inference tensor cannot be saved for backward: copy it."""
    return tensor.clone() if tensor.is_inference() else tensor


def capture(model: nn.Module, images: Tensor, labels: Tensor, targets: Sequence[TargetLayer], score: ScoreFn,
            ) -> list[Captured]:
    """One forward, and a backward that stops at the target nearest the input; before it no graph is kept.

    Works in training and evaluation, under ``no_grad``, ``inference_mode`` and autocast, on frozen backbones, and on
    the module inside DDP or ``torch.compile``.

    Args:
        model: Classifier; wrappers are taken off, state is borrowed (see :func:`borrow`).
        images: [B, C, H, W] on the model's device; another dtype than any parameter's is cast to the model's.
        labels: For ``score``, int64 [B] or float [B, K].
        targets: Layers from :func:`gradmix_timm.attribution.resolve_layers`.
        score: ``(logits float32 [B, K], labels) -> [B]``.

    Returns:
        One record a target, in the order of ``targets``.
    """
    device_type = images.device.type
    with (borrow(model) as inner, frozen(inner), _plain_modes(device_type),
          watch(inner, targets, cut=True) as kept):
        logits = logits_of(inner(_own_copy(inner, images)))
        with torch.autocast(device_type, enabled=False):
            logits = logits.float()
            return kept.captured(logits, score(logits, _plain(labels)), image_size(images))


def activations(model: nn.Module, images: Tensor, targets: Sequence[TargetLayer]) -> list[Tensor]:
    """Outputs of the target layers on their grids, [B, C, h, w], from one borrowed forward without a gradient."""
    with borrow(model) as inner, _plain_modes(images.device.type), watch(inner, targets) as kept:
        inner(_own_copy(inner, images))
        return [fold(output.detach(), target, image_size(images))
                for target, output in zip(kept.targets, kept.outputs, strict=True) if output is not None]


def input_gradient(model: nn.Module, images: Tensor, labels: Tensor, score: ScoreFn) -> Captured:
    """The same at the input: the whole graph, p = 1.

    Returns:
        A record with ``activation`` the images and ``gradient`` d score / d images, [B, C, H, W].
    """
    device_type = images.device.type
    with borrow(model) as inner, frozen(inner), _plain_modes(device_type), torch.enable_grad():
        leaf = _plain(images).detach().requires_grad_()
        logits = logits_of(inner(_own_copy(inner, leaf)))  # a model that writes on its input cannot have a leaf
        _check_path(inner, logits)
        with torch.autocast(device_type, enabled=False):
            scale = HALF_SCALE if logits.dtype == torch.float16 else 1.0
            logits = logits.float()
            grad = torch.autograd.grad(score(logits, _plain(labels)).sum() * scale, leaf)[0].float() / scale
    return Captured(activation=leaf.detach(), gradient=grad, logits=logits.detach(), layer='input')


def check_input_gradient(model: nn.Module, input_size: Size) -> None:
    """Check once, on two noise images, that the model takes (C, H, W) and that a gradient reaches them.

    Raises:
        ValueError: It does not; the message gives the remedy.
    """
    with borrow(model) as inner, frozen(inner):
        device_type = next((parameter.device.type for parameter in inner.parameters()), 'cpu')
        with _plain_modes(device_type), torch.enable_grad():
            _check_path(inner, ask(inner, input_size, requires_grad=True))


def _check_path(model: nn.Module, logits: Tensor) -> None:
    if not logits.requires_grad:
        raise ValueError(f'no gradient of the logits of {called(model)} reaches its input (a part of it runs under '
                         "no_grad or is detached), so that 'input-gradient' has no map; choose another, "
                         'attribution=... (--gradmix-attribution)')
