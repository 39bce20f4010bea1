"""Benchmarks share the memory counter of the tests and write their results beside themselves."""
from __future__ import annotations

import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / 'tests'))
RESULTS = Path(__file__).parent / 'results'


def machine() -> dict:
    """What the figures were measured on."""
    model = next((line.split(':', 1)[1].strip() for line in Path('/proc/cpuinfo').read_text().splitlines()
                  if line.startswith('model name')), platform.processor()) if Path('/proc/cpuinfo').exists() else ''
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {'cpu': model, 'threads': torch.get_num_threads(), 'gpu': gpu, 'python': platform.python_version(),
            **{name: version(name) for name in ('torch', 'torchvision', 'timm', 'gradmix-timm')}}


@pytest.fixture(scope='session')
def device() -> torch.device:
    """CUDA where there is one: timed by events, in bfloat16."""
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


@pytest.fixture(scope='session')
def record(device):
    """``record(file, key, figures)`` adds figures to ``results/FILE[_cuda].json`` when the session ends."""
    pages: dict[str, dict] = {}

    def add(file: str, key: str, figures: dict) -> None:
        pages.setdefault(file, {})[key] = figures

    yield add
    for file, figures in pages.items():
        path = RESULTS / f'{file}{"_cuda" if device.type == "cuda" else ""}.json'
        RESULTS.mkdir(exist_ok=True)
        old = json.loads(path.read_text())['figures'] if path.exists() else {}
        page = {'date': datetime.now(UTC).date().isoformat(), 'machine': machine(), 'figures': {**old, **figures}}
        path.write_text(json.dumps(page, indent=1) + '\n')
