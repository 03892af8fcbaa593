"""Images larger than memory: one tensor in either case, whose bytes lie in a file where they are many.

    up to IN_MEMORY bytes   an ordinary tensor
    above                   a tensor over a file that the system maps into memory: pages come in as rows are read,
                            and go again when memory is wanted for something else

[K] A training step reads some hundred rows at random, for which a mapped file is as quick as memory once its pages are
there and needs no loader processes; and whatever takes a tensor takes this one. The file of `scratch` and `select` has
no name: it is gone with the tensor, or with the process, however that ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sagkit.data.files import write_atomically

IN_MEMORY = 2**29  # bytes: CIFAR-100 takes 150 MB, 100,000 images of 64 pixels 1.2 GB
CHUNK = 4096  # images that are looked at, or copied, at a time


def is_large(shape: tuple[int, ...]) -> bool:
    """Whether bytes of such a shape are kept in a file."""
    return int(np.prod(shape, dtype=np.int64)) > IN_MEMORY


def scratch(shape: tuple[int, ...], folder: Path) -> np.ndarray:
    """A writable uint8 array, in memory or, where it is large, in a nameless file in `folder`.

    Raises:
        OSError: where the folder cannot be written, or has no room for it.
    """
    if not is_large(shape):
        return np.empty(shape, np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        return _map(file, shape)


def named(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A writable uint8 array in a file of this name; what an earlier call left in it stays.

    Raises:
        OSError: as `scratch`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "r+b" if path.exists() else "w+b") as file:
        return _map(file, shape)


def read(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The uint8 tensor in a file; writing to it changes the tensor and not the file.

    Raises:
        OSError, ValueError: for a file that is not there, or of another size.
    """
    if path.stat().st_size != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{path} holds {path.stat().st_size} bytes, not {shape}")
    return torch.from_numpy(np.memmap(path, np.uint8, "c", shape=shape))


def move(source: Path, target: Path, shape: tuple[int, ...], kept: Tensor) -> None:
    """Put the rows of a file that are kept, bool (n,), into another; the first is gone when the second is whole."""

    def write(draft: Path) -> None:
        if kept.all():
            os.replace(source, draft)
            return
        rows = kept.nonzero()[:, 0]
        images, copied = read(source, shape), named(draft, (len(rows), *shape[1:]))
        for part in torch.arange(len(rows)).split(CHUNK):
            copied[part] = images[rows[part]]

    write_atomically(target, write)
    source.unlink(missing_ok=True)


def select(images: Tensor, rows: Tensor, folder: Path) -> Tensor:
    """`images[rows]`, in a file where it is large; uint8, `rows` int64 (n,)."""
    chosen = (len(rows), *images.shape[1:])
    if not is_large(chosen):
        return images[rows]
    copied = torch.from_numpy(scratch(chosen, folder))
    for part in torch.arange(len(rows)).split(CHUNK):
        copied[part] = images[rows[part]]
    return copied


def chunks(images: Tensor) -> Iterator[Tensor]:
    """Images some thousand at a time, so that what is made of them fits into memory."""
    yield from images.split(CHUNK)


def _map(file, shape: tuple[int, ...]) -> np.ndarray:
    """A file's bytes as an array. Its blocks are taken now: a disk that fills up later would end the process."""
    size = int(np.prod(shape, dtype=np.int64))
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    file.truncate(size)
    return np.memmap(file, np.uint8, "r+", shape=shape)
