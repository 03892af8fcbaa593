"""Is a difference between two rows more than a steeper spectrum? Both, under steeper and flatter principal axes.

    h - mean = U S V'   ->   U S^p        p = 1 as trained, 0 every axis alike, above 1 the large axes larger

    sagkit study sharpen --profile gpu-minute      record: figures/results/sharpen/gpu-minute.json

Rank correlation with a semantic reference depends on few large axes, and a larger weight on them raises it without any
training, at a cost in kNN. So this is the control for every pairing that pulls neighbours together: a gain that is only
such a weighting is matched by the baseline at some p. [K] Axes come from a bank of training images, figures from test
images.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sagkit.data.load import ImageSet, load_images
from sagkit.metrics.local import knn_accuracy
from sagkit.metrics.semantic import rank_correlation
from sagkit.metrics.stats import Summary
from sagkit.model import extract_features
from sagkit.show.tables import origin, to_markdown
from sagkit.studies.versus import open_rows
from sagkit.train.record import command_line, load_encoder, matching_row, provenance, write_record

POWERS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
BANK = 10_000  # training images that the axes, and kNN's labels, come from
IMAGE_PAIRS = 300_000  # image pairs behind a rank correlation


def axes_of(bank: Float[Tensor, "M F"]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (F,), principal axes (F, F) as columns, and spreads along them (F,), the largest first."""
    mean = bank.double().mean(dim=0)
    _, spread, axes = torch.linalg.svd(bank.double() - mean, full_matrices=False)
    return mean, axes.T, spread / (len(bank) - 1) ** 0.5


def sharpened(features: Float[Tensor, "N F"], axes: tuple[Tensor, Tensor, Tensor], power: float) -> Tensor:
    """Features whose spread along each axis is raised to a power; the largest axis keeps its own. float32 (N, F).

    Axes of no spread at all, a millionth of the largest, are left out.

    Args:
        features: of any images.
        axes: what `axes_of` found.
        power: 1 turns the features and changes no distance.

    Raises:
        ValueError: for a negative power, or a bank without any spread.
    """
    mean, directions, spread = axes
    if power < 0:
        raise ValueError(f"power must be at least 0, got {power}: 0 gives every axis the same spread")
    if not spread[0] > 0:
        raise ValueError("the bank's features are all alike: axes need at least two that differ")
    kept = spread > 1e-6 * spread[0]
    weights = (spread[kept] / spread[0]) ** (power - 1)
    return ((features.double() - mean) @ directions[:, kept] * weights).float()


def figures_by_power(encoder, bank: ImageSet, queries: ImageSet, distances, powers) -> list[dict]:
    """Spearman over image pairs and kNN accuracy of one encoder at every power."""
    known, asked = extract_features(encoder, bank.images), extract_features(encoder, queries.images)
    axes, found = axes_of(known), []
    for power in powers:
        h = sharpened(asked, axes, power)
        found.append(
            {
                "power": power,
                "spearman_pairs": rank_correlation(h, queries.labels, distances, n_pairs=IMAGE_PAIRS).spearman,
                "knn": knn_accuracy(sharpened(known, axes, power), bank.labels, h, queries.labels),
            }
        )
    return found


def sharpen_table(record: dict) -> pd.DataFrame:
    """One line per power: the baseline's figures, and each other row minus its baseline's, paired by seed."""
    shown, titles = {}, (("spearman_pairs", "Spearman pairs", False), ("knn", "kNN %", True))
    rows, baseline = record["rows"], record["baseline"]
    for i, power in enumerate(record["powers"]):
        cells = {}
        for key, title, percent in titles:
            over = Summary.over([found[i][key] for found in rows[baseline].values()])
            cells[f"{baseline}, {title}"] = over.show(percent)
            for name, runs in rows.items():
                other = matching_row(name, baseline, rows)
                change = [runs[seed][i][key] - found[i][key] for seed, found in rows[other].items() if seed in runs]
                if name != other and change:
                    cells[f"{name} − {other}, {title}"] = Summary.over(change).show(percent, signed=True)
        shown[f"{power:g}" + (", as trained" if power == 1 else "")] = cells
    return pd.DataFrame.from_dict(shown, orient="index").rename_axis("power")


def summary(record: dict) -> str:
    """The table with what it was made from, as Markdown."""
    seeds = sorted({seed for runs in record["rows"].values() for seed in runs})
    return (
        f"{to_markdown(sharpen_table(record))}\n\n{record['evaluated_on']} images of {record['data']}, profile "
        f"{record['profile']}, seeds {', '.join(seeds)}; axes and kNN from {record['bank']:,} training images; "
        f"± is a 95 % t-interval over seeds; {origin(record)}"
    )


def main(
    results: str = "figures/results",
    profile: str = "gpu-minute",
    train_set: str = "cifar100",
    baseline: str = "vicreg",
    threads: int = 0,
) -> None:
    """Judge every trained row with stored encoders at every power, and store the record.

    Args:
        results: folder of run records; the record is written to sharpen/<profile>.json in it.
        profile: of the rows.
        train_set: of the rows.
        baseline: the method that others are compared with; see `record.matching_row`.
        threads: of torch; 0 leaves its default.
    """
    if threads:
        torch.set_num_threads(threads)
    stored, split, queries, distances = open_rows(results, profile, train_set, baseline)
    bank = load_images(train_set, "train" if split == "test" else "fit")
    bank = bank.subset(torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))[:BANK])
    rows = {
        name: {
            str(seed): figures_by_power(load_encoder(at), bank, queries, distances, POWERS)
            for seed, at in paths.items()
        }
        for name, paths in stored.items()
    }
    about = {"profile": profile, "data": train_set, "evaluated_on": split, "baseline": baseline, "bank": len(bank)}
    record = {"command": command_line("study sharpen"), **about, **provenance(), "powers": POWERS, "rows": rows}
    write_record(Path(results) / f"sharpen/{profile}.json", record)
    print(to_markdown(sharpen_table(record)))
