"""Global structure in pictures: class trees, ordered class matrices, the trade-off, what bounds a rank correlation.

`trees` sets the dendrogram of an embedding beside the reference tree, `class_matrices` orders class distances by the
reference, `tradeoff` shows local accuracy against global structure, `validity_scatter` label-free against semantic
scores, `tie_ceiling` what ties leave attainable. Arrays in, Picture out. [K]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from sagkit.show.plots.style import FAINT, INK, MARKERS, PALETTE, Picture, grid_of, looks, styled


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
    return {g: (PALETTE[i % len(PALETTE)], MARKERS[i // len(PALETTE) % len(MARKERS)]) for i, g in enumerate(known)}


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
    xlabel: str = "local: kNN accuracy (better →)",
    ylabel: str = "global: Spearman over image pairs (better →)",
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
    for point, (colour, marker) in zip(points.values(), looks(points), strict=True):
        x, y = point["x"], point["y"]
        bars = {}
        for key in ("x", "y"):
            if f"{key}_low" in point:
                bars[f"{key}err"] = np.array([[point[key] - point[f"{key}_low"]], [point[f"{key}_high"] - point[key]]])
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
    _name_points(axis, points)
    return figure


def _name_points(axis, points: Mapping[str, Mapping[str, float]]) -> None:
    """A name near each point of `tradeoff`, clear of other names and of all intervals, tied to its point by a line."""
    from textalloc import allocate

    axis.figure.draw_without_rendering()  # limits and layout decide where points lie on the page
    axis.set(xlim=axis.get_xlim(), ylim=axis.get_ylim())  # the lines to the names must not move them
    x, y = ([point[key] for point in points.values()] for key in "xy")
    wide, high = ([[p.get(f"{key}_{end}", p[key]) for end in ("low", "high")] for p in points.values()] for key in "xy")
    allocate(
        axis,
        x,
        y,
        list(points),
        x_scatter=x,
        y_scatter=y,
        x_lines=wide + [[value, value] for value in x],
        y_lines=[[value, value] for value in y] + high,
        textsize=9,
        textcolor=INK,
        linecolor=FAINT,
        min_distance=0.02,
        max_distance=0.1,
        avoid_label_lines_overlap=True,
        avoid_crossing_label_lines=True,
    )


@styled
def validity_scatter(
    panels: Mapping[str, np.ndarray],
    semantic: np.ndarray,
    kinds,
    intervals=None,
) -> Picture:
    """Label-free score (x) against semantic score (y), one panel per score and one point per embedding.

    Args:
        panels: scores (n,) by name; Spearman with the semantic score is set into each title.
        semantic: (n,).
        kinds: (n,) kind of each embedding; colour and marker.
        intervals: (n, 2) ends of the semantic score's intervals.
    """
    from scipy.stats import spearmanr

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = grid_of(3.3 * columns, 3.1 * rows + 0.5, columns, rows, sharey=True)
    semantic, kinds = np.asarray(semantic, dtype=float), np.asarray(kinds)
    for axis, (name, scores) in zip(axes.flat, panels.items(), strict=False):
        scores = np.asarray(scores, dtype=float)
        for i, kind in enumerate(dict.fromkeys(kinds.tolist())):
            chosen = kinds == kind
            look = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "alpha": 0.8}
            bars = None if intervals is None else np.abs(np.asarray(intervals)[chosen] - semantic[chosen, None]).T
            axis.errorbar(scores[chosen], semantic[chosen], bars, ms=5, ls="none", elinewidth=0.8, label=kind, **look)
        axis.set_title(f"{name}\nSpearman {spearmanr(scores, semantic).statistic:+.2f}", fontsize=10)
        axis.locator_params(axis="x", nbins=4)
        axis.tick_params(labelsize=8)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for i, axis in enumerate(axes.flat[: len(panels)]):
        if i + columns >= len(panels):  # the lowest of its column
            axis.set_xlabel("label-free score", fontsize=9)
    figure.supylabel("semantic score", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    return figure


@styled
def tie_ceiling(references: Mapping[str, np.ndarray]) -> Picture:
    """Why ties bound a rank correlation: ranks in a reference against those of the best embedding without ties.

    The best embedding never contradicts the reference, and yet has to order pairs that the reference leaves equal:
    the steps leave the diagonal, and their correlation with it, in the title, is the ceiling.

    Args:
        references: distances (n,) of the pairs that are compared, by name of the reference.
    """
    from scipy.stats import rankdata

    figure, axes = grid_of(3.5 * len(references), 3.6, len(references), sharey=True)
    for axis, (name, values) in zip(axes[0], references.items(), strict=True):
        wanted = np.sort(rankdata(values)) / len(values)
        best = np.arange(1, len(values) + 1) / len(values)
        ceiling = np.corrcoef(best, wanted)[0, 1] if np.ptp(wanted) else 0.0
        counts = np.unique(wanted, return_counts=True)[1].astype(float)
        tied = (counts * (counts - 1)).sum() / (len(values) * (len(values) - 1))
        axis.plot([0, 1], [0, 1], color=FAINT, lw=1.5, ls="--")
        axis.plot(best, wanted, color=PALETTE[0], lw=2)
        axis.set_title(f"{name}\nceiling {ceiling:.3f}, {tied:.0%} of comparisons tied", fontsize=10)
        axis.set(xlabel="rank in the best embedding", aspect="equal", xlim=(0, 1), ylim=(0, 1))
    axes[0, 0].set_ylabel("rank in the reference")
    return figure
