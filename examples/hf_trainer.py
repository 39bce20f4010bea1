"""GradMix in Hugging Face's Trainer: compute_loss mixes. Run: python examples/hf_trainer.py (seconds on a CPU)."""
from __future__ import annotations

import tempfile

import timm
import torch
from digits import known_and_unknown
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from gradmix_timm import create_mixer


class Classifier(torch.nn.Module):
    """A timm model that takes images as the Trainer names them."""

    def __init__(self, backbone: str, num_classes: int) -> None:
        super().__init__()
        self.net = timm.create_model(backbone, num_classes=num_classes, in_chans=1)

    def forward(self, pixel_values, labels=None):
        return {'logits': self.net(pixel_values)}


class MixTrainer(Trainer):
    """Trains on mixed batches, evaluates on unmixed ones."""

    def __init__(self, *args, mixer: str, num_classes: int, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        options = {'confidence': 0.9} if mixer == 'gradmix' else {}  # only images whose label the model is sure of
        self.mixer = create_mixer(mixer, num_classes=num_classes, rank=self.args.process_index, **options)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        images, targets = inputs['pixel_values'], inputs['labels']
        if model.training:
            # The net inside the model and its wrappers: what takes images and gives logits.
            images, targets = self.mixer(images, targets, self.accelerator.unwrap_model(model).net)
        logits = model(pixel_values=images)['logits']
        loss = F.cross_entropy(logits, targets)
        return (loss, {'loss': loss, 'logits': logits}) if return_outputs else loss


def main(backbone: str = 'test_resnet', epochs: int = 6, batch_size: int = 64, mixer: str = 'gradmix') -> float:
    """Train on six digits; the accuracy on their test images."""
    train, test, _ = known_and_unknown()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=batch_size, per_device_eval_batch_size=256,
            learning_rate=2e-3, weight_decay=0.05, lr_scheduler_type='constant', seed=0, use_cpu=True,
            save_strategy='no', report_to=[], remove_unused_columns=False, label_names=['labels'], disable_tqdm=True)
        trainer = MixTrainer(
            Classifier(backbone, 6), arguments, mixer=mixer, num_classes=6,
            train_dataset=[{'pixel_values': image, 'labels': label} for image, label in train],
            eval_dataset=[{'pixel_values': image, 'labels': label} for image, label in test],
            compute_metrics=lambda found: {'accuracy': float((found.predictions.argmax(1) == found.label_ids).mean())})
        trainer.train()
        return trainer.evaluate()['eval_accuracy']


if __name__ == '__main__':
    print(f'accuracy {main():.1%}')
