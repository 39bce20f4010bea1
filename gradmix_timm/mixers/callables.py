"""Foreign mixers of the form (images, labels) -> (images, soft targets) under this registry's contract."""
from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from gradmix_timm.ops import as_targets, box_lam, image_size, to_device
from gradmix_timm.options import check_alpha
from gradmix_timm.records import MixDraw
from gradmix_timm.registry import nearest

from .base import BatchMixer

__all__ = ['CallableMixer', 'TorchvisionMixer', 'seeded_streams']


@contextmanager
def seeded_streams(seed: int, device: torch.device) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global random streams inside the block, and restore them on exit.

    Args:
        seed: Not negative.
        device: Its stream is included besides the CPU's.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what a foreign mixer draws from
    devices = [] if device.type in ('cpu', 'meta') else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else 'cuda'):
        try:
            random.seed(seed)
            np.random.seed(seed % 2 ** 32)  # noqa: NPY002
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU for good
            if devices:
                getattr(torch, device.type).manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


class CallableMixer(BatchMixer):
    """A function ``(images, labels, **options) -> (images, soft targets)`` as a mixer.

    A function that has a parameter ``num_classes`` is given K.

    The function gets copies, labels as they come (int64 [B] or float [B, K], not smoothed), and global random streams
    that are seeded for the step and restored afterwards, so it is reproducible with any source of randomness. Its
    effect is not recorded: in its draws ``lam`` is 0 for every image passed to it and ``partner`` the image
    itself.

    Args:
        name: In the registry.
        function: Returns images of the same shape, and targets float [B, K] or int64 [B].
        num_classes: K.
        **options: See :class:`BatchMixer`; others are the function's own.

    Raises:
        ValueError: An option that the function does not take, or one without a default that is missing.
    """

    tells_lam: bool = False

    def __init__(self, name: str, function: Callable[..., tuple[Tensor, Tensor]], num_classes: int, **options: Any
                 ) -> None:
        shared = [*inspect.signature(BatchMixer.__init__).parameters][2:]
        super().__init__(num_classes, **{key: options.pop(key) for key in shared if key in options})
        rest = [*inspect.signature(function).parameters.values()][2:]  # after images and labels
        known = {p.name: p for p in rest if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if 'num_classes' in known:
            del known['num_classes']
            function = partial(function, num_classes=self.num_classes)
        stray = [key for key in options if key not in known]
        if stray and not any(p.kind is p.VAR_KEYWORD for p in rest):
            raise ValueError(f'mixer {name!r} has no option {stray[0]!r}: {nearest(stray[0], [*known, *shared])}')
        lacking = [key for key, p in known.items() if p.default is p.empty and key not in options]
        if lacking:
            raise ValueError(f'mixer {name!r} needs {lacking[0]}; type {lacking[0]}=..., or --mixup-kwargs '
                             f'{lacking[0]}=..., or give the function a default')
        self.name = name
        self.function, self.own = function, options

    @property
    @override
    def options(self) -> dict[str, Any]:
        return {**self.own, **super().options}

    def apply(self, images: Tensor, targets: Tensor, draw: MixDraw) -> tuple[Tensor, Tensor]:
        """Apply the function to the batch with the draw's seed.

        Raises:
            ValueError: It does not return images of the same shape and targets [B] or [B, K].
        """
        if draw.noise_seed is None:
            return super().apply(images, targets, draw)
        targets = as_targets(targets)
        with torch.no_grad(), seeded_streams(draw.noise_seed, images.device):
            given = images.clone(memory_format=torch.preserve_format)
            mixed, rows = self._checked(self.function(given, targets.clone(), **self.own), images)
        kept = (draw.lam == 1).to(images.device)
        own, new = (self._rows(t, images.device) for t in (targets, rows))
        mixed = torch.where(kept[:, None, None, None], images, mixed.to(images.dtype))
        return mixed, torch.where(kept[:, None], own, new)

    def _checked(self, made: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(made, tuple | list) or len(made) != 2 or not all(isinstance(part, Tensor) for part in made):
            raise ValueError(f'mixer {self.name!r} should return two tensors, images and targets, got '
                             f'{type(made).__name__}')
        mixed, rows = made
        if mixed.shape != images.shape:
            raise ValueError(f'mixer {self.name!r} should return images {list(images.shape)}, got {list(mixed.shape)}')
        if list(rows.shape) not in ([len(images)], [len(images), self.num_classes]):
            raise ValueError(f'mixer {self.name!r} should return targets [{len(images)}, {self.num_classes}], got '
                             f'{list(rows.shape)}')
        return mixed, rows

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        batch, device = images.shape[0], images.device
        lam = to_device((~coins).astype(np.float32), device)
        return MixDraw.of(self.name, torch.arange(batch, device=device), lam, noise_seed=int(rng.integers(2 ** 62)))

    def _paste(self, images: Tensor, draw: MixDraw) -> Tensor:
        return images.clone()


class TorchvisionMixer(BatchMixer):
    """``torchvision.transforms.v2.MixUp`` or ``CutMix`` with its own seed: one lam per batch, partner the previous row.

    Images equal torchvision's for the same seed bit for bit; smoothing, ``prob`` and ``prob_elem`` are this
    registry's.

    Args:
        kind: 'MixUp' or 'CutMix'.
        num_classes: K.
        alpha: Of Beta(alpha, alpha).
        **common: See :class:`BatchMixer`.
    """

    option_names = ('alpha',)
    #: The registry's name of each class.
    NAMES: ClassVar[dict[str, str]] = {'MixUp': 'torchvision-mixup', 'CutMix': 'torchvision-cutmix'}

    def __init__(self, kind: str, num_classes: int, alpha: float = 1.0, **common: Any) -> None:
        from torchvision.transforms import v2  # imported here, as it is slow and only these mixers need it
        super().__init__(num_classes, **common)
        self.name = self.NAMES[kind]
        self.alpha = check_alpha(alpha)
        self.transform = getattr(v2, kind)(alpha=self.alpha, num_classes=self.num_classes)

    def _params(self, images: Tensor, seed: int) -> dict[str, Any]:
        with torch.device('cpu'), seeded_streams(seed, torch.device('cpu')):
            return {'labels': None, 'batch_size': len(images), **self.transform.make_params([images])}

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        seed, batch, device = int(rng.integers(2 ** 62)), images.shape[0], images.device
        params = self._params(images, seed)
        left, top, right, bottom = params.get('box', (0, 0, 0, 0))
        boxes = to_device(np.array([[top, bottom, left, right]]) * coins[:, None], device)
        if 'box' in params:
            lam = box_lam(boxes, image_size(images))
        else:
            lam = to_device(np.where(coins, params['lam'], 1.0).astype(np.float32), device)
        return MixDraw.of(self.name, to_device(np.roll(np.arange(batch), 1), device), lam, dst=boxes, noise_seed=seed)

    def _paste(self, images: Tensor, draw: MixDraw) -> Tensor:
        if draw.noise_seed is None:
            return images.clone()
        # Drawn again rather than read from the draw, which would wait for a GPU and round lam.
        mixed = self.transform.transform(images, self._params(images, draw.noise_seed))
        return torch.where((draw.lam < 1)[:, None, None, None], mixed, images)
