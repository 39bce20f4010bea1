"""What the tests of the training command share: tiny images from a seed, and a run in this process."""
from __future__ import annotations

import csv
import platform
from pathlib import Path

import numpy as np
import PIL
import pytest
import timm
import torch
import torchvision
from PIL import Image

from gradmix_timm.cli import train
from gradmix_timm.cli.training import run

CLASSES = ('ant', 'bee', 'cat', 'dog')

#: Flags of every tiny run.
TINY = ('--model', 'test_resnet', '--img-size', '32', '--device', 'cpu', '--workers', '0', '--batch-size', '6',
        '--warmup-epochs', '0', '--lr', '0.05', '--epochs', '2', '--log-interval', '1000')


def write_images(root: Path, train: int = 8, validation: int = 3, size: int = 40) -> Path:
    """Class folders of noise round a colour of each class, the same pixels every time."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 156, (len(CLASSES), 3))
    for split, count in (('train', train), ('validation', validation), ('test', 2)):
        for name, colour in zip(CLASSES, colours, strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = colour + rng.integers(0, 100, (size, size, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{number}.png')
    return root


def rows(folder: Path) -> list[dict[str, str]]:
    """The lines of summary.csv."""
    with (folder / 'summary.csv').open() as file:
        return list(csv.DictReader(file))


def run_tiny(root: Path, out: Path, *flags: object, name: str = 'run', classes: int | None = 4,
             pictures: bool = False) -> Path:
    """Train in this process; the run folder. ``pictures``: mixes.png too, which takes longer than the epochs."""
    head = [] if classes is None else ['--num-classes', str(classes)]
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:
            patch.setattr(run, '_write_mixes', lambda *args: None)
        train.main(['--data-dir', str(root), *head, *TINY, '--output', str(out), '--experiment', name,
                    *map(str, flags)])
    return out / name


#: Entries of :func:`machine` that say which CPU it is.
CPU = ('cpu', 'instructions')


def cpu_name(here: dict[str, str]) -> str:
    """Of :func:`machine`: CPUs of one name sum in one order."""
    return ' '.join(here[name] for name in CPU)


def machine() -> dict[str, str]:
    """What the last digits of a run depend on."""
    cpu = Path('/proc/cpuinfo')
    names = [line.partition(':')[2].strip() for line in cpu.read_text().splitlines() if line.startswith('model name')] \
        if cpu.exists() else []
    return {
        'timm': timm.__version__, 'torchvision': torchvision.__version__, 'pillow': PIL.__version__,
        'numpy': np.__version__, 'torch': torch.__version__, 'cpu': (names or [platform.processor()])[0],
        'instructions': torch.backends.cpu.get_cpu_capability()}
