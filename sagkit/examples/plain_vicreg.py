"""A plain PyTorch VICReg loop with walk pairing dropped in: without the lines marked `# +` it is the loop as it was.

    python -m sagkit.examples.plain_vicreg --steps 20

loss = 25 s + 25 v + 1 c, written out as in the VICReg authors' code [R]; the added term is 25 alpha r [K], alpha = 0.3.
Data and augmentation are the kit's, because they need no download; put your own loader in their place.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from sagkit import WalkPairing, walk_term  # +
from sagkit.augment import Augmentation, two_views
from sagkit.data import make_shapes


def vicreg(za, zb):
    """The three terms for projections (B, D) of two views."""
    (rows, columns), loss = za.shape, 25 * F.mse_loss(za, zb)
    for z in (za, zb):
        z = z - z.mean(dim=0)
        loss = loss + 25 * F.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean() / 2
        cov = z.T @ z / (rows - 1)  # (D, D)
        loss = loss + (cov - cov.diagonal().diag()).square().sum() / columns
    return loss


def train(steps: int = 20, batch_size: int = 64, seed: int = 0) -> list[float]:
    """Train a ResNet-18 on shapes; the loss of every step."""
    torch.manual_seed(seed)
    backbone = resnet18(weights=None)
    backbone.fc = nn.Identity()
    projector = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 512, bias=False))
    optimizer = torch.optim.AdamW([*backbone.parameters(), *projector.parameters()], lr=1e-3)
    generator, images, losses = torch.Generator().manual_seed(seed), make_shapes(512).images, []
    pairing = WalkPairing(k=5, length=2)  # +
    for _ in range(steps):
        batch = images[torch.randint(len(images), (batch_size,), generator=generator)]
        xa, xb = two_views(batch, Augmentation(), generator)
        ha, hb = backbone(xa), backbone(xb)
        za, zb = projector(ha), projector(hb)
        loss = vicreg(za, zb)
        loss = loss + 25 * 0.3 * walk_term(za, zb, pairing(ha, hb))  # +
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    for step, value in enumerate(train(parser.parse_args().steps)):
        print(f"step {step}  loss {value:.3f}")
