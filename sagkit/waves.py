"""Procedural series with a known tree, as `shapes` is for images: envelope / wave / speed, 18 classes.

    x(t) = amplitude * envelope(t) * wave(cycles t + phase) + noise,   t in [0, 1)

Phase, amplitude, number of cycles within the class, place of the envelope and noise are drawn for each series, so that
two of one class may differ everywhere. [K]
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sagkit.vectors import SeriesView, VectorSet, View

ENVELOPES, WAVES, SPEEDS = ("steady", "burst", "fading"), ("sine", "square", "sawtooth"), {"fast": 12, "slow": 4}
CLASS_NAMES = tuple(sorted(f"{e}/{w}/{s}" for e in ENVELOPES for w in WAVES for s in SPEEDS))
NOISE = 0.2


def waves(n: int, length: int = 128, seed: int = 0, view: View | None = None) -> VectorSet:
    """`n` series (n, 1, length) of the 18 classes, in mixed order; class counts differ by at most 1.

    Args:
        n: number of series, at least 1.
        length: T, at least 32.
        seed: fixes everything.
        view: a `SeriesView` by default.

    Raises:
        ValueError: for no series, or a length that cannot hold the fast waves.
    """
    if n < 1:
        raise ValueError(f"waves need at least 1 series, got {n}")
    if length < 32:
        raise ValueError(f"waves of up to 15 cycles need a length of at least 32, got {length}")
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(n) % len(CLASS_NAMES))[torch.randperm(n, generator=generator)]
    return VectorSet(draw_waves(labels, length, generator), view or SeriesView(), labels, CLASS_NAMES)


def draw_waves(labels: Int[Tensor, " N"], length: int, generator: torch.Generator) -> Float[Tensor, "N 1 T"]:
    """One series for each label."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(labels), 1, generator=generator)

    parts = [CLASS_NAMES[label].split("/") for label in labels.tolist()]
    t = torch.arange(length) / length
    cycles = torch.tensor([float(SPEEDS[speed]) for *_, speed in parts])[:, None] * uniform(0.8, 1.25)
    phase = (cycles * t + uniform(0, 1)) % 1  # (N, T)
    kinds = {"sine": (2 * math.pi * phase).sin(), "square": (phase < 0.5) * 2.0 - 1, "sawtooth": 2 * phase - 1}
    centre, amplitude = uniform(0.3, 0.7), uniform(0.5, 2.0)
    shapes = {
        "steady": torch.ones_like(phase),
        "burst": (-(((t - centre) / 0.15) ** 2)).exp(),
        "fading": 1 - t * centre / 0.7,
    }
    x = torch.stack([shapes[e][i] * kinds[w][i] for i, (e, w, _) in enumerate(parts)])
    return (amplitude * (x + NOISE * torch.randn(x.shape, generator=generator)))[:, None]
