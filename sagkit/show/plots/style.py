"""The one style of every picture: palette, markers, fonts, and a figure that shows itself.

Colours are Okabe and Ito's, which stay apart for colour-blind readers, with Tol's wine in place of their yellow, which
white paper swallows, and a dark olive as the ninth; a highlighted thing also differs in shape or weight. [K]
"""

from __future__ import annotations

from functools import wraps
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from sagkit.data.files import write_atomically

INK, FAINT = "#222222", "#b8bec7"
BETTER = "better →"  # under a horizontal axis with a good end
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#000000", "#6b6b00")
MARKERS = "osD^vP*Xh"
METHODS = {  # the same in every picture, whatever else it shows
    "vicreg": (PALETTE[0], "o"),
    "sag-vicreg": (PALETTE[1], "s"),
    "dino": (PALETTE[2], "D"),
    "i-jepa": (PALETTE[3], "^"),
    "ijepa": (PALETTE[3], "^"),
    "barlow-twins": (PALETTE[4], "v"),
    "untrained": ("#7a828c", "P"),
    "untrained network": ("#7a828c", "P"),
    "pixels": (PALETTE[7], "X"),
    "raw pixels": (PALETTE[7], "X"),
}
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "figure.dpi": 96,
    "savefig.dpi": 160,
}


def looks(names) -> list[tuple[str, str]]:
    """Colour and marker of each name: a method's own, and for the others, in order, what no method here has."""
    own = [METHODS.get(name.lower()) for name in names]
    spare = [look for look in zip(PALETTE, MARKERS, strict=True) if look not in own]
    rest = iter(range(len(own)))
    return [look or spare[next(rest) % len(spare)] for look in own]


class Picture(Figure):
    """A matplotlib Figure that a notebook shows without pyplot and its global state.

    says: what the picture shows, in words and numbers; empty where its title is enough.
    """

    says: str = ""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=STYLE["figure.dpi"], bbox_inches="tight")
        return buffer.getvalue()

    def quick_png(self) -> bytes:
        """PNG at screen resolution, drawn once: margins are kept and compression is light, for pictures that move."""
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=STYLE["figure.dpi"], pil_kwargs={"compress_level": 1})
        return buffer.getvalue()


def save(figure: Figure, path: str | Path, suffixes: tuple[str, ...] = (".png", ".svg"), source: str = "") -> None:
    """Write a figure as `path`.png and `path`.svg, or with other suffixes; the folder is made if need be.

    `source` is kept in the files' metadata under that name: what the figure was drawn from.
    """
    told = {"bbox_inches": "tight", "metadata": {"Source": source} if source else None}
    for suffix in suffixes:
        kind = {"format": suffix.removeprefix("."), **told}
        write_atomically(Path(path).with_suffix(suffix), lambda draft, kind=kind: figure.savefig(draft, **kind))


def credited(figure: Figure, credit: str) -> Figure:
    """The figure with a line below it that says whose pictures it shows; as it was, where the line is empty."""
    if credit:
        figure.supxlabel(credit, fontsize=7, color=INK, x=0.99, ha="right")
    return figure


def styled(draw):
    """Run a drawing function under the kit's style, whatever the caller's matplotlib settings are."""

    @wraps(draw)
    def under_style(*args, **kwargs):
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return under_style


def grid_of(width: float, height: float, columns: int = 1, rows: int = 1, **subplots):
    """A Picture of width x height inches, and its axes as an array (rows, columns)."""
    figure = Picture(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **subplots)


def bare(axis) -> None:
    """Take ticks and spines off an axis."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def image_array(image) -> np.ndarray:
    """One image (3, H, W), uint8 or floats in [0, 1], as matplotlib wants it: (H, W, 3)."""
    array = np.asarray(image)
    return np.moveaxis(array, 0, -1) if array.dtype == np.uint8 else np.moveaxis(array.clip(0, 1), 0, -1)
