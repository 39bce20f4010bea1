"""A run validates by the preprocessing that its checkpoint records, and every evaluation reads images by it."""
from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tiny_training import rows, run_tiny

from gradmix_timm.checkpoint import load_checkpoint
from gradmix_timm.cli.openset import main as osr

KNOWN = ('ant', 'bee', 'cat')


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
    """96 x 32 pixels that tell a class by their left edge alone, which a crop of the center cuts off."""
    root, rng = tmp_path_factory.mktemp('wide'), np.random.default_rng(0)
    for split, count in (('train', 24), ('test', 12)):
        for place, name in enumerate((*KNOWN, 'dog')):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 96, 3), dtype=np.uint8)
                pixels[:, :32] = np.eye(4, 3)[place] * 255
                Image.fromarray(pixels).save(root / split / name / f'{number}.png')
    (root / 'validation').symlink_to(root / 'test')
    return root


def run_osr(folder, *flags):
    assert osr.main(['osr', '--checkpoint', str(folder / 'last.pth.tar'), '--device', 'cpu', '--workers', '0',
                     '--scores', 'mls', '--bootstrap', '1', '--trivial-images', '0', '--duplicates', '0',
                     '--feature-map', '0', '--output', str(folder / 'osr'), *map(str, flags)]) == 0
    return json.loads((folder / 'osr' / 'results.json').read_text())


@pytest.mark.parametrize('mode', ['squash', 'border'])
@pytest.mark.parametrize('flags', [(), ('--no-prefetcher',), ('--cache-images',),
                                   ('--objective', 'simclr', '--objective-dim', 8, '--probe-epochs', 20)],
                         ids=['plain', 'no prefetcher', 'cached', 'probe'])
def test_held_out_images_are_validated_by_the_models_crop_mode(mode, flags, wide, tmp_path):
    """Red before: training cut out the center, and osr squeezed the picture; its own gate refused the checkpoint."""
    folder = run_tiny(wide, tmp_path, '--known-classes', ','.join(KNOWN), '--osr-val-fraction', 0.5,
                      '--pretrained-cfg-overlay', f'crop_mode={mode}', 'crop_pct=1.0', '--epochs', 4, '--scale', 1, 1,
                      '--ratio', 3, 3, '--color-jitter', 0, '--hflip', 0, *flags, classes=None)
    loaded = load_checkpoint(folder / 'last.pth.tar')
    assert loaded.record.data_config['crop_mode'] == mode
    gate = run_osr(folder)['accuracy_gate']
    if '--objective' in flags:
        top1 = loaded.record.probe['val_top1']
    else:
        top1 = float(rows(folder)[-1]['eval_top1'])
        assert gate['reference'] == pytest.approx(top1 / 100)
        assert gate['measured'] == gate['reference']
