"""Optimisers by name and the learning-rate schedule.

    lr(step) = base * B / 256 * (step + 1) / warmup                         while warming up
    lr(step) = base * B / 256 * [f + (1 - f) (1 + cos(pi t)) / 2],  t in [0, 1]   after

Sources: [R] linear scaling with B / 256, warm-up and cosine as in METHOD.md section 6; LARS from lightly, with the
VICReg authors' exclusion of biases and normalisation parameters from adaptation and decay. [K] f = 0.001 at the end.
"""

from __future__ import annotations

import math

import torch
from torch import nn

FINAL_FRACTION = 1e-3
OPTIMIZERS = ("lars", "adamw", "sgd")


def make_optimizer(name: str, module: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """Optimiser over a module's trainable parameters; vectors (biases, norms) are neither decayed nor adapted.

    Args:
        name: "lars" (large batches), "adamw" or "sgd" (momentum 0.9).
        module: what is trained.
        weight_decay: of weight matrices and kernels, at least 0.

    Raises:
        ValueError: for an unknown name, or LARS without weight decay (lightly's then adapts nothing).
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "lars":
        if weight_decay <= 0:
            raise ValueError(f"lars adapts decayed weights only, got weight_decay={weight_decay}: use 1e-4, or sgd")
        from lightly.utils.lars import LARS  # here, because importing lightly takes seconds

        return LARS(groups, lr=0.1, momentum=0.9)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=1e-3)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    raise ValueError(f"unknown optimizer {name!r}: choose one of {', '.join(OPTIMIZERS)}")


def learning_rate(step: int, steps: int, warmup: int, base: float, batch_size: int) -> float:
    """Learning rate of one step; a pure function, so that a resumed run needs no scheduler state.

    Args:
        step: from 0.
        steps: of the whole run.
        warmup: steps of linear rise.
        base: for a batch of 256 images.
        batch_size: of all processes together.
    """
    peak = base * batch_size / 256
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (FINAL_FRACTION + (1 - FINAL_FRACTION) * (1 + math.cos(math.pi * progress)) / 2)
