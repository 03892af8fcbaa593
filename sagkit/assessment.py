"""What an assessment shows: one table row, class trees and matrices beside the reference, the trade-off.

Drawn from the figures of `assess` or of its record, and from arrays over classes alone; nothing is computed anew here
but linkages. [K]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from sagkit import plots
from sagkit.markdown import origin, to_markdown
from sagkit.metrics.kinds import class_matrix
from sagkit.metrics.tree import class_tree

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


def scene_of(features: Tensor, labels: Tensor, reference, names: Sequence[str], coarse) -> dict[str, Any]:
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


def table(found: Sequence[Assessment]) -> str:
    """One row per embedding with intervals where there are any, and the verdict, as Markdown."""
    frame = pd.DataFrame([row(one) for one in found], index=pd.Index([one.name for one in found], name="embedding"))
    return to_markdown(frame)


def row(one: Assessment) -> dict[str, str]:
    """The cells of an embedding's row by title, intervals in brackets."""
    return {title: _cell(one.figures, key) for key, title in COLUMNS.items()} | {"against the floor": one.verdict}


def recorded(record: dict) -> list[Assessment]:
    """The assessments of a record of `python -m sagkit.assess`, without scenes."""
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
    return f"{table(recorded(record))}\n\nTest images of {record['data']}; {drawn}; {origin(record)}"


def _cell(figures: dict[str, float], key: str) -> str:
    if key not in figures:
        return SECOND_VIEW if key == "label_free" else "not measured"
    ends = f" [{figures[f'{key}_low']:.3f}, {figures[f'{key}_high']:.3f}]" if f"{key}_low" in figures else ""
    return f"{figures[key]:.3f}{ends}"


def tradeoff(found: Sequence[Assessment]) -> plots.Picture:
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
            if "floor" in f:
                floors.add((f["floor"], f["floor_sd"]))
    if not points:
        raise ValueError("no embedding has both kNN and Spearman: they need labels and a semantic reference")
    return plots.tradeoff(points, floors.pop() if len(floors) == 1 else None)
