"""PuzzleMix, approximately: cells of two images are selected and moved by the saliency of the loss."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradmix_timm.attribution import capture_for, check_input_gradient
from gradmix_timm.ops import image_size, like, soft_targets, to_device
from gradmix_timm.records import MixDraw

from .base import kept_draw
from .plain import AlphaMixer, draw_lam

__all__ = ['Energy', 'PuzzleMix', 'move_blocks', 'transport']

_GRIDS = (2, 4, 8, 16)
_SWEEPS = 4
# Their colour jumps are of images in [0, 1]; this is the usual standard deviation of a normalisation.
_STD = 0.25


class Energy:
    """E(z) = sum_b cost_b(z_b) + sum_edges w_ab (z_a - z_b)^2 over masks z on the levels 0, 1/2, 1 of a g x g grid.

    Args:
        cost: Of each level at each cell, float [B, 3, g, g].
        down: Weights of the edges to the cell below, float [B, g - 1, g].
        right: Of those to the cell on the right, float [B, g, g - 1].
    """

    def __init__(self, cost: Tensor, down: Tensor, right: Tensor) -> None:
        self.cost, self.down, self.right = cost, down, right
        self.levels = torch.arange(3, dtype=torch.float32, device=cost.device) / 2

    def __call__(self, mask: Tensor) -> Tensor:
        """The energy of masks [B, g, g]: float [B]."""
        single = self.cost.gather(1, (mask * 2).round().long()[:, None])[:, 0]
        below, beside = self.down * mask.diff(dim=1).square(), self.right * mask.diff(dim=2).square()
        return single.sum((1, 2)) + below.sum((1, 2)) + beside.sum((1, 2))

    def solve(self) -> Tensor:
        """Masks float [B, g, g]: the minimum where g is 2 (of 81), else a local one, no worse than cell by cell."""
        batch, _, grid, _ = self.cost.shape
        if grid == 2:
            every = torch.cartesian_prod(*[self.levels] * 4).view(-1, 2, 2)
            copies = (part.repeat(len(every), *[1] * (part.dim() - 1)) for part in (self.cost, self.down, self.right))
            energies = Energy(*copies)(every.repeat_interleave(batch, 0)).view(-1, batch)
            return every[energies.argmin(0)]
        mask = self.levels[self.cost.argmin(1)]
        place = torch.arange(grid, device=mask.device)
        colour = (place[:, None] + place) % 2
        for sweep in range(2 * _SWEEPS):  # cells of one colour of a chessboard are not neighbours
            mask = torch.where(colour == sweep % 2, self.levels[self._given(mask).argmin(1)], mask)
        return mask

    def _given(self, mask: Tensor) -> Tensor:
        """Cost of each level at each cell given the present neighbours: [B, 3, g, g]."""
        apart = (self.levels.view(1, 3, 1, 1) - mask[:, None]).square()
        down, right, cost = self.down[:, None], self.right[:, None], self.cost.clone()
        cost[:, :, :-1] += down * apart[:, :, 1:]
        cost[:, :, 1:] += down * apart[:, :, :-1]
        cost[:, :, :, :-1] += right * apart[:, :, :, 1:]
        cost[:, :, :, 1:] += right * apart[:, :, :, :-1]
        return cost


def transport(mask: Tensor, saliency: Tensor, eps: float) -> Tensor:
    """Assign blocks to positions so that salient blocks are visible, in g rounds of bids.

    Every block bids for the place where eps |a - b|^2 / (g - 1)^2 - saliency_a [mask_b > 0] is least; of several
    bidders the cheapest wins and the others pay 1 more there. (In their code a bid above 0 loses to those who do not
    bid.) A position without a winner after the last round keeps its own block, where theirs becomes black.

    Args:
        mask: Visible share of the image at each position, float [B, g, g].
        saliency: Of each block, float [B, g, g].
        eps: Price of moving.

    Returns:
        The block for each place, int64 [B, g * g].
    """
    batch, grid = mask.shape[:2]
    place = torch.arange(grid, device=mask.device, dtype=torch.float32)
    y, x = place.repeat_interleave(grid), place.repeat(grid)
    move = ((y[:, None] - y).square() + (x[:, None] - x).square()) / max(grid - 1, 1) ** 2
    cost = eps * move - saliency.reshape(batch, -1, 1) * (mask > 0).float().reshape(batch, 1, -1)
    won = torch.zeros_like(cost, dtype=torch.bool)
    for _ in range(grid):
        bids = torch.zeros_like(won).scatter_(2, cost.argmin(2, keepdim=True), True)
        best = cost.masked_fill(~bids, torch.inf).argmin(1, keepdim=True)
        won = torch.zeros_like(won).scatter_(1, best, True) & bids
        cost = cost + (bids & ~won)
    stay = torch.arange(grid * grid, device=mask.device)
    return torch.where(won.any(1), won.int().argmax(1), stay)


def move_blocks(images: Tensor, source: Tensor) -> Tensor:
    """Images with block ``source[b, j]`` of a g x g grid at place j; sides are multiples of g.

    Args:
        images: [B, C, H, W].
        source: int64 [B, g * g].
    """
    batch, channels, height, width = images.shape
    grid = math.isqrt(source.shape[1])
    blocks = images.reshape(batch, channels, grid, height // grid, grid, width // grid).permute(0, 2, 4, 1, 3, 5)
    blocks = blocks.flatten(1, 2)[torch.arange(batch, device=images.device)[:, None], source]
    return blocks.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


class PuzzleMix(AlphaMixer):
    """x~ = z * P x_i + (1 - z) * Q x_partner: a mask z and moves P, Q of blocks that keep the most saliency in sight.

    Kim, Choo & Song, "Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup", arXiv:2009.06962,
    equations 2-7. Saliency s is the norm over colours of d loss / d image, of the clean batch in evaluation mode, as a
    share u of each image on g x g cells, g of 2, 4, 8, 16 at random for each batch. The mask has the levels 0, 1/2, 1::

        E(z) = sum_b [z_b u_partner,b + (1 - z_b) u_i,b] + eta / g^2 sum_b -log Binomial(2 z_b; 2, lam)
               + sum_neighbours [beta / 16 g (z_a - z_b)^2 + beta gamma / 16 g  colour jump across the seam]

    Then each image's salient blocks move to where it is shown (:func:`transport`). Labels go by the mean of z.

    Approximate: they cut a graph for every image on the host; here the mask descends from the best cells by themselves,
    one colour of a chessboard after the other, on the device; at g = 2 it is the exact minimum, at g = 4 nearly.
    Colour jumps are those of one pixel on either side (theirs: of the means of up to 4 x 4), in images taken to be
    normalised by 0.25. Blocks stay where a side is no multiple of g. One forward and one whole backward.

    Args:
        num_classes: K.
        alpha: Of lam ~ Beta(alpha, alpha).
        lam: 'image' for a draw each, 'batch' for one, as theirs.
        beta: Weight of the mask's smoothness.
        gamma: Weight of the colour jumps in it.
        eta: Weight of the prior.
        moves: Blocks move.
        eps: Price of moving.
        **common: See :class:`BatchMixer`.
    """

    name = 'puzzlemix'
    requires_model = True
    requires_grad = True
    option_names = ('alpha', 'lam', 'beta', 'gamma', 'eta', 'moves', 'eps')

    def __init__(self, num_classes: int, alpha: float = 1.0, lam: str = 'image', beta: float = 1.2, gamma: float = 0.5,
                 eta: float = 0.2, moves: bool = True, eps: float = 0.8, **common: Any) -> None:
        super().__init__(num_classes, alpha, lam, **common)
        for option, value in (('beta', beta), ('gamma', gamma), ('eta', eta), ('eps', eps)):
            if not 0 <= value < math.inf:
                raise ValueError(f'{option} is a finite weight of 0 or more, got {value}')
        if not isinstance(moves, bool):
            raise ValueError(f'moves is True or False, got {moves!r}')
        self.beta, self.gamma, self.eta, self.eps = float(beta), float(gamma), float(eta), float(eps)
        self.moves = moves

    def _prepare(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        """Check that a gradient reaches the image."""
        check_input_gradient(model, input_size)

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        assert model is not None
        size, device = image_size(images), images.device
        grids = [grid for grid in _GRIDS if grid <= min(size)]
        if not grids:
            return kept_draw(len(images), device, self.name)
        grid = int(rng.choice(grids))
        lam = to_device(draw_lam(rng, self.lam, len(images), self.alpha).astype(np.float32), device)
        mixed, donors = to_device(coins, device), to_device(partner, device)
        captured = capture_for(model, images, targets.to(device), None, 'input-gradient',
                               self._score(_binary_loss if self.multi_label else 'loss'))[0]
        cells = F.adaptive_avg_pool2d(captured.gradient.norm(dim=1)[:, None], grid)[:, 0]
        total = cells.sum((1, 2), keepdim=True)
        flat = ~(total.isfinite() & (total > 0))
        saliency = torch.where(flat, torch.full_like(cells, 1 / grid ** 2), cells / total)
        mask = self.energy(images, saliency, donors, lam).solve()
        mask = torch.where(mixed[:, None, None], mask, torch.ones_like(mask))
        moves = None
        if self.moves and size[0] % grid == 0 and size[1] % grid == 0:
            own = transport(mask, saliency, self.eps)
            stay = torch.arange(grid * grid, device=device)
            moves = torch.stack([torch.where(mixed[:, None], own, stay),
                                 transport(1 - mask, saliency[donors], self.eps)], 1)
        pixels = F.interpolate(mask[:, None], size=size, mode='nearest-exact')
        return MixDraw.of(self.name, donors, pixels.mean((1, 2, 3)), mask=pixels, moves=moves,
                          fallback=(flat[:, 0, 0] | flat[donors, 0, 0]) & mixed)

    def energy(self, images: Tensor, saliency: Tensor, partner: Tensor, lam: Tensor) -> Energy:
        """The energy of masks for each image and its partner.

        Args:
            images: [B, C, H, W].
            saliency: Shares of the cells, float [B, g, g].
            partner: int64 [B].
            lam: Nominal kept share, float [B].
        """
        grid = saliency.shape[1]
        smooth = self.beta / (16 * grid)
        lost, gained = saliency.clone(), saliency[partner].clone()  # saliency hidden by masks 0 and 1
        edges = []
        for side in (1, 2):
            one, other, mixed = _jumps(images, partner, grid, side, smooth * self.gamma)
            first, second = (slice(None, -1), slice(1, None))
            for cost, same, (before, after) in ((gained, one, mixed), (lost, other, mixed[::-1])):
                cost.movedim(side, 0)[first] += (same + before).movedim(side, 0) / 2
                cost.movedim(side, 0)[second] += (same + after).movedim(side, 0) / 2
            edges.append(smooth + (mixed[0] + mixed[1] - one - other) / 2)
        lam = lam.clamp(1e-4, 1 - 1e-4)
        prior = -torch.stack([(1 - lam) ** 2, 2 * lam * (1 - lam), lam ** 2], 1).log() * self.eta / grid ** 2
        cost = torch.stack([lost, (lost + gained) / 2, gained], 1) + prior[:, :, None, None]
        return Energy(cost, *edges)

    def _paste(self, images: Tensor, draw: MixDraw) -> Tensor:
        if draw.mask is None:
            return images.clone()
        own, other = images, images.index_select(0, draw.partner)
        if draw.moves is not None:
            own, other = move_blocks(own, draw.moves[:, 0]), move_blocks(other, draw.moves[:, 1])
        half = (own.float() + other.float()).mul(0.5).to(images.dtype)
        return like(torch.where(draw.mask == 1, own, torch.where(draw.mask == 0, other, half)), images)


def _binary_loss(logits: Tensor, targets: Tensor) -> Tensor:
    rows = soft_targets(targets, logits.shape[1], device=logits.device)
    return F.binary_cross_entropy_with_logits(logits, rows, reduction='none').sum(1)


def _jumps(images: Tensor, partner: Tensor, grid: int, side: int, scale: float
           ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Mean colour jumps across the seams between cells that follow each other along a side (1 down, 2 right).

    Returns:
        Of the image itself, of the partner itself, and (image then partner, partner then image), each [B, g - 1, g]
        or [B, g, g - 1].
    """
    length = images.shape[side + 1]
    seam = torch.arange(1, grid, device=images.device) * length // grid
    before, after = (images.float().index_select(side + 1, at) * _STD for at in (seam - 1, seam))

    def jump(first: Tensor, second: Tensor) -> Tensor:
        apart = (first - second).abs().mean(1)
        shape = (grid - 1, grid) if side == 1 else (grid, grid - 1)
        return F.adaptive_avg_pool2d(apart[:, None], shape)[:, 0] * scale

    return (jump(before, after), jump(before[partner], after[partner]),
            (jump(before, after[partner]), jump(before[partner], after)))
