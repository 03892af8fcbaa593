"""Every picture of the kit, from arrays only: one palette, one style, readable at slide size.

`style` holds the palette and the figure, `charts` lines, bars, maps, trees, estimates and trials, `graphs` graphs and
walks with images as nodes, `boards` what a widget draws again at every move, `structure` class trees, class distances
and rank correlations, `talk` the method in one picture. Each function returns a Picture, a matplotlib Figure, and shows
nothing; `save` writes it as SVG and PNG. [K]
"""

from __future__ import annotations

from sagkit.show.plots.boards import inside, loss_terms, neighborhood, pair_board, search_board, walk_board
from sagkit.show.plots.charts import comparison, curves, dendrogram, heatmaps, image_grid, intervals, scatter, trial_map
from sagkit.show.plots.graphs import graph_figure, graph_layout, point_graphs, walk_figure
from sagkit.show.plots.structure import class_matrices, tie_ceiling, tradeoff, trees, validity_scatter
from sagkit.show.plots.style import FAINT, INK, MARKERS, PALETTE, STYLE, Picture, credited, save, styled
from sagkit.show.plots.talk import method_diagram

__all__ = [
    "FAINT",
    "INK",
    "MARKERS",
    "PALETTE",
    "STYLE",
    "Picture",
    "class_matrices",
    "comparison",
    "credited",
    "curves",
    "dendrogram",
    "graph_figure",
    "graph_layout",
    "heatmaps",
    "image_grid",
    "inside",
    "intervals",
    "loss_terms",
    "method_diagram",
    "neighborhood",
    "pair_board",
    "point_graphs",
    "save",
    "scatter",
    "search_board",
    "styled",
    "tie_ceiling",
    "tradeoff",
    "trees",
    "trial_map",
    "validity_scatter",
    "walk_board",
    "walk_figure",
]
