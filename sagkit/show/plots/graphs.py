"""Graphs with images as nodes, and walks on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from sagkit.show.plots.style import FAINT, INK, PALETTE, Picture, bare, grid_of, pixels, styled

SMALLEST_NUMBERED = 130.0  # area, in square points, of a node that holds its number; of a smaller one it stands beside


def _edges(axis, xy: np.ndarray, graph, **style) -> None:
    import networkx as nx

    weights = np.array([w for *_, w in graph.edges(data="weight")])
    nx.draw_networkx_edges(
        graph,
        pos=dict(enumerate(xy)),
        ax=axis,
        arrows=False,
        edge_color=FAINT,
        width=0.4 + 2.2 * weights / weights.max() if len(weights) else 1.0,
        **style,
    )


def _thumbnails(axis, xy: np.ndarray, images, zoom: float, nodes=None, edge: str = "white", width: float = 1.0) -> None:
    for i in range(len(xy)) if nodes is None else nodes:
        picture = OffsetImage(pixels(images[i]), zoom=zoom, interpolation="nearest")
        frame = {"edgecolor": edge, "linewidth": width, "boxstyle": "square,pad=0.05"}
        axis.add_artist(AnnotationBbox(picture, xy[i], pad=0, bboxprops=frame, zorder=3))


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
    _edges(axis, xy, graph)
    _thumbnails(axis, xy, images, zoom)
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
    _edges(axis, xy, graph, alpha=0.6)
    _thumbnails(axis, xy, images, zoom * 0.6)
    for here, there in pairwise(path):
        arrow = {
            "arrowstyle": "-|>",
            "color": PALETTE[1],
            "lw": 2.6,
            "shrinkA": 14,
            "shrinkB": 14,
            "mutation_scale": 16,
        }
        arrow["connectionstyle"] = "arc3,rad=0.15"  # bent, so that the way back does not hide the way out
        axis.annotate("", xy=xy[there], xytext=xy[here], arrowprops=arrow, zorder=4)
    _thumbnails(axis, xy, images, zoom, nodes=dict.fromkeys(path), edge=PALETTE[1], width=2.0)
    _thumbnails(axis, xy, images, zoom, nodes=path[:1], edge=PALETTE[0], width=3.0)
    axis.set_title(title)
    for step, node in enumerate(path):
        small = figure.add_subplot(strip[step])
        bare(small)
        small.imshow(pixels(images[node]), interpolation="nearest")
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
        _edges(axis, xy, graph)
        area = np.full(len(xy), 300.0) if shares is None else 2500 * np.asarray(shares[title])
        axis.scatter(*xy.T, s=area, color=PALETTE[5], edgecolors=INK, linewidths=0.8, zorder=2)
        for node, place in enumerate(xy):
            beside = (9, 7) if area[node] < SMALLEST_NUMBERED else (0, 0)  # points
            told = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 9, "zorder": 3}
            axis.annotate(str(node), place, beside, **told)
        axis.set_title(title)
        axis.margins(0.18)
    return figure
