"""The border of all metrics: whatever holds features, labels or class distances comes in as one plain array, or is
refused in one line that names the row.

    feature_array    (N, F) floats        tensor of any type and device, array, lists, table, sparse matrix
    label_array      (N,) int64           whole numbers, or words, which are numbered in the order of their names
    distance_array   (C, C) floats        or a hierarchy of named classes (`data.taxonomy.hierarchy_distances`)

A row of zeros (under centred cosine: a row at the mean) has no direction: its cosine with every row is 0, its
distance 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from numbers import Integral
from typing import Any

import numpy as np
import torch

from sagkit.data.taxonomy import hierarchy_distances, is_hierarchy

LEAST = 1e-9  # of the largest feature: rows shorter than 1e-12 count as without direction


def feature_array(given, name: str = "features", dtype: type = np.float64) -> np.ndarray:
    """Features (N, F) as floats on the CPU, detached.

    Args:
        given: (N, F) of numbers, in anything that holds them.
        name: for messages.
        dtype: np.float64 or np.float32.

    Raises:
        ValueError: for other shapes, no rows, what is no number, NaN, infinity, and numbers too large or too small for
            lengths to be taken of them.
    """
    x = _numbers(given, name)
    if x.ndim != 2 or 0 in x.shape:
        remedy = "one number a row is (N, 1)" if x.ndim == 1 else "flatten or pool each row"
        raise ValueError(f"{name} must be (N, F) with N, F >= 1, got {x.shape}: {remedy}")
    with np.errstate(over="ignore"):
        x = np.require(x, dtype, ["C", "W"])  # torch takes no array that it may not write to
    require_finite(x, name)
    largest, most = float(np.abs(x).max()), float(np.finfo(dtype).max) ** 0.45
    if largest > most or 0 < largest < LEAST:
        raise ValueError(
            f"{name} reach {largest:.1e}, and their squares leave the range of numbers: scale them to about 1"
        )
    return x


def require_finite(x: np.ndarray, name: str = "feature") -> None:
    """Refuse an array (N, F) of which a row holds NaN or infinity.

    Raises:
        ValueError: with the number of such rows and the first.
    """
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        rows = "feature" if name == "features" else name
        raise ValueError(f"{bad.sum()} of {len(x)} {rows} rows are not finite (first: row {bad.argmax()}): drop them")


def words_of(*labels) -> tuple[str, ...] | None:
    """The class names that occur in labels, ascending, where these are words; None where they are numbers."""
    found: set[str] = set()
    for given in labels:
        flat = _plain(given, "labels")
        if flat.dtype.kind in "USO":
            found |= {value for value in _decoded(flat.ravel()) if isinstance(value, str)}
    return tuple(sorted(found)) or None


def label_array(given, rows: int | None = None, name: str = "labels", among: Sequence[str] | None = None) -> np.ndarray:
    """Labels (N,) as int64 on the CPU, each at least 0.

    Args:
        given: (N,) of whole numbers (booleans and floats such as 2.0 too), or of words.
        rows: how many there must be; None for any number.
        name: for messages.
        among: class names in the order of their numbers; without them words are numbered in ascending order.

    Raises:
        ValueError: for another number of labels, labels that are not whole, negative, or not among the names.
    """
    y = _plain(given, name)
    if y.ndim != 1 or (rows is not None and len(y) != rows):
        wanted = "(N,)" if rows is None else f"({rows},) for {rows} rows"
        raise ValueError(f"{name} must be {wanted}, got {y.shape}: give one a row")
    if y.dtype.kind in "USO" and not all(isinstance(value, Integral | np.bool_) for value in y):
        return _numbered(y, name, among)
    if y.dtype.kind not in "biufO":
        raise ValueError(f"{name} must be whole numbers or class names, got {y.dtype}")
    codes = y.astype(np.float64 if y.dtype.kind == "f" else np.int64)
    bad = ~(np.isfinite(codes) & (codes == np.floor(codes)) & (codes >= 0))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{name} must be whole numbers from 0, or class names: row {row} is {y[row]}")
    return codes.astype(np.int64)


def distance_array(given, class_names: Sequence[str] | None = None) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Class distances (C, C), exactly symmetric, and the names of their rows where these are known.

    Args:
        given: (C, C) of numbers; a table whose rows and columns are class names; or a hierarchy of named classes.
        class_names: the classes in the order of their labels; a table or hierarchy is put in this order.

    Raises:
        ValueError: for what is not square, not symmetric, negative or not finite, or names that do not fit.
    """
    if is_hierarchy(given):
        if not class_names:
            raise ValueError("a hierarchy needs names to look up: give class_names=, or labels that are class names")
        return hierarchy_distances(given, class_names), tuple(class_names)
    names = None if class_names is None else tuple(class_names)
    if (rows := _row_names(given)) is not None:
        names = names or rows
        if missing := sorted(set(names) - set(rows)):
            raise ValueError(
                f"the table of distances has no row for {', '.join(missing[:3])}: name its rows as classes"
            )
        given = given.loc[list(names), list(names)]
    matrix = _numbers(given, "distances")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"distances must be a square (C, C) matrix, got {matrix.shape}")
    if names is not None and len(names) != len(matrix):
        raise ValueError(f"{len(names)} class names and distances of {len(matrix)} classes: name each row once")
    matrix = matrix.astype(np.float64)
    if not np.isfinite(matrix).all():
        bad = ~np.isfinite(matrix)
        raise ValueError(
            f"{np.count_nonzero(bad)} of the semantic distances are not finite (first: row {bad.any(axis=1).argmax()})"
        )
    if matrix.min() < 0:
        row = int((matrix < 0).any(axis=1).argmax())
        raise ValueError(f"distances must be at least 0, row {row} has {matrix.min():.3g}: of similarities, give 1 - s")
    apart = np.abs(matrix - matrix.T).max()
    if apart > 1e-9 * matrix.max():
        raise ValueError(f"distances are not symmetric (by up to {apart:.3g}): average them with their transpose")
    return (np.tril(matrix) + np.tril(matrix, -1).T if apart else matrix), names  # rounding would break ties


def labels_and_distances(
    labels, distances, rows: int, class_names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...] | None]:
    """Labels (N,) and class distances (C, C) in one order of classes, and the names of these where they are known.

    Args:
        labels: as in `label_array`.
        distances: as in `distance_array`.
        rows: how many labels there must be.
        class_names: the classes in the order of labels and distances; needed where either is named, unless the labels
            are names and all C occur (their order is then ascending).

    Raises:
        ValueError: as these, and for labels that the distances do not have.
    """
    words = words_of(labels)
    reference, names = distance_array(distances, class_names or (words if is_hierarchy(distances) else None))
    if words and names is None:
        if len(words) != len(reference):
            raise ValueError(
                f"{len(words)} class names among the labels and distances of {len(reference)} classes: "
                "give class_names=, in the order of the distances"
            )
        names = words
    y = label_array(labels, rows, among=names)
    if y.max() >= len(reference):
        raise ValueError(f"labels {y.min()}..{y.max()} exceed the {len(reference)} classes of the distances")
    return y, reference, names


def same_width(**features: np.ndarray | torch.Tensor) -> None:
    """Refuse feature matrices of different widths, told by name.

    Raises:
        ValueError: with all widths.
    """
    widths = {name: x.shape[1] for name, x in features.items()}
    if len(set(widths.values())) > 1:
        told = " and ".join(f"{name} {width}" for name, width in widths.items())
        raise ValueError(f"features differ in width, {told}: encode all with one encoder")


def _plain(given: Any, name: str) -> np.ndarray:
    """A numpy array of anything array-like; half precisions, of which numpy lacks one, as float32."""
    if isinstance(given, torch.Tensor):
        if given.is_meta:
            raise ValueError(f"{name} are on meta, where there are shapes and no numbers: compute them on a device")
        x = given.detach().cpu().resolve_conj().resolve_neg()
        x = x.dequantize() if x.is_quantized else x
        x = x.to_dense() if x.layout != torch.strided else x
        return (x.float() if x.is_floating_point() and x.dtype != torch.float64 else x).numpy()
    if isinstance(given, list | tuple) and any(isinstance(row, torch.Tensor) for row in given):
        given = [_plain(row, name) for row in given]
    if isinstance(given, list | tuple) and any(isinstance(value, str | bytes) for value in given):
        return np.array(given, dtype=object)  # numpy would make words of numbers among them
    if hasattr(given, "toarray"):  # scipy's sparse matrices
        given = given.toarray()
    if isinstance(given, np.ma.MaskedArray):
        given = np.ma.filled(given.astype(float), np.nan)
    try:
        return np.asarray(given)
    except (TypeError, ValueError):  # rows of different lengths
        raise ValueError(f"{name} are no array: give rows of one length") from None


def _numbers(given, name: str) -> np.ndarray:
    x = _plain(given, name)
    if x.dtype.kind == "O" and not any(isinstance(value, str | bytes) for value in x.ravel()):
        with suppress(TypeError, ValueError):  # said below
            x = x.astype(np.float64)
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers, got {x.dtype}: encode them first")
    return x


def _numbered(y: np.ndarray, name: str, among: Sequence[str] | None) -> np.ndarray:
    """Numbers of words."""
    values = _decoded(y)
    if wrong := [row for row, value in enumerate(values) if not isinstance(value, str)]:
        raise ValueError(
            f"{name} must all be class names or all be whole numbers: row {wrong[0]} is {values[wrong[0]]}"
        )
    place = {word: i for i, word in enumerate(sorted(set(values)) if among is None else among)}
    if strange := [row for row, value in enumerate(values) if value not in place]:
        row = strange[0]
        raise ValueError(f"{name} row {row} is {values[row]!r}, which is not among the {len(place)} class names")
    return np.array([place[value] for value in values], dtype=np.int64)


def _decoded(y: np.ndarray) -> list:
    return [value.decode() if isinstance(value, bytes) else value for value in y.tolist()]


def _row_names(given) -> tuple[str, ...] | None:
    """Names of a table's rows, if it is one (pandas) whose rows and columns are named alike; None for anything else."""
    if not (hasattr(given, "loc") and hasattr(given, "columns")):
        return None
    rows, columns = list(given.index), list(given.columns)
    if not all(isinstance(name, str) for name in rows):
        return None
    if set(rows) != set(columns) or len(set(rows)) < len(rows):
        raise ValueError("the table of distances must name each class once, in its rows as in its columns")
    return tuple(rows)
