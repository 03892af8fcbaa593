"""A search by example as one picture, drawn again at every click. [K]"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.patches import Rectangle

from sagkit.plots.boards import HITS
from sagkit.plots.style import INK, Picture, pixels, styled


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
        axis.imshow(pixels(image), extent=(left, left + side, bottom, bottom + side), interpolation="nearest")
        axis.text(left + side / 2, bottom - 0.05, text, ha="center", va="top", fontsize=8)
        colour, line, width = frame
        look = {"edgecolor": colour, "linestyle": line, "linewidth": width, "facecolor": "none"}
        axis.add_patch(Rectangle((left, bottom), side, side, **look))

    short = ["\n".join(_shortened(part) for part in name.rsplit("/", 1)) for name in names]
    paste(images[0], 0.15, 1.1, 2.1, f"searched for\n{short[0]}", (INK, "-", 1.5))
    for i, value in enumerate(similarity):
        row, column = divmod(i, 6)
        frame = HITS["class"] if same is not None and same[i] else HITS["neither"]
        paste(
            images[i + 1], 2.65 + 1.16 * column, 2.62 - 1.9 * row, 1.0, f"{i + 1} · {value:.2f}\n{short[i + 1]}", frame
        )
    axis.set(xlim=(0, 9.6), ylim=(0, 3.9))
    axis.set_axis_off()
    return figure


def _shortened(text: str, most: int = 18) -> str:
    return text if len(text) <= most else f"{text[: most - 5]}…{text[-4:]}"
