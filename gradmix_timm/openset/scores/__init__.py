"""The scores of knownness, by name: what is registered, and one call that fits any of them."""
from __future__ import annotations

# ruff: noqa: I001 - importing a file registers its scores, in the order of the list.
from . import logit, neighbours, distance, openmax, activation  # noqa: F401
from .fitting import fit_score, list_scores, score_kind
from .base import SCORES, Head, Score

__all__ = ['DEFAULT_SCORES', 'SCORES', 'Head', 'Score', 'fit_score', 'list_scores', 'score_kind']

# No score wins everywhere; these six differ in kind and are cheap.
DEFAULT_SCORES = ('msp', 'mls', 'gen', 'knn', 'rmahalanobis', 'vim')
