"""Rank correlation between distances in an embedding and semantic distances of classes, its floor, its noise ceiling,
and the difference of two embeddings.

    spearman = Pearson correlation of ranks (ties share their mean rank)
    kendall  = tau-b = (concordant - discordant) / sqrt(untied in one * untied in the other)

Five kinds, by what is compared with the reference distance of two classes (figures/METHOD.md section 5):

    pairs              distance of two images of different classes: the primary figure
    pairs-all          the same, images of one class included
    confusion          -(n_ab + n_ba), n_ab how many of the 20 nearest neighbours of images of class a are of class b
    centroid           distance of the two class means: what the literature reports, and a random network may win
    centroid-whitened  | (m_a - m_b) W^(-1/2) |, W the pooled covariance within classes (Mahalanobis distance)

Distances are 1 - cos(x_i - m, x_j - m), m the mean of all rows, unless another metric is asked for.

    verdict   (score - mean of floor) / sd of floor, over random networks or random projections
    ceiling   sqrt(2 r / (1 + r)), r the Spearman correlation of a class matrix from one half of the images with that
              from the other (Spearman-Brown)
    paired    score(a) - score(b) over the same pairs and the same resampled classes, and over seeds

Sources: [R] Euclidean, cosine and Mahalanobis distances of representational similarity analysis, its noise ceilings,
and the bootstrap over two factors of rsatoolbox (Schuett et al. 2023); [K] the choice of kinds, of the centred cosine
distance, that image pairs are primary, random projections of the inputs as the floor of embeddings that come as bare
arrays, and seeds paired one to one. The unit of uncertainty is the class (`stats`): an interval over classes speaks of
classes like these; one over seeds alone would speak of these classes only.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sagkit import require
from sagkit.metrics.checks import feature_array, label_array, labels_and_distances
from sagkit.metrics.ranks import RankStatistics, attainable, rank_statistics
from sagkit.metrics.stats import class_bootstrap, mantel, percentile_interval, spearman_brown, two_factor_interval

KINDS = ("pairs", "pairs-all", "confusion", "centroid", "centroid-whitened")
METRICS = ("centred-cosine", "cosine", "euclidean")
NEIGHBORS = 20  # figures/METHOD.md section 5
ENOUGH = 10  # scores of a floor, from which its standard deviation is spoken of [K]


class RankCorrelation(NamedTuple):
    """Rank correlations in [-1, 1]; fields that were not asked for are None.

    spearman_interval, kendall_interval: 95 % percentile intervals of the class bootstrap.
    p: one-sided Mantel test of Spearman.
    floor: mean Spearman of random networks or random projections, floor_sd its standard deviation, floor_n the number
        of scores (read by `verdict`).
    ceiling: the largest Spearman and Kendall that any embedding without ties could reach, given the reference's
        ties among the same pairs.
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
    floor: Sequence | np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
) -> RankCorrelation:
    """Spearman and Kendall tau-b of embedding distances against semantic distances.

    Args:
        features: (N, F) numbers in anything that holds them (`checks.feature_array`). A row without direction, one of
            zeros under "cosine" or one at the mean under "centred-cosine", lies at distance 1 from every other.
        labels: (N,) class of each row, 0 to C - 1, or its class name.
        distances: (C, C) semantic distances, at least 0, symmetric and finite: of `taxonomy.class_distances` or any of
            your own, only their order matters. The diagonal counts for "pairs-all" alone and need not be zero. Or a
            table (pandas) with class names, or a hierarchy of named classes (`taxonomy.hierarchy_distances`): a tree of
            networkx, a Newick string, a mapping of each class to its path.
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
            the same images, which are scored on the same pairs; for bare arrays, those of `random_floor`.
        class_names: the C classes in the order of labels and distances; needed where either is named, unless the
            labels are names and all C occur (their order is then ascending).

    Raises:
        ValueError: for shapes that do not fit, labels out of range, values that are not finite, a reference that is not
            symmetric, unknown names, fewer than two classes, or counts out of range.

    A collapsed embedding (all distances equal) has no order: 0 with a warning, interval (0, 0), p = 1.
    """
    for name, value, least in (("bootstrap", bootstrap, 0), ("permutations", permutations, 0), ("seed", seed, 0)):
        require(name, value, f"[{least}, inf)", "0 leaves it out", whole=True)
    x, y, reference = check_semantic(features, labels, distances, kind, metric, class_names)
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
        scores = [_floor_score(f, y, reference, kind, metric, n_pairs, seed) for f in floor]
        if not np.isfinite(scores).all():
            raise ValueError(f"floor holds scores that are not finite: {scores}")
        spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
        result = result._replace(floor=float(np.mean(scores)), floor_sd=spread, floor_n=len(scores))
    return result


def verdict(result: RankCorrelation, of: str = "random networks") -> str:
    """One line that sets Spearman against its floor: "above the random floor by 6.1 sd (n = 10 random networks)".

    Of fewer than ten scores a standard deviation says little, and the line gives the distance from their mean alone.

    Raises:
        ValueError: for a result without a floor of at least two scores, or a floor without spread.
    """
    if result.floor is None or result.floor_n is None or not result.floor_sd:
        raise ValueError(f"no floor to compare with (n = {result.floor_n}): pass floor= at least two differing scores")
    gap = result.spearman - result.floor
    side, n = "above" if gap >= 0 else "below", f"(n = {result.floor_n} {of}"
    if result.floor_n < ENOUGH:
        few = f"too few for a standard deviation: {ENOUGH} are asked for"
        return f"{side} the random floor by {abs(gap):.3f} {n}, {few})"
    clear = "" if abs(gap) >= 2 * result.floor_sd else ", which is not clear of it"
    return f"{side} the random floor by {abs(gap / result.floor_sd):.1f} sd{clear} {n})"


def random_floor(
    inputs, labels, distances, width: int, n: int = 10, seed: int = 0, kind: str = "pairs", **options
) -> np.ndarray:
    """Spearman (n,) of random projections of the encoder's inputs: a floor for features that come as a bare array.

    Args:
        inputs: (N, ...) what the encoder saw (images), flattened here. Projecting the features themselves would be no
            floor: random projections keep distances.
        labels: (N,) class of each row.
        distances: (C, C) semantic distances.
        width: of the projections: that of the features to be judged.
        n: projections.
        seed: of the projections; the image pairs are those of `rank_correlation`'s own default seed.
        kind: what is compared.
        options: metric, n_pairs of `rank_correlation`.

    Random networks of the same architecture are the better floor wherever the architecture is known.
    """
    require("width", width, "[1, inf)", "that of the features to be judged", whole=True)
    require("n", n, "[1, inf)", "at least 10 are asked for", whole=True)
    x = feature_array(inputs.reshape(len(inputs), -1) if hasattr(inputs, "reshape") else inputs, "inputs")
    generator = np.random.default_rng(seed)
    scores = []
    for _ in range(n):
        projected = x @ generator.normal(scale=width**-0.5, size=(x.shape[1], width))
        scores.append(rank_correlation(projected, labels, distances, kind, **options).spearman)
    return np.array(scores)


class Difference(NamedTuple):
    """Score of a minus score of b on the same pairs, with 95 % intervals over classes (and seeds, if there are any)."""

    spearman: float
    kendall: float
    spearman_interval: tuple[float, float]
    kendall_interval: tuple[float, float]
    seeds: int

    @property
    def spearman_clear(self) -> bool:
        """Whether the interval of Spearman's difference excludes zero."""
        return self.spearman_interval[0] > 0 or self.spearman_interval[1] < 0

    @property
    def kendall_clear(self) -> bool:
        """Whether the interval of Kendall's difference excludes zero."""
        return self.kendall_interval[0] > 0 or self.kendall_interval[1] < 0


def paired_difference(
    features_a,
    features_b,
    labels,
    distances,
    kind: str = "pairs",
    metric: str = "centred-cosine",
    n_pairs: int = 1_000_000,
    bootstrap: int = 1000,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> Difference:
    """Which of two embeddings of the same images is closer to the semantic order, with intervals over classes.

    Args:
        features_a: (N, F) features, or a list of them, one per training seed.
        features_b: (N, F') features or a list of as many; seed k of a is paired with seed k of b.
        labels: (N,) class of each row.
        distances: (C, C) semantic distances.
        kind: what is compared.
        metric: as in `rank_correlation`.
        n_pairs: image pairs at most; both embeddings are judged on the same.
        bootstrap: resamplings of classes, the same for all embeddings.
        seed: of pairs and resamplings.
        class_names: as in `rank_correlation`.

    With one embedding each the interval is the percentile interval over classes and speaks of these two trained
    networks only. With several seeds it is a t-interval from the variance of both factors
    (`stats.two_factor_variance`).

    Raises:
        ValueError: for different numbers of seeds, and as `rank_correlation`.
    """
    many = [list(f) if isinstance(f, list | tuple) and np.ndim(f[0]) == 2 else [f] for f in (features_a, features_b)]
    require("bootstrap", bootstrap, "[1, inf)", "1,000 are customary", whole=True)
    if len(many[0]) != len(many[1]) or not many[0]:
        raise ValueError(f"seeds are paired: got {len(many[0])} embeddings of a and {len(many[1])} of b")
    estimates, deviations, classes = [], [], 0
    for of_a, of_b in zip(*many, strict=True):
        sides = []
        for features in (of_a, of_b):
            x, y, reference = check_semantic(features, labels, distances, kind, metric, class_names)
            pairs = compared(x, y, kind, metric, n_pairs, seed)
            wanted, classes = wanted_codes(reference, pairs)[1], len(pairs.classes)
            off = class_bootstrap(pairs.found, wanted, pairs.first, pairs.second, bootstrap, seed)
            sides.append((np.array(statistics(pairs.found, wanted)[:2]), off))
        estimates.append(sides[0][0] - sides[1][0])
        deviations.append(sides[0][1] - sides[1][1])
    values, off = np.array(estimates), np.array(deviations)  # (S, 2), (S, R, 2)
    if len(values) == 1:
        intervals = [percentile_interval(values[0, k], off[0, :, k]) for k in range(2)]
    else:
        intervals = [two_factor_interval(values[:, k], off[:, :, k], classes) for k in range(2)]
    spearman, kendall = map(float, values.mean(axis=0))
    return Difference(spearman, kendall, intervals[0], intervals[1], len(values))


class NoiseCeiling(NamedTuple):
    """Correlation of half with half, reliability of the whole (Spearman-Brown), and its root: the highest correlation
    that the matrix could have with a reference free of noise."""

    half: float
    reliability: float
    ceiling: float


def noise_ceiling(
    features, labels, kind: str = "centroid", metric: str = "centred-cosine", splits: int = 10, seed: int = 0
) -> NoiseCeiling:
    """Split-half reliability of a matrix between classes: Spearman between two random halves of each class's images.

    Args:
        features: (N, F) floats.
        labels: (N,) classes, each with at least two images.
        kind: "confusion", "centroid" or "centroid-whitened"; image pairs have no second half.
        metric: between images or centroids.
        splits: random splits whose correlations are averaged.
        seed: of the splits.

    Raises:
        ValueError: for a kind of image pairs, or a class with one image.
    """
    y = label_array(labels)
    require("splits", splits, "[1, inf)", "10 are averaged by default", whole=True)
    if kind not in KINDS[2:]:
        raise ValueError(f"no noise ceiling for kind {kind!r}: split halves need one of {', '.join(KINDS[2:])}")
    classes, counts = np.unique(y, return_counts=True)
    if counts.min() < 2:
        raise ValueError(f"class {classes[counts.argmin()]} has one image: a split needs two or more of each class")
    x, y, _ = check_semantic(features, y, np.zeros((y.max() + 1,) * 2), kind, metric)
    upper, generator, halves = np.triu_indices(len(classes), k=1), np.random.default_rng(seed), []
    for _ in range(splits):
        shuffled = generator.permutation(len(y))
        shuffled = shuffled[np.argsort(y[shuffled], kind="stable")]
        place = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)  # within the class
        first, second = shuffled[place % 2 == 0], shuffled[place % 2 == 1]
        a, b = (class_matrix(x[half], y[half], kind, metric)[upper] for half in (first, second))
        halves.append(statistics(a, b).spearman)
    half = float(np.mean(halves))
    return NoiseCeiling(half, spearman_brown(half), spearman_brown(half) ** 0.5)


def check_semantic(
    features, labels, distances, kind: str, metric: str, class_names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, F) in float64, labels (N,) and reference (C, C) as arrays, exactly symmetric, or a ValueError."""
    for name, known, value in (("kind", KINDS, kind), ("metric", METRICS, metric)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
    x = feature_array(features)
    y, reference, _ = labels_and_distances(labels, distances, len(x), class_names)
    if len(np.unique(y)) < 2:
        raise ValueError("all labels are one class: an order between classes needs at least two")
    return x, y, reference


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


def image_pairs(labels: np.ndarray, n_pairs: int, seed: int, same_class: bool) -> tuple[np.ndarray, np.ndarray]:
    """Two index arrays: all unordered pairs of images if there are at most n_pairs, else n_pairs drawn at random.

    Args:
        labels: (N,) int.
        n_pairs: how many at most; drawn with replacement, each pair with the same probability.
        seed: of the drawing.
        same_class: whether pairs of one class count, too.

    Raises:
        ValueError: for n_pairs below 1, or labels of which no two make a pair.
    """
    require("n_pairs", n_pairs, "[1, inf)", "a million are customary", whole=True)
    n, (_, counts) = len(labels), np.unique(labels, return_counts=True)
    everything = n * (n - 1) // 2
    there_are = everything if same_class else everything - int((counts * (counts - 1) // 2).sum())
    if not there_are:
        raise ValueError(f"no two of {n} images make a pair: give images of two classes")
    if everything <= n_pairs:
        i, j = np.triu_indices(n, k=1)
        keep = slice(None) if same_class else labels[i] != labels[j]
        return i[keep], j[keep]
    if there_are <= n_pairs:
        return _across(labels, counts)
    generator = np.random.default_rng(seed)
    # A tenth more than asked for makes up for draws of one image twice, and of one class twice, in most image sets.
    i, j = generator.integers(n, size=(2, n_pairs + n_pairs // 10 + 1000))
    keep = i != j if same_class else labels[i] != labels[j]
    i, j = i[keep][:n_pairs], j[keep][:n_pairs]
    if len(i) == n_pairs:
        return i, j
    further = _drawn_across(labels, counts, n_pairs - len(i), generator)
    return np.r_[i, further[0]], np.r_[j, further[1]]


def _across(labels: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of images of different classes."""
    order, ends = np.argsort(labels, kind="stable"), np.cumsum(counts)
    found = [
        (np.repeat(order[end - count : end], len(order) - end), np.tile(order[end:], count))
        for end, count in zip(ends, counts, strict=True)
    ]
    i, j = (np.concatenate(side) for side in zip(*found, strict=True))
    return i, j


def _drawn_across(labels: np.ndarray, counts: np.ndarray, n: int, generator) -> tuple[np.ndarray, np.ndarray]:
    """n pairs of images of different classes, evenly and without a rejection, however rare they are among all pairs:
    the first image by how many others it may be paired with, the second among these."""
    order, total = np.argsort(labels, kind="stable"), int(counts.sum())
    first = generator.choice(len(counts), size=n, p=counts * (total - counts) / (counts * (total - counts)).sum())
    start = (np.cumsum(counts) - counts)[first]
    second = generator.integers(total - counts[first])
    second += counts[first] * (second >= start)  # past the images of the first one's class
    return order[start + generator.integers(counts[first])], order[second]


def class_matrix(x, y, kind: str, metric: str = "centred-cosine") -> np.ndarray:
    """Distances (C, C) of the classes that occur, in ascending order of label, for a kind that is not of images."""
    x = feature_array(x)
    y = label_array(y, len(x))
    return {"confusion": _confusion, "centroid": _centroid, "centroid-whitened": _whitened}[kind](
        x, y, np.unique(y), metric
    )


def _floor_score(given, labels, distances, kind: str, metric: str, n_pairs: int, seed: int) -> float:
    if np.ndim(given) == 0:
        return float(given)
    return rank_correlation(given, labels, distances, kind, metric, n_pairs, seed).spearman


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


def _centroid(x: np.ndarray, y: np.ndarray, classes: np.ndarray, metric: str) -> np.ndarray:
    x = x - x.mean(axis=0) if metric == "centred-cosine" else x
    means = _prepare(_class_means(x, y, classes), "euclidean" if metric == "euclidean" else "cosine")
    if metric == "euclidean":
        return np.linalg.norm(means[:, None] - means[None, :], axis=2)
    return 1 - means @ means.T


def _whitened(x: np.ndarray, y: np.ndarray, classes: np.ndarray, metric: str) -> np.ndarray:
    means = _class_means(x, y, classes)
    residual = (x - means[np.searchsorted(classes, y)]) / np.sqrt(max(1, len(x) - len(classes)))
    wide = x.shape[1] > len(x)  # as pixels are; the rows' inner products have the same spectrum, and are fewer
    values, vectors = np.linalg.eigh(residual @ residual.T if wide else residual.T @ residual)
    kept = values > values[-1] * 1e-6  # directions without spread within classes carry rounding noise
    values, vectors = values[kept], vectors[:, kept]
    axes = residual.T @ vectors / np.sqrt(values) if wide else vectors
    scaled = means @ (axes / np.sqrt(values))
    return np.linalg.norm(scaled[:, None] - scaled[None, :], axis=2)


def _class_means(x: np.ndarray, y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return np.stack([x[y == c].mean(axis=0) for c in classes])
