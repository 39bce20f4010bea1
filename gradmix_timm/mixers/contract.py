"""The interface of every mixer, foreign ones included; and a mixer bound to its model."""
from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from gradmix_timm.ops import soft_targets

__all__ = ['BoundMixer', 'Mixer', 'adopt', 'check_images']


@runtime_checkable
class Mixer(Protocol):
    """A batch mixer: ``images, targets = mixer(images, labels, model)``.

    Attributes:
        name: In the registry.
        num_classes: K, the columns of the returned targets.
        mixup_enabled: False: the same images and smoothed one-hots, without any pass over the model.
        requires_model: A model has to be given.
        requires_grad: The model is differentiated.
        changes_labels: Labels may change.
        rows_sum_to_one: Rows of the returned targets sum to one where the given ones do.
        tells_lam: Whether ``lam`` of a draw is the share of an image that is kept.
        rows_per_image: Rows that a call returns for each image, the most if two mixers alternate; 2: the clean batch,
            then the mix.
    """

    name: str
    num_classes: int
    mixup_enabled: bool
    requires_model: bool
    requires_grad: bool
    changes_labels: bool
    rows_sum_to_one: bool
    tells_lam: bool
    rows_per_image: int

    @property
    def multi_label(self) -> bool:
        """Multi-hot targets (rows that do not sum to one) are taken."""

    @property
    def options(self) -> dict[str, Any]:
        """Every option as plain values; ``create_mixer(name, **options)`` makes the same mixer."""

    @property
    def parts(self) -> tuple[Mixer, ...]:
        """The mixers that it alternates, or the mixer itself."""

    def set_step(self, epoch: int, step: int) -> None:
        """The next draw is that of (epoch, step)."""

    def prepare(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        """Check once that the mixer can serve the model at (C, H, W); ValueError with the remedy if it cannot."""

    def bound_to(self, model: nn.Module) -> BoundMixer:
        """A callable ``(images, targets)``, for training loops without the model argument."""

    def __call__(self, images: Tensor, targets: Tensor, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """New images and soft targets float32 [B, K]."""


class BoundMixer:
    """A mixer with its model: ``images, targets = bound(images, targets)``, as timm calls its ``mixup_fn``.

    Every attribute but these two is the mixer's, to read and to set: a loop that sets ``mixup_enabled = False`` on it,
    as timm's does at ``--mixup-off-epoch``, ends the mixing.

    Args:
        mixer: The mixer.
        model: The live model, read at every call; another may be set in its place, such as a running average.

    Example:
        >>> import torch
        >>> from gradmix_timm import create_mixer
        >>> mixup_fn = create_mixer('cutmix', num_classes=2).bound_to(torch.nn.Identity())
        >>> mixup_fn.mixup_enabled = False
        >>> mixup_fn(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))[1]
        tensor([[1., 0.],
                [0., 1.]])
    """

    mixer: Mixer
    model: nn.Module

    def __init__(self, mixer: Mixer, model: nn.Module) -> None:
        # A reference, neither a submodule nor a copy: the mixer reads the model that trains.
        vars(self).update(mixer=mixer, model=model)

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix one batch, see :meth:`Mixer.__call__`."""
        return self.mixer(images, targets, self.model)

    def __getattr__(self, name: str) -> Any:
        if name in ('mixer', 'model'):  # not set yet while unpickling
            raise AttributeError(name)
        return getattr(self.mixer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ('mixer', 'model'):
            vars(self)[name] = value
        else:
            setattr(self.mixer, name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def __repr__(self) -> str:
        return f'{self.mixer!r}.bound_to({type(self.model).__name__})'


class _Adopted:
    """A foreign class, with the contract's defaults for undeclared attributes."""

    def __init__(self, name: str, inner: Any, num_classes: int) -> None:
        self._own_switch = not hasattr(inner, 'mixup_enabled')
        self.inner, self.name, self.num_classes = inner, name, num_classes
        self.requires_model = bool(getattr(inner, 'requires_model', False))
        self.requires_grad = bool(getattr(inner, 'requires_grad', self.requires_model))
        self.changes_labels = bool(getattr(inner, 'changes_labels', True))
        self.rows_sum_to_one = bool(getattr(inner, 'rows_sum_to_one', True))
        self.tells_lam, self.multi_label = False, bool(getattr(inner, 'multi_label', False))
        self.rows_per_image = int(getattr(inner, 'rows_per_image', 1))

    @property
    def mixup_enabled(self) -> bool:
        return bool(getattr(self.inner, 'mixup_enabled', True))

    @mixup_enabled.setter
    def mixup_enabled(self, value: bool) -> None:
        self.inner.mixup_enabled = value

    @property
    def options(self) -> dict[str, Any]:
        return dict(getattr(self.inner, 'options', {}))

    @property
    def parts(self) -> tuple[Mixer, ...]:
        return (self,)

    def set_step(self, epoch: int, step: int) -> None:
        if hasattr(self.inner, 'set_step'):
            self.inner.set_step(epoch, step)

    def prepare(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        if hasattr(self.inner, 'prepare'):
            self.inner.prepare(model, input_size)

    def bound_to(self, model: nn.Module) -> BoundMixer:
        return BoundMixer(self, model)

    def __call__(self, images: Tensor, targets: Tensor, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        if self._own_switch and not self.mixup_enabled:
            smoothing = float(getattr(self.inner, 'label_smoothing', 0))
            return images, soft_targets(targets, self.num_classes, smoothing, images.device, self.multi_label)
        images, targets = self.inner(images, targets, model)
        return images, targets

    def __repr__(self) -> str:
        return repr(self.inner)


def adopt(name: str, made: Any, num_classes: int) -> Mixer:
    """The result of a registered class or factory as a mixer of that name: unchanged if it fulfils the contract.

    Raises:
        TypeError: It cannot be called.
    """
    if isinstance(made, Mixer):
        if made.name != name:  # of a factory, or of a subclass without one of its own
            made.name = name
        return made
    if not callable(made):
        raise TypeError(f'mixer {name!r} should be callable, (images, targets, model) -> (images, soft targets); got '
                        f'{type(made).__name__}')
    return _Adopted(name, made, num_classes)


def check_images(images: Any) -> None:
    """Check images.

    Raises:
        TypeError: They are not a tensor.
        ValueError: Not float [B, C, H, W].
    """
    if isinstance(images, list | tuple | dict):
        raise TypeError(f'expected images and labels apart, got a {type(images).__name__} in place of the images; '
                        'unpack a batch: mixer(*batch), or mixer(*batch, model)')
    if not isinstance(images, Tensor):
        raise TypeError(f'expected images as a float tensor [B, C, H, W], got {type(images).__name__}')
    if images.dim() != 4:
        raise ValueError(f'expected images [B, C, H, W], got {list(images.shape)}')
    if not images.is_floating_point():
        raise ValueError(f'expected float images, got {images.dtype}: mixing follows normalisation '
                         '(uint8 batches come from a loader without it)')
