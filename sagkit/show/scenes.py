"""A scene seen under chosen settings: pure functions from settings to a Picture, for notebooks and boards.

    scene = make_scene(images, labels, class_names, features);    graph_view(scene, anchor=12, k=10) -> Picture

These are the still pictures of what `explore` moves: both show the same answers (`answers.Explorer`), so that a setting
gives the same walk here and there. `Picture.says` holds the figures that the picture shows, in words. Settings that the
kit refuses raise its own ValueError. [K]
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from sagkit.graph import similarity_graph
from sagkit.loss import covariance, invariance, sag_vicreg_loss, variance, walk_term
from sagkit.show import plots
from sagkit.show.answers import ALIKE, Explorer, Setting
from sagkit.show.prose import counted
from sagkit.show.scene import Scene, make_scene
from sagkit.walk import sample_pairs

__all__ = [
    "LINKAGES",
    "Scene",
    "dendrogram_view",
    "graph_view",
    "loss_view",
    "make_scene",
    "pairing_view",
    "search_view",
    "walk_view",
]
LINKAGES = ("average", "ward", "complete", "single")


def graph_view(
    scene: Scene, k: int, kernel: str = "cosine", temperature: float = 0.1, mutual: bool = False, anchor: int = 0
) -> plots.Picture:
    """The neighbourhood of an anchor, and what the settings of `graph.similarity_graph` make of the whole graph."""
    setting = Setting(anchor=anchor, k=k, kernel=kernel, temperature=temperature, mutual=mutual, walks=1)
    found = Explorer(scene, setting).answer(setting)
    nodes = [node for node in found["nodes"] if node["ring"] < 3]  # the others are there for the walk's sake
    title = f"around image {anchor}: K = {k}, {kernel}{', mutual' * mutual}"
    figure = plots.neighborhood(scene.images, nodes, found["edges"], title=title)
    figure.says = graph_in_words(found["graph"])
    return figure


def graph_in_words(facts: dict) -> str:
    """What is said of a whole graph; `facts` as an answer has them."""
    stays = facts.get("stays")
    return (
        f"{counted(facts['edges'], 'edge')}, {facts['effective']:.1f} effective neighbours, "
        f"{counted(facts['isolated'], 'isolated image')}, {counted(facts['components'], 'connected component')}"
        + (f"; a step stays in its {stays['kind']} with probability {stays['share']:.3f} " if stays else "")
        + (f"(chance {stays['chance']:.3f})." if stays else ".")
    )


def walk_view(
    scene: Scene, start: int, length: int, restart: float = 0.0, seed: int = 0, k: int = 10, mutual: bool = False
) -> plots.Picture:
    """One walk from image `start`, step by step: the first that `explore` shows at this setting."""
    setting = Setting(anchor=start, k=k, length=length, restart=restart, mutual=mutual, seed=seed)
    found = Explorer(scene, setting).answer(setting)
    steps = found["walk"]["steps"]
    path = [step["row"] for step in steps]
    names = [_named(scene, row) for row in path]
    captions = [f"{'start' if i == 0 else f'step {i}'}\n{name}" for i, name in enumerate(names)]
    around = (found["nodes"], found["edges"])
    figure = plots.walk_board(scene.images, *around, scene.plane, _shared_with(scene, start), path, captions)
    restarts = sum(step.get("restart", False) for step in steps)
    end = steps[-1]
    shared = {"class": "the same class", "superclass": "the same superclass", "neither": "different classes"}
    met = f" Start and end are of {shared[end['same']]}." if end["same"] else ""
    home = "The walk ends at home: no pair." if path[-1] == start else f"Its pair weighs {found['walk']['weight']:.2f}."
    figure.says = f"Path {' → '.join(map(str, path))}; {counted(restarts, 'restart')}. {home}" + met * (
        path[-1] != start
    )
    return figure


def pairing_view(
    scene: Scene,
    anchor: int,
    length: int,
    k: int = 10,
    alpha: float = 0.3,
    walks: int = 16,
    mutual: bool = False,
    seed: int = 0,
) -> plots.Picture:
    """An anchor, the partners that its walks reached, and the purity of all images' pairs where classes are known.

    Raises:
        ValueError: for an alpha below 0, an anchor without a pair, and as the graph and its walks do.
    """
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")
    setting = Setting(anchor=anchor, k=k, length=length, walks=walks, mutual=mutual, seed=seed)
    found = Explorer(scene, setting).answer(setting)
    pairs = found["pairs"]
    if not pairs:
        raise ValueError(
            f"image {anchor} has no pair: all {walks} walks ended at home; raise K or drop the mutual filter"
        )
    partners = [(scene.images[p["row"]], _named(scene, p["row"]), p["weight"], p["same"]) for p in pairs]
    shares = {row["kind"]: (row["share"], row["chance"]) for row in found["purity"]}
    shares |= {f"{row['kind']}, weighted": (row["weighted"], row["chance"]) for row in found["purity"]}
    weight = alpha * sum(pair["weight"] for pair in pairs) / walks
    figure = plots.pair_board(scene.images[anchor], _named(scene, anchor), partners, shares, weight)
    purity = ", ".join(f"{kind} {share:.2f}" for kind, (share, _) in shares.items() if share is not None)
    figure.says = (
        f"{counted(len(partners), 'partner')} of image {anchor}."
        + (f" Purity of all pairs: {purity}." if purity else "")
        + f" {found['left']:.2f} of the walks ended away from their start. All pairs of the anchor weigh {weight:.2f} "
        "times its own two views."
    )
    return figure


def search_view(scene: Scene, query: int, results: int = ALIKE) -> plots.Picture:
    """A query and its look-alikes, numbered from 1; those of its own class are marked where classes are known.

    Raises:
        ValueError: for a query or a number of results out of range.
    """
    most = min(ALIKE, len(scene) - 1)
    if not 1 <= results <= most:
        raise ValueError(f"{results} results: choose 1 to {most}")
    setting = Setting(anchor=query, k=1, length=1, walks=1)
    found = Explorer(scene, setting).answer(setting)["alike"][:results]
    rows, similarity = [item["row"] for item in found], [item["similarity"] for item in found]
    same = None if scene.labels is None else [item["same"] == "class" for item in found]
    names = [scene.names[row] for row in (query, *rows)]
    figure = plots.search_board(scene.images[[query, *rows]], names, similarity, same)
    figure.says = f"Image {query}, {names[0]}. Similarity from {similarity[0]:.2f} down to {similarity[-1]:.2f}" + (
        "." if same is None else f"; {sum(same)} of {len(same)} share its class (thick green frames)."
    )
    return figure


def loss_view(
    za: Float[Tensor, "B D"],
    zb: Float[Tensor, "B D"],
    features: Float[Tensor, "B F"],
    alpha: float,
    k: int = 10,
    length: int = 2,
    keep: bool = True,
    seed: int = 0,
):
    """The weighted terms of the loss over alpha, and the norm of each term's gradient at the chosen alpha."""
    graph = similarity_graph(features, k)
    pairs = sample_pairs(graph, length, 1, torch.Generator().manual_seed(seed))
    total = float(sag_vicreg_loss(za, zb, pairs, alpha, keep).total)
    z = torch.stack([za, zb]).detach().requires_grad_()
    terms = {
        "invariance": 25 * invariance(z[0], z[1]),
        "walk": 25 * walk_term(z[0], z[1], pairs),
        "variance": 12.5 * (variance(z[0]) + variance(z[1])),
        "covariance": covariance(z[0]) + covariance(z[1]),
    }
    size = {name: float(torch.autograd.grad(term, z, retain_graph=True)[0].norm()) for name, term in terms.items()}
    alphas = np.linspace(0, 1 if not keep else max(1.0, alpha), 41)
    factor = {"invariance": np.ones_like(alphas) if keep else 1 - alphas, "walk": alphas}
    curves = {name: factor.get(name, np.ones_like(alphas)) * term.item() for name, term in terms.items()}
    here = {"invariance": 1.0 if keep else 1 - alpha, "walk": alpha}
    norms = {name: here.get(name, 1.0) * value for name, value in size.items()}
    figure = plots.loss_terms(
        alphas, curves, alpha, norms, "keep: s + alpha r" if keep else "mix: (1 - alpha) s + alpha r"
    )
    figure.says = f"Loss {total:.3f} at alpha {alpha:g}; norm of gradient: " + ", ".join(
        f"{name} {value:.3g}" for name, value in norms.items()
    )
    return figure


def dendrogram_view(scene: Scene, clusters: int, method: str = "average"):
    """The classes as a tree by their mean features, cut into clusters, beside the superclasses where there are any.

    Raises:
        ValueError: for images without classes, an unknown linkage, or a number of clusters out of range.
    """
    if scene.labels is None:
        raise ValueError("a tree of classes needs labels: give them to make_scene")
    if method not in LINKAGES:
        raise ValueError(f"unknown linkage {method!r}: choose one of {', '.join(LINKAGES)}")
    present = scene.labels.unique().tolist()
    if not 1 <= clusters <= len(present):
        raise ValueError(f"{len(present)} classes cannot be cut into {clusters} clusters: choose 1 to {len(present)}")
    unit = torch.nn.functional.normalize(scene.features - scene.features.mean(dim=0), dim=1)
    means = torch.stack([unit[scene.labels == label].mean(dim=0) for label in present])
    tree = linkage(means.numpy().astype(float), method)
    names = [scene.class_names[label] for label in present]
    figure = plots.dendrogram(tree, names, clusters, f"{len(present)} classes by {method} linkage")
    figure.says = f"{counted(len(present), 'class', 'classes')} cut into {counted(clusters, 'cluster')}."
    if scene.groups is not None:
        groups = [int(scene.groups[scene.labels == label][0]) for label in present]
        score = adjusted_rand_score(groups, fcluster(tree, clusters, "maxclust"))
        against = counted(len(set(groups)), "superclass", "superclasses")
        figure.says = f"{counted(clusters, 'cluster')} against {against}: adjusted Rand index {score:.3f} (chance 0)."
    return figure


def _named(scene: Scene, row: int) -> str:
    """The class of an image, level by level, or its name where classes are not known."""
    name = scene.names[row] if scene.labels is None else scene.class_names[int(scene.labels[row])]
    return name.replace("/", "\n")


def _shared_with(scene: Scene, anchor: int) -> list[str]:
    """What each image shares with the anchor: "class", "superclass" or "neither"."""
    if scene.labels is None:
        return ["neither"] * len(scene)
    same = np.where(scene.labels == scene.labels[anchor], "class", "neither").astype("<U10")
    if scene.groups is not None:
        same[(scene.groups == scene.groups[anchor]).numpy() & (same != "class")] = "superclass"
    return same.tolist()
