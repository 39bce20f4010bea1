"""Train on the clean batch and on its mix; the clean forward serves the loss and the attribution."""
from __future__ import annotations

from typing import Any, ClassVar

import torch
from timm.task import ClassificationTask
from torch import Tensor, nn

from gradmix_timm.attribution import resolve_layers, unwrap
from gradmix_timm.mixers import GradMix, Mixer
from gradmix_timm.ops import soft_targets

from .sharing import SecondPass, kept_buffers, watch_training

__all__ = ['KeepCleanTask', 'check_keep_clean']


def check_keep_clean(mixer: Mixer) -> None:
    """Check that the clean forward can give the maps of a mixer.

    Raises:
        ValueError: A mixer without target layers, or with maps at a size of their own.
    """
    if not isinstance(mixer, GradMix):
        raise ValueError(f'keep_clean (--gradmix-keep-clean) with mixer {mixer.name!r}: the clean forward serves the '
                         'maps of gradmix; leave one of them out')
    method, scale = mixer.config.attribution, mixer.config.attr_scale
    if not mixer.requires_model or method == 'input-gradient':
        raise ValueError(f'keep_clean (--gradmix-keep-clean) with attribution={method!r} (--gradmix-attribution): the '
                         'clean forward gives the maps of target layers; leave one of them out')
    if scale != 1:
        raise ValueError(f'keep_clean (--gradmix-keep-clean) with attr_scale={scale:g} (--gradmix-attr-scale): the '
                         'clean forward gives maps at full size; leave one of them out')


class KeepCleanTask(ClassificationTask):
    """Mean of the loss on the clean batch and the loss on its GradMix; one clean forward for both uses.

    Forward of the clean batch with its graph, gradient of the score at the target layers (p forwards), forward of the
    mixed batch: 6 F + p F for a step, where a separate attribution pass would make it 7 F + p F. The maps are made in
    training mode, by the forward that the loss sees.

    Args:
        model: The classifier.
        mixer: GradMix with a map (not a control, not 'input-gradient').
        criterion: Takes soft targets.
        **options: Of timm's ClassificationTask.

    Raises:
        ValueError: See :func:`check_keep_clean`.
    """

    #: Tells the training loop that the task calls its mixer itself.
    mixes: ClassVar[bool] = True

    def __init__(self, model: nn.Module, mixer: GradMix, criterion: Any = None, **options: Any) -> None:
        super().__init__(model, criterion, **options)
        check_keep_clean(mixer)
        self.mixer, self._again = mixer, SecondPass()

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Any]:
        """Losses of one batch.

        Args:
            input: [B, C, H, W].
            target: int64 [B] or float [B, K].

        Returns:
            'loss' (mean of both), 'output' (clean logits), 'loss_clean', 'loss_mixed', 'draw'.
        """
        mixer = self.mixer
        rows = soft_targets(target, mixer.num_classes, mixer.label_smoothing, input.device, mixer.multi_label)
        if not mixer.mixup_enabled:
            output = self.trainable_module(input)
            loss = self.criterion(output, rows)
            return {'loss': loss, 'output': output, 'loss_clean': loss.detach(), 'loss_mixed': torch.zeros_like(loss)}
        inner = unwrap(self.trainable_module)
        size = (input.shape[1], input.shape[2], input.shape[3])
        with watch_training(inner, resolve_layers(inner, size, mixer.config.layers)) as seen:
            output = self.trainable_module(input)
        with torch.autocast(input.device.type, enabled=False), kept_buffers(inner):
            logits = output.float()
            score = mixer.score(logits, target.to(logits.device))
            captured = seen.captured(logits, score, (input.shape[2], input.shape[3]), retain_graph=True)
        draw = mixer.draw_from(input, captured, target)
        mixed, targets = mixer.apply(input, target, draw)
        clean_loss = self.criterion(output, rows)
        mixed_loss = self.criterion(self._again(self.trainable_module, mixed), targets)
        return {'loss': (clean_loss + mixed_loss) / 2, 'output': output,
                'loss_clean': clean_loss.detach(), 'loss_mixed': mixed_loss.detach(), 'draw': draw}
