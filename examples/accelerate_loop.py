"""GradMix under Accelerate: hand it the prepared model, it looks inside the wrapper.

Run: accelerate launch examples/accelerate_loop.py (or with python; several processes and mixed precision as configured)
"""
from __future__ import annotations

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import known_and_unknown
from timm.loss import SoftTargetCrossEntropy
from torch.utils.data import DataLoader

from gradmix_timm import create_mixer


def main(backbone: str = 'test_resnet', epochs: int = 6, batch_size: int = 64, **options) -> float:
    """Train on six digits; the accuracy on their test images."""
    accelerator = Accelerator(gradient_accumulation_steps=2, **options)
    set_seed(0)
    train, test, _ = known_and_unknown()
    model = timm.create_model(backbone, num_classes=6, in_chans=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    loader = DataLoader(train, batch_size, shuffle=True, drop_last=True)
    model, optimizer, loader, tests = accelerator.prepare(model, optimizer, loader, DataLoader(test, 256))
    loss_fn = SoftTargetCrossEntropy()
    mixer = create_mixer('gradmix', num_classes=6, confidence=0.9, rank=accelerator.process_index)

    for epoch in range(epochs):
        model.train()
        for step, (images, labels) in enumerate(loader):
            mixer.set_step(epoch, step)
            with accelerator.autocast():
                mixed = mixer.mix(images, labels, model)  # before accumulate: the maps need no synchronisation
            with accelerator.accumulate(model):
                with mixer.watch(model, mixed) as finish:  # some mixers, such as transmix, know labels after the pass
                    output = model(mixed.input)
                loss = loss_fn(output, finish(output))
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.print(f'epoch {epoch + 1}: loss {loss.item():.3f}')

    model.eval()
    hits = []
    for images, labels in tests:
        with torch.no_grad():
            found = model(images).argmax(1)
        hits.append(accelerator.gather_for_metrics(found == labels))
    accuracy = torch.cat(hits).float().mean().item()
    accelerator.print(f'accuracy {accuracy:.1%}')
    return accuracy


if __name__ == '__main__':
    main()
