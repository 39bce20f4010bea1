"""Embeddings of three small nets trained on digits, and what OpenOOD says of them.

Made by ``benchmarks/openood_reference.py``; see there.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gradmix_timm.openset.scores import Head
from gradmix_timm.records import Embeddings

DATA = Path(__file__).parent / 'data'
NETS = ('test_resnet', 'test_convnext', 'test_vit')


def head_of(net: str) -> Head:
    with np.load(DATA / 'nets.npz') as kept:
        return Head(torch.from_numpy(kept[f'{net}/weight']), torch.from_numpy(kept[f'{net}/bias']))


def embeddings(net: str, part: str) -> Embeddings:
    """``part``: train, validation, known (test images of the six known classes) or unknown (the other four)."""
    with np.load(DATA / 'nets.npz') as kept:
        features, label = torch.from_numpy(kept[f'{net}/{part}']), torch.from_numpy(kept[f'label/{part}']).long()
    logits = head_of(net)(features).float()
    return Embeddings(logits, features, None, label, torch.arange(len(label)))


def openood(net: str, postprocessor: str) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of known and unknown test images."""
    with np.load(DATA / 'openood.npz') as kept:
        return tuple(kept[f'{net}/{postprocessor}/{side}'].astype(float) for side in ('known', 'unknown'))


def openood_figures(net: str, postprocessor: str) -> dict[str, float]:
    """Its evaluator's figures: FPR95, AUROC, AUPR in and out, accuracy, CCR at FPR .01 and .1."""
    with np.load(DATA / 'openood.npz') as kept:
        return dict(zip(('fpr', 'auroc', 'aupr_in', 'aupr_out', 'accuracy', 'ccr_0.01', 'ccr_0.1'),
                        kept[f'{net}/{postprocessor}/metrics'].tolist(), strict=True))
