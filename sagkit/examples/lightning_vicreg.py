"""A PyTorch Lightning VICReg module with walk pairing dropped in: without the lines marked `# +` it is as it was.

    python -m sagkit.examples.lightning_vicreg --steps 20

The pairing is a submodule, so its count of steps travels in Lightning's checkpoint and a resumed run draws the walks of
an uninterrupted one. Loss [R], walk term [K] with alpha = 0.3.
"""

import argparse

import pytorch_lightning as pl
import torch
import torchvision
from lightly.loss import VICRegLoss
from torch import nn

from sagkit import WalkPairing, walk_term  # +
from sagkit.augment import Augmentation, two_views
from sagkit.data import make_shapes


class VICReg(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1], nn.Flatten())
        self.projector = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 512))
        self.criterion, self.losses = VICRegLoss(), []
        self.pairing = WalkPairing(k=5, length=2)  # +

    def training_step(self, batch, batch_idx):
        x0, x1 = two_views(batch, Augmentation())
        h0, h1 = self.backbone(x0), self.backbone(x1)
        z0, z1 = self.projector(h0), self.projector(h1)
        loss = self.criterion(z0, z1)
        loss = loss + 25 * 0.3 * walk_term(z0, z1, self.pairing(h0, h1))  # +
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def run_trainer(steps: int = 20, batch_size: int = 64, seed: int = 0) -> pl.Trainer:
    """A Lightning trainer that has trained a VICReg on shapes."""
    pl.seed_everything(seed, verbose=False)
    loader = torch.utils.data.DataLoader(make_shapes(512).images, batch_size, shuffle=True, drop_last=True)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(max_steps=steps, accelerator="auto", devices=1, **quiet)
    trainer.fit(VICReg(), loader)
    return trainer


def train(steps: int = 20, batch_size: int = 64, seed: int = 0) -> list[float]:
    """The loss of every step of `run_trainer`."""
    return run_trainer(steps, batch_size, seed).lightning_module.losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    for step, value in enumerate(train(parser.parse_args().steps)):
        print(f"step {step}  loss {value:.3f}")
