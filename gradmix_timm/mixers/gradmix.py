"""GradMix: cover the region of the model's evidence with another image's pixels (arXiv:2505.12803)."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from gradmix_timm.attribution import (
    CONTROLS,
    capture_for,
    check_input_gradient,
    fuse,
    layer_maps,
    resolve_layers,
    to_pixels,
    two_classes,
)
from gradmix_timm.attribution.authors import authors_map
from gradmix_timm.ops import (
    argmax_center,
    box_lam,
    box_mass,
    boxes_at,
    boxes_inside,
    image_size,
    noise_fill,
    paste,
    paste_resized,
    sample_center,
    share_of,
    to_device,
    whole_boxes,
    window_boxes,
)
from gradmix_timm.ops.authors import authors_sides
from gradmix_timm.options import OPTIONS, RECIPES, GradMixOptions
from gradmix_timm.records import AttributionMap, Captured, MixDraw
from gradmix_timm.registry import nearest

from .base import BatchMixer, uniform
from .plain import box_sides, draw_lam

__all__ = ['GradMix']


class GradMix(BatchMixer):
    """A box over the evidence of each image, filled from a partner; labels by the visible shares.

    Xu, Kao & Keuper, "Informed Mixing -- Improving Open Set Recognition via Attribution-based Augmentation",
    arXiv:2505.12803: what the model has already learned is masked while it trains, so that it has to find more. The
    options of the authors' code are ``recipe='authors'``; the defaults are chosen by measurements (docs/results).

    A step, by the default options. A is the output of the target layer and s the log-odds of the label y, taken by a
    forward and a backward that borrow the model; x_p, y_p are a partner's image and label, lam ~ U(0.6, 0.95)::

        G  = ds / dA
        M  = sum_c relu(G_c) A_c, its negative part cut off, resized to the pixels     (LayerCAM)
        B  = the box of sides (H, W) sqrt(1 - lam), whole pixels, over which M has the largest sum
        x~ = x_p in B, x elsewhere
        y~ = lam' y + (1 - lam') y_p                                                   lam' = 1 - |B| / (H W)

    The ordinary step follows on (x~, y~). Cost: (4 + p) / 3 of an unmixed step, p the share of the forward behind the
    target layer nearest the input. The authors' code differentiates their loss and fills B with noise.

    Labels (option ``label``), with m the share of an image's own map that its box hides and lam the share of pixels
    that it keeps: 'area' lam y + (1 - lam) y_partner; 'mass' the same with the evidence seen of each, 1 - m and the
    partner's m in the pasted box, over their sum; 'keep' y.

    ``confidence`` c > 0 leaves an image as it is, with its own label, unless the attribution pass gives that label a
    probability of c or more: what is covered has then been learned. Smoothed labels ask for less than 1, so c is a
    share of what they ask for, 1 - s + s / K. Of soft labels the one with the largest share counts, c as a share of it.
    Of several labels an image, each judged by its own sigmoid, the least sure counts; an image without any is left as
    it is. A loss of logits / T fits those probabilities to the labels: set ``temperature`` to T. With a confidence
    labels are kept unless ``label`` says otherwise. ``train.py`` takes 0.9 where none is typed; here all are mixed.

    Attributes:
        temperature: By which the logits are divided before ``confidence`` looks at them, 1 at first.
        sigmoids: Whether ``confidence`` looks at the label's own sigmoid, as a binary cross-entropy trains it, and not
            at the softmax; False at first.

    Args:
        num_classes: K.
        label_smoothing: See :class:`BatchMixer`, as are prob, prob_elem, seed, rank and unknown_output.
        prob: Unmixed batches cost no attribution.
        prob_elem: Unmixed images cost no attribution.
        seed: Of the draws.
        rank: Of the process; None: that of ``torch.distributed``.
        multi_label_mix: Of multi-hot targets, whose evidence is the sum of the log-odds of the positive labels: their
            logits, as each label has a sigmoid of its own.
        **options: Fields of :class:`GradMixOptions`; ``score`` also takes a callable ``(logits, labels) -> [B]``.

    Raises:
        ValueError: An unknown option or value; the message names the nearest.

    Example:
        >>> GradMix(10, attribution='center').options['attribution']
        'center'
    """

    name: str = 'gradmix'
    requires_model: bool = True
    requires_grad: bool = True
    temperature: float = 1.0
    sigmoids: bool = False
    advice: Mapping[str, str] = {}

    def __init__(self, num_classes: int, label_smoothing: float = 0.0, prob: float = 1.0, prob_elem: float = 1.0,
                 seed: int = 0, rank: int | None = None, multi_label_mix: str | None = None,
                 unknown_output: bool = False, **options: Any) -> None:
        super().__init__(num_classes, label_smoothing, prob, prob_elem, seed, rank, multi_label_mix, unknown_output)
        unknown = [name for name in options if name not in OPTIONS]
        if unknown:
            raise ValueError(f'mixer {self.name!r} has no option {unknown[0]!r}: {nearest(unknown[0], OPTIONS)}')
        recipe = options.get('recipe', 'default')
        chosen = RECIPES.get(recipe, {}) if isinstance(recipe, str) else {}  # the options refuse what is none
        self.config = GradMixOptions(**{**chosen, **_plain_options(options)})
        if self.multi_label and self.config.score == 'loss':
            raise ValueError("score='loss' is the cross-entropy of one label per image; for multi-hot targets take "
                             "'evidence' or 'logit' (--gradmix-score)")
        control = self.config.attribution in CONTROLS
        if control and self.config.confidence:
            raise ValueError(f'confidence={self.config.confidence} with attribution={self.config.attribution}: '
                             'a control does not ask the model; leave one of them out, or, for a box anywhere on '
                             "the images that a confidence chooses, take attribution='layercam', center='random'")
        if control:
            self.name = f'{self.config.attribution}-box'
        self.requires_model = self.requires_grad = not control
        self.changes_labels = not self._keeps_label()
        # Here the maps are a pass of their own; objectives.KeepCleanTask shares the clean forward.
        self.rows_per_image = 2 if self.config.keep_clean else 1

    @property
    @override
    def options(self) -> dict[str, Any]:
        return {**asdict(self.config), **super().options}

    def _prepare(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        """Resolve and check the target layers at the size of the attribution pass."""
        if not self.requires_model:
            return
        channels, height, width = input_size
        scaled = self._scaled_size((height, width))
        try:
            if self.config.attribution == 'input-gradient':
                check_input_gradient(model, (channels, *scaled))
            else:
                resolve_layers(model, (channels, *scaled), self.config.layers)
        except ValueError as error:
            if scaled == (height, width):
                raise
            raise ValueError(f'attribution at scale {self.config.attr_scale} runs the model on '
                             f'{scaled[0]}x{scaled[1]} pixels: {error}. Leave attr_scale at 1 '
                             '(--gradmix-attr-scale), choose another, or let a transformer take any size, '
                             'dynamic_img_size=True (--model-kwargs dynamic_img_size=True)') from error

    # ---- maps

    def maps(self, model: nn.Module, images: Tensor, targets: Tensor) -> AttributionMap:
        """The fused map of every image as this mixer uses it, from one borrowed pass."""
        return self.fused(self.captured(model, images, targets), image_size(images))

    @property
    def score(self) -> Callable[[Tensor, Tensor], Tensor]:
        """What is differentiated, ``(logits, targets) -> [B]``; see :class:`GradMix` for multi-hot targets."""
        return self._score('logit' if self.multi_label and self.config.score == 'evidence' else self.config.score)

    def captured(self, model: nn.Module, images: Tensor, targets: Tensor) -> list[Captured]:
        """The target layers of one borrowed pass, at ``attr_scale``."""
        size = self._scaled_size(image_size(images))
        if size != image_size(images):
            images = F.interpolate(images.float(), size=size, mode='bilinear', antialias=True).to(images.dtype)
        return capture_for(model, images, targets.to(images.device), self.config.layers, self.config.attribution,
                           self.score)

    def fused(self, captured: Sequence[Captured], size: tuple[int, int]) -> AttributionMap:
        """One map an image from the captured layers; the authors' recipe normalises over the batch instead."""
        fused = fuse(layer_maps(captured, self.config.attribution), size)
        if self.config.recipe != 'authors':
            return fused
        # One non-finite row would otherwise spoil the minimum and maximum, which all rows share.
        broken = fused.degenerate[:, None, None, None]
        sound = [replace(c, activation=c.activation.masked_fill(broken, 0), gradient=c.gradient.masked_fill(broken, 0))
                 for c in captured]
        pixels = authors_map(sound, size, self.config.attribution)
        mass = pixels.sum((1, 2), keepdim=True)
        return AttributionMap(torch.where(mass > 0, pixels / mass, torch.zeros_like(pixels)), fused.degenerate, (1, 1))

    def _scaled_size(self, size: tuple[int, int]) -> tuple[int, int]:
        scale = self.config.attr_scale
        height, width = round(size[0] * scale), round(size[1] * scale)
        if min(height, width) < 1 <= min(size):
            raise ValueError(f'attr_scale={scale:g} of {size[0]}x{size[1]} pixels leaves {height}x{width}, expected a '
                             'pixel or more of either side: choose a larger one (--gradmix-attr-scale)')
        return height, width

    def _rows_maps(self, images: Tensor, targets: Tensor, model: nn.Module, rows: np.ndarray,
                   ) -> tuple[AttributionMap, Tensor | None]:
        """Maps of the selected rows, zeros for the others, and which labels the model is sure of.

        Only the selected rows pass through the model.
        """
        index = to_device(rows, images.device)
        every, batch = len(rows) == images.shape[0], images.shape[0]
        images, targets = (images, targets) if every else (images[index], targets.to(images.device)[index])
        captured = self.captured(model, images, targets)
        found, sure = self.fused(captured, image_size(images)), self._sure(captured, targets)
        if every:
            return found, sure
        maps = found.map.new_zeros(batch, *found.map.shape[1:]).index_copy_(0, index, found.map)
        flags = found.degenerate.new_zeros(batch).index_copy_(0, index, found.degenerate)
        sure = None if sure is None else sure.new_zeros(batch).index_copy_(0, index, sure)
        return AttributionMap(maps, flags, found.stride), sure

    def _sure(self, captured: Sequence[Captured], targets: Tensor | None) -> Tensor | None:
        """Whether the model gives the label ``confidence`` or more, bool [B]; None where every image is mixed."""
        if targets is None or not self.config.confidence:
            return None
        logits = captured[0].logits / self.temperature
        targets = targets.to(logits.device)
        if self.multi_label:
            rows = targets if targets.ndim == 2 else F.one_hot(targets, logits.shape[1])
            present = rows > 0
            probability = logits.sigmoid().masked_fill(~present, 1.0).amin(1) * present.any(1)
        else:
            labels = targets if targets.ndim == 1 else targets.argmax(1)
            if self.num_classes > 1:
                logits, _ = two_classes(logits, labels)
            shares = logits.sigmoid() if self.sigmoids else logits.softmax(1)
            probability = shares.gather(1, labels[:, None])[:, 0]
        smoothing, values = self.label_smoothing, 2 if self.multi_label else self.num_classes
        asked = probability.new_ones(()) if self.multi_label or targets.ndim == 1 else targets.amax(1).float()
        return probability >= self.config.confidence * (asked * (1 - smoothing) + smoothing / values)

    # ---- the draw

    def draw_from(self, images: Tensor, captured: Sequence[Captured], targets: Tensor | None = None,
                  rows: slice = slice(None), generator: torch.Generator | np.random.Generator | None = None) -> MixDraw:
        """The next draw with maps from layers already captured, e.g. by the forward of the clean batch.

        Args:
            images: [B, C, H, W].
            captured: Layers of a forward pass that included these images.
            targets: Labels of that pass, for ``confidence``; None mixes images whatever the model says of them.
            rows: Positions of the images in that pass's batch.
            generator: See :meth:`draw`.
        """
        if not self.requires_model:
            return super().draw_from(images, captured, targets, rows, generator)
        rng = self._generator(generator)
        coins, partner = self._toss(rng, images.shape[0])
        with torch.no_grad():
            found = self.fused(captured, image_size(images))
            attribution = AttributionMap(found.map[rows], found.degenerate[rows], found.stride)
            sure = self._sure(captured, targets)
            return self._place(images, rng, coins, partner, attribution, None if sure is None else sure[rows])

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        attribution = sure = None
        if self.requires_model and model is not None:
            needed = coins.copy()
            if self.config.label == 'mass' and not self._keeps_label():
                needed[partner[coins]] = True
            attribution, sure = self._rows_maps(images, targets, model, np.flatnonzero(needed))
        return self._place(images, rng, coins, partner, attribution, sure)

    def _place(self, images: Tensor, rng: np.random.Generator, coins: np.ndarray, partner: np.ndarray,
               attribution: AttributionMap | None, sure: Tensor | None) -> MixDraw:
        """Boxes, lam and label weights from the maps (None for the controls) and the random numbers."""
        config, batch, size, device = self.config, images.shape[0], image_size(images), images.device
        kept = draw_lam(rng, config.lam, batch, config.alpha, config.lam_range)
        nominal = self._sides(kept, coins, size)
        u = uniform(rng, (batch, 2), device)
        noise_seed = int(rng.integers(2 ** 63 - 1)) if config.fill == 'noise' else None
        # The authors' box is centre - side // 2 to centre + side // 2: an odd side loses a row and a column.
        sides = to_device(nominal // 2 * 2 if config.recipe == 'authors' else nominal, device)
        pixels = None if attribution is None else to_pixels(attribution.map, size)
        donors, mixed = to_device(partner, device), to_device(coins, device)
        if sure is not None:
            mixed = mixed & sure
            sides, donors = sides * mixed[:, None], torch.where(mixed, donors, torch.arange(batch, device=device))
        fallback = torch.zeros_like(mixed) if attribution is None else attribution.degenerate & mixed
        dst = self._boxes(pixels, sides, u, size)
        if attribution is not None:
            dst = torch.where(fallback[:, None], self._random_boxes(sides, u, size), dst)
        src = whole_boxes(batch, size, device) if config.fill == 'donor-resized' else dst
        lam = box_lam(dst, size)
        if not config.correct_lam:
            lam = to_device(1 - (nominal.prod(1) / (size[0] * size[1])).astype(np.float32), device)
            lam = torch.where(mixed, lam, 1.0)
        share = self._own_share(pixels, donors, src, dst, lam)
        return MixDraw.of(self.name, donors, lam, dst=dst, src=src, weight=torch.stack([share, 1 - share], 1),
                          noise_seed=noise_seed, fallback=fallback)

    def _sides(self, kept: np.ndarray, coins: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Nominal sides, int64 [B, 2]; the authors' recipe floors in float32, as they do."""
        if self.config.recipe == 'authors':
            return authors_sides(torch.from_numpy(kept.astype(np.float32)), size).numpy() * coins[:, None]
        return box_sides(kept, coins, size)

    def _boxes(self, pixels: Tensor | None, sides: Tensor, u: Tensor, size: tuple[int, int]) -> Tensor:
        """Positions of the boxes, before degenerate rows fall back to a random one."""
        config = self.config
        if config.attribution == 'center':
            middle = torch.stack([torch.full_like(sides[:, 0], n // 2) for n in size], 1)
            return boxes_at(middle, sides, size, 'shift')
        if pixels is None or config.center == 'random':
            return self._random_boxes(sides, u, size)
        if config.center == 'window':
            return window_boxes(pixels, sides, config.sign)
        if config.center == 'argmax':
            return boxes_at(argmax_center(pixels, config.sign), sides, size, config.placement)
        return boxes_at(sample_center(pixels, u[:, 0], config.sign), sides, size, config.placement)

    def _random_boxes(self, sides: Tensor, u: Tensor, size: tuple[int, int]) -> Tensor:
        """A random position for a box of the same area as the guided one: cut at the border where the guided one is."""
        if self.config.center in ('window', 'random') or self.config.placement == 'shift':
            return boxes_inside(u, sides, size)
        center = torch.stack([share_of(u[:, i], n) for i, n in enumerate(size)], 1)
        return boxes_at(center, sides, size, self.config.placement)

    def _keeps_label(self) -> bool:
        return self.config.label == 'keep' or self.config.fill in ('noise', 'mean')

    def _own_share(self, pixels: Tensor | None, partner: Tensor, src: Tensor, dst: Tensor, lam: Tensor) -> Tensor:
        """Weight of the own label, float32 [B]; the rest goes to the partner's."""
        if self._keeps_label():
            return torch.ones_like(lam)
        if self.config.label == 'area' or pixels is None:
            return lam
        own, flat = 1 - box_mass(pixels, dst), pixels.flatten(1).sum(1) <= 0
        donor = box_mass(pixels[partner], src)
        total = own + donor
        flat = flat | (pixels[partner].flatten(1).sum(1) <= 0) | (total <= 0)
        empty = (dst[:, 1] <= dst[:, 0]) | (dst[:, 3] <= dst[:, 2])
        share = torch.where(empty, torch.ones_like(own), own / total.clamp_min(1e-12))
        return torch.where(flat & ~empty, lam, share)

    # ---- the paste

    def _needs_partner(self) -> bool:
        return self.config.fill in ('donor', 'donor-resized')

    def _paste(self, images: Tensor, draw: MixDraw) -> Tensor:
        if self.config.fill == 'donor':
            return super()._paste(images, draw)
        if self.config.fill == 'donor-resized':
            return paste_resized(images, images.index_select(0, draw.partner), draw.src, draw.dst)
        if self.config.fill == 'noise' and draw.noise_seed is None:
            return images.clone()
        fill = (images.float().mean((2, 3), keepdim=True) if draw.noise_seed is None
                else noise_fill(images, draw.noise_seed))
        return paste(images, fill, draw.dst)


def _plain_options(options: dict[str, Any]) -> dict[str, Any]:
    """Lists (from YAML) as tuples, so that options compare and hash."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
