"""Charts and grids of images: maps, bars, matrices, lines, trees, estimates with their intervals, trials of a search.

Of an estimate, a faint mark is one seed, a strong one their mean, the bar its interval, and a dashed line the value of
no effect. A row without an interval has no bar: two seeds have a mean and no interval worth drawing. [K]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sagkit.show.plots.style import (
    BETTER,
    FAINT,
    INK,
    MARKERS,
    PALETTE,
    Picture,
    bare,
    grid_of,
    image_array,
    looks,
    styled,
)


@styled
def image_grid(
    images, titles: Sequence[str] | None = None, columns: int = 9, title: str = "", side: float = 1.0
) -> Picture:
    """Images (N, 3, H, W) in rows of `columns`, each with its own small title of one or more lines."""
    rows = -(-len(images) // columns)
    lines = max((text.count("\n") + 1 for text in titles), default=0) if titles is not None else 0
    height = side * 1.05 + 0.15 * lines
    figure, axes = grid_of(columns * side, rows * height + 0.3 * bool(title), columns, rows)
    for i, axis in enumerate(axes.flat):
        bare(axis)
        if i < len(images):
            axis.imshow(image_array(images[i]), interpolation="nearest")
            if titles is not None:
                axis.set_title(titles[i], fontsize=8, fontweight="normal", loc="center", pad=2)
    if title:
        figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    return figure


@styled
def scatter(panels: Mapping[str, np.ndarray], labels, names: Sequence[str]) -> Picture:
    """One panel per embedding (N, 2), points coloured and shaped by label; those of label -1 are faint, behind."""
    figure, axes = grid_of(4.6 * len(panels), 4.6, len(panels))
    labels = np.asarray(labels)
    others = labels < 0
    area = min(30, max(9, 6000 / len(labels)))  # few points are drawn larger
    for axis, (title, xy) in zip(axes[0], panels.items(), strict=True):
        bare(axis)
        if others.any():
            axis.scatter(*xy[others].T, s=area, alpha=0.6, color=FAINT, linewidths=0, label="others", zorder=0)
        for i, name in enumerate(names):
            chosen = labels == i
            # From the tenth name on, markers are shifted against colours, so that up to 81 pairs differ.
            look = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[(i + i // len(PALETTE)) % len(MARKERS)]}
            size, alpha = (2.5 * area, 0.9) if others.any() else (area, 0.65)
            axis.scatter(*xy[chosen].T, s=size, alpha=alpha, linewidths=0, label=name, **look)
        axis.set_title(title)
    handles, shown = axes[0, 0].get_legend_handles_labels()
    fits = int(4.6 * len(panels) / (0.5 + 0.08 * max(map(len, shown))))  # inches of figure and of an entry
    figure.legend(handles, shown, loc="outside lower center", ncols=max(1, min(6, fits, len(shown))), markerscale=1.5)
    return figure


@styled
def comparison(figures: Mapping[str, Mapping[str, float]], columns: Sequence[str], titles: Sequence[str]) -> Picture:
    """Methods side by side: one panel per figure of merit, of which more is better, one bar per method, its value."""
    figure, axes = grid_of(3.4 * len(columns), 0.5 * len(figures) + 0.9, len(columns), sharey=True)
    methods = list(figures)
    for axis, column, title in zip(axes[0], columns, titles, strict=True):
        values = [figures[method][column] for method in methods]
        shown = axis.barh(methods, values, color=[colour for colour, _ in looks(methods)], height=0.62)
        axis.bar_label(shown, fmt="%.3f", padding=3)
        axis.set_xlim(min(0, *values), max(values) * 1.4)
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_xlabel(BETTER, loc="left")
        axis.spines["bottom"].set_visible(False)
    axes[0, 0].invert_yaxis()
    return figure


@styled
def heatmaps(panels: Mapping[str, np.ndarray], ticks: Sequence[str] = ()) -> Picture:
    """Matrices (C, C), such as distances of classes, side by side, each on its own scale; `ticks` name the rows."""
    figure, axes = grid_of(4.4 * len(panels), 4.2, len(panels))
    for axis, (title, matrix) in zip(axes[0], panels.items(), strict=True):
        picture = axis.imshow(matrix, cmap="viridis", interpolation="nearest")
        figure.colorbar(picture, ax=axis, shrink=0.75)
        axis.set_title(title)
        few = len(ticks) <= 12  # as many as can be read at a glance stand on both axes
        axis.set_xticks(range(len(ticks)) if few else [], ticks if few else [], fontsize=10)
        axis.set_yticks(range(len(ticks)), ticks, fontsize=10 if few else 6)
    return figure


@styled
def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    joined: bool = True,
    margins: Mapping[str, Sequence[float]] | None = None,
) -> Picture:
    """Lines (x, y) by name, told apart by colour and marker; points alone where they are not `joined`.

    With `margins`, half-widths by name, a line lies in a band of its own colour.
    """
    figure, axes = grid_of(6, 3.4)
    axis = axes[0, 0]
    for (name, (x, y)), (colour, marker) in zip(series.items(), looks(series), strict=True):
        look = {"color": colour, "marker": marker, "markersize": 4}
        axis.plot(x, y, linestyle="-" if joined else "none", label=name, **look)
        if margins is not None and name in margins:
            y, half = np.asarray(y, dtype=float), np.asarray(margins[name], dtype=float)
            axis.fill_between(x, y - half, y + half, color=look["color"], alpha=0.18, linewidth=0)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    if all(float(value).is_integer() for x, _ in series.values() for value in x):  # there is no epoch 1.25
        axis.locator_params(axis="x", integer=True)
    figure.legend(loc="outside upper center", ncols=3)  # inside, it lies on lines somewhere
    return figure


@styled
def dendrogram(tree: np.ndarray, names: Sequence[str], cut: int = 1, title: str = "") -> Picture:
    """A tree of clusters from scipy's linkage (C - 1, 4), cut into `cut` clusters.

    A cluster has its own colour, its names a number in front; where the tree is above the cut, it is grey.

    Raises:
        ValueError: for a cut below 1 or above the number of classes.
    """
    from scipy.cluster.hierarchy import dendrogram as arrange
    from scipy.cluster.hierarchy import fcluster

    heights = tree[:, 2]
    if not 1 <= cut <= len(names):
        raise ValueError(f"cut = {cut} clusters need 1 <= cut <= {len(names)} classes: choose one in between")
    edges = np.r_[0, heights, heights[-1] * 1.1]  # between two of them the tree has one number of clusters
    level = edges[len(names) - cut : len(names) - cut + 2].mean()
    drawn, members = arrange(tree, no_plot=True, color_threshold=0), fcluster(tree, cut, "maxclust")
    order = drawn["leaves"]
    number = {cluster: i for i, cluster in enumerate(dict.fromkeys(members[order]))}  # from left to right
    figure = Picture(figsize=(9.6, 5.4))
    axis = figure.add_axes((0.07, 0.4, 0.92, 0.54))
    for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        leaf = round((x[1] - 5) / 10) if y[1] <= level else None
        colour = FAINT if leaf is None else PALETTE[number[members[order[leaf]]] % len(PALETTE)]
        axis.plot(x, y, color=colour, lw=2)
    if cut > 1:
        axis.axhline(level, color=INK, lw=1.5, ls="--")
    labels = [f"{number[members[leaf]] + 1} · {names[leaf]}" for leaf in order]
    axis.set_xticks(5 + 10 * np.arange(len(order)), labels, rotation=90, fontsize=9 if len(order) < 40 else 6)
    for tick, leaf in zip(axis.get_xticklabels(), order, strict=True):
        tick.set_color(PALETTE[number[members[leaf]] % len(PALETTE)])
    axis.set(ylabel="distance", ylim=(0, heights[-1] * 1.08), title=title)
    return figure


@styled
def intervals(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], float, tuple[float, float] | None]]],
    nothing: float | None = None,
    unit: str = "",
) -> Picture:
    """One panel per figure of merit, one row per name: (values, centre, (low, high) or None).

    Args:
        panels: rows by title; every panel has the rows of the first, in its order.
        nothing: value of no effect, such as 0 for a difference; a dashed line.
        unit: label of every horizontal axis.

    Raises:
        ValueError: for panels whose rows differ.
    """
    names = list(next(iter(panels.values())))
    for title, rows in panels.items():
        if list(rows) != names:
            raise ValueError(f"panel {title!r} has rows {list(rows)}, the first has {names}: give all panels the same")
    figure, axes = grid_of(3.4 * len(panels), 0.5 * len(names) + 1.1, len(panels), sharey=True)
    for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
        if nothing is not None:
            axis.axvline(nothing, color=INK, lw=1, ls="--", zorder=0)
        for i, ((values, centre, interval), (colour, marker)) in enumerate(
            zip(rows.values(), looks(rows), strict=True)
        ):
            axis.plot(values, [i + 0.22] * len(values), ls="none", marker="|", ms=7, color=FAINT, mew=1.5)
            if interval is not None:
                axis.plot(interval, [i, i], color=colour, lw=2.5, solid_capstyle="butt")
            axis.plot([centre], [i], color=colour, marker=marker, ms=7)
        axis.set_title(title)
        axis.set_xlabel(unit)
        axis.margins(x=0.12)
        axis.locator_params(axis="x", nbins=4)
        axis.set_yticks(range(len(names)), names)
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(len(names) - 0.5, -0.5)
    return figure


@styled
def trial_map(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray, str, str]],
    kinds: Sequence[str],
    marked: Mapping[str, int],
    fronts: Mapping[str, Sequence[int]] | None = None,
) -> Picture:
    """Trials of one or more searches as points, some of them marked by name, on one panel for each pair of figures.

    Args:
        panels: by title, x (n,), y (n,) and the names of both.
        kinds: (n,) search that each trial is from; grey markers of different shape.
        marked: position of a trial by name, in 0 .. n - 1.
        fronts: by title, trials that a staircase joins, in rising order of x.
    """
    figure, axes = grid_of(4.4 * len(panels), 4.4, len(panels))
    kinds = np.asarray(kinds)
    for axis, (title, (x, y, xlabel, ylabel)) in zip(axes[0], panels.items(), strict=True):
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        front = list((fronts or {}).get(title, ()))
        if front:
            axis.plot(x[front], y[front], color=INK, lw=1.5, drawstyle="steps-post", label="front", zorder=1)
        for i, kind in enumerate(dict.fromkeys(kinds.tolist())):
            chosen, marker = kinds == kind, ("o", "x")[i % 2]
            axis.plot(x[chosen], y[chosen], color="#7a828c", marker=marker, ms=4.5, ls="none", label=kind, zorder=2)
        for i, (name, row) in enumerate(marked.items()):
            look = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[1 + i % (len(MARKERS) - 1)], "mfc": "none"}
            axis.plot(x[row], y[row], ms=13, mew=2, ls="none", label=name, zorder=3, **look)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.set_title(title, fontsize=11)
        axis.locator_params(nbins=5)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=9, handlelength=1.5)
    return figure
