"""Still pictures of what a board moves: a neighbourhood, a walk, pairs, loss terms, a search.

Margins are fixed, because a layout solver would take seconds. [K]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import itemgetter

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from sagkit.show.plots.graphs import draw_edges
from sagkit.show.plots.style import BETTER, FAINT, INK, PALETTE, Picture, bare, image_array, styled

HITS = {  # how a pair is marked, by what its two images share: colour, line and words all differ
    "class": (PALETTE[2], "-", 3.5),
    "superclass": (PALETTE[0], "--", 2.5),
    "neither": ("#6f7782", ":", 1.2),
}
MAP_COLOURS = {"class": PALETTE[2], "superclass": PALETTE[0], "neither": FAINT}


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
def neighborhood(
    images, nodes: Sequence[Mapping], edges: Sequence[Mapping], path: Sequence[int] = (), title: str = ""
) -> Picture:
    """What lies around an anchor: its neighbours on a ring, theirs on another, and a walk, if one is given, on top.

    Args:
        images: (N, 3, H, W).
        nodes: as an answer of `answers.Explorer` has them: row, place (x, y, side), what is shared with the anchor.
        edges: likewise: from, to, weight, and what its ends share.
        path: rows that a walk visits, start first.
        title: above the picture.
    """
    figure = Picture(figsize=(7.4, 7.4))
    axis = figure.add_axes((0.01, 0.06, 0.98, 0.89))
    _draw_neighborhood(axis, images, nodes, edges, path)
    axis.set_title(title)
    _legend_of_kinds(figure, {edge["same"] for edge in edges}, bool(path))
    return figure


@styled
def walk_board(
    images,
    nodes: Sequence[Mapping],
    edges: Sequence[Mapping],
    plane: np.ndarray,
    shared: Sequence[str],
    path: Sequence[int],
    captions: Sequence[str],
) -> Picture:
    """One walk three times: among its start's neighbours, on a map of all images, and as a film strip.

    Args:
        images: (N, 3, H, W).
        nodes: as for `neighborhood`.
        edges: likewise.
        plane: places (N, 2) on the map.
        shared: what each of the N images shares with the start, a key of HITS.
        path: rows that the walk visits, start first.
        captions: one for each of them.
    """
    figure = Picture(figsize=(9.6, 7.2))
    left, right = figure.add_axes((0.01, 0.31, 0.48, 0.64)), figure.add_axes((0.52, 0.31, 0.47, 0.64))
    _draw_neighborhood(left, images, nodes, edges, path)
    left.set_title("around the start")
    bare(right)
    place, shared = inside(plane), np.asarray(shared)
    for kind in ("neither", "superclass", "class"):
        right.scatter(*place[shared == kind].T, s=14, color=MAP_COLOURS[kind], alpha=0.7, linewidths=0)
    right.plot(*place[list(path)].T, color=PALETTE[1], lw=2, zorder=3)
    right.set(xlim=(0, 1), ylim=(0, 1), title="on a PCA of all images")
    for row, numbers in _numbers_of(path).items():
        _paste(right, images[row], *(place[row] - 0.03), 0.06, (PALETTE[1], "-", 1.5), zorder=4)
        _badge(right, *(place[row] + (-0.035, 0.035)), numbers)
    _legend_of_kinds(figure, set(shared.tolist()), walk=True, bottom=0.265)
    _film_strip(figure, [images[row] for row in path], captions, bottom=0.1, side=0.95)
    return figure


def _draw_neighborhood(axis, images, nodes, edges, path) -> None:
    """Back to front: edges, images, the walk, and last the images that it visits, numbered."""
    bare(axis)
    axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
    place = {node["row"]: node["place"] for node in nodes}
    heaviest = max((edge["weight"] for edge in edges), default=1)
    anchor = nodes[0]["row"]
    for edge in edges:
        if edge["from"] not in place or edge["to"] not in place:
            continue
        own = anchor in (edge["from"], edge["to"])
        colour, line, _ = HITS[edge["same"] or "neither"]
        (x, y, _), (u, v, _) = place[edge["from"]], place[edge["to"]]
        width = (1.2 if own else 0.5) + 2.4 * edge["weight"] / heaviest * (1 if own else 0.4)
        axis.plot([x, u], [y, v], color=colour, ls=line, lw=width, alpha=1 if own else 0.3, zorder=2 if own else 1)
    visited = _numbers_of(path)
    for node in nodes:
        x, y, side = node["place"]
        colour, line, width = HITS[node["same"] or "neither"]
        on = node["row"] in visited
        frame = (PALETTE[1], "-", 2.5) if on else (INK, "-", 3) if node["row"] == anchor else (colour, line, width)
        _paste(axis, images[node["row"]], x - side / 2, y - side / 2, side, frame, zorder=6 if on else 3)
        if on:
            _badge(axis, x - side / 2, y + side / 2, visited[node["row"]])
    for here, there in pairwise(path):
        if here != there:
            (x, y, _), (u, v, side) = place[here], place[there]
            look = {"arrowstyle": "-|>", "color": PALETTE[1], "lw": 2.6, "mutation_scale": 16, "shrinkA": 0}
            look |= {"shrinkB": 90 * side, "connectionstyle": "arc3,rad=0.15"}
            axis.annotate("", xy=(u, v), xytext=(x, y), arrowprops=look, zorder=5)


def _numbers_of(path: Sequence[int]) -> dict[int, list[int]]:
    """At which steps a walk is at each row that it visits."""
    numbers: dict[int, list[int]] = {}
    for step, row in enumerate(path):
        numbers.setdefault(row, []).append(step)
    return numbers


def _badge(axis, x: float, y: float, numbers: Sequence[int]) -> None:
    box = {"boxstyle": "round,pad=0.25,rounding_size=0.8", "facecolor": PALETTE[1], "edgecolor": "none"}
    text = "·".join(map(str, numbers))
    axis.text(x, y, text, color="white", fontsize=9, fontweight="bold", ha="center", va="center", bbox=box, zorder=8)


def _legend_of_kinds(figure, kinds: set[str], walk: bool, bottom: float = 0.005) -> None:
    """What colours and lines mean, in a row outside the axes."""
    known = {"class": "same class", "superclass": "same superclass", "neither": "another class"}
    shown = [(HITS[kind][:2], 2.5, text) for kind, text in known.items() if kind in kinds]
    shown += [((PALETTE[1], "-"), 3, "walk")] * walk
    handles = [Line2D([], [], color=c, ls=line, lw=width, label=text) for (c, line), width, text in shown]
    if handles:
        figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, bottom), ncols=4, fontsize=9)


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


def _paste(axis, image, left: float, bottom: float, side: float, frame: tuple | None, zorder: float = 1) -> None:
    """One image in the units of the axis, framed by (colour, line, width); the limits of the axis stay."""
    extent, limits = (left, left + side, bottom, bottom + side), axis.axis()
    axis.imshow(image_array(image), extent=extent, interpolation="nearest", zorder=zorder, aspect=axis.get_aspect())
    axis.axis(limits)
    if frame is not None:
        colour, line, width = frame
        look = {"edgecolor": colour, "linestyle": line, "linewidth": width, "facecolor": "none"}
        axis.add_patch(Rectangle((left, bottom), side, side, zorder=zorder, **look))


@styled
def pair_board(
    anchor, anchor_name: str, partners: Sequence[tuple], purity: Mapping[str, tuple[float, float]], weight: float
) -> Picture:
    """An anchor with the partners its walks reached, the purity of all pairs, and the weight of the anchor's pairs.

    Args:
        anchor: image (3, H, W).
        anchor_name: its class.
        partners: (image, name, weight, kind) each, kind a key of HITS or empty where classes are not known; at most
            seven are shown.
        purity: (share, chance) by name, each in [0, 1]; nothing where classes are not known.
        weight: of all the anchor's walk pairs together, that of its own two views being 1.
    """
    figure = Picture(figsize=(9.6, 5.0))
    shown = partners[:7]
    captions = [f"anchor\n{anchor_name}", *(f"{name}\nweight {weight:.2f}" for _, name, weight, _ in shown)]
    frames = [(INK, "-", 1.0), *(HITS[kind or "neither"] for *_, kind in shown)]
    _film_strip(figure, [anchor, *(image for image, *_ in shown)], captions, bottom=2.65, side=1.02, frames=frames)
    if len(partners) > len(shown):
        figure.text(0.99, 0.95, f"and {len(partners) - len(shown)} more", ha="right")
    if purity:
        left, names = figure.add_axes((0.2, 0.14, 0.36, 0.26)), list(purity)
        bars = left.barh(names, [purity[name][0] or 0 for name in names], color=PALETTE[0], height=0.6)
        left.bar_label(bars, [f"{purity[name][0] or 0:.2f}" for name in names], padding=8)
        for i, name in enumerate(names):
            left.plot([purity[name][1]] * 2, [i - 0.4, i + 0.4], color=PALETTE[1], lw=3)
        left.set(xlim=(0, 1), title="purity of all pairs (orange stroke: chance)", xlabel=BETTER)
        left.invert_yaxis()
        _legend_of_kinds(figure, {kind for *_, kind in shown}, walk=False, bottom=0.46)
    right = figure.add_axes((0.72, 0.1, 0.22, 0.3))
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
    left, right = figure.add_axes((0.08, 0.26, 0.5, 0.63)), figure.add_axes((0.74, 0.26, 0.2, 0.63))
    stacked = left.stackplot(alphas, *terms.values(), labels=list(terms), colors=PALETTE[: len(terms)], alpha=0.8)
    for area, hatch in zip(stacked, ("", "//", "..", "\\\\"), strict=False):  # told apart without colour, too
        area.set(hatch=hatch, edgecolor="white")
    left.axvline(alpha, color=INK, lw=2, ls="--")
    left.set(xlabel="alpha", ylabel="weighted terms of the loss", xlim=(alphas[0], alphas[-1]), title=title)
    figure.legend(loc="lower left", bbox_to_anchor=(0.07, 0.01), ncols=len(terms), fontsize=9)
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
