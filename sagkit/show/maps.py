"""Places for images: a plane by PCA at once, by UMAP when there is time, and rings around one image.

    pca_map(features) -> (N, 2)      first two principal components of the centred, normalised features
    umap_map(features, ...) -> (N, 2)    the same plane refined; its neighbours are those of the similarity graph
    radial_places(ring, parent, plane)   nodes on rings, each near the direction in which the plane has it

UMAP (McInnes et al. 2018 [R]) begins from the PCA, so that one picture turns into the other, and runs in a process of
its own: it would hold Python's lock for seconds while clicks wait. Rings by number of steps, directions from the plane,
and nodes pushed apart until none covers another are this kit's [K].
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sagkit.graph import centre_and_normalize

LEAST_FOR_UMAP = 16  # images; of fewer, UMAP's neighbourhoods are the whole set
NEIGHBORS = 15  # of UMAP, its default
EXACT = 1024  # rows of a matrix whose eigenvectors are all computed
RADII = (0.0, 0.46, 0.77, 0.95)  # of the rings, in half sides of the picture
SIDES = (0.28, 0.19, 0.15, 0.15)  # of thumbnails on them


def principal(x: Float[Tensor, "N F"], components: int) -> Float[Tensor, "N D"]:
    """The first principal components of rows; signs make each largest entry positive.

    From the eigenvectors of X X' or X' X, whichever is smaller, where one has at most EXACT rows: for 500 images a
    quarter of the time of a randomised SVD. Beyond, by the latter, seeded.
    """
    x = x - x.mean(dim=0)
    width = min(components, *x.shape)
    if min(x.shape) <= EXACT:
        wide = len(x) < x.shape[1]
        values, vectors = torch.linalg.eigh((x @ x.T if wide else x.T @ x).double())  # ascending
        vectors = vectors[:, -width:].flip(1)
        found = (vectors * values[-width:].flip(0).clamp(min=0).sqrt()).float() if wide else x @ vectors.float()
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, _ = torch.svd_lowrank(x, q=width + 6, niter=4)
        found = (u * s)[:, :width]
    return found * found.gather(0, found.abs().argmax(dim=0, keepdim=True)).sign()


def pca_map(features: Float[Tensor, "N F"]) -> Float[np.ndarray, "N 2"]:
    """A plane of the features as the graph sees them."""
    plane = principal(centre_and_normalize(features), 2)
    return torch.nn.functional.pad(plane, (0, 2 - plane.shape[1])).double().numpy()


def umap_map(
    features: Float[Tensor, "N F"], similarity: Float[Tensor, "N K"], neighbors: Tensor, seed: int = 0
) -> Float[np.ndarray, "N 2"] | None:
    """UMAP of the features, from the neighbours that the graph has; None for fewer than 16 images.

    Args:
        features: what the neighbours were searched in.
        similarity: of the neighbours, most similar first.
        neighbors: int (N, K); the first 14 serve.
        seed: of the layout.

    Raises:
        ValueError: where umap-learn is not installed, or fails.
    """
    if len(features) < LEAST_FOR_UMAP:
        return None
    if find_spec("umap") is None:
        raise ValueError("umap-learn is not installed: pip install umap-learn")
    near = neighbors[:, : NEIGHBORS - 1].numpy()
    own = np.arange(len(near))[:, None]
    with tempfile.TemporaryDirectory() as place:
        given, made = Path(place) / "given.npz", Path(place) / "made.npy"
        np.savez(
            given,
            start=pca_map(features),
            index=np.concatenate([own, near], axis=1),
            distance=np.pad(1 - similarity[:, : NEIGHBORS - 1].numpy(), ((0, 0), (1, 0))).clip(0),
            seed=seed,
        )
        paths = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        command = [sys.executable, "-W", "ignore", "-m", "sagkit.show.maps", str(given), str(made)]
        done = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"UMAP failed: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
        return np.load(made)


def _refine(given: str, made: str) -> None:
    """What the process of `umap_map` does."""
    import numba

    compiled = numba.njit
    numba.njit = lambda *args, **options: compiled(*args, **{"cache": True} | options)  # 12 s the first time only
    from umap import UMAP

    with np.load(given) as arrays:
        start, index, distance, seed = (arrays[name] for name in ("start", "index", "distance", "seed"))
    knn = (index, distance.astype(np.float32), None)
    scale = np.abs(start).max() or 1.0
    first = (10 * start / scale).astype(np.float32)
    reducer = UMAP(
        n_neighbors=index.shape[1], precomputed_knn=knn, init=first, random_state=int(seed), n_jobs=1, min_dist=0.25
    )
    np.save(made, reducer.fit_transform(start.astype(np.float32)).astype(np.float64))


def radial_places(
    ring: Mapping[int, int], parent: Mapping[int, int], plane: Mapping[int, np.ndarray]
) -> dict[int, tuple[float, float, float]]:
    """Centre and side (x, y, side) of a thumbnail for each node, in [-1, 1]; nodes of one ring do not overlap.

    Args:
        ring: number of steps from the centre by node; the one on ring 0 is the centre.
        parent: the node through which each is reached, which it stays near.
        plane: a point by node; gives the directions of the first ring.
    """
    (centre,) = (node for node, steps in ring.items() if steps == 0)
    places, angle = {centre: (0.0, 0.0, SIDES[0])}, {}
    for steps in range(1, max(ring.values()) + 1):
        nodes = [node for node, on in ring.items() if on == steps]
        if not nodes:
            continue
        if steps == 1:
            away = np.array([plane[node] - plane[centre] for node in nodes])
            wanted = np.arctan2(away[:, 1], away[:, 0])
        else:
            wanted = np.array([angle.get(parent[node], 0.0) for node in nodes])
        side = min(SIDES[steps], 0.92 * 2 * math.pi * RADII[steps] / len(nodes))
        found = spread(wanted, max(1.08 * side / RADII[steps], 0.6 * 2 * math.pi / len(nodes)))
        for node, at in zip(nodes, found.tolist(), strict=True):
            angle[node] = at
            places[node] = (RADII[steps] * math.cos(at), RADII[steps] * math.sin(at), side)
    return places


def spread(wanted: Float[np.ndarray, " n"], gap: float) -> Float[np.ndarray, " n"]:
    """Angles in radians that keep the order of the wanted ones and lie at least `gap` apart, as near as can be.

    The circle is cut where it is emptiest; on the line that is left, least squares under "at least a gap apart" is an
    isotonic regression, solved by pooling neighbours that are too close. Without room for so many, evenly around.
    """
    n, order = len(wanted), np.argsort(wanted, kind="stable")
    angles = np.asarray(wanted, dtype=float)[order]
    cut = int(np.argmax(np.diff(angles, append=angles[0] + 2 * math.pi))) + 1
    order = np.roll(order, -cut)
    angles = np.concatenate([angles[cut:], angles[:cut] + 2 * math.pi])
    pools: list[tuple[float, int]] = []  # mean and number of angles, each less its place in the row
    for place, angle in enumerate(angles.tolist()):
        pools.append((angle - place * gap, 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (a, m), (b, k) = pools[-2:]
            pools[-2:] = [((a * m + b * k) / (m + k), m + k)]
    placed = np.concatenate([np.full(size, mean) for mean, size in pools]) + gap * np.arange(n)
    if placed[-1] - placed[0] > 2 * math.pi - gap:
        placed = placed.mean() + 2 * math.pi * (np.arange(n) - (n - 1) / 2) / n
    found = np.empty(n)
    found[order] = placed
    return found


if __name__ == "__main__":
    _refine(*sys.argv[1:])
