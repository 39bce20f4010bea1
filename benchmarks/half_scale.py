"""How often the box that a smaller copy chooses is the one that the whole image chooses (IoU at equal sides).

    python benchmarks/half_scale.py --checkpoint RUN/model_best.pth.tar --images FOLDER --img-size 32 --name cifar10

The same draws (sides, partners) are placed by the maps of the image, of its copy at each scale, and at random; labels
are the model's own answers. Figures go to ``benchmarks/results/half_scale.json`` under the name.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from gradmix_timm import create_mixer
from gradmix_timm.attribution import resolve_layers
from gradmix_timm.attribution.deletion import log_odds
from gradmix_timm.checkpoint import build_model, load_checkpoint
from gradmix_timm.ops import paste

RESULTS = Path(__file__).parent / 'results' / 'half_scale.json'


def load(folder: Path, config: dict, size: int, limit: int) -> Tensor:
    """Up to ``limit`` images from all over the folder, resized and cropped as the model's evaluation does."""
    files = sorted(path for path in folder.rglob('*') if path.suffix.lower() in {'.png', '.jpg', '.jpeg'})
    files = files[::max(1, len(files) // limit)][:limit]
    transform = create_transform(**{**config, 'input_size': (config['input_size'][0], size, size)}, is_training=False)
    return torch.stack([transform(Image.open(path).convert('RGB')) for path in files])


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of half-open boxes (yl, yh, xl, xh); float32 [B]."""
    sides = torch.minimum(a[:, [1, 3]], b[:, [1, 3]]) - torch.maximum(a[:, [0, 2]], b[:, [0, 2]])
    inter = sides.clamp_min(0).prod(1).float()
    area = [((box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])).float() for box in (a, b)]
    return inter / (area[0] + area[1] - inter)


def boxes(model: torch.nn.Module, images: Tensor, labels: Tensor, classes: int, **options) -> Tensor:
    """Boxes of one pass over the images; the same numbers are drawn whatever the options."""
    mixer = create_mixer(options.pop('mixer', 'gradmix'), num_classes=classes, seed=0, **options)
    mixer.prepare(model, tuple(images.shape[1:]))
    return torch.cat([mixer.draw(x, y, model).dst for x, y in zip(images.split(50), labels.split(50), strict=True)])


def hidden(model: torch.nn.Module, images: Tensor, labels: Tensor, found: Tensor) -> float:
    """Mean fall of the label's log-odds under the boxes, filled from the next image: what the box is for."""
    falls = [log_odds(model, x, y) - log_odds(model, paste(x, x.roll(1, 0), box), y)
             for x, y, box in zip(images.split(50), labels.split(50), found.split(50), strict=True)]
    return round(float(torch.cat(falls).mean()), 3)


def summary(found: Tensor, exact: Tensor) -> dict[str, float]:
    iou = overlap(found, exact)
    return {'mean_iou': round(float(iou.mean()), 3), 'median_iou': round(float(iou.median()), 3),
            'share_above_half': round(float((iou > 0.5).float().mean()), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--checkpoint', required=True)
    parser.add_argument('--images', type=Path, required=True)
    parser.add_argument('--img-size', type=int, required=True)
    parser.add_argument('--name', required=True, help='of the entry in the results')
    parser.add_argument('--limit', type=int, default=500)
    parser.add_argument('--scales', type=float, nargs='+', default=[0.75, 0.5])
    args = parser.parse_args()
    loaded = load_checkpoint(args.checkpoint)
    if loaded.record is None:
        raise SystemExit(f'{args.checkpoint} holds no record of its run; give a checkpoint of train.py')
    model, classes = build_model(loaded), len(loaded.record.known_classes)
    images = load(args.images, dict(loaded.record.data_config), args.img_size, args.limit)
    with torch.no_grad():
        labels = torch.cat([model(x).argmax(1) for x in images.split(50)])
    exact = boxes(model, images, labels, classes)
    kept = (exact[:, 1] > exact[:, 0]) & (exact[:, 3] > exact[:, 2])
    page = {'model': loaded.record.model, 'trained with': loaded.record.mixer, 'images': int(kept.sum()),
            'pixels': args.img_size, 'layer': str(resolve_layers(model, tuple(images.shape[1:]))[0])}
    page['fall of log-odds'] = hidden(model, images, labels, exact)
    for scale in args.scales:
        side = round(args.img_size * scale)
        found = boxes(model, images, labels, classes, attr_scale=scale)
        page[f'scale {scale:g}'] = {
            'layer': str(resolve_layers(model, (images.shape[1], side, side))[0]),
            **summary(found[kept], exact[kept]), 'fall of log-odds': hidden(model, images, labels, found)}
    found = boxes(model, images, labels, classes, mixer='random-box')
    page['random box'] = {**summary(found[kept], exact[kept]), 'fall of log-odds': hidden(model, images, labels, found)}
    pages = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**pages, args.name: page}, indent=1) + '\n')
    print(json.dumps(page, indent=1))


if __name__ == '__main__':
    main()
