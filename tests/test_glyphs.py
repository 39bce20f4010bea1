"""The drawn data set of benchmarks/glyphs.py, from the fonts that matplotlib brings."""
from __future__ import annotations

import runpy
from pathlib import Path

import matplotlib
import numpy as np

GLYPHS = runpy.run_path(str(Path(__file__).parents[1] / 'benchmarks' / 'glyphs.py'))
FONTS = GLYPHS['faces'](Path(matplotlib.get_data_path()) / 'fonts' / 'ttf')


def test_faces_have_every_character_and_each_is_of_one_split():
    names = {face.name for face in FONTS}
    assert {'DejaVuSans.ttf', 'DejaVuSans-Bold.ttf', 'DejaVuSerif.ttf', 'STIXGeneral.ttf'} <= names
    assert not any(name.startswith(('cm', 'STIXSiz', 'STIXNon')) for name in names)  # mathematical symbols
    assert {GLYPHS['is_test'](face) for face in FONTS} == {False, True}


def test_a_hundred_classes_are_drawn_legibly_and_alike_for_a_seed():
    fonts = [face for face in FONTS if face.name.startswith('DejaVu')]
    drawn = list(GLYPHS['images'](fonts, 1, seed=3))
    assert [index for _, index, _ in drawn] == [0] * 100
    assert len({name for name, _, _ in drawn}) == 100
    assert drawn[0][0] == f'u{ord("A"):04x}'
    pixels = np.stack([np.asarray(image) for _, _, image in drawn])
    assert pixels.shape == (100, 32, 32, 3)
    again = np.stack([np.asarray(image) for _, _, image in GLYPHS['images'](fonts, 1, seed=3)])
    other = np.stack([np.asarray(image) for _, _, image in GLYPHS['images'](fonts, 1, seed=4)])
    assert (pixels == again).all()
    assert (pixels != other).any((1, 2, 3)).all()
    contrast = pixels.astype(float).mean(-1).reshape(100, -1)
    assert (np.ptp(contrast, axis=1) > 40).all()
