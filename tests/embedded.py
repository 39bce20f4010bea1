"""Made embeddings: blobs of non-negative features, a linear head that reads them, and unknowns apart."""
from __future__ import annotations

from dataclasses import replace

import torch

from gradmix_timm.openset.scores import Head
from gradmix_timm.records import Embeddings

CLASSES, WIDTH = 4, 12


def make_head(classes: int = CLASSES, width: int = WIDTH) -> Head:
    generator = torch.Generator().manual_seed(0)
    return Head(torch.randn(classes, width, generator=generator), torch.randn(classes, generator=generator))


def make(count: int, seed: int = 0, unknown: bool = False, projection: bool = False, width: int = WIDTH) -> Embeddings:
    """Known samples round their head's own weights, so that most are classified right; unknowns are noise."""
    generator = torch.Generator().manual_seed(seed)
    head = make_head(width=width)
    label = torch.arange(count) % CLASSES
    label = label[torch.randperm(count, generator=generator)]
    centre = torch.zeros(count, width) if unknown else head.weight[label]
    features = (1.5 * centre + torch.randn(count, width, generator=generator)).relu()
    features[:, 0] += 0.1  # no row of zeros
    logits = (features @ head.weight.T + head.bias)
    projected = torch.nn.functional.normalize(features[:, :5] + 0.1, dim=1) if projection else None
    label = torch.full_like(label, -1) if unknown else label
    return Embeddings(logits, features, projected, label, torch.arange(count) + 1000)


def take(embeddings: Embeddings, rows) -> Embeddings:
    cut = {name: getattr(embeddings, name)[rows] for name in ('logits', 'features', 'label', 'index')}
    projection = None if embeddings.projection is None else embeddings.projection[rows]
    return replace(embeddings, projection=projection, **cut)
