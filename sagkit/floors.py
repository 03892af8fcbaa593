"""What an embedding must beat: random networks of its architecture from the run records, or random projections.

The verdict is `metrics.compare.verdict`'s: distance of Spearman over image pairs from the floor's mean, in its standard
deviations. [K]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sagkit.data import ImageSet
from sagkit.metrics.compare import random_floor, verdict
from sagkit.metrics.semantic import RankCorrelation

NONE = "no floor: it needs a semantic reference, and features of the data set's own test images other than pixels"


def random_networks(results, data: str, architecture: str | None, figures) -> list[float]:
    """Spearman over image pairs of the untrained networks of one architecture in the run records."""
    if architecture is None or "spearman_pairs" not in figures:
        return []
    found = {}
    for path in sorted(Path(results).glob("*/*/*-seed*.json")):
        record = json.loads(path.read_text())
        config = record.get("config", {})
        alike = config.get("epochs") == 0 and config.get("encoder") == architecture and record.get("data") == data
        if alike and record.get("evaluated_on") == "test" and "spearman_pairs" in record["metrics"]:
            found[record["seed"]] = record["metrics"]["spearman_pairs"]
    return list(found.values())


def projections(images: ImageSet, width: int, reference, n: int = 2000) -> list[float]:
    """Spearman of random projections of up to n images, drawn at random."""
    if reference is None:
        return []
    # Pairs enough for a standard error of 0.002, below the spread of projections; a million take five times as long.
    few = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:n]
    inputs, y = images.images[few].numpy() / 255, images.labels[few].numpy()
    return random_floor(inputs, y, reference, width, n_pairs=200_000).tolist()


def with_floor(figures: dict[str, float], scores: Sequence[float], of: str) -> tuple[dict[str, float], str]:
    """Figures with "floor" and "floor_sd" from at least two differing scores, and the verdict in one line.

    Args:
        figures: of the embedding.
        scores: Spearman over image pairs of what must be beaten.
        of: what those are, in the plural.
    """
    if "spearman_pairs" not in figures or len(set(scores)) < 2:
        return figures, NONE
    mean, sd = float(np.mean(scores)), float(np.std(scores, ddof=1))
    against = RankCorrelation(figures["spearman_pairs"], 0.0, floor=mean, floor_sd=sd, floor_n=len(scores))
    return figures | {"floor": mean, "floor_sd": sd}, verdict(against, of)
