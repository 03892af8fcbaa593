"""Is a semantic score above chance, below its noise, and is one embedding better than another?

    verdict   (score - mean of floor) / sd of floor, over random networks or random projections
    ceiling   sqrt(2 r / (1 + r)), r the Spearman correlation of a class matrix from one half of the images with that
              from the other (Spearman-Brown)
    paired    score(a) - score(b) over the same pairs and the same resampled classes, and over seeds

Sources: [R] noise ceilings and the bootstrap over two factors of rsatoolbox (Schuett et al. 2023); [K] random
projections of the inputs as the floor of embeddings that come as bare arrays, and seeds paired one to one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sagkit.metrics.kinds import KINDS, class_matrix, compared
from sagkit.metrics.semantic import RankCorrelation, check_semantic, rank_correlation, statistics, wanted_codes
from sagkit.metrics.stats import class_bootstrap, percentile_interval, spearman_brown, two_factor_interval


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


class NoiseCeiling(NamedTuple):
    """Correlation of half with half, reliability of the whole (Spearman-Brown), and its root: the highest correlation
    that the matrix could have with a reference free of noise."""

    half: float
    reliability: float
    ceiling: float


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
    x = np.asarray(inputs, dtype=np.float64).reshape(len(inputs), -1)
    generator = np.random.default_rng(seed)
    scores = []
    for _ in range(n):
        projected = x @ generator.normal(scale=width**-0.5, size=(x.shape[1], width))
        scores.append(rank_correlation(projected, labels, distances, kind, **options).spearman)
    return np.array(scores)


def verdict(result: RankCorrelation, of: str = "random networks") -> str:
    """One line that sets Spearman against its floor: "above the random floor by 6.1 sd (n = 10 random networks)".

    Raises:
        ValueError: for a result without a floor of at least two scores, or a floor without spread.
    """
    if result.floor is None or not result.floor_sd:
        raise ValueError(f"no floor to compare with (n = {result.floor_n}): pass floor= at least two differing scores")
    gap = (result.spearman - result.floor) / result.floor_sd
    clear = "" if abs(gap) >= 2 else ", which is not clear of it"
    few = "" if result.floor_n >= 10 else "; at least 10 are asked for"
    side = "above" if gap >= 0 else "below"
    return f"{side} the random floor by {abs(gap):.1f} sd{clear} (n = {result.floor_n} {of}{few})"


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
    y = np.asarray(labels)
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

    With one embedding each the interval is the percentile interval over classes and speaks of these two trained
    networks only. With several seeds it is a t-interval from the variance of both factors
    (`stats.two_factor_variance`).

    Raises:
        ValueError: for different numbers of seeds, and as `rank_correlation`.
    """
    many = [list(f) if isinstance(f, (list, tuple)) else [f] for f in (features_a, features_b)]
    if len(many[0]) != len(many[1]) or not many[0]:
        raise ValueError(f"seeds are paired: got {len(many[0])} embeddings of a and {len(many[1])} of b")
    estimates, deviations, classes = [], [], 0
    for of_a, of_b in zip(*many, strict=True):
        sides = []
        for features in (of_a, of_b):
            x, y, reference = check_semantic(features, labels, distances, kind, metric)
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
