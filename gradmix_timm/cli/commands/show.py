"""``python -m gradmix_timm.show``: what a mixer does to images, as a picture; or the deletion test, as a table."""
from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gradmix_timm.attribution.deletion import Place, deletion_drops, log_odds
from gradmix_timm.checkpoint import (
    Loaded,
    atomic_path,
    build_model,
    check_input,
    find_device,
    load_checkpoint,
    write_atomic,
)
from gradmix_timm.cli.errors import UsageError, user_errors
from gradmix_timm.cli.plugins import import_modules
from gradmix_timm.cli.training.flag_checks import judge_as_trained
from gradmix_timm.data.listing import list_images
from gradmix_timm.data.opening import expected_files, open_image
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.mixers import TIMM_MODES, Mixer, create_mixer, recorded_options
from gradmix_timm.mixers.scene import make_scene
from gradmix_timm.models import check_name
from gradmix_timm.plots.pictures import MixScene, plot_scene
from gradmix_timm.schema import naming

__all__ = ['run', 'save_mixes']

_logger = logging.getLogger(__name__)


def _check_numbers(args: argparse.Namespace) -> None:
    """Reject invalid sizes and counts before a model is loaded."""
    for flag, least in (('num_classes', 1), ('img_size', 1), ('num', 1), ('deletion_images', 2), ('shift', 0)):
        value = getattr(args, flag)
        if value is not None and value < least:
            raise UsageError(f'--{flag.replace("_", "-")} is {least} or more, got {value}')
    outside = [side for side in args.deletion_sides if not 0 < side <= 1]
    if outside:
        raise UsageError(f'--deletion-sides are shares of the image in (0, 1], got {outside[0]:g}')


def _check_output(args: argparse.Namespace) -> None:
    """Reject a file of another kind than the command writes, and flags of the picture beside ``--deletion``."""
    if not args.deletion:
        if args.out is not None and Path(args.out).suffix != '.png':
            raise UsageError(f'--out {args.out}: expected a file that ends in .png; the picture is a .png')
        return
    typed = [flag for flag in ('mixer', 'mixup_kwargs', 'layers', 'num') if getattr(args, flag) not in (None, {})]
    if typed:
        raise UsageError(f'--{typed[0].replace("_", "-")} is of the picture, and --deletion prints a table without any '
                         'mixer; leave one of them out (the table has --deletion-layers and --deletion-images)')
    if args.out is not None and Path(args.out).suffix != '.json':
        raise UsageError(f'--out {args.out}: expected a file that ends in .json; --deletion writes a table and no '
                         'picture')


def _model(args: argparse.Namespace) -> tuple[nn.Module, Loaded | None]:
    if not args.checkpoint and not args.model:
        raise UsageError('nothing to show: give --checkpoint FILE or --model NAME')
    loaded = load_checkpoint(args.checkpoint) if args.checkpoint else None
    if loaded is None:
        check_name(args.model)
    extra = {'img_size': args.img_size} if args.img_size and loaded is None else {}
    if extra:
        try:
            model = timm.create_model(args.model, pretrained=args.pretrained, num_classes=args.num_classes, **extra)
        except TypeError:
            model = build_model(None, args.model, args.num_classes, args.pretrained)
    else:
        model = build_model(loaded, args.model, args.num_classes, args.pretrained)
    return model.to(find_device(args.device)).eval(), loaded


def _files(folder: str, classes: Sequence[str]) -> list[tuple[Path, str]]:
    """Image files, each with its enclosing folder that is a known class, or ''; only known classes if there are any.

    The given folder may be a class, hold classes, or hold splits.
    """
    if not Path(folder).is_dir():
        raise UsageError(f'{folder} is not a folder; --images takes a folder of images or of class folders')
    found = list_images(folder)
    if not found.files:
        raise UsageError(f'no image in {folder} ({expected_files()}); give another --images')
    files = []
    for path in map(Path, found.files):
        folders = (Path(folder).resolve().name, *path.relative_to(folder).parts[:-1])
        files.append((path, next((name for name in folders if name in classes), '')))
    return [pair for pair in files if pair[1]] or files


def _load(files: Sequence[tuple[Path, str]], preprocessing: Preprocessing) -> Tensor:
    transform = preprocessing.transform()
    images = []
    for path, _ in tqdm(files, desc='reading', leave=False, disable=None if len(files) > 200 else True):
        try:
            with open_image(path) as image:
                images.append(transform(preprocessing.decode(image, path)))
        except (OSError, ValueError) as error:
            raise UsageError(f'{path} is not a readable image ({error}); remove or replace it') from error
    return torch.stack(images)


def _labels(model: nn.Module, images: Tensor, files: Sequence[tuple[Path, str]], classes: Sequence[str],
            ) -> Tensor:
    """The class folder if the model knows that name, else the model's prediction."""
    with torch.no_grad():
        predicted = torch.cat([model(part).argmax(1) for part in images.split(64)])
    position = {name: index for index, name in enumerate(classes)}
    for row, (_, name) in enumerate(files):
        if name:
            predicted[row] = position[name]
    return predicted


def _mixer(args: argparse.Namespace, loaded: Loaded | None, num_classes: int) -> Mixer:
    """The requested mixer, or the checkpoint's; it mixes every image that its confidence admits."""
    record = loaded.record if loaded is not None else None
    if args.mixer is None and record is not None and record.mixer:
        name = record.mixer
        options, former = recorded_options(name, record.mixer_options)
        options.update(prob=1.0, prob_elem=1.0)
        if former:
            _logger.warning(f'{args.checkpoint}: mixer {name!r} has no option {", ".join(former)} any more; left out')
    else:
        name, options = args.mixer or 'gradmix', {'seed': args.seed}
    options.update(args.mixup_kwargs, **({'layers': args.layers} if args.layers else {}))
    if name in TIMM_MODES:  # timm's class has no prob_elem, and draws from NumPy's stream
        options = {key: value for key, value in options.items() if key not in ('seed', 'prob_elem')}
    # The model's output for no class is folded into the others; the labels still have it.
    outputs = num_classes + bool(options.get('unknown_output'))
    mixer = create_mixer(name, **{**options, 'num_classes': outputs})
    if loaded is not None:
        judge_as_trained(mixer, loaded.args or {}, max(loaded.epoch or 0, 0))
    return mixer


def save_mixes(out_dir: str | Path, model: nn.Module, images: Tensor, labels: Tensor, mixer: Mixer,
               class_names: Sequence[str], data_config: dict[str, Any], stem: str = 'mixes', rows: int = 6) -> MixScene:
    """Write ``mixes.png`` and ``mixes.json`` of one batch into a run folder, for the report.

    Args:
        out_dir: The folder.
        model: The live model; left as it was.
        images: Normalised, [B, C, H, W] on the model's device.
        labels: int64 [B].
        mixer: Any of the registry.
        class_names: In label order.
        data_config: timm's, for mean and std.
        stem: Of both files.
        rows: At most this many images in the picture.
    """
    scene = make_scene(mixer, model, images, labels)
    folder = Path(out_dir)
    figure = plot_scene(scene, class_names, data_config['mean'], data_config['std'], rows)
    with atomic_path(folder / f'{stem}.png') as temporary:
        figure.savefig(temporary)
    shown = []
    draw = scene.draw
    for row in range(min(rows, len(images)) if draw is not None else 0):
        assert draw is not None
        partner = int(draw.partner[row])
        shown.append({
            'class': class_names[int(scene.labels[row])], 'partner_class': class_names[int(scene.labels[partner])],
            'lam': float(draw.lam[row]), 'weight': draw.weight[row].tolist(),
            'box': draw.dst[row].tolist(), 'fallback': bool(draw.fallback[row]),
            **({} if draw.unknown is None else {'unknown': float(draw.unknown[row])})})
    facts = {'mixer': scene.mixer, 'layers': list(scene.layers), 'images': shown}
    write_atomic(folder / f'{stem}.json', json.dumps(facts, indent=1) + '\n')
    return scene


def _shifted(images: Tensor, shift: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    padded = nn.functional.pad(images, (shift,) * 4, mode='reflect')
    height, width = images.shape[2:]
    offsets = torch.randint(0, 2 * shift + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y:y + height, x:x + width] for image, (y, x) in zip(padded, offsets, strict=True)])


def places(layer_sets: Sequence[str]) -> list[Place]:
    """The controls, then every attribution, placement and layer set, and the authors' sign."""
    found = [Place('random'), Place('center')]
    for layers in (None if name == 'default' else name for name in layer_sets):
        found += [Place('layercam', layers, 'evidence', center) for center in ('argmax', 'window')]
        found += [Place(name, layers) for name in ('hirescam', 'gradcam')]
    found += [Place('layercam', None, 'logit'), Place('layercam', None, 'loss'), Place('input-gradient')]
    return found


def deletion_table(model: nn.Module, images: Tensor, labels: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Mean drop of the label's log-odds on correctly classified images, for every position and box side."""
    images = _shifted(images, args.shift, args.seed) if args.shift else images
    with torch.inference_mode():
        predicted = torch.cat([model(part).argmax(1) for part in images.split(64)])
    right = predicted == labels
    if right.sum() < 2:
        raise UsageError('the model classifies fewer than two of these images correctly; give others, or a trained '
                         'model')
    images, labels = images[right], labels[right]
    where, size = places(args.deletion_layers), images.shape[2]
    rows: dict[str, dict[str, float]] = {str(place): {} for place in where}
    count = -(-len(images) // 64)  # parts of even sizes, none of a single image
    parts = list(zip(images.tensor_split(count), labels.tensor_split(count), strict=True))
    base = torch.cat([log_odds(model, *part) for part in parts])
    for share in args.deletion_sides:
        side = max(1, round(share * size))
        drops = [deletion_drops(model, x, y, where, side, args.seed + i)
                 for i, (x, y) in enumerate(tqdm(parts, desc=f'{side} px', disable=None))]
        for place, values in zip(where, torch.cat(drops, 1), strict=True):
            rows[str(place)][str(side)] = round(float(values.mean()), 4)
            rows[str(place)][f'{side}_se'] = round(float(values.std() / len(values) ** 0.5), 4)
    return {'images': int(right.sum()), 'accuracy': float(right.float().mean()), 'image_size': size,
            'shift': args.shift, 'mean_log_odds': float(base.mean()), 'fall_of_log_odds': rows}


def _print_table(table: dict[str, Any]) -> None:
    rows = table['fall_of_log_odds']
    sides = [key for key in next(iter(rows.values())) if not key.endswith('_se')]
    print(f'{table["images"]} correctly classified images (accuracy {table["accuracy"]:.3f}), '
          f'shift {table["shift"]} px: mean fall of the label\'s log-odds under a box of')
    print('| place | ' + ' | '.join(f'{side} px' for side in sides) + ' |')
    print('|---|' + '---|' * len(sides))
    for name, values in rows.items():
        print(f'| {name} | ' + ' | '.join(f'{values[s]:.2f} ± {values[f"{s}_se"]:.2f}' for s in sides) + ' |')


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        UsageError: An error that the user can fix; what to type is in the message.
    """
    _check_numbers(args)
    _check_output(args)
    num = 6 if args.num is None else args.num
    with user_errors(renamed={'--gradmix-layers': '--layers'}):
        import_modules(args.device_modules)
        model, loaded = _model(args)
        with naming(args.checkpoint or args.model):
            preprocessing = Preprocessing.of({} if loaded is None else loaded.data_config, model, args.img_size)
            preprocessing.transform()
            check_input(model, preprocessing.input_size, args.checkpoint or args.model)
        classes = list(loaded.record.known_classes) if loaded is not None and loaded.record is not None else []
        files = _files(args.images, classes)
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(args.seed)).tolist()
        count = args.deletion_images if args.deletion else max(num + num % 2, 2)  # timm's take pairs
        files = [files[i] for i in order[:count]]
        images = _load(files, preprocessing).to(args.device)
        labels = _labels(model, images, files, classes)
        num_classes = int(getattr(model, 'num_classes', 0)) or int(labels.max()) + 1
        classes = classes or [str(k) for k in range(num_classes)]
        if not args.deletion:
            mixer = _mixer(args, loaded, num_classes)
            classes += ['no class'] * (mixer.num_classes - num_classes)
            if mixer.requires_model:
                mixer.prepare(model, (images.shape[1], images.shape[2], images.shape[3]))
    if args.deletion:
        table = deletion_table(model, images, labels, args)
        _print_table(table)
        if args.out is not None:
            write_atomic(args.out, json.dumps(table, indent=1) + '\n')
            print(args.out)
        return 0
    out = Path('mixes.png' if args.out is None else args.out)
    save_mixes(out.parent, model, images, labels, mixer, classes, preprocessing.as_config(), out.stem, num)
    print(out)
    return 0
