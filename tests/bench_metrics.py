"""Rank correlations beside plain scipy, alternating in one run, and what a full evaluation of 10,000 features costs.

    make bench        (python tests/bench_metrics.py [--rounds 5] [--threads 2] [--quick])

Features are 10,000 x 128 in 100 classes: class means that follow WordNet's distances, noise between classes, noise
within. Correlations: distances are made beforehand; scipy's kendalltau and spearmanr take the two sequences of
distances, ours takes the reference's as codes of its levels, as `rank_correlation` looks them up, and gives Spearman,
tau-b, tau-a and rho-a at once. "all pairs" are the 49.5 million of different classes, run once (scipy needs a minute);
the error of a million drawn pairs is their difference from it. Full evaluation: five kinds, each with Spearman and
Kendall, 1,000 resamplings of classes and 1,000 relabellings, and the hierarchy measures. Medians over rounds; the
record is figures/results/bench/metrics.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tyro
from scipy.stats import kendalltau, spearmanr
from threadpoolctl import threadpool_limits

from sagkit.data.taxonomy import class_distances, superclasses
from sagkit.metrics.ranks import rank_statistics
from sagkit.metrics.semantic import KINDS, compared, rank_correlation, wanted_codes
from sagkit.metrics.tree import hierarchy_figures
from sagkit.train.record import provenance, write_record

IMAGES, WIDTH, CLASSES, RESAMPLINGS = 10_000, 128, 100, 1000


def structured(seed: int, images: int = IMAGES) -> tuple[np.ndarray, np.ndarray]:
    """Features whose class means lie as WordNet's distances do, and labels; the geometry is the same for every seed."""
    reference, rng = class_distances("cifar100"), np.random.default_rng(0)
    centre = np.eye(CLASSES) - 1 / CLASSES
    values, vectors = np.linalg.eigh(-centre @ reference**2 @ centre / 2)  # classical scaling
    places = vectors[:, values > 0] * np.sqrt(values[values > 0])
    means = places @ rng.normal(size=(places.shape[1], WIDTH)) + rng.normal(size=(CLASSES, WIDTH))
    labels = np.arange(images) % CLASSES
    return means[labels] + 1.5 * np.random.default_rng([1, seed]).normal(size=(images, WIDTH)), labels


def timed(run: Callable):
    """Seconds and result of one call."""
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def correlation_row(name: str, found: np.ndarray, codes: np.ndarray, wanted: np.ndarray, rounds: int) -> dict:
    """Seconds of ours and of scipy's two functions on the same pairs, and the largest disagreement."""
    contestants = {
        "sagkit, both": lambda: rank_statistics(found, codes)[:2],
        "scipy kendalltau": lambda: kendalltau(found, wanted).statistic,
        "scipy spearmanr": lambda: spearmanr(found, wanted).statistic,
    }
    spent, results = {name: [] for name in contestants}, {}
    for _ in range(rounds):
        for contestant, run in contestants.items():
            seconds, results[contestant] = timed(run)
            spent[contestant].append(seconds)
    median = {contestant: statistics.median(values) for contestant, values in spent.items()}
    spearman, kendall = results["sagkit, both"]
    apart = max(abs(spearman - results["scipy spearmanr"]), abs(kendall - results["scipy kendalltau"]))
    return {
        "name": name,
        "pairs": len(found),
        "seconds": median,
        "times_ours": {contestant: round(v / median["sagkit, both"], 2) for contestant, v in median.items()},
        "disagreement": float(apart),
        "spearman": spearman,
        "kendall": kendall,
    }


def correlations(x: np.ndarray, y: np.ndarray, reference: np.ndarray, rounds: int, quick: bool) -> list[dict]:
    """A million drawn pairs, and all pairs."""
    rows = []
    for name, n_pairs, turns in (("a million drawn pairs", 10**6, rounds), ("all pairs", 10**9, 1)):
        few = slice(None, 2000 if quick and n_pairs > 10**6 else None)
        pairs = compared(x[few], y[few], "pairs", "centred-cosine", n_pairs, seed=0)
        codes, wanted = wanted_codes(reference, pairs)[1], reference[pairs.first, pairs.second]
        rows.append(correlation_row(name, pairs.found, codes, wanted, turns))
    return rows


def full_evaluation(x: np.ndarray, y: np.ndarray, reference: np.ndarray, rounds: int) -> dict[str, float]:
    """Seconds of each part, medians over rounds."""
    bank, bank_labels = structured(seed=1)
    group = superclasses("cifar100")[1]
    parts = {
        kind: lambda kind=kind: rank_correlation(x, y, reference, kind, bootstrap=RESAMPLINGS, permutations=RESAMPLINGS)
        for kind in KINDS
    }
    parts["hierarchy"] = lambda: hierarchy_figures(x, y, reference, group, bank, bank_labels)
    spent = [{name: timed(run)[0] for name, run in parts.items()} for _ in range(rounds)]
    return {name: statistics.median(turn[name] for turn in spent) for name in parts}


def main(
    rounds: int = 5, threads: int = 2, quick: bool = False, out: str = "figures/results/bench/metrics.json"
) -> None:
    """Run the benchmark and write its record.

    Args:
        rounds: alternations.
        threads: of BLAS and torch.
        quick: one round, and all pairs of 2,000 images only, to try the benchmark itself.
        out: the record.
    """
    origin, rounds = provenance(), 1 if quick else rounds
    torch.set_num_threads(threads)
    found: dict = {"command": "make bench", "images": IMAGES, "width": WIDTH, "classes": CLASSES,
                   "resamplings": RESAMPLINGS, "quick": quick}  # fmt: skip
    with threadpool_limits(threads):
        (x, y), reference = structured(seed=0), class_distances("cifar100")
        found["rows"] = correlations(x, y, reference, rounds, quick)
        found["full"] = full_evaluation(x, y, reference, min(rounds, 3))
    for row in found["rows"]:
        print(f"{row['name']}: {row['pairs']:,} pairs, largest disagreement {row['disagreement']:.1e}")
        for name, seconds in row["seconds"].items():
            print(f"  {name:20s} {seconds:9.3f} s {row['times_ours'][name]:8.2f} x ours")
    for name, seconds in found["full"].items():
        print(f"  {name:20s} {seconds:9.3f} s")
    print(f"full evaluation {sum(found['full'].values()):.1f} s on {threads} threads")
    write_record(Path(out), {**found, **origin, "threads": threads})


if __name__ == "__main__":
    tyro.cli(main)
