"""Base class of mixers: draw once, apply deterministically, call like timm's Mixup with the live model as well."""
from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from gradmix_timm.attribution import score_function
from gradmix_timm.ops import as_targets, like, mix_targets, paste_donors, soft_targets, to_device
from gradmix_timm.ops.boxes import SHARE_UNIT
from gradmix_timm.records import Captured, MixDraw, Mixed

from .contract import BoundMixer, check_images
from .serving import ADVICE, serving

__all__ = ['BatchMixer', 'kept_draw', 'kept_weight', 'partners', 'uniform']


def uniform(rng: np.random.Generator, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) with all their bits, as :func:`gradmix_timm.ops.share_of` takes them: int64."""
    return to_device((rng.random(shape) * SHARE_UNIT).astype(np.int64), device)


def kept_draw(batch: int, device: torch.device, name: str) -> MixDraw:
    """The draw that leaves a batch unchanged."""
    kept = torch.ones(batch, dtype=torch.float32, device=device)
    return MixDraw.of(name, torch.arange(batch, device=device), kept)


def kept_weight(partner: Tensor) -> Tensor:
    """Label weights (1, 0) of images that keep their labels, float32 [B, 2]."""
    own = torch.ones(len(partner), dtype=torch.float32, device=partner.device)
    return torch.stack([own, torch.zeros_like(own)], 1)


def partners(rng: np.random.Generator, batch: int) -> np.ndarray:
    """The partner of each image: one random cycle through the batch, uniform among all cycles, int64 [B].

    No image is its own partner in batches of two or more, each is the partner of exactly one image, and each of the
    others is equally likely. A random permutation pairs one image in B with itself: half of the images for B = 2.

    Example:
        >>> partners(np.random.default_rng(0), 2)
        array([1, 0])
    """
    order = rng.permutation(batch)
    partner = np.empty_like(order)
    partner[order] = np.roll(order, 1)
    return partner


class BatchMixer:
    """A batch mixer: ``images, targets = mixer(images, labels, model)``.

    A subclass draws (:meth:`_draw`) and, unless it pastes a box or a mask, makes the images (:meth:`_paste`);
    checking, coins, seeding and labels are here.
    Every draw is a function of (seed, rank, epoch, step) alone, from a separate generator: no other random stream
    advances and nothing has to be saved with a checkpoint. In a data loader's worker (a mixer in ``collate_fn``) that
    has not called :meth:`set_step` itself, the worker's seed is a part of it: workers hold copies of the mixer, whose
    counters all begin at the same step. PyTorch draws these seeds anew in each epoch, from ``torch.manual_seed``.

    Args:
        num_classes: K, the columns of the returned targets.
        label_smoothing: s in [0, 1): on = 1 - s + s / K, off = s / K, as in timm; of multi-hot targets, as timm's
            ``Mixup(multi_label=True)``, on = 1 - s / 2, off = s / 2.
        prob: Probability that a batch is mixed.
        prob_elem: Probability that an image of a mixed batch is mixed.
        seed: Of the draws.
        rank: Of the process, so that ranks draw differently; None: that of ``torch.distributed``'s default group where
            it is initialised as the mixer is made, else 0.
        multi_label_mix: Take multi-hot targets, rows in [0, 1] that need not sum to one, and mix them as 'weight' (as
            other labels) or 'union' (every label of which something is seen). None: rows sum to one.
        unknown_output: The last of the K columns means no class: the share that a mixer gives to no class goes there
            instead of uniformly to all K. The model has K outputs, of which K - 1 are known classes.
    """

    #: Name in the registry.
    name: str = ''
    #: A model has to be given.
    requires_model: bool = False
    #: The model is differentiated.
    requires_grad: bool = False
    #: Labels may change.
    changes_labels: bool = True
    #: Rows of the returned targets sum to one where the given ones do.
    rows_sum_to_one: bool = True
    #: Whether ``lam`` of a draw is the share of an image that is kept.
    tells_lam: bool = True
    #: Whether part of the labels goes to no class.
    gives_unknown: bool = False
    #: Labels are known after the forward pass of the mix: see :meth:`watch`; until then they are by area.
    labels_after_forward: bool = False
    #: Rows that a call returns for each image: 2 where the clean batch comes before the mix.
    rows_per_image: int = 1
    #: A subclass's own options: attributes of these names.
    option_names: tuple[str, ...] = ()
    #: See :func:`~gradmix_timm.mixers.serving.serving`.
    advice: Mapping[str, str] = ADVICE

    def __init__(self, num_classes: int, label_smoothing: float = 0.0, prob: float = 1.0, prob_elem: float = 1.0,
                 seed: int = 0, rank: int | None = None, multi_label_mix: str | None = None,
                 unknown_output: bool = False) -> None:
        if multi_label_mix not in (None, 'weight', 'union'):
            raise ValueError(f"multi_label_mix is 'weight', 'union' or None, got {multi_label_mix!r}")
        for field, value in (('prob', prob), ('prob_elem', prob_elem)):
            if not 0 <= value <= 1:
                raise ValueError(f'{field} is a probability in [0, 1], got {value}')
        if not 0 <= label_smoothing < 1:
            raise ValueError(f'label_smoothing is in [0, 1), got {label_smoothing}')
        if unknown_output and multi_label_mix:
            raise ValueError('unknown_output with multi_label_mix: sigmoids say no class by themselves; leave one of '
                             'them out')
        if num_classes % 1 != 0 or num_classes < 1:
            raise ValueError(f'num_classes is a whole number of at least 1, got {num_classes!r}')
        if not isinstance(unknown_output, bool):
            raise ValueError(f'unknown_output is True or False, got {unknown_output!r}')
        rank = _rank() if rank is None else rank
        for field, value in (('seed', seed), ('rank', rank)):
            if value % 1 != 0:  # infinity too
                raise ValueError(f'{field} is a whole number, got {value!r}')
        self.num_classes, self.label_smoothing = int(num_classes), float(label_smoothing)
        self.prob, self.prob_elem = float(prob), float(prob_elem)
        self.seed, self.rank = int(seed), int(rank)
        self.multi_label_mix, self.unknown_output = multi_label_mix, unknown_output
        self.mixup_enabled = True
        self._epoch, self._step = 0, 0
        self._stepped_in: int | None = None

    # ---- for callers

    @property
    def options(self) -> dict[str, Any]:
        """Every option that shapes a draw, as plain values; ``create_mixer(name, **options)`` makes the same mixer."""
        own = {name: getattr(self, name) for name in self.option_names}
        if self.multi_label:
            own['multi_label_mix'] = self.multi_label_mix
        if self.unknown_output:
            own['unknown_output'] = True
        return {**own, 'num_classes': self.num_classes, 'label_smoothing': self.label_smoothing, 'prob': self.prob,
                'prob_elem': self.prob_elem, 'seed': self.seed, 'rank': self.rank}

    @property
    def multi_label(self) -> bool:
        """Multi-hot targets (rows that do not sum to one) are taken."""
        return self.multi_label_mix is not None

    def __repr__(self) -> str:
        return f'{type(self).__name__}({", ".join(f"{k}={v!r}" for k, v in self.options.items())})'

    @property
    def parts(self) -> tuple[BatchMixer, ...]:
        """The mixers that it alternates, or the mixer itself."""
        return (self,)

    def bound_to(self, model: nn.Module) -> BoundMixer:
        """A callable ``(images, targets)``, for training loops without the model argument; see :class:`BoundMixer`."""
        return BoundMixer(self, model)

    def set_step(self, epoch: int, step: int) -> None:
        """The next draw is that of (epoch, step); later ones count on from there."""
        self._epoch, self._step = int(epoch), int(step)
        self._stepped_in = _worker_seed()

    def prepare(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        """Check once, before any data is loaded, that the mixer can serve the model at (C, H, W).

        Raises:
            ValueError: It cannot; the message names model, mixer and remedy.
        """
        with serving(self.name, model, self.advice):
            self._prepare(model, input_size)

    def __call__(self, images: Tensor, targets: Any = None, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Mix one batch.

        Args:
            images: float [B, C, H, W], any size, channels, dtype and memory format.
            targets: Class indices [B] in 0..K-1 (a tensor of any integer type, an array, a list), or float [B, K] with
                rows that sum to one.
            model: The live model, for mixers that need one; it is left bit for bit unchanged.

        Returns:
            New images like the given ones, and targets float32 [B, K]. With ``mixup_enabled = False`` the same
            images and smoothed one-hots, without any pass over the model.

        Raises:
            ValueError: Images or labels of another shape, kind or range.
            TypeError: Images are not a tensor (a packed batch among them), or labels are not numbers.
        """
        mixed = self.mix(images, targets, model)
        return mixed.input, mixed.target

    def mix(self, images: Tensor, targets: Tensor, model: nn.Module | None = None) -> Mixed:
        """Mix one batch as by a call; the result also holds the draw."""
        if not self.mixup_enabled:
            targets = self._check_batch(images, targets)
            rows = self._rows(targets, images.device)
            return Mixed(images, rows, None)
        return self._mixed(images, targets, self.draw(images, targets, model))

    @contextmanager
    def watch(self, model: nn.Module, mixed: Mixed) -> Iterator[Callable[[object], Tensor]]:
        """A context around the forward pass of a mix; yields a function that returns its targets after the pass.

        Args:
            model: The live model.
            mixed: Of :meth:`mix`.

        Example:
            >>> from gradmix_timm import create_mixer
            >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
            >>> mixer = create_mixer('cutmix', num_classes=2)
            >>> mixed = mixer.mix(torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, 1, 0]))
            >>> with mixer.watch(model, mixed) as finish:
            ...     output = model(mixed.input)
            >>> loss = nn.functional.cross_entropy(output, finish(output))
        """
        yield lambda output: mixed.target

    def batch_of(self, images: Tensor, targets: Tensor, draw: MixDraw) -> tuple[Tensor, Tensor]:
        """The training batch: the mix of :meth:`apply`, after the clean batch if ``rows_per_image`` is 2."""
        mixed, rows = self.apply(images, targets, draw)
        if self.rows_per_image == 1:
            return mixed, rows
        clean = self._rows(targets, images.device)
        return torch.cat([images.detach(), mixed]), torch.cat([clean, rows])

    @torch.compiler.disable
    def draw(self, images: Tensor, targets: Tensor, model: nn.Module | None = None,
             generator: torch.Generator | np.random.Generator | None = None) -> MixDraw:
        """Draw all random parts of the mix of this batch; advances the step counter unless ``generator`` is given.

        Args:
            images: float [B, C, H, W].
            targets: int64 [B] or float [B, K].
            model: The live model, for mixers that need one.
            generator: Draw from it instead of (seed, rank, epoch, step).
        """
        targets = self._check_batch(images, targets)
        if self.requires_model and model is None:
            raise ValueError(f'mixer {self.name!r} reads attribution maps from the live model and got none; '
                             'call mixer(images, targets, model)')
        rng, batch = self._generator(generator), images.shape[0]
        coins, partner = self._toss(rng, batch)
        read = model if self.requires_model else None
        with torch.inference_mode(False), torch.no_grad(), serving(self.name, read, self.advice):
            if not coins.any():
                return kept_draw(batch, images.device, self.name)
            return self._draw(images, targets, model, rng, coins, partner)

    def draw_from(self, images: Tensor, captured: Sequence[Captured], targets: Tensor | None = None,
                  rows: slice = slice(None), generator: torch.Generator | np.random.Generator | None = None) -> MixDraw:
        """As :meth:`draw`, with maps from layers already captured; a mixer without maps ignores them."""
        return self.draw(images, torch.zeros(images.shape[0], dtype=torch.int64), None, generator)

    def apply(self, images: Tensor, targets: Tensor, draw: MixDraw) -> tuple[Tensor, Tensor]:
        """The mix that ``draw`` describes; deterministic and without the model."""
        with torch.no_grad():
            rows = self._rows(targets, images.device)
            union = self.multi_label_mix == 'union'
            # With a sigmoid for each label, no class means all zeros.
            unknown = None if self.multi_label else draw.unknown
            targets = mix_targets(rows, draw.partner, draw.weight, union, unknown, self.unknown_output)
            return self._paste(images, draw), targets

    # ---- for subclasses

    def _prepare(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        """What :meth:`prepare` checks."""

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        """The draw; rows whose coin (bool [B], on the host) is False keep their image and label."""
        raise NotImplementedError

    def _paste(self, images: Tensor, draw: MixDraw) -> Tensor:
        """New images by the draw; here the partner's pixels in its box, or where its mask is 0, bit for bit."""
        if draw.mask is None:
            return paste_donors(images, draw.partner, draw.dst)
        return like(torch.where(draw.mask > 0.5, images, images.index_select(0, draw.partner)), images)

    def _needs_partner(self) -> bool:
        return True

    def _score(self, score: str | Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """The differentiated score, for models with a logit a class; one may be of two, that of no class folded in."""
        function = score_function(score)
        widths = (self.num_classes, self.num_classes - self.unknown_output, *((1,) if self.num_classes <= 2 else ()))

        def checked(logits: Tensor, targets: Tensor) -> Tensor:
            width = logits.shape[1]
            if width not in widths or (width > 1 and targets.dim() == 2 and width != targets.shape[1]):
                raise ValueError(f'num_classes={self.num_classes}, but the model gives {width} logits: give the whole '
                                 f'classifier and not its backbone, or num_classes={width}')
            return function(logits, targets)

        return checked

    # ---- internal

    def _mixed(self, images: Tensor, targets: Tensor, draw: MixDraw) -> Mixed:
        own = self._rows(targets, images.device) if self.labels_after_forward else None
        return Mixed(*self.batch_of(images, targets, draw), draw, own)

    def _rows(self, targets: Any, device: torch.device) -> Tensor:
        """The smoothed rows of labels, float32 [B, K]."""
        return soft_targets(targets, self.num_classes, self.label_smoothing, device, self.multi_label)

    def _toss(self, rng: np.random.Generator, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Which images are mixed, bool [B], and their partners; an unmixed image may be a partner."""
        coins = np.logical_and(rng.random() < self.prob, rng.random(batch) < self.prob_elem)
        if batch == 1 and self._needs_partner():
            warnings.warn(f'mixer {self.name!r} got a batch of one image, which has no partner: left unmixed',
                          stacklevel=4)
            coins[:] = False
        return coins, partners(rng, batch)

    def _generator(self, given: torch.Generator | np.random.Generator | None) -> np.random.Generator:
        if isinstance(given, np.random.Generator):
            return given
        if isinstance(given, torch.Generator):
            seed = torch.randint(2 ** 63 - 1, (), generator=given, device=given.device, dtype=torch.int64)
            return np.random.default_rng(int(seed))
        if given is not None:
            raise TypeError(f'generator is a torch or NumPy generator, got {type(given).__name__}')
        # SeedSequence takes non-negative words, so a negative seed is wrapped around.
        words = [w % 2 ** 64 for w in (self.seed, self.rank, self._epoch, self._step)]
        worker = _worker_seed()
        if worker is not None and worker != self._stepped_in:
            words.append(worker % 2 ** 64)
        self._step += 1
        return np.random.default_rng(words)

    def _check_batch(self, images: Tensor, targets: Any) -> Tensor:
        """The labels as a tensor, with images and labels checked.

        Shapes and dtypes always; label values on the CPU, on a GPU only in the first steps (reading them synchronises).
        """
        check_images(images)
        targets = as_targets(targets)
        if self.multi_label and targets.dim() == 2:
            targets = targets.float()
        if not targets.dim() or len(targets) != images.shape[0]:
            raise ValueError(f'{images.shape[0]} images but {len(targets) if targets.dim() else "a single number as"} '
                             'targets')
        if targets.dim() == 1:
            if targets.dtype != torch.int64:
                raise ValueError(f'1-D targets are class indices (int64), got {targets.dtype}')
        elif targets.dim() != 2 or targets.shape[1] != self.num_classes or not targets.is_floating_point():
            raise ValueError(f'expected targets int64 [B] or float [B, {self.num_classes}], got '
                             f'{targets.dtype} {list(targets.shape)}')
        if targets.device.type == 'cpu' or (self._epoch == 0 and self._step < 2):
            self._check_values(targets)
        return targets

    def _check_values(self, targets: Tensor) -> None:
        if not targets.numel():
            return
        if targets.dim() == 1:
            low, high = int(targets.min()), int(targets.max())
            if low < 0 or high >= self.num_classes:
                raise ValueError(f'labels run from {low} to {high}, expected 0..{self.num_classes - 1} (num_classes='
                                 f'{self.num_classes}); labels begin at 0, num_classes is the width of the classifier')
        elif self.multi_label:
            if not bool(((targets >= 0) & (targets <= 1)).all()):
                raise ValueError('multi-hot targets are in [0, 1]')
        elif not bool(((targets.float().sum(1) - 1).abs() <= 1e-2).all()):
            raise ValueError(f'mixer {self.name!r} takes soft targets whose rows sum to one; these do not '
                             "(multi-hot?). For multi-label tasks give multi_label_mix='weight' or 'union' "
                             '(--multi-label-mix)')


def _worker_seed() -> int | None:
    """The seed of this worker of a data loader, new in every epoch; None outside of workers."""
    info = get_worker_info()
    return None if info is None else int(info.seed)


def _rank() -> int:
    """Of this process in the default group, 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
