"""What a run does before its first step: ``python benchmarks/start.py``, with nothing else running.

Processor seconds of fresh processes, by stage, and the modules that each stage imports: PyTorch, its ``torch._dynamo``
(which torchvision imports, and every optimizer as it is made), torchvision, timm, this package, and the set-up of
``gradmix-train -c quickstart --cache-images``. Writes benchmarks/results/start.json,
which ``python benchmarks/cost_tables.py`` makes a table of.
"""
from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from gradmix_timm.checkpoint import versions

RESULT = Path(__file__).parent / 'results' / 'start.json'
ROUNDS = 7
# Run in a fresh process; the first step is replaced by the last line of figures.
SCRIPT = """
import json, sys, time
figures = {}
def stage(name, seconds=[0.], modules=[0]):
    figures[name] = {'seconds': time.process_time() - seconds[0], 'modules': len(sys.modules) - modules[0]}
    seconds[0], modules[0] = time.process_time(), len(sys.modules)
stage('Python')
import torch
stage('torch')
import torch._dynamo
stage('torch._dynamo')
import torchvision
stage('torchvision')
import timm
stage('timm')
from gradmix_timm.cli import train
from gradmix_timm.cli.training import run
stage('gradmix_timm')
def first(*_):
    stage('set-up')
    print(json.dumps(figures))
    raise KeyboardInterrupt
run.train_one_epoch = first
train.console(['-c', 'quickstart', '--cache-images', '--workers', '0', '--output', sys.argv[1]])
"""


def main() -> None:
    found = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([sys.executable, '-c', SCRIPT, folder], capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    found = found[1:]  # the first may compile, and reads files from the disk
    stages = {name: {'seconds': round(statistics.median(one[name]['seconds'] for one in found), 2),
                     'modules': found[0][name]['modules']} for name in found[0]}
    total = round(statistics.median(sum(part['seconds'] for part in one.values()) for one in found), 2)
    RESULT.write_text(json.dumps({'date': date.today().isoformat(), 'rounds': len(found), 'versions': versions(),
                                  'seconds': total, 'stages': stages}, indent=1) + '\n')
    print(RESULT.read_text())


if __name__ == '__main__':
    main()
