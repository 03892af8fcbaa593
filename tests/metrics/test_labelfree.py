"""The label-free score: equals scipy's Spearman of distances, orders noise, and has an honest interval."""

from itertools import combinations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from sagkit.metrics.labelfree import _resampled, _standard_ranks, structure_score


def views(noise: float, n: int = 150, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8)) + 3
    return x, x + noise * rng.normal(size=x.shape)


def test_the_score_is_the_spearman_correlation_of_distances():
    a, b = views(0.7)
    distance_a, distance_b = (pdist(x - x.mean(0), "cosine") for x in (a, b))
    assert structure_score(a, b).score == pytest.approx(spearmanr(distance_a, distance_b).statistic, abs=1e-9)


def test_identical_views_agree_fully_unrelated_ones_not_and_noise_lies_between():
    scores = [structure_score(*views(noise)).score for noise in (0.0, 0.3, 1.0, 3.0)]
    assert scores[0] == pytest.approx(1)
    assert scores == sorted(scores, reverse=True)
    assert abs(structure_score(views(0, seed=1)[0], views(0, seed=2)[0]).score) < 0.1


@pytest.mark.slow
def test_the_interval_covers_the_figure_of_the_whole_population():
    a, b = views(1.0, n=1500)
    whole = structure_score(a, b).score
    hits = 0
    for seed in range(20):
        found = structure_score(a, b, n=150, bootstrap=60, seed=seed)
        assert found.low < found.score < found.high
        hits += found.low <= whole <= found.high
    assert hits >= 15  # at 95 % each, 14 or fewer of 20 have probability 0.0003


def replicated(a: np.ndarray, b: np.ndarray, bootstrap: int, seed: int, correlate) -> list[float]:
    """Correlation over the pairs of literally repeated images, an image against its own copy left out."""
    drawn = np.random.default_rng(seed).multinomial(len(a), np.full(len(a), 1 / len(a)), size=bootstrap)
    found = []
    for counts in drawn:
        rows = np.repeat(np.arange(len(a)), counts)
        i, j = np.array([(i, j) for i, j in combinations(rows, 2) if i != j]).T
        found.append(correlate(a[i, j], b[i, j]))
    return found


def test_weighted_pairs_are_repeated_pairs_and_fixed_ranks_nearly_those_ranked_anew():
    ranks = [_standard_ranks(x) for x in views(0.8, n=100)]
    fast = _resampled(*ranks, 40, np.random.default_rng(5))
    pearson = replicated(*ranks, 40, 5, lambda p, q: np.corrcoef(p, q)[0, 1])
    np.testing.assert_allclose(fast, pearson, atol=1e-12)
    anew = np.array(replicated(*ranks, 40, 5, lambda p, q: spearmanr(p, q).statistic))
    # Keeping the ranks costs 0.001 on average, where the resamplings themselves spread by 0.03.
    assert np.abs(fast - anew).mean() < 0.002
    assert np.abs(fast - anew).max() < 0.1 * np.ptp(anew)
    assert np.std(fast) == pytest.approx(np.std(anew), rel=0.1)


def test_feature_widths_may_differ():
    a, b = views(0.5)
    wide = np.hstack([b, b, np.full((len(b), 3), 7.0)])  # distances are those of b
    assert structure_score(a, wide).score == pytest.approx(structure_score(a, b).score, abs=1e-12)


@pytest.mark.parametrize("row", [0.0, 1.0, 0.1])  # the mean of many 0.1 is not 0.1
def test_a_collapsed_view_has_no_structure(row):
    flat = np.full((90, 3), row)
    assert structure_score(flat, flat).score == 0
    assert structure_score(flat, views(0, n=90)[0], bootstrap=10) == (0, 0, 0)


def test_views_of_different_images_are_refused():
    with pytest.raises(ValueError, match=r"\(10, 3\) and \(9, 3\)"):
        structure_score(np.ones((10, 3)), np.ones((9, 3)))
