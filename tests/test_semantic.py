"""Rank correlations: every kind against an explicit loop and scipy, ceilings in closed form, bad input."""

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import kendalltau, spearmanr

from sagkit.hierarchy import class_distances
from sagkit.metrics.semantic import attainable, image_pairs, rank_correlation

N, F, C = 60, 7, 6


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = np.arange(N) % C
    means = rng.normal(size=(C, F))
    features = means[labels] + rng.normal(size=(N, F)) + 2.0
    reference = cdist(means, means) + 0.5 * (1 - np.eye(C))
    reference = np.round((reference + reference.T) / 2, 1)  # rounded, so that there are ties
    np.fill_diagonal(reference, 0)
    return features, labels, reference


def metric_of(name, features):
    if name == "euclidean":
        return cdist(features, features)
    centred = features - features.mean(0) if name == "centred-cosine" else features
    return cdist(centred, centred, "cosine")


@pytest.mark.parametrize("metric", ["centred-cosine", "cosine", "euclidean"])
@pytest.mark.parametrize("kind", ["pairs", "pairs-all"])
def test_image_pairs_equal_a_loop_over_all_pairs(data, kind, metric):
    features, labels, reference = data
    distance = metric_of(metric, features)
    rows = [
        (distance[i, j], reference[labels[i], labels[j]])
        for i, j in itertools.combinations(range(N), 2)
        if kind == "pairs-all" or labels[i] != labels[j]
    ]
    found, wanted = np.array(rows).T
    result = rank_correlation(torch.tensor(features), torch.tensor(labels), reference, kind, metric)
    assert result.spearman == pytest.approx(spearmanr(found, wanted).statistic, abs=1e-9)
    assert result.kendall == pytest.approx(kendalltau(found, wanted, variant="b").statistic, abs=1e-9)


@pytest.mark.parametrize("metric", ["centred-cosine", "cosine", "euclidean"])
def test_confusion_equals_a_loop_over_neighbours(data, metric):
    features, labels, reference = data
    distance = metric_of(metric, features)
    counts = np.zeros((C, C))
    for i in range(N):
        for j in sorted((j for j in range(N) if j != i), key=lambda j: distance[i, j])[:20]:
            counts[labels[i], labels[j]] += 1
    pairs = list(itertools.combinations(range(C), 2))
    found = [-(counts[a, b] + counts[b, a]) for a, b in pairs]
    wanted = [reference[a, b] for a, b in pairs]
    result = rank_correlation(features, labels, reference, "confusion", metric)
    assert result.spearman == pytest.approx(spearmanr(found, wanted).statistic)
    assert result.kendall == pytest.approx(kendalltau(found, wanted).statistic)


@pytest.mark.parametrize("metric", ["centred-cosine", "cosine", "euclidean"])
def test_centroids_equal_a_loop_over_classes(data, metric):
    features, labels, reference = data
    x = features - features.mean(0) if metric == "centred-cosine" else features
    means = [np.mean([x[i] for i in range(N) if labels[i] == c], axis=0) for c in range(C)]
    distance = cdist(means, means, "euclidean" if metric == "euclidean" else "cosine")
    upper = np.triu_indices(C, 1)
    result = rank_correlation(features, labels, reference, "centroid", metric)
    assert result.spearman == pytest.approx(spearmanr(distance[upper], reference[upper]).statistic)


def test_whitened_centroids_are_mahalanobis_distances_and_see_no_affine_map(data):
    features, labels, reference = data
    means = np.stack([features[labels == c].mean(0) for c in range(C)])
    residual = features - means[labels]
    inverse = np.linalg.inv(residual.T @ residual / (N - C))
    distance = cdist(means, means, "mahalanobis", VI=inverse)
    upper = np.triu_indices(C, 1)
    result = rank_correlation(features, labels, reference, "centroid-whitened")
    assert result.spearman == pytest.approx(spearmanr(distance[upper], reference[upper]).statistic)
    map_ = np.random.default_rng(1).normal(size=(F, F))
    assert rank_correlation(features @ map_ + 5, labels, reference, "centroid-whitened").spearman == pytest.approx(
        result.spearman
    )


def test_an_embedding_that_is_the_reference_reaches_the_ceiling_and_its_mirror_the_opposite():
    # Points on a line; the reference knows only whether they are near or far: perfect order, many ties.
    place = np.array([0.0, 1.0, 10.0, 11.5, 30.0])
    gap = np.abs(place[:, None] - place[None, :])
    reference = np.where(gap == 0, 0.0, np.where(gap < 5, 0.5, 1.0))
    features = np.repeat(place[:, None], 2, axis=1) * [1.0, 0.0]
    result = rank_correlation(features, np.arange(5), reference, "pairs", "euclidean")
    assert (result.spearman, result.kendall) == pytest.approx(result.ceiling)
    opposite = rank_correlation(features, np.arange(5), 1 - reference, "pairs", "euclidean")
    assert (opposite.spearman, opposite.kendall) == pytest.approx((-result.spearman, -result.kendall))


def test_the_ceiling_of_superclasses_over_class_pairs_is_the_known_one():
    upper = np.triu_indices(100, 1)
    spearman, kendall = attainable(class_distances("cifar100", "superclass")[upper])
    assert (round(spearman, 3), round(kendall, 3)) == (0.341, 0.278)  # METHOD.md section 5


def test_drawn_pairs_estimate_what_all_pairs_give():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, C, size=900)
    features = rng.normal(size=(C, F))[labels] + rng.normal(size=(900, F))
    reference = rng.random((C, C))
    reference = reference + reference.T
    everything = rank_correlation(features, labels, reference, n_pairs=10**6)
    drawn = [rank_correlation(features, labels, reference, n_pairs=20_000, seed=s).spearman for s in range(12)]
    error = (np.mean(drawn) - everything.spearman) / (np.std(drawn, ddof=1) / np.sqrt(12))
    assert abs(error) < 4.4  # t with 11 degrees of freedom at 0.1 %
    assert np.std(drawn) < 3 / np.sqrt(20_000)
    i, j = image_pairs(labels, 5000, 0, same_class=False)
    assert len(i) == 5000
    assert (labels[i] != labels[j]).all()


def test_a_collapsed_embedding_scores_zero_with_a_warning(data):
    _, labels, reference = data
    with pytest.warns(UserWarning, match="reported as 0"):
        assert rank_correlation(np.ones((N, F)), labels, reference).spearman == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "pair"}, "unknown kind 'pair'"),
        ({"metric": "manhattan"}, "unknown metric 'manhattan'"),
        ({"labels": np.zeros(N, int)}, "one class"),
        ({"labels": np.arange(N)}, r"labels 0..59 exceed the 6 classes"),
        ({"labels": np.zeros(3, int)}, r"\(60, 7\) and labels \(3,\)"),
        ({"distances": np.zeros((3, 4))}, r"square .* got \(3, 4\)"),
    ],
)
def test_bad_input_is_named(data, change, words):
    features, labels, reference = data
    with pytest.raises(ValueError, match=words):
        rank_correlation(**{"features": features, "labels": labels, "distances": reference, **change})


def test_nan_features_are_counted_and_located(data):
    features, labels, reference = data
    broken = features.copy()
    broken[[4, 9], 2] = np.nan
    with pytest.raises(ValueError, match=r"2 of 60 feature rows are not finite \(first: row 4\)"):
        rank_correlation(broken, labels, reference)
