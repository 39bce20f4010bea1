"""Store what timm's own training script gives on tiny images: ``python make_timm_reference.py PATH/TO/timm/train.py``.

Writes ``timm_reference.json`` beside this file: for each case its flags and the lines of summary.csv, one set of lines
for each kind of CPU that the command was run on, with its versions. Figures of other CPUs are kept while the versions
are the same. The script is not part of timm's wheel; it is in its repository.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / 'cli'))

from tiny_training import CPU, TINY, cpu_name, machine, rows, write_images  # noqa: E402

CASES = {
    'plain': '',
    'collate batch mixup and cutmix': '--mixup 0.4 --cutmix 1.0',
    'step elem mixup and cutmix': '--mixup 0.4 --cutmix 1.0 --mixup-mode elem --no-prefetcher',
    'collate pair bce': '--cutmix 1.0 --mixup-mode pair --bce-loss --bce-target-thresh 0.2',
    'step pair, off after one epoch': '--mixup 0.4 --mixup-mode pair --no-prefetcher --mixup-off-epoch 1',
    'collate minmax, off after one epoch': '--cutmix-minmax 0.2 0.8 --mixup-off-epoch 1 --mixup-prob 0.7',
    'average, workers, erasing': '--workers 2 --mixup 0.4 --model-ema --model-ema-decay 0.9 --reprob 0.3',
    'accumulation, clipping, policy': '--no-prefetcher --mixup 0.2 --grad-accum-steps 2 --clip-grad 1 --aa rand-m5',
    'accumulation with a remainder': '--mixup 0.2 --grad-accum-steps 3 --channels-last --drop 0.2',
    'adamw on updates, layer decay': '--opt adamw --sched-on-updates --layer-decay 0.8 --lr-noise 0.1 0.9',
    'augmentation splits': '--aug-splits 2 --jsd-loss --split-bn --resplit --reprob 0.3',
    'patches': '--model naflexvit_base_patch16_gap --model-kwargs depth=1 embed_dim=24 num_heads=2 --naflex-loader '
               '--naflex-train-seq-lens 4 9 --naflex-max-seq-len 9 --mixup 0.4',
    'sizes': '--train-img-sizes 24 32 --train-batch-sizes 8 6 --variable-batch-loss-scale sqrt',
    'three splits, policy': '--aug-splits 3 --jsd-loss --aa rand-m9-mstd0.5 --reprob 0.25 --recount 2 --resplit',
    'transformer, adaptive clipping': '--model test_vit --model-kwargs img_size=32 --opt adamw --layer-decay 0.7 '
                                      '--drop-path 0.1 --clip-grad 1 --clip-mode agc --mixup 0.4 --no-prefetcher',
    'plateau, one channel, bfloat16': '--sched plateau --patience-epochs 0 --lr 0.2 --epochs 5 --in-chans 1 '
                                      '--model-dtype bfloat16 --model-ema --model-ema-decay 0.9 --model-ema-warmup',
}


def run(script: str, root: Path, flags: list[str]) -> list[dict[str, str]]:
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, script, '--data-dir', str(root), '--num-classes', '4', *TINY, *flags,
                   '--output', out, '--experiment', 'run']
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'},
                              check=False)
        if done.returncode:
            sys.exit(f'{command}\n{done.stderr}')
        return rows(Path(out) / 'run')


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        root = write_images(Path(folder) / 'images')
        cases = {name: {'flags': text.split(), 'rows': run(sys.argv[1], root, text.split())}
                 for name, text in CASES.items()}
    file, here = HERE / 'timm_reference.json', machine()
    versions = {name: value for name, value in here.items() if name not in CPU}
    flags = {name: case['flags'] for name, case in cases.items()}
    content = json.loads(file.read_text()) if file.exists() else {}
    if content.get('versions') != versions or content.get('flags') != flags:
        content = {'versions': versions, 'flags': flags, 'rows': {}}
    content['rows'][cpu_name(here)] = {name: case['rows'] for name, case in cases.items()}
    file.write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
    main()
