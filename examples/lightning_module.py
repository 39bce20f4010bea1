"""GradMix in a LightningModule: the live model is self.model. Run: python examples/lightning_module.py"""
from __future__ import annotations

import lightning
import timm
import torch
from digits import known_and_unknown
from timm.loss import SoftTargetCrossEntropy
from torch.utils.data import DataLoader

from gradmix_timm import create_mixer


class GradMixClassifier(lightning.LightningModule):
    """A timm classifier that is trained on mixed batches."""

    def __init__(self, backbone: str, num_classes: int, mixer: str = 'gradmix', lr: float = 2e-3, **model_kwargs
                 ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = timm.create_model(backbone, num_classes=num_classes, in_chans=1, **model_kwargs)
        self.mixer = None
        self.loss_fn = SoftTargetCrossEntropy()

    def on_fit_start(self):
        # Here the process knows its rank, so that every process draws mixes of its own.
        hparams = self.hparams
        # GradMix only on images whose label the model is sure of.
        options = {'confidence': 0.9} if hparams.mixer == 'gradmix' else {}
        self.mixer = create_mixer(hparams.mixer, num_classes=hparams.num_classes, rank=self.global_rank, **options)

    def training_step(self, batch, index):
        images, labels = batch
        self.mixer.set_step(self.current_epoch, index)  # a resumed run draws what an uninterrupted one would
        mixed = self.mixer.mix(images, labels, self.model)
        with self.mixer.watch(self.model, mixed) as finish:  # some mixers, such as transmix, know labels after the pass
            output = self.model(mixed.input)
        loss = self.loss_fn(output, finish(output))
        self.log('train_loss', loss, prog_bar=True)
        return loss

    def validation_step(self, batch, index):
        images, labels = batch
        self.log('accuracy', (self.model(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=0.05)


def main(backbone: str = 'test_resnet', epochs: int = 6, batch_size: int = 64, mixer: str = 'gradmix',
         model_kwargs: dict | None = None, **trainer) -> dict[str, float]:
    """Train on six digits; the metrics of the last epoch."""
    lightning.seed_everything(0)
    train, test, _ = known_and_unknown()
    fit = lightning.Trainer(max_epochs=epochs, accelerator='cpu', devices=1, logger=False, enable_checkpointing=False,
                            **trainer)
    model = GradMixClassifier(backbone, 6, mixer, **(model_kwargs or {}))
    fit.fit(model, DataLoader(train, batch_size, shuffle=True, drop_last=True), DataLoader(test, 256))
    return {name: float(value) for name, value in fit.callback_metrics.items()}


if __name__ == '__main__':
    print(main())
