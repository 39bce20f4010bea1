"""Rank metrics of ten million scores: seconds each."""
from __future__ import annotations

import time

import numpy as np
import pytest

from gradmix_timm.openset import metrics

N = 5_000_000


@pytest.fixture(scope='module')
def sides():
    rng = np.random.default_rng(0)
    return (rng.normal(1, 1, N).astype(np.float32), rng.random(N) < 0.9, rng.normal(0, 1, N).astype(np.float32))


def test_ten_million_scores(sides, benchmark, record):
    known, correct, unknown = sides
    runs = {'auroc': lambda: metrics.auroc(known, unknown), 'aupr_in': lambda: metrics.aupr_in(known, unknown),
            'fpr_at_95_known': lambda: metrics.fpr_at_95_known(known, unknown),
            'oscr': lambda: metrics.oscr(known, correct, unknown),
            'delong_ci': lambda: metrics.delong_ci(known, unknown)}
    benchmark.pedantic(runs['auroc'], rounds=1)
    seconds = {}
    for name, run in runs.items():
        began = time.perf_counter()
        run()
        seconds[name] = round(time.perf_counter() - began, 2)
    assert max(seconds.values()) < 60
    record('metrics', 'ten million scores, seconds', seconds)
