"""How often do the 95 % intervals hold the truth? Worlds whose truth is known, drawn again and again.

    sagkit study coverage
    sagkit study coverage --missing       the worlds alone that the record lacks

structure   images of 20 clusters, two views that differ by noise: `structure_score` of n images, images resampled
classes     classes at latent places, images about their means, one embedding: `rank_correlation`, classes resampled
difference  two embeddings of four seeds each, one noisier than the other: `paired_difference`, seeds and classes both

The truth is the figure of a population: the mean over worlds so large that neither images nor classes matter. [K]
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from sagkit import require
from sagkit.metrics.labelfree import structure_score
from sagkit.metrics.semantic import paired_difference, rank_correlation
from sagkit.show.tables import origin, to_markdown
from sagkit.train.record import command_line, provenance, write_record

SEEDS = 4  # embeddings a side of `difference`
RESAMPLINGS = 200
FAR = 10_000  # seeds of the population's worlds begin here
CLUSTERS, IMAGES = 20, 20  # clusters of `structure`; images a class
WORLDS = {  # kind, images, classes; the costly ones last
    "classes, 25 of 20 images": ("classes", 25 * IMAGES, 25),
    "classes, 100 of 20 images": ("classes", 100 * IMAGES, 100),
    "structure, 500 images": ("structure", 500, CLUSTERS),
    "difference, 25 classes": ("difference", 25 * IMAGES, 25),
    "structure, 2,000 images": ("structure", 2000, CLUSTERS),
    "difference, 100 classes": ("difference", 100 * IMAGES, 100),
}
# Images and classes of a world that gives the truth, and how many such worlds: the error of their mean is at most a
# tenth of the estimates' own. The score's mean is the same at 500 and 2,000 images, so 1,000 are population enough.
POPULATION = {"structure": (1000, CLUSTERS, 200), "classes": (3000, 600, 60), "difference": (3000, 600, 30)}


def views(generator: np.random.Generator, images: int, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Two views (n, 8) of images about cluster means that are the same in every world."""
    means = np.random.default_rng(0).normal(size=(clusters, 8))
    x = means[generator.integers(clusters, size=images)] + generator.normal(size=(images, 8))
    return x, x + generator.normal(size=x.shape)


def embeddings(generator: np.random.Generator, images: int, classes: int, noise: float, seeds: int = 1):
    """Features of each seed, labels, and the classes' distances in steps.

    A class lies at a latent place; every embedding of this kind misplaces it alike, each seed by some more.
    """
    place = generator.normal(size=(classes, 4))
    labels = np.arange(images) % classes
    apart = np.linalg.norm(place[:, None] - place, axis=2)
    common = generator.normal(size=place.shape)
    features = []
    for _ in range(seeds):
        means = place + noise * (common + 0.5 * generator.normal(size=place.shape))
        features.append(means[labels] + generator.normal(size=(images, 4)))
    return features, labels, np.floor(3 * apart)


def trial(kind: str, seed: int, images: int, classes: int, resamplings: int) -> list[tuple[float, float, float]]:
    """Estimate and interval of each figure of one world: the score, or Spearman and Kendall."""
    generator = np.random.default_rng([seed, images, classes])
    if kind == "structure":
        found = structure_score(*views(generator, images, classes), bootstrap=resamplings, seed=seed)
        return [(found.score, found.low, found.high) if resamplings else (found.score, np.nan, np.nan)]
    few = {"n_pairs": 100_000, "metric": "euclidean", "seed": seed, "bootstrap": max(resamplings, 1)}
    a, y, reference = embeddings(generator, images, classes, 0.6, SEEDS if kind == "difference" else 1)
    if kind == "classes":
        found = rank_correlation(a[0], y, reference, **few)
    else:
        rough = np.random.default_rng([seed, 1]).normal(size=(classes, 4))[y]
        found = paired_difference(a, [x + 0.6 * rough for x in a], y, reference, **few)
    intervals = (found.spearman_interval, found.kendall_interval)
    return [(value, *interval) for value, interval in zip((found.spearman, found.kendall), intervals, strict=True)]


def truth_of(kind: str) -> np.ndarray:
    """Each figure of the population."""
    images, classes, worlds = POPULATION[kind]
    return np.mean([[value for value, *_ in trial(kind, FAR + s, images, classes, 0)] for s in range(worlds)], axis=0)


def covered(kind: str, images: int, classes: int, trials: int, truth: np.ndarray) -> dict:
    """How many intervals hold the truth, by figure, and what they are like."""
    found = np.array([trial(kind, s, images, classes, RESAMPLINGS) for s in range(trials)])  # (T, figures, 3)
    value, low, high = np.moveaxis(found, 2, 0)
    return {
        "figures": ["score"] if kind == "structure" else ["Spearman", "Kendall"],
        "trials": trials,
        "truth": truth.round(5).tolist(),
        "bias": (value.mean(axis=0) - truth).round(5).tolist(),
        "sd": value.std(axis=0, ddof=1).round(5).tolist(),
        "width": (high - low).mean(axis=0).round(5).tolist(),
        "held": ((low <= truth) & (truth <= high)).sum(axis=0).tolist(),
        "below": (truth < low).sum(axis=0).tolist(),
    }


def coverage_table(record: dict) -> pd.DataFrame:
    """One row per world and figure: the share of intervals that hold the truth, and on which side the others miss."""
    rows = []
    for name, row in record["rows"].items():
        for i, figure in enumerate(row["figures"]):
            held, trials = row["held"][i], row["trials"]
            exact = binomtest(held, trials).proportion_ci()
            rows.append({
                "world": name,
                "figure": figure,
                "truth": f"{row['truth'][i]:.3f}",
                "bias": f"{row['bias'][i]:+.4f}",
                "sd of the estimate": f"{row['sd'][i]:.4f}",
                "width / 3.92 sd": f"{row['width'][i] / (3.92 * row['sd'][i]):.2f}",
                "holds the truth": f"{held / trials:.1%} [{exact.low:.1%}, {exact.high:.1%}]",
                "too high, too low": f"{row['below'][i]}, {trials - held - row['below'][i]} of {trials}",
            })  # fmt: skip
    return pd.DataFrame(rows).set_index("world")


def summary(record: dict) -> str:
    """The table with its caption, as Markdown."""
    missing = [name for name in WORLDS if name not in record["rows"]]
    absent = f"Not measured yet: {'; '.join(missing)}. " if missing else ""
    return (
        f"{to_markdown(coverage_table(record))}\n\n{absent}Simulated worlds, each drawn anew for each trial; "
        f"{record['resamplings']} resamplings an interval; brackets are exact 95 % intervals of the share; "
        f"{origin(record)}"
    )


def main(results: Path = Path("figures/results"), trials: int = 200, missing: bool = False) -> None:
    """Count how often intervals hold the truth of simulated worlds, and store the record.

    Args:
        results: folder of the record, coverage.json.
        trials: of each world of up to 500 images; half as many of larger ones.
        missing: keep the worlds that the record holds, and add the others.
    """
    require("trials", trials, "[10, inf)", "200 tell 92 from 97 per cent", whole=True)
    truth = cache(truth_of)
    place, about = Path(results) / "coverage.json", {"resamplings": RESAMPLINGS, **provenance()}
    kept = json.loads(place.read_text())["rows"] if missing and place.exists() else {}
    record = {"command": command_line("study coverage"), **about, "rows": kept}
    for name, (kind, images, classes) in WORLDS.items():
        if name in kept:
            continue
        many = trials if images <= 500 else trials // 2
        record["rows"][name] = covered(kind, images, classes, many, truth(kind)) | {"commit": about["commit"]}
        write_record(place, record)  # what is done is kept
        print(name, record["rows"][name], flush=True)
