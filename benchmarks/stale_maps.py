"""Prototype: maps tapped from the training step's own backward, kept for the next epoch. How stale, how cheap?

    python benchmarks/stale_maps.py --epochs 6

The gradient of the loss at the target layer exists in every backward; its map costs no forward. Kept for each image
(float16, in the coordinates of the uncropped image) it could place the next epoch's box. Two questions are measured on
digits with shifts drawn per image: how well the box from the kept map agrees with the exact one (IoU at equal side),
when the net trains on clean batches and when it trains on the batches that those boxes mixed, beside a random box and
the ceiling: the exact map of another shift of the same image by the same weights; and what the tap costs, in FLOPs and
in time, against the plain step.
"""
from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.flop_counter import FlopCounterMode

from gradmix_timm import attribute
from gradmix_timm.attribution import resolve_layers, to_pixels, watch
from gradmix_timm.ops import box_lam, mix_targets, paste, soft_targets, window_boxes

SIZE, PAD, SIDE, K = 64, 8, 28, 10


def load(limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    digits = load_digits()
    images = torch.tensor(digits.images[:limit], dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, (SIZE, SIZE), mode='bilinear')
    return (images - 0.3) / 0.38, torch.tensor(digits.target[:limit])


def view(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Each image moved by its shift (dy, dx) in pixels; the border repeats."""
    padded = F.pad(images, (PAD,) * 4, mode='replicate')
    y = torch.arange(SIZE)[None] + PAD + shift[:, :1]
    x = torch.arange(SIZE)[None] + PAD + shift[:, 1:]
    rows = padded.gather(2, y[:, None, :, None].expand(-1, images.shape[1], -1, padded.shape[3]))
    return rows.gather(3, x[:, None, None, :].expand(-1, images.shape[1], SIZE, -1))


def iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    high, low = torch.minimum(a[:, [1, 3]], b[:, [1, 3]]), torch.maximum(a[:, [0, 2]], b[:, [0, 2]])
    inter = (high - low).clamp_min(0).prod(1).float()
    area = lambda t: ((t[:, 1] - t[:, 0]) * (t[:, 3] - t[:, 2])).float()  # noqa: E731
    return inter / (area(a) + area(b) - inter)


def tapped_step(model, layers, images, rows):
    """A training step whose own backward gives the map: evidence is the descent direction of the loss."""
    kept = {}
    with watch(model, layers) as seen:
        logits = model(images)
    output = seen.outputs[0]
    output.register_hook(lambda grad: kept.update(grad=grad))
    (-(rows * logits.log_softmax(1)).sum(1).mean()).backward()
    raw = (output.detach() * (-kept['grad']).relu()).sum(1).relu()
    return raw / raw.amax((1, 2), keepdim=True).clamp_min(torch.finfo(raw.dtype).tiny)


def exact_boxes(model, images, labels, sides):
    return window_boxes(to_pixels(attribute(model, images, labels).map, (SIZE, SIZE)), sides)


def study(mix: bool, epochs: int, limit: int, seed: int) -> list[dict]:
    torch.manual_seed(seed)
    model = timm.create_model('resnet10t', num_classes=K, in_chans=1)
    images, labels = load(limit)
    layers = resolve_layers(model, (1, SIZE, SIZE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    cache = torch.zeros(len(images), SIZE, SIZE, dtype=torch.float16)
    sides = torch.full((32, 2), SIDE)
    found = []
    for epoch in range(epochs):
        overlaps, random, ceiling = [], [], []
        model.train()
        for index in torch.randperm(len(images)).split(32):
            if len(index) < 32:
                continue
            shift = torch.randint(-PAD, PAD + 1, (32, 2))
            x, y = view(images[index], shift), labels[index]
            rows = soft_targets(y, K)
            if epoch:
                stale = window_boxes(view(cache[index, None].float(), shift)[:, 0], sides)
                exact = exact_boxes(model, x, y, sides)
                other = torch.randint(-PAD, PAD + 1, (32, 2))
                again = to_pixels(attribute(model, view(images[index], other), y).map, (SIZE, SIZE))
                moved = view(view(again[:, None], -other), shift)[:, 0]
                ceiling.append(iou(window_boxes(moved, sides), exact))
                overlaps.append(iou(stale, exact))
                random.append(iou(window_boxes(torch.rand(32, SIZE, SIZE), sides), exact))
                if mix:
                    partner = torch.randperm(32)
                    lam = box_lam(stale, (SIZE, SIZE))
                    x = paste(x, x[partner], stale)
                    rows = mix_targets(rows, partner, torch.stack([lam, 1 - lam], 1))
            maps = to_pixels(tapped_step(model, layers, x, rows), (SIZE, SIZE))
            optimizer.step()
            optimizer.zero_grad()
            cache[index] = view(maps[:, None], -shift)[:, 0].half()
        if epoch:
            found.append({'epoch': epoch, 'iou': round(float(torch.cat(overlaps).mean()), 3),
                          'iou_of_a_random_box': round(float(torch.cat(random).mean()), 3),
                          'iou_of_another_view': round(float(torch.cat(ceiling).mean()), 3)})
    return found


def cost() -> dict:
    model = timm.create_model('resnet10t', num_classes=K, in_chans=1).train()
    images, labels = load(32)
    layers, rows = resolve_layers(model, (1, SIZE, SIZE)), soft_targets(labels, K)

    def plain():
        (-(rows * model(images).log_softmax(1)).sum(1).mean()).backward()

    def tapped():
        to_pixels(tapped_step(model, layers, images, rows), (SIZE, SIZE))

    times = {'plain': [], 'tapped': []}
    for _ in range(15):
        for name, run in (('plain', plain), ('tapped', tapped)):
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    counts = []
    for run in (plain, tapped):
        with FlopCounterMode(display=False) as counter:
            run()
        counts.append(counter.get_total_flops())
    ratios = sorted(t / p for t, p in zip(times['tapped'][2:], times['plain'][2:], strict=True))
    return {'flop_ratio': round(counts[1] / counts[0], 4), 'time_ratio': round(ratios[len(ratios) // 2], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--epochs', type=int, default=6)
    parser.add_argument('--images', type=int, default=800)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    page = {'clean batches': study(False, args.epochs, args.images, args.seed),
            'batches mixed by the kept maps': study(True, args.epochs, args.images, args.seed), 'cost': cost()}
    path = Path(__file__).parent / 'results' / 'stale_maps.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(page, indent=1) + '\n')
    print(json.dumps(page, indent=1))


if __name__ == '__main__':
    main()
