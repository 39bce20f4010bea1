"""GradMix in torchvision's reference script (references/classification): the lines that change.

The script mixes in the data loader's collate function, where no model exists. A mixer that reads the model runs in the
step instead. In ``train.py`` of the reference, leave ``--mixup-alpha`` and ``--cutmix-alpha`` at 0 and

1. make the mixer in ``main``, behind the model. It smooths the labels, so the loss must not do so a second time:

       mixer = create_mixer('gradmix', num_classes=num_classes, confidence=0.9, label_smoothing=args.label_smoothing,
                            rank=args.rank if args.distributed else 0)
       criterion = nn.CrossEntropyLoss()

2. hand it to ``train_one_epoch`` as one more argument, and call it there behind ``image.to(device)``;
   ``nn.CrossEntropyLoss`` takes soft targets:

       mixer.set_step(epoch, i)
       image, target = mixer(image, target, model)

   and ``utils.accuracy(output, target.argmax(1), topk=(1, 5))`` below.

``train_one_epoch`` here is the reference's with these lines; ``main`` runs it on digits. Run:
python examples/torchvision_reference.py (seconds on a CPU)
"""
from __future__ import annotations

import torch
import torchvision
from digits import known_and_unknown
from torch.utils.data import DataLoader

from gradmix_timm import create_mixer


def train_one_epoch(model, criterion, optimizer, data_loader, device, epoch, mixer):
    """The reference's loop without its logging, mean weights and gradient scaling."""
    model.train()
    for i, (image, target) in enumerate(data_loader):
        image, target = image.to(device), target.to(device)
        mixer.set_step(epoch, i)
        image, target = mixer(image, target, model)
        loss = criterion(model(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(epochs: int = 3, batch_size: int = 64) -> float:
    """Train a narrow ResNet of torchvision's on six digits; the accuracy on their test images."""
    torch.manual_seed(0)
    train, test, _ = known_and_unknown()
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=6)
    model.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1, bias=False)
    mixer = create_mixer('gradmix', num_classes=6, confidence=0.9, label_smoothing=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(train, batch_size, shuffle=True, drop_last=True)
    for epoch in range(epochs):
        train_one_epoch(model, torch.nn.CrossEntropyLoss(), optimizer, loader, torch.device('cpu'), epoch, mixer)
    model.eval()
    with torch.no_grad():
        return (model(test.tensors[0]).argmax(1) == test.tensors[1]).float().mean().item()


if __name__ == '__main__':
    print(f'accuracy {main():.1%}')
