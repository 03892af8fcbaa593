"""Distances in an embedding: between images, and between classes by confusion, centroid or whitened centroid.

    centred cosine   1 - cos(x_i - m, x_j - m),  m the mean of all rows
    confusion        -(n_ab + n_ba),  n_ab how many of the 20 nearest neighbours of images of class a are of class b
    whitened         | (m_a - m_b) W^(-1/2) |,  W the pooled covariance within classes (Mahalanobis)

Sources: [R] Euclidean, cosine and Mahalanobis distances of representational similarity analysis; [K] the choice of
kinds and of the centred cosine distance (METHOD.md section 5).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

KINDS = ("pairs", "pairs-all", "confusion", "centroid", "centroid-whitened")
METRICS = ("centred-cosine", "cosine", "euclidean")
NEIGHBORS = 20  # METHOD.md section 5


class Comparison(NamedTuple):
    """Pairs that are compared: the classes of each, and its distance in the embedding."""

    found: np.ndarray  # (n,)
    first: np.ndarray  # (n,) int, position of the class among `classes`
    second: np.ndarray
    classes: np.ndarray  # (C,) labels that occur


def compared(x: np.ndarray, y: np.ndarray, kind: str, metric: str, n_pairs: int, seed: int) -> Comparison:
    """Distances of the kind's pairs: of images, or of the classes that occur.

    Args:
        x: (N, F) features.
        y: (N,) labels.
        kind: one of KINDS.
        metric: one of METRICS; kind "centroid-whitened" has its own.
        n_pairs: image pairs at most.
        seed: of their drawing.
    """
    classes, position = np.unique(y, return_inverse=True)
    if kind in ("pairs", "pairs-all"):
        i, j = image_pairs(y, n_pairs, seed, same_class=kind == "pairs-all")
        return Comparison(_pair_distances(_prepare(x, metric), i, j, metric), position[i], position[j], classes)
    i, j = np.triu_indices(len(classes), k=1)
    return Comparison(class_matrix(x, y, kind, metric)[i, j], i, j, classes)


def class_matrix(x: np.ndarray, y: np.ndarray, kind: str, metric: str = "centred-cosine") -> np.ndarray:
    """Distances (C, C) of the classes that occur, in ascending order of label, for a kind that is not of images."""
    return {"confusion": _confusion, "centroid": _centroid, "centroid-whitened": _whitened}[kind](
        x, y, np.unique(y), metric
    )


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
