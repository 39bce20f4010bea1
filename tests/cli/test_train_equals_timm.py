"""A command line of timm's gives timm's figures, to the last digit.

The figures are those of timm's own script on the same generated images (tests/data/make_timm_reference.py made them).
On the machine and with the versions that made them every digit is compared. Another CPU or PyTorch sums in another
order, from which eight updates make up to about 1e-3: there losses are compared to 1 %, and accuracies, which may flip
by an image, are not. Another timm, torchvision, Pillow or NumPy draws or resizes otherwise: nothing to compare.
"""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_training import machine, rows, run_tiny, write_images

REFERENCE = json.loads((Path(__file__).parent.parent / 'data' / 'timm_reference.json').read_text())
HERE, THERE = machine(), REFERENCE['machine']
DRAWS = ('timm', 'torchvision', 'pillow', 'numpy')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.mark.skipif([HERE[n] for n in DRAWS] != [THERE[n] for n in DRAWS], reason='the figures are of other versions')
@pytest.mark.parametrize('case', REFERENCE['cases'])
def test_figures_are_those_of_timms_script(case, images, tmp_path):
    wanted = REFERENCE['cases'][case]
    got = rows(run_tiny(images, tmp_path, *wanted['flags']))
    if HERE == THERE:
        assert got == wanted['rows']
        return
    for line, reference in zip(got, wanted['rows'], strict=True):
        assert line.keys() == reference.keys()
        for name in ('train_loss', 'eval_loss', 'lr'):
            assert float(line[name]) == pytest.approx(float(reference[name]), rel=0.01)
