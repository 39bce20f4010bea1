"""A network whose evidence is known by construction."""
from __future__ import annotations

import torch
from torch import nn


class Spots(nn.Module):
    """Evidence by construction: the logit of class k is the mean of channel k, on an 8 x 8 grid of 2 x 2 cells."""

    def __init__(self):
        super().__init__()
        self.grid = nn.AvgPool2d(2)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return (self.grid(x) * self.scale).mean((2, 3))
