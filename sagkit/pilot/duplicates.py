"""Features to what a user asks of them first: similar items, near duplicates, and a file that keeps features by name.

    similarity of x and y = cos(x - m, y - m),  m the mean of the items searched

Sources: [K] cosines are centred, as in `graph`; near duplicates are told by the correlation of 16 x 16 pixels, before
anything is trained. Search is exact at every size.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 16  # pixels of the thumbnails that tell near duplicates
CHUNK = 1024  # queries at a time


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
