"""Features by file name, and what is written of them: the embedding itself, neighbours and scores as tables.

Tables are CSV in UTF-8 with one line of names; the search behind them is `metrics.local.Index`. [K]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sagkit.data.files import write_atomically, write_text
from sagkit.data.folder import printable
from sagkit.model import extract_features


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
    named = np.array([printable(name) for name in names], str)
    arrays = {"features": features.numpy(), "names": named}

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
    table, beside = pa.table({"name": named, "features": rows}), path.with_suffix(".parquet")
    write_atomically(beside, lambda draft: pq.write_table(table, draft))
    return [path, beside]


def load_embedding(path: str | Path) -> Embedding:
    """Read what `save_embedding` wrote as .npz."""
    with np.load(path, allow_pickle=False) as arrays:
        return Embedding(torch.from_numpy(arrays["features"]), tuple(arrays["names"].tolist()))


def write_neighbors(path: Path, names: Sequence[str], similarity: Tensor, neighbors: Tensor) -> None:
    """Write `Index.similar` as CSV: name, rank from 1, neighbour, similarity."""
    (items, k), named = neighbors.shape, np.array([printable(name) for name in names], str)
    columns = {
        "name": np.repeat(named, k),
        "rank": np.tile(np.arange(1, k + 1), items),
        "neighbour": named[neighbors.flatten().numpy()],
        "similarity": similarity.flatten().numpy(),
    }
    write_text(path, pd.DataFrame(columns).to_csv(index=False, float_format="%.4f"))


def write_scores(path: Path, names: Sequence[str], scores: dict[str, Tensor]) -> None:
    """Write scores (N,) by name as CSV, one row an item."""
    columns = {"name": [printable(name) for name in names]} | {name: values.numpy() for name, values in scores.items()}
    write_text(path, pd.DataFrame(columns).to_csv(index=False, float_format="%.5f"))
