"""Every picture of the kit, from arrays only: one palette, one style, readable at slide size.

Each function returns a Picture, a matplotlib Figure, and shows nothing; `save` writes it as SVG and PNG. Colours are
Okabe and Ito's, which stay apart for colour-blind readers; a highlighted thing also differs in shape or weight. [K]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import wraps
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

INK, FAINT = "#222222", "#b8bec7"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
MARKERS = "osD^vP*X"
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "figure.dpi": 96,
    "savefig.dpi": 160,
}


class Picture(Figure):
    """A matplotlib Figure that a notebook shows without pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=STYLE["figure.dpi"], bbox_inches="tight")
        return buffer.getvalue()


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as `path`.svg and `path`.png; the folder is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), bbox_inches="tight")


def styled(draw):
    """Run a drawing function under the kit's style, whatever the caller's matplotlib settings are."""

    @wraps(draw)
    def under_style(*args, **kwargs):
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return under_style


def _figure(width: float, height: float, columns: int = 1, rows: int = 1, **subplots):
    figure = Picture(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **subplots)


def _bare(axis) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _picture(image) -> np.ndarray:
    """One image (3, H, W), uint8 or floats in [0, 1], as matplotlib wants it: (H, W, 3)."""
    array = np.asarray(image)
    return np.moveaxis(array, 0, -1) if array.dtype == np.uint8 else np.moveaxis(array.clip(0, 1), 0, -1)


@styled
def image_grid(
    images, titles: Sequence[str] | None = None, columns: int = 9, title: str = "", side: float = 1.0
) -> Picture:
    """Images (N, 3, H, W) in rows of `columns`, each with its own small title of one or more lines."""
    rows = -(-len(images) // columns)
    lines = max((text.count("\n") + 1 for text in titles), default=0) if titles is not None else 0
    height = side * 1.05 + 0.15 * lines
    figure, axes = _figure(columns * side, rows * height + 0.3 * bool(title), columns, rows)
    for i, axis in enumerate(axes.flat):
        _bare(axis)
        if i < len(images):
            axis.imshow(_picture(images[i]), interpolation="nearest")
            if titles is not None:
                axis.set_title(titles[i], fontsize=8, fontweight="normal", loc="center", pad=2)
    if title:
        figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    return figure


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
        picture = OffsetImage(_picture(images[i]), zoom=zoom, interpolation="nearest")
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
    figure, axes = _figure(8, 6)
    axis = axes[0, 0]
    _bare(axis)
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
    _bare(axis)
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
        _bare(small)
        small.imshow(_picture(images[node]), interpolation="nearest")
        small.set_ylabel("start" if step == 0 else f"step {step}", rotation=0, ha="right", va="center")
    return figure


@styled
def point_graphs(
    panels: Mapping[str, object], xy: np.ndarray, shares: Mapping[str, np.ndarray] | None = None
) -> Picture:
    """Small networkx graphs on the same points (N, 2), numbered: an edge is as thick as its transition probability.

    With `shares`, one array (N,) for each panel, a node's area is its share instead of the same for all.
    """
    figure, axes = _figure(3.3 * len(panels), 3.0, len(panels))
    for axis, (title, graph) in zip(axes[0], panels.items(), strict=True):
        _bare(axis)
        _edges(axis, xy, graph)
        area = 300.0 if shares is None else 2500 * np.asarray(shares[title])
        axis.scatter(*xy.T, s=area, color=PALETTE[5], edgecolors=INK, linewidths=0.8, zorder=2)
        for node, place in enumerate(xy):
            axis.annotate(str(node), place, ha="center", va="center", fontsize=9, zorder=3)
        axis.set_title(title)
        axis.margins(0.18)
    return figure


@styled
def scatter(panels: Mapping[str, np.ndarray], labels, names: Sequence[str]) -> Picture:
    """One panel per embedding (N, 2), points coloured and shaped by label."""
    figure, axes = _figure(4.6 * len(panels), 4.6, len(panels))
    labels = np.asarray(labels)
    for axis, (title, xy) in zip(axes[0], panels.items(), strict=True):
        _bare(axis)
        for i, name in enumerate(names):
            chosen = labels == i
            colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
            axis.scatter(*xy[chosen].T, s=9, alpha=0.65, color=colour, marker=marker, linewidths=0, label=name)
        axis.set_title(title)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(names)), markerscale=2
    )
    return figure


@styled
def comparison(figures: Mapping[str, Mapping[str, float]], columns: Sequence[str], titles: Sequence[str]) -> Picture:
    """Methods side by side: one panel per figure of merit, one bar per method, the value at its end."""
    figure, axes = _figure(3.4 * len(columns), 0.5 * len(figures) + 0.9, len(columns), sharey=True)
    methods = list(figures)
    for axis, column, title in zip(axes[0], columns, titles, strict=True):
        values = [figures[method][column] for method in methods]
        shown = axis.barh(methods, values, color=[PALETTE[i % len(PALETTE)] for i in range(len(methods))], height=0.62)
        axis.bar_label(shown, fmt="%.3f", padding=3)
        axis.set_xlim(min(0, *values), max(values) * 1.4)
        axis.set_title(title)
        axis.set_xticks([])
        axis.spines["bottom"].set_visible(False)
    axes[0, 0].invert_yaxis()
    return figure


@styled
def heatmaps(panels: Mapping[str, np.ndarray], ticks: Sequence[str] = ()) -> Picture:
    """Class distance matrices (C, C) side by side, each on its own scale."""
    figure, axes = _figure(4.4 * len(panels), 4.2, len(panels))
    for axis, (title, matrix) in zip(axes[0], panels.items(), strict=True):
        picture = axis.imshow(matrix, cmap="viridis", interpolation="nearest")
        figure.colorbar(picture, ax=axis, shrink=0.75)
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_yticks(range(len(ticks)), ticks, fontsize=6) if len(ticks) else axis.set_yticks([])
    return figure


@styled
def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str, joined: bool = True
) -> Picture:
    """Lines (x, y) by name, told apart by colour and marker; points alone where they are not `joined`."""
    figure, axes = _figure(6, 3.4)
    axis = axes[0, 0]
    for i, (name, (x, y)) in enumerate(series.items()):
        look = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4}
        axis.plot(x, y, linestyle="-" if joined else "none", label=name, **look)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.legend()
    return figure
