"""Scores that go back to the model and the images: ODIN."""
from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from gradmix_timm.records import Embeddings

from .base import SCORES, Score
from .logit import Gaps, positive_temperature, unsaturated

__all__ = ['ModelScore', 'Odin']


class ModelScore(Score):
    """A score that is computed from images by passes over the model, which no embedding replaces.

    :func:`~gradmix_timm.openset.score_images` takes it over the batches of a loader; an evaluation does so where such a
    score is named. Classes are those that the classifier gives the images as they are.
    """

    reads = ('logits',)
    requires_model = True

    @abstractmethod
    def of_images(self, forward: Callable[[Tensor], Tensor], images: Tensor, std: Tensor) -> Tensor:
        """Knownness of a batch, float64 [B].

        Args:
            forward: The model in evaluation mode, from images to float32 logits [B, K]; gradients flow through it.
            images: Float [B, C, H, W], on the model's device.
            std: What pixels were divided by, float [C, 1, 1]; ones where they were not.
        """

    @override
    def knownness(self, embeddings: Embeddings) -> Tensor:
        raise ValueError(f'{self.name} goes back to the model for every image, and here are embeddings alone; evaluate '
                         'the model itself (gradmix_timm.evaluate, python -m gradmix_timm.openset), or call '
                         'score_images(score, model, loader, device)')


@SCORES.register('odin', 'softmax at a high temperature of images moved towards their class (arXiv:1706.02690)')
class Odin(ModelScore):
    """Largest softmax probability of logits / T at x - epsilon sign(grad) / std, grad that of -log p_y(x) by x.

    y is the predicted class of the image x. Liang et al., Enhancing The Reliability of Out-of-distribution Image
    Detection in Neural Networks, ICLR 2018; a gradient of 0 counts as positive, as in the authors' code and OpenOOD's
    ``odin``. epsilon is a step of pixels in [0, 1], which dividing by std carries over to what the model reads.

    Takes two forward passes and a backward pass an image.

    Args:
        temperature: T; the paper's 1000, which OpenOOD's search too starts from.
        epsilon: Length of the step; 0.0014 in the paper for CIFAR-10 and CIFAR-100 (DenseNet), and in OpenOOD.
    """

    def __init__(self, temperature: float = 1000., epsilon: float = 0.0014) -> None:
        self.temperature = positive_temperature(temperature)
        if not 0 <= epsilon < math.inf:
            raise ValueError(f'odin: epsilon is the length of a step, 0 or more, got {epsilon}')
        self.epsilon = float(epsilon)

    @override
    def of_images(self, forward: Callable[[Tensor], Tensor], images: Tensor, std: Tensor) -> Tensor:
        images = images.detach()
        if self.epsilon:
            moving = images.clone().requires_grad_()
            logits = forward(moving)
            # A sum, so that no image counts for another, times T, so that half precision holds it: signs stay.
            loss = F.cross_entropy(logits / self.temperature, logits.argmax(1), reduction='sum') * self.temperature
            gradient, = torch.autograd.grad(loss, moving)
            images = images - self.epsilon * torch.where(gradient >= 0, 1., -1.).to(images.dtype) / std
        with torch.no_grad():
            return unsaturated(*Gaps.of(forward(images).double(), self.temperature).log_odds_parts())
