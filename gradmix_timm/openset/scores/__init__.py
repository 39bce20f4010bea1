"""The scores of knownness, by name, and one function that fits any of them."""
from __future__ import annotations

# ruff: noqa: I001 - importing a file registers its scores, in the order of the list.
from . import logit, posterior, neighbours, guided, distance, density, openmax, activation, joint, odin  # noqa: F401
from .fitting import fit_score, list_scores
from .names import parse_score, score_kind, score_label
from .base import SCORES, FewSamples, Head, Score
from gradmix_timm.records import Embeddings

__all__ = ['SCORES', 'Embeddings', 'FewSamples', 'Head', 'Score', 'fit_score', 'list_scores', 'parse_score',
           'score_kind', 'score_label']
