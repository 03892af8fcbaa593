"""Rank statistics against scipy and rsatoolbox, resampling against data written out, intervals by simulation."""

import numpy as np
import pytest
from scipy.stats import binom, kendalltau, rankdata, spearmanr

from sagkit.metrics import ranks
from sagkit.metrics.ranks import attainable, inversions, mid_ranks, rank_statistics
from sagkit.metrics.stats import (
    class_bootstrap,
    draw_classes,
    mantel,
    pair_table,
    percentile_interval,
    replicates,
    spearman_brown,
    two_factor_interval,
    two_factor_variance,
)


def agree_with_scipy(found, wanted):
    result = rank_statistics(found, wanted)
    assert result.spearman == pytest.approx(spearmanr(found, wanted).statistic, abs=1e-12)
    assert result.kendall == pytest.approx(kendalltau(found, wanted).statistic, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "levels", "decimals"),
    [(2, 2, 9), (50, 3, 9), (300, 40, 1), (3000, 1000, 1), (30_000, 104, 9), (30_000, 104, 2), (20_000, 9000, 9),
     (140_000, 7, 4)],
)  # fmt: skip
def test_rank_statistics_equal_scipy_with_ties_on_both_sides(n, levels, decimals):
    rng = np.random.default_rng(n)
    wanted = rng.permutation(np.arange(n) % levels)
    found = np.round(rng.normal(size=n) + wanted / levels - 1, decimals)
    agree_with_scipy(found, wanted)
    agree_with_scipy(found, wanted * 0.37 - 1)  # levels that are no codes
    agree_with_scipy(-found, wanted)


def test_values_that_differ_in_their_last_bits_only_keep_their_order():
    # The quick sort gives these bits to the level; it has to notice, and it has to leave true ties alone.
    rng = np.random.default_rng(0)
    n = 2 * ranks.PACKED
    wanted = rng.integers(50, size=n)
    found = 1 + rng.permutation(n // 2).repeat(2) * 2.0**-52
    agree_with_scipy(found, wanted)  # doubtful throughout
    few = rng.normal(size=n)
    few[:60] = rng.choice([-1.5, 1.5], size=60) + rng.integers(8, size=60) * 2.0**-52
    assert 0 < np.count_nonzero(np.diff(np.sort(few)) == 0) < 60
    agree_with_scipy(few, wanted)  # doubtful here and there, with true ties among them
    zeros = np.where(wanted % 2, 0.0, -0.0) + np.where(np.arange(n) % 3, 0.0, rng.normal(size=n))
    agree_with_scipy(zeros, wanted)


def test_inversions_equal_a_double_loop():
    rng = np.random.default_rng(1)
    for n, levels in ((1, 1), (5, 2), (700, 3), (700, 400), (1500, 70_000)):
        code = rng.integers(levels, size=n)
        assert inversions(code, levels) == sum(int((code[i] > code[i + 1 :]).sum()) for i in range(n))


def test_mid_ranks_are_those_of_scipy_about_their_mean():
    values = np.random.default_rng(2).integers(30, size=200) / 7
    assert mid_ranks(values) == pytest.approx(rankdata(values) - 100.5)


def test_rsatoolbox_has_the_same_four_correlations():
    # rsatoolbox 0.3.2: compare(RDMs(found[None]), RDMs(wanted[None]), method=...) for "spearman", "tau-b", "tau-a",
    # "rho-a", vectors of ten dissimilarities with ties on both sides.
    found = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3.0])
    wanted = np.array([2, 7, 1, 8, 2, 8, 1, 8, 2, 8.0])
    expected = (0.13471506281091267, 0.13041013273932525, 0.1111111111111111, 0.1272727272727273)
    assert rank_statistics(found, wanted) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_rho_a_and_tau_a_are_the_mean_over_random_orders_of_tied_values():
    rng = np.random.default_rng(3)
    found, wanted = rng.integers(4, size=12), rng.integers(3, size=12)
    broken = [
        rank_statistics(np.lexsort((rng.random(12), found)).argsort(), np.lexsort((rng.random(12), wanted)).argsort())
        for _ in range(1500)
    ]
    result, means, errors = (
        rank_statistics(found, wanted),
        np.mean(broken, axis=0),
        np.std(broken, axis=0) / np.sqrt(len(broken)),
    )
    assert abs(result.rho_a - means[0]) < 4 * errors[0]
    assert abs(result.tau_a - means[1]) < 4 * errors[1]


def test_the_ceiling_is_reached_by_an_order_that_breaks_ties_at_random_and_by_none_above():
    rng = np.random.default_rng(4)
    wanted = rng.choice([0.1, 0.5, 0.7], size=60, p=[0.2, 0.7, 0.1])
    best = wanted + 1e-3 * rng.random(60)
    expected = spearmanr(best, wanted).statistic, kendalltau(best, wanted).statistic
    assert attainable(wanted) == pytest.approx(expected)


def small_world(seed=0, classes=7, images=30):
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=images)
    reference = np.round(rng.random((classes, classes)), 1)
    reference = reference + reference.T
    i, j = np.triu_indices(images, 1)
    first, second = label[i], label[j]
    found = np.round(rng.normal(size=len(i)) + reference[first, second], 2)
    return found, reference, first, second


def written_out(found, wanted, first, second, copies):
    """Every pair as often as the class bootstrap means it: copies of a class are classes of their own, and a class
    against another copy of itself is dropped."""
    rows = [
        (f, w)
        for f, w, a, b in zip(found, wanted, first, second, strict=True)
        for copy_a in range(copies[a])
        for copy_b in range(copies[b])
        if a != b or copy_a == copy_b
    ]
    f, w = np.array(rows).T
    return spearmanr(f, w).statistic, kendalltau(f, w).statistic


def test_a_resampling_equals_data_with_the_classes_written_out():
    found, reference, first, second = small_world()
    wanted = reference[first, second]
    copies = draw_classes(7, 6, seed=0)
    assert (copies.sum(axis=1) == 7).all()
    result = replicates(pair_table(found, wanted, first, second, bins=1000), copies)
    for row, drawn in zip(result, copies, strict=True):
        assert row == pytest.approx(written_out(found, wanted, first, second, drawn), abs=1e-12)
    # Which class of a pair comes first does not matter.
    swapped = replicates(pair_table(found, wanted, second, first, bins=1000), copies)
    assert swapped == pytest.approx(result, abs=1e-12)


def test_binning_moves_deviations_by_less_than_a_hundredth_of_their_spread():
    rng = np.random.default_rng(5)
    first, second = rng.integers(20, size=(2, 8000))
    first, second = first[first != second], second[first != second]
    place = rng.normal(size=(20, 2))
    wanted = np.floor(4 * np.linalg.norm(place[first] - place[second], axis=1))
    found = wanted / 4 + rng.normal(size=len(first))
    exact = class_bootstrap(found, wanted, first, second, n=40, seed=1, bins=10_000)
    binned = class_bootstrap(found, wanted, first, second, n=40, seed=1)
    assert np.abs(exact).max() > 0.05

    def error(found):
        return np.sqrt(((found - exact) ** 2).mean(axis=0)) / exact.std(axis=0)

    assert (error(binned) < 0.01).all()
    assert (error(class_bootstrap(found, wanted, first, second, n=40, seed=1, bins=4)) > 0.01).all()  # it can fail


def class_world(generator, classes):
    """Pairs of classes: latent places are the reference (in steps), noisy places the embedding."""
    place = generator.normal(size=(classes, 2))
    noisy = place + generator.normal(size=(classes, 2))
    i, j = np.triu_indices(classes, 1)
    wanted = np.floor(3 * np.linalg.norm(place[i] - place[j], axis=1)).astype(int)
    return np.linalg.norm(noisy[i] - noisy[j], axis=1), wanted, i, j


@pytest.mark.slow
def test_the_class_bootstrap_covers_the_population_as_often_as_it_says():
    population = [rank_statistics(*class_world(np.random.default_rng([9, s]), 1000)[:2])[:2] for s in range(20)]
    truth, trials, hits = np.mean(population, axis=0), 200, np.zeros(2)
    for trial in range(trials):
        found, wanted, i, j = class_world(np.random.default_rng([1, trial]), 25)
        estimate = rank_statistics(found, wanted)[:2]
        off = class_bootstrap(found, wanted, i, j, n=200, seed=trial, bins=64)
        for k in range(2):
            low, high = percentile_interval(estimate[k], off[:, k])
            hits[k] += low <= truth[k] <= high
    # Between 0.91 and 0.985, and the band of a binomial at 0.1 % around these: 25 classes are few.
    assert (hits >= binom.ppf(0.001, trials, 0.91)).all()
    assert (hits <= binom.ppf(0.999, trials, 0.985)).all()


def test_mantel_equals_a_loop_over_relabelled_matrices():
    found, reference, first, second = small_world(3)
    found = found + 9 * np.random.default_rng(5).normal(size=len(found))  # a weak relation, so that p is in between
    observed = spearmanr(found, reference[first, second]).statistic
    generator, higher = np.random.default_rng(11), 0
    for _ in range(99):
        order = generator.permutation(7)
        relabelled = reference[np.ix_(order, order)]
        higher += spearmanr(found, relabelled[first, second]).statistic >= observed - 1e-9
    assert 0 < higher < 99
    assert mantel(found, reference, first, second, permutations=99, seed=11) == (1 + higher) / 100


@pytest.mark.slow
def test_mantel_p_is_uniform_without_a_relation_and_small_with_one():
    generator, p = np.random.default_rng(6), []
    i, j = np.triu_indices(9, 1)
    for trial in range(300):
        place, other = generator.normal(size=(2, 9, 2))
        reference = np.linalg.norm(place[:, None] - place, axis=2)
        p.append(mantel(np.linalg.norm(other[i] - other[j], axis=1), reference, i, j, 39, trial))
    for level in (0.05, 0.25, 0.5):
        assert binom.ppf(0.001, 300, level) <= np.sum(np.array(p) <= level + 1e-9) <= binom.ppf(0.999, 300, level)
    assert mantel(reference[i, j], reference, i, j, 199, 0) == 1 / 200


def test_two_factor_variance_is_the_formula_of_rsatoolbox():
    # rsatoolbox 0.3.2, util.inference_util._dual_bootstrap([.010, .004, .005], n_rdm=3, n_pattern=20): 0.0096842105...
    # Deviations and estimates built so that the bootstraps' variances are .004 (seeds), .005 (classes), .010 (both).
    estimates = np.array([-1, 0, 1]) * np.sqrt(0.004 * 3 / (2 / 3))
    common, apart = np.array([1, -1, 1, -1]), np.array([1, 1, -1, -1])
    spread = np.sqrt(0.001 * 3 / (2 / 3))  # interaction: part of the spread over seeds that changes with the classes
    deviations = np.sqrt(0.005) * common + spread * np.outer([-1, 0, 1], apart)
    variance, _ = two_factor_variance(estimates, deviations, classes=20)
    assert variance == pytest.approx(0.00968421052631579)
    # Without interaction it is the sum of the two unbiased variances, which rsatoolbox would cap.
    variance, _ = two_factor_variance(estimates, np.sqrt(0.005) * common * np.ones((3, 1)), classes=20)
    assert variance == pytest.approx(0.004 * 3 / 2 + 0.005 * 20 / 19)


@pytest.mark.slow
@pytest.mark.parametrize(("of_seeds", "of_classes"), [(1.0, 0.0), (0.0, 1.0), (0.5, 3.0)])
def test_the_interval_over_seeds_and_classes_covers(of_seeds, of_classes):
    # A mean over classes of (class effect + seed effect + noise): the truth is 0.
    generator, trials, seeds, classes = np.random.default_rng(7), 600, 4, 30
    hits = 0
    for trial in range(trials):
        values = of_seeds * generator.normal(size=(seeds, 1)) + of_classes * generator.normal(size=classes)
        values = values + generator.normal(size=(seeds, classes))
        copies = draw_classes(classes, 200, trial)
        estimates = values.mean(axis=1)
        low, high = two_factor_interval(estimates, values @ copies.T / classes - estimates[:, None], classes)
        hits += low <= 0 <= high
    assert hits >= binom.ppf(0.001, trials, 0.92)
    assert hits <= binom.ppf(0.9999, trials, 0.995)


def test_spearman_brown_predicts_the_correlation_of_doubled_tests():
    generator = np.random.default_rng(8)
    true, noise = generator.normal(size=200_000), generator.normal(size=(4, 200_000))
    half = np.corrcoef(true + noise[0], true + noise[1])[0, 1]
    whole = np.corrcoef(2 * true + noise[0] + noise[1], 2 * true + noise[2] + noise[3])[0, 1]
    assert spearman_brown(half) == pytest.approx(whole, abs=0.01)
    assert spearman_brown(-0.2) == 0


def test_sequences_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        rank_statistics(np.arange(3.0), np.arange(2))
    with pytest.raises(ValueError, match=r"1 of 3 pairs are not finite \(first: 1\)"):
        rank_statistics(np.array([0, np.inf, 2]), np.arange(3))
    with pytest.raises(ValueError, match="at least two, got 1"):
        two_factor_variance(np.array([0.1]), np.zeros((1, 5)), 5)
