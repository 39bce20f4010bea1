"""The deletion test: drop of the label's log-odds when a box covers the position that an attribution selects."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradmix_timm.ops import argmax_center, boxes_at, boxes_inside, logits_of, paste, window_boxes

from .maps import CONTROLS, attribute, evidence, to_pixels
from .model_guard import borrow

__all__ = ['Place', 'deletion_drops', 'log_odds', 'place_boxes']


@dataclass(frozen=True, slots=True)
class Place:
    """A method of locating the evidence.

    Attributes:
        attribution: A method of ``attribute``, or a control: 'random', 'center'.
        layers: As ``attribute`` takes them.
        score: As ``attribute`` takes it.
        center: 'window' or 'argmax'.
    """

    attribution: str = 'layercam'
    layers: object = None
    score: str = 'evidence'
    center: str = 'window'

    def __str__(self) -> str:
        if self.attribution in CONTROLS:
            return self.attribution
        layers = self.layers if isinstance(self.layers, str) else (
            '+'.join(map(str, self.layers)) if isinstance(self.layers, Sequence) else self.layers)
        return f'{self.attribution} {self.score} {"default" if layers is None else layers} {self.center}'


def log_odds(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Log-odds of the label in evaluation mode, float32 [B]."""
    with borrow(model) as inner, torch.no_grad():
        return evidence(logits_of(inner(images)).float(), labels)


def place_boxes(model: nn.Module, images: Tensor, labels: Tensor, place: Place, side: int,
                generator: torch.Generator) -> Tensor:
    """Whole square boxes of ``side`` pixels at the named place, int64 [B, 4]; all inside, so all of one area."""
    size = (images.shape[2], images.shape[3])
    sides = torch.full((images.shape[0], 2), side, dtype=torch.int64, device=images.device)
    if place.attribution == 'random':
        u = torch.rand(images.shape[0], 2, generator=generator, dtype=torch.float32, device=generator.device)
        return boxes_inside(u.to(images.device), sides, size)
    if place.attribution == 'center':
        middle = torch.tensor([n // 2 for n in size], device=images.device).expand(images.shape[0], 2)
        return boxes_at(middle, sides, size, 'shift')
    found = attribute(model, images, labels, place.layers, place.attribution, place.score)
    pixels = to_pixels(found.map, size)
    if place.center == 'window':
        return window_boxes(pixels, sides)
    return boxes_at(argmax_center(pixels), sides, size, 'shift')


def deletion_drops(model: nn.Module, images: Tensor, labels: Tensor, places: Sequence[Place], side: int,
                   seed: int = 0) -> Tensor:
    """Fall of the label's log-odds when a box hides each place, filled from another image of the batch.

    Args:
        model: Classifier.
        images: [B, C, H, W].
        labels: int64 [B].
        places: Where to cover.
        side: Of the box, in pixels.
        seed: Of the partners and of random boxes.

    Returns:
        float32 [len(places), B]; larger means that more evidence was hidden.

    Raises:
        ValueError: A single image, which no other can fill, no place, or a box that is larger than the images.
    """
    batch, shorter = len(images), min(images.shape[2:])
    if batch < 2:
        raise ValueError(f'the deletion test fills a box from another image of the batch, got {batch} image; give two '
                         'or more')
    if not places or not 0 < side <= shorter or side % 1:
        raise ValueError(f'the deletion test takes one place or more and a side of 1 to {shorter} pixels, got '
                         f'{len(places)} places and side={side}')
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(batch, generator=generator, device=generator.device)
    partner = torch.empty_like(order).scatter_(0, order, order.roll(1))  # a cycle: no image fills its own box
    donors = images[partner.to(images.device)]
    before = log_odds(model, images, labels)
    drops = []
    for place in places:
        boxes = place_boxes(model, images, labels, place, side, generator)
        drops.append(before - log_odds(model, paste(images, donors, boxes), labels))
    return torch.stack(drops)
