"""timm's own Mixup and CutMix behind the registry: its class, its options, its random stream, bit for bit."""
from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from timm.data import Mixup
from torch import Tensor, nn

from gradmix_timm.ops import as_targets, soft_targets
from gradmix_timm.options import check_alpha, is_pair
from gradmix_timm.records import MixDraw

from .contract import BoundMixer, check_images

__all__ = ['TimmMixup', 'check_timm_options']


def check_timm_options(options: Mapping[str, Any]) -> None:
    """Check values that timm's class takes unseen, and fails on in the first batch or never.

    Raises:
        ValueError: Not a number, or out of range; the message names the option.
    """
    for option in ('mixup_alpha', 'cutmix_alpha', 'prob', 'switch_prob', 'label_smoothing'):
        given = options.get(option, 0)
        if isinstance(given, bool) or not isinstance(given, Real):  # NumPy's numbers too
            raise ValueError(f'{option} is a number, got {given!r}')
        value = float(given)
        if option.endswith('prob') and not 0 <= value <= 1:
            raise ValueError(f'{option} is a probability in [0, 1], got {given}')
        if option == 'label_smoothing' and not 0 <= value < 1:
            raise ValueError(f'label_smoothing is in [0, 1), got {given}')
        if option.endswith('alpha') and not value <= 0:  # a NaN too
            check_alpha(value, option)
    minmax = options.get('cutmix_minmax')
    if minmax is None:
        return
    if not is_pair(minmax) or not 0 <= minmax[0] < minmax[1] <= 1:
        raise ValueError('cutmix_minmax is two numbers, the smallest and the largest side of the box as shares of the '
                         f"image's, 0 <= smallest < largest <= 1; got {minmax!r}")


class TimmMixup:
    """``timm.data.Mixup`` with the call of this registry.

    It draws from NumPy's global stream and modifies its argument in place, as timm does; it refuses input that timm
    would handle incorrectly (odd batches, soft labels). 'half' exists in timm's collate only; in the step timm treats
    it as 'batch'.

    Args:
        mode: timm's mode: 'batch', 'pair', 'elem' or 'half'.
        num_classes: K.
        label_smoothing: As timm's, which defaults to 0.1.
        mixup_alpha: Above 0 switches mixup on.
        cutmix_alpha: Above 0 switches CutMix on. With neither, and no ``cutmix_minmax``, timm mixes nothing: refused.
        **options: Passed to ``timm.data.Mixup``: cutmix_minmax, prob, switch_prob, correct_lam.
    """

    requires_model: bool = False
    requires_grad: bool = False
    changes_labels: bool = True
    rows_sum_to_one: bool = True
    tells_lam: bool = False
    multi_label: bool = False
    rows_per_image: int = 1

    def __init__(self, mode: str, num_classes: int = 1000, label_smoothing: float = 0.1, mixup_alpha: float = 1.0,
                 cutmix_alpha: float = 0.0, **options: Any) -> None:
        check_timm_options({**options, 'label_smoothing': label_smoothing, 'mixup_alpha': mixup_alpha,
                            'cutmix_alpha': cutmix_alpha})
        if not (mixup_alpha > 0 or cutmix_alpha > 0 or options.get('cutmix_minmax')):
            raise ValueError(f"mixer {mode!r} is timm's: one of mixup_alpha, cutmix_alpha (--mixup, --cutmix) above 0 "
                             'or cutmix_minmax is needed')
        self.name = mode
        self.options: dict[str, Any] = {
            'num_classes': num_classes, 'label_smoothing': label_smoothing, 'mixup_alpha': mixup_alpha,
            'cutmix_alpha': cutmix_alpha, **options}
        self.num_classes = num_classes
        self.timm = Mixup(mode=mode, **self.options)

    @property
    def mixup_enabled(self) -> bool:
        """False: nothing is mixed or drawn; targets are smoothed one-hots."""
        return self.timm.mixup_enabled

    @mixup_enabled.setter
    def mixup_enabled(self, value: bool) -> None:
        self.timm.mixup_enabled = value

    @property
    def parts(self) -> tuple[TimmMixup, ...]:
        """Itself."""
        return (self,)

    def bound_to(self, model: nn.Module) -> BoundMixer:
        """A callable ``(images, targets)``; the model is not read."""
        return BoundMixer(self, model)

    def __repr__(self) -> str:
        return f'TimmMixup({self.name!r}, {", ".join(f"{k}={v!r}" for k, v in self.options.items())})'

    def set_step(self, epoch: int, step: int) -> None:
        """Nothing: timm draws from NumPy's global stream."""

    def prepare(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        """Nothing to check: no model is needed."""

    def draw(self, images: Tensor, targets: Tensor, model: nn.Module | None = None,
             generator: object = None) -> MixDraw:
        """Not supported: timm draws and applies in one step.

        Raises:
            ValueError: Always, naming the mixers that have draws.
        """
        raise ValueError(f"mixer {self.name!r} is timm's class, which draws and applies in one; "
                         "for draws use 'mixup' or 'cutmix'")

    def apply(self, images: Tensor, targets: Tensor, draw: MixDraw) -> tuple[Tensor, Tensor]:
        """Refused, see :meth:`draw`."""
        raise ValueError(f"mixer {self.name!r} is timm's class and cannot replay a draw; use 'mixup' or 'cutmix'")

    def __call__(self, images: Tensor, targets: Any = None, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Mix in place, as timm: even batches [B, C, H, W], int64 labels [B]; targets float32 [B, K].

        Raises:
            ValueError: An odd batch, soft labels, integer images, or labels out of range.
        """
        check_images(images)
        targets, batch = as_targets(targets), len(images)
        if batch % 2:
            raise ValueError(f'mixer {self.name!r} (timm) pairs a batch with its reverse and got {batch} images, an '
                             "odd number; use an even batch size, or 'mixup', 'cutmix' or 'gradmix', which take any")
        if targets.dim() != 1 or targets.dtype != torch.int64:
            raise ValueError(f'mixer {self.name!r} (timm) takes integer labels [B], got {targets.dtype} '
                             f"{list(targets.shape)}; soft labels are taken by 'mixup', 'cutmix' and 'gradmix'")
        if not self.mixup_enabled:
            smoothing = self.options['label_smoothing']
            return images, soft_targets(targets, self.num_classes, smoothing, images.device)
        with torch.no_grad():
            return self.timm(images, targets)
