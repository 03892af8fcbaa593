"""Structure without labels: does the arrangement of images survive when their colours and frames change?

    score = Spearman over image pairs (i, j) of  d(a_i, a_j)  against  d(b_i, b_j),   d centred cosine distance

with a the features of clean images and b those of one changed view each (`evaluate.CHANGED`). Which images lie near
which then depends neither on colour, which pixels and untrained networks go by, nor on framing. Colour and frame count
as nuisance: where colour is what matters, choose other views. A loss of rank goes unseen: a projection to its own first
components keeps most of the order.

The rivals that it was chosen among, by the validity study (`sagkit.studies.validity`), stand below it. One feature
matrix:
    rankme       exp(entropy of the singular values' shares)                        Garrido et al. 2023
    alpha_req    exponent of the power law of the covariance's eigenvalues          Agrawal et al. 2022
    silhouette   of a Ward cut into 20 clusters
    cophenetic   tree against the distances it was built from                       the sources' keyword, probably
    clid         learnability of clusters, and intrinsic dimension                  Lu et al. 2023
    total_persistence   lifetimes of components and loops (Vietoris-Rips)           Edelsbrunner et al. 2002
Several views of each image:
    lidar        exp(entropy of the eigenvalues of between- against within-image scatter)   Thilak et al. 2023
Two feature matrices of the same images:
    cross_cophenetic    tree of one against distances of the other, both ways
    tree_agreement      heights at which two images meet in either tree
    cluster_agreement   adjusted Rand index of Ward cuts, mean over numbers of clusters
    diffusion_agreement distances after t steps of diffusion on either neighbour graph
    shared_rank         effective rank of what the views share: high rank guarded against noise
    guarded             distance agreement times cluster agreement: stability of order and of trees together
    profile_agreement   distances of second order: images are alike where their similarities to all others are
    predicted_agreement distances as the neighbours in the other view predict them
    visit_agreement     overlap of where walks of either view are after 1, 2, 4, 8 steps
    agreement_beyond    partial rank correlation, given what pixels already show
Many embeddings of the same images:
    consensus           agreement with what embeddings of other families hold in common

A collapsed embedding scores 0 (alpha_req: infinity), never NaN: its trees and graphs are those of rounding alone, and
would be alike in both views.

Sources: [R] agreement of representational dissimilarity matrices, and the rivals as named; [K] that agreement as a
label-free figure, clean against changed rather than one augmented view against another, and the two-matrix designs,
leads of figures/METHOD.md section 4. All take centred cosine distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.hierarchy import cophenet, cut_tree, linkage
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from sagkit import require
from sagkit.graph import graph_of_neighbors
from sagkit.metrics.checks import feature_array, same_width

SCALES = (5, 10, 20, 50, 100)  # numbers of clusters from superclasses to classes


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
    require("n", n, "[3, inf)", "three images are the fewest that have an order", whole=True)
    require("bootstrap", bootstrap, "[0, inf)", "0 leaves the interval out", whole=True)
    require("seed", seed, "[0, inf)", "0 is the default", whole=True)
    a, b = feature_array(features_a, "features_a"), feature_array(features_b, "features_b")
    if len(a) != len(b) or len(a) < 3:
        raise ValueError(f"two views must be (N, F) of the same N >= 3 images, got {a.shape} and {b.shape}")
    generator = np.random.default_rng(seed)
    if len(a) > n:
        chosen = generator.choice(len(a), size=n, replace=False)
        a, b = a[chosen], b[chosen]
    p, q = _standard_ranks(a), _standard_ranks(b)
    if p is None or q is None:
        return StructureScore(0.0, *((0.0, 0.0) if bootstrap else ()))
    i, j = np.triu_indices(len(a), k=1)
    score = float(np.mean(p[i, j] * q[i, j]))
    if not bootstrap:
        return StructureScore(score)
    drawn = _resampled(p, q, bootstrap, generator)
    low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975])
    return StructureScore(score, float(low), float(high))


def rankme(x: np.ndarray) -> float:
    """Effective rank of features (N, F) that are not centred, as its authors define it; in [1, F], 0 for zeros."""
    return entropy_rank(np.linalg.svd(feature_array(x), compute_uv=False))


def alpha_req(x: np.ndarray, first: int = 100) -> float:
    """Minus the slope of log eigenvalue on log rank over the first eigenvalues of the covariance, of (N, F)."""
    require("first", first, "[3, inf)", "a slope needs three eigenvalues", whole=True)
    x = feature_array(x)
    values = np.linalg.eigvalsh(np.atleast_2d(np.cov(x.T)))[::-1][:first]  # of one feature, numpy gives a number
    values = values[values > values[0] * 1e-9] if values[0] > 0 else values[:0]
    if len(values) < 3:
        return np.inf
    return -float(np.polyfit(np.log(np.arange(1, len(values) + 1)), np.log(values), 1)[0])


def silhouette(x: np.ndarray, clusters: int = 20) -> float:
    """Silhouette in [-1, 1] of a Ward cut of features (N, F) by its own distances."""
    from sklearn.metrics import silhouette_score

    x = feature_array(x)
    require("clusters", clusters, f"[2, {len(x)})", "clusters are fewer than images", whole=True)
    label = _cuts(x, (clusters,))[0]
    if len(np.unique(label)) < 2:
        return 0.0
    return float(silhouette_score(_distances(x), label, metric="precomputed"))


def cophenetic(x: np.ndarray) -> float:
    """Spearman of an average-linkage tree's heights with the distances it was built from."""
    return cross_cophenetic(x, x)


def lidar(views: np.ndarray, delta: float = 1e-4) -> float:
    """LiDAR of features (q, N, F) of q >= 2 views of N images; delta regularises the within-image scatter."""
    require("delta", delta, "(0, inf)", "1e-4 is the default")
    views = np.stack([feature_array(view, f"view {i}") for i, view in enumerate(views)])
    if len(views) < 2:
        raise ValueError(f"LiDAR needs at least 2 views of each image, got {len(views)}: draw more")
    centred = views - views.mean(axis=(0, 1))
    means = centred.mean(axis=0)  # (N, F)
    residual = (centred - means).reshape(-1, views.shape[-1])
    within = residual.T @ residual / len(residual)
    within += delta * np.eye(len(within))
    values, vectors = np.linalg.eigh(within)
    whitened = means @ (vectors / np.sqrt(values))
    # The root: the smooth rank is taken over eigenvalues of the scatter, which are squared singular values.
    return entropy_rank(np.linalg.svd(whitened, compute_uv=False) ** 2)


def cross_cophenetic(a: np.ndarray, b: np.ndarray, method: str = "average") -> float:
    """Mean over both directions of Spearman between one's tree heights and the other's distances."""
    a, b = _views(a, b)
    trees, pairs = [_heights(x, method) for x in (a, b)], [_pairs(x) for x in (a, b)]
    return (spearman(trees[0], pairs[1]) + spearman(trees[1], pairs[0])) / 2


def tree_agreement(a: np.ndarray, b: np.ndarray, method: str = "average") -> float:
    """Spearman of the heights at which two images meet in either tree."""
    a, b = _views(a, b)
    return spearman(_heights(a, method), _heights(b, method))


def cluster_agreement(a: np.ndarray, b: np.ndarray, scales: Sequence[int] = SCALES) -> float:
    """Adjusted Rand index of Ward cuts of a and b, mean over numbers of clusters below N.

    Raises:
        ValueError: for no scale below N.
    """
    from sklearn.metrics import adjusted_rand_score

    a, b = _views(a, b)
    scales = [k for k in scales if 1 < k < len(a)]
    if not scales:
        raise ValueError(f"no number of clusters from 2 to below {len(a)} images: give more images or smaller scales")
    if _collapsed(a) or _collapsed(b):
        return 0.0
    pairs = zip(_cuts(a, scales), _cuts(b, scales), strict=True)
    return float(np.mean([adjusted_rand_score(p, q) for p, q in pairs]))


def diffusion_agreement(a: np.ndarray, b: np.ndarray, k: int = 20, t: int = 4) -> float:
    """Spearman of diffusion distances after t steps on the symmetrised graphs of k neighbours."""
    for name, value in (("k", k), ("t", t)):
        require(name, value, "[1, inf)", "it counts neighbours or steps", whole=True)
    a, b = _views(a, b)
    if _collapsed(a) or _collapsed(b):
        return 0.0
    return spearman(*(_diffusion_distances(x, k, t) for x in (a, b)))


def shared_rank(a: np.ndarray, b: np.ndarray) -> float:
    """Effective rank of the covariance between the views (F alike), times the share of variance it explains."""
    a, b = _views(a, b)
    same_width(a=a, b=b)
    if _collapsed(a) or _collapsed(b):
        return 0.0
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    values = np.linalg.eigvalsh((a.T @ b + b.T @ a) / 2).clip(min=0)
    spread = ((a**2).sum() + (b**2).sum()) / 2
    return entropy_rank(values) * values.sum() / spread if values.sum() > 0 else 0.0


def guarded(a: np.ndarray, b: np.ndarray) -> float:
    """Distance agreement times cluster agreement, each at least 0."""
    return max(0.0, structure_score(a, b).score) * max(0.0, cluster_agreement(a, b))


def profile_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman of distances of second order: two images are alike where their similarities to all others are."""
    return spearman(*(_profile_distances(x) for x in _views(a, b)))


def predicted_agreement(a: np.ndarray, b: np.ndarray, k: int = 10) -> float:
    """Spearman of the distances in a with those predicted for them: means over the k nearest in b of either image."""
    require("k", k, "[1, inf)", "it counts neighbours", whole=True)
    a, b = _views(a, b)
    if _collapsed(a) or _collapsed(b):
        return 0.0
    near, apart = _nearest(b, k), _distances(a)
    means = apart[near].mean(axis=1)[:, near].mean(axis=2)
    return spearman(squareform(apart, checks=False), squareform(means + means.T, checks=False))


def visit_agreement(a: np.ndarray, b: np.ndarray, k: int = 10, lengths: Sequence[int] = (1, 2, 4, 8)) -> float:
    """Overlap in [0, 1] of where walks of the two views are after L steps, mean over starts and lengths.

    The walks are those of `sagkit.graph`'s default: k nearest, weights exp(cosine / 0.1); the overlap of two
    distributions is the sum of the smaller of their shares. Of rows that are equally near, a takes the first and b the
    last: directions that are the same for many images, as those of one axis are, tell nothing and agree on nothing.
    """
    require("k", k, "[1, inf)", "it counts neighbours", whole=True)
    a, b = _views(a, b)
    if _collapsed(a) or _collapsed(b):
        return 0.0
    steps = _transitions(a, k), _transitions(b[::-1], k)[::-1, ::-1]
    at = [[np.linalg.matrix_power(step, length) for length in lengths] for step in steps]
    return float(np.mean([np.minimum(p, q).sum(axis=1).mean() for p, q in zip(*at, strict=True)]))


def agreement_beyond(a: np.ndarray, b: np.ndarray, known: Sequence[np.ndarray]) -> float:
    """Partial rank correlation of the distances in a and b, given those in features that anybody has.

    Args:
        a: (N, F) features of clean images.
        b: (N, F') of a changed view.
        known: feature matrices (N, ...) of the clean images, as pixels and untrained networks.
    """
    a, b = _views(a, b)
    basis = np.stack([distance_ranks(x) for x in known])
    return float(np.mean(left_over(distance_ranks(a), basis) * left_over(distance_ranks(b), basis)))


def consensus(
    candidates: Sequence[np.ndarray], families: Sequence[str], panel: Sequence[bool], known: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """Agreement of each embedding's distances with what embeddings of other families hold in common.

    The common ranks are the mean over families of the mean ranks of each family's members; an embedding's own family
    is left out of its own panel, so that neither itself nor its siblings speak for it.

    Args:
        candidates: feature matrices of the same N images.
        families: of each; what is trained alike is one family.
        panel: which of them have a say; the others are only judged.
        known: feature matrices whose ranks are taken off the common ranks by least squares, as pixels.

    Raises:
        ValueError: for lengths that differ, or an embedding without a panel of two other families.
    """
    if not len(candidates) == len(families) == len(panel):
        raise ValueError(f"{len(candidates)} embeddings, {len(families)} families, {len(panel)} of a panel: one each")
    ranks = [distance_ranks(x) for x in candidates]
    basis = np.stack([distance_ranks(x) for x in known]) if len(known) else None
    speaking = dict.fromkeys(family for family, speaks in zip(families, panel, strict=True) if speaks)
    means = {
        family: np.mean([r for r, of, speaks in zip(ranks, families, panel, strict=True) if speaks and of == family], 0)
        for family in speaking
    }
    found = []
    for own, family in zip(ranks, families, strict=True):
        others = [mean for name, mean in means.items() if name != family]
        if len(others) < 2:
            raise ValueError(f"{family} has a panel of {len(others)} other families: at least two are needed")
        common = np.mean(others, axis=0)
        common = left_over(common, basis) if basis is not None else common / max(common.std(), 1e-12)
        found.append(float(np.mean(own * common)))
    return np.array(found)


def distance_ranks(x: np.ndarray) -> np.ndarray:
    """Ranks of the distances between rows of (N, F), mean 0 and variance 1, in order of `pdist`; 0 where collapsed."""
    ranks = rankdata(_pairs(feature_array(x)))
    ranks -= ranks.mean()
    return ranks / (ranks.std() or 1.0)


def left_over(ranks: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """What least squares on the rows of a basis leaves of (P,) numbers of mean 0, scaled to variance 1."""
    rest = ranks - np.linalg.lstsq(basis.T, ranks)[0] @ basis
    return rest / rest.std() if rest.std() > 1e-6 else np.zeros_like(rest)


def clid(x: np.ndarray, clusters: int = 50, k: int = 5, seed: int = 0) -> tuple[float, float]:
    """CLID of features (N, F): learnability of clusters in [0, 1], and intrinsic dimension. Lu et al. 2023

    Learnability is the share of images whose k-means label the k nearest of the other images vote for; the dimension is
    that of two nearest neighbours [R: Facco et al. 2017], by its likelihood. The authors add the two, each standardised
    over the encoders that are compared.
    """
    from sklearn.cluster import KMeans

    x = directions(feature_array(x))
    require("clusters", clusters, f"[2, {len(x)})", "clusters are fewer than images", whole=True)
    label = KMeans(clusters, n_init=1, random_state=seed).fit_predict(x)
    near = _nearest(x, max(k, 2))
    votes = np.apply_along_axis(np.bincount, 1, label[near[:, :k]], minlength=clusters)
    learnt = float((votes.argmax(axis=1) == label).mean())
    apart = np.sqrt((2 - 2 * np.take_along_axis(x @ x.T, near[:, :2], axis=1)).clip(min=0))
    first, second = np.sort(apart, axis=1).T
    ratio = np.log(second[first > 0] / first[first > 0])
    return learnt, float(len(ratio) / ratio.sum()) if ratio.sum() > 0 else 0.0


def total_persistence(x: np.ndarray, n: int = 300) -> float:
    """Sum of the lifetimes of components and loops of the Vietoris-Rips filtration of the first n rows' directions.

    Components alone are the edges of the minimum spanning tree; loops need the package ripser.
    """
    from ripser import ripser

    x = directions(feature_array(x)[:n])
    born = np.concatenate(ripser(squareform(pdist(x)), maxdim=1, distance_matrix=True)["dgms"])
    return float(sum(end - start for start, end in born if np.isfinite(end)))


def entropy_rank(values: np.ndarray) -> float:
    """exp of the entropy of non-negative values scaled to sum 1; 0 where all are 0."""
    if values.sum() <= 0:
        return 0.0
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def spearman(p: np.ndarray, q: np.ndarray) -> float:
    """Spearman of two sequences, 0 where one is constant; several times as fast as scipy's, which also tests."""
    if np.ptp(p) == 0 or np.ptp(q) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(p), rankdata(q))[0, 1])


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


def _views(a, b) -> tuple[np.ndarray, np.ndarray]:
    """Features of two views, row by row the same images."""
    a, b = feature_array(a, "view a"), feature_array(b, "view b")
    if len(a) != len(b):
        raise ValueError(f"two views must be of the same images, got {len(a)} and {len(b)} rows")
    return a, b


def _collapsed(x: np.ndarray) -> bool:
    return not directions(x).any()


def _distances(x: np.ndarray) -> np.ndarray:
    matrix = (1 - similarities(x)).clip(min=0)
    np.fill_diagonal(matrix, 0)
    return matrix


def _pairs(x: np.ndarray) -> np.ndarray:
    return squareform(_distances(x), checks=False)


def _nearest(x: np.ndarray, k: int) -> np.ndarray:
    """Positions (N, k) of the other rows nearest to each, the nearest first."""
    close = similarities(x)
    np.fill_diagonal(close, -np.inf)
    return np.argsort(-close, axis=1, kind="stable")[:, : min(k, len(x) - 1)]


def _transitions(x: np.ndarray, k: int) -> np.ndarray:
    """The walk's matrix (N, N) on the graph of k nearest."""
    near = _nearest(x, k)
    close = np.take_along_axis(similarities(x), near, axis=1)
    return graph_of_neighbors(torch.from_numpy(close), torch.from_numpy(near)).to_dense().numpy()


def _profile_distances(x: np.ndarray) -> np.ndarray:
    """Minus the correlation of the similarities of two images to all, themselves left out as far as 0 does."""
    close = similarities(x)
    np.fill_diagonal(close, 0)
    close -= close.mean(axis=1, keepdims=True)
    close /= np.maximum(np.linalg.norm(close, axis=1, keepdims=True), 1e-12)
    return -(close @ close.T)[np.triu_indices(len(close), k=1)]


def _heights(x: np.ndarray, method: str) -> np.ndarray:
    return cophenet(linkage(_pairs(x), method))


def _cuts(x: np.ndarray, scales: Sequence[int]) -> np.ndarray:
    """Cluster labels (scales, N) of one Ward tree of the directions of rows."""
    return cut_tree(linkage(directions(x), "ward"), n_clusters=list(scales)).T


def _diffusion_distances(x: np.ndarray, k: int, t: int, kept: int = 64) -> np.ndarray:
    """Distances of diffusion maps of the first `kept` non-trivial eigenvectors."""
    from scipy.linalg import eigh

    close = similarities(x)
    np.fill_diagonal(close, -np.inf)
    n, k = len(x), min(k, len(x) - 1)
    nearest = np.argpartition(-close, k - 1, axis=1)[:, :k]
    rows = np.arange(n)[:, None]
    weight = np.zeros((n, n))
    weight[rows, nearest] = np.exp((close[rows, nearest] - 1) / 0.2)
    weight = np.maximum(weight, weight.T)
    root = np.sqrt(weight.sum(axis=1))
    values, vectors = eigh(weight / root / root[:, None], subset_by_index=[max(0, n - 1 - kept), n - 2])
    return pdist(vectors / root[:, None] * np.abs(values) ** t)
