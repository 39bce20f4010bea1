"""Errors of a mixer about a model that it cannot serve."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from gradmix_timm.attribution import unwrap
from gradmix_timm.attribution.dry_run import called

__all__ = ['ADVICE', 'serving']

#: Flags that errors of attribution advise, which are GradMix's, and what other mixers have in their place.
ADVICE = {'--gradmix-layers': '--mixup-kwargs layers=...',
          'attribution=... (--gradmix-attribution)': 'mixer (--mixup-mode)'}


@contextmanager
def serving(name: str, model: nn.Module | None, advice: Mapping[str, str]) -> Iterator[None]:
    """Prefix an error about the model with the names of both, and advise the mixer's own flags.

    Args:
        name: Of the mixer.
        model: The model; None: an error is not about it and stays as it is.
        advice: Flags to replace in the message.

    Raises:
        ValueError: In place of one.

    Example:
        >>> with serving('snapmix', nn.Linear(2, 2), ADVICE):
        ...     raise ValueError('no map; choose another, layers=... (--gradmix-layers)')
        Traceback (most recent call last):
        ValueError: mixer 'snapmix' with Linear: no map; choose another, layers=... (--mixup-kwargs layers=...)
    """
    try:
        yield
    except ValueError as error:
        if model is None:
            raise
        words = str(error)
        for flag, own in advice.items():
            words = words.replace(flag, own)
        raise ValueError(f'mixer {name!r} with {_called(model)}: {words}') from error


def _called(model: nn.Module) -> str:
    """The name of the model inside its wrappers, or of the wrapper that cannot be taken off."""
    try:
        return called(unwrap(model))
    except ValueError:
        return type(model).__name__
