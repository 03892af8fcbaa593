"""Items that are searched by example: from a query's row to a picture of its look-alikes, for notebooks and widgets.

    gallery = Gallery(images, features, names, labels);   search_view(gallery, query=12) -> Picture

The index is built once, so that a search takes milliseconds and its picture well under 0.3 s. [K]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float, Int, UInt8
from torch import Tensor

from sagkit import plots
from sagkit.retrieve import Index

MOST = 12  # results on one board


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images with their features, file names and, where they are known, classes.

    Raises:
        ValueError: for numbers of rows that differ, or too few to search.
    """

    images: UInt8[Tensor, "N 3 H W"]
    features: Float[Tensor, "N F"]
    names: tuple[str, ...]
    labels: Int[Tensor, " N"] | None = None

    def __post_init__(self):
        found = [len(part) for part in (self.images, self.features, self.names, self.labels) if part is not None]
        if len(set(found)) > 1 or found[0] < 2:
            raise ValueError(f"a gallery needs two items or more, one row each in all its parts, got {found}")

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def index(self) -> Index:
        """Exact search over the features."""
        return Index(self.features)

    def alike(self, query: int, results: int) -> tuple[list[float], list[int]]:
        """Similarities and rows of the most similar other items, most similar first.

        Raises:
            ValueError: for a query or a number of results out of range.
        """
        if not 0 <= query < len(self):
            raise ValueError(f"image {query} is not in the gallery: choose 0 to {len(self) - 1}")
        if not 1 <= results <= min(MOST, len(self) - 1):
            raise ValueError(f"{results} results: choose 1 to {min(MOST, len(self) - 1)}")
        similarity, rows = self.index.search(self.features[query][None], results + 1)
        found = [(s, r) for s, r in zip(similarity[0].tolist(), rows[0].tolist(), strict=True) if r != query][:results]
        return [s for s, _ in found], [r for _, r in found]


def search_view(gallery: Gallery, query: int, results: int = MOST) -> plots.Picture:
    """A query and its look-alikes, numbered from 1; those of its own class are marked where classes are known.

    Raises:
        ValueError: see `Gallery.alike`.
    """
    similarity, rows = gallery.alike(query, results)
    same = None if gallery.labels is None else (gallery.labels[rows] == gallery.labels[query]).tolist()
    names = [gallery.names[row] for row in (query, *rows)]
    figure = plots.search_board(gallery.images[[query, *rows]], names, similarity, same)
    figure.says = f"Image {query}, {names[0]}. Similarity from {similarity[0]:.2f} down to {similarity[-1]:.2f}" + (
        "." if same is None else f"; {sum(same)} of {len(same)} share its class folder (thick green frames)."
    )
    return figure
