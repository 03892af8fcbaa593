"""The scores that compete with ours, by another route: closed forms, explicit loops, plain scipy and scikit-learn."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from scipy.cluster.hierarchy import cophenet, fcluster, linkage
from scipy.linalg import eigh
from scipy.spatial.distance import pdist, squareform
from scipy.stats import entropy, spearmanr
from sklearn.cluster import AgglomerativeClustering

from sagkit.metrics import labelfree

N, F = 90, 6


def blobs(seed: int = 0, n: int = N, noise: float = 0.6, f: int = F) -> np.ndarray:
    """Features with clusters of clusters, off the origin."""
    rng = np.random.default_rng(seed)
    return 2 + np.repeat(rng.normal(size=(3, f)), n // 3, axis=0) + noise * rng.normal(size=(n, f))


def orthonormal(n: int, f: int, seed: int = 0) -> np.ndarray:
    """Columns of mean 0, length 1 and no inner product."""
    x = np.random.default_rng(seed).normal(size=(n, f))
    return np.linalg.qr(x - x.mean(axis=0))[0]


def cosine_pairs(x: np.ndarray) -> np.ndarray:
    return pdist(x - x.mean(axis=0), "cosine")


def tree_pairs(x: np.ndarray, method: str) -> np.ndarray:
    return cophenet(linkage(cosine_pairs(x), method))


def directions(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=0)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def adjusted_rand(p, q) -> float:
    """Hubert and Arabie's formula from counts of pairs."""
    together = sum(p[i] == p[j] and q[i] == q[j] for i, j in combinations(range(len(p)), 2))
    in_p, in_q = (sum(comb(n, 2) for n in np.unique(x, return_counts=True)[1]) for x in (p, q))
    chance = in_p * in_q / comb(len(p), 2)
    return (together - chance) / ((in_p + in_q) / 2 - chance)


def test_rankme_is_the_exponential_of_the_entropy_of_singular_values():
    left, right = orthonormal(20, 3), orthonormal(7, 3, seed=1)
    assert labelfree.rankme(left * [1, 1, 2] @ right.T) == pytest.approx(2**1.5)
    assert labelfree.rankme(left @ right.T) == pytest.approx(3)


@pytest.mark.parametrize("exponent", [0.4, 1.0, 2.5])
def test_alpha_req_finds_the_exponent_of_an_exact_power_law(exponent):
    scale = np.arange(1.0, 31) ** (-exponent / 2)
    x = 5 + orthonormal(200, 30) * scale @ orthonormal(31, 30, seed=1).T
    assert labelfree.alpha_req(x) == pytest.approx(exponent, abs=1e-6)


def test_alpha_req_looks_at_the_first_eigenvalues_alone():
    rank = np.arange(1.0, 31)
    x = orthonormal(200, 30) * np.sqrt(np.where(rank <= 10, rank**-1.0, 0.1 * (rank / 10) ** -3.0))
    assert labelfree.alpha_req(x, first=10) == pytest.approx(1, abs=1e-6)
    assert labelfree.alpha_req(x) > 1.3


def test_silhouette_is_that_of_scikit_learns_ward_clusters_by_an_explicit_loop():
    x = blobs()
    label = AgglomerativeClustering(20, linkage="ward").fit_predict(directions(x))
    d, found = squareform(cosine_pairs(x)), []
    for i in range(N):
        own = [j for j in range(N) if label[j] == label[i] and j != i]
        if not own:
            found.append(0.0)  # a cluster of one, as its author defines it
            continue
        inner = d[i, own].mean()
        outer = min(d[i, label == c].mean() for c in range(20) if c != label[i])
        found.append((outer - inner) / max(inner, outer))
    assert labelfree.silhouette(x) == pytest.approx(np.mean(found), abs=1e-9)


def test_trees_and_distances_agree_as_plain_scipy_says():
    a, b = blobs(0), blobs(0, noise=0.9)
    own = spearmanr(tree_pairs(a, "average"), cosine_pairs(a)).statistic
    assert labelfree.cophenetic(a) == pytest.approx(own, abs=1e-9)
    for method in ("average", "ward"):
        there = spearmanr(tree_pairs(a, method), cosine_pairs(b)).statistic
        back = spearmanr(tree_pairs(b, method), cosine_pairs(a)).statistic
        assert labelfree.cross_cophenetic(a, b, method) == pytest.approx((there + back) / 2, abs=1e-9)
        both = spearmanr(tree_pairs(a, method), tree_pairs(b, method)).statistic
        assert labelfree.tree_agreement(a, b, method) == pytest.approx(both, abs=1e-9)
        assert abs(there - back) > 1e-3  # so that a mean over one direction would show


def test_lidar_is_the_effective_rank_of_between_against_within_scatter():
    rng, delta = np.random.default_rng(0), 0.05
    views = rng.normal(size=(40, 5)) * [3, 2, 1, 1, 0.1] + rng.normal(size=(4, 40, 5)) * [1, 0.3, 1, 2, 0.2]
    grand, between, within = views.mean(axis=(0, 1)), np.zeros((5, 5)), np.zeros((5, 5))
    for i in range(40):
        mean = views[:, i].mean(axis=0)
        between += np.outer(mean - grand, mean - grand) / 40
        for view in views[:, i]:
            within += np.outer(view - mean, view - mean) / 160
    values = eigh(between, within + delta * np.eye(5), eigvals_only=True)
    assert labelfree.lidar(views, delta) == pytest.approx(np.exp(entropy(values)), abs=1e-9)


def test_cluster_agreement_is_the_mean_adjusted_rand_index_of_scipys_flat_clusters():
    a, b, found = blobs(0), blobs(0, noise=0.9), []
    for k in (5, 10, 20, 50):  # 100 is more than there are images
        p, q = (fcluster(linkage(directions(x), "ward"), k, "maxclust") for x in (a, b))
        found.append(adjusted_rand(p, q))
    assert labelfree.cluster_agreement(a, b) == pytest.approx(np.mean(found), abs=1e-9)
    assert np.ptp(found) > 0.05
    assert labelfree.cluster_agreement(a, a) == pytest.approx(1)
    with pytest.raises(ValueError, match="below 4 images"):
        labelfree.cluster_agreement(a[:4], b[:4])


def test_diffusion_distances_are_those_between_rows_of_the_walks_matrix():
    x, k, t = blobs(n=60), 8, 3
    close = 1 - squareform(cosine_pairs(x))
    weight = np.zeros((60, 60))
    for i in range(60):
        for j in sorted(set(range(60)) - {i}, key=lambda j: -close[i, j])[:k]:
            weight[i, j] = weight[j, i] = np.exp((close[i, j] - 1) / 0.2)
    degree = weight.sum(axis=1)
    rows = np.linalg.matrix_power(weight / degree[:, None], t) / np.sqrt(degree)
    np.testing.assert_allclose(labelfree._diffusion_distances(x, k, t), pdist(rows), atol=1e-9)


def test_diffusion_agrees_fully_with_itself_and_not_with_an_independent_input():
    assert labelfree.diffusion_agreement(blobs(), 3 * blobs() + 1) == pytest.approx(1)
    rng = np.random.default_rng(0)
    found = [labelfree.diffusion_agreement(*rng.normal(size=(2, 80, 5))) for _ in range(30)]
    # The mean of 30 independent values whose expectation is 0: 4 standard errors have probability 0.0004.
    assert abs(np.mean(found)) < 4 * np.std(found, ddof=1) / 30**0.5
    assert np.std(found) < 0.2


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_shared_rank_is_the_rank_of_what_is_shared_times_its_share_of_variance(rank):
    basis = orthonormal(100, 3 * rank)
    shared, first, second = basis[:, :rank], basis[:, rank : 2 * rank], basis[:, 2 * rank :]
    turn = orthonormal(12, rank, seed=1).T
    assert labelfree.shared_rank(shared @ turn + 4, shared @ turn) == pytest.approx(rank)
    a, b = (shared + 0.5 * noise for noise in (first, second))
    assert labelfree.shared_rank(a, b) == pytest.approx(rank / 1.25)
    assert labelfree.shared_rank(first, second) == pytest.approx(0, abs=1e-9)


def test_the_guarded_score_is_a_product_that_one_missing_factor_takes_away():
    a, b = blobs(0), blobs(0, noise=0.9)
    distances = spearmanr(cosine_pairs(a), cosine_pairs(b)).statistic
    assert labelfree.guarded(a, b) == pytest.approx(distances * labelfree.cluster_agreement(a, b), abs=1e-9)
    circle = np.stack([np.cos(angles := np.linspace(0, 2 * np.pi, N, endpoint=False)), np.sin(angles)], axis=1)
    apart = circle[np.arange(N) * 44 % N + np.arange(N) // 45 % 2]  # neighbours here are opposite there
    assert spearmanr(cosine_pairs(circle), cosine_pairs(apart)).statistic < 0
    assert labelfree.guarded(circle, apart) == 0


@pytest.mark.parametrize("collapsed", [np.zeros((N, F)), np.full((N, F), 0.1), np.tile(blobs()[:1], (N, 1))])
def test_a_collapsed_embedding_scores_nothing_and_never_nan(collapsed):
    other = blobs()
    for score in (
        *(labelfree.cross_cophenetic, labelfree.tree_agreement, labelfree.cluster_agreement),
        *(labelfree.diffusion_agreement, labelfree.shared_rank, labelfree.guarded),
    ):
        for a, b in ((collapsed, collapsed), (collapsed, other), (other, collapsed)):
            assert score(a, b) == pytest.approx(0, abs=1e-9), score.__name__
    assert labelfree.cophenetic(collapsed) == 0
    assert labelfree.silhouette(collapsed) == pytest.approx(0, abs=1e-9)
    assert labelfree.rankme(collapsed) == pytest.approx(float(collapsed.any()))
    assert not np.isnan(labelfree.alpha_req(collapsed))
    assert not np.isnan(labelfree.lidar(np.stack([collapsed, collapsed])))
