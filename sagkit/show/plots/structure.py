"""Global structure in pictures: class trees, ordered class matrices, the trade-off.

`trees` sets the dendrogram of an embedding beside the reference tree, `class_matrices` orders class distances by the
reference, `tradeoff` shows local accuracy against global structure. Arrays in, Picture out. [K]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from sagkit.show.plots.style import FAINT, INK, MARKERS, PALETTE, Picture, grid_of, styled


@styled
def trees(
    left: np.ndarray,
    right: np.ndarray,
    names: Sequence[str],
    groups,
    titles: Sequence[str] = ("embedding", "reference"),
) -> Picture:
    """Two trees over the same classes, face to face; a line joins the two places of each class.

    Leaves, and the branches above leaves of one group alone, have the colour and marker of their group (superclass).

    Args:
        left: scipy linkage (C - 1, 4), such as `metrics.tree.class_tree` of an embedding.
        right: likewise of the reference.
        names: of the C classes.
        groups: (C,) group of each class, numbers or words.
        titles: of the two trees.

    Raises:
        ValueError: for trees, names and groups of different numbers of classes.
    """
    count = len(names)
    if not len(left) + 1 == len(right) + 1 == len(groups) == count:
        raise ValueError(
            f"trees of {len(left) + 1} and {len(right) + 1} leaves, {count} names and {len(groups)} groups: need one"
        )
    figure = Picture(figsize=(9.6, max(3.0, 0.13 * count + 0.8)))
    small = min(9.0, 900 / count)
    top, height = 0.5 / figure.get_figheight(), 1 - 0.8 / figure.get_figheight()
    spans = ((0.01, 0.27), (0.72, 0.27), (0.43, 0.14))
    one, two, middle = (figure.add_axes((x, 1 - top - height, width, height)) for x, width in spans)
    look = _looks(groups)
    order = _tree(one, left, groups, look, titles[0], mirrored=False)
    other = _tree(two, right, groups, look, titles[1], mirrored=True)
    at = {leaf: 5 + 10 * i for i, leaf in enumerate(other)}
    for i, leaf in enumerate(order):
        colour, marker = look[groups[leaf]]
        middle.plot([0, 1], [5 + 10 * i, at[leaf]], color=colour, lw=0.9, alpha=0.7)
        for axis, y, place, side in ((one, 5 + 10 * i, 1.04, "left"), (two, at[leaf], -0.04, "right")):
            where = {"transform": axis.get_yaxis_transform(), "clip_on": False}
            axis.plot([1.015 if side == "left" else -0.015], [y], marker, color=colour, ms=0.45 * small, **where)
            axis.text(place, y, names[leaf], color=INK, fontsize=small, ha=side, va="center", **where)
    middle.set(xlim=(0, 1), ylim=(10 * count, 0))
    middle.set_axis_off()
    return figure


def _looks(groups) -> dict:
    """Colour and marker of each group; groups that share a colour differ in marker."""
    known = sorted(set(np.asarray(groups).tolist()))
    colours = [c for c in PALETTE if c != "#F0E442"]  # yellow is too faint for lines
    return {g: (colours[i % len(colours)], MARKERS[i // len(colours) % len(MARKERS)]) for i, g in enumerate(known)}


def _tree(axis, tree: np.ndarray, groups, look: Mapping, title: str, mirrored: bool) -> list[int]:
    """Draw a tree with its leaves towards the middle; returns leaves from top to bottom."""
    from scipy.cluster.hierarchy import dendrogram as arrange

    code = np.asarray(groups).tolist()
    below = [{code[i]} for i in range(len(tree) + 1)]
    for a, b in tree[:, :2].astype(int):
        below.append(below[a] | below[b])

    def colour(node: int) -> str:
        return look[next(iter(below[node]))][0] if len(below[node]) == 1 else FAINT

    drawn = arrange(tree, no_plot=True, link_color_func=colour)
    for y, x, paint in zip(drawn["icoord"], drawn["dcoord"], drawn["color_list"], strict=True):
        axis.plot(x, y, color=paint, lw=1.3)
    top = tree[:, 2].max() * 1.02 or 1.0
    axis.set(xlim=(0, top) if mirrored else (top, 0), ylim=(10 * len(code), 0))
    axis.set_title(title, loc="right" if mirrored else "left")
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.locator_params(axis="x", nbins=4)
    axis.set_xlabel("height", fontsize=9)
    axis.tick_params(labelsize=8)
    return drawn["leaves"]


@styled
def class_matrices(panels: Mapping[str, np.ndarray], order, groups, ranks: bool = False) -> Picture:
    """Distances (C, C) of classes side by side, rows and columns in one order, with borders between groups.

    Args:
        panels: matrices by title.
        order: (C,) classes from top to bottom, such as the leaves of the reference tree.
        groups: (C,) group of each class (not yet ordered); a border is drawn where neighbours in order differ.
        ranks: colour by rank among the pairs, as a rank correlation sees them, instead of by distance.
    """
    figure, axes = grid_of(4.3 * len(panels), 4.5, len(panels))
    order = np.asarray(order)
    code = [groups[i] for i in order]
    edges = [i - 0.5 for i in range(1, len(order)) if code[i] != code[i - 1]]
    for axis, (title, matrix) in zip(axes[0], panels.items(), strict=True):
        shown = np.asarray(matrix, dtype=float)[np.ix_(order, order)].copy()
        off = ~np.eye(len(order), dtype=bool)
        if ranks:
            from scipy.stats import rankdata

            shown[off] = rankdata(shown[off]) / off.sum()
        # The diagonal is no pair, and would take the colours' lower end for itself.
        picture = axis.imshow(np.where(off, shown, np.nan), cmap="viridis", interpolation="nearest")
        bar = figure.colorbar(picture, ax=axis, orientation="horizontal", shrink=0.7, pad=0.03)
        bar.ax.locator_params(nbins=4)
        bar.ax.tick_params(labelsize=8)
        ends = [-0.5, *edges, len(order) - 0.5]
        for low, high in pairwise(ends):
            if high - low > 1:
                axis.plot([low, high, high, low, low], [low, low, high, high, low], color="white", lw=1.4)
                axis.plot([low, high, high, low, low], [low, low, high, high, low], color=PALETTE[1], lw=0.8)
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


@styled
def tradeoff(
    points: Mapping[str, Mapping[str, float]],
    floor: tuple[float, float] | None = None,
    xlabel: str = "local: kNN accuracy",
    ylabel: str = "global: Spearman over image pairs",
) -> Picture:
    """Local accuracy against global structure, a marker with its name for each embedding.

    Args:
        points: by name, `x` and `y`, and optionally the ends of intervals x_low, x_high, y_low, y_high.
        floor: mean and standard deviation of y over random networks, drawn as a line in a band of two deviations.
        xlabel: of the local figure.
        ylabel: of the global figure.
    """
    figure, axes = grid_of(7.4, 4.6)
    axis = axes[0, 0]
    for i, point in enumerate(points.values()):
        x, y = point["x"], point["y"]
        bars = {}
        for key in ("x", "y"):
            if f"{key}_low" in point:
                bars[f"{key}err"] = np.array([[point[key] - point[f"{key}_low"]], [point[f"{key}_high"] - point[key]]])
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        axis.errorbar(x, y, **bars, color=colour, marker=marker, ms=8, capsize=3, lw=1.4, ls="none")
    if floor is not None:
        mean, sd = floor
        axis.axhspan(mean - 2 * sd, mean + 2 * sd, color=FAINT, alpha=0.35, lw=0)
        axis.axhline(mean, color=FAINT, lw=1.5)
        axis.text(
            0.995,
            mean,
            "random floor, ± 2 sd",
            ha="right",
            va="bottom",
            fontsize=8,
            transform=axis.get_yaxis_transform(),
        )
    axis.margins(0.45, 0.15)  # room for names on either side
    axis.set(xlabel=xlabel, ylabel=ylabel)
    bars = [(p["x"], p.get("y_low", p["y"]), p.get("y_high", p["y"])) for p in points.values()]
    _direct_labels(axis, [(p["x"], p["y"]) for p in points.values()], list(points), bars)
    return figure


def _direct_labels(axis, places, names: Sequence[str], bars, size: float = 9) -> None:
    """Names beside their points, moved up and down until no two overlap, tied to the point by a thin line if far.

    Args:
        axis: that the points are on.
        places: (x, y) of each point.
        names: of the points.
        bars: (x, low, high) of each point's vertical interval, which the names of others keep off where they can.
        size: of the letters, in points.
    """
    figure = axis.figure
    figure.draw_without_rendering()  # limits and layout decide where points lie on the page
    points, low, high = (
        axis.transData.transform(np.asarray(what, dtype=float)) * 72 / figure.dpi
        for what in (places, [b[:2] for b in bars], [b[::2] for b in bars])
    )
    box = axis.get_window_extent().extents * 72 / figure.dpi

    def clear(i: int, left: float, right: float) -> bool:
        y = points[i][1]
        met = (left < low[:, 0]) & (low[:, 0] < right) & (low[:, 1] < y + 1.4 * size) & (y < high[:, 1])
        return bool(box[0] < left and right < box[2] and not met.any())

    taken: list[tuple[float, float, float]] = []  # left, right, middle of labels set
    for i in sorted(range(len(names)), key=lambda i: -points[i][1]):
        wide = 0.56 * size * len(names[i])
        x, y = points[i]
        right_is, left_is = clear(i, x + 5, x + wide + 12), clear(i, x - wide - 12, x - 5)
        to_left = not right_is and (left_is or x + wide + 12 > box[2])
        left = x - wide - 10 if to_left else x + 10
        middle = y + 0.8 * size  # clear of the horizontal bar
        while clash := [m for a, b, m in taken if left < b and a < left + wide and abs(m - middle) < 1.25 * size]:
            middle = min(clash) - 1.26 * size
        taken.append((left, left + wide, middle))
        far = abs(middle - y) > 2.2 * size
        axis.annotate(
            names[i],
            places[i],
            (-10 if to_left else 10, middle - y),
            textcoords="offset points",
            fontsize=size,
            ha="right" if to_left else "left",
            va="center",
            arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.8} if far else None,
        )
