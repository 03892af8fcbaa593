"""Two rows of a table against each other, over seeds *and* classes: is the difference more than chance in either?

    sagkit study versus --profile tuned     every trained row with stored encoders minus VICReg
    sagkit study versus --profile long --baseline "sag-vicreg (hub)"        minus one row, such as the hub partners

Run records hold the spread over seeds; another hundred classes would move a score, too. Here the stored encoders of
both rows are scored on the same image pairs, and the interval resamples seeds and classes, the same classes for both
rows (`metrics.paired_difference`). [K]
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from sagkit.data.load import ImageSet, load_images
from sagkit.metrics.evaluate import references
from sagkit.metrics.semantic import paired_difference
from sagkit.model import extract_features
from sagkit.show.tables import origin, to_markdown
from sagkit.train.record import (
    command_line,
    groups,
    load_encoder,
    matching_row,
    provenance,
    read_records,
    rows_of,
    stored_encoders,
    trained,
    write_record,
)


def encoders_of(records: list[dict]) -> dict[str, dict[int, Path]]:
    """Stored encoders of trained rows, by row and seed; records are of one profile and training set.

    Raises:
        ValueError: for a row of which only some encoders are stored, see `record.stored_encoders`.
    """
    found = {name: stored_encoders(runs) for name, runs in rows_of(trained(records)).items()}
    return {name: paths for name, paths in found.items() if paths}


class Rows(NamedTuple):
    """Rows of a table that can be evaluated again: stored encoders by row and seed, and what they are evaluated on."""

    stored: dict[str, dict[int, Path]]
    split: str
    images: ImageSet
    distances: np.ndarray  # (C, C), the primary semantic reference


def open_rows(results: str | Path, profile: str, train_set: str, baseline: str) -> Rows:
    """The rows of a profile and training set, with the images that their records are judged on.

    Raises:
        ValueError: for a baseline without a stored encoder, a row of which only some are stored, or missing images.
    """
    records = groups(read_records(results)).get((profile, train_set), [])
    stored = encoders_of(records)
    if baseline not in stored:
        among = ", ".join(stored) or "none"
        raise ValueError(f"no stored encoder of {baseline!r} in {profile} / {train_set}: choose one of {among}")
    split = records[0]["evaluated_on"]
    images = load_images(train_set, split)
    return Rows(stored, split, images, next(iter(references(train_set, images.class_names).values())))


def versus(
    stored: dict[str, dict[int, Path]],
    images,
    distances,
    baseline: str = "vicreg",
    bootstrap: int = 1000,
    seed: int = 0,
) -> list[dict]:
    """Every row minus the baseline in Spearman and Kendall over image pairs of different classes.

    Args:
        stored: encoders by row and seed, see `encoders_of`.
        images: labelled images that both are judged on.
        distances: (C, C) semantic distances.
        baseline: the method that is subtracted; see `record.matching_row` for which of its rows.
        bootstrap: resamplings of classes.
        seed: of image pairs and resamplings.

    Raises:
        ValueError: for a baseline without a stored encoder.
    """
    if baseline not in stored:
        raise ValueError(f"no stored encoder of {baseline!r}: choose one of {', '.join(stored) or 'none'}")

    @cache
    def features(path: Path) -> torch.Tensor:
        return extract_features(load_encoder(path), images.images)

    rows = []
    for name, paths in stored.items():
        other = matching_row(name, baseline, stored)
        both = sorted(paths.keys() & stored[other].keys())
        if name == other or not both:
            continue
        sides = [[features(of[s]) for s in both] for of in (paths, stored[other])]
        found = paired_difference(*sides, images.labels, distances, bootstrap=bootstrap, seed=seed)
        figures = {key: value for key, value in found._asdict().items() if key != "seeds"}
        rows.append({"row": name, "baseline": other, "seeds": both, **figures})
    return rows


def versus_table(record: dict) -> pd.DataFrame:
    """One line per row: differences with their intervals."""
    shown = {}
    for row in record["rows"]:
        cells = {"seeds": str(len(row["seeds"]))}
        for key, title in (("spearman", "Spearman pairs"), ("kendall", "Kendall pairs")):
            low, high = row[f"{key}_interval"]
            cells[title] = f"{row[key]:+.4f} [{low:+.4f}, {high:+.4f}]"
        shown[f"{row['row']} − {row.get('baseline', record['baseline'])}"] = cells
    return pd.DataFrame.from_dict(shown, orient="index").rename_axis("difference, over seeds and classes")


def summary(record: dict) -> str:
    """The table with what its intervals hold, as Markdown."""
    return (
        f"{to_markdown(versus_table(record))}\n\n{record['evaluated_on']} images of {record['data']}, profile "
        f"{record['profile']}; brackets are 95 % intervals over seeds and {record['bootstrap']:,} resamplings of "
        f"classes together (with one seed: over classes); {origin(record)}"
    )


def main(
    results: str = "figures/results",
    profile: str = "tuned",
    train_set: str = "cifar100",
    baseline: str = "vicreg",
    bootstrap: int = 1000,
    threads: int = 0,
) -> None:
    """Set every trained row with stored encoders against the baseline, and store the record.

    Args:
        results: folder of run records; the record is written to versus/<profile>.json in it, of another baseline
            than VICReg to versus/<profile>-over-<baseline>.json.
        profile: of the rows.
        train_set: of the rows.
        baseline: the method that is subtracted; see `record.matching_row`.
        bootstrap: resamplings of classes.
        threads: of torch; 0 leaves its default.
    """
    if threads:
        torch.set_num_threads(threads)
    stored, split, images, distances = open_rows(results, profile, train_set, baseline)
    rows = versus(stored, images, distances, baseline, bootstrap)
    about = {"profile": profile, "data": train_set, "evaluated_on": split, "baseline": baseline, "bootstrap": bootstrap}
    record = {"command": command_line("study versus"), **about, **provenance(), "rows": rows}
    words = "-".join(re.findall(r"[\w-]+", baseline))
    name = profile if baseline == "vicreg" else f"{profile}-over-{words}"
    write_record(Path(results) / f"versus/{name}.json", record)
    print(to_markdown(versus_table(record)))
