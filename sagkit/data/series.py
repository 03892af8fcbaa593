"""Rows of a table and series in place of images: a set in memory, the views that say which changes do not matter, and
procedural series with a known tree.

    run = fit(configure("sag-vicreg", "vectors"), VectorSet(x, TableView(x)), VectorSet(held_out, TableView(x)))

    values float32 (N, F) or (N, C, T);  view(batch, generator) -> a changed batch of the same shape
    waves:  x(t) = amplitude * envelope(t) * wave(cycles t + phase) + noise, t in [0, 1), for each of 18 classes
            envelope / wave / speed

[K] The trainer, its scopes and its scores are those of images; a set differs in its values and its views alone.
`TableView` replaces cells by values of their own column [R: SCARF, Bahri et al., ICLR 2022] and adds noise.
`SeriesView` cuts windows and stretches them [R: window slicing, Le Guennec et al. 2016], scales, and adds noise
[R: Um et al. 2017]. Phase, amplitude, number of cycles within the class, place of the envelope and noise of `waves`
are drawn for each series, so that two of one class may differ everywhere [K].

Differs from the source: SCARF corrupts one of the two views, at rate 0.6; here both are, at rate 0.3 each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sagkit import require
from sagkit.data.load import ImageSet, check_labels

View = Callable[[Tensor, torch.Generator], Tensor]
TRIED = 8  # rows that a view is tried on
ENVELOPES, WAVES, SPEEDS = ("steady", "burst", "fading"), ("sine", "square", "sawtooth"), {"fast": 12, "slow": 4}
WAVE_CLASSES = tuple(sorted(f"{e}/{w}/{s}" for e in ENVELOPES for w in WAVES for s in SPEEDS))
WAVE_NOISE = 0.2  # standard deviation, in amplitudes of the wave


@dataclass(frozen=True, eq=False)
class VectorSet:
    """Vectors or series with their labels and their view.

    Args:
        values: (N, F) rows of F columns, or (N, C, T) series of C channels and T times; an array or tensor of numbers,
            kept as float32.
        view: takes a batch of them and a generator on its device, returns as many of the same shape, changed as two
            observations of one thing may differ. Called twice for each training step.
        labels: positions in `class_names`, int64 (N,), or None.
        class_names: empty where `labels` is None; names like "family/kind" are a tree that structure is scored by.

    Raises:
        ValueError: for a wrong shape, numbers that are not finite, a view that changes shape or gives such numbers, or
            labels outside the classes.
    """

    values: Tensor | np.ndarray  # tensors once made
    view: View
    labels: Tensor | np.ndarray | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self):
        values = torch.as_tensor(self.values)
        if values.ndim not in (2, 3) or not len(values) or values.is_complex():
            raise ValueError(f"values must be numbers (N, F) or (N, C, T) with N >= 1, got {tuple(values.shape)}")
        values = values.float().contiguous()
        _require_finite(values, "values")
        object.__setattr__(self, "values", values)
        if self.labels is not None:
            object.__setattr__(self, "labels", torch.as_tensor(self.labels))
        check_labels(self.labels, len(values), len(self.class_names))
        few = values[:TRIED]
        seen = self.view(few.clone(), torch.Generator().manual_seed(0))
        if not isinstance(seen, Tensor) or seen.shape != few.shape or seen.dtype != torch.float32:
            found = f"{seen.dtype} {tuple(seen.shape)}" if isinstance(seen, Tensor) else type(seen).__name__
            raise ValueError(f"view makes {found} of float32 {tuple(few.shape)}: a view keeps shape and dtype")
        _require_finite(seen, "a view's values")

    @property
    def images(self) -> Tensor:
        """What an `ImageSet` calls its examples."""
        return self.values

    def __len__(self) -> int:
        return len(self.values)

    def subset(self, index) -> VectorSet:
        """The rows that `index` (positions, a mask or a slice) selects, under the same view and class names."""
        rows = torch.arange(len(self))[index]
        return VectorSet(
            self.values[rows], self.view, None if self.labels is None else self.labels[rows], self.class_names
        )

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each column (F,) or channel (C,); 1 where nothing varies."""
        axes = (0,) if self.values.ndim == 2 else (0, 2)
        values = self.values.double()
        std = values.std(dim=axes, unbiased=False)
        return values.mean(dim=axes).float(), torch.where(std > 0, std, 1.0).float()


Examples = ImageSet | VectorSet  # what can be trained on


@dataclass(frozen=True, eq=False)
class TableView:
    """A view of a table's rows: some cells hold another row's value of the same column, and all are noisy.

    Args:
        bank: (M, F) rows whose columns are drawn from, such as the training rows.
        mask: probability of replacing a cell, in [0, 1].
        noise: standard deviation of Gaussian noise, in standard deviations of the column, at least 0.

    Raises:
        ValueError: for a bank of another shape or with numbers that are not finite, or a mask or noise out of range.
    """

    bank: Tensor | np.ndarray  # a tensor once made
    mask: float = 0.3
    noise: float = 0.1

    def __post_init__(self):
        bank = torch.as_tensor(self.bank).float()
        if bank.ndim != 2 or not len(bank):
            raise ValueError(f"bank must be (M, F) with M >= 1, got {tuple(bank.shape)}")
        require("mask", self.mask, "[0, 1]", "it is the probability of replacing a cell")
        require("noise", self.noise, "[0, inf)", "it is in standard deviations of the column")
        _require_finite(bank, "the rows of bank")
        object.__setattr__(self, "bank", bank)
        object.__setattr__(self, "spread", bank.std(dim=0, unbiased=False))

    def __call__(self, x: Float[Tensor, "B F"], generator: torch.Generator | None = None) -> Float[Tensor, "B F"]:
        bank, spread, draw = self.bank.to(x.device), self.spread.to(x.device), {"generator": generator}
        if x.shape[1:] != bank.shape[1:]:
            raise ValueError(f"rows of {tuple(x.shape[1:])} columns and a bank of {tuple(bank.shape[1:])}: give alike")
        rows = torch.randint(len(bank), x.shape, device=x.device, **draw)
        masked = torch.rand(x.shape, device=x.device, **draw) < self.mask
        x = torch.where(masked, bank.gather(0, rows), x)
        return x + self.noise * spread * torch.randn(x.shape, device=x.device, **draw)


@dataclass(frozen=True)
class SeriesView:
    """A view of series: a window of each, stretched to the whole length, louder or softer, and noisy.

    Args:
        crop: range of a window's share of the length, within (0, 1].
        scale: each series is multiplied by a factor in [1 - scale, 1 + scale]; in [0, 1).
        jitter: standard deviation of Gaussian noise, in standard deviations of the channel over its times, at least 0.

    Raises:
        ValueError: for a value out of its range.
    """

    crop: tuple[float, float] = (0.5, 1.0)
    scale: float = 0.2
    jitter: float = 0.1

    def __post_init__(self):
        for share in self.crop:
            require("crop", share, "(0, 1]", "it is a share of the length")
        low, high = self.crop
        if low > high:
            raise ValueError(f"crop must be a range within (0, 1], got {self.crop}")
        require("scale", self.scale, "[0, 1)", "factors lie in [1 - scale, 1 + scale]")
        require("jitter", self.jitter, "[0, inf)", "it is in standard deviations of the channel")

    def __call__(self, x: Float[Tensor, "B C T"], generator: torch.Generator | None = None) -> Float[Tensor, "B C T"]:
        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(len(x), generator=generator, device=x.device)

        share = uniform(*self.crop)
        start = uniform(0, 1) * (1 - share)
        x = stretch(x, start, share) * uniform(1 - self.scale, 1 + self.scale)[:, None, None]
        spread = x.std(dim=2, unbiased=False, keepdim=True)
        return x + self.jitter * spread * torch.randn(x.shape, generator=generator, device=x.device)


def stretch(
    x: Float[Tensor, "B C T"], start: Float[Tensor, " B"], share: Float[Tensor, " B"]
) -> Float[Tensor, "B C T"]:
    """The window [start, start + share] of each series, in shares of its length, at T even places, linearly between."""
    last = x.shape[2] - 1
    even = torch.linspace(0, 1, last + 1, device=x.device)
    place = ((start[:, None] + share[:, None] * even) * last).clamp(0, last)  # (B, T)
    before = place.long().clamp(max=max(0, last - 1))
    after = (before + 1).clamp(max=last)
    left, right = (x.gather(2, at[:, None].expand_as(x)) for at in (before, after))
    return torch.lerp(left, right, (place - before)[:, None])


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
    require("n", n, "[1, inf)", "it counts series", whole=True)
    require("length", length, "[32, inf)", "it holds waves of up to 15 cycles", whole=True)
    require("seed", seed, "[0, inf)", "0 is the default", whole=True)
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(n) % len(WAVE_CLASSES))[torch.randperm(n, generator=generator)]
    return VectorSet(draw_waves(labels, length, generator), view or SeriesView(), labels, WAVE_CLASSES)


def draw_waves(labels: Int[Tensor, " N"], length: int, generator: torch.Generator) -> Float[Tensor, "N 1 T"]:
    """One series for each label."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(labels), 1, generator=generator)

    parts = [WAVE_CLASSES[label].split("/") for label in labels.tolist()]
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
    return (amplitude * (x + WAVE_NOISE * torch.randn(x.shape, generator=generator)))[:, None]


def _require_finite(values: Tensor, what: str) -> None:
    bad = ~torch.isfinite(values)
    if bad.any():
        row = int(bad.flatten(1).any(dim=1).nonzero()[0])
        raise ValueError(f"{what} hold {int(bad.sum())} numbers that are not finite, the first in row {row}: fill them")
