"""The frozen records that pass between rooms: mixes, captured layers, attribution maps, embeddings.

Letters in shapes: B batch, C channels, H x W image in pixels, h x w grid of a layer, K known classes, N images,
D feature width, P projection width.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from html import escape
from typing import Any

import torch
from torch import Tensor

__all__ = ['AttributionMap', 'Captured', 'Embeddings', 'MixDraw', 'Mixed']


@dataclass(frozen=True, slots=True, repr=False)
class MixDraw:
    """Everything random about one mixed batch, drawn once; ``mixer.apply`` needs nothing else.

    Boxes are half-open pixels in timm's order (yl, yh, xl, xh), inside the image; an empty box leaves its row unmixed.

    Attributes:
        partner: Row whose pixels are pasted, int64 [B].
        src: Box read from the partner, int64 [B, 4].
        dst: Box written in the row's own image, int64 [B, 4].
        lam: Share of own pixels kept, measured after clipping, float32 [B] in [0, 1].
        weight: Label weights (own, partner), float32 [B, 2].
        mask: Share of own pixel kept at each place, float32 [B, 1, H, W]; None where the boxes say it all.
        noise_seed: Seed of the fill where it is noise, else None.
        fallback: Rows placed at random because their attribution map was flat or not finite, bool [B].
        name: The mixer that drew.
        moves: Where blocks come from, before images are mixed: for own (0) and partner (1) the block that goes to each
            place of a g x g grid, int64 [B, 2, g * g]; None where nothing moves.
        unknown: Share of the label that goes to no class, float32 [B], beside ``weight``; None: nothing does.
    """

    partner: Tensor
    src: Tensor
    dst: Tensor
    lam: Tensor
    weight: Tensor
    mask: Tensor | None
    noise_seed: int | None
    fallback: Tensor
    name: str
    moves: Tensor | None = None
    unknown: Tensor | None = None

    @classmethod
    def of(cls, name: str, partner: Tensor, lam: Tensor, *, dst: Tensor | None = None, src: Tensor | None = None,
           weight: Tensor | None = None, mask: Tensor | None = None, noise_seed: int | None = None,
           fallback: Tensor | None = None, moves: Tensor | None = None, unknown: Tensor | None = None) -> MixDraw:
        """A draw from what a mixer has to say; the rest has the defaults that fit most mixers.

        Args:
            name: The mixer that draws.
            partner: int64 [B].
            lam: Kept share, float32 [B].
            dst: Default: empty boxes.
            src: Default: ``dst``, the same place of the partner.
            weight: Default: by area, (lam, 1 - lam).
            mask: See the class.
            noise_seed: See the class.
            fallback: Default: no row.
            moves: See the class.
            unknown: See the class.

        Example:
            >>> MixDraw.of('half', torch.tensor([1, 0]), torch.full((2,), 0.5)).weight
            tensor([[0.5000, 0.5000],
                    [0.5000, 0.5000]])
        """
        dst = torch.zeros(len(partner), 4, dtype=torch.int64, device=partner.device) if dst is None else dst
        return cls(
            partner=partner, src=dst if src is None else src, dst=dst, lam=lam,
            weight=torch.stack([lam, 1 - lam], 1) if weight is None else weight, mask=mask, noise_seed=noise_seed,
            fallback=torch.zeros_like(partner, dtype=torch.bool) if fallback is None else fallback, name=name,
            moves=moves, unknown=unknown)

    def __repr__(self) -> str:
        low, high = (float(end) for end in self.lam.aminmax()) if len(self.lam) else (1., 1.)
        extras = ['', *(f'{kind} set' for kind in ('mask', 'noise_seed', 'moves') if getattr(self, kind) is not None)]
        if count := int(self.fallback.sum()):
            extras.append(f'{count} placed at random')
        return f'MixDraw({self.name}: {len(self.partner)} images, kept {low:.0%} to {high:.0%}{", ".join(extras)})'

    def _repr_html_(self) -> str:
        """One row per image: partner, share kept, box, label weights."""
        heads = ('image', 'partner', 'kept', 'box (yl, yh, xl, xh)', 'label weights', 'placed at random')
        rows = zip(self.partner.tolist(), self.lam.tolist(), self.dst.tolist(), self.weight.tolist(),
                   self.fallback.tolist(), strict=True)
        cells = [(row, partner, f'{lam:.0%}', tuple(box), ', '.join(f'{weight:.2f}' for weight in weights),
                  'yes' if fallback else '') for row, (partner, lam, box, weights, fallback) in enumerate(rows)]
        return ('<table><thead><tr>' + ''.join(f'<th>{head}</th>' for head in heads) + '</tr></thead><tbody>' + ''.join(
            '<tr>' + ''.join(f'<td>{cell}</td>' for cell in row) + '</tr>' for row in cells[:32])
            + f'</tbody></table><p>{escape(repr(self))}</p>')

    def to(self, device: torch.device | str) -> MixDraw:
        """The same draw with its tensors on another device."""
        moved: dict[str, Any] = {field.name: value.to(device) for field in fields(self)
                                 if isinstance(value := getattr(self, field.name), Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class Mixed:
    """A mixed batch and how it came about.

    Attributes:
        input: Images [B, C, H, W] (2 B with ``keep_clean``: the clean rows first).
        target: float32 [B, K].
        draw: Of the mix; None where nothing was drawn.
        rows: Smoothed labels before the mix, float32 [B, K], of mixers that finish theirs after the forward pass.
    """

    input: Tensor
    target: Tensor
    draw: MixDraw | None
    rows: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Captured:
    """One layer's output and the gradient of the score there, folded to the grid and detached.

    Attributes:
        activation: [B, C, h, w], the model's dtype.
        gradient: d(sum over images of the score) / d(activation), [B, C, h, w].
        logits: float32 [B, K].
        layer: Dotted module name, with ``[i]`` where the module returns a tuple.
    """

    activation: Tensor
    gradient: Tensor
    logits: Tensor
    layer: str


@dataclass(frozen=True, slots=True, repr=False)
class AttributionMap:
    """Where in each image the model finds its evidence.

    Attributes:
        map: float32 [B, h, w], >= 0; each row sums to 1, or is all zero where ``degenerate``.
        degenerate: Rows whose map was flat zero or not finite, bool [B].
        stride: Pixels per grid cell (H / h, W / w).
    """

    map: Tensor
    degenerate: Tensor
    stride: tuple[float, float]

    def __repr__(self) -> str:
        count, height, width = self.map.shape
        return (f'AttributionMap({count} maps of {height} x {width} cells, {self.stride[0]:g} x {self.stride[1]:g} '
                f'pixels a cell; {int(self.degenerate.sum())} degenerate)')

    def _repr_html_(self) -> str:
        """The first maps side by side, each scaled to its own maximum; the same as text below."""
        shown = self.map[:8].detach().cpu().float()
        shown = shown / shown.amax((1, 2), keepdim=True).clamp_min(torch.finfo(shown.dtype).tiny)
        cell = max(1, 112 // max(shown.shape[1:]))
        tables = ''.join(
            '<table style="display:inline-table;border-collapse:collapse;margin:4px">' + ''.join(
                '<tr>' + ''.join(
                    f'<td style="width:{cell}px;height:{cell}px;padding:0;border:0;'
                    f'background:rgba(213,94,0,{value:.2f})"></td>' for value in row) + '</tr>'
                for row in one) + '</table>' for one in shown.tolist())
        return f'<div>{tables}</div><p>{escape(repr(self))}</p>'


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What one pass over a data set leaves behind; every score is computed from this alone.

    Attributes:
        logits: float32 [N, K].
        features: Input of the classifier, float32 [N, D].
        projection: Output of a projection head, float32 [N, P], or None.
        label: Position in the list of known classes, int64 [N]; -1 for an unknown.
        index: Position in the data set, int64 [N].
    """

    logits: Tensor
    features: Tensor
    projection: Tensor | None
    label: Tensor
    index: Tensor

    def __post_init__(self) -> None:
        """Refuse arrays, and fields of different lengths.

        Raises:
            TypeError: A field is no tensor.
            ValueError: Fields have different numbers of rows.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name == 'projection':
                continue
            if not isinstance(value, Tensor):
                raise TypeError(f'{field.name} of Embeddings is {type(value).__name__}; expected a tensor, '
                                'torch.as_tensor(...)')
            if len(value) != len(self.logits):
                raise ValueError(f'Embeddings of {len(self.logits)} logits and {len(value)} rows of {field.name}; '
                                 'expected one of each an image')

    def rows(self, chosen: Tensor | slice) -> Embeddings:
        """Some of the rows: a view for a slice, a copy for a mask (bool [N]) or positions (int64)."""
        projection = None if self.projection is None else self.projection[chosen]
        return Embeddings(self.logits[chosen], self.features[chosen], projection, self.label[chosen],
                          self.index[chosen])

    @staticmethod
    def cat(parts: Sequence[Embeddings]) -> Embeddings:
        """Several sets one after the other, of one model; ``index`` stays as it is in each.

        Example:
            >>> rows = Embeddings(torch.eye(2), torch.eye(2), None, torch.tensor([0, 1]), torch.arange(2))
            >>> Embeddings.cat([rows, rows.rows(torch.tensor([True, False]))]).label.tolist()
            [0, 1, 0]
        """
        projections = [part.projection for part in parts if part.projection is not None]
        return Embeddings(
            torch.cat([part.logits for part in parts]), torch.cat([part.features for part in parts]),
            torch.cat(projections) if projections else None, torch.cat([part.label for part in parts]),
            torch.cat([part.index for part in parts]))
