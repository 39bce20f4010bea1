"""Statistics of pixels: what they measure, and what they say of two sets."""
from __future__ import annotations

import re

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from gradmix_timm.openset.pixel_statistics import STATISTICS, compare_statistics, measure, warnings_of


def one(name, pixels, size=(32, 24)):
    return measure(pixels, size)[list(STATISTICS).index(name)]


def test_each_statistic_by_its_definition():
    rng = np.random.default_rng(0)
    pixels = rng.random((9, 11, 3))
    luma = 0.299 * pixels[..., 0] + 0.587 * pixels[..., 1] + 0.114 * pixels[..., 2]
    assert one('mean', pixels) == pytest.approx(luma.mean())
    assert one('contrast', pixels) == pytest.approx(luma.std())
    laplacian = [abs(luma[y - 1, x] + luma[y + 1, x] + luma[y, x - 1] + luma[y, x + 1] - 4 * luma[y, x])
                 for y in range(1, 8) for x in range(1, 10)]
    assert one('laplacian', pixels) == pytest.approx(np.mean(laplacian))
    assert one('chroma', pixels) == pytest.approx(np.mean([abs(pixels[..., c] - luma).mean() for c in range(3)]))
    assert one('aspect', pixels) == pytest.approx(np.log(32 / 24))
    assert one('size', pixels) == pytest.approx(np.log(32 * 24))
    assert measure(pixels, (32, 24), 512)[-1] == pytest.approx(np.log(512))


def test_grey_images_have_no_chroma_and_one_channel_will_do():
    grey = np.random.default_rng(0).random((8, 8, 1))
    three = np.repeat(grey, 3, axis=2)
    np.testing.assert_allclose(measure(grey, (8, 8), 9), measure(three, (8, 8), 9), atol=1e-12)
    assert one('chroma', grey) == one('chroma_detail', grey) == 0
    assert np.isfinite(measure(np.zeros((1, 1, 3)), (1, 1), 1)).all()
    assert np.isfinite(measure(np.ones((5, 5, 3)), (5, 5), 1)).all()


def statistics(count, seed, **shift):
    rows = np.random.default_rng(seed).normal(size=(count, len(STATISTICS)))
    for name, by in shift.items():
        rows[:, list(STATISTICS).index(name)] += by
    return rows


def test_areas_are_sklearns_whichever_side_is_higher():
    known, unknown = statistics(280, 0), statistics(260, 1, laplacian=1.5, mean=-1.)
    found = compare_statistics(known, unknown)
    side = np.repeat([1, 0], [280, 260])
    for place, name in enumerate(STATISTICS):
        area = roc_auc_score(side, np.concatenate([known[:, place], unknown[:, place]]))
        assert found['statistics'][name]['auroc'] == pytest.approx(max(area, 1 - area))
        assert found['statistics'][name]['higher'] == ('known' if area >= 0.5 else 'unknown')
        low, high = found['statistics'][name]['auroc_ci']
        assert low <= found['statistics'][name]['auroc'] <= high
    assert found['worst'] == 'laplacian'
    assert found['combined']['auroc'] > found['statistics']['laplacian']['auroc']


def test_warnings_name_the_statistic_and_the_set():
    words = warnings_of(compare_statistics(statistics(80, 0), statistics(60, 1, laplacian=1.5)), 'textures')
    assert len(words) == 1
    assert words[0].startswith('pixels alone separate textures from the known images')
    assert re.search(r'AUROC by laplacian \d\d% \(unknown higher\)$', words[0])


def test_the_bar_is_at_six_tenths():
    for area, warned in ((0.59, False), (0.61, True)):
        value = {'auroc': area, 'auroc_ci': [area - 0.05, area + 0.05], 'higher': 'known'}
        assert bool(warnings_of({'statistics': {'laplacian': value}, 'combined': None})) == warned


def test_no_warning_where_the_sides_are_alike_or_few():
    assert warnings_of(compare_statistics(statistics(400, 0), statistics(400, 1))) == []
    few = compare_statistics(statistics(4, 0), statistics(4, 1))
    assert few['combined'] is None
    assert any(values['auroc'] > 0.6 for values in few['statistics'].values())  # by chance alone
    assert warnings_of(few) == []


def test_what_only_all_together_see():
    """Equal means, another spread: no statistic alone, their squares do."""
    known, unknown = statistics(300, 0), 3 * statistics(300, 1)
    found = compare_statistics(known, unknown)
    assert all(values['auroc'] < 0.6 for values in found['statistics'].values())
    assert found['combined']['auroc'] > 0.9
    assert 'together' in warnings_of(found)[0]


def test_bytes_are_compared_where_all_images_are_files():
    known, unknown = statistics(40, 0), statistics(40, 1, bytes=9.)
    assert compare_statistics(known, unknown)['worst'] == 'bytes'
    unknown[7, list(STATISTICS).index('bytes')] = np.nan
    found = compare_statistics(known, unknown)
    assert set(found['statistics']) == set(STATISTICS) - {'bytes'}
    assert found['combined']['auroc'] < 0.8


def test_refuses_what_is_no_statistic():
    with pytest.raises(ValueError, match='unknown: expected finite rows'):
        compare_statistics(statistics(5, 0), np.full((5, len(STATISTICS)), np.nan))
    with pytest.raises(ValueError, match='known: expected'):
        compare_statistics(statistics(0, 0), statistics(5, 0))


def test_it_sees_another_resize():
    """The trap it is there for: the same kind of content, brought to 32 px with and without antialiasing."""
    from PIL import Image
    rng = np.random.default_rng(0)

    def images(how):
        found = []
        for _ in range(60):
            large = np.asarray(Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).resize((160, 160)))
            large = np.clip(large + rng.normal(0, 20, large.shape), 0, 255).astype(np.uint8)
            small = large[::5, ::5] if how == 'skip' else np.asarray(Image.fromarray(large).resize((32, 32)))
            found.append(measure(small / 255, (32, 32)))
        return np.stack(found)
    compared = compare_statistics(images('antialias'), images('skip'))
    assert compared['statistics']['laplacian']['auroc'] > 0.9
    assert warnings_of(compared)
