"""Class folders of coloured noise and untrained checkpoints that know of them."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from gradmix_timm.checkpoint import KEY, RunRecord
from gradmix_timm.data import open_dataset, take
from gradmix_timm.data.identity import identities

CONFIG = {'input_size': (3, 32, 32), 'interpolation': 'bilinear', 'mean': (0.3, 0.4, 0.5), 'std': (0.3, 0.2, 0.25),
          'crop_pct': 0.9, 'crop_mode': 'center'}


def class_folders(root: Path, classes=('ant', 'bee', 'cat'), count: int = 30, splits=('train', 'test'),
                  seed: int = 0) -> Path:
    """``root/SPLIT/CLASS/N.png``, 20 x 24 pixels of noise round a colour."""
    rng = np.random.default_rng(seed)
    for split in splits:
        for place, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(60 * place + rng.integers(0, 80, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f'{number:02}.png')
    return root


def held_out(data: Path, positions) -> dict[str, str]:
    """Images at these positions of the train split, as a record names them."""
    source = open_dataset('', data, 'train') if positions else ()
    return identities(take(source, [row for row in positions if row < len(source)])) if positions else {}


def save_checkpoint(path: Path, data: Path, held=None, **changes) -> Path:
    """test_resnet whose head knows cat and ant (labels 2 and 0 of the folders); ``held``: positions held out."""
    torch.manual_seed(0)
    known = changes.pop('known_classes', ('cat', 'ant'))
    model = changes.pop('net', None) or timm.create_model('test_resnet', num_classes=len(known))
    held = [*range(0, 20), *range(60, 80)] if held is None else held
    record = RunRecord(**{
        'model': 'test_resnet', 'model_kwargs': {'num_classes': len(known)}, 'known_classes': known,
        'unknown_classes': ('bee',), 'data_dir': str(data), 'splits': {'train': 'train', 'test': 'test'},
        'data_config': CONFIG, 'held_out': held_out(data, held), 'mixer': 'gradmix', 'seed': 3, **changes})
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({'state_dict': model.state_dict(), 'epoch': 1, 'metric': 50., 'arch': 'test_resnet',
                KEY: record.to_state()}, path)
    return path
