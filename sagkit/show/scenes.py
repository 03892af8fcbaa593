"""A batch or a gallery seen under chosen settings: pure functions from settings to a Picture, for notebooks, widgets.

    scene = make_scene(images, labels, class_names, features);    graph_view(scene, k=10) -> Picture
    gallery = Gallery(images, features, names, labels);           search_view(gallery, query=12) -> Picture

What is slow (layout of the graph, UMAP of the features, the index of a search) is computed once for a scene or gallery,
so that every further view takes well under 0.3 s for a batch of 512; nodes keep their places while settings move.
`Picture.says` holds the figures that the picture shows, in words. Settings that the kit refuses raise its own
ValueError. [K]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from sagkit.data.taxonomy import superclasses
from sagkit.graph import similarity_graph
from sagkit.loss import covariance, invariance, sag_vicreg_loss, variance, walk_term
from sagkit.metrics.local import Index
from sagkit.metrics.purity import chance_level, pair_purity
from sagkit.show import plots
from sagkit.walk import sample_pairs, weighted_walk

LINKAGES = ("average", "ward", "complete", "single")
MOST_RESULTS = 12  # of a search, on one board


@dataclass(frozen=True, eq=False)
class Scene:
    """A batch, and where its images lie on two maps, each computed when first looked at.

    features: what the graph is built from.
    groups: superclass of each image, a position in `group_names`.
    k: neighbours of the graph whose spring layout is kept.
    seed: of both maps.
    """

    images: UInt8[Tensor, "N 3 H W"]
    labels: Int[Tensor, " N"]
    class_names: tuple[str, ...]
    features: Float[Tensor, "N F"]
    groups: Int[Tensor, " N"]
    group_names: tuple[str, ...]
    k: int = 10
    seed: int = 0

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def layout(self) -> Float[np.ndarray, "N 2"]:
        """Spring layout of the graph with k neighbours."""
        return plots.graph_layout(similarity_graph(self.features, self.k).to_networkx(), seed=self.seed)

    @cached_property
    def flat(self) -> Float[np.ndarray, "N 2"]:
        """UMAP of the features."""
        from umap import UMAP

        near = min(15, len(self) - 1)
        return UMAP(random_state=self.seed, n_jobs=1, n_neighbors=near).fit_transform(self.features.numpy())


def make_scene(images, labels, class_names, features, k: int = 10, data: str = "shapes", seed: int = 0) -> Scene:
    """A scene of images with their superclasses.

    Args:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,), positions in class_names.
        class_names: of the data set; superclasses as `taxonomy.superclasses` knows them.
        features: float (N, F), what the graph is built from.
        k: neighbours of the graph whose spring layout is kept.
        data: name of the data set.
        seed: of both maps.

    Raises:
        ValueError: for a data set whose superclasses are not known.
    """
    names, group = superclasses(data, tuple(class_names))
    return Scene(images, labels, tuple(class_names), features, torch.as_tensor(group)[labels], names, k, seed)


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images with their features, file names and, where they are known, classes.

    Raises:
        ValueError: for numbers of rows that differ, or too few to search.
    """

    images: UInt8[Tensor, "N 3 H W"]
    features: Float[Tensor, "N F"]
    names: tuple[str, ...]
    labels: Int[Tensor, " N"] | None = None

    def __post_init__(self):
        found = [len(part) for part in (self.images, self.features, self.names, self.labels) if part is not None]
        if len(set(found)) > 1 or found[0] < 2:
            raise ValueError(f"a gallery needs two items or more, one row each in all its parts, got {found}")

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def index(self) -> Index:
        """Exact search over the features."""
        return Index(self.features)

    def alike(self, query: int, results: int) -> tuple[list[float], list[int]]:
        """Similarities and rows of the most similar other items, most similar first.

        Raises:
            ValueError: for a query or a number of results out of range.
        """
        if not 0 <= query < len(self):
            raise ValueError(f"image {query} is not in the gallery: choose 0 to {len(self) - 1}")
        if not 1 <= results <= min(MOST_RESULTS, len(self) - 1):
            raise ValueError(f"{results} results: choose 1 to {min(MOST_RESULTS, len(self) - 1)}")
        similarity, rows = self.index.search(self.features[query][None], results + 1)
        found = [(s, r) for s, r in zip(similarity[0].tolist(), rows[0].tolist(), strict=True) if r != query][:results]
        return [s for s, _ in found], [r for _, r in found]


def graph_view(scene: Scene, k: int, kernel: str = "cosine", temperature: float = 0.1, mutual: bool = False):
    """The whole batch as a graph: how the settings of `graph.similarity_graph` thin or thicken it."""
    graph = similarity_graph(scene.features, k, kernel, temperature, mutual)
    n = len(scene)
    alone = (graph.neighbors == torch.arange(n)[:, None]).all(dim=1)
    entropy = torch.special.entr(graph.weights).sum(dim=1)
    effective, edges = float(entropy.exp()[~alone].mean()), int((graph.weights > 0)[~alone].sum())
    parts = connected_components(graph.to_scipy(), directed=False)[0]
    same = (scene.groups[graph.neighbors] == scene.groups[:, None]).float()
    right = float((graph.weights * same)[~alone].sum() / (~alone).sum())
    title = f"K = {k}, {kernel}{', mutual' if mutual else ''}"
    figure = plots.batch_graph(graph.to_networkx(), scene.layout, scene.images, alone.numpy(), title)
    figure.says = (
        f"{edges:,} edges, {effective:.1f} effective neighbours, {int(alone.sum())} isolated images (in squares), "
        f"{parts} connected components; a step stays in its superclass with probability {right:.3f} "
        f"(chance {chance_level(scene.groups):.3f})."
    )
    return figure


def walk_view(
    scene: Scene, start: int, length: int, restart: float = 0.0, seed: int = 0, k: int = 10, mutual: bool = False
):
    """One walk from image `start`, step by step."""
    _require_node(scene, start)
    graph = similarity_graph(scene.features, k, mutual=mutual)
    generator = torch.Generator().manual_seed(seed)
    walk = weighted_walk(graph, torch.tensor([start]), length, restart, generator)
    path, restarts = walk.paths[0].tolist(), int(walk.restarted.sum())
    names = [scene.class_names[int(scene.labels[node])].replace("/", "\n") for node in path]
    steps = [f"{'start' if i == 0 else f'step {i}'}\n{name}" for i, name in enumerate(names)]
    drawn, groups = graph.to_networkx(), scene.groups.numpy()
    figure = plots.batch_walk(drawn, scene.layout, scene.flat, scene.images, groups, scene.group_names, path, steps)
    end, group = path[-1], scene.groups[path[-1]] == scene.groups[start]
    verdict = "same class" if scene.labels[end] == scene.labels[start] else "same superclass" if group else "neither"
    home = "The walk ends at home: no pair." if end == start else f"Start (circle) and end (square) share: {verdict}."
    figure.says = f"Path {' → '.join(map(str, path))}; {restarts} restart{'s' * (restarts != 1)}. {home}"
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
):
    """An anchor, the partners that its walks reached, and the purity of the whole batch's pairs."""
    _require_node(scene, anchor)
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")
    graph = similarity_graph(scene.features, k, mutual=mutual)
    pairs = sample_pairs(graph, length, walks, torch.Generator().manual_seed(seed))
    purity = pair_purity(pairs, scene.labels, scene.groups)
    mine = pairs.anchor == anchor
    if not (pairs.positive[mine] != anchor).any():
        raise ValueError(
            f"image {anchor} has no pair: all {walks} walks ended at home; raise K or drop the mutual filter"
        )
    partners = _partners(scene, anchor, pairs.positive[mine], pairs.weight[mine])
    chance = [chance_level(of) for of in (scene.labels, scene.groups)]
    kinds = ("class", "superclass", "class, weighted", "superclass, weighted")
    shares = {kind: (share, chance[i % 2]) for i, (kind, share) in enumerate(zip(kinds, purity[:4], strict=True))}
    weight = alpha * float(pairs.weight[mine].mean())
    name = scene.class_names[int(scene.labels[anchor])].replace("/", "\n")
    figure = plots.pair_board(scene.images[anchor], name, partners, shares, weight)
    figure.says = (
        f"{len(partners)} partners of image {anchor}. Purity of all pairs: class {purity.same_class:.3f}, superclass "
        f"{purity.same_superclass:.3f}; weighted {purity.weighted_class:.3f} and {purity.weighted_superclass:.3f}; "
        f"{purity.left:.2f} of the walks ended away from their start. All pairs of the anchor weigh {weight:.2f} times "
        "its own two views."
    )
    return figure


def _partners(scene, anchor: int, reached: Tensor, weight: Tensor) -> list[tuple]:
    """(image, name, total weight, kind) of each partner other than the anchor, heaviest first."""
    found = []
    for node in reached[reached != anchor].unique().tolist():
        same = scene.labels[node] == scene.labels[anchor], scene.groups[node] == scene.groups[anchor]
        kind = "class" if same[0] else "superclass" if same[1] else "neither"
        name = scene.class_names[int(scene.labels[node])].replace("/", "\n")
        found.append((scene.images[node], name, float(weight[reached == node].sum()), kind))
    return sorted(found, key=lambda partner: -partner[2])


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
    """The classes as a tree by their mean features, cut into clusters, beside the superclasses."""
    if method not in LINKAGES:
        raise ValueError(f"unknown linkage {method!r}: choose one of {', '.join(LINKAGES)}")
    present = scene.labels.unique().tolist()
    if not 1 <= clusters <= len(present):
        raise ValueError(f"{len(present)} classes cannot be cut into {clusters} clusters: choose 1 to {len(present)}")
    unit = torch.nn.functional.normalize(scene.features - scene.features.mean(dim=0), dim=1)
    means = torch.stack([unit[scene.labels == label].mean(dim=0) for label in present])
    tree = linkage(means.numpy().astype(float), method)
    groups = [int(scene.groups[scene.labels == label][0]) for label in present]
    score = adjusted_rand_score(groups, fcluster(tree, clusters, "maxclust"))
    names = [scene.class_names[label] for label in present]
    figure = plots.dendrogram(tree, names, clusters, f"{len(present)} classes by {method} linkage")
    figure.says = (
        f"{clusters} clusters against {len(set(groups))} superclasses: adjusted Rand index {score:.3f} (chance 0)."
    )
    return figure


def search_view(gallery: Gallery, query: int, results: int = MOST_RESULTS) -> plots.Picture:
    """A query and its look-alikes, numbered from 1; those of its own class are marked where classes are known.

    Raises:
        ValueError: see `Gallery.alike`.
    """
    similarity, rows = gallery.alike(query, results)
    same = None if gallery.labels is None else (gallery.labels[rows] == gallery.labels[query]).tolist()
    names = [gallery.names[row] for row in (query, *rows)]
    figure = plots.search_board(gallery.images[[query, *rows]], names, similarity, same)
    figure.says = f"Image {query}, {names[0]}. Similarity from {similarity[0]:.2f} down to {similarity[-1]:.2f}" + (
        "." if same is None else f"; {sum(same)} of {len(same)} share its class folder (thick green frames)."
    )
    return figure


def _require_node(scene: Scene, node: int) -> None:
    if not 0 <= node < len(scene):
        raise ValueError(f"image {node} is not in the batch: choose 0 to {len(scene) - 1}")
