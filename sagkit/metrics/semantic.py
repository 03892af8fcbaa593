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
pairs are primary. The unit of uncertainty is the class (metrics/stats.py). An interval over classes speaks of classes
like these; one over seeds alone would speak of these classes only.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sagkit.metrics.checks import require_finite
from sagkit.metrics.kinds import KINDS, METRICS, Comparison, compared, image_pairs
from sagkit.metrics.ranks import RankStatistics, attainable, rank_statistics
from sagkit.metrics.stats import class_bootstrap, mantel, percentile_interval

__all__ = ["KINDS", "METRICS", "attainable", "image_pairs", "rank_correlation"]


class RankCorrelation(NamedTuple):
    """Rank correlations in [-1, 1]; fields that were not asked for are None.

    spearman_interval, kendall_interval: 95 % percentile intervals of the class bootstrap.
    p: one-sided Mantel test of Spearman.
    floor: mean Spearman of what must be beaten, floor_sd its standard deviation, floor_n the number of scores (read
        by `compare.verdict`).
    ceiling: the largest Spearman and Kendall that any embedding without ties could reach, given the reference's
        ties among the very pairs that were used.
    tau_a, rho_a: without correction for ties; always given, because an embedding whose own distances tie has a smaller
        denominator in tau-b and Spearman, and only these compare it fairly with one whose distances do not.
    """

    spearman: float
    kendall: float
    spearman_interval: tuple[float, float] | None = None
    kendall_interval: tuple[float, float] | None = None
    p: float | None = None
    floor: float | None = None
    ceiling: tuple[float, float] | None = None
    tau_a: float | None = None
    rho_a: float | None = None
    floor_sd: float | None = None
    floor_n: int | None = None


def rank_correlation(
    features,
    labels,
    distances,
    kind: str = "pairs",
    metric: str = "centred-cosine",
    n_pairs: int = 1_000_000,
    seed: int = 0,
    bootstrap: int = 0,
    permutations: int = 0,
    floor: Sequence | None = None,
) -> RankCorrelation:
    """Spearman and Kendall tau-b of embedding distances against semantic distances.

    Args:
        features: (N, F) floats, tensor or array.
        labels: (N,) class of each row, 0 to C - 1.
        distances: (C, C) semantic distances, symmetric and finite: of `hierarchy.class_distances` or any of your own,
            only their order matters. The diagonal counts for "pairs-all" alone and need not be zero.
        kind: what is compared, see the module's table.
        metric: between images, and between centroids of kind "centroid": "centred-cosine" (about the mean of all
            rows), "cosine" or "euclidean".
        n_pairs: image pairs used; if there are more, that many are drawn with replacement. A correlation over a
            million draws has a standard error of about 0.001 from the drawing.
        seed: of that drawing, and of bootstrap and permutations.
        bootstrap: resamplings of classes for the intervals; 1,000 are customary. Class matrices (confusion, centroids)
            and the mean of the features stay as they are, only pairs are reweighted.
        permutations: relabellings of the reference's classes for p.
        floor: scores (Spearman) of at least 10 random networks of the same architecture, or their features (N, F) of
            the same images, which are scored on the same pairs; for bare arrays, those of `compare.random_floor`.

    Raises:
        ValueError: for shapes that do not fit, labels out of range, values that are not finite, a reference that is not
            symmetric, unknown names, or fewer than two classes.

    A collapsed embedding (all distances equal) has no order: 0 with a warning, interval (0, 0), p = 1.
    """
    x, y, reference = check_semantic(features, labels, distances, kind, metric)
    pairs = compared(x, y, kind, metric, n_pairs, seed)
    part, wanted = wanted_codes(reference, pairs)
    exact = statistics(pairs.found, wanted)
    result = RankCorrelation(exact.spearman, exact.kendall, tau_a=exact.tau_a, rho_a=exact.rho_a)
    result = result._replace(ceiling=attainable(wanted) if np.ptp(wanted) else (0.0, 0.0))
    if bootstrap:
        off = class_bootstrap(pairs.found, wanted, pairs.first, pairs.second, bootstrap, seed)
        off = off if any(exact) else np.zeros_like(off)
        intervals = [percentile_interval(e, d) for e, d in zip(exact[:2], off.T, strict=True)]
        result = result._replace(spearman_interval=intervals[0], kendall_interval=intervals[1])
    if permutations:
        result = result._replace(p=mantel(pairs.found, part, pairs.first, pairs.second, permutations, seed))
    if floor is not None:
        scores = [_floor_score(f, labels, distances, kind, metric, n_pairs, seed) for f in floor]
        spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
        result = result._replace(floor=float(np.mean(scores)), floor_sd=spread, floor_n=len(scores))
    return result


def wanted_codes(reference: np.ndarray, pairs: Comparison) -> tuple[np.ndarray, np.ndarray]:
    """The reference among the classes that occur as codes of its levels, and the code of each pair."""
    part = reference[np.ix_(pairs.classes, pairs.classes)]
    part = np.unique(part, return_inverse=True)[1].reshape(part.shape)
    return part, part[pairs.first, pairs.second]


def statistics(found: np.ndarray, wanted: np.ndarray) -> RankStatistics:
    """Exact rank correlations; zeros with a warning where one side is constant."""
    if np.ptp(found) == 0 or np.ptp(wanted) == 0:
        warnings.warn("all distances are equal, so they have no order: the correlation is reported as 0", stacklevel=3)
        return RankStatistics(0.0, 0.0, 0.0, 0.0)
    return rank_statistics(found, wanted)


def _floor_score(given, labels, distances, kind: str, metric: str, n_pairs: int, seed: int) -> float:
    if np.ndim(given) == 0:
        return float(given)
    return rank_correlation(given, labels, distances, kind, metric, n_pairs, seed).spearman


def check_semantic(features, labels, distances, kind: str, metric: str):
    """Features (N, F) in float64, labels (N,) and reference (C, C) as arrays, exactly symmetric, or a ValueError."""
    x, y, reference = np.asarray(features, dtype=np.float64), np.asarray(labels), np.asarray(distances)
    for name, known, value in (("kind", KINDS, kind), ("metric", METRICS, metric)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
    if x.ndim != 2 or y.shape != (len(x),):
        raise ValueError(f"features {x.shape} and labels {y.shape} do not fit: need (N, F) and (N,)")
    if reference.ndim != 2 or reference.shape[0] != reference.shape[1]:
        raise ValueError(f"distances must be a square (C, C) matrix, got {reference.shape}")
    if not np.isfinite(reference).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(reference))} of the semantic distances are not finite")
    apart = np.abs(reference - reference.T).max()
    if apart > 1e-9 * np.abs(reference).max():
        raise ValueError(f"distances are not symmetric (by up to {apart:.3g}): average them with their transpose")
    if apart:  # rounding would break ties
        reference = np.tril(reference) + np.tril(reference, -1).T
    if y.min() < 0 or y.max() >= len(reference):
        raise ValueError(f"labels {y.min()}..{y.max()} exceed the {len(reference)} classes of the distances")
    require_finite(x)
    if len(np.unique(y)) < 2:
        raise ValueError("all labels are one class: an order between classes needs at least two")
    return x, y, reference
