"""Training features are read block by block: no copy of them, and the same figures whatever the blocks."""
from __future__ import annotations

import embedded
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peak_memory import PeakMemory

from gradmix_timm.openset.scores import activation as activation_scores
from gradmix_timm.openset.scores import base, fit_score
from gradmix_timm.openset.scores import neighbours as neighbour_scores
from gradmix_timm.records import Embeddings

WIDTH = 64


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
    """20,000 features as a memory map, 5 MB, and their head."""
    made = embedded.make(20_000, width=WIDTH)
    path = tmp_path_factory.mktemp('stored') / 'features.npy'
    np.save(path, made.features.numpy())
    features = torch.from_numpy(np.load(path, mmap_mode='c'))
    return Embeddings(made.logits, features, None, made.label, made.index), embedded.make_head(width=WIDTH)


@pytest.mark.parametrize(('name', 'options'), [
    ('mahalanobis', {}), ('mahalanobis', {'normalize': True}), ('rmahalanobis', {}), ('vim', {}), ('knn', {}),
    ('react', {}), ('dice', {}), ('openmax', {}), ('klm', {}), ('nnguide', {}), ('relation', {}), ('residual', {}),
    ('gmm', {}), ('vra', {}), ('she', {}), ('fdbd', {}), ('nci', {})])
def test_no_copy_of_the_features(name, options, stored, monkeypatch):
    train, head = stored
    whole = fit_score(name, train, head=head, **options)
    monkeypatch.setattr(base, '_BLOCK', 500 * WIDTH)
    monkeypatch.setattr(activation_scores, '_FEW', 1000)
    fields = (train.logits, train.features, train.label, train.index)
    with PeakMemory(*fields) as memory:
        score = fit_score(name, train, head=head, **options)
    # Blocks, and 4,096 rows on which the head is checked; the features take 1.0, in float64 2.0.
    assert memory.peak < 0.6 * train.features.numel() * 4
    query = embedded.make(50, seed=1, width=WIDTH)
    # NumPy interpolates a percentile of float32 in float32.
    torch.testing.assert_close(score(query), whole(query), rtol=1e-7, atol=1e-9)


def test_class_neighbours_read_samples_block_by_block(stored, monkeypatch):
    """Queries too copy one block of one class at a time, and find what a copy of all in float64 finds."""
    train, _ = stored
    score, query = fit_score('class-knn', train), embedded.make(50, seed=1, width=WIDTH)
    cosines = F.normalize(query.features.double(), dim=1) @ F.normalize(train.features.double(), dim=1).T
    sums = torch.stack([cosines[:, train.label == c].topk(3, dim=1).values.sum(1)
                        for c in range(train.logits.shape[1])], 1)
    monkeypatch.setattr(neighbour_scores, '_CLASS_ROWS', 300)
    with PeakMemory(train.features, train.label, query.features, query.logits) as memory:
        found = score(query)
    assert memory.peak < 0.2 * train.features.numel() * 4
    torch.testing.assert_close(found, sums.amax(1), rtol=1e-13, atol=0)
    assert (score.predict(query) == sums.argmax(1)).all()


@pytest.mark.parametrize('percentile', [0., 12.5, 50., 90., 99.99])
def test_percentiles_of_many_values_are_numpys(percentile, monkeypatch):
    monkeypatch.setattr(activation_scores, '_FEW', 0)
    monkeypatch.setattr(base, '_BLOCK', 70)
    generator = torch.Generator().manual_seed(0)
    for rows in (torch.randn(300, 7, generator=generator), torch.randn(300, 7, generator=generator).relu(),
                 torch.full((3, 7), -2.5), torch.tensor([[0., -0., 1e-45, -1e-45, 3e38, -3e38]])):
        expected = np.percentile(rows.double().numpy(), percentile)
        assert activation_scores.percentile_of(rows, percentile) == pytest.approx(expected, rel=1e-12, abs=1e-60)
