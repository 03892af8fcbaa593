"""Rank correlation between distances in an embedding and semantic distances of classes.

    spearman = Pearson correlation of ranks (ties share their mean rank)
    kendall  = tau-b = (concordant - discordant) / sqrt(untied in one * untied in the other)

Five kinds, by what is compared with the reference distance of two classes (METHOD.md section 5):

    pairs              distance of two images of different classes: the primary figure
    pairs-all          the same, images of one class included
    confusion          minus how often the two classes are among each other's 20 nearest neighbours
    centroid           distance of the two class means: what the literature reports, and a random network may win
    centroid-whitened  the same after whitening by the within-class covariance (Mahalanobis distance)

Sources: [R] representational similarity analysis; [K] the choice of kinds, of centred cosine distance, and that image
pairs are primary.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau, rankdata, spearmanr

from sagkit.metrics.checks import require_finite

KINDS = ("pairs", "pairs-all", "confusion", "centroid", "centroid-whitened")
METRICS = ("centred-cosine", "cosine", "euclidean")
NEIGHBORS = 20  # METHOD.md section 5


class RankCorrelation(NamedTuple):
    """Rank correlations in [-1, 1]; fields that were not asked for are None.

    ceiling: the largest Spearman and Kendall that any embedding without ties could reach, given the reference's
    ties among the very pairs that were used.
    """

    spearman: float
    kendall: float
    spearman_interval: tuple[float, float] | None = None
    kendall_interval: tuple[float, float] | None = None
    p: float | None = None
    floor: float | None = None
    ceiling: tuple[float, float] | None = None


def rank_correlation(
    features,
    labels,
    distances,
    kind: str = "pairs",
    metric: str = "centred-cosine",
    n_pairs: int = 1_000_000,
    seed: int = 0,
) -> RankCorrelation:
    """Spearman and Kendall tau-b of embedding distances against semantic distances.

    Args:
        features: (N, F) floats, tensor or array.
        labels: (N,) class of each row, 0 to C - 1.
        distances: (C, C) semantic distances, symmetric.
        kind: what is compared, see the module's table.
        metric: between images, and between centroids of kind "centroid": "centred-cosine" (about the mean of all
            rows), "cosine" or "euclidean".
        n_pairs: image pairs used; if there are more, that many are drawn with replacement. A correlation over a
            million draws has a standard error of about 0.001 from the drawing.
        seed: of that drawing.

    Raises:
        ValueError: for shapes that do not fit, labels out of range, values that are not finite, unknown names, or
            fewer than two classes.

    A collapsed embedding (all distances equal) has no order: 0 with a warning.
    """
    x, y, reference = _check(features, labels, distances, kind, metric)
    if kind in ("pairs", "pairs-all"):
        i, j = image_pairs(y, n_pairs, seed, same_class=kind == "pairs-all")
        found, wanted = _pair_distances(_prepare(x, metric), i, j, metric), reference[y[i], y[j]]
    else:
        classes = np.unique(y)
        i, j = np.triu_indices(len(classes), k=1)
        matrix = {"confusion": _confusion, "centroid": _centroid, "centroid-whitened": _whitened}[kind]
        found, wanted = matrix(x, y, classes, metric)[i, j], reference[classes[i], classes[j]]
    return _correlate(found, wanted)


def image_pairs(labels: np.ndarray, n_pairs: int, seed: int, same_class: bool) -> tuple[np.ndarray, np.ndarray]:
    """Two index arrays: all unordered pairs of images if there are at most n_pairs, else n_pairs drawn at random."""
    n = len(labels)
    if n * (n - 1) // 2 <= n_pairs:
        i, j = np.triu_indices(n, k=1)
    else:
        generator = np.random.default_rng(seed)
        # A tenth more than asked for makes up for draws of one image twice, and of one class twice.
        i, j = generator.integers(n, size=(2, n_pairs + n_pairs // 10 + 1000))
    keep = i != j if same_class else labels[i] != labels[j]
    return i[keep][:n_pairs], j[keep][:n_pairs]


def attainable(wanted: np.ndarray) -> tuple[float, float]:
    """Largest Spearman and Kendall tau-b of an untied ranking with values of which some are tied."""
    n = len(wanted)
    ordered = np.sort(rankdata(wanted))
    spearman = np.corrcoef(ordered, np.arange(n))[0, 1]
    tied = np.unique(wanted, return_counts=True)[1].astype(float)
    untied = n * (n - 1) / 2 - (tied * (tied - 1) / 2).sum()
    return float(spearman), float(np.sqrt(untied / (n * (n - 1) / 2)))


def _correlate(found: np.ndarray, wanted: np.ndarray) -> RankCorrelation:
    if np.ptp(found) == 0 or np.ptp(wanted) == 0:
        warnings.warn("all distances are equal, so they have no order: the correlation is reported as 0", stacklevel=3)
        return RankCorrelation(0.0, 0.0, ceiling=(0.0, 0.0))
    return RankCorrelation(
        float(spearmanr(found, wanted).statistic),
        float(kendalltau(found, wanted).statistic),
        ceiling=attainable(wanted),
    )


def _prepare(x: np.ndarray, metric: str) -> np.ndarray:
    """Rows whose inner products (cosine) or differences (euclidean) give the metric."""
    if metric == "euclidean":
        return x
    x = x - x.mean(axis=0) if metric == "centred-cosine" else x
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _pair_distances(x: np.ndarray, i: np.ndarray, j: np.ndarray, metric: str) -> np.ndarray:
    """Distances of the prepared rows i and j, in chunks of about 16 MB so that wide features (raw pixels) fit too."""
    found, chunk = np.empty(len(i)), max(1, 2_000_000 // x.shape[1])
    for start in range(0, len(i), chunk):
        a, b = x[i[start : start + chunk]], x[j[start : start + chunk]]
        if metric == "euclidean":
            found[start : start + chunk] = np.linalg.norm(a - b, axis=1)
        else:
            found[start : start + chunk] = 1 - np.einsum("pf,pf->p", a, b)
    return found


def _confusion(x: np.ndarray, y: np.ndarray, classes: np.ndarray, metric: str) -> np.ndarray:
    x = _prepare(x, metric)
    position = np.searchsorted(classes, y)
    counts = np.zeros((len(classes), len(classes)))
    k = min(NEIGHBORS, len(x) - 1)
    square = np.einsum("nf,nf->n", x, x)
    for start in range(0, len(x), 1000):
        closeness = x[start : start + 1000] @ x.T
        if metric == "euclidean":
            closeness = 2 * closeness - square  # minus the squared distance, up to a constant of the row
        rows = np.arange(len(closeness))
        closeness[rows, rows + start] = -np.inf
        nearest = np.argpartition(-closeness, k - 1, axis=1)[:, :k]
        np.add.at(counts, (position[start : start + 1000, None], position[nearest]), 1)
    return -(counts + counts.T)


def _class_means(x: np.ndarray, y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return np.stack([x[y == c].mean(axis=0) for c in classes])


def _centroid(x: np.ndarray, y: np.ndarray, classes: np.ndarray, metric: str) -> np.ndarray:
    x = x - x.mean(axis=0) if metric == "centred-cosine" else x
    means = _prepare(_class_means(x, y, classes), "euclidean" if metric == "euclidean" else "cosine")
    if metric == "euclidean":
        return np.linalg.norm(means[:, None] - means[None, :], axis=2)
    return 1 - means @ means.T


def _whitened(x: np.ndarray, y: np.ndarray, classes: np.ndarray, metric: str) -> np.ndarray:
    means = _class_means(x, y, classes)
    residual = x - means[np.searchsorted(classes, y)]
    values, vectors = np.linalg.eigh(residual.T @ residual / max(1, len(x) - len(classes)))
    kept = values > values[-1] * 1e-6  # directions without spread within classes carry rounding noise
    scaled = means @ (vectors[:, kept] / np.sqrt(values[kept]))
    return np.linalg.norm(scaled[:, None] - scaled[None, :], axis=2)


def _check(features, labels, distances, kind: str, metric: str):
    x, y, reference = np.asarray(features, dtype=np.float64), np.asarray(labels), np.asarray(distances)
    for name, known, value in (("kind", KINDS, kind), ("metric", METRICS, metric)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
    if x.ndim != 2 or y.shape != (len(x),):
        raise ValueError(f"features {x.shape} and labels {y.shape} do not fit: need (N, F) and (N,)")
    if reference.ndim != 2 or reference.shape[0] != reference.shape[1]:
        raise ValueError(f"distances must be a square (C, C) matrix, got {reference.shape}")
    if y.min() < 0 or y.max() >= len(reference):
        raise ValueError(f"labels {y.min()}..{y.max()} exceed the {len(reference)} classes of the distances")
    require_finite(x)
    if len(np.unique(y)) < 2:
        raise ValueError("all labels are one class: an order between classes needs at least two")
    return x, y, reference
