"""Pictures that are drawn again at every move of a control: a batch as a graph, a walk, pairs, loss terms, a search.

Thumbnails are painted into one raster and margins are fixed, because hundreds of separate images and a layout solver
would take seconds. [K]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np
from matplotlib.patches import Rectangle

from sagkit.show.plots.graphs import draw_edges, draw_path
from sagkit.show.plots.style import FAINT, INK, MARKERS, PALETTE, Picture, bare, image_array, styled

EDGES = 4000  # at most as many are drawn: more are a grey cloud, and cost most of the time
HITS = {  # how a pair is marked, by what its two images share: colour, line and words all differ
    "class": (PALETTE[2], "-", 3.5),
    "superclass": (PALETTE[0], "--", 2.5),
    "neither": (INK, ":", 1.2),
}


def _paint_thumbnails(axis, xy: np.ndarray, images, side: int) -> None:
    """Thumbnails `side` pixels wide, centred at points in [0, 1]^2 of the axis, as one raster at screen resolution."""
    figure = axis.figure
    box = axis.get_position().bounds
    width, height = (round(box[2 + i] * figure.bbox.bounds[2 + i]) for i in range(2))
    canvas = np.zeros((height, width, 4), dtype=np.uint8)
    for (x, y), image in zip(xy, images, strict=True):
        step = max(1, image.shape[-1] // side)
        small = image_array(image)[::step, ::step]
        rows, columns = small.shape[:2]
        top = int(np.clip((1 - y) * height - rows / 2, 0, height - rows))
        left = int(np.clip(x * width - columns / 2, 0, width - columns))
        canvas[top : top + rows, left : left + columns, :3] = small
        canvas[top : top + rows, left : left + columns, 3] = 255
    axis.imshow(canvas, extent=(0, 1, 0, 1), aspect="auto", interpolation="nearest", zorder=3)
    axis.set(xlim=(0, 1), ylim=(0, 1))


def inside(xy: np.ndarray, margin: float = 0.03) -> np.ndarray:
    """Points (N, 2) moved and scaled, each axis by itself, into [margin, 1 - margin]^2."""
    low, high = xy.min(axis=0), xy.max(axis=0)
    return margin + (1 - 2 * margin) * (xy - low) / np.where(high > low, high - low, 1)


def draw_heaviest_edges(axis, place: np.ndarray, graph, most: int | None = None) -> None:
    """The `most` heaviest edges between two nodes of a networkx graph, or all, the lightest first.

    Of the two directions of an edge the heavier is drawn.
    """
    import networkx as nx

    edges = sorted((edge for edge in graph.edges(data="weight") if edge[0] != edge[1]), key=itemgetter(2))
    drawn = nx.Graph()
    drawn.add_weighted_edges_from(edges[-most:] if most else edges)
    draw_edges(axis, place, drawn, 0.3, 1.8)


@styled
def batch_graph(graph, xy: np.ndarray, images, alone: np.ndarray, title: str = "") -> Picture:
    """A networkx graph of a whole batch, thumbnails (N, 3, H, W) at xy (N, 2); nodes `alone` (N,) in a square.

    Of more than EDGES edges the likeliest are drawn.
    """
    figure = Picture(figsize=(9.6, 6.4))
    axis = figure.add_axes((0.01, 0.01, 0.98, 0.93))
    bare(axis)
    place = inside(xy)
    draw_heaviest_edges(axis, place, graph, EDGES)
    axis.set_axis_on()
    _paint_thumbnails(axis, place, images, 16 if len(images) > 100 else 32)
    axis.scatter(*place[alone].T, s=330, marker="s", facecolors="none", edgecolors=PALETTE[1], linewidths=2, zorder=4)
    axis.set_title(title)
    return figure


@styled
def batch_walk(
    graph,
    layout: np.ndarray,
    flat: np.ndarray,
    images,
    groups,
    names: Sequence[str],
    path: Sequence[int],
    steps: Sequence[str],
) -> Picture:
    """One walk three times: on the graph where the walk is, on a map of the whole batch, and as a film strip.

    Args:
        graph: a networkx graph of N nodes.
        layout: places (N, 2) of the nodes on the left, of which the surroundings of the walk are shown.
        flat: places (N, 2) of the nodes on the map.
        images: (N, 3, H, W).
        groups: which of `names` each node belongs to; colour and marker on the map.
        names: of the groups.
        path: nodes of the walk, start first.
        steps: one caption for each node of the path.
    """
    figure = Picture(figsize=(9.6, 6.4))
    left, right = figure.add_axes((0.01, 0.3, 0.48, 0.64)), figure.add_axes((0.51, 0.3, 0.48, 0.64))
    near, place = _window(inside(layout), path), inside(flat)
    seen = ((near > 0) & (near < 1)).all(axis=1)
    draw_heaviest_edges(left, near, graph.subgraph(np.flatnonzero(seen)))
    _paint_thumbnails(left, near[seen], [images[node] for node in np.flatnonzero(seen)], 32)
    for axis, where, title in ((left, near, "on the graph, near the walk"), (right, place, "on a UMAP of the batch")):
        axis.set_axis_on()
        bare(axis)
        axis.set(xlim=(0, 1), ylim=(0, 1), title=title)
        draw_path(axis, where, path)
        axis.plot(*where[path[0]], "o", ms=34, mfc="none", mec=PALETTE[0], mew=3, zorder=5)
        axis.plot(*where[path[-1]], "s", ms=30, mfc="none", mec=PALETTE[1], mew=3, zorder=5)
    groups = np.asarray(groups)
    for i, name in enumerate(names):
        look = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "linewidths": 0}
        right.scatter(*place[groups == i].T, s=16, alpha=0.7, label=name, **look)
    right.legend(loc="upper right", fontsize=9, handletextpad=0.1)
    _film_strip(figure, [images[node] for node in path], steps, bottom=0.1, side=0.95)
    return figure


def _window(place: np.ndarray, path: Sequence[int], least: float = 0.3) -> np.ndarray:
    """Places scaled so that a square around the path, at least `least` wide, becomes [0, 1]^2."""
    low, high = place[list(path)].min(axis=0), place[list(path)].max(axis=0)
    wide = max(least, 1.3 * (high - low).max())
    return (place - (low + high) / 2) / wide + 0.5


def _film_strip(
    figure, images, captions: Sequence[str], bottom: float, side: float, frames: Sequence[tuple] = ()
) -> None:
    """Images in one row, captions above them, framed by (colour, line, width); one axis in inches, for speed.

    Args:
        figure: drawn on over its whole width.
        images: (3, H, W) each.
        captions: one each.
        bottom: of the images, in inches.
        side: of an image, in inches; less where the row would not fit.
        frames: one each, or none at all.
    """
    wide, high = figure.get_size_inches()
    pitch = min(1.12 * side, (wide - 0.2) / len(images))
    side = pitch / 1.12
    axis = figure.add_axes((0, 0, 1, 1), zorder=-1)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = 0.1 + i * pitch
        _paste(axis, image, left, bottom, side, frames[i] if frames else None)
        axis.text(left + side / 2, bottom + side + 0.06, caption, ha="center", va="bottom", fontsize=9)
    axis.set(xlim=(0, wide), ylim=(0, high))
    axis.set_axis_off()


def _paste(axis, image, left: float, bottom: float, side: float, frame: tuple | None) -> None:
    """One image in the units of the axis, framed by (colour, line, width)."""
    axis.imshow(image_array(image), extent=(left, left + side, bottom, bottom + side), interpolation="nearest")
    if frame is not None:
        colour, line, width = frame
        look = {"edgecolor": colour, "linestyle": line, "linewidth": width, "facecolor": "none"}
        axis.add_patch(Rectangle((left, bottom), side, side, **look))


@styled
def pair_board(
    anchor, anchor_name: str, partners: Sequence[tuple], purity: Mapping[str, tuple[float, float]], weight: float
) -> Picture:
    """An anchor with the partners its walks reached, the purity of all pairs, and the weight of the anchor's pairs.

    Args:
        anchor: image (3, H, W).
        anchor_name: its class.
        partners: (image, class name, weight, kind) each, kind a key of HITS; at most seven are shown.
        purity: (share, chance) by name, each in [0, 1].
        weight: of all the anchor's walk pairs together, that of its own two views being 1.
    """
    figure = Picture(figsize=(9.6, 5.0))
    shown = partners[:7]
    captions = [f"anchor\n{anchor_name}", *(f"{kind}\n{name}\nweight {weight:.2f}" for _, name, weight, kind in shown)]
    frames = [(INK, "-", 1.0), *(HITS[kind] for *_, kind in shown)]
    _film_strip(figure, [anchor, *(image for image, *_ in shown)], captions, bottom=2.65, side=1.02, frames=frames)
    if len(partners) > len(shown):
        figure.text(0.99, 0.95, f"and {len(partners) - len(shown)} more", ha="right")
    left, right = figure.add_axes((0.2, 0.1, 0.36, 0.3)), figure.add_axes((0.72, 0.1, 0.22, 0.3))
    names = list(purity)
    bars = left.barh(names, [np.nan_to_num(purity[name][0]) for name in names], color=PALETTE[0], height=0.6)
    left.bar_label(bars, [f"{purity[name][0]:.3f}" for name in names], padding=3)
    for i, name in enumerate(names):
        left.plot([purity[name][1]] * 2, [i - 0.4, i + 0.4], color=PALETTE[1], lw=3)
    left.set(xlim=(0, 1), title="purity of all pairs (orange stroke: chance)")
    left.invert_yaxis()
    bars = right.barh(["own views", "walk pairs"], [1, weight], color=[FAINT, PALETTE[2]], height=0.6)
    right.bar_label(bars, fmt="%.2f", padding=3)
    right.set(xlim=(0, max(1.3, 1.3 * weight)), title="weight in the loss")
    right.invert_yaxis()
    return figure


@styled
def loss_terms(
    alphas: np.ndarray, terms: Mapping[str, np.ndarray], alpha: float, norms: Mapping[str, float], title: str = ""
) -> Picture:
    """Weighted terms of the loss, stacked over alpha, with a stroke at the chosen one; beside them gradient norms."""
    figure = Picture(figsize=(9.6, 4.2))
    left, right = figure.add_axes((0.08, 0.15, 0.5, 0.72)), figure.add_axes((0.74, 0.15, 0.2, 0.72))
    stacked = left.stackplot(alphas, *terms.values(), labels=list(terms), colors=PALETTE[: len(terms)], alpha=0.8)
    for area, hatch in zip(stacked, ("", "//", "..", "\\\\"), strict=False):  # told apart without colour, too
        area.set(hatch=hatch, edgecolor="white")
    left.axvline(alpha, color=INK, lw=2, ls="--")
    left.set(xlabel="alpha", ylabel="weighted terms of the loss", xlim=(alphas[0], alphas[-1]), title=title)
    left.legend(loc="center right", framealpha=0.9, frameon=True, fontsize=9)
    bars = right.barh(list(norms), list(norms.values()), color=PALETTE[: len(norms)], height=0.6)
    right.bar_label(bars, fmt="%.2g", padding=3)
    right.set(xlim=(0, 1.35 * max(norms.values()) or 1), title="norm of gradient")
    right.invert_yaxis()
    return figure


@styled
def search_board(images, names: Sequence[str], similarity: Sequence[float], same: Sequence[bool] | None) -> Picture:
    """A query, large on the left, and its look-alikes, numbered from 1, in rows of six.

    Args:
        images: (1 + K, 3, H, W), the query first, K at most 12.
        names: one each; the part before the last "/" is a line of its own.
        similarity: of the K look-alikes.
        same: whether each shares the query's class; None where classes are not known.
    """
    figure = Picture(figsize=(9.6, 3.9))
    axis = figure.add_axes((0, 0, 1, 1))

    def paste(image, left: float, bottom: float, side: float, text: str, frame: tuple) -> None:
        _paste(axis, image, left, bottom, side, frame)
        axis.text(left + side / 2, bottom - 0.05, text, ha="center", va="top", fontsize=8)

    short = ["\n".join(_shortened(part) for part in name.rsplit("/", 1)) for name in names]
    paste(images[0], 0.15, 1.1, 2.1, f"searched for\n{short[0]}", (INK, "-", 1.5))
    for i, value in enumerate(similarity):
        row, column = divmod(i, 6)
        frame = HITS["class"] if same is not None and same[i] else HITS["neither"]
        text = f"{i + 1} · {value:.2f}\n{short[i + 1]}"
        paste(images[i + 1], 2.65 + 1.16 * column, 2.62 - 1.9 * row, 1.0, text, frame)
    axis.set(xlim=(0, 9.6), ylim=(0, 3.9))
    axis.set_axis_off()
    return figure


def _shortened(text: str, most: int = 18) -> str:
    return text if len(text) <= most else f"{text[: most - 5]}…{text[-4:]}"
