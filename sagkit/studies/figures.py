"""The pictures of README and of the results, and further ones for a talk, written by one command in one style.

    sagkit study figures                             README's and the results', as PNG, into figures/talk
    sagkit study figures --talk --out runs/figures   all, as SVG, too

Images are emoji, features the first 32 principal components of their pixels, so that the command needs neither a
download nor a training; the tree is that of the procedural `shapes`. Figures about CIFAR-100 are read from the
committed records. Each file keeps the digest of what it shows (`content`), by which a test holds the committed ones to
the committed records. [K]
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import torch
from matplotlib.text import Text
from sklearn.decomposition import PCA

from sagkit.augment import Augmentation, two_views
from sagkit.data.emoji import ATTRIBUTION
from sagkit.data.load import load_images
from sagkit.data.taxonomy import tree_distances
from sagkit.graph import similarity_graph
from sagkit.metrics.stats import Summary
from sagkit.show import plots, scenes
from sagkit.studies import kinds_validity
from sagkit.train.record import groups, is_control, pairs_by_seed, read_records
from sagkit.walk import weighted_walk


def content(picture: plots.Picture) -> str:
    """Digest of the words and the numbers that a picture shows, to four digits, wherever a label or an axis lies."""
    shown = [text.get_text() for text in picture.findobj(Text) if text.get_text() and not _is_tick(text)]
    for axis in picture.axes:
        shown += [_written(line.get_xydata()) for line in axis.lines]
        shown += [_written(points.get_offsets()) for points in axis.collections]
        shown += [_written(bar.get_xy()) for bar in axis.patches if hasattr(bar, "get_width")]
    return hashlib.sha256("\n".join(sorted(shown)).encode()).hexdigest()[:16]


def _written(numbers) -> str:
    return " ".join(f"{value:.4g}" for value in np.asarray(numbers, dtype=float).ravel())


def _is_tick(text: Text) -> bool:
    """Whether matplotlib chose a text itself, as it does the numbers along an axis."""
    return re.fullmatch(r"[−+-]?[\d.]+", text.get_text()) is not None


def pixel_scene(images: int = 512, seed: int = 0) -> scenes.Scene:
    """One batch of emoji with principal components as features."""
    emoji = load_images("emoji", size=64)
    batch = emoji.subset(torch.randperm(len(emoji), generator=torch.Generator().manual_seed(seed))[:images])
    flat = batch.images.flatten(1).numpy() / 255.0
    features = torch.as_tensor(PCA(32, random_state=seed).fit_transform(flat), dtype=torch.float32)
    return scenes.make_scene(batch.images, batch.labels, batch.class_names, features, seed=seed)


def method_picture(scene: scenes.Scene, nodes: int = 30, k: int = 4, length: int = 3, seed: int = 2) -> plots.Picture:
    """The method diagram from the first images of a scene: the pairs are those that the walks of this seed find."""
    images = scene.images[:nodes]
    graph = similarity_graph(scene.features[:nodes], k)
    generator = torch.Generator().manual_seed(seed)
    paths, weight, _ = weighted_walk(graph, torch.arange(nodes), length, generator=generator)
    visited = torch.tensor([len(set(path)) for path in paths.tolist()])
    order = (visited * 10 + weight).argsort(descending=True)[:4].tolist()  # the walks that show most, surest first
    pairs = [(int(paths[i, 0]), int(paths[i, -1]), float(weight[i])) for i in order]
    a, b = two_views(images, Augmentation(size=64), generator)
    drawn = graph.to_networkx()
    figure = plots.method_diagram(images, a, b, drawn, plots.graph_layout(drawn), paths[order[0]].tolist(), pairs)
    return plots.credited(figure, ATTRIBUTION)


def shapes_tree() -> plots.Picture:
    """The known tree of the 27 classes of shapes, cut into its three families."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    names = load_images("shapes", "test").class_names
    tree = linkage(squareform(tree_distances(names)), "average")
    return plots.dendrogram(tree, names, 3, "The tree behind the 27 classes of shapes")


def purity_picture(results: Path) -> plots.Picture | None:
    """Superclass purity on CIFAR-100 by walk length, from the committed record; None where there is none."""
    path = results / "purity/cifar100.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    lines: dict[str, tuple[list, list]] = {}
    for row in record["rows"]:
        if row["kernel"] == "cosine" and row["k"] == 10 and row["confident"] == 1:
            x, y = lines.setdefault(row["scope"], ([], []))
            x.append(row["length"])
            y.append(row["same_superclass"])
    lines["chance"] = ([1, 8], [record["chance"]["dataset"][1]] * 2)
    return plots.curves(lines, "walk length L", "superclass purity, CIFAR-100")


def gain_and_price(records: list[dict], baseline: str = "vicreg") -> plots.Picture | None:
    """What each trained row gains over the baseline in Spearman over image pairs, against what it costs in kNN.

    Args:
        records: of one profile and training set; means over seeds, with 95 % intervals from three seeds on.
        baseline: a method; see `record.pairs_by_seed`.
    """
    points = {baseline: {"x": 0.0, "y": 0.0}}
    for name, pairs in pairs_by_seed(records, baseline).items():
        point = {}
        for axis, key, scale in (("x", "knn", 100), ("y", "spearman_pairs", 1)):
            over = Summary.over([scale * (ours[key] - theirs[key]) for ours, theirs in pairs])
            point[axis] = over.mean
            if over.interval:
                point[f"{axis}_low"], point[f"{axis}_high"] = over.interval
        points[re.sub(r"^sag-vicreg \((.*)\)$", r"\1", name)] = point
    axes = {"xlabel": f"kNN, points above {baseline}", "ylabel": f"Spearman over image pairs, above {baseline}"}
    return plots.tradeoff(points, **axes) if len(points) > 1 else None


def controls_picture(results: Path, profile: str = "gpu-minute") -> plots.Picture | None:
    """Walks of a profile on CIFAR-100, default and selected, and their controls; None where there are none."""
    records, selected = groups(read_records(results)).get((profile, "cifar100"), []), results / "entry.json"
    variants = {"default", *(record["variant"] for record in records if is_control(record))}
    if selected.exists():
        variants.add(json.loads(selected.read_text())["variant"])
    return gain_and_price([r for r in records if r["method"] in ("vicreg", "sag-vicreg") and r["variant"] in variants])


def kinds_picture(results: Path) -> plots.Picture | None:
    """Label-free scores against the semantic score across kinds of training, harmed copies among them."""
    path = results / "kinds-validity/cifar100.json"
    if not path.exists():
        return None
    rows = json.loads(path.read_text())["rows"]
    names = dict.fromkeys([kinds_validity.choose_design(rows), "clean, changed: distances", "RankMe"])
    panels = {name: kinds_validity.column(rows, name) for name in names}
    return plots.validity_scatter(panels, kinds_validity.column(rows, "semantic"), [_group(row) for row in rows])


def _group(row: dict) -> str:
    """What a point of `kinds_picture` is, in a word or two."""
    if row["kind"] == "degraded":
        return "copy of rank 1, 2 or 6" if ", rank" in row["name"] else "copy: noise, whitened, collapsed"
    if row["kind"] != "trained":
        return "not trained"
    return "trained on labels" if row["family"] in kinds_validity.LABELLED else "trained without labels"


def of_records(results: Path) -> dict[str, plots.Picture | None]:
    """The pictures that show nothing but records, by file name; None where there are none to show."""
    return {
        "purity": purity_picture(results),
        "controls": controls_picture(results),
        "controls-late": controls_picture(results, "tuned"),
        "kinds": kinds_picture(results),
    }


def main(out: Path = Path("figures/talk"), results: Path = Path("figures/results"), talk: bool = False) -> None:
    """Write the pictures that README and the results show.

    Args:
        out: folder to write to.
        results: where committed records are read from.
        talk: also a walk, an anchor's pairs and the class tree; and each picture as SVG, too.
    """
    scene = pixel_scene()
    pictures = {"method": method_picture(scene), **of_records(results)}
    if talk:
        pictures["walk"] = plots.credited(scenes.walk_view(scene, start=16, length=4, seed=1), ATTRIBUTION)
        pictures["pairs"] = plots.credited(scenes.pairing_view(scene, anchor=16, length=1, k=3), ATTRIBUTION)
        pictures["tree"] = shapes_tree()
    for name, picture in pictures.items():
        if picture is not None:
            plots.save(picture, out / name, (".png", ".svg") if talk else (".png",), f"shown: {content(picture)}")
            print(out / name)
