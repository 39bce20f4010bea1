"""Base class of scores, their registry, the classifier's record, and evaluation of rows in pieces."""
from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradmix_timm.records import Embeddings
from gradmix_timm.registry import Registry

__all__ = ['SCORES', 'FewSamples', 'Head', 'Score', 'blocks', 'by_rows', 'checked_rows', 'chunks', 'feature_mean',
           'is_out_of_memory']

# Fields of embeddings that a score may read.
_FIELDS = ('logits', 'features', 'projection')
_logger = logging.getLogger(__name__)
# Values of one block of a fit.
_BLOCK = 2 ** 22
# Values taken at a time by a score: in float64 two megabytes, which stay in the cache from one operation to the next;
# an accelerator wants more.
_IN_CACHE, _ON_DEVICE = 2 ** 18, 2 ** 24


@dataclass(frozen=True, slots=True)
class Head:
    """The classifier as one affine map, logits = weight f + bias.

    Attributes:
        weight: float [K, D].
        bias: float [K]; zeros where the classifier has none.
    """

    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit; a live layer's parameters come without their graph."""
        object.__setattr__(self, 'weight', self.weight.detach())
        object.__setattr__(self, 'bias', self.bias.detach())
        if self.weight.dim() != 2 or self.bias.shape != self.weight.shape[:1]:
            raise ValueError('a head is weight [K, D] and bias [K] (zeros where there is none), got '
                             f'{list(self.weight.shape)} and {list(self.bias.shape)}')

    @classmethod
    def of(cls, layer: Head | nn.Linear) -> Head:
        """A linear layer's; a head as it is."""
        if isinstance(layer, nn.Linear):
            bias = layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
            return cls(layer.weight, bias)
        return layer

    def __call__(self, features: Tensor) -> Tensor:
        """Logits in float64, [N, K]."""
        return features.double() @ self.weight.double().T + self.bias.double()


class FewSamples(ValueError):
    """Classes that have too few samples for a fit; who knows their names asks for them.

    Args:
        needs: What is needed of every class.
        counts: Samples of each class, [K].
        least: Samples that are needed.
        remedy: What to do.

    Example:
        >>> print(FewSamples('k=3 neighbours need 3 samples of every class', [3, 1], 3, 'give more samples'))
        k=3 neighbours need 3 samples of every class, but class 1 has 1; give more samples
    """

    def __init__(self, needs: str, counts: Sequence[int], least: int, remedy: str) -> None:
        self.needs, self.remedy = needs, remedy
        self.few = {place: count for place, count in enumerate(counts) if count < least}
        super().__init__(self.message())

    def message(self, names: Sequence[str] = ()) -> str:
        """The message, with names of classes in head order in place of their numbers."""
        shown = [f'{names[place] if names else f"class {place}"} has {count}' for place, count in self.few.items()]
        more = f' and {len(shown) - 5} classes more' if len(shown) > 5 else ''
        return f'{self.needs}, but {", ".join(shown[:5]) or "there is none"}{more}; {self.remedy}'


def chunks(count: int, size: int = 4096) -> Iterator[slice]:
    """Slices that cover ``count`` rows; memory stays bounded, and no score may depend on where they fall."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def blocks(rows: Tensor) -> Iterator[slice]:
    """Slices of rows of which one in float64 takes 32 MB, so that a fit never holds a copy of what it reads."""
    return chunks(len(rows), max(1, _BLOCK // max(1, rows.shape[1])))


def feature_mean(features: Tensor) -> Tensor:
    """Mean of rows in float64 [D], without a copy of all of them in float64."""
    total = features.new_zeros(features.shape[1], dtype=torch.float64)
    # A few rows at a time, which stay in the cache: a sum over many that converts as it goes takes seven times as long.
    for rows in chunks(len(features), max(1, _IN_CACHE // max(1, features.shape[1]))):
        total += features[rows].double().sum(0)
    return total / len(features)


def by_rows(function: Callable[..., Tensor], *fields: Tensor, arrays: int = 1) -> Tensor:
    """What a function of rows gives for each, taken a few rows at a time: float64 [N].

    Args:
        function: From [n, D] of each field to [n], each row by itself.
        *fields: [N, D], each of its own width.
        arrays: Of the size of its input in float64 that the function goes back to; they share the cache.
    """
    rows = fields[0]
    found = rows.new_empty(len(rows), dtype=torch.float64)
    values = _IN_CACHE // arrays if rows.device.type == 'cpu' else _ON_DEVICE
    for part in chunks(len(rows), max(1, values // max(1, sum(field.shape[1] for field in fields)))):
        found[part] = function(*(field[part] for field in fields))
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory; PyTorch's CPU allocator raises a plain RuntimeError.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError('shapes differ'))
        (True, False)
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error))


class Score(ABC):
    """A score of knownness: options at construction, :meth:`fit` once, then calls; higher = more known.

    The score of a row depends on that row and the fit alone, never on the other rows of the call: what depends on how a
    matrix product is blocked is computed in float64, where that does not show. Functions of the logits row by row may
    take the precision of the logits.

    Attributes:
        reads: Fields of Embeddings it computes from.
        needs_train: Whether :meth:`fit` uses training embeddings.
        needs_head: Whether it uses the classifier's weights.
        fits_on_held_out: Whether its paper fits it on known images that took no part in training; where there are
            none, training images serve.
        requires_model: Whether it goes back to the model for every image
            (:class:`~gradmix_timm.openset.scores.odin.ModelScore`), so that embeddings alone do not do.
        least: Training samples that every class must have.
        checks_values: Whether :meth:`knownness` itself refuses values that are not finite, as it reads them.
        name: As registered.
        options: Resolved options.
        diagnostics: Figures of the fit worth checking: rank, condition number, threshold, ...
    """

    reads: tuple[str, ...] = ('logits',)
    needs_train: ClassVar[bool] = False
    needs_head: ClassVar[bool] = False
    fits_on_held_out: ClassVar[bool] = False
    requires_model: ClassVar[bool] = False
    least: ClassVar[int] = 0
    checks_values: ClassVar[bool] = False

    name: str = ''
    options: dict[str, Any]
    diagnostics: dict[str, Any]
    _widths: dict[str, int]

    def fields(self, train: Embeddings | None) -> tuple[str, ...]:
        """What to read, where that depends on what the model offers."""
        return self.reads

    def fit(self, train: Embeddings | None, head: Head | None) -> None:  # noqa: B027 - many scores need no fit
        """Take what is needed from checked training embeddings and the classifier."""

    @abstractmethod
    def knownness(self, embeddings: Embeddings) -> Tensor:
        """Float64 [N] of checked embeddings."""

    def state(self) -> Mapping[str, Any]:
        """Attributes of the fitted score, for a file."""
        return vars(self)

    def take_state(self, state: Mapping[str, Any]) -> None:
        """Restore the fit from :meth:`state`."""
        vars(self).update(state)

    def predict(self, embeddings: Embeddings) -> Tensor:
        """Class of each sample, int64 [N], by the predictor that this score belongs to; the classifier's by default.

        OSCR asks that a class and its score come from one predictor: class-wise neighbours have their own.
        """
        return embeddings.logits.argmax(1)

    @torch.no_grad()
    def __call__(self, embeddings: Embeddings) -> Tensor:
        """Knownness of each row, float64 [N]; half by half where memory does not take them all at once.

        Raises:
            ValueError: Values that are not finite (count and indices), a width other than in the fit, or no memory for
                a single row.
        """
        for field in self.reads:
            rows = checked_rows(self.name, embeddings, field, not self.checks_values)
            if rows.shape[1] != self._widths.setdefault(field, rows.shape[1]):
                raise ValueError(f'{self.name} was fit on {field} {self._widths[field]} wide, got {rows.shape[1]}: '
                                 'take both from the same model')
        return self._in_pieces(embeddings)

    def _in_pieces(self, embeddings: Embeddings, warned: bool = False) -> Tensor:
        """Knownness; as a row's is its own, a part at a time gives the same."""
        count = len(embeddings.label)
        try:
            return self.knownness(embeddings)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if count <= 1:
                raise ValueError(f'{self.name}: no memory left to score a single sample; move the embeddings and the '
                                 'fit to the CPU (--device cpu), or use a score of logits') from error
        # Outside the handler, whose traceback keeps the tensors of the failed attempt alive.
        if not warned:
            _logger.warning('%s: out of memory with %d samples at once, going on with halves', self.name, count)
        halves = (slice(0, count // 2), slice(count // 2, count))
        return torch.cat([self._in_pieces(embeddings.rows(rows), warned=True) for rows in halves])

    def __repr__(self) -> str:
        options = ', '.join(f'{key}={value!r}' for key, value in self.options.items())
        return f'{type(self).__name__}({options})'


def _check_kind(entry: Any) -> None:
    """Refuse what is no score, which would break every evaluation that names none."""
    if not (isinstance(entry, type) and issubclass(entry, Score)) or inspect.isabstract(entry):
        raise TypeError(f'{getattr(entry, "__name__", entry)}: expected a class that derives from '
                        'gradmix_timm.openset.scores.Score and has a method knownness(self, embeddings)')
    if not isinstance(entry.reads, tuple) or not set(entry.reads) <= set(_FIELDS):
        raise TypeError(f'{entry.__name__}: reads={entry.reads!r}, expected a tuple of {", ".join(_FIELDS)}')


#: All scores by name; a colon begins the options.
SCORES: Registry[type[Score]] = Registry('score', _check_kind, ':,')


def checked_rows(name: str, embeddings: Embeddings, field: str, values: bool = True) -> Tensor:
    """A field as rows that are there, of floats, not 0 wide, and finite (not looked at without ``values``).

    Raises:
        ValueError: They are not; ``name`` is the score's.
    """
    rows = getattr(embeddings, field)
    if rows is None:
        raise ValueError(f'{name} was fit on the output of a projection head and these embeddings have none: '
                         'take both from the same model')
    if rows.dim() != 2 or not rows.is_floating_point():
        raise ValueError(f'{name} reads {field} as float [N, width], got {rows.dtype} {list(rows.shape)}')
    if not rows.shape[1]:
        raise ValueError(f'{name} reads {field}, and the model has no layer at which {field} could be read: '
                         'give it a get_classifier()')
    # The sum is finite only if all terms are; checking row by row takes a hundred times as long, so it comes second.
    bad = (~rows.isfinite().all(1)).nonzero()[:, 0] if values and not rows.sum().isfinite() else ()
    if len(bad):
        shown = ', '.join(str(i) for i in embeddings.index[bad[:5]].tolist()) + (', ...' if len(bad) > 5 else '')
        raise ValueError(f'{name}: {field} of {len(bad)} of {len(rows)} samples are not finite (index {shown}); '
                         'half precision may have overflowed, extract them in float32')
    return rows
