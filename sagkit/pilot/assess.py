"""Assess any embedding: one table and one picture for an array, a file of features, a published or a trained network.

    sagkit assess features.npz random:resnet10-w16 pixels --data cifar100 --out runs/assess

    WHAT    x.npz          `features` (N, F) of the test images in order; or of any images, with `labels` (N,) and, for
                           classes of your own, `distances` (C, C); further `bank` (M, F) and `bank_labels` (M,),
                           which kNN and probe may use, and `changed` (N, F') of a changed view of the same images
            a network      a file of weights, timm:NAME, random:NAME, pixels: see `pilot.network`

Figures are those of `evaluate`: `labelled` on the test split with the training split as kNN's bank, `label_free` on
clean against changed images. Of bare features without a bank, kNN and probe classify one half with the other as bank.
Spearman over image pairs is set against a floor: random networks of the same architecture from the run records, else
random projections of the images. Tables and pictures are drawn from these figures and from arrays over classes. [K]
"""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sagkit import require
from sagkit.data.files import read_arrays
from sagkit.data.load import load_bank, load_images, validation_split
from sagkit.metrics.checks import feature_array, label_array, labels_and_distances, words_of
from sagkit.metrics.evaluate import (
    arrangement,
    coarse_of,
    judged,
    label_free,
    local,
    projections,
    random_networks,
    references,
    with_floor,
)
from sagkit.metrics.labelfree import structure_score
from sagkit.metrics.semantic import ENOUGH, class_matrix
from sagkit.metrics.tree import class_tree
from sagkit.model import extract_features
from sagkit.pilot.network import device_of, network
from sagkit.show import plots
from sagkit.show.tables import origin, to_markdown
from sagkit.train.record import command_line, provenance, write_record

GIVEN = ("labels", "distances", "changed", "bank", "bank_labels")  # what may come with features, in an .npz file too
RESAMPLINGS = 1000  # behind intervals, unless told
DEVICE = "auto"
SECOND_VIEW = "needs a second view"
COLUMNS = {
    "spearman_pairs": "Spearman pairs",
    "kendall_pairs": "Kendall pairs",
    "spearman_centroid": "Spearman centroids",
    "tree_dendrogram_purity": "dendrogram purity",
    "knn": "kNN",
    "linear": "linear",
    "superclass_knn": "superclass kNN",
    "label_free": "label-free",
}


class Assessment(NamedTuple):
    """What was found of one embedding.

    name: of the thing assessed.
    figures: every number, fractions and correlations, flat; "floor", "floor_sd" and "floor_n" where there is one.
    verdict: one line on the floor.
    classes: what pictures are drawn from: class tree and class distances of the embedding, reference, names, groups.
    """

    name: str
    figures: dict[str, float]
    verdict: str
    classes: dict[str, Any]

    @property
    def table(self) -> str:
        """One row, as Markdown."""
        return assessment_table([self])

    @property
    def picture(self) -> plots.Picture:
        """The dendrogram of class centroids beside the reference tree."""
        return self._with_reference("trees")

    @property
    def matrices(self) -> plots.Picture:
        """Class distances ordered by the reference tree, coloured by rank."""
        return self._with_reference("matrices")

    def _with_reference(self, what: str) -> plots.Picture:
        s = self.classes
        if s.get("tree") is None:
            raise ValueError(f"{self.name} has no reference of at least three classes: give class distances")
        if what == "trees":
            return plots.trees(s["tree"], s["reference_tree"], s["names"], s["groups"], (self.name, "reference"))
        panels = {"reference": s["reference"], f"{self.name}, centroids": s["matrix"]}
        return plots.class_matrices(panels, s["order"], s["groups"], ranks=True)


def assess(
    what,
    data: str = "cifar100",
    *,
    labels=None,
    distances=None,
    changed=None,
    bank=None,
    bank_labels=None,
    name: str = "",
    probe: bool = True,
    resamplings: int = RESAMPLINGS,
    results: str = "figures/results",
    root: str | None = None,
    seed: int = 0,
    weights: bool = True,
    device: str = DEVICE,
) -> Assessment:
    """Every figure of an embedding, and the verdict on its floor.

    Args:
        what: features (N, F) as array or tensor, or a string as in the list above.
        data: images and semantic reference: a name or path of `data.load_images`.
        labels: (N,) classes of bare features; without them the rows are the test images of `data` in order.
        distances: (C, C) semantic distances of bare features, in place of the reference of `data`.
        changed: (N, F') features of a changed view of the same images, behind the label-free score of bare features.
        bank: (M, F) features of bare features' own kind whose labels kNN and probe may use, such as those of training
            images; without them one half of the rows serves the other.
        bank_labels: (M,) their classes.
        name: of the row; empty for a short form of `what`.
        probe: also fit linear probes, the slowest part.
        resamplings: behind intervals; 0 leaves them out.
        results: folder of run records, for the floor of random networks.
        root: where CIFAR lies.
        seed: of the changed view, of the split of bare features and of random weights.
        weights: load published weights of timm networks; False leaves them random.
        device: that networks run on: "auto", "cpu", "cuda".

    Raises:
        ValueError: in one line, for anything unknown, or numbers of rows that do not fit.
    """
    if isinstance(what, str | Path) and not str(what).endswith(".npz"):
        encoder = network(str(what), seed, weights).to(device_of(device))
        return _of_network(name or _row_title(str(what)), encoder, data, probe, resamplings, results, root, seed)
    given = dict(zip(GIVEN, (labels, distances, changed, bank, bank_labels), strict=True))
    if isinstance(what, str | Path):
        found = read_npz(Path(what))
        name = name or Path(what).stem
        given = {key: found.get(key) if value is None else value for key, value in given.items()}
        what = found["features"]
    x = feature_matrix(what, "features")
    return _of_features(name or "features", x, given, data, probe, resamplings, root, seed)


def _of_network(name, encoder, data, probe, resamplings, results, root, seed) -> Assessment:
    """Of a network: test images of `data`, the training images as bank, random networks as floor."""
    bank, queries = load_bank(data, root=root), load_images(data, "test", root=root)
    figures = label_free(encoder, queries.images, seed, bootstrap=resamplings)
    if queries.labels is None:
        return Assessment(name, figures, "no labels, so no floor", {})
    features, known = extract_features(encoder, queries.images), references(data, queries.class_names)
    banked = extract_features(encoder, bank.images)
    figures |= judged(banked, bank.labels, features, queries, data, probe, resamplings)
    primary = next(iter(known.values()), None)
    scores, of = random_networks(results, data, getattr(encoder, "architecture", None), figures), "random networks"
    if len(scores) < 2 and not isinstance(encoder, nn.Flatten):  # as wide a projection of pixels has pixels' distances
        scores, of = projections(queries, features.shape[1], primary), "random projections"
    figures, said = with_floor(figures, scores, of)
    coarse = coarse_of(data, queries.class_names)
    return Assessment(name, figures, said, class_arrays(features, queries.labels, primary, queries.class_names, coarse))


def _of_features(name, x, given, data, probe, resamplings, root, seed) -> Assessment:
    """Of bare features; where the rows are test images of `data`, random projections of these are the floor."""
    y, classes, known, coarse, queries = _labels_and_reference(x, given["labels"], given["distances"], data, root)
    primary = next(iter(known.values()), None)
    if given["bank"] is None:
        first, second = validation_split(y, 0.5, seed)
        bank, asked = (x[first], y[first]), (x[second], y[second])
    elif given["bank_labels"] is None:
        raise ValueError(f"the bank's {len(given['bank'])} rows have no labels: give bank_labels=, one a row")
    else:
        banked = feature_matrix(given["bank"], "bank")
        names = classes or words_of(given["bank_labels"])
        bank, asked = (
            (banked, torch.from_numpy(label_array(given["bank_labels"], len(banked), "bank_labels", names))),
            (x, y),
        )
    # Severity of mistakes is judged by the reference of `data` and from a bank of its own, not from half the rows.
    apart = bank if given["bank"] is not None and given["distances"] is None else ()
    figures = local(*bank, *asked, coarse, probe) | arrangement(x, y, known, coarse, resamplings, *apart)
    figures |= _label_free_of_views(x, given["changed"], resamplings, seed)
    scores = projections(queries, x.shape[1], primary) if queries is not None else []
    figures, said = with_floor(figures, scores, "random projections")
    return Assessment(name, figures, said, class_arrays(x, y, primary, classes, coarse))


def _labels_and_reference(x: Tensor, labels, distances, data: str, root):
    """Labels, class names, references, superclasses, and the test images if rows are theirs, of bare features."""
    queries = None
    if labels is None:
        queries = load_images(data, "test", root=root)
        if queries.labels is None or len(queries) != len(x):
            told = "has no labels" if queries.labels is None else f"has {len(queries)} test images for {len(x)} rows"
            raise ValueError(f"{data} {told}: give labels=, one a row")
        labels = queries.labels
    if distances is not None:
        codes, reference, names = labels_and_distances(labels, distances, len(x))
        return torch.from_numpy(codes), names or (), {"given": reference}, None, None
    classes = (queries or load_images(data, "test", root=root)).class_names
    y = torch.from_numpy(label_array(labels, len(x), among=classes))
    if int(y.max()) >= len(classes):
        found = f"{int(y.min())}..{int(y.max())}"
        raise ValueError(f"labels {found} are not those of {data} with {len(classes)} classes: give distances=")
    return y, classes, references(data, classes), coarse_of(data, classes), queries


def _label_free_of_views(x: Tensor, changed, resamplings: int, seed: int) -> dict[str, float]:
    """The label-free score of features and those of a changed view, with its interval; empty without the view."""
    if changed is None:
        return {}
    found = structure_score(x, changed, bootstrap=resamplings, seed=seed)
    drawn = {"label_free_low": found.low, "label_free_high": found.high} if resamplings else {}
    return {"label_free": found.score} | drawn


def feature_matrix(given, name: str) -> Tensor:
    """Anything that holds features as float32 (N, F) on the CPU.

    Raises:
        ValueError: as `checks.feature_array`.
    """
    return torch.from_numpy(feature_array(given, name, np.float32))


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an .npz file that holds `features`.

    Raises:
        ValueError: for a file that cannot be read or has no features.
    """
    found = read_arrays(path)
    if "features" not in found:
        taken = f"it takes features, and {', '.join(GIVEN)} where there are any"
        raise ValueError(f"{path} has no array 'features' but {', '.join(found) or 'none'}: {taken}")
    return found


def class_arrays(features: Tensor, labels: Tensor, reference, names: Sequence[str], coarse) -> dict[str, Any]:
    """Trees and matrices over the classes that occur, for the pictures; empty without a reference of three classes.

    Args:
        features: (N, F).
        labels: (N,).
        reference: (C, C) semantic distances, or None.
        names: of the C classes; numbers stand for them where it is empty.
        coarse: (C,) superclasses, or None.
    """
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    seen = np.unique(labels.numpy())
    if reference is None or len(seen) < 3:
        return {}
    part = np.asarray(reference)[np.ix_(seen, seen)]
    groups = np.zeros(len(seen), int) if coarse is None else coarse.numpy()[seen]
    x, y = features.numpy().astype(np.float64), labels.numpy()
    above = linkage(squareform(part - np.diag(np.diag(part)), checks=False), "average")
    return {
        "tree": class_tree(x, y),
        "reference_tree": above,
        "reference": part,
        "matrix": class_matrix(x, y, "centroid"),
        "order": dendrogram(above, no_plot=True)["leaves"],
        "names": [names[i] if names else str(i) for i in seen],
        "groups": groups.tolist(),
    }


def assessment_table(found: Sequence[Assessment]) -> str:
    """One row per embedding with intervals where there are any, and the verdict, as Markdown."""
    frame = pd.DataFrame([row(one) for one in found], index=pd.Index([one.name for one in found], name="embedding"))
    return to_markdown(frame)


def row(one: Assessment) -> dict[str, str]:
    """The cells of an embedding's row by title, intervals in brackets."""
    return {title: _cell(one.figures, key) for key, title in COLUMNS.items()} | {"against the floor": one.verdict}


def _cell(figures: dict[str, float], key: str) -> str:
    if key not in figures:
        return SECOND_VIEW if key == "label_free" else "not measured"
    ends = f" [{figures[f'{key}_low']:.3f}, {figures[f'{key}_high']:.3f}]" if f"{key}_low" in figures else ""
    return f"{figures[key]:.3f}{ends}"


def draw_tradeoff(found: Sequence[Assessment]) -> plots.Picture:
    """Local accuracy against global structure of several embeddings, with the floor where all that have one share it.

    Raises:
        ValueError: if none has both figures.
    """
    points, floors = {}, set()
    for one in found:
        f = one.figures
        if "knn" in f and "spearman_pairs" in f:
            points[one.name] = {"x": f["knn"], "y": f["spearman_pairs"]}
            points[one.name] |= {
                f"y_{e}": f[f"spearman_pairs_{e}"] for e in ("low", "high") if f"spearman_pairs_{e}" in f
            }
            if "floor" in f and f.get("floor_n", ENOUGH) >= ENOUGH:  # a band of 2 sd; records of old had 10 or more
                floors.add((f["floor"], f["floor_sd"]))
    if not points:
        raise ValueError("no embedding has both kNN and Spearman: they need labels and a semantic reference")
    return plots.tradeoff(points, floors.pop() if len(floors) == 1 else None)


def recorded(record: dict) -> list[Assessment]:
    """The assessments of a record of `sagkit assess`, without the arrays of pictures."""
    known = [{key: value for key, value in row["metrics"].items() if value is not None} for row in record["rows"]]
    return [Assessment(row["name"], f, row["verdict"], {}) for row, f in zip(record["rows"], known, strict=True)]


def summary(record: dict) -> str:
    """The table of a record with its caption, as Markdown."""
    drawn = (
        f"brackets are 95 % intervals over {record['resamplings']:,} resamplings, of classes, and of images for "
        "label-free; they speak of these networks and not of other seeds"
        if record["resamplings"]
        else "no intervals were asked for"
    )
    return f"{assessment_table(recorded(record))}\n\nTest images of {record['data']}; {drawn}; {origin(record)}"


def main(
    what: tuple[str, ...],
    /,
    data: str = "cifar100",
    out: str = "runs/assess",
    results: str = "figures/results",
    probe: bool = True,
    resamplings: int = RESAMPLINGS,
    seed: int = 0,
    threads: int = 0,
    device: str = DEVICE,
) -> None:
    """Assess embeddings: one record OUT/DATA.json, one table of it, and pictures of each in OUT/DATA.

    Args:
        what: an .npz file with the array features and perhaps labels, distances, changed, bank, bank_labels; a file of
            weights; timm:NAME, random:NAME or pixels. Several may be given.
        data: images and semantic reference.
        out: folder of records and pictures.
        results: folder of run records, for the floor.
        probe: also fit linear probes.
        resamplings: behind intervals.
        seed: of views and random weights.
        threads: of torch; 0 leaves its default.
        device: that networks run on: auto (a GPU where there is one), cpu, cuda.
    """
    require("threads", threads, "[0, 1024]", "0 leaves torch's default", whole=True)
    if threads:
        torch.set_num_threads(threads)
    if not what:
        raise ArgumentTypeError("nothing to assess: give pixels, timm:NAME, random:NAME, .npz or a file of weights")
    command = command_line("assess")
    record = {"command": command, "data": data, "seed": seed, "resamplings": resamplings, **provenance()}
    folder, found, rows = Path(out) / Path(data).stem, [], []
    for number, one in enumerate(what, start=1):
        print(f"{number} of {len(what)}: {one} ...", file=sys.stderr, flush=True)  # the table alone goes to the output
        given = assess(one, data, probe=probe, resamplings=resamplings, results=results, seed=seed, device=device)
        found.append(given)
        figures = {key: round(float(v), 5) if np.isfinite(v) else None for key, v in given.figures.items()}
        rows.append({"what": one, "name": given.name, "verdict": given.verdict, "metrics": figures})
        write_record(folder.with_name(f"{folder.name}.json"), record | {"rows": rows})  # what is done is kept
        if given.classes:
            plots.save(given.picture, folder / f"{file_name(one)}-trees")
            plots.save(given.matrices, folder / f"{file_name(one)}-matrices")
    if any("spearman_pairs" in one.figures and "knn" in one.figures for one in found):
        plots.save(draw_tradeoff(found), folder / "tradeoff")
    print(assessment_table(found))
    pictures = f", pictures in {folder}" if folder.is_dir() else ""
    print(f"record: {folder.with_name(f'{folder.name}.json')}{pictures}", file=sys.stderr)


def _row_title(what: str) -> str:
    """Name of a row: of a file its folder's folder (the profile, of a run record) and its own name."""
    return "/".join([*Path(what).parts[-3:-2], Path(what).stem]) if what.endswith(".safetensors") else what


def file_name(what: str) -> str:
    """A file name for a thing: its path without suffix and folders' separators."""
    return str(what).removesuffix(".npz").removesuffix(".safetensors").strip("./").replace("/", "_").replace(":", "_")
