"""Every recipe is what it says: parsed, its controls one flag away, and two steps of it run on tiny images."""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image

from gradmix_timm.checkpoint import load_checkpoint
from gradmix_timm.cli import train
from gradmix_timm.cli.recipes import find_recipe, list_recipes
from gradmix_timm.cli.training import run as stages
from gradmix_timm.data import load_split

CONFIGS = Path(__file__).parent.parent / 'configs'
RECIPES = sorted(path for path in CONFIGS.rglob('*.yaml') if path.parent.name != 'aug')
NAMES = [str(path.relative_to(CONFIGS)) for path in RECIPES]


def parse(path, *flags):
    return train._parse_args(['-c', str(path), *map(str, flags)])[0]


def header(path):
    return '\n'.join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith('#'))


def classes_of(args):
    """Class names that the recipe's data has to have; three of none where any will do."""
    if not args.osr_protocol:
        return [f'class{number}' for number in range(3)]
    split = load_split(args.osr_protocol, args.osr_trial)
    return [*split.known, *(() if split.unknown_dataset else split.unknown)]


def write(root, names, channels, count):
    """``count`` images of 16 px in each class folder of a train and a val split."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).convert('RGB' if channels == 3 else 'L')
    for split in ('train', 'val'):
        for name in names:
            folder = root / split / name.replace('/', '-')  # F/A-18 is an aircraft
            folder.mkdir(parents=True)
            for number in range(count):
                image.save(folder / f'{number}.png')


@pytest.mark.parametrize('path', RECIPES, ids=NAMES)
def test_a_header_says_command_source_and_cost(path):
    text = header(path)
    if path.name == 'quickstart.yaml':
        return
    for word in ('Train:', 'Controls:', 'Published:', 'Hardware:'):
        assert word in text, word
    results = re.search(r'docs/\S+\.md', text)
    assert (CONFIGS.parent / results[0]).exists() if results else 'not run here' in text
    assert str(path.relative_to(CONFIGS.parent)) in text
    assert all(len(line) <= 120 for line in path.read_text().splitlines())


def test_a_folder_of_its_name_does_not_hide_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'quickstart').mkdir()
    assert Path(find_recipe('quickstart')).is_file()
    (tmp_path / 'mine').mkdir()
    assert find_recipe('mine') == 'mine', 'its reader says that it is a folder'


def test_recipes_go_by_name_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = [name.removesuffix('.yaml') for name in NAMES]
    assert list(list_recipes()) == names
    assert all(line and len(line) < 250 for line in list_recipes().values())
    for name in (*names, 'configs/finetune.yaml', 'osr/cifar10.yaml'):
        assert Path(find_recipe(name)).is_file()
    assert parse('osr/cifar+10', '--data-dir', 'x') == parse(CONFIGS / 'osr' / 'cifar+10.yaml', '--data-dir', 'x')
    (tmp_path / 'finetune').write_text('epochs: 7\n')
    assert parse('finetune', '--data-dir', 'x').epochs == 7, 'a file comes first'
    for wrong, near in (('osr/cifar10-smal', "'osr/cifar10-small'"), ('aug/light', 'Available: finetune')):
        with pytest.raises(SystemExit):
            parse(wrong)
        assert near in capsys.readouterr().err
    assert parse('finetune', '--aug-backend', 'albumentations', '--aug-config', 'aug/light').aug_config == 'aug/light'


@pytest.mark.parametrize('path', RECIPES, ids=NAMES)
def test_every_named_control_is_one_flag_away(path):
    args = parse(path, '--data-dir', '/nowhere')
    assert args.mixup_mode == 'gradmix'
    controls = re.search(r'Controls:\s+(?:the same|the control)[^\n]*?--mixup-mode ([\w, -]+?)(?: \(|;|\n|$)',
                         header(path) + '\n')
    named = re.split(r', | or ', controls.group(1)) if controls else ['none', 'cutmix']
    assert {'none', 'cutmix'} <= set(named)

    def changed(*flags, base=args):
        other = parse(path, '--data-dir', '/nowhere', *flags)
        return {key for key in vars(base) if getattr(base, key) != getattr(other, key)}

    for control in named:
        assert changed('--mixup-mode', control.strip()) == {'mixup_mode'}
    if '--gradmix-center random' in header(path):
        assert changed('--gradmix-center', 'random') == {'gradmix_center'}
        every = parse(path, '--data-dir', '/nowhere', '--gradmix-confidence', '0')
        for control in ('random-box', 'center-box'):
            flags = ('--gradmix-confidence', '0', '--mixup-mode', control)
            assert changed(*flags, base=every) == {'mixup_mode'}


@pytest.mark.parametrize('path', [
    pytest.param(path, marks=pytest.mark.slow) if path.stem != 'finetune' else path
    for path in RECIPES], ids=NAMES)
def test_two_steps_of_every_recipe(path, tmp_path, monkeypatch):
    args = parse(path)
    names = classes_of(args)
    channels = args.in_chans or 3
    known = len(load_split(args.osr_protocol).known) if args.osr_protocol else 3
    digits = args.dataset == 'sklearn/digits'
    if not digits:
        write(tmp_path / 'data', names, channels, 2 if args.osr_protocol else 4)
    # Of two images one is held out; half of what is left is a batch.
    batch = 320 if digits else known // 2 if args.osr_protocol else 6
    create = timm.create_model
    monkeypatch.setattr(train, 'create_model', lambda **options: create(**{**options, 'pretrained': False}))
    steps = []
    step = stages.train_one_epoch
    monkeypatch.setattr(stages, 'train_one_epoch', lambda run, epoch: (steps.append(len(run.loaders.train)),
                                                                     step(run, epoch))[1])
    model = 'test_vit' if args.model.startswith('vit') else 'test_resnet'
    where = [] if digits else ['--data-dir', str(tmp_path / 'data'), '--dataset', '']
    if args.num_classes is None and not args.osr_protocol:
        where += ['--num-classes', '3']
    train.main(['-c', str(path), *where, '--model', model, '--img-size', '32', '--batch-size', str(batch), '--epochs',
                '1', '--warmup-epochs', '0', '--workers', '0', '--device', 'cpu', '--output', str(tmp_path / 'out'),
                '--experiment', 'run', '--log-interval', '1000'])
    assert steps[0] >= 2
    loaded = load_checkpoint(tmp_path / 'out' / 'run' / 'last.pth.tar')
    assert loaded.record.mixer == 'gradmix'
    assert loaded.record.protocol == args.osr_protocol
