"""Regret, expected choice and Pareto front against brute force over every subset and every pair."""

from itertools import combinations, permutations

import numpy as np
import pytest

from sagkit.studies.tune import benefit_per_hour, choose, expected_choice, pareto_front, progress, regret


@pytest.fixture
def draw():
    return np.random.default_rng(0)


@pytest.mark.parametrize("m", [1, 2, 4, 7])
@pytest.mark.parametrize("ties", [False, True])
def test_the_expected_choice_is_the_mean_over_all_subsets_and_orders(draw, m, ties):
    scores, values = draw.normal(size=7), draw.normal(size=7)
    if ties:
        scores = scores.round() + 0.0
        assert len(np.unique(scores)) < 7
    drawn = []
    for subset in combinations(range(7), m):
        best = scores[list(subset)].max()
        drawn.append(np.mean([values[i] for i in subset if scores[i] == best]))  # equals by lot
    assert expected_choice(scores, values, m) == pytest.approx(np.mean(drawn))


def test_choosing_by_the_values_is_the_expected_maximum_and_one_draw_is_the_mean(draw):
    values = draw.normal(size=6)
    assert expected_choice(values, values, 3) == pytest.approx(np.mean([max(c) for c in combinations(values, 3)]))
    assert expected_choice(draw.normal(size=6), values, 1) == pytest.approx(values.mean())
    assert expected_choice(-values, values, 6) == values.min()


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_other_trial_beats(seed):
    draw = np.random.default_rng(seed)
    gains, costs = draw.integers(0, 5, size=12), draw.integers(0, 5, size=12)  # with many equals
    beaten = [
        any(
            gains[j] >= gains[i] and costs[j] <= costs[i] and (gains[j] > gains[i] or costs[j] < costs[i])
            for j in range(12)
        )
        for i in range(12)
    ]
    front = pareto_front(gains, costs)
    assert sorted(front) == [i for i in range(12) if not beaten[i]]
    assert [costs[i] for i in front] == sorted(costs[i] for i in front)


def test_regret_and_progress_by_an_explicit_loop(draw):
    for scores, values in ((draw.normal(size=9), draw.normal(size=9)) for _ in range(5)):
        seconds = draw.uniform(1, 9, size=9)
        found, best_score, best, spent = progress(scores, values, seconds), -np.inf, -np.inf, 0.0
        for i in range(9):
            if scores[i] > best_score:
                best_score, held = scores[i], values[i]
            best, spent = max(best, values[i]), spent + seconds[i] / 3600
            assert (found["chosen"][i], found["best"][i]) == (held, best)
            assert found["hours"][i] == pytest.approx(spent)
        assert regret(values, choose(scores)) == pytest.approx(best - held)
    assert min(regret(np.array(p), i) for p in permutations([0.0, 1.0, 2.0]) for i in range(3)) == 0


def test_a_benefit_needs_time_and_what_is_missing_is_refused():
    assert benefit_per_hour(0.15, 0.10, 1800) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="needs time spent, got 0"):
        benefit_per_hour(1.0, 0.0, 0)
    with pytest.raises(ValueError, match="m = 4 of 3 trials"):
        expected_choice([1, 2, 3], [1, 2, 3], 4)
    with pytest.raises(ValueError, match="3 scores and 2 values"):
        expected_choice([1, 2, 3], [1, 2], 1)
    for bad in ([], [1.0, float("nan")], [[1.0]]):
        with pytest.raises(ValueError, match="finite numbers, one per trial"):
            choose(bad)
