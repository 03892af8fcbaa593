"""Hierarchy measures by hand, by loop and by scikit-learn; perfect and hopeless trees at their limits."""

import itertools

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import cdist
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import KNeighborsClassifier

from sagkit.data.taxonomy import tree_distances
from sagkit.metrics.tree import class_tree, dendrogram_purity, hierarchy_figures, severity

NAMES = tuple(f"{a}/{a}{b}/{a}{b}{c}" for a in "pqr" for b in "xy" for c in "12")  # 3 families of 2 of 2
REFERENCE = tree_distances(NAMES)
FAMILY = np.repeat([0, 1, 2], 4)


def embedded(spread: float, images: int = 20, seed: int = 0):
    """Images about class means whose distances follow the tree, and their labels."""
    rng = np.random.default_rng(seed)
    levels = [np.eye(3)[FAMILY] * 4, np.eye(6)[np.repeat(np.arange(6), 2)] * 2, np.eye(12)]
    means, labels = np.hstack(levels), np.tile(np.arange(12), images)
    return means[labels] + spread * rng.normal(size=(len(labels), means.shape[1])), labels


def leaves(tree, node, n):
    return [node] if node < n else leaves(tree, int(tree[node - n, 0]), n) + leaves(tree, int(tree[node - n, 1]), n)


def merges(tree, n):
    """Height and leaves of the lowest common ancestor of every pair of leaves, by looking through all merges."""
    found = {}
    for row in range(n - 1):
        below = leaves(tree, n + row, n)
        for pair in itertools.combinations(sorted(below), 2):
            found.setdefault(pair, (tree[row, 2], below))
    return found


def test_dendrogram_purity_equals_the_mean_over_pairs_written_out():
    rng = np.random.default_rng(1)
    tree, group = linkage(rng.normal(size=(17, 3)), "average"), rng.integers(4, size=17)
    parts = [
        np.mean(group[below] == group[i])
        for (i, j), (_, below) in merges(tree, 17).items()
        if group[i] == group[j]
    ]  # fmt: skip
    assert dendrogram_purity(tree, group) == pytest.approx(np.mean(parts))


def test_dendrogram_purity_worked_by_hand():
    # ((0, 1), (2, 3)) with groups a a b a: pairs (0, 1) meet in a pure node, (0, 3) and (1, 3) at the root, 3/4 pure.
    tree = np.array([[0, 1, 1.0, 2], [2, 3, 1.5, 2], [4, 5, 9.0, 4]])
    assert dendrogram_purity(tree, [0, 0, 1, 0]) == pytest.approx((1 + 0.75 + 0.75) / 3)


def test_figures_equal_a_loop_over_merges_and_scikit_learn():
    features, labels = embedded(spread=6.0)
    x = features - features.mean(axis=0)
    means = np.stack([x[labels == c].mean(axis=0) for c in range(12)])
    distance = cdist(means, means, "cosine")
    tree = linkage(distance[np.triu_indices(12, 1)], "average")
    joined = merges(tree, 12)
    pairs = list(itertools.combinations(range(12), 2))
    height, wanted = [joined[p][0] for p in pairs], [REFERENCE[p] for p in pairs]
    clusters = {c: {c} for c in range(12)}
    for row in range(12 - 3):  # merge until three clusters are left
        clusters[12 + row] = clusters.pop(int(tree[row, 0])) | clusters.pop(int(tree[row, 1]))
    cut = [next(name for name, members in clusters.items() if c in members) for c in range(12)]

    result = hierarchy_figures(features, labels, REFERENCE, FAMILY)
    assert result["cophenetic_spearman"] == pytest.approx(spearmanr(height, wanted).statistic)
    assert result["cophenetic_kendall"] == pytest.approx(kendalltau(height, wanted).statistic)
    assert result["adjusted_rand"] == pytest.approx(adjusted_rand_score(FAMILY, cut))
    assert result["dendrogram_purity"] == pytest.approx(dendrogram_purity(tree, FAMILY))
    assert 0 < result["adjusted_rand"] < 1  # a case in between


@pytest.mark.slow
def test_a_tree_that_is_the_reference_has_all_figures_at_their_best_and_noise_none():
    best = hierarchy_figures(*embedded(spread=0.01), REFERENCE, FAMILY)
    assert best["adjusted_rand"] == best["dendrogram_purity"] == pytest.approx(1)
    # Every comparison that the reference decides is right; the tree also ranks merges that the reference ties.
    untied = [66 * 65 - sum(n * (n - 1) for n in sizes) for sizes in ((6, 12, 48), (*[1] * 6, *[4] * 3, 16, 32))]
    assert best["cophenetic_kendall"] == pytest.approx(np.sqrt(untied[0] / untied[1]))
    noise = [hierarchy_figures(*embedded(spread=1e4, seed=s), REFERENCE, FAMILY) for s in range(40)]
    for figure, expected in (("cophenetic_spearman", 0.0), ("adjusted_rand", 0.0)):
        values = np.array([n[figure] for n in noise]) - expected
        assert abs(values.mean()) < 4 * values.std(ddof=1) / np.sqrt(len(values))
    gap = np.array([n["dendrogram_purity"] - n["purity_chance"] for n in noise])
    assert abs(gap.mean()) < 4 * gap.std(ddof=1) / np.sqrt(len(gap))


def test_severity_is_the_mean_distance_of_wrong_predictions_of_scikit_learns_knn():
    bank, bank_labels = embedded(spread=2.0, seed=1)
    queries, labels = embedded(spread=2.0, seed=2)
    weights = {"metric": "cosine", "weights": lambda d: np.exp((1 - d) / 0.07)}
    predicted = KNeighborsClassifier(20, **weights).fit(bank, bank_labels).predict(queries)
    apart = [REFERENCE[a, b] for a, b in zip(predicted, labels, strict=True)]
    wrong = [d for d, a, b in zip(apart, predicted, labels, strict=True) if a != b]
    result = hierarchy_figures(queries, labels, REFERENCE, bank=bank, bank_labels=bank_labels)
    assert len(wrong) > 50
    assert result["mistake_severity"] == pytest.approx(np.mean(wrong))
    assert result["mean_distance"] == pytest.approx(np.mean(apart))
    others = [REFERENCE[a, b] for a in labels for b in range(12) if a != b]
    assert result["severity_chance"] == pytest.approx(np.mean(others))
    assert result["mistake_severity"] < result["severity_chance"]


def test_without_mistakes_there_is_no_severity_and_a_diagonal_does_not_count():
    assert np.isnan(severity(np.arange(12), np.arange(12), REFERENCE)["mistake_severity"])
    plain = severity([0, 1], [0, 2], REFERENCE)
    assert severity([0, 1], [0, 2], REFERENCE + 5 * np.eye(12)) == pytest.approx(plain)


def test_classes_that_do_not_occur_are_left_out():
    features, labels = embedded(spread=3.0)
    kept = (labels != 5) & (labels != 0)
    some = np.unique(labels[kept])
    result = hierarchy_figures(features[kept], labels[kept], REFERENCE, FAMILY)
    again = hierarchy_figures(
        features[kept], np.searchsorted(some, labels[kept]), REFERENCE[np.ix_(some, some)], FAMILY[some]
    )
    assert result == again
    assert class_tree(features[kept], labels[kept]).shape == (9, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dendrogram_purity(np.array([[0, 1, 1.0, 2]]), [0, 0, 0]), "2 leaves, groups 3"),
        (lambda: dendrogram_purity(np.array([[0, 1, 1.0, 2]]), [0, 1]), "2 leaves in 2 groups"),
        (lambda: hierarchy_figures(*embedded(1.0), REFERENCE, [0, 1]), r"12 classes and superclasses \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
