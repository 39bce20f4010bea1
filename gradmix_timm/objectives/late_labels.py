"""Train on mixes whose labels are known after the forward pass."""
from __future__ import annotations

from typing import Any, ClassVar

from timm.task import ClassificationTask
from torch import Tensor, nn

from gradmix_timm.attribution import unwrap
from gradmix_timm.mixers import BatchMixer

__all__ = ['LateLabelTask']


class LateLabelTask(ClassificationTask):
    """Classification of mixed images; the mixer determines their labels from the forward pass.

    Args:
        model: The classifier.
        mixer: Of which a part has ``labels_after_forward``.
        criterion: Takes soft targets.
        **options: Of timm's ClassificationTask.
    """

    #: Tells the training loop that the task calls its mixer itself.
    mixes: ClassVar[bool] = True

    def __init__(self, model: nn.Module, mixer: BatchMixer, criterion: Any = None, **options: Any) -> None:
        super().__init__(model, criterion, **options)
        self.mixer = mixer

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Any]:
        """The loss of one batch.

        Args:
            input: [B, C, H, W].
            target: int64 [B] or float [B, K].

        Returns:
            'loss', 'output' (logits of the mixed images), 'draw'.
        """
        mixed = self.mixer.mix(input, target, unwrap(self.trainable_module))
        with self.mixer.watch(self.trainable_module, mixed) as finish:
            output = self.trainable_module(mixed.input)
        return {'loss': self.criterion(output, finish(output)), 'output': output, 'draw': mixed.draw}
