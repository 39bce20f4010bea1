"""scikit-learn's handwritten digits as tensors for the examples: six classes known, four kept back as unknown."""
from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

KNOWN = (0, 1, 2, 4, 5, 9)


def known_and_unknown() -> tuple[TensorDataset, TensorDataset, torch.Tensor]:
    """Known train, known test (labels 0 to 5), and images of the other classes, float [N, 1, 32, 32]."""
    pixels, digits = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8).div(16).sub(0.3).div(0.38)
    images = torch.nn.functional.interpolate(images, (32, 32), mode='bilinear')
    digits = torch.from_numpy(digits)
    known = torch.isin(digits, torch.tensor(KNOWN))
    labels = torch.tensor([KNOWN.index(d) for d in digits[known].tolist()])
    held = torch.arange(len(labels)) % 5 == 0
    train, test = (TensorDataset(images[known][part], labels[part]) for part in (~held, held))
    return train, test, images[~known]
