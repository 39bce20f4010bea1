"""What the GradMix authors' code makes of maps, boxes, pastes and losses, beyond what the package needs of it."""
from __future__ import annotations

import torch
from torch import Tensor

from gradmix_timm.objectives.losses import JointConfig, _Anchors, joint_terms, weigh_terms
from gradmix_timm.ops import argmax_center, boxes_at, paste, paste_resized
from gradmix_timm.ops.authors import authors_sides


def authors_lam(lam: Tensor, size: tuple[int, int]) -> Tensor:
    """Share that they weight the mixed term by: 1 - nominal area / (H W), however much of the box is cut off.

    Args:
        lam: Drawn kept share, [] or [B].
        size: Image (H, W).

    Returns:
        float32 like ``lam``.

    Example:
        >>> authors_lam(torch.tensor(0.75), (32, 32))
        tensor(0.7500)
    """
    area = authors_sides(lam, size).prod(-1).double()
    return (1 - area / size[0] / size[1]).float()


def _even(sides: Tensor, rows: int) -> Tensor:
    """Twice half the side, rounded down, for each of ``rows`` images: an odd side loses a row and a column."""
    return (sides // 2 * 2).expand(rows, 2)


def authors_boxes(center: Tensor, lam: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes from centre - side // 2 to centre + side // 2, cut at the border, not pushed inside.

    Args:
        center: Pixels (y, x), int64 [B, 2]: the argmax of each map.
        lam: Drawn kept share, [] for the batch or [B].
        size: Image (H, W).

    Returns:
        int64 [B, 4], half-open (yl, yh, xl, xh).

    Example:
        >>> authors_boxes(torch.tensor([[0, 5]]), torch.tensor(0.6), (8, 8))  # nominal side 5, in effect 4
        tensor([[0, 2, 3, 7]])
    """
    return boxes_at(center, _even(authors_sides(lam, size), center.shape[0]), size)


def authors_cutmix_boxes(u: Tensor, lam: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes of their CutMix baseline: as :func:`authors_boxes`, the centre uniform where the whole box fits.

    The centre is drawn from half, ..., side - half - 1, so that no box touches the lower or right border.

    Args:
        u: Uniform numbers for (y, x), float [B, 2] in [0, 1).
        lam: Drawn kept share, [] or [B].
        size: Image (H, W).

    Returns:
        int64 [B, 4], inside the image.
    """
    sides = _even(authors_sides(lam, size), u.shape[0])
    room = torch.stack([n - sides[:, i] for i, n in enumerate(size)], 1)
    low = (u.double() * room).long().minimum((room - 1).clamp_min(0))
    return boxes_at(low + sides // 2, sides, size)


def paste_noise(images: Tensor, noise: Tensor, boxes: Tensor) -> Tensor:
    """Each image with its box filled with noise, one channel for all; what they hide an image's evidence under.

    Args:
        images: [B, C, H, W], normalised values.
        noise: Uniform in [0, 1), [B, H, W]; a box reads it from the top left corner on.
        boxes: Half-open (yl, yh, xl, xh), int64 [B, 4].

    Returns:
        New images; outside the boxes bit-equal.
    """
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device) - boxes[:, :1]
    x = torch.arange(width, device=images.device) - boxes[:, 2:3]
    rows = noise.gather(1, y.clamp(0, height - 1)[:, :, None].expand(-1, -1, width))
    moved = rows.gather(2, x.clamp(0, width - 1)[:, None, :].expand(-1, height, -1))
    return paste(images, moved[:, None], boxes)


def authors_mix(images: Tensor, maps: Tensor, lam: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Their mix of view 1, whole: a box centred on each map's maximum, filled with noise. View 2 stays as it is.

    Args:
        images: View 1, [B, C, H, W].
        maps: From :func:`gradmix_timm.attribution.authors.authors_map`, the rows of view 1: float32 [B, H, W].
        lam: Drawn kept share, [] or [B]; theirs is one for the batch, in [0.5, 0.9].
        noise: Uniform in [0, 1), [B, H, W].

    Returns:
        Mixed images, boxes int64 [B, 4], and the share of :func:`authors_lam`.
    """
    size = (images.shape[2], images.shape[3])
    boxes = authors_boxes(argmax_center(maps), lam, size)
    return paste_noise(images, noise, boxes), boxes, authors_lam(lam, size)


def paste_resized_whole(images: Tensor, donors: Tensor, boxes: Tensor) -> Tensor:
    """Each image with its box replaced by the whole donor, resized into it (bilinear, antialiased).

    Theirs resizes the shorter side to the box's height, so square images are what it can mix; here any.

    Args:
        images: [B, C, H, W].
        donors: [B, C, H, W].
        boxes: Half-open (yl, yh, xl, xh), int64 [B, 4]; an empty one leaves the image as it is.
    """
    whole = torch.zeros_like(boxes)
    whole[:, 1], whole[:, 3] = images.shape[2], images.shape[3]
    return paste_resized(images, donors, whole, boxes)


def cutmix_views(view1: Tensor, view2: Tensor, partner: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Their CutMix baseline on two views: the donor is the *other* view of the partner, whole, resized into the box.

    Args:
        view1: [B, C, H, W].
        view2: The same images in another view.
        partner: Row of the donor, int64 [B].
        boxes: int64 [B, 4], from :func:`authors_cutmix_boxes`; each image's box serves both of its views.

    Returns:
        Both mixed views.
    """
    return (paste_resized_whole(view1, view2[partner], boxes), paste_resized_whole(view2, view1[partner], boxes))


# ---- losses

def mix_loss(clean: Tensor, mixed: Tensor, temperature: float = 0.05, base_temperature: float = 0.07,
             authors_offset: bool = False, rows: Tensor | None = None) -> Tensor:
    """The mixed term alone."""
    config = JointConfig(gamma=0, temperature=temperature, base_temperature=base_temperature,
                         authors_offset=authors_offset)
    return joint_terms(clean, mixed, None, config=config, rows=rows)['mix']


def supconmix_loss(clean: Tensor, mixed: Tensor, labels: Tensor, temperature: float = 0.05,
                   base_temperature: float = 0.07, authors_offset: bool = False, rows: Tensor | None = None) -> Tensor:
    """Their supervised mixed term: every mixed slot of the anchor's class but its own is a positive."""
    with torch.autocast(clean.device.type, enabled=False):
        anchors = _Anchors(clean, temperature, base_temperature, rows)
        return anchors.mean(anchors.mixed(mixed), anchors.same_class(labels), offset=authors_offset)


def joint_loss(clean: Tensor, mixed: Tensor | None, labels: Tensor | None, lam: Tensor | float = 1.0,
               config: JointConfig | None = None) -> Tensor:
    """Their training loss: gamma * L_sup + ssl_weight * (L_ssl + lam * L_mix)."""
    config = config or JointConfig()
    return weigh_terms(joint_terms(clean, mixed, labels, lam, config), config)
