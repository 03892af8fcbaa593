"""A zoo of embeddings with a real spread of quality, on which scores of embeddings can be tried.

    trained    every stored encoder of the run records, snapshots of early epochs included
    untrained  the same networks with random weights
    hand-made  raw pixels, their principal components, colour histograms, gradient histograms
    degraded   trained ones with noise of 1/2 to 4 standard deviations, projected to rank 1 to 16, whitened, collapsed

Source: [K]. What derives from one training run, snapshots and degraded copies, belongs to one `run`: halves of the zoo
are drawn between runs (`sides`), so that no run is on both.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sagkit.model import extract_features
from sagkit.train.record import load_encoder

NOISE_LEVELS, RANKS = (0.5, 1.0, 2.0, 4.0), (1, 2, 4, 16)
DEGRADED_SEEDS = ("vicreg-seed0", "vicreg-seed1")  # runs of which degraded copies are made


class Member(NamedTuple):
    """One embedding: `embed` maps uint8 images (N, 3, H, W) to features (N, F), deterministically."""

    name: str
    kind: str
    run: str
    embed: Callable[[Tensor], np.ndarray]


def zoo(results, train_sets: Sequence[str], reference: Tensor) -> list[Member]:
    """All members that the records of some training sets give.

    Args:
        results: folder of run records.
        train_sets: data the encoders were trained on.
        reference: uint8 images that means, deviations and principal components are taken from.
    """
    members = list(hand_made(reference))
    stored = [path for name in train_sets for path in sorted(Path(results).glob(f"*/{name}/*.safetensors"))]
    for path in stored:
        name = f"{path.parent.parent.name}/{path.name.removesuffix('.safetensors')}"
        run = name.split(".epoch")[0]
        record = json.loads((path.parent / f"{Path(run).name}.json").read_text())
        kind = "trained" if record["config"]["epochs"] else "untrained"
        embed = _encoder(path)
        members.append(Member(name, kind, run, embed))
        if Path(name).name in DEGRADED_SEEDS:
            members += degraded(name, embed, reference)
    return members


def distinct(members: list[Member], images: Tensor) -> list[Member]:
    """Members without repetitions: of those with equal features of the images, the first.

    Runs that differ only in a pairing that starts late have the same early snapshots.
    """
    seen, kept = set(), []
    for member in members:
        found = features_print(member, images)
        if found not in seen:
            kept.append(member)
        seen.add(found)
    return kept


def features_print(member: Member, images: Tensor) -> int:
    """A number that members share only where their features of the images are equal."""
    return zlib.crc32(np.ascontiguousarray(member.embed(images)).tobytes())


def sides(members: list[Member]) -> dict[str, int]:
    """Half of the zoo, 0 or 1, by run: runs of one kind alternate in order of name."""
    found = {}
    for kind in sorted({m.kind for m in members} - {"degraded"}):
        runs = sorted({m.run for m in members if m.kind == kind})
        found |= {run: i % 2 for i, run in enumerate(runs)}
    return found


def hand_made(reference: Tensor) -> Iterator[Member]:
    """Embeddings made without any training."""
    for name, embed in (("pixels", raw_pixels), ("colour histogram", histogram), ("gradients", gradients)):
        yield Member(name, "hand-made", name, embed)
    x = raw_pixels(reference)
    mean, axes = x.mean(axis=0), principal_axes(x)
    for rank in (8, 64):
        name = f"pixels, {rank} components"
        yield Member(name, "hand-made", name, lambda images, k=rank: (raw_pixels(images) - mean) @ axes[:k].T)


def degraded(name: str, embed: Callable, reference: Tensor) -> Iterator[Member]:
    """Copies of an embedding made worse in known ways."""
    x = embed(reference)
    mean, spread, axes = x.mean(axis=0), x.std(axis=0), principal_axes(x)
    scale = ((x - mean) @ axes.T).std(axis=0) + 1e-6 * spread.max()

    def noisy(images, level):
        h, generator = embed(images), _generator(images)
        return h + level * spread * generator.normal(size=h.shape)

    def collapsed(images):
        return mean + 1e-3 * spread * _generator(images).normal(size=(len(images), len(mean)))

    for level in NOISE_LEVELS:
        yield Member(f"{name} + noise {level}", "degraded", name, lambda images, s=level: noisy(images, s))
    for rank in RANKS:
        yield Member(
            f"{name}, rank {rank}", "degraded", name, lambda images, k=rank: (embed(images) - mean) @ axes[:k].T
        )
    yield Member(f"{name}, whitened", "degraded", name, lambda images: (embed(images) - mean) @ axes.T / scale)
    yield Member(f"{name}, collapsed", "degraded", name, collapsed)


def raw_pixels(images: Tensor) -> np.ndarray:
    """Raw values in [0, 1], (N, 3 H W)."""
    return images.flatten(1).numpy().astype(np.float32) / 255


def histogram(images: Tensor, levels: int = 4) -> np.ndarray:
    """Square roots of shares of colours, levels ** 3 cells (Hellinger)."""
    codes = (images // (256 // levels)).long()
    cells = (codes[:, 0] * levels + codes[:, 1]) * levels + codes[:, 2]
    return F.one_hot(cells.flatten(1), levels**3).float().mean(dim=1).sqrt().numpy()


def gradients(images: Tensor, bins: int = 8, cells: int = 4) -> np.ndarray:
    """Histograms of gradient direction, weighted by magnitude, on cells x cells squares (HOG without blocks)."""
    grey = images.float().mean(dim=1) / 255
    dx, dy = grey[:, :-1, 1:] - grey[:, :-1, :-1], grey[:, 1:, :-1] - grey[:, :-1, :-1]
    direction = (torch.atan2(dy, dx) % torch.pi / torch.pi * bins).long().clamp(max=bins - 1)
    votes = F.one_hot(direction, bins).permute(0, 3, 1, 2) * dx.hypot(dy)[:, None]
    return F.adaptive_avg_pool2d(votes, cells).flatten(1).numpy()


def _encoder(path: Path) -> Callable[[Tensor], np.ndarray]:
    """Embedding by a stored encoder, loaded when it is used."""
    load = cache(load_encoder)
    return lambda images: extract_features(load(path), images).numpy()


def principal_axes(x: np.ndarray) -> np.ndarray:
    """Principal directions, one a row, of (N, F)."""
    return np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2]


def _generator(images: Tensor) -> np.random.Generator:
    """Noise that is the same for the same images and independent between two views."""
    return np.random.default_rng(zlib.crc32(np.ascontiguousarray(images.numpy()).tobytes()))
