"""The closest pairs of unknown and known images."""
from __future__ import annotations

from dataclasses import replace

import embedded
import numpy as np
import torch

from gradmix_timm.evaluation.duplicates import closest_pairs


def unit(rows):
    return torch.nn.functional.normalize(rows.double(), dim=1)


def test_pairs_are_those_of_the_whole_matrix():
    known = {'test': embedded.make(40, seed=1), 'train': embedded.make(70, seed=2)}
    unknown = embedded.make(30, seed=3, unknown=True)
    cosines = unit(unknown.features) @ unit(torch.cat([part.features for part in known.values()])).T
    best, place = cosines.max(1)
    owner = [('test', i + 1000) for i in range(40)] + [('train', i + 1000) for i in range(70)]
    order = best.argsort(descending=True)[:7].tolist()
    found = closest_pairs(known, unknown, 7)
    assert [pair.unknown for pair in found] == [i + 1000 for i in order]
    assert [(pair.part, pair.known) for pair in found] == [owner[place[i]] for i in order]
    assert np.allclose([pair.cosine for pair in found], best[order], rtol=0, atol=1e-12)


def test_the_same_image_comes_first_whatever_its_scale():
    known, unknown = embedded.make(50, seed=1), embedded.make(20, seed=3, unknown=True)
    features = unknown.features.clone()
    features[4], features[9] = known.features[31], 1e-3 * known.features[2]
    found = closest_pairs({'test': known}, replace(unknown, features=features), 100)
    assert len(found) == 20
    assert {(pair.unknown - 1000, pair.known - 1000) for pair in found[:2]} == {(4, 31), (9, 2)}
    assert found[1].cosine > 1 - 1e-9 > found[2].cosine


def test_features_that_are_not_finite_have_no_pairs():
    known, unknown = embedded.make(8), embedded.make(8, seed=3, unknown=True)
    broken = unknown.features.clone()
    broken[3, 2] = torch.nan
    assert closest_pairs({'test': known}, replace(unknown, features=broken), 5) == []
