"""Near duplicates among images, before anything is trained: copies by the correlation of 16 x 16 pixels. [K]"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

THUMBNAIL = 16  # pixels, height and width, at which images are compared
CHUNK = 1024  # images at a time


def near_duplicates(images: Tensor, least: float = 0.98) -> list[list[int]]:
    """Groups of images that differ by recompression, rescaling, brightness or contrast alone, largest group first.

    Images are shrunk to 16 x 16, and two are near duplicates if the correlation of those pixels is at least `least`, or
    if both are of one colour and their pixels differ by at most two of 255 levels. In images of little contrast, such
    as sky, compression noise hides copies. A group is a connected component: not every two of it need be alike.

    Args:
        images: uint8 (N, 3, H, W).
        least: correlation, in (0, 1].
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    small = [
        F.interpolate(part.float(), (THUMBNAIL, THUMBNAIL), mode="area").flatten(1) for part in images.split(CHUNK)
    ]
    x = torch.cat(small)  # (N, 768)
    centred = x - x.mean(dim=1, keepdim=True)
    flat = centred.std(dim=1) < 2  # of 255 levels: the rest is noise
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
