"""Rank correlations: every kind against an explicit loop and scipy, ceilings in closed form, bad input."""

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import chi2, kendalltau, spearmanr

from sagkit.data.taxonomy import class_distances
from sagkit.metrics import stats
from sagkit.metrics.ranks import attainable
from sagkit.metrics.semantic import (
    KINDS,
    RankCorrelation,
    image_pairs,
    noise_ceiling,
    paired_difference,
    random_floor,
    rank_correlation,
    verdict,
)

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


def test_of_fewer_rows_than_columns_the_spread_within_classes_is_inverted_where_there_is_any(data):
    labels, reference = data[1:]
    wide = np.random.default_rng(2).normal(size=(N, N + 20)) + 3 * labels[:, None]
    means = np.stack([wide[labels == c].mean(0) for c in range(C)])
    residual = wide - means[labels]
    inverse = np.linalg.pinv(residual.T @ residual / (N - C), rcond=1e-6, hermitian=True)
    distance = cdist(means, means, "mahalanobis", VI=inverse)
    upper = np.triu_indices(C, 1)
    result = rank_correlation(wide, labels, reference, "centroid-whitened")
    assert result.spearman == pytest.approx(spearmanr(distance[upper], reference[upper]).statistic)


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
    assert (round(spearman, 3), round(kendall, 3)) == (0.341, 0.278)  # figures/METHOD.md section 5


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


@pytest.mark.parametrize(
    ("sizes", "n_pairs"),
    [((30, 30), 400), ((2, 58), 100), ((1, 59), 40), ((20, 3, 37), 500), ((1, 1, 58), 100)],
)
def test_the_number_of_pairs_asked_for_is_drawn_evenly_whatever_the_sizes_of_classes(sizes, n_pairs):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    every = {(i, j) for i, j in itertools.combinations(range(60), 2) if labels[i] != labels[j]}
    drawn, rounds = [], 60
    for seed in range(rounds):
        i, j = image_pairs(labels, n_pairs, seed, same_class=False)
        assert len(i) == len(j) == n_pairs
        drawn += zip(np.minimum(i, j).tolist(), np.maximum(i, j).tolist(), strict=True)
    counts = np.array([drawn.count(pair) for pair in every] if len(every) < 200 else np.unique(
        [i * 60 + j for i, j in drawn], return_counts=True)[1])  # fmt: skip
    assert set(drawn) <= every
    expected = rounds * n_pairs / len(every)
    counts = np.r_[counts, np.zeros(len(every) - len(counts))]
    assert chi2.sf(((counts - expected) ** 2 / expected).sum(), len(every) - 1) > 1e-4


@pytest.mark.parametrize("sizes", [(1, 59), (2, 58), (20, 40)])
def test_all_pairs_of_different_classes_are_taken_where_no_more_are_asked_for(sizes):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], sizes))
    every = {(i, j) for i, j in itertools.combinations(range(60), 2) if labels[i] != labels[j]}
    for n_pairs in (len(every), len(every) + 1, 10**6):
        i, j = image_pairs(labels, n_pairs, 0, same_class=False)
        assert len(i) == len(every)
        assert set(zip(np.minimum(i, j).tolist(), np.maximum(i, j).tolist(), strict=True)) == every


def test_one_odd_image_among_very_many_costs_no_more_memory_than_its_pairs():
    labels = np.zeros(300_000, int)
    labels[7] = 1
    i, j = image_pairs(labels, 10**6, 0, same_class=False)
    assert (len(i), set(np.where(i == 7, j, i).tolist())) == (299_999, set(range(300_000)) - {7})


@pytest.mark.parametrize(("labels", "n_pairs", "words"), [
    ([0, 0, 0], 5, "no two of 3 images make a pair"), ([0, 1], 0, "n_pairs must be at least 1, got 0"),
    ([0, 1], 1.5, "whole number"), ([0, 1], True, "whole number"),
])  # fmt: skip
def test_pairs_that_cannot_be_had_are_refused(labels, n_pairs, words):
    with pytest.raises(ValueError, match=words):
        image_pairs.__wrapped__(np.array(labels), n_pairs, 0, same_class=False)


def test_a_collapsed_embedding_scores_zero_with_a_warning(data):
    _, labels, reference = data
    with pytest.warns(UserWarning, match="reported as 0"):
        result = rank_correlation(np.ones((N, F)), labels, reference, bootstrap=20, permutations=20)
    assert result[:5] == (0, 0, (0, 0), (0, 0), 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "pair"}, "unknown kind 'pair'"),
        ({"metric": "manhattan"}, "unknown metric 'manhattan'"),
        ({"labels": np.zeros(N, int)}, "one class"),
        ({"labels": np.arange(N)}, r"labels 0..59 exceed the 6 classes"),
        ({"labels": np.zeros(3, int)}, r"labels must be \(60,\) for 60 rows, got \(3,\)"),
        ({"distances": np.zeros((3, 4))}, r"square .* got \(3, 4\)"),
        ({"distances": np.triu(np.ones((C, C)))}, r"not symmetric \(by up to 1\)"),
        ({"distances": np.where(np.eye(C), np.nan, 1.0)}, "6 of the semantic distances are not finite"),
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


def explicit_pairs(kind, features, labels, reference):
    """Distance, reference and classes of each pair of a kind, by the definitions of figures/METHOD.md section 5."""
    if kind.startswith("pairs"):
        distance = metric_of("centred-cosine", features)
        rows = [
            (distance[i, j], reference[labels[i], labels[j]], labels[i], labels[j])
            for i, j in itertools.combinations(range(N), 2)
            if kind == "pairs-all" or labels[i] != labels[j]
        ]
    else:
        x = features - features.mean(0)
        means = np.stack([x[labels == c].mean(0) for c in range(C)])
        inverse = np.linalg.inv((x - means[labels]).T @ (x - means[labels]) / (N - C))
        matrix = {"centroid": cdist(means, means, "cosine"),
                  "centroid-whitened": cdist(means, means, "mahalanobis", VI=inverse)}.get(kind)  # fmt: skip
        if kind == "confusion":
            near = np.argsort(metric_of("centred-cosine", features) + 9 * np.eye(N), axis=1)[:, :20]
            matrix = np.array([[-np.sum(labels[near[labels == a]] == b) for b in range(C)] for a in range(C)])
            matrix = matrix + matrix.T
        rows = [(matrix[a, b], reference[a, b], a, b) for a, b in itertools.combinations(range(C), 2)]
    found, wanted, first, second = np.array(rows).T
    return found, wanted, first.astype(int), second.astype(int)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_intervals_and_p_of_its_own_pairs(data, kind):
    features, labels, reference = data
    found, wanted, first, second = explicit_pairs(kind, features, labels, reference)
    result = rank_correlation(features, labels, reference, kind, bootstrap=50, permutations=30, seed=3)
    assert result.spearman == pytest.approx(spearmanr(found, wanted).statistic)
    assert result.kendall == pytest.approx(kendalltau(found, wanted).statistic)
    total = len(found) * (len(found) - 1) / 2
    gaps = np.sign(found[:, None] - found) * np.sign(wanted[:, None] - wanted)
    assert result.tau_a == pytest.approx(np.triu(gaps, 1).sum() / total)

    drawn = []
    for copies in stats.draw_classes(C, 50, 3):
        times = np.where(first == second, copies[first], copies[first] * copies[second])
        drawn.append([f(np.repeat(found, times), np.repeat(wanted, times)).statistic for f in (spearmanr, kendalltau)])
    expected = np.nanquantile(drawn, [0.025, 0.975], axis=0).T
    assert result.spearman_interval == pytest.approx(expected[0], abs=0.004)  # found distances are binned
    assert result.kendall_interval == pytest.approx(expected[1], abs=0.004)

    generator, higher = np.random.default_rng(3), 0
    for _ in range(30):
        order = generator.permutation(C)
        higher += spearmanr(found, reference[np.ix_(order, order)][first, second]).statistic >= result.spearman - 1e-9
    assert result.p == pytest.approx((1 + higher) / 31)


def test_scores_do_not_depend_on_what_else_is_asked_for(data):
    plain, full = (rank_correlation(*data, **more) for more in ({}, {"bootstrap": 5, "permutations": 5, "floor": [0]}))
    assert full._replace(spearman_interval=None, kendall_interval=None, p=None, floor=None, floor_n=None) == plain
    assert RankCorrelation._fields[:7] == (
        "spearman", "kendall", "spearman_interval", "kendall_interval", "p", "floor", "ceiling")  # fmt: skip


def test_a_reference_of_ones_own_may_be_any_order_preserving_map_and_need_not_have_a_zero_diagonal(data):
    features, labels, reference = data
    mine = np.exp(3 * reference) + 7
    assert rank_correlation(features, labels, mine) == rank_correlation(features, labels, reference)
    rounding = np.triu(mine) * (1 + 1e-14) + np.tril(mine, -1)
    assert rank_correlation(features, labels, rounding) == rank_correlation(features, labels, reference)


def test_classes_that_do_not_occur_change_nothing(data):
    features, labels, reference = data
    kept = labels != 2
    some = np.delete(np.arange(C), 2)
    options = {"bootstrap": 20, "permutations": 20}
    assert rank_correlation(features[kept], labels[kept], reference, **options) == rank_correlation(
        features[kept], np.searchsorted(some, labels[kept]), reference[np.ix_(some, some)], **options
    )


def test_a_floor_is_the_scores_of_its_members_and_the_verdict_counts_their_standard_deviations(data):
    features, labels, reference = data
    rng = np.random.default_rng(5)
    randoms = [rng.normal(size=(N, 3)) for _ in range(10)]
    scores = [rank_correlation(r, labels, reference).spearman for r in randoms]
    result = rank_correlation(features, labels, reference, floor=randoms)
    assert (result.floor, result.floor_n) == (pytest.approx(np.mean(scores)), 10)
    gap = (result.spearman - np.mean(scores)) / np.std(scores, ddof=1)
    assert gap > 2
    assert verdict(result) == f"above the random floor by {gap:.1f} sd (n = 10 random networks)"
    assert rank_correlation(features, labels, reference, floor=scores) == result
    low = rank_correlation(randoms[0], labels, reference, floor=[result.spearman, result.spearman + 0.1])
    assert verdict(low, of="projections").startswith("below the random floor by")
    assert verdict(low, of="projections").endswith(
        "(n = 2 projections, too few for a standard deviation: 10 are asked for)"
    )
    near = rank_correlation(features, labels, reference, floor=result.spearman + np.linspace(-0.1, 0.05, 10))
    assert "by 0.5 sd, which is not clear of it" in verdict(near)
    with pytest.raises(ValueError, match="n = None"):
        verdict(rank_correlation(features, labels, reference))


def test_the_random_floor_of_inputs_is_about_what_the_inputs_score(data):
    features, labels, reference = data
    scores = random_floor(features.reshape(N, 1, F), labels, reference, width=400, n=4)
    assert scores == pytest.approx(np.full(4, rank_correlation(features, labels, reference).spearman), abs=0.06)
    narrow = random_floor(features, labels, reference, width=1, n=12)
    assert narrow.std() > 2 * scores.std()
    assert (random_floor(features, labels, reference, width=1, n=12) == narrow).all()


@pytest.mark.parametrize("kind", ["centroid", "centroid-whitened", "confusion"])
def test_the_noise_ceiling_bounds_what_noisy_features_reach_against_their_noiseless_reference(kind):
    # Reference: distances of the true means, so that noise alone keeps the score below 1.
    rng, classes, images = np.random.default_rng(6), 40, 8
    labels = np.repeat(np.arange(classes), images)
    means = rng.normal(size=(classes, 6))
    metric = "euclidean" if kind == "centroid-whitened" else "centred-cosine"
    reference = metric_of(metric, means)
    ceilings, scores = [], []
    for _ in range(4):
        features = means[labels] + 1.5 * rng.normal(size=(len(labels), 6))
        ceilings.append(noise_ceiling(features, labels, kind).ceiling)
        scores.append(rank_correlation(features, labels, reference, kind).spearman)
    assert np.mean(ceilings) > np.mean(scores) - 0.03
    if kind != "confusion":  # whose counts are no noisy copy of the reference
        assert np.mean(ceilings) == pytest.approx(np.mean(scores), abs=0.08)
    quiet = noise_ceiling(means[labels] + 0.01 * rng.normal(size=(len(labels), 6)), labels, "centroid")
    assert quiet.ceiling > 0.99


def test_a_noise_ceiling_needs_class_matrices_and_two_images_a_class(data):
    features, labels, _ = data
    with pytest.raises(ValueError, match="no noise ceiling for kind 'pairs'"):
        noise_ceiling(features, labels, "pairs")
    with pytest.raises(ValueError, match="class 3 has one image"):
        noise_ceiling(features[:5], np.array([0, 0, 3, 1, 1]))


def test_a_paired_difference_resamples_the_same_classes_for_both(data):
    features, labels, reference = data
    other = features + np.random.default_rng(7).normal(size=features.shape)
    result = paired_difference(features, other, labels, reference, bootstrap=60, seed=2)
    pairs = [explicit_pairs("pairs", x, labels, reference) for x in (features, other)]
    _, wanted, first, second = pairs[0]
    assert result.spearman == pytest.approx(
        spearmanr(pairs[0][0], wanted).statistic - spearmanr(pairs[1][0], wanted).statistic
    )
    drawn = []
    for copies in stats.draw_classes(C, 60, 2):
        times = copies[first] * copies[second]
        a, b = (kendalltau(np.repeat(p[0], times), np.repeat(wanted, times)).statistic for p in pairs)
        drawn.append(a - b)
    assert result.kendall_interval == pytest.approx(np.nanquantile(drawn, [0.025, 0.975]), abs=0.004)
    itself = paired_difference(features, 2 * features, labels, reference, bootstrap=60)
    assert itself.spearman_interval == pytest.approx((0, 0), abs=1e-12)


def test_seeds_widen_a_difference_by_their_own_spread_and_a_clear_one_excludes_zero():
    rng = np.random.default_rng(8)
    labels = np.repeat(np.arange(30), 6)
    means = rng.normal(size=(30, 5))
    reference = np.round(cdist(means, means))

    def trained(noise):  # a network: class means off by a little, images about them
        return (means + noise * rng.normal(size=means.shape))[labels] + rng.normal(size=(180, 5))

    good, bad = ([trained(noise) for _ in range(4)] for noise in (0.1, 3.0))
    result = paired_difference(good, bad, labels, reference, bootstrap=200)
    alone = [paired_difference(a, b, labels, reference, bootstrap=200) for a, b in zip(good, bad, strict=True)]
    assert result.seeds == 4
    assert result.spearman == pytest.approx(np.mean([d.spearman for d in alone]))
    assert result.spearman_clear
    assert result.kendall_clear
    same = paired_difference(good, [trained(0.1) for _ in range(4)], labels, reference, bootstrap=200)
    assert not same.spearman_clear
    with pytest.raises(ValueError, match="4 embeddings of a and 2 of b"):
        paired_difference(good, bad[:2], labels, reference)
