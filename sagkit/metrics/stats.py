"""How far a figure may be trusted: class bootstrap, Mantel test, seeds as a factor, and the mean over seeds.

    class bootstrap   draw C classes with replacement, m_c copies of class c; a pair of classes a != b weighs m_a m_b,
                      a pair within class a weighs m_a (a copy against another copy of itself is dropped)
    Mantel            p = (1 + number of relabellings that correlate at least as highly) / (1 + relabellings)
    two factors       V = S/(S-1) V_seeds + C/(C-1) V_classes - CS/((C-1)(S-1)) (V_both - V_seeds - V_classes)
    over seeds        mean +- t(0.975, S - 1) sd / sqrt(S)

The first three are of a rank correlation between pairs of classes and take sequences: a found value and a wanted value
per pair, and the two classes it belongs to.

Sources: [R] Mantel 1967; the weights and the variance of two factors as rsatoolbox has them (Schuett et al. 2023);
[K] all resamplings at once. A rank correlation needs no more than the table (level of wanted x level of found) of
weights, which is a sparse matrix (table x pairs of classes) times the weights of a resampling. Found values are binned
into `bins` of equal count for that; the estimate itself is exact, and only deviations from it come from the table.
Binning moves the deviations of tau_b by about 1 / bins of themselves, and those of Spearman by less.

Differs from the source: rsatoolbox draws seeds too; they enter linearly here, so their part is in closed form. It caps
V by V_both, which undoes the correction when seeds are few; the bound here is V without interaction. Its t-interval has
min(S, C) - 1 degrees of freedom, ours Satterthwaite's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.stats import sem
from scipy.stats import t as student

from sagkit import require
from sagkit.metrics.ranks import level_codes, level_ranks, mid_ranks

BINS = 256
LEVELS = 128  # of a wanted distance before it is binned, too; WordNet's between classes of CIFAR-100 has 104
CACHED = 400_000  # numbers of the tables that are worked on at a time


def class_bootstrap(found, wanted, first, second, n: int = 1000, seed: int = 0, bins: int = BINS) -> np.ndarray:
    """Deviations (n, 2) of Spearman and tau_b from their estimates over resampled classes.

    Args: as of `pair_table`; n resamplings; `seed` of the drawing, so that two calls draw the same classes.

    Resamplings without two classes or with constant distances are NaN.
    """
    require("n", n, "[1, inf)", "1,000 resamplings are customary", whole=True)
    table = pair_table(found, wanted, first, second, bins)
    classes = int(max(first.max(), second.max())) + 1
    return replicates(table, draw_classes(classes, n, seed)) - replicates(table, np.ones((1, classes)))


def percentile_interval(estimate: float, deviations: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of estimate + deviations; NaN are left out, and (NaN, NaN) says that nothing is left."""
    require("level", level, "(0, 1)", "0.95 is the default")
    kept = deviations[np.isfinite(deviations)]
    if not len(kept):
        return np.nan, np.nan
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(estimate + low), float(estimate + high)


def mantel(found, wanted: np.ndarray, first, second, permutations: int = 1000, seed: int = 0) -> float:
    """One-sided p of Spearman's correlation under relabelling of the wanted matrix's classes.

    Args:
        found: (n,) values.
        wanted: (C, C) symmetric matrix; pair k has the wanted value wanted[first[k], second[k]].
        first: (n,) int, one class of each pair.
        second: (n,) int, the other class.
        permutations: relabellings; the k-th is the k-th `permutation(C)` of default_rng(seed).
        seed: of the relabellings.

    Ranks are those of all n pairs, so the test is of the reported figure itself; sums by pair of classes make it cheap.
    """
    require("permutations", permutations, "[1, inf)", "1,000 are customary", whole=True)
    classes = len(wanted)
    code = np.unique(wanted, return_inverse=True)[1].reshape(wanted.shape)
    cell = first * classes + second
    pairs = np.bincount(cell, minlength=classes**2)
    sums = np.bincount(cell, weights=mid_ranks(np.asarray(found)), minlength=classes**2)
    used = np.flatnonzero(pairs)
    a, b, pairs, sums = used // classes, used % classes, pairs[used].astype(float), sums[used]

    def correlation(order: np.ndarray) -> float:  # up to the constant spread of found
        level = code[order[a], order[b]]
        counts = np.bincount(level, weights=pairs)
        ranks = level_ranks(counts)
        spread = counts @ ranks**2
        return float(sums @ ranks[level] / np.sqrt(spread)) if spread > 0 else 0.0

    generator = np.random.default_rng(seed)
    observed = correlation(np.arange(classes))
    slack = 1e-12 * max(1.0, abs(observed))  # relabellings that leave the matrix as it is count, whatever the rounding
    higher = sum(correlation(generator.permutation(classes)) >= observed - slack for _ in range(permutations))
    return (1 + higher) / (1 + permutations)


def two_factor_variance(estimates: np.ndarray, deviations: np.ndarray, classes: int) -> tuple[float, float]:
    """Variance of the mean over S seeds when seeds and classes are both drawn, and its degrees of freedom.

    Args:
        estimates: (S,) figure of each seed, S >= 2.
        deviations: (S, R) bootstrap deviations of each seed over the same resampled classes.
        classes: how many there are.

    The three variances are those of bootstraps over seeds, over classes and over both; that of seeds drawn with
    replacement is (population variance) / S. The result is at least the larger single variance, and at most their sum.

    Raises:
        ValueError: for fewer than two seeds.
    """
    seeds = len(estimates)
    if seeds < 2:
        raise ValueError(f"a variance over seeds needs at least two, got {seeds}")
    kept = deviations[:, np.isfinite(deviations).all(axis=0)] + estimates[:, None]
    v_seeds = np.var(estimates) / seeds
    v_classes = np.var(kept.mean(axis=0))
    v_both = v_classes + np.var(kept, axis=0).mean() / seeds
    one, other = seeds / (seeds - 1) * v_seeds, classes / (classes - 1) * v_classes
    interaction = seeds * classes / ((seeds - 1) * (classes - 1)) * (v_both - v_seeds - v_classes)
    variance = min(max(one + other - interaction, one, other), one + other)
    freedom = variance**2 / max(one**2 / (seeds - 1) + other**2 / (classes - 1), 1e-300)
    return float(variance), float(max(freedom, 1.0))


def two_factor_interval(estimates, deviations, classes: int, level: float = 0.95) -> tuple[float, float]:
    """t-interval of the mean over seeds from `two_factor_variance`."""
    require("level", level, "(0, 1)", "0.95 is the default")
    variance, freedom = two_factor_variance(np.asarray(estimates), np.asarray(deviations), classes)
    half = float(student.ppf((1 + level) / 2, freedom) * np.sqrt(variance))
    return float(np.mean(estimates)) - half, float(np.mean(estimates)) + half


def spearman_brown(half: float) -> float:
    """Reliability of the whole from the correlation of its halves, 2 r / (1 + r); 0 for r <= 0."""
    return 2 * half / (1 + half) if half > 0 else 0.0


@dataclass(frozen=True)
class Summary:
    """Mean of one figure over seeds; `half_width` of its 95 % interval is None below three seeds."""

    mean: float
    half_width: float | None

    @classmethod
    def over(cls, values: list[float]) -> Summary:
        """Summarise one value per seed."""
        n = len(values)
        half = None if n < 3 else float(student.ppf(0.975, n - 1) * sem(values))  # t.interval gives NaN for no spread
        return cls(float(np.mean(values)), half)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval over seeds; None below three."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)

    def show(self, percent: bool, signed: bool = False) -> str:
        """As text: `12.3 ± 0.4` for per cent, `0.123 ± 0.004` otherwise; differences with their sign."""
        scale, digits = (100, 1) if percent else (1, 3)
        spread = "" if self.half_width is None else f" ± {scale * self.half_width:.{digits}f}"
        return f"{scale * self.mean:{'+' if signed else ''}.{digits}f}{spread}"


class PairTable(NamedTuple):
    """Number of pairs by level of wanted, level of found (rows) and pair of classes (columns)."""

    counts: csr_array  # (levels x bins, P)
    levels: int
    bins: int
    first: np.ndarray  # (P,) class of each column
    second: np.ndarray


def pair_table(found, wanted, first, second, bins: int = BINS) -> PairTable:
    """Count pairs for `replicates`.

    Args:
        found: (n,) values, binned into at most `bins` of equal count; exact if so few are distinct.
        wanted: (n,) values, binned likewise if more than bins / 2 or 128 are distinct.
        first: (n,) int, one class of each pair, 0 to C - 1.
        second: (n,) int, the other class.
        bins: at least 2.
    """
    require("bins", bins, "[2, inf)", f"{BINS} are the default", whole=True)
    columns = int(max(first.max(), second.max())) + 1
    cell = np.maximum(first, second).astype(np.int64) * columns + np.minimum(first, second)
    used = np.flatnonzero(np.bincount(cell, minlength=columns**2))
    column = np.searchsorted(used, np.arange(columns**2))[cell]  # a look-up: no sort of the pairs
    row, levels = _binned(np.asarray(wanted), max(bins // 2, LEVELS))
    place, width = _binned(np.asarray(found), bins)
    shape = (levels * width, len(used))
    counts = coo_array((np.ones(len(row)), (row * width + place, column)), shape=shape).tocsr()
    return PairTable(counts, levels, width, used // columns, used % columns)


def replicates(table: PairTable, copies: np.ndarray) -> np.ndarray:
    """Spearman and tau_b (R, 2) of each resampling; NaN where one side is constant.

    Args:
        table: of the pairs.
        copies: (R, C) how often each class was drawn.
    """
    found = np.empty((len(copies), 2))
    chunk = max(16, CACHED // (table.levels * table.bins))
    for start in range(0, len(copies), chunk):
        part = copies[start : start + chunk].T.astype(float)  # (C, R)
        weights = part[table.first] * np.where((table.first == table.second)[:, None], 1, part[table.second])
        weighted = (table.counts @ weights).reshape(table.levels, table.bins, -1)
        found[start : start + chunk] = _weighted_statistics(weighted).T
    return found


def draw_classes(classes: int, n: int, seed: int) -> np.ndarray:
    """Copies (n, classes) of each class in n draws of that many classes with replacement."""
    return np.random.default_rng(seed).multinomial(classes, np.full(classes, 1 / classes), size=n)


def _binned(values: np.ndarray, bins: int) -> tuple[np.ndarray, int]:
    """Bin of each value and number of bins; equal values share one."""
    code, counts = level_codes(values)
    present = counts > 0
    if present.sum() <= bins:
        return (np.cumsum(present) - 1)[code], int(present.sum())
    middle = np.cumsum(counts) - counts / 2
    place = np.unique((middle * bins / len(values)).astype(np.int64), return_inverse=True)[1]
    return place[code], int(place.max()) + 1


def _weighted_statistics(table: np.ndarray) -> np.ndarray:
    """Spearman and tau_b (2, R) of pairs with multiplicities table (levels, bins, R), as if written out one by one."""
    by_level, by_bin = table.sum(axis=1), table.sum(axis=0)
    total = by_bin.sum(axis=0)
    ranks, places = level_ranks(by_level), level_ranks(by_bin)
    product = (np.einsum("lbr,br->lr", table, places) * ranks).sum(axis=0)
    spread = (by_level * ranks**2).sum(axis=0) * (by_bin * places**2).sum(axis=0)
    below = np.cumsum(table, axis=0)
    below -= table
    signed = np.cumsum(below, axis=1)
    everything = signed[:, -1:].copy()
    signed *= 2
    signed -= below
    signed -= everything
    score = np.einsum("lbr,lbr->r", table, signed)
    pairs = total * (total - 1) / 2
    untied = [pairs - (side * (side - 1) / 2).sum(axis=0) for side in (by_level, by_bin)]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.stack([product / np.sqrt(spread), score / np.sqrt(untied[0] * untied[1])])
    return np.where((spread > 0) & (untied[0] > 0) & (untied[1] > 0), found, np.nan)
