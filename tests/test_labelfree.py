"""The first label-free candidate: equals scipy's Spearman of distances, orders noise, and has an honest interval."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from sagkit.metrics.labelfree import structure_score


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


def test_the_interval_covers_the_figure_of_the_whole_population():
    a, b = views(1.0, n=1500)
    whole = structure_score(a, b).score
    hits = 0
    for seed in range(20):
        found = structure_score(a, b, n=150, bootstrap=60, seed=seed)
        assert found.low < found.score < found.high
        hits += found.low <= whole <= found.high
    assert hits >= 15  # at 95 % each, 14 or fewer of 20 have probability 0.0003


def test_a_collapsed_view_has_no_structure():
    assert structure_score(np.ones((10, 3)), np.ones((10, 3))).score == 0


def test_views_of_different_images_are_refused():
    with pytest.raises(ValueError, match=r"\(10, 3\) and \(9, 3\)"):
        structure_score(np.ones((10, 3)), np.ones((9, 3)))
