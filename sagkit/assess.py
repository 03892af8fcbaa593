"""Assess any embedding: one table and one picture for an array, a file of features, a published or a trained network.

    python -m sagkit.assess WHAT [WHAT ...] --data cifar100 --out figures/results/assess

    WHAT    x.npz          features (N, F) of the test images in order; or of any images, with `labels` (N,) and,
                           for classes of your own, `distances` (C, C); with `changed` (N, F') of a changed view
            x.safetensors  one of our encoders
            timm:NAME      a published network with its weights
            random:NAME    a network with random weights ("random:resnet10-w16")
            pixels         the images themselves

Figures are those of `evaluate`: `labelled` on the test split with the training split as kNN's bank, `label_free` on
clean against changed images. Of bare features one half is the other's bank, class by class, because there is no other.
Spearman over image pairs is set against a floor: random networks of the same architecture from the run records, else
random projections of the images. [K]
"""

from __future__ import annotations

import json
import math
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sagkit import plots
from sagkit.data import ImageSet, load_bank, load_images, validation_split
from sagkit.evaluate import coarse_of, evaluate, labelled, references, structure
from sagkit.markdown import to_markdown
from sagkit.metrics.compare import random_floor, verdict
from sagkit.metrics.kinds import class_matrix
from sagkit.metrics.labelfree import structure_score
from sagkit.metrics.local import knn_accuracy, linear_probe
from sagkit.metrics.semantic import RankCorrelation
from sagkit.metrics.tree import class_tree, hierarchy_figures
from sagkit.model import extract_features, make_encoder
from sagkit.record import load_encoder, provenance, write_record

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
    figures: every number, fractions and correlations, flat; "floor" and "floor_sd" where there is a floor.
    verdict: one line on the floor.
    scene: what pictures are drawn from: class tree and class distances of the embedding, reference, names, groups.
    """

    name: str
    figures: dict[str, float]
    verdict: str
    scene: dict[str, Any]

    @property
    def table(self) -> str:
        """One row, as Markdown."""
        return table([self])

    @property
    def picture(self) -> plots.Picture:
        """The dendrogram of class centroids beside the reference tree."""
        return self._with_reference("trees")

    @property
    def matrices(self) -> plots.Picture:
        """Class distances ordered by the reference tree, coloured by rank."""
        return self._with_reference("matrices")

    def _with_reference(self, what: str) -> plots.Picture:
        s = self.scene
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
    name: str = "",
    probe: bool = True,
    resamplings: int = 1000,
    results: str = "figures/results",
    root: str | None = None,
    seed: int = 0,
    weights: bool = True,
) -> Assessment:
    """Every figure of an embedding, with the verdict against its floor.

    Args:
        what: features (N, F) as array or tensor, or a string as in the module's table.
        data: images and semantic reference: a name or path of `data.load_images`.
        labels: (N,) classes of bare features; without them the rows are the test images of `data` in order.
        distances: (C, C) semantic distances of bare features, in place of the reference of `data`.
        changed: (N, F') features of a changed view of the same images, behind the label-free score of bare features.
        name: of the row; empty for `what` itself.
        probe: also fit linear probes, the slowest part.
        resamplings: behind intervals; 0 leaves them out.
        results: folder of run records, for the floor of random networks.
        root: where CIFAR lies.
        seed: of the changed view, of the split of bare features and of random weights.
        weights: load published weights of timm networks; False leaves them random.

    Raises:
        ValueError: in one line, for anything unknown, or numbers of rows that do not fit.
    """
    if isinstance(what, str | Path) and not str(what).endswith(".npz"):
        encoder, architecture = _network(str(what), seed, weights)
        return _of_network(name or str(what), encoder, architecture, data, probe, resamplings, results, root, seed)
    if isinstance(what, str | Path):
        found = _stored(Path(what))
        name = name or Path(what).stem
        given = {"labels": labels, "distances": distances, "changed": changed}
        labels, distances, changed = (found.get(key) if value is None else value for key, value in given.items())
        what = found["features"]
    x = torch.as_tensor(np.asarray(what, dtype=np.float32))
    if x.ndim != 2:
        raise ValueError(f"features must be (N, F), got {tuple(x.shape)}: flatten each image's features")
    return _of_features(name or "features", x, labels, distances, changed, data, probe, resamplings, root, seed)


def _network(what: str, seed: int, weights: bool) -> tuple[nn.Module, str | None]:
    """Network and the name of our architecture, if it is one."""
    if what == "pixels":
        return nn.Flatten(), None
    if what.startswith("timm:"):
        return make_encoder(what, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), pretrained=weights), None
    if what.startswith("random:"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make_encoder(what.removeprefix("random:")), what.removeprefix("random:")
    if what.endswith(".safetensors"):
        if not Path(what).is_file():
            raise ValueError(f"{what} does not exist: check the path ({Path(what).absolute()})")
        from sagkit.checkpoint import load_state

        return load_encoder(what), load_state(what)["name"]
    raise ValueError(
        f"cannot assess {what!r}: give pixels, timm:NAME, random:NAME, or the path of an .npz or .safetensors file"
    )


def _stored(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as .npz ({error}): write it with numpy.savez, no objects") from None
    if "features" not in found:
        raise ValueError(f"{path} has no array 'features' but {', '.join(found) or 'none'}: numpy.savez(features=...)")
    return found


def _of_network(name, encoder, architecture, data, probe, resamplings, results, root, seed) -> Assessment:
    bank, queries = load_bank(data, root=root), load_images(data, "test", root=root)
    figures = evaluate(encoder, bank, queries, data, probe, seed, resamplings)
    if queries.labels is None:
        return Assessment(name, figures, "no labels, so no floor", {})
    features, known = extract_features(encoder, queries.images), references(data, queries.class_names)
    primary = next(iter(known.values()), None)
    scores, of = _random_networks(results, data, architecture, figures), "random networks"
    if len(scores) < 2:
        scores, of = _projections(queries, features.shape[1], primary), "random projections"
    figures, said = _floor(figures, scores, of)
    return Assessment(name, figures, said, _scene(features, queries.labels, primary, queries.class_names, data))


def _of_features(name, x, labels, distances, changed, data, probe, resamplings, root, seed) -> Assessment:
    queries = load_images(data, "test", root=root) if labels is None else None
    if queries is not None and (queries.labels is None or len(queries) != len(x)):
        told = "has no labels" if queries.labels is None else f"has {len(queries)} test images for {len(x)} rows"
        raise ValueError(f"{data} {told}: give labels=, one a row")
    y = queries.labels if labels is None else torch.as_tensor(np.asarray(labels)).long()
    if y.shape != x.shape[:1]:
        raise ValueError(f"one label a row: {len(x)} rows of features and labels {tuple(y.shape)}")
    classes = queries.class_names if queries is not None else ()
    if labels is not None and distances is None:
        classes = load_images(data, "test", root=root).class_names
        if not len(classes) > int(y.max()):
            raise ValueError(f"labels reach {int(y.max())} and {data} has {len(classes)} classes: give distances=")
    first, second = validation_split(y, 0.5, seed)
    halves = (x[first], y[first], x[second], y[second])
    if distances is None:
        figures, known = labelled(*halves, data, classes, probe, 0), references(data, classes)
        coarse = coarse_of(data, classes)
    else:
        known, coarse = {"given": np.asarray(distances, dtype=float)}, None
        figures = {"knn": knn_accuracy(*halves)} | ({"linear": linear_probe(*halves)} if probe else {})
    primary = next(iter(known.values()), None)
    figures |= structure(x, y, known, resamplings)  # of all rows: only kNN and the probes need two halves
    if primary is not None and y.unique().numel() > 2:
        group = None if coarse is None else coarse.numpy()
        figures |= {f"tree_{key}": v for key, v in hierarchy_figures(x, y, primary, group).items()}
    figures |= _second_view(x, changed, resamplings, seed)
    scores = _projections(queries, x.shape[1], primary) if queries is not None else []
    figures, said = _floor(figures, scores, "random projections")
    return Assessment(name, figures, said, _scene(x, y, primary, classes, data, coarse))


def _second_view(x: Tensor, changed, resamplings: int, seed: int) -> dict[str, float]:
    if changed is None:
        return {}
    found = structure_score(x, changed, bootstrap=resamplings, seed=seed)
    drawn = {"label_free_low": found.low, "label_free_high": found.high} if resamplings else {}
    return {"label_free": found.score} | drawn


def _random_networks(results, data: str, architecture: str | None, figures) -> list[float]:
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


def _projections(images: ImageSet, width: int, reference, n: int = 2000) -> list[float]:
    """Spearman of random projections of up to n images, drawn at random."""
    if reference is None:
        return []
    few = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:n]
    return random_floor(images.images[few].numpy() / 255, images.labels[few].numpy(), reference, width).tolist()


def _floor(figures: dict[str, float], scores: Sequence[float], of: str) -> tuple[dict[str, float], str]:
    if "spearman_pairs" not in figures or len(scores) < 2:
        return figures, "no floor: it needs a semantic reference, and images or labels in the order of the data set"
    mean, sd = float(np.mean(scores)), float(np.std(scores, ddof=1))
    against = RankCorrelation(figures["spearman_pairs"], 0.0, floor=mean, floor_sd=sd, floor_n=len(scores))
    return figures | {"floor": mean, "floor_sd": sd}, verdict(against, of)


def _scene(features: Tensor, labels: Tensor, reference, names, data: str, coarse=None) -> dict[str, Any]:
    """Trees and matrices over the classes that occur."""
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    seen = np.unique(labels.numpy())
    if reference is None or len(seen) < 3:
        return {}
    part = np.asarray(reference)[np.ix_(seen, seen)]
    coarse = coarse_of(data, names) if coarse is None and names else coarse
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


def table(found: Sequence[Assessment]) -> str:
    """One row per embedding with intervals where there are any, and the verdict, as Markdown."""
    shown = {}
    for one in found:
        cells = {title: _cell(one.figures, key) for key, title in COLUMNS.items()}
        shown[one.name] = cells | {"against the floor": one.verdict}
    return to_markdown(pd.DataFrame.from_dict(shown, orient="index").rename_axis("embedding"))


def _cell(figures: dict[str, float], key: str) -> str:
    if key not in figures:
        return SECOND_VIEW if key == "label_free" else "not measured"
    ends = f" [{figures[f'{key}_low']:.3f}, {figures[f'{key}_high']:.3f}]" if f"{key}_low" in figures else ""
    return f"{figures[key]:.3f}{ends}"


def tradeoff(found: Sequence[Assessment]) -> plots.Picture:
    """Local accuracy against global structure of several embeddings, with the floor where all have the same.

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
            floors.add((f.get("floor", math.nan), f.get("floor_sd", math.nan)))
    if not points:
        raise ValueError("no embedding has both kNN and Spearman: they need labels and a semantic reference")
    (floor,) = floors if len(floors) == 1 else (None,)
    return plots.tradeoff(points, None if floor is None or math.isnan(floor[0]) else floor)


def main(
    what: tuple[str, ...],
    /,
    data: str = "cifar100",
    out: str = "figures/results/assess",
    results: str = "figures/results",
    probe: bool = True,
    resamplings: int = 1000,
    seed: int = 0,
    threads: int = 0,
) -> None:
    """Assess embeddings: a record and pictures of each under OUT, and one table of all.

    Args:
        what: .npz, .safetensors, timm:NAME, random:NAME or pixels; several may be given.
        data: images and semantic reference.
        out: folder of records and pictures.
        results: folder of run records, for the floor.
        probe: also fit linear probes.
        resamplings: behind intervals.
        seed: of views and random weights.
        threads: of torch; 0 leaves its default.
    """
    if threads:
        torch.set_num_threads(threads)
    if not what:
        raise SystemExit("sagkit.assess: nothing to assess: give pixels, timm:NAME, random:NAME, .npz or .safetensors")
    command = " ".join(["python -m sagkit.assess", *sys.argv[1:]])
    found = []
    for one in what:
        try:
            given = assess(one, data, probe=probe, resamplings=resamplings, results=results, seed=seed)
        except ValueError as error:
            raise SystemExit(f"sagkit.assess: {error}") from None
        found.append(given)
        path = Path(out) / Path(data).stem / f"{file_name(one)}.json"
        figures = {key: round(float(v), 5) if np.isfinite(v) else None for key, v in given.figures.items()}
        record = {"what": one, "data": data, "seed": seed, "command": command, **provenance()}
        write_record(path, record | {"verdict": given.verdict, "metrics": figures})
        if given.scene:
            plots.save(given.picture, path.with_name(f"{path.stem}-trees"))
            plots.save(given.matrices, path.with_name(f"{path.stem}-matrices"))
    if any("spearman_pairs" in one.figures and "knn" in one.figures for one in found):
        plots.save(tradeoff(found), Path(out) / Path(data).stem / "tradeoff")
    print(table(found))


def file_name(what: str) -> str:
    """A file name for a thing: its path without suffix and folders' separators."""
    return str(what).removesuffix(".npz").removesuffix(".safetensors").strip("./").replace("/", "_").replace(":", "_")


if __name__ == "__main__":
    import tyro

    tyro.cli(main, prog="python -m sagkit.assess")
