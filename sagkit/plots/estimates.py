"""Estimates with their intervals, one row each: what a table says, to be seen at a glance.

    a faint mark is one seed, a strong one their mean, the bar its interval; a dashed line is the value of no effect

A row without an interval has no bar: two seeds have a mean and no interval worth drawing. [K]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sagkit.plots.style import FAINT, INK, MARKERS, PALETTE, Picture, grid_of, styled


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
        for i, (values, centre, interval) in enumerate(rows.values()):
            colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
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
