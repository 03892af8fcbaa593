"""Structure without labels: does the arrangement of images survive when their colours and frames change?

    score = Spearman over image pairs (i, j) of  d(a_i, a_j)  against  d(b_i, b_j),   d centred cosine distance

with a the features of clean images and b those of one changed view each (`evaluate.CHANGED`). Which images lie near
which is then owed neither to colour, which pixels and untrained networks go by, nor to framing.

Source: [R] agreement of representational dissimilarity matrices; [K] as a label-free figure, and clean against changed
rather than one augmented view against another. Chosen among the designs of `metrics.candidates` by the validity study
of `sagkit.validity`; README shows its table. It takes colour and frame for nuisance: where colour is what matters,
choose other views. It does not see a loss of rank: a projection to its own first components keeps most of the order.
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
    """Agreement of the distances in two feature matrices of the same images.

    Args:
        features_a: (N, F) features of the clean images.
        features_b: (N, F') features of a changed view of the same images, row by row.
        n: images used, drawn without replacement if there are more; time and memory are of order n squared.
        bootstrap: resamplings of images for the interval. An image pair weighs the product of its images'
            multiplicities, an image against its own copy is dropped, and each distance keeps the rank it has among
            all: the correlation is that of weighted ranks, as in `stats.class_bootstrap`'s linear part.
        seed: of drawing and resampling.

    Raises:
        ValueError: for numbers of rows that differ, fewer than three images or features that are not finite.
    """
    a, b = np.asarray(features_a, dtype=np.float64), np.asarray(features_b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or len(a) < 3:
        raise ValueError(f"two views must be (N, F) of the same N >= 3 images, got {a.shape} and {b.shape}")
    require_finite(np.hstack([a, b]))
    generator = np.random.default_rng(seed)
    if len(a) > n:
        chosen = generator.choice(len(a), size=n, replace=False)
        a, b = a[chosen], b[chosen]
    ranks = [_standard_ranks(x) for x in (a, b)]
    if ranks[0] is None or ranks[1] is None:
        return StructureScore(0.0, *((0.0, 0.0) if bootstrap else ()))
    i, j = np.triu_indices(len(a), k=1)
    score = float(np.mean(ranks[0][i, j] * ranks[1][i, j]))
    if not bootstrap:
        return StructureScore(score)
    drawn = _resampled(*ranks, bootstrap, generator)
    low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975])
    return StructureScore(score, float(low), float(high))


def similarities(x: np.ndarray) -> np.ndarray:
    """Cosine (N, N) of rows about their mean."""
    x = directions(x)
    return x @ x.T


def directions(x: np.ndarray) -> np.ndarray:
    """Rows (N, F) about their mean, of length 1, or 0 where nothing but the rounding of that mean is left: a collapsed
    embedding has no directions, and those of its rounding errors would agree between views."""
    centred = x - x.mean(axis=0)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.where(length > 1e-12 * np.abs(x).max(), centred, 0) / np.maximum(length, 1e-12)


def _standard_ranks(x: np.ndarray) -> np.ndarray | None:
    """Ranks of the pairs' similarities as a symmetric (n, n) matrix of mean 0 and variance 1 off the diagonal, where it
    is 0; None for a collapsed embedding, which has no arrangement to agree on."""
    i, j = np.triu_indices(len(x), k=1)
    ranks = rankdata(similarities(x)[i, j])
    if np.ptp(ranks) == 0:
        return None
    matrix = np.zeros((len(x), len(x)))
    matrix[i, j] = (ranks - ranks.mean()) / ranks.std()
    return matrix + matrix.T


def _resampled(p: np.ndarray, q: np.ndarray, bootstrap: int, generator) -> np.ndarray:
    """Correlations (bootstrap,) of p and q over pairs that weigh w_i w_j, w the multiplicities of resampled images."""
    n = len(p)
    w = generator.multinomial(n, np.full(n, 1 / n), size=bootstrap).T.astype(np.float64)  # (n, bootstrap)
    total = w.sum(axis=0) ** 2 - (w**2).sum(axis=0)  # an image is no pair with its own copy

    def mean(matrix):
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.einsum("nb,nb->b", w, matrix @ w) / total

    mean_p, mean_q = mean(p), mean(q)
    covariance = mean(p * q) - mean_p * mean_q
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample of few images may hold one pair only
        return covariance / np.sqrt((mean(p * p) - mean_p**2) * (mean(q * q) - mean_q**2))
