"""What a search without labels missed: regret, chance's share of it, the Pareto front, and the benefit of an hour.

    regret of a choice c = max_i y_i - y_c                        y: semantic score, which needed labels
    E[y of the trial with the largest s among m random ones]      s = y: labels choose; s = label-free: it chooses;
                                                                  m = 1: nothing chooses

The expectation is exact: of n trials in rising order of s, the i-th is the largest of m with probability
C(i - 1, m - 1) / C(n, m). [R: order statistics, as in "expected best validation performance", Dodge et al. 2019, who
draw with replacement; K: without, and with one score choosing and another judging.] Every function takes plain arrays.
"""

from __future__ import annotations

from math import comb

import numpy as np


def regret(values, chosen: int) -> float:
    """How far the chosen one of `values` (n,) lies below the largest, at least 0."""
    values = _finite(values)
    return float(values.max() - values[chosen])


def choose(scores) -> int:
    """The largest of `scores` (n,), the first of equals."""
    return int(np.argmax(_finite(scores)))


def expected_choice(scores, values, m: int) -> float:
    """Expected value of the trial with the largest score among m drawn without replacement; equals are drawn by lot.

    Args:
        scores: what chooses, (n,).
        values: what is gained, (n,).
        m: trials drawn, 1 to n.

    Raises:
        ValueError: for arrays of different lengths, values that are not finite, or m out of range.
    """
    scores, values = _finite(scores), _finite(values)
    n = len(scores)
    if len(values) != n:
        raise ValueError(f"{n} scores and {len(values)} values: give one of each per trial")
    if not 1 <= m <= n:
        raise ValueError(f"m = {m} of {n} trials: m lies between 1 and their number")
    order = np.argsort(scores, kind="stable")
    chance = np.array([comb(i, m - 1) for i in range(n)]) / comb(n, m)  # i trials have a smaller score
    ordered, sorted_scores = values[order], scores[order]
    for score in np.unique(sorted_scores):  # equals share their chances
        same = sorted_scores == score
        ordered[same] = ordered[same].mean()
    return float(chance @ ordered)


def pareto_front(gains, costs) -> list[int]:
    """Trials that no other beats: none has at least their gain at no more than their cost, and better in one.

    Args:
        gains: larger is better, (n,).
        costs: smaller is better, (n,).

    Returns:
        Their positions, cheapest first; equal ones are all kept.
    """
    gains, costs = _finite(gains), _finite(costs)
    front, best = [], -np.inf
    for i in np.lexsort((-gains, costs)):
        twin = front and gains[i] == gains[front[-1]] and costs[i] == costs[front[-1]]
        if gains[i] > best or twin:
            front.append(int(i))
            best = gains[i]
    return front


def progress(scores, values, seconds) -> dict[str, np.ndarray]:
    """A search as it went on, (n,) each: `hours` spent, value `chosen` by score so far, `best` so far."""
    scores, values, seconds = _finite(scores), _finite(values), _finite(seconds)
    so_far = [choose(scores[: i + 1]) for i in range(len(scores))]
    return {"hours": seconds.cumsum() / 3600, "chosen": values[so_far], "best": np.maximum.accumulate(values)}


def benefit_per_hour(value: float, baseline: float, seconds: float) -> float:
    """Gain over a baseline for each hour of `seconds` spent on it.

    Raises:
        ValueError: for no time at all.
    """
    if not seconds > 0:
        raise ValueError(f"a benefit per hour needs time spent, got {seconds} s")
    return (value - baseline) / (seconds / 3600)


def _finite(x) -> np.ndarray:
    x = np.array(x, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"give finite numbers, one per trial and at least one, got shape {x.shape} of {x[:5]}")
    return x
