"""One pass over a data set: logits, classifier inputs and labels; the classifier itself as one linear map."""
from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from timm.layers import ClassifierHead, NormMlpClassifierHead
from timm.utils import unwrap_model
from torch import Tensor, nn
from tqdm.auto import tqdm

from gradmix_timm.ops import logits_of
from gradmix_timm.records import Embeddings

from .scores.base import Head, is_out_of_memory

__all__ = ['Pieces', 'evaluating', 'extract', 'head_of', 'in_precision', 'watched',
           'without_unknown_output']

_logger = logging.getLogger(__name__)
# Seconds between log lines if no terminal shows a progress bar.
_REPORT_EVERY = 30.


def extract(
        model: nn.Module,
        loader: Iterable[Any],
        device: torch.device | str,
        amp_dtype: torch.dtype | None = None,
        channels_last: bool = False,
        progress: str | None = None,
        projection: Callable[[Tensor], Tensor] | None = None,
        features_needed: bool = True,
) -> Embeddings:
    """Logits and features of every image, from one forward pass each, in evaluation and inference mode.

    The features are what the classifier reads, taken at its input while the model itself runs, so the logits are
    exactly those of ``model(images)``. They are timm's ``forward_head(..., pre_logits=True)``: width
    ``head_hidden_size``, which is not always ``num_features``; the mean over the inputs of several heads (distilled
    models), side by side where their widths differ (CrossViT). Without timm's ``get_classifier`` the last nn.Linear
    is taken for the classifier.

    Args:
        model: On ``device``; every module's training flag is put back at the end.
        loader: Batches of images [B, C, H, W] and labels [B]; in the data set's order, unshuffled. Floats are taken
            into the precision of the model's weights.
        device: Where the model is.
        amp_dtype: Runs the forward pass under autocast in this dtype; results are float32 in any case.
        channels_last: Memory format of the images handed in.
        progress: What is being read, for a bar with the time left (a terminal) or a log line every half minute; None:
            silent.
        projection: From features to a projection [B, P], on ``device``; of models that were trained with such a head.
        features_needed: Whether a model without a classifier to hook is refused; else its features have width 0.

    Returns:
        Embeddings on the CPU; ``index`` counts the loader's images from 0; ``projection`` is None without one.

    Where the device runs out of memory the batch is halved, until it fits, and so are those after it.

    Raises:
        ValueError: NaN among the logits (with the rows), a model without a classifier to hook, whole numbers that the
            model does not take, an empty loader, no memory for a single image.
    """
    device = torch.device(device)
    inner = unwrap_model(model)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    cast = torch.autocast(device.type, amp_dtype) if amp_dtype is not None else nullcontext()
    logits, features, projected, labels, rows = [], [], [], [], 0
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(evaluating(inner))
        read: list[Tensor] = []
        if features_needed or _has_classifier(inner):
            read = stack.enter_context(_classifier_inputs(inner))

        def answer(images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            images = images.to(device, non_blocking=True, memory_format=layout)
            with cast, _refusing(images, progress):
                output = inner(images if amp_dtype is not None else in_precision(images, inner))
            inputs = _inputs(read, len(images), features_needed)
            return (logits_of(output).float().cpu(), inputs.cpu(),
                    None if projection is None else projection(inputs).float().cpu())

        pieces = Pieces(answer, progress)
        for images, target in watched(loader, progress):
            for of_logits, of_features, of_projection in pieces.of(images):
                logits.append(of_logits)
                features.append(of_features)
                projected += [] if of_projection is None else [of_projection]
            _checked(torch.cat(logits[-pieces.count:]), images, rows, progress)
            labels.append(target.long().cpu())
            rows += len(target)
    if not rows:
        raise ValueError(f'{progress or "the loader"} holds no image; give it at least one')
    # Out of inference mode, so that the results may be written to.
    return Embeddings(
        logits=torch.cat(logits), features=torch.cat(features),
        projection=torch.cat(projected) if projected else None, label=torch.cat(labels), index=torch.arange(rows))


def head_of(model: nn.Module) -> Head:
    """The classifier as one affine map from features (as :func:`extract` gives them) to logits, float32 on the CPU.

    Heads of equal width are averaged, as their logits are; heads of different widths stand side by side. A BatchNorm
    inside the head (LeViT) is folded in. Where two heads of one width read different tokens (distilled DeiT) no single
    map gives the logits; :func:`~gradmix_timm.openset.scores.fit_score` detects that and raises.

    Raises:
        ValueError: The model has no affine classifier; the message names the scores that do not need it.
    """
    parts = [_affine(module) for module in _classifiers(unwrap_model(model))]
    bias = torch.stack([b for _, b in parts]).mean(0)
    if len({weight.shape[1] for weight, _ in parts}) == 1:
        return Head(torch.stack([weight for weight, _ in parts]).mean(0), bias)
    return Head(torch.cat([weight for weight, _ in parts], dim=1) / len(parts), bias)


def without_unknown_output(model: nn.Module) -> nn.Module:
    """A copy whose logits are those of the known classes, z_k - z_unknown: the head's last row, off the others.

    As :func:`~gradmix_timm.checkpoint.build_model` makes of a checkpoint that was trained with ``--unknown-output``.

    Args:
        model: Its last output is for no class.

    Raises:
        ValueError: A head that is no plain linear layer, or has fewer than three outputs.
    """
    copied = copy.deepcopy(model)
    for head in _classifiers(unwrap_model(copied)):
        if not isinstance(head, nn.Linear) or head.out_features < 3:
            raise ValueError(f'unknown_output=True with {head}: expected an nn.Linear with an output for each of two '
                             'or more known classes and one for no class')
        for name, value in list(head.named_parameters(recurse=False)):
            setattr(head, name, nn.Parameter(value.detach()[:-1] - value.detach()[-1:], value.requires_grad))
        head.out_features -= 1
    return copied


def in_precision(images: Tensor, model: nn.Module) -> Tensor:
    """Floating images in the precision of a model's weights, which its first layer asks for; others as they are."""
    own = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), images.dtype)
    return images.to(own) if images.is_floating_point() else images


@contextmanager
def _refusing(images: Tensor, title: str | None) -> Iterator[None]:
    """A model's failure on whole numbers, which few take, in words that say what it was given; others with a note."""
    try:
        yield
    except RuntimeError as error:
        if images.is_floating_point() or is_out_of_memory(error):
            error.add_note(f'The model was given {title or "images"}, {list(images.shape)}.')
            raise
        raise ValueError(f'the model does not take images of {images.dtype} ({" ".join(str(error).split())[:200]}); '
                         'pass them as floats, normalised as in its training') from error


_REMAINS = 'scores that need no head remain (logits or features alone)'


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, with every module's training flag restored on exit."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def _classifier_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds each head's input after a forward pass."""
    heads = _classifiers(model)
    held: list[Tensor] = [torch.empty(0)] * len(heads)

    def keep(place: int, inputs: tuple[Any, ...]) -> None:
        held[place] = inputs[0]

    hooks = [head.register_forward_pre_hook(lambda _, inputs, place=place: keep(place, inputs))
             for place, head in enumerate(heads)]
    try:
        yield held
    finally:
        for hook in hooks:
            hook.remove()


def _classifiers(model: nn.Module) -> tuple[nn.Module, ...]:
    getter: Any = getattr(model, 'get_classifier', None)
    if getter is not None:
        return tuple(_leaves(getter()))
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f'{type(model).__name__} has neither get_classifier() nor an nn.Linear to read features at; '
                         'give it a get_classifier() that returns its last layer')
    return (linear[-1],)


def _leaves(found: Any) -> Iterator[nn.Module]:
    """The layers that give logits: of heads in lists (EfficientViM), behind the pooling of a head (Sequencer, SAM)."""
    if isinstance(found, tuple | list | nn.ModuleList):
        for part in found:
            yield from _leaves(part)
    else:
        yield found.fc if isinstance(found, ClassifierHead | NormMlpClassifierHead) else found


def _has_classifier(model: nn.Module) -> bool:
    try:
        return bool(_classifiers(model))
    except ValueError:
        return False


def _inputs(read: list[Tensor], count: int, needed: bool) -> Tensor:
    """The classifier's input, float32 [B, D]; D = 0 if it is not needed and unknown."""
    try:
        found = _join(read) if read else torch.empty(count, 0)
        if len(found) != count:
            raise ValueError(f'the classifier read {len(found)} rows for {count} images; pooled features are expected')
        return found.float()
    except ValueError:
        if needed:
            raise
        return torch.empty(count, 0)


def _join(inputs: list[Tensor]) -> Tensor:
    if any(read.numel() == 0 for read in inputs):
        raise ValueError('the classifier was not called as a module in the forward pass, so its input is unknown; '
                         'get_classifier() should return the layer that gives the logits')
    flat = [read.flatten(1) if read.dim() == 4 and read.shape[-2:] == (1, 1) else read for read in inputs]
    if any(read.dim() != 2 for read in flat):
        raise ValueError(f'the classifier reads {[list(read.shape) for read in flat]}; pooled features [B, D] are '
                         'expected')
    if len(flat) == 1:
        return flat[0]
    same = len({read.shape[1] for read in flat}) == 1
    return torch.stack(flat).float().mean(0) if same else torch.cat(flat, dim=1)


class Pieces:
    """A function of a batch, piece by piece where the device's memory does not take it whole."""

    def __init__(self, answer: Callable[[Tensor], Any], title: str | None) -> None:
        self._answer, self._title, self._most = answer, title, sys.maxsize
        self.count = 0

    def of(self, images: Tensor) -> Iterator[Any]:
        """Yield the outputs in order; ``count`` is their number afterwards."""
        start = self.count = 0
        while start < len(images):
            piece = images[start:start + self._most]
            answer = self._tried(piece)
            if answer is not None:
                yield answer
                start += len(piece)
                self.count += 1

    def _tried(self, piece: Tensor) -> Any:
        """The output, or None if memory ran out and pieces are smaller from here on."""
        try:
            return self._answer(piece)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(piece) == 1:
                raise ValueError(f'{self._title or "the loader"}: the device has no memory for a single image of '
                                 f'{list(piece.shape[1:])}; use a smaller image size, mixed precision or the CPU '
                                 '(--img-size, --amp, --device cpu)') from error
            self._most = len(piece) // 2
        # Outside the handler, whose traceback keeps the tensors of the failed pass alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _logger.warning('%s: out of memory with %d images at once, going on with %d; a batch size of %d avoids this',
                        self._title or 'the loader', len(piece), self._most, self._most)
        return None


def _checked(logits: Tensor, images: Tensor, start: int, title: str | None) -> None:
    bad = logits.isnan().any(1).nonzero().flatten()
    if len(bad):
        shown = ', '.join(str(int(row) + start) for row in bad[:5]) + (', ...' if len(bad) > 5 else '')
        cause = ('the weights hold NaN, or half precision overflowed (then take full precision or bfloat16: '
                 '--amp-dtype bfloat16, amp_dtype=torch.bfloat16)')
        if not images[bad.to(images.device)].isfinite().all():
            cause = 'the images themselves hold NaN or infinite values; correct how they are read or normalised'
        raise ValueError(f'NaN logits for {len(bad)} of the {len(logits)} images of a batch of {title or "the loader"} '
                         f'(image {shown}): {cause}')


def _affine(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight [K, D] and bias [K] of a layer, float32; read where it is plain, else measured."""
    if isinstance(module, nn.Linear | nn.Conv2d) and type(module).forward in (nn.Linear.forward, nn.Conv2d.forward):
        weight = module.weight.detach().float().cpu()
        if weight.dim() == 2 or weight.shape[2:] == (1, 1):
            bias = torch.zeros(len(weight)) if module.bias is None else module.bias.detach().float().cpu()
            return weight.flatten(1), bias
    inner = next((part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)), None)
    if inner is None:
        raise ValueError(f'the model has no classification head (its classifier is {type(module).__name__}); '
                         f'{_REMAINS}')
    return _measured(module, inner)


@torch.no_grad()
def _measured(module: nn.Module, inner: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
    """An affine layer from its outputs at zero and at the unit vectors, checked at one more point."""
    layer = copy.deepcopy(module).cpu().double().eval()
    width = inner.in_features if isinstance(inner, nn.Linear) else inner.in_channels
    points = torch.cat([torch.zeros(1, width), torch.eye(width), torch.linspace(-1, 1, width)[None]]).double()
    if isinstance(inner, nn.Conv2d):
        points = points[..., None, None]
    answers = layer(points).flatten(1)
    bias, weight = answers[0], (answers[1:-1] - answers[0]).T
    if not torch.allclose(answers[-1], weight @ torch.linspace(-1, 1, width).double() + bias):
        raise ValueError(f'the classification head is a {type(module).__name__}, which is no linear layer; {_REMAINS}')
    return weight.float(), bias.float()


def watched(loader: Iterable[Any], title: str | None) -> Iterator[Any]:
    """The loader's batches, with progress and the time left."""
    if title is None or sys.stderr.isatty():
        # Short passes finish before the bar would appear.
        yield from (batch[:2] for batch in tqdm(loader, desc=title, unit='batch', disable=title is None, delay=2.,
                                               leave=False, file=sys.stderr))
        return
    total = len(loader) if isinstance(loader, Sized) else 0
    start = reported = time.monotonic()
    for number, batch in enumerate(loader, 1):
        yield batch[:2]
        now = time.monotonic()
        if now - reported > _REPORT_EVERY and number < total:
            reported = now
            left = (now - start) / number * (total - number)
            _logger.info('%s: batch %d of %d, about %.0f s left', title, number, total, left)
