"""GradMix in a plain PyTorch loop: one line changes. Run: python examples/plain_pytorch.py (seconds on a CPU)."""
from __future__ import annotations

import timm
import torch
from digits import known_and_unknown
from timm.loss import SoftTargetCrossEntropy
from torch.utils.data import DataLoader

from gradmix_timm import create_mixer
from gradmix_timm.openset.metrics import auroc


def main(backbone: str = 'test_resnet', epochs: int = 6, batch_size: int = 64) -> dict[str, float]:
    """Train on six digits, then measure how well the largest logit separates them from the other four."""
    torch.manual_seed(0)
    train, test, unknown = known_and_unknown()
    model = timm.create_model(backbone, num_classes=6, in_chans=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    loss_fn = SoftTargetCrossEntropy()
    mixer = create_mixer('gradmix', num_classes=6, confidence=0.9, label_smoothing=0.1, seed=0)

    for epoch in range(epochs):
        model.train()
        for images, labels in DataLoader(train, batch_size, shuffle=True, drop_last=True):
            images, targets = mixer(images, labels, model)  # the changed line; the model is left as it was
            loss = loss_fn(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f'epoch {epoch + 1}: loss {loss.item():.3f}')

    model.eval()
    with torch.no_grad():
        known, other = model(test.tensors[0]), model(unknown)
    result = {'accuracy': float((known.argmax(1) == test.tensors[1]).float().mean()),
              'auroc': auroc(known.amax(1), other.amax(1))}
    print(f'accuracy {result["accuracy"]:.1%}, known against unknown by the largest logit: AUROC {result["auroc"]:.1%}')
    return result


if __name__ == '__main__':
    main()
