"""Structure without labels: do two augmented views of the same images lie in the same arrangement?

    score = Spearman over image pairs (i, j) of  d(a_i, a_j)  against  d(b_i, b_j),   d centred cosine distance

Source: [R] agreement of representational dissimilarity matrices; [K] as a label-free figure for embeddings: the best
simple candidate of METHOD.md section 4. It is a first candidate and no more: an embedding of very low rank fools it,
it saturates between good encoders, and its validity study is still to come.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from sagkit.metrics.checks import require_finite


class StructureScore(NamedTuple):
    """Score in [-1, 1] and the 95 % bootstrap interval over images (None without bootstrap)."""

    score: float
    low: float | None = None
    high: float | None = None


def structure_score(features_a, features_b, n: int = 2000, bootstrap: int = 0, seed: int = 0) -> StructureScore:
    """Agreement of the two views' distances.

    Args:
        features_a: (N, F) features of one view.
        features_b: (N, F) features of another view of the same images, row by row.
        n: images used, drawn without replacement if there are more; time is of order n squared.
        bootstrap: resamplings of images for the interval; pairs of an image with its own copy are dropped.
        seed: of drawing and resampling.

    Raises:
        ValueError: for shapes that differ, fewer than three images or features that are not finite.
    """
    a, b = np.asarray(features_a, dtype=np.float64), np.asarray(features_b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2 or len(a) < 3:
        raise ValueError(f"two views must be (N, F) alike with N >= 3, got {a.shape} and {b.shape}")
    require_finite(np.hstack([a, b]))
    generator = np.random.default_rng(seed)
    if len(a) > n:
        chosen = generator.choice(len(a), size=n, replace=False)
        a, b = a[chosen], b[chosen]
    similarity_a, similarity_b = _similarities(a), _similarities(b)
    i, j = np.triu_indices(len(a), k=1)
    score = _spearman(similarity_a[i, j], similarity_b[i, j])
    if not bootstrap:
        return StructureScore(score)
    resampled = []
    for _ in range(bootstrap):
        drawn = generator.integers(len(a), size=len(a))
        keep = drawn[i] != drawn[j]
        p, q = drawn[i[keep]], drawn[j[keep]]
        resampled.append(_spearman(similarity_a[p, q], similarity_b[p, q]))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return StructureScore(score, float(low), float(high))


def _similarities(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=0)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return x @ x.T


def _spearman(p: np.ndarray, q: np.ndarray) -> float:
    if np.ptp(p) == 0 or np.ptp(q) == 0:
        return 0.0  # a collapsed embedding has no arrangement to agree on
    return float(np.corrcoef(rankdata(p), rankdata(q))[0, 1])
