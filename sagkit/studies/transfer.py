"""Do encoders order the classes of a set that they were never trained on? Every stored encoder, judged on that set.

    sagkit study transfer                 record: figures/results/transfer/shapes.json
    sagkit study transfer --data NAME     on another set with a known class tree

Each encoder embeds the set's test images once. *Structure* is the Spearman correlation between embedding distance and
tree distance over pairs of images of different classes; *kNN* takes its labels from a bank of the set's own training
images; *retrieval* is the share of a class, or of a superclass, among the ten most similar. Pixels averaged over 8 x 8
squares are judged beside them. The paper claims that pairs across images help on data that no training saw [S]; which
set, and these four figures, are ours [K].
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import nn

from sagkit.data.load import ImageSet, load_images
from sagkit.data.taxonomy import superclasses
from sagkit.metrics.evaluate import references
from sagkit.metrics.local import knn_accuracy, precision_at
from sagkit.metrics.semantic import rank_correlation
from sagkit.metrics.stats import Summary
from sagkit.model import extract_features
from sagkit.show.tables import to_markdown
from sagkit.train.record import (
    command_line,
    groups,
    load_encoder,
    matching_row,
    provenance,
    read_records,
    rows_of,
    stored_encoders,
    write_record,
)

MEASURES = {
    "structure": "structure",
    "knn": "kNN",
    "retrieval_class": "retrieval, class",
    "retrieval_family": "retrieval, family",
}
IMAGE_PAIRS = 200_000  # image pairs behind a rank correlation
PIXELS = "pixels, 8 × 8"


def unseen_figures(encoder: nn.Module, test: ImageSet, bank: ImageSet, data: str) -> dict[str, float]:
    """The four `MEASURES` of one encoder on a set that it was not trained on, each a fraction, structure in [-1, 1].

    Args:
        encoder: of uint8 images.
        test: images that are judged.
        bank: images of the same classes, whose labels kNN may use.
        data: the name of the set, whose class tree and superclasses are known.
    """
    distances = next(iter(references(data, test.class_names).values()))
    family = torch.as_tensor(superclasses(data, test.class_names)[1])[test.labels]
    h, known = extract_features(encoder, test.images), extract_features(encoder, bank.images)
    return {
        "structure": rank_correlation(h, test.labels, distances, n_pairs=IMAGE_PAIRS).spearman,
        "knn": knn_accuracy(known, bank.labels, h, test.labels),
        "retrieval_class": precision_at(h, test.labels),
        "retrieval_family": precision_at(h, family),
    }


def drawn_bank(data: str, size: int, seed: int) -> ImageSet:
    """Training images of a set, drawn without return."""
    images = load_images(data, "train")
    return images.subset(torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:size])


def unseen_rows(records: list[dict], test: ImageSet, bank: ImageSet, data: str) -> list[dict]:
    """The figures of every stored encoder of the records of one profile, untrained networks first.

    Raises:
        ValueError: for a row of which only some encoders are stored, see `record.stored_encoders`.
    """
    rows = rows_of(records)
    stored = {name: stored_encoders(runs) for name, runs in rows.items()}
    found = []
    for name, runs in rows.items():
        about = {"profile": runs[0]["profile"], "row": name, "epochs": runs[0]["config"]["epochs"]}
        for seed, path in stored[name].items():
            found.append({**about, "seed": seed, **unseen_figures(load_encoder(path), test, bank, data)})
            print(f"{about['profile']} / {name}, seed {seed}: structure {found[-1]['structure']:.3f}", flush=True)
    return found


def figures_by_seed(record: dict, profile: str, floor: str = "") -> pd.DataFrame:
    """Figures of one profile's rows by row and seed, as a transfer record holds them.

    Rows of one seed are left out, because one seed says nothing about a spread.

    Args:
        record: see `main`.
        profile: whose rows.
        floor: a profile whose untrained networks stand before them, and pixels after them; none if empty.
    """
    rows = pd.DataFrame(record["rows"])
    several = rows[rows.duplicated(["profile", "row"], keep=False)]
    parts = [several[several["profile"] == profile]]
    if floor:
        parts.insert(0, several[(several["profile"] == floor) & (several["epochs"] == 0)])
        parts.append(rows[rows["profile"].isna()])
    return pd.concat(parts).drop_duplicates(["profile", "row", "seed"]).set_index(["row", "seed"])


def over_baseline(figures: pd.DataFrame, row: str, baseline: str = "vicreg") -> tuple[str, dict[str, list[float]]]:
    """A row minus the baseline's, paired by seed: its title, and the differences in each of the `MEASURES`.

    Args:
        figures: see `figures_by_seed`.
        row: a trained row.
        baseline: a method; see `record.matching_row` for which of its rows.
    """
    other = matching_row(row, baseline, figures.index.get_level_values(0))
    change = (figures.loc[row, list(MEASURES)] - figures.loc[other, list(MEASURES)]).dropna()
    return f"{row} − {other}", {key: list(change[key]) for key in MEASURES}


def transfer_table(figures: pd.DataFrame) -> pd.DataFrame:
    """One line per row: mean ± 95 % t-interval over seeds of each measure, and the number of seeds."""
    by_row = figures.groupby("row", sort=False)
    shown = by_row[list(MEASURES)].agg(lambda values: Summary.over(list(values)).show(False))
    return shown.rename(columns=MEASURES).assign(seeds=by_row.size()).rename_axis("encoder")


def main(
    data: str = "shapes",
    profiles: tuple[str, ...] = ("tuned", "laptop", "gpu-minute"),
    train_set: str = "cifar100",
    bank_size: int = 1024,
    seed: int = 0,
    results: str = "figures/results",
    threads: int = 0,
) -> None:
    """Judge every stored encoder of some profiles on a set that none was trained on, and store the record.

    Args:
        data: the set they are judged on, with a known class tree.
        profiles: whose encoders.
        train_set: that they were trained on.
        bank_size: training images of `data` that kNN takes its labels from.
        seed: of the bank's drawing.
        results: folder of run records; the record is written to transfer/<data>.json in it.
        threads: of torch; 0 leaves its default.
    """
    if threads:
        torch.set_num_threads(threads)
    by_profile = groups(read_records(results))
    test, bank = load_images(data, "test"), drawn_bank(data, bank_size, seed)
    rows = [unseen_rows(by_profile.get((profile, train_set), []), test, bank, data) for profile in profiles]
    pixels = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten())  # 192 numbers an image
    flat = {"profile": None, "row": PIXELS, "epochs": 0, "seed": 0, **unseen_figures(pixels, test, bank, data)}
    about = {"data": data, "train_set": train_set, "bank_size": bank_size, "seed": seed}
    record = {"command": command_line("study transfer"), **about, **provenance()}
    record["rows"] = [*(row for part in rows for row in part), flat]
    write_record(Path(results) / f"transfer/{data}.json", record)
    for profile in profiles:
        print(profile, to_markdown(transfer_table(figures_by_seed(record, profile))), "", sep="\n\n")
