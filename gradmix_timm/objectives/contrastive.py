"""Contrastive training of two views of every image, with one of them mixed: SupCon + SSL, SimCLR."""
from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradmix_timm.attribution import resolve_layers, score_function, unwrap
from gradmix_timm.attribution.capture import Watch
from gradmix_timm.checkpoint import ProjectionHead
from gradmix_timm.mixers import GradMix, Mixer
from gradmix_timm.ops import image_size
from gradmix_timm.records import Captured, MixDraw

from .gather import gather_rows, own_rows
from .heads import Projected, feature_width
from .losses import JointConfig, instance_logits, joint_terms, weigh_terms
from .sharing import SecondPass, kept_buffers, watch_training

__all__ = ['ATTRIBUTION_TEMPERATURE', 'ContrastiveTask', 'JointTask', 'guiding_mixer']

_logger = logging.getLogger(__name__)

#: Temperature of the loss that the maps differentiate; the GradMix authors fix it, regardless of that of the training.
ATTRIBUTION_TEMPERATURE = 0.05
# T / T0 of the loss whose gradient the authors normalise with an absolute epsilon.
_AUTHORS_SCALE = ATTRIBUTION_TEMPERATURE / JointConfig().base_temperature


def guiding_mixer(mixer: Mixer | None) -> GradMix | None:
    """The part of a mixer that reads maps, or None; rejects mixers that cannot mix views.

    Raises:
        ValueError: timm's class, which has no draw; options that need a separate pass.
    """
    if mixer is None:
        return None
    silent = next((part for part in mixer.parts if not part.tells_lam), None)
    if silent is not None:
        raise ValueError(f'a contrastive objective weighs an image by the share that its draw keeps; {silent.name!r} '
                         'reports none: register a class with draws (BatchMixer), or use --mixup-mode mixup or cutmix')
    guides = [part for part in mixer.parts if isinstance(part, GradMix)]
    foreign = next((part for part in mixer.parts if part.requires_model and part not in guides), None)
    if foreign is not None:
        raise ValueError(f'{foreign.name!r} reads the evidence of classes, and a contrastive objective trains features '
                         'of views: use --objective ce, or --mixup-mode gradmix, cutmix, ...')
    for part in guides:
        for flag, on in (('--gradmix-keep-clean', part.config.keep_clean),
                         ('--gradmix-attr-scale', part.config.attr_scale != 1),
                         ('--gradmix-attribution input-gradient', part.config.attribution == 'input-gradient')):
            if on:
                raise ValueError(f'{flag} with a contrastive objective: the clean views are trained on in any case, '
                                 'and the same forward gives the maps of the target layers; leave it out')
        if part.config.confidence:
            raise ValueError('--gradmix-confidence with a contrastive objective: its maps tell the views of images '
                             'apart, not classes, so no label has a probability; leave it out')
    return next((part for part in guides if part.requires_model), None)


class ContrastiveTask(TrainingTask):
    """Base class of the contrastive tasks: a projected model, views, one forward for loss and maps, state.

    A batch is [2 B, C, H, W]: view 1 of every image, then view 2 of every image, as timm's collate lays out tuples.
    View 1 is mixed, view 2 is not; labels never are. The class head takes no part and is frozen.

    Args:
        model: timm's classifier.
        mixer: A mixer of the registry that has draws; None or 'none': no mixed term.
        dim: Width of the projection.
        hidden: Width inside the projection head; None: that of the features.
        temperature: T of the loss.
        device: Of the task's own tensors.
        dtype: Of the projection head.
        verbose: Log what is trained.

    Raises:
        ValueError: A mixer that cannot mix views, a model without features, a number out of range.
    """

    #: Tells the training loop that the task calls its mixer itself.
    mixes: ClassVar[bool] = True
    #: Views of an image in a batch.
    views: ClassVar[int] = 2

    def __init__(self, model: nn.Module, mixer: Any = None, *, dim: int = 128, hidden: int | None = None,
                 temperature: float = 0.05, device: torch.device | None = None, dtype: torch.dtype | None = None,
                 verbose: bool = True) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        if not temperature > 0:
            raise ValueError(f'the temperature is above 0, got {temperature}')
        self._guide, self._again = guiding_mixer(mixer), SecondPass()
        self.mixer, self.temperature, self.dim = mixer, float(temperature), dim
        head = ProjectionHead(feature_width(model), dim, hidden).to(device=self.device, dtype=self.dtype)
        self.trainable_module: nn.Module = Projected(model, head)
        if verbose:
            _logger.info(f'{type(self).__name__}: projection {head.fc1.in_features}-{head.fc1.out_features}-{dim}, '
                         f'temperature {temperature:g}')

    # ---- timm's contract

    def prepare_distributed(self, device_ids: list | None = None, **options: Any) -> ContrastiveTask:
        """Wrap model and projection head together."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **options)
        return self

    def compile(self, backend: str = 'inductor', mode: str | None = None,  # type: ignore[override]
                **options: Any) -> nn.Module:
        """Compile the trained module and the evaluated model."""
        compiled: nn.Module = torch.compile(  # type: ignore[assignment]
            self._projected().student, backend=backend, mode=mode, **options)
        self.eval_model = compiled
        self.trainable_module = torch.compile(  # type: ignore[assignment]
            self.trainable_module, backend=backend, mode=mode, **options)
        return compiled

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The classifier, without its projection head."""
        found = super().get_eval_model(module, ema=ema)
        inner = None if found is None else unwrap_model(found)
        return inner.student if isinstance(inner, Projected) else found

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The projection head: {'projection_head': its weights}."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        return {} if module is None else {'projection_head': unwrap_model(module).projection.state_dict()}

    def load_task_state(self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None,
                        ema: bool = False) -> None:
        """Load the state of :meth:`get_task_state`.

        Raises:
            ValueError: A checkpoint without a projection head, or one of another width.
        """
        module = module if module is not None else self.get_trainable_module(ema=ema)
        weights = (state or {}).get('projection_head')
        if weights is None and strict:
            raise ValueError('the checkpoint holds no projection head: it is of --objective ce, or of another program')
        if module is not None and weights is not None:
            unwrap_model(module).projection.load_state_dict(weights, strict=strict)

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Trainable parameters, without the class head."""
        return [weight for weight in self._projected().parameters() if weight.requires_grad]

    # ---- inside

    def _projected(self) -> Projected:
        inner = unwrap(self.trainable_module)
        assert isinstance(inner, Projected)
        return inner

    @property
    def _mixing(self) -> bool:
        """Whether the mixed term is on; the same for all processes, independent of their draws."""
        return self._mixable and self.mixer.mixup_enabled

    @property
    def _mixable(self) -> bool:
        """Whether there is a mixed term at all; switched off it is 0, so that a table of losses keeps its columns."""
        return self.mixer is not None and self.mixer.name != 'none'

    @contextmanager
    def _watched(self, images: Tensor) -> Iterator[Watch | None]:
        """Hooks on the target layers for the clean forward, where the mixer reads maps."""
        if self._guide is None or not self._mixing:
            yield None
            return
        model = self._projected().student
        size = (images.shape[1], *image_size(images))
        with watch_training(model, resolve_layers(model, size, self._guide.config.layers)) as seen:
            yield seen

    def _captured(self, seen: Watch, logits: Tensor, labels: Tensor, images: Tensor) -> list[Captured]:
        """The watched layers and the gradient there of the mixer's score for identifying the other view."""
        assert self._guide is not None
        with torch.autocast(images.device.type, enabled=False), kept_buffers(self._projected().student):
            score = score_function(self._guide.config.score)(logits, labels).sum()
            if self._guide.config.recipe == 'authors':  # theirs is a mean, and their normalisation depends on the scale
                score = score * (_AUTHORS_SCALE / logits.shape[0])
            return seen.captured(logits, score, image_size(images), retain_graph=True)

    def _draw(self, view: Tensor, captured: Sequence[Captured] | None) -> MixDraw:
        """The mixer's next draw for view 1, the first rows of the pass that was captured."""
        if captured is None:
            return self.mixer.draw(view, self._no_labels(view))
        return self.mixer.draw_from(view, captured, rows=slice(len(view)))

    def _paste(self, view: Tensor, draw: MixDraw) -> Tensor:
        mixed: Tensor = self.mixer.apply(view, self._no_labels(view), draw)[0]
        return mixed

    @staticmethod
    def _no_labels(view: Tensor) -> Tensor:
        """Labels for the mixer's checks, unused otherwise: a mixed view keeps the label of its image."""
        return torch.zeros(len(view), dtype=torch.int64)

    def _split(self, input: Tensor) -> int:
        """Images in a batch of two views.

        Raises:
            ValueError: An odd number of rows.
        """
        if input.shape[0] % self.views:
            raise ValueError(f'a batch of two views holds view 1 of every image, then view 2 of every image; got '
                             f'{input.shape[0]} rows')
        return input.shape[0] // self.views


class JointTask(ContrastiveTask):
    """L = gamma * L_sup + ssl_weight * (L_ssl + lam * L_mix): GradMix's objective; SimCLR with gamma = 0.

    The clean forward serves the loss and the maps: forward of 2 B clean views with its graph, gradient of the score at
    the target layers (p forwards), forward of view 1 mixed and view 2 as it is: 2 (F + 2 F) + p F for a step, where
    the authors' code takes 3 (F + 2 F). What the maps differentiate is the self-supervised loss as a classifier of
    views (:func:`instance_logits`): 'evidence' is the log-odds of the other view, 'loss' is +L_ssl, as theirs. With
    several processes every anchor meets the features of all of them, in the loss and in the maps.

    ``lam`` is the kept share of each image as drawn; 1 for an image that the coin leaves unmixed.

    Args:
        model: timm's classifier.
        mixer: See :class:`ContrastiveTask`.
        config: Weights and temperatures.
        **options: See :class:`ContrastiveTask`.

    Raises:
        ValueError: A mixer whose term has the weight 0; see :class:`ContrastiveTask`.

    Example:
        >>> import timm
        >>> from gradmix_timm import create_mixer
        >>> model = timm.create_model('test_resnet', num_classes=4)
        >>> task = JointTask(model, create_mixer('gradmix', num_classes=4), dim=16, verbose=False)
        >>> views = torch.randn(2 * 6, 3, 64, 64)  # view 1 of six images, then view 2
        >>> sorted(task(views, torch.tensor([0, 0, 1, 1, 2, 2]).repeat(2)))
        ['draw', 'loss', 'loss_mix', 'loss_ssl', 'loss_sup', 'output']
    """

    def __init__(self, model: nn.Module, mixer: Any = None, config: JointConfig | None = None, **options: Any) -> None:
        config = config or JointConfig()
        super().__init__(model, mixer, temperature=config.temperature, **options)
        if self._mixable and not config.ssl_weight:
            raise ValueError(f'ssl_weight=0 with mixer {mixer.name!r}: the mixed term has that weight too, so that '
                             'nothing would be mixed; leave one of them out')
        self.config = config

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Any]:
        """Losses of one batch.

        Args:
            input: [2 B, C, H, W], view 1 of every image, then view 2.
            target: Class of every row, int64 [2 B] (the first B are read), or [B].

        Returns:
            'loss'; its terms before their weights 'loss_sup', 'loss_ssl', 'loss_mix', as far as they are there;
            'output', the features float32 [2 B, P]; 'draw', where there is a mix.
        """
        batch = self._split(input)
        with self._watched(input) as seen:
            output = self.trainable_module(input)
        own = own_rows(batch, input.device)
        clean = gather_rows(_paired(output))
        mixed, lam, draw = None, torch.ones((), device=input.device), None
        if self._mixing and self.config.ssl_weight:
            captured = None
            if seen is not None:
                captured = self._captured(seen, *instance_logits(clean, ATTRIBUTION_TEMPERATURE, own), images=input)
            draw = self._draw(input[:batch], captured)
            views = torch.cat([self._paste(input[:batch], draw), input[batch:]])
            mixed, lam = gather_rows(_paired(self._again(self.trainable_module, views))), gather_rows(draw.lam)
        labels = gather_rows(target[:batch]) if self.config.gamma else None
        terms = joint_terms(clean, mixed, labels, lam, self.config, own)
        if self._mixable:
            terms.setdefault('mix', output.new_zeros(()))
        return {'loss': weigh_terms(terms, self.config), 'output': output.detach(),
                **{f'loss_{name}': term.detach() for name, term in terms.items()},
                **({'draw': draw} if draw is not None else {})}


def _paired(rows: Tensor) -> Tensor:
    """[2 B, P], view 1 first, as [B, 2, P]."""
    return rows.unflatten(0, (2, -1)).transpose(0, 1)
