"""Features to what a user asks of them first: similar items, near duplicates, and a file that keeps features by name.

    similarity of x and y = cos(x - m, y - m),  m the mean of the items searched

Sources: [K] cosines are centred, as in `graph`; near duplicates are told by the correlation of 16 x 16 pixels, before
anything is trained. Search is exact at every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sagkit.checkpoint import write_atomically, write_text
from sagkit.graph import centre_and_normalize, nearest_neighbors
from sagkit.model import extract_features

FAISS_ABOVE = 200_000  # items; below, one matrix product answers a query in milliseconds
SIDE = 16  # pixels of the thumbnails that tell near duplicates
CHUNK = 1024  # queries at a time


class Embedding(NamedTuple):
    """Features (N, F), float32, and the name of the item behind each row."""

    features: Tensor
    names: tuple[str, ...]


def embed(encoder: nn.Module, images: Tensor, names: Sequence[str] | None = None, batch_size: int = 500) -> Embedding:
    """Features of clean images by name; "0", "1", ... where none are given.

    Args:
        encoder: images (B, 3, H, W) in [0, 1] to features (B, F).
        images: uint8 (N, 3, H, W).
        names: one each, such as `ImageSet.paths`.
        batch_size: images at a time.

    Raises:
        ValueError: for a number of names that is not that of the images.
    """
    names = tuple(map(str, range(len(images)))) if names is None else tuple(names)
    if len(names) != len(images):
        raise ValueError(f"{len(names)} names for {len(images)} images: give one each, or None")
    return Embedding(extract_features(encoder, images, batch_size), names)


def save_embedding(path: str | Path, embedding: Embedding) -> list[Path]:
    """Write `path` (.npz: features, names) and, where pyarrow is installed, the same as .parquet beside it.

    Returns:
        The files written, each whole or not there.

    Raises:
        OSError: where they cannot be written.
    """
    path, (features, names) = Path(path), embedding
    printable = [_printable(name) for name in names]
    arrays = {"features": features.numpy(), "names": np.array(printable, dtype=str)}

    def write(draft: Path) -> None:
        with open(draft, "wb") as file:  # a file, because savez would add .npz to the draft's name
            np.savez(file, **arrays)

    write_atomically(path, write)
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return [path]
    rows = pa.FixedSizeListArray.from_arrays(pa.array(arrays["features"].ravel()), arrays["features"].shape[1])
    table, beside = pa.table({"name": printable, "features": rows}), path.with_suffix(".parquet")
    write_atomically(beside, lambda draft: pq.write_table(table, draft))
    return [path, beside]


def load_embedding(path: str | Path) -> Embedding:
    """Read what `save_embedding` wrote as .npz."""
    with np.load(path, allow_pickle=False) as arrays:
        return Embedding(torch.from_numpy(arrays["features"]), tuple(arrays["names"].tolist()))


class Index:
    """Exact search for the most similar items by centred cosine.

    Args:
        features: (N, F) of the items.
        faiss_above: with more items than this, faiss searches, if it is installed; its flat index is exact, too.
    """

    def __init__(self, features: Float[Tensor, "N F"], faiss_above: int = FAISS_ABOVE):
        self.mean = features.float().mean(dim=0)
        self.unit = centre_and_normalize(features.float())
        self.faiss = _faiss_index(self.unit) if len(features) > faiss_above else None

    def __len__(self) -> int:
        return len(self.unit)

    def search(self, queries: Float[Tensor, "Q F"], k: int) -> tuple[Float[Tensor, "Q K"], Int[Tensor, "Q K"]]:
        """The k most similar items of each query: similarities, largest first, and rows.

        Raises:
            ValueError: for k out of range.
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k = {k} results need 1 <= k <= {len(self)} items")
        unit = F.normalize(queries.float() - self.mean, dim=1)
        if self.faiss is not None:
            similarity, rows = self.faiss.search(unit.numpy(), k)
            return torch.from_numpy(similarity), torch.from_numpy(rows)
        found = [(part @ self.unit.T).topk(k, dim=1) for part in unit.split(CHUNK)]
        return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])

    def similar(self, k: int) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]:
        """The k most similar other items of every item."""
        return nearest_neighbors(self.unit, k)


def _faiss_index(unit: Tensor):
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit.numpy())
    return index


def near_duplicates(images: Tensor, least: float = 0.98) -> list[list[int]]:
    """Groups of images that differ by recompression, rescaling, brightness or contrast alone, largest group first.

    Images are shrunk to 16 x 16, and two are near duplicates if the correlation of those pixels is at least `least`;
    flat images if their colours differ by at most two of 255 levels. In pictures of
    little contrast, such as sky, the traces of compression hide copies. A group is connected, not a clique.

    Args:
        images: uint8 (N, 3, H, W).
        least: correlation, in (0, 1].
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    small = [F.interpolate(part.float(), (SIDE, SIDE), mode="area").flatten(1) for part in images.split(CHUNK)]
    x = torch.cat(small)  # (N, 768)
    centred = x - x.mean(dim=1, keepdim=True)
    flat = centred.std(dim=1) < 2  # of 255 levels: what remains is noise
    unit = F.normalize(centred, dim=1) * ~flat[:, None]
    edges = []
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        alike = unit[rows] @ unit.T >= least
        alike |= flat[rows, None] & flat & (torch.cdist(x[rows], x, p=float("inf")) <= 2) if flat[rows].any() else False
        edges.append(alike.triu(diagonal=start + 1).nonzero() + torch.tensor([start, 0]))
    i, j = torch.cat(edges).T.numpy() if edges else (np.array([], int),) * 2
    joined = coo_array((np.ones(len(i)), (i, j)), shape=(len(x), len(x)))
    group = connected_components(joined, directed=False)[1]
    order = np.argsort(group, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted((g.tolist() for g in groups if len(g) > 1), key=lambda g: (-len(g), g))


def precision_at(features: Float[Tensor, "N F"], labels: Int[Tensor, " N"], k: int = 10) -> float:
    """Mean share of an item's k most similar others that have its label."""
    return share_alike(Index(features).similar(k)[1], labels)


def share_alike(neighbors: Int[Tensor, "N K"], labels: Int[Tensor, " N"]) -> float:
    """Mean share of each item's neighbours that have its label."""
    return float((labels[neighbors] == labels[:, None]).float().mean())


def write_neighbors(path: Path, names: Sequence[str], similarity: Tensor, neighbors: Tensor) -> None:
    """Write `Index.similar` as CSV: name, rank from 1, neighbour, similarity."""
    rows = ["name,rank,neighbour,similarity"]
    for i, (values, found) in enumerate(zip(similarity.tolist(), neighbors.tolist(), strict=True)):
        rows += [
            f"{_quoted(names[i])},{rank},{_quoted(names[j])},{value:.4f}"
            for rank, (value, j) in enumerate(zip(values, found, strict=True), start=1)
        ]
    write_text(path, "\n".join(rows) + "\n")


def write_scores(path: Path, names: Sequence[str], scores: dict[str, Tensor]) -> None:
    """Write scores (N,) by name as CSV, one row an item."""
    rows = [",".join(["name", *scores])]
    for i, name in enumerate(names):
        rows.append(",".join([_quoted(name), *(f"{float(values[i]):.5f}" for values in scores.values())]))
    write_text(path, "\n".join(rows) + "\n")


def _printable(name: str) -> str:
    """A file name that is no Unicode is kept with its bytes escaped rather than refused."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _quoted(name: str) -> str:
    return '"' + _printable(name).replace('"', '""') + '"'
