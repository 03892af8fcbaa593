"""Images with all that is known about them: features, names, classes, superclasses, and places on a plane.

What is slow is computed once for a scene, when it is first looked at. [K]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sagkit.data.taxonomy import CIFAR100_SUPERCLASSES, superclasses
from sagkit.show.maps import pca_map


@dataclass(frozen=True, eq=False)
class Scene:
    """Images and what is known about them.

    images: uint8 (N, 3, H, W).
    features: float (N, F), what the graph is built from.
    names: of each image, to be read.
    labels: int64 (N,), positions in `class_names`; None where classes are not known.
    groups: int64 (N,), superclass of each image, a position in `group_names`; None where classes have none.
    seed: of the UMAP.

    Raises:
        ValueError: for numbers of rows that differ, or fewer than two.
    """

    # Plain Tensor: the check below answers in words, and under tests jaxtyping would come before it.
    images: Tensor
    features: Tensor
    names: tuple[str, ...]
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    groups: Tensor | None = None
    group_names: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        parts = (self.images, self.features, self.names, self.labels, self.groups)
        found = [len(part) for part in parts if part is not None]
        if len(set(found)) > 1 or found[0] < 2:
            raise ValueError(f"a scene needs two images or more, one row each in all its parts, got {found}")

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def plane(self) -> Float[np.ndarray, "N 2"]:
        """First two principal components of the features as the graph sees them."""
        return pca_map(self.features)


def make_scene(
    images, labels, class_names: Sequence[str], features, names: Sequence[str] | None = None, seed: int = 0
) -> Scene:
    """A scene, with the superclasses that its class names tell of.

    Args:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,), positions in class_names; None where classes are not known.
        class_names: names like "family/kind" have superclasses, and so do CIFAR-100's.
        features: float (N, F), what the graph is built from.
        names: of each image, such as its file; its class and row where there are none.
        seed: of the UMAP.

    Raises:
        ValueError: for numbers of rows that differ.
    """
    class_names = tuple(class_names)
    if names is None:
        kinds = ["image"] * len(images) if labels is None else [class_names[i] for i in labels.tolist()]
        names = [f"{kind} {row}" for row, kind in enumerate(kinds)]
    known = None if labels is None else known_superclasses(class_names)
    if known is None:
        return Scene(images, features, tuple(names), labels, class_names, seed=seed)
    group_names, group = known
    return Scene(images, features, tuple(names), labels, class_names, torch.as_tensor(group)[labels], group_names, seed)


def known_superclasses(class_names: tuple[str, ...]) -> tuple[tuple[str, ...], Int[np.ndarray, " C"]] | None:
    """Names of the superclasses and the superclass of each class; None where the names tell of none."""
    if class_names and all("/" in name for name in class_names):
        return superclasses("own", class_names)
    if set(class_names) <= set(" ".join(CIFAR100_SUPERCLASSES.values()).split()):
        return superclasses("cifar100", class_names)
    return None
