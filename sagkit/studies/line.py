"""A production line in CIFAR-100: four superclasses are what it makes, images of a fifth are anomalies.

    bank      training images of the four, 200 of each class;   queries  their test images and the fifth's
    AUROC     of k-th neighbour, Mahalanobis and walk scores, the fifth's images being the anomalies; 0.5 is chance
    search    share of a query's ten nearest of the bank with its class (chance 0.05) or superclass (chance 0.25)

    sagkit study line --threads 1           the table, figures/results/line/cifar100.json

Source: [K] all of it. Twenty draws of (four, fifth), so that the figure does not hang on one choice: over a random
order of the superclasses that a seed fixes, each is the fifth once and among the four four times. The stored encoders
were trained, without labels, on images of all 100 classes, those of the anomalies among them: no test of objects never
seen in training.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sagkit.data.load import ImageSet, load_images
from sagkit.data.taxonomy import superclasses
from sagkit.metrics.local import Index
from sagkit.metrics.stats import Summary
from sagkit.model import extract_features
from sagkit.pilot.anomaly import SCORES, auroc
from sagkit.show.tables import origin, to_markdown
from sagkit.train.record import command_line, load_encoder, provenance, read_records, stored_encoders, write_record

FOUND = 10  # items of a search
FIGURES = {
    "auroc_neighbours": "AUROC neighbours",
    "auroc_Mahalanobis": "AUROC Mahalanobis",
    "auroc_walks": "AUROC walks",
    "precision_class": "precision@10 class",
    "precision_superclass": "precision@10 superclass",
}
RUN = ("neighbours", "Mahalanobis", "walks")  # of anomaly.SCORES
TITLES = {
    "raw-pixels": "raw pixels",
    "vicreg-random": "untrained network",
    "vicreg": "VICReg",
    "sag-vicreg": "SAG-VICReg",
}


class Line(NamedTuple):
    """Superclasses, by number: what a line makes, and its anomalies."""

    usual: tuple[int, ...]
    odd: int


def lines(n: int = 20, of: int = 20, makes: int = 4, seed: int = 0) -> list[Line]:
    """n draws over a random order of the superclasses: each is the odd one once before any is twice.

    Args:
        n: draws, 1 to `of`.
        of: superclasses there are.
        makes: superclasses of a line, at most of - 1.
        seed: of the order.

    Raises:
        ValueError: for n or makes out of range.
    """
    if not 1 <= n <= of or not 1 <= makes < of:
        raise ValueError(f"{n} lines of {makes} superclasses: choose 1 to {of} lines of 1 to {of - 1}")
    order = torch.randperm(of, generator=torch.Generator().manual_seed(seed)).tolist()
    return [Line(tuple(sorted(order[(i + j) % of] for j in range(1, makes + 1))), order[i]) for i in range(n)]


class Judged(NamedTuple):
    """Features with the class and superclass of each row."""

    features: Float[Tensor, "N F"]
    labels: Int[Tensor, " N"]
    group: Int[Tensor, " N"]

    def of(self, groups) -> Judged:
        """The rows of some superclasses."""
        return Judged(*(part[torch.isin(self.group, torch.tensor(groups))] for part in self))


def line_figures(bank: Judged, queries: Judged, line: Line, scores=RUN) -> dict[str, float]:
    """AUROC by score, and precision of the search, of one line.

    Args:
        bank: of all superclasses; those of the line are used.
        queries: of all superclasses; those of the line and the odd one are used.
        line: the draw.
        scores: which of `anomaly.SCORES`.
    """
    bank, usual, odd = bank.of(line.usual), queries.of(line.usual), queries.of([line.odd])
    asked = torch.cat([usual.features, odd.features])
    anomalous = torch.arange(len(asked)) >= len(usual.features)
    figures = {f"auroc_{name}": auroc(SCORES[name](bank.features, asked), anomalous) for name in scores}
    found = Index(bank.features).search(usual.features, FOUND)[1]  # (queries, FOUND)
    for name, of, own in (("class", bank.labels, usual.labels), ("superclass", bank.group, usual.group)):
        figures[f"precision_{name}"] = float((of[found] == own[:, None]).float().mean())
    return figures


def judge_lines(encoder: nn.Module, train: ImageSet, test: ImageSet, drawn: list[Line], scores=RUN) -> list[dict]:
    """Figures of an encoder on each line."""
    group = torch.as_tensor(superclasses("cifar100", test.class_names)[1])
    bank, queries = (Judged(extract_features(encoder, s.images), s.labels, group[s.labels]) for s in (train, test))
    return [{k: round(v, 5) for k, v in line_figures(bank, queries, line, scores).items()} for line in drawn]


def means(record: dict) -> dict[str, dict[int, dict[str, float]]]:
    """Mean over lines of each figure, by embedding and seed."""
    runs: dict = defaultdict(dict)
    for row in record["rows"]:
        figures = row["lines"]
        runs[row["encoder"]][row["seed"]] = {key: np.mean([of[key] for of in figures]) for key in figures[0]}
    return runs


def line_table(record: dict) -> pd.DataFrame:
    """Mean over lines, then mean and 95 % interval over seeds; last, SAG-VICReg minus VICReg by seed. Text cells."""
    runs, shown = means(record), {}
    for name in (*TITLES, *sorted(runs.keys() - TITLES.keys())):
        cells = {"seeds": str(len(runs[name]))} if name in runs else {}
        for key, title in FIGURES.items() if name in runs else ():
            values = [figures[key] for figures in runs[name].values() if key in figures]
            cells[title] = Summary.over(values).show(percent=False) if values else "not run"
        if cells:
            shown[TITLES.get(name, name)] = cells
    both = sorted(runs["vicreg"].keys() & runs["sag-vicreg"].keys())
    if both:
        change = {k: [runs["sag-vicreg"][s][k] - runs["vicreg"][s][k] for s in both] for k in FIGURES}
        cells = {title: Summary.over(change[key]).show(False, signed=True) for key, title in FIGURES.items()}
        shown["SAG-VICReg − VICReg, by seed"] = {"seeds": str(len(both)), **cells}
    return pd.DataFrame.from_dict(shown, orient="index").rename_axis("embedding")


def summary(record: dict) -> str:
    """The table with what it is and is not, as Markdown."""
    return (
        f"{to_markdown(line_table(record))}\n\n"
        f"four superclasses of CIFAR-100 as a line (bank: {record['per_class']} training images of each class), test "
        f"images of a fifth as anomalies; mean over {len(record['drawn'])} draws of (four, fifth); ± is a 95 % "
        "t-interval over seeds, for these images and draws, of each column alone (of several that are looked at, one "
        "may exclude zero by luck); chance is 0.5, and 0.05 and 0.25 for the search. The encoders were trained without "
        "labels on all 100 classes, the anomalies among them. Mahalanobis is not run on 3,072 pixels. "
        f"{origin(record)}"
    )


def first_of_each(images: ImageSet, n: int) -> ImageSet:
    """The first n images of each class.

    Raises:
        ValueError: for n below 1.
    """
    if n < 1:
        raise ValueError(f"a bank needs at least 1 image of each class, got {n}")
    rows = [(images.labels == label).nonzero().flatten()[:n] for label in range(len(images.class_names))]
    return images.subset(torch.cat(rows).sort().values)


def encoders(results: str, names: tuple[str, ...]) -> dict[tuple[str, int], Path | None]:
    """Stored encoders beside the run records of a folder, by name and seed, in the order of the names.

    Args:
        results: folder of run records.
        names: method, or method-variant; "raw-pixels" has no encoder.

    Raises:
        ValueError: for a row of which only some encoders are stored, see `record.stored_encoders`.
    """
    runs = defaultdict(list)
    for record in read_records(results):
        runs[Path(record["path"]).stem.removesuffix(f"-seed{record['seed']}")].append(record)
    found = {name: {0: None} if name == "raw-pixels" else stored_encoders(runs[name]) for name in names}
    return {(name, seed): path for name, paths in found.items() for seed, path in paths.items()}


def main(
    results: str = "figures/results/laptop/cifar100",
    out: str = "figures/results/line/cifar100.json",
    names: tuple[str, ...] = ("vicreg", "sag-vicreg", "raw-pixels", "vicreg-random"),
    draws: int = 20,
    per_class: int = 200,
    seed: int = 0,
    threads: int = 0,
) -> None:
    """Judge stored encoders on a line of parts with anomalies; the same command goes on where it stopped.

    Args:
        results: folder of run records with stored encoders.
        out: the record, written after each encoder; rows in it of the same results, bank, draws and commit are kept.
        names: which embeddings: method, method-variant, or raw-pixels.
        draws: of (four superclasses, a fifth), 1 to 20.
        per_class: training images of each class that make the bank, the first ones, 1 to 500.
        seed: of the draws.
        threads: of torch; 0 leaves its default.
    """
    if threads:
        torch.set_num_threads(threads)
    drawn = lines(draws, seed=seed)
    train, test = first_of_each(load_images("cifar100", "train"), per_class), load_images("cifar100", "test")
    now, stored = provenance(), encoders(results, names)
    if absent := [name for name in names if name not in {of for of, _ in stored}]:
        print(f"no stored encoder of {', '.join(absent)} in {results}: left out")
    settings = {"data": "cifar100", "seed": seed, "per_class": per_class, "commit": now["commit"], "results": results}
    settings["drawn"] = [[list(line.usual), line.odd] for line in drawn]
    before = json.loads(Path(out).read_text()) if Path(out).exists() else {}
    rows = before["rows"] if all(before.get(key) == value for key, value in settings.items()) else []
    for (name, of), path in stored.items():
        if (name, of) in {(row["encoder"], row["seed"]) for row in rows}:
            continue
        scores = RUN if path else ("neighbours", "walks")  # no covariance of 3,072 pixels
        found = judge_lines(load_encoder(path) if path else nn.Flatten(), train, test, drawn, scores)
        rows.append({"encoder": name, "seed": of, "lines": found})
        write_record(Path(out), {"command": command_line("study line"), **settings, **now, "rows": rows})
        means = ", ".join(f"{key} {np.mean([figures[key] for figures in found]):.3f}" for key in found[0])
        print(f"{name} seed {of}: {means}", flush=True)
    print(to_markdown(line_table({"rows": rows})))
