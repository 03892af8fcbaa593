"""Graphs with images as nodes, and walks on them: edges, thumbnails and arrows, and the figures made of these alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from sagkit.show.plots.style import FAINT, INK, PALETTE, Picture, bare, grid_of, image_array, styled

SMALLEST_NUMBERED = 130.0  # area, in square points, of a node that holds its number; of a smaller one it stands beside


def draw_edges(axis, xy: np.ndarray, graph, thinnest: float = 0.4, thickest: float = 2.6, **style) -> None:
    """Edges of a networkx graph between nodes at xy (N, 2), as thick as their weights, in points."""
    import networkx as nx

    weights = np.array([weight for *_, weight in graph.edges(data="weight")])
    width = thinnest + (thickest - thinnest) * weights / weights.max() if len(weights) else 1.0
    places = dict(enumerate(xy))
    nx.draw_networkx_edges(graph, places, ax=axis, arrows=False, edge_color=FAINT, width=width, **style)


def draw_thumbnails(
    axis, xy: np.ndarray, images, zoom: float, nodes=None, edge: str = "white", width: float = 1.0
) -> None:
    """Images (N, 3, H, W), or those of `nodes`, centred at xy (N, 2), each in a frame."""
    for i in range(len(xy)) if nodes is None else nodes:
        picture = OffsetImage(image_array(images[i]), zoom=zoom, interpolation="nearest")
        frame = {"edgecolor": edge, "linewidth": width, "boxstyle": "square,pad=0.05"}
        axis.add_artist(AnnotationBbox(picture, xy[i], pad=0, bboxprops=frame, zorder=3))


def draw_path(axis, xy: np.ndarray, path: Sequence[int], width: float = 2.2, head: float = 14, gap: float = 2) -> None:
    """An arrow for each step of a walk between nodes at xy (N, 2); it ends `gap` points short of its nodes."""
    look = {"arrowstyle": "-|>", "color": PALETTE[1], "lw": width, "mutation_scale": head}
    look |= {"shrinkA": gap, "shrinkB": gap}
    look["connectionstyle"] = "arc3,rad=0.15"  # bent, so that the way back does not hide the way out
    for here, there in pairwise(path):
        if here != there:  # a lazy step, or a restart at home, is no arrow
            axis.annotate("", xy=xy[there], xytext=xy[here], arrowprops=look, zorder=4)


def graph_layout(graph, seed: int = 0) -> np.ndarray:
    """Spring layout (N, 2) of a networkx graph, reproducible by seed."""
    import networkx as nx

    positions = nx.spring_layout(graph.to_undirected(), seed=seed, weight="weight", k=2.2 / len(graph) ** 0.5)
    return np.array([positions[i] for i in range(len(graph))])


@styled
def graph_figure(graph, xy: np.ndarray, images, title: str = "", zoom: float = 0.75) -> Picture:
    """A networkx graph with thumbnails as nodes; an edge is as thick as its transition probability."""
    figure, axes = grid_of(8, 6)
    axis = axes[0, 0]
    bare(axis)
    draw_edges(axis, xy, graph)
    draw_thumbnails(axis, xy, images, zoom)
    axis.set_title(title)
    return figure


@styled
def walk_figure(graph, xy: np.ndarray, images, path: Sequence[int], title: str = "", zoom: float = 0.75) -> Picture:
    """One walk: its path in colour on the faint graph, and the images along it in order."""
    path = [int(node) for node in path]
    figure = Picture(figsize=(9, 6), layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=[5, 1])
    axis = figure.add_subplot(grid[0])
    strip = grid[1].subgridspec(len(path), 1)
    bare(axis)
    draw_edges(axis, xy, graph, alpha=0.6)
    draw_thumbnails(axis, xy, images, zoom * 0.6)
    draw_path(axis, xy, path, width=2.6, head=16, gap=14)
    draw_thumbnails(axis, xy, images, zoom, nodes=dict.fromkeys(path), edge=PALETTE[1], width=2.0)
    draw_thumbnails(axis, xy, images, zoom, nodes=path[:1], edge=PALETTE[0], width=3.0)
    axis.set_title(title)
    for step, node in enumerate(path):
        small = figure.add_subplot(strip[step])
        bare(small)
        small.imshow(image_array(images[node]), interpolation="nearest")
        small.set_ylabel("start" if step == 0 else f"step {step}", rotation=0, ha="right", va="center")
    return figure


@styled
def point_graphs(
    panels: Mapping[str, object], xy: np.ndarray, shares: Mapping[str, np.ndarray] | None = None
) -> Picture:
    """Small networkx graphs on the same points (N, 2), numbered: an edge is as thick as its transition probability.

    With `shares`, one array (N,) for each panel, a node's area is its share instead of the same for all.
    """
    figure, axes = grid_of(3.3 * len(panels), 3.0, len(panels))
    for axis, (title, graph) in zip(axes[0], panels.items(), strict=True):
        bare(axis)
        draw_edges(axis, xy, graph)
        area = np.full(len(xy), 300.0) if shares is None else 2500 * np.asarray(shares[title])
        axis.scatter(*xy.T, s=area, color=PALETTE[5], edgecolors=INK, linewidths=0.8, zorder=2)
        for node, place in enumerate(xy):
            beside = (9, 7) if area[node] < SMALLEST_NUMBERED else (0, 0)  # points
            told = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 9, "zorder": 3}
            axis.annotate(str(node), place, beside, **told)
        axis.set_title(title)
        axis.margins(0.18)
    return figure
