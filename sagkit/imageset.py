"""The one form of every image set: images in memory, with labels, class names and file names if there are any. [K]"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels.

    Args:
        images: uint8 (N, 3, H, W).
        labels: positions in `class_names`, or None for images without classes.
        class_names: sorted; empty where `labels` is None. A class may have no image, in a subset for one.
        paths: file names relative to the folder they came from, or None.
        unreadable: file name and reason of each file of that folder that was left out.

    Raises:
        ValueError: for a wrong shape or dtype, labels outside the classes, or lengths that differ.
    """

    # Plain Tensor: the checks below answer in words, and under tests jaxtyping would come before them.
    images: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    paths: tuple[str, ...] | None = None
    unreadable: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        images, labels, classes = self.images, self.labels, len(self.class_names)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            found = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            raise ValueError(f"images must be uint8 (N, 3, H, W), got {found}: convert to 8-bit RGB, channels first")
        if self.paths is not None and len(self.paths) != len(images):
            raise ValueError(f"{len(self.paths)} paths for {len(images)} images: give one each, or None")
        check_labels(labels, len(images), classes)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index) -> ImageSet:
        """The rows that `index` (positions, a mask or a slice) selects, under the same class names."""
        rows = torch.arange(len(self))[index]
        return ImageSet(
            self.images[rows],
            None if self.labels is None else self.labels[rows],
            self.class_names,
            None if self.paths is None else tuple(self.paths[i] for i in rows.tolist()),
        )


def check_labels(labels: Tensor | None, n: int, classes: int) -> None:
    """Refuse labels that are not int64 (n,), positions among so many classes; None goes with no class alone.

    Raises:
        ValueError: naming what was found.
    """
    if labels is None:
        if classes:
            raise ValueError(f"{classes} class names without labels: give labels too, or no class names")
        return
    if labels.dtype != torch.int64 or labels.shape != (n,):
        found = f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}"
        raise ValueError(f"labels must be int64 ({n},), one an image, got {found}")
    if n and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        found = f"{int(labels.min())}..{int(labels.max())}"
        raise ValueError(f"labels must lie in [0, {classes - 1}] for {classes} class names, got {found}")
