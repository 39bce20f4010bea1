"""Features in the plane: known and unknown clouds stay apart, choice and order are told, odd inputs give no figure."""
from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from gradmix_timm.openset.reports.feature_map import project_features
from gradmix_timm.openset.reports.figures import plot_features
from gradmix_timm.plots.figure import png


def clouds(count=40, apart=8.):
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(count, 6, generator=generator) * torch.tensor([5., 3., 1., 1., 1., 1.])
    unknown = torch.randn(count, 6, generator=generator)
    unknown[:, 0] += 5 * apart
    return known, unknown


@pytest.mark.parametrize('name', ['plane/PCA', 'plane/t-SNE'])
def test_clouds_that_lie_apart_lie_apart_in_the_plane(name):
    found = project_features(*clouds())
    plane, known = found[name], found['plane/known']
    assert plane.shape == (80, 2)
    centres = [plane[known == side].mean(0) for side in (True, False)]
    nearest = np.argmin([np.linalg.norm(plane - centre, axis=1) for centre in centres], axis=0)
    assert (nearest == ~known).mean() > 0.95


def test_pca_is_that_of_the_known_images():
    known, unknown = clouds()
    found = project_features(known, unknown)['plane/PCA']
    oracle = PCA(2, svd_solver='full').fit(known.numpy())
    for side, rows in ((known, slice(0, 40)), (unknown, slice(40, 80))):
        np.testing.assert_allclose(np.abs(found[rows]), np.abs(oracle.transform(side.numpy())), rtol=1e-3, atol=1e-3)


def test_the_choice_is_seeded_and_halved():
    known, unknown = clouds(60)
    found = [project_features(known, unknown[:10], 40, seed) for seed in (0, 0, 1)]
    assert found[0]['plane/known'].sum() == 20
    assert len(found[0]['plane/known']) == 30
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])
    assert not np.array_equal(found[0]['plane/PCA'], found[2]['plane/PCA'])


@pytest.mark.parametrize(('known', 'unknown'), [
    (torch.zeros(20, 4), torch.zeros(20, 4)), (torch.randn(3, 4), torch.randn(3, 4)),
    (torch.full((20, 4), torch.nan), torch.zeros(20, 4))])
def test_nothing_is_drawn_of_what_has_no_plane(known, unknown):
    assert project_features(known, unknown) == {}
    assert project_features(*clouds(), images=0) == {}


def test_a_single_feature_has_a_line():
    found = project_features(torch.randn(20, 1), torch.randn(20, 1))
    assert (found['plane/PCA'][:, 1] == 0).all()
    assert 'plane/t-SNE' not in found


def test_both_sides_are_seen_in_the_figure():
    found = project_features(*clouds())
    shown = Image.open(io.BytesIO(png(plot_features(found)))).convert('RGB')
    assert shown.width == 720
    pixels = np.asarray(shown).astype(int)
    blue, orange = pixels[..., 2] - pixels[..., 0] > 40, pixels[..., 0] - pixels[..., 2] > 40
    assert blue.sum() > 200
    assert orange.sum() > 200
