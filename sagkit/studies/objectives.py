"""Objectives that `sagkit.train` has no use for, so that a zoo of encoders holds more kinds than it compares.

    contrast        two views of an image, against all others of the batch            [R] SimCLR, Chen et al. 2020
    rotation        by how many quarter turns an image is turned                      [R] Gidaris et al. 2018
    reconstruction  the image itself, at the views' size, from its features           [R] an autoencoder
    labels          of classes, of superclasses, or drawn at random once              [R] Zhang et al. 2017 for the last

    learn("contrast", encoder, images) trains the encoder in place

All take the encoder's features h (B, F), put a small head on them, and throw the head away. AdamW with a cosine
schedule [K]; the batch order and the views follow from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sagkit.augment import Augmentation
from sagkit.model import Encoder, make_projector

BATCH, RATE, DECAY = 256, 3e-3, 1e-4  # images a step; AdamW's learning rate and weight decay
TEMPERATURE = 0.2  # of the contrast
WIDTH = 128  # of the heads' hidden layers and of what is contrasted
GENTLE = {"crop_scale": (0.5, 1.0), "jitter": 0.0, "grey": 0.0, "solarize": 0.0}  # views of all but contrast


def learn(
    objective: str,
    encoder: Encoder,
    images: Tensor,
    labels: Tensor | None = None,
    epochs: int = 1,
    view: Augmentation | None = None,
    seed: int = 0,
) -> list[float]:
    """Train an encoder in place, and give the mean loss of each epoch.

    Args:
        objective: one of `OBJECTIVES`.
        encoder: images (B, 3, H, W) in [0, 1] to features (B, F).
        images: uint8 (N, 3, H, W), at least BATCH of them.
        labels: (N,) int64, which "labels" alone asks for.
        epochs: passes over the images; the last odd batch of each is dropped.
        view: what the encoder is shown; its size is the side of what it sees.
        seed: of the head's weights, the order and the views.

    Raises:
        ValueError: for an unknown objective, or "labels" without any.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"no objective {objective!r}: choose one of {', '.join(OBJECTIVES)}")
    if objective == "labels" and labels is None:
        raise ValueError("the objective 'labels' needs labels (N,): give them, or choose another")
    if len(images) < BATCH:
        raise ValueError(f"{len(images)} images are less than a batch: give at least {BATCH}")
    torch.manual_seed(seed)
    view = view or Augmentation(**({} if objective == "contrast" else GENTLE))
    known = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    head, loss_of = OBJECTIVES[objective](encoder.feature_width, int(known.max()) + 1, view.size or images.shape[2])
    both = nn.ModuleList([encoder, head]).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(both.parameters(), lr=RATE, weight_decay=DECAY)
    steps, generator, log = len(images) // BATCH, torch.Generator().manual_seed(seed), []
    for epoch in range(epochs):
        total = 0.0
        for i, index in enumerate(torch.randperm(len(images), generator=generator)[: steps * BATCH].split(BATCH)):
            optimizer.param_groups[0]["lr"] = RATE * _cosine(epoch * steps + i + 1, epochs * steps)
            loss = loss_of(encoder, head, images[index], known[index], view, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        log.append(total / steps)
    encoder.eval()
    return log


def contrast(width: int, classes: int, side: int) -> tuple[nn.Module, Callable[..., Tensor]]:
    """The normalised temperature-scaled cross entropy of two views, over the 2 B - 1 others of the batch."""

    def loss(encoder, head, images, labels, view, generator) -> Tensor:
        z = F.normalize(head(encoder(torch.cat([view(images, generator), view(images, generator)]))), dim=1)
        alike = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        return F.cross_entropy(alike, torch.arange(len(z)).roll(len(images)))

    return make_projector(width, WIDTH, WIDTH, layers=2), loss


def rotation(width: int, classes: int, side: int) -> tuple[nn.Module, Callable[..., Tensor]]:
    """Cross entropy of the number of quarter turns, each image turned by one of the four."""

    def loss(encoder, head, images, labels, view, generator) -> Tensor:
        views = view(images, generator)
        turned = torch.cat([views[k::4].rot90(k, (2, 3)) for k in range(4)])
        turns = torch.cat([torch.full_like(labels[k::4], k) for k in range(4)])
        return F.cross_entropy(head(encoder(turned)), turns)

    return nn.Linear(width, 4), loss


def reconstruction(width: int, classes: int, side: int) -> tuple[nn.Module, Callable[..., Tensor]]:
    """Mean squared error of the view, from its features alone."""
    decoder = nn.Sequential(
        *(
            nn.Linear(width, 2 * WIDTH),
            nn.ReLU(),
            nn.Linear(2 * WIDTH, 3 * side * side),
            nn.Unflatten(1, (3, side, side)),
        )
    )

    def loss(encoder, head, images, labels, view, generator) -> Tensor:
        seen = view(images, generator)
        return F.mse_loss(head(encoder(seen)), seen)

    return decoder, loss


def labelled(width: int, classes: int, side: int) -> tuple[nn.Module, Callable[..., Tensor]]:
    """Cross entropy of the labels."""

    def loss(encoder, head, images, labels, view, generator) -> Tensor:
        return F.cross_entropy(head(encoder(view(images, generator))), labels)

    return nn.Linear(width, classes), loss


OBJECTIVES = {"contrast": contrast, "rotation": rotation, "reconstruction": reconstruction, "labels": labelled}


def _cosine(step: int, steps: int) -> float:
    """Warm-up over a tenth of the steps, then half a cosine down to 0."""
    warm = max(1, steps // 10)
    return step / warm if step <= warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
