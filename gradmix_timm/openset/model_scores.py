"""A score that goes back to the model, over the batches of a loader."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from gradmix_timm.ops import logits_of

from .extract import Pieces, evaluating, in_precision, watched
from .scores.odin import ModelScore

__all__ = ['score_images']


def score_images(
        score: ModelScore,
        model: nn.Module,
        loader: Iterable[Any],
        device: torch.device | str,
        std: Sequence[float] | None = None,
        amp_dtype: torch.dtype | None = None,
        channels_last: bool = False,
        progress: str | None = None,
) -> Tensor:
    """Knownness of every image, float64 [N] on the CPU, in evaluation mode.

    The model is left unchanged: training flags are restored, and parameters collect no gradients.

    Args:
        score: Of :func:`~gradmix_timm.openset.scores.fit_score`: 'odin'.
        model: On ``device``.
        loader: Batches of images [B, C, H, W] and labels; in the data set's order, unshuffled.
        device: Where the model is.
        std: What pixels in [0, 1] were divided by, per channel; None: nothing.
        amp_dtype: Runs forward passes under autocast in this dtype.
        channels_last: Memory format of the images handed in.
        progress: Name of the set, for the progress bar; None: silent.

    Where the device runs out of memory the batch is halved, until it fits, and so are those after it.

    Raises:
        ValueError: Another kind of score; knownness that is not a number; no memory for a single image.

    Example:
        >>> from gradmix_timm.openset.scores import fit_score
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        >>> score_images(fit_score('odin', None), net, [(torch.zeros(2, 3, 2, 2), torch.zeros(2))], 'cpu').shape
        torch.Size([2])
    """
    if not score.requires_model:
        raise ValueError(f'{score.name} is computed from embeddings: call score(embeddings)')
    device, inner = torch.device(device), unwrap_model(model)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    cast = torch.autocast(device.type, amp_dtype) if amp_dtype is not None else nullcontext()
    spread = torch.ones(1, 1, 1, device=device) if std is None else torch.tensor(std, device=device)[:, None, None]

    def forward(images: Tensor) -> Tensor:
        with cast:
            return logits_of(inner(images if amp_dtype is not None else in_precision(images, inner))).float()

    def answer(images: Tensor) -> Tensor:
        return score.of_images(forward, images.to(device, memory_format=layout), spread).cpu()

    found, pieces = [], Pieces(answer, progress)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(inner):
        for batch in watched(loader, progress):
            for values in pieces.of(batch[0]):
                if bad := int(values.isnan().sum()):
                    raise ValueError(f'{score.name} gives NaN for {bad} of {len(values)} images of a batch of '
                                     f'{progress or "the loader"}: the weights hold NaN, or half precision overflowed '
                                     '(then take full precision or bfloat16: --amp-dtype bfloat16, '
                                     'amp_dtype=torch.bfloat16)')
                found.append(values)
    return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)
