"""Train the small nets of docs/results/attribution.md and run the deletion test on each.

Of a tree of CIFAR-10's class folders, train and test; about an hour of one CPU thread::

    python benchmarks/few_images.py CIFAR10 data/cifar10-2000 --train 2000 --test 1000
    python benchmarks/deletion_nets.py data/cifar10-2000    # runs/deletion/NET, docs/results/deletion-*.json
    python benchmarks/attribution_tables.py                 # the table from these files

Type it again after an interruption: trainings continue, and files newer than their checkpoint are kept.
"""
from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from attribution_tables import DOCS, NETS

VIT = ('--model', 'vit_tiny_patch16_224', '--lr', '0.001')
VIT_KWARGS = ('--model-kwargs', 'patch_size=4', 'embed_dim=128', 'num_heads=4')
FLAGS = {
    'deletion-resnet-unmixed': ('--model', 'resnet10t', '--lr', '0.002', '--epochs', '8'),
    'deletion-resnet': ('--model', 'resnet10t', '--lr', '0.002', '--epochs', '8', '--mixup-mode', 'gradmix',
                        '--mixup-prob', '0.5', '--gradmix-confidence', '0', '--gradmix-lam-range', '0', '1'),
    'deletion-vit-unmixed': (*VIT, '--epochs', '12', *VIT_KWARGS, 'depth=4'),
    'deletion-vit6-unmixed': (*VIT, '--epochs', '8', *VIT_KWARGS, 'depth=6'),
    'deletion-vitavg-unmixed': (*VIT, '--epochs', '6', *VIT_KWARGS, 'depth=6', 'class_token=False',
                                'global_pool=avg', 'fc_norm=False'),
    'deletion-swin-unmixed': ('--model', 'swin_tiny_patch4_window7_224', '--lr', '0.001', '--epochs', '8',
                              '--model-kwargs', 'patch_size=2', 'window_size=4', 'embed_dim=48', 'depths=(2,4)',
                              'num_heads=(2,4)'),
    'deletion-convnext-unmixed': ('--model', 'convnext_atto', '--lr', '0.002', '--epochs', '6', '--model-kwargs',
                                  'patch_size=2', 'depths=(2,2,4,2)', 'dims=(24,48,96,192)'),
}


def train(name: str, data: Path, folder: Path) -> Path:
    """Six known classes at 32 px, without mixing unless the net's flags say otherwise; the last checkpoint."""
    run([sys.executable, 'train.py', '--data-dir', str(data), '--train-split', 'train', '--img-size', '32',
         '--osr-protocol', 'cifar10', '--osr-trial', '0', '--device', 'cpu', '--amp', '--amp-dtype', 'bfloat16',
         '--opt', 'adamw', '--weight-decay', '0.05', '--warmup-epochs', '1', '--batch-size', '64', '--scale', '0.5',
         '1.0', '--color-jitter', '0', '--smoothing', '0', '--cache-images', '--workers', '0', '--mixup-mode', 'none',
         '--output', str(folder), '--experiment', name, '--resume', 'auto', *FLAGS[name]])
    return folder / name / 'last.pth.tar'


def delete(name: str, checkpoint: Path, data: Path) -> None:
    """The deletion test at the layers of the net's rows in the table, on images as they are and moved."""
    layers = list(dict.fromkeys(place.split()[2] for place in dict(NETS.values())[name]))
    for ending, shift in (('', '0'), ('-shifted', '8')):
        target = DOCS / f'{name}{ending}.json'
        if not target.is_file() or target.stat().st_mtime < checkpoint.stat().st_mtime:
            run([sys.executable, '-m', 'gradmix_timm.show', '--checkpoint', str(checkpoint), '--images',
                 str(data / 'test'), '--deletion', '--shift', shift, '--out', str(target), '--deletion-layers',
                 *layers])


def run(command: list[str]) -> None:
    print(*command, flush=True)
    subprocess.run(command, check=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('data', type=Path, help='a folder with train and test, each with a folder a class')
    parser.add_argument('--runs', type=Path, default=Path('runs/deletion'), help='checkpoints (default: %(default)s)')
    parser.add_argument('--nets', nargs='+', default=list(FLAGS), choices=FLAGS, metavar='NET', help='only these files')
    given = parser.parse_args()
    for net in given.nets:
        delete(net, train(net, given.data, given.runs), given.data)
