"""Features of known and unknown images in the plane, by PCA and t-SNE, for a figure; nothing is measured on it."""
from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ['project_features']

# t-SNE's time grows with width as well as with images; the directions beyond hold little.
_DIMENSIONS = 50
_PERPLEXITY = 30
_LEAST = 8


def project_features(known: Tensor, unknown: Tensor, images: int = 1000, seed: int = 0) -> dict[str, NDArray]:
    """Points of at most so many images, half of them known and half unknown where there are as many.

    PCA is fit on the known images alone, so unknown ones fall where the known ones' main directions put them; t-SNE is
    fit on both.

    Args:
        known: float [N, D].
        unknown: float [M, D].
        images: Shown at most; 0: none.
        seed: Of the choice and of t-SNE.

    Returns:
        ``plane/known`` bool [n], ``plane/PCA`` and ``plane/t-SNE`` float32 [n, 2], as arrays.npz has them; nothing
        if there are fewer than eight images or their features do not vary.
    """
    generator = np.random.default_rng(seed)
    parts = [side[np.sort(generator.permutation(len(side))[:images // 2])].double().numpy() for side in (
        known.cpu(), unknown.cpu())]
    rows = np.concatenate(parts)
    if len(rows) < _LEAST or len(parts[0]) < 2 or not np.isfinite(rows).all() or np.ptp(parts[0], axis=0).max() == 0:
        return {}
    # A second to import, and a call may ask for no figure.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    found = {'plane/known': np.arange(len(rows)) < len(parts[0])}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # features of width 1, and the like
        fit = PCA(min(_DIMENSIONS, *parts[0].shape), svd_solver='full').fit(parts[0])
        flat = np.pad(fit.transform(rows)[:, :2], ((0, 0), (0, max(0, 2 - fit.n_components_))))
        found['plane/PCA'] = flat.astype(np.float32)
        both = PCA(min(_DIMENSIONS, *rows.shape), svd_solver='full').fit_transform(rows)
        if both.shape[1] > 1:
            found['plane/t-SNE'] = TSNE(
                perplexity=min(_PERPLEXITY, (len(rows) - 1) / 3), init='pca', random_state=seed).fit_transform(
                    both).astype(np.float32)
    return found
