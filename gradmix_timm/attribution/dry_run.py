"""The dry run: one forward and one backward on noise determine which modules have a map."""
from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gradmix_timm.ops import logits_of

from .grids import Hints, Reading, TargetLayer, read_grid
from .layer_candidates import inside_attention
from .model_guard import borrow, swapped

__all__ = ['HALF_SCALE', 'Finding', 'Size', 'ask', 'called', 'dry_run', 'hooked']

Size = tuple[int, int, int]

#: Scale of a float16 score: gradients below 6e-8 round to zero, and an untrained CaiT has none above it. Neither maps
#: nor whether a gradient is zero depend on scale.
HALF_SCALE = 1024.0

_BATCH = 2
_SEED = 20250512
_HEAD_STD = 0.02
_TINY_EPS = 1e-12
# |sum_c G A| as a share of sum_c |G A|: a few roundings in streams that a LayerNorm reads, at least 0.006 elsewhere,
# over the smallest models of timm's families.
_NO_SIGN = 0.002
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Output:
    """One tensor of a module's output.

    Attributes:
        index: Element of the tuple or list, else None.
        tensor: As the module gave it.
        reading: Its layout and grid.
        order: See :class:`TargetLayer`.
        giver: The first module that returned this tensor; the module itself unless it passes one through.
    """

    index: int | None
    tensor: Tensor
    reading: Reading
    order: tuple[int, ...] | None
    giver: str

    @property
    def cube(self) -> bool:
        """[B, n, n, n]: the shape fits NCHW as well as NHWC."""
        return self.tensor.dim() == 4 and len(set(self.tensor.shape[1:])) == 1


class Givers:
    """Which module gave a tensor.

    Tensors are known by identity, so they are kept, and by version: an in-place ReLU gives back its input, but with
    another value.
    """

    def __init__(self) -> None:
        self._names: dict[tuple[int, int], tuple[str, Tensor]] = {}

    def copy(self, tensor: Tensor, giver: str) -> Tensor:
        """A copy to hand on, known as ``giver``'s."""
        copied = tensor.clone()
        self._names[id(copied), copied._version] = giver, copied
        return copied

    def find(self, tensor: Tensor) -> str | None:
        """The giver of this very tensor, if it is one of the copies."""
        return self._names.get((id(tensor), tensor._version), (None, None))[0]


@dataclass
class Finding:
    """Result of the dry run for one named module.

    Attributes:
        name: Dotted module name.
        calls: How often it ran.
        seen: Where among all first firings it ran.
        layers: The elements of its output with a grid and a gradient on it, in order.
        reason: Why ``layers`` is empty, else ''.
        shapes: Its output in words.
        outputs: Everything in its output that has a grid.
    """

    name: str
    calls: int = 0
    seen: int = -1
    layers: list[TargetLayer] = field(default_factory=list)
    reason: str = 'it does not run in the forward pass'
    shapes: str = ''
    outputs: list[Output] = field(default_factory=list, repr=False)


def dry_run(model: nn.Module, input_size: Size, names: Sequence[str], hints: dict[str, Hints]) -> list[Finding]:
    """Run the model once on two noise images and differentiate the log-odds of labels 0 and 1 at every named module.

    The model is borrowed: flags, random streams and hooks are as before, no ``.grad`` and no buffer is written. Where
    nothing has a gradient because classifiers start at zero, the run is repeated with the outputs of the zero layers
    replaced by those of re-drawn throw-away copies.

    Args:
        model: Any classifier, wrapped or not.
        input_size: (C, H, W) of the images.
        names: Module names, all of them in the model.
        hints: Declarations of the model about some of them.

    Returns:
        One finding a name, in the order of ``names``.

    Raises:
        ValueError: The model does not take images of this size, or gives no logits.
    """
    with borrow(model) as inner, _grad_modes(inner), _without_eps(inner):
        findings = _run(inner, input_size, names, hints, [])
        if not any(finding.layers for finding in findings):
            zero = [module for module in inner.modules() if _is_zero(module)]
            if zero:
                findings = _run(inner, input_size, names, hints, zero)
    return findings


def ask(model: nn.Module, input_size: Size, batch: int = _BATCH, requires_grad: bool = False) -> Tensor:
    """The model's output for seeded noise of its dtype and device; its random streams are not used.

    Raises:
        ValueError: The model fails; the message has its error and the remedy.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.randn(batch, *input_size, generator=generator, dtype=torch.float32, device=generator.device)
    noise = noise.to(like.device, like.dtype).requires_grad_(requires_grad)
    try:
        # A clone, so that a model which writes on its input does not meet a leaf.
        output = model(noise.clone())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(_refusal(model, input_size, error)) from error
    try:
        return logits_of(output)
    except ValueError as error:
        raise ValueError(f'{called(model)}: {error}') from error


@contextmanager
def hooked(model: nn.Module, names: Sequence[str], keep: Callable[[str, object], object]) -> Iterator[None]:
    """Call ``keep(name, output)`` whenever one of the named modules has run, for the duration of the block.

    A return value of ``keep`` other than None replaces the output.
    """
    def hook(name: str) -> Callable:
        return lambda module, args, output: keep(name, output)

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _grad_modes(model: nn.Module) -> Iterator[None]:
    """Gradients on, inference mode and autocast off, whatever the caller's modes are."""
    device_type = next((p.device.type for p in model.parameters()), 'cpu')
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


@contextmanager
def _without_eps(model: nn.Module) -> Iterator[None]:
    """Norms that do not see the scale of their input, however small it is at the start of training.

    Whether a layer has a sign is then a matter of the network, not of its weights: 1e-6 is much beside the variance of
    7e-6 that an untrained maxxvitv2 has. Not in float16, whose squares vanish first.
    """
    dtypes = {parameter.dtype for parameter in model.parameters()}
    norms = [module for module in model.modules() if isinstance(getattr(module, 'eps', None), float)]
    with swapped([] if torch.float16 in dtypes else norms, 'eps', _TINY_EPS):
        yield


def _run(model: nn.Module, input_size: Size, names: Sequence[str], hints: dict[str, Hints],
         redrawn: Sequence[nn.Module]) -> list[Finding]:
    findings = {name: Finding(name) for name in names}
    givers = Givers()

    def keep(name: str, output: object) -> object:
        finding = findings[name]
        finding.calls += 1
        if finding.calls > 1:
            return None
        finding.seen = sum(other.calls > 0 for other in findings.values())
        finding.shapes = _shapes(output)
        finding.reason = f'its output has no grid: {finding.shapes}'
        finding.outputs = list(_read(model, name, output, input_size[1:], hints.get(name, Hints()), givers))
        return _handed_on(output, finding.outputs, givers)

    with hooked(model, names, keep), _substituted(redrawn):
        logits = ask(model, input_size, requires_grad=True)
    try:
        _differentiate(logits, [finding for finding in findings.values() if finding.outputs])
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        words = ' '.join(str(error).split())[:200]
        raise ValueError(f'{called(model)} cannot be differentiated at its layers: {words}. Where its forward calls '
                         'torch.utils.checkpoint, give it use_reentrant=False') from error
    for finding in findings.values():
        if finding.calls > 1:
            finding.layers, finding.reason = [], f'it runs {finding.calls} times in one forward pass'
    return list(findings.values())


def _read(model: nn.Module, name: str, output: object, image_size: tuple[int, int], hints: Hints,
          givers: Givers) -> Iterator[Output]:
    """Everything in a module's output that has a grid over the image, batch first.

    Kept is a copy, which the module's own later steps have not read: only what leaves the module by this output
    counts (timm's efficientvim also returns a feature map, but continues with another tensor).
    """
    for index, tensor in enumerate(output) if isinstance(output, tuple | list) else [(None, output)]:
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.shape[:1] != (_BATCH,):
            continue
        if tensor.dim() == 4 and inside_attention(model, name):
            continue
        reading = read_grid(tensor, image_size, hints)
        order, known = _token_order(model, name, math.prod(reading.grid)) if reading else (None, False)
        if reading and known:
            yield Output(index, tensor.clone(), reading, order, givers.find(tensor) or name)


def _handed_on(output: object, kept: Sequence[Output], givers: Givers) -> object:
    """The output with copies of what was kept, safe from writes in place; the copies are known by their giver."""
    copies = {out.index: givers.copy(out.tensor, out.giver) for out in kept}
    if not isinstance(output, tuple | list):
        return copies.get(None)
    items = [copies.get(index, item) for index, item in enumerate(output)]
    return type(output)(*items) if hasattr(output, '_fields') else type(output)(items)


def _token_order(model: nn.Module, name: str, count: int) -> tuple[tuple[int, ...] | None, bool]:
    """Tokens in raster order where a model scrambles them and can undo it (timm's hiera: ``reroll``), and if known."""
    match = re.fullmatch(r'(?:(.+)\.)?blocks\.(\d+)(?:\..+)?', name)
    reroll = getattr(model.get_submodule(match[1] or ''), 'reroll', None) if match else None
    if match is None or reroll is None:
        return None, True
    block = int(match[2])
    if math.prod(reroll.schedule[block][1]) != count:
        return None, False
    order = tuple(reroll(torch.arange(count).view(1, count, 1), block).flatten().tolist())
    return (None if order == tuple(range(count)) else order), True


def _differentiate(logits: Tensor, findings: Sequence[Finding]) -> None:
    """Keep the outputs whose gradient is not all zero on the grid."""
    tensors = [out.tensor for finding in findings for out in finding.outputs if out.tensor.requires_grad]
    grads: Iterator[Tensor | None] = iter(())
    if tensors and logits.requires_grad:
        scale = HALF_SCALE if logits.dtype == torch.float16 else 1.0
        grads = iter(torch.autograd.grad(_log_odds(logits.float()) * scale, tensors, allow_unused=True))
    for finding in findings:
        finding.reason = 'the gradient of the logits does not reach it'
        for out in finding.outputs:
            grad = next(grads, None) if out.tensor.requires_grad else None
            if grad is None:
                continue
            if grad[:, out.reading.prefix:].ne(0).any():
                finding.layers.append(TargetLayer(finding.name, out.index, *out.reading, order=out.order,
                                                  signed=_is_signed(out, grad)))
            else:
                finding.reason = ('the gradient of the logits is zero there: behind it only a class token is read, '
                                  'or a gain starts at zero')


def _is_signed(out: Output, grad: Tensor) -> bool:
    """Whether the channels' contributions at a position do not cancel; see :class:`TargetLayer`."""
    product = (out.tensor.detach().float() * grad.float())[:, out.reading.prefix:]
    channel = 1 if out.reading.layout == 'NCHW' else -1
    return bool(product.sum(channel).abs().sum() > _NO_SIGN * product.abs().sum())


def _log_odds(logits: Tensor) -> Tensor:
    """Sum over images of z_y - logsumexp of the others, y = 0, 1; a single logit is differentiated itself."""
    if logits.shape[1] == 1:
        return logits.sum()
    labels = torch.arange(logits.shape[0], device=logits.device) % 2
    own = nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits[own].sum() - logits.masked_fill(own, -torch.inf).logsumexp(1).sum()


def _is_zero(module: nn.Module) -> bool:
    """A linear or convolution layer that starts at zero: its inputs get no gradient before the first update."""
    weight = getattr(module, 'weight', None)
    return isinstance(module, _WEIGHTED) and isinstance(weight, Tensor) and not weight.any()


@contextmanager
def _substituted(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block, re-drawn copies compute the modules' outputs."""
    generator = torch.Generator().manual_seed(_SEED)
    handles = []
    try:
        for module in modules:
            twin = copy.deepcopy(module).requires_grad_(False)
            for weight in twin.parameters():
                fresh = torch.randn(weight.shape, generator=generator, dtype=torch.float32, device=generator.device)
                weight.copy_(fresh * _HEAD_STD)
            handles.append(module.register_forward_hook(lambda _, args, __, twin=twin: twin(*args)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shapes(output: object) -> str:
    if isinstance(output, Tensor):
        return str(list(output.shape))
    if isinstance(output, tuple | list):
        return f'{type(output).__name__} of {", ".join(_shapes(item) for item in output)}'
    return type(output).__name__


def called(model: nn.Module) -> str:
    """The model's name for a message: timm's, else its class."""
    config = getattr(model, 'pretrained_cfg', None) or {}
    return config.get('architecture') or type(model).__name__


def _refusal(model: nn.Module, input_size: Size, error: Exception) -> str:
    """Error message for a model that rejects the images, with remedies."""
    words = ' '.join(str(error).split())[:200] or type(error).__name__
    shape = f'{"x".join(map(str, input_size))} (C x H x W)'
    if isinstance(error, TypeError | AttributeError | NameError | KeyError):
        return f'{called(model)} fails in its forward, called with a batch of noise images of {shape} alone: {words}'
    said = f'{called(model)} does not take images of {shape}: {words}'
    channels = next((m.in_channels for m in model.modules() if isinstance(m, _WEIGHTED[1:])), input_size[0])
    if channels != input_size[0]:
        return (f'{said}. It was built for {channels} channels: give the images that many, or build it with '
                f'in_chans={input_size[0]} (--in-chans {input_size[0]})')
    height, width = input_size[1:]
    own = (getattr(model, 'pretrained_cfg', None) or {}).get('input_size', [getattr(model, 'image_size', width)])[-1]
    remedies = [f'give it its own size, {own} (--img-size {own})'] if own != width else []
    takes = inspect.signature(type(model).__init__).parameters
    size = str(width) if height == width else f'({height},{width})'
    ways = {'dynamic_img_size': 'True', 'strict_img_size': 'False', 'img_size': size}
    # Where the model asks for another multiple, being built for this size would not help.
    kwargs = ' or '.join(f'{key}={value}' for key, value in ways.items() if key in takes and 'divisible' not in words)
    remedies += [f'build it for this one (--model-kwargs {kwargs})'] if kwargs else []
    remedies.append('choose a multiple of its patch or stride' if remedies else
                    'if it is for their size, give it larger ones (--img-size)')
    return f'{said}; {", or ".join(remedies)}'
