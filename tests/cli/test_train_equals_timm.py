"""A command line of timm's gives timm's figures, to the last digit.

The figures are those of timm's own script on the same generated images (tests/data/make_timm_reference.py made them),
for each kind of CPU that it was run on. With the versions that made them every digit is compared on such a CPU.
Another CPU or PyTorch sums in another order, and eight updates amplify that: between the CPUs of the file timm's own
losses of the second epoch differ by up to 17% (83% in bfloat16). There learning rates are compared exactly, and the
first epoch's training loss within twice the difference between the CPUs of the file. Another timm, torchvision, Pillow
or NumPy draws or resizes otherwise: nothing to compare.
"""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_training import cpu_name, machine, rows, run_tiny, write_images

REFERENCE = json.loads((Path(__file__).parent.parent / 'data' / 'timm_reference.json').read_text())
HERE, THERE = machine(), REFERENCE['versions']
DRAWS = ('timm', 'torchvision', 'pillow', 'numpy')
SAME = REFERENCE['rows'].get(cpu_name(HERE)) if HERE['torch'] == THERE['torch'] else None
# Command lines that few type, or that take seconds.
SELDOM = {'collate pair bce', 'step pair, off after one epoch', 'accumulation with a remainder', 'augmentation splits',
          'patches', 'sizes', 'three splits, policy', 'plateau, one channel, bfloat16'}


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.mark.skipif([HERE[n] for n in DRAWS] != [THERE[n] for n in DRAWS], reason='the figures are of other versions')
@pytest.mark.parametrize('case', [
    pytest.param(case, marks=pytest.mark.slow) if case in SELDOM else case for case in REFERENCE['flags']])
def test_figures_are_those_of_timms_script(case, images, tmp_path):
    got = rows(run_tiny(images, tmp_path, *REFERENCE['flags'][case]))
    if SAME is not None:
        assert got == SAME[case]
        return
    for wanted in REFERENCE['rows'].values():
        assert [line['lr'] for line in got] == [line['lr'] for line in wanted[case]]
        assert [list(line) for line in got] == [list(line) for line in wanted[case]]
    first = [float(wanted[case][0]['train_loss']) for wanted in REFERENCE['rows'].values()]
    assert float(got[0]['train_loss']) == pytest.approx(first[0], rel=2 * (max(first) / min(first) - 1) + 1e-4)
