"""The method in one picture, drawn from a real batch, at slide size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sagkit.show.plots.boards import draw_heaviest_edges, inside
from sagkit.show.plots.graphs import draw_path, draw_thumbnails
from sagkit.show.plots.style import INK, PALETTE, Picture, bare, image_array, styled

LOSS = "25 [ s\n + alpha · r ]\n+ variance\n+ covariance"
WORDS = """s  own views,
   as in VICReg
r  walk pairs, each
   by its weight w:
   the product of
   the similarities
   along its path"""


@styled
def method_diagram(
    images, view_a, view_b, graph, xy: np.ndarray, path: Sequence[int], pairs: Sequence[tuple[int, int, float]]
) -> Picture:
    """Batch, two views, similarity graph with one walk, walk pairs, loss: from left to right.

    Args:
        images: (N, 3, H, W).
        view_a: the same images' first views.
        view_b: their second views.
        graph: a networkx graph of the N images.
        xy: places (N, 2) of its nodes.
        path: a walk on it, drawn with arrows.
        pairs: up to four (anchor, positive, weight) to show; the first is the walk's own.
    """
    figure = Picture(figsize=(13.3, 5.6))
    shown = [pairs[0][0], *(anchor for anchor, *_ in pairs[1:4])]
    heads = ((0.01, "1 batch"), (0.1, "2 two views of each"), (0.29, "3 similarity graph and a weighted walk"))
    for x, text in (*heads, (0.67, "4 walk pairs"), (0.89, "5 loss")):
        figure.text(x, 0.94, text, fontsize=14, fontweight="bold")
    for row, (node, (anchor, positive, weight)) in enumerate(zip(shown, pairs, strict=False)):
        bottom = 0.71 - 0.22 * row
        for x, image in ((0.015, images[node]), (0.105, view_a[node]), (0.185, view_b[node])):
            _framed_image(figure, x, bottom, image, INK)
        _framed_image(figure, 0.675, bottom, images[anchor], PALETTE[0])
        _framed_image(figure, 0.8, bottom, images[positive], PALETTE[1])
        figure.text(0.7755, bottom + 0.09, "→", fontsize=22, ha="center", color=PALETTE[1])
        figure.text(0.7755, bottom + 0.03, f"w {weight:.2f}", fontsize=10.5, ha="center")
    axis = figure.add_axes((0.285, 0.05, 0.36, 0.84))
    bare(axis)
    place = inside(xy, 0.06)
    draw_heaviest_edges(axis, place, graph)
    draw_thumbnails(axis, place, images, 0.7)
    draw_path(axis, place, path, head=22)
    draw_thumbnails(axis, place, images, 1.0, nodes=dict.fromkeys(path), edge=PALETTE[1], width=2.5)
    draw_thumbnails(axis, place, images, 1.0, nodes=path[:1], edge=PALETTE[0], width=3.5)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    figure.text(0.89, 0.85, LOSS, fontsize=12, va="top", family="monospace", linespacing=1.7)
    figure.text(0.89, 0.5, WORDS, fontsize=10, va="top", linespacing=1.5)
    return figure


def _framed_image(figure, x: float, bottom: float, image, colour: str) -> None:
    axis = figure.add_axes((x, bottom, 0.076, 0.19))
    bare(axis)
    axis.imshow(image_array(image), interpolation="nearest")
    for spine in axis.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.5)
