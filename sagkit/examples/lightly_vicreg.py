"""lightly's VICReg with walk pairing dropped in: without the lines marked `# +` it is lightly's.

    python -m sagkit.examples.lightly_vicreg --steps 20

Structure of the loop after lightly's example for VICReg [R]. It keeps the features h beside the projections z, for the
pairing to read; where a model hides h, the pairing can be given z, because it takes any features.
"""

import argparse

import torch
import torchvision
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from lightly.transforms.vicreg_transform import VICRegTransform
from torch import nn
from torchvision.transforms.functional import to_pil_image

from sagkit import WalkPairing, walk_term  # +
from sagkit.data import make_shapes


class VICReg(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
        self.projection_head = VICRegProjectionHead(input_dim=512, hidden_dim=512, output_dim=512, num_layers=2)

    def forward(self, x):
        h = self.backbone(x).flatten(start_dim=1)
        return h, self.projection_head(h)


class Views(torch.utils.data.Dataset):
    """Images of `shapes` as Pillow images under a transform, as lightly's data sets give them."""

    def __init__(self, transform, n: int = 256):
        self.images, self.transform = make_shapes(n).images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(to_pil_image(self.images[i]))


def train(steps: int = 20, batch_size: int = 64, seed: int = 0) -> list[float]:
    """Train on shapes; the loss of every step."""
    torch.manual_seed(seed)
    model, criterion = VICReg(), VICRegLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    dataset, losses = Views(VICRegTransform(input_size=32)), []
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)
    pairing = WalkPairing(k=5, length=2)  # +
    while len(losses) < steps:
        for x0, x1 in loader:
            (h0, z0), (h1, z1) = model(x0), model(x1)
            loss = criterion(z0, z1)
            loss = loss + 25 * 0.3 * walk_term(z0, z1, pairing(h0, h1))  # +
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) == steps:
                break
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    for step, value in enumerate(train(parser.parse_args().steps)):
        print(f"step {step}  loss {value:.3f}")
