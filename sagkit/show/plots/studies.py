"""Studies in pictures: label-free against semantic scores, trials of a search, ties that bound a correlation. [K]"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sagkit.show.plots.style import FAINT, INK, MARKERS, PALETTE, Picture, grid_of, styled


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
