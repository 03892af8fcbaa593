"""lightly's Barlow Twins with walk pairing dropped in: without the lines marked `# +` it is lightly's.

    python -m sagkit.examples.lightly_barlow_twins --steps 20

    sum over d of (1 - c_dd)^2 + ...  +  alpha (D / 2) r(normalised z),      alpha = 0.3

Structure of the loop after lightly's example [R]; the added term is [K]. Trap: Barlow Twins does not see the scale of
z, so that a term on z itself would be met by shrinking z. It is taken on batch-normalised projections, where
(D / 2) msd is the sum over d of 1 - c_dd, the quantity whose square the loss holds.
"""

import argparse

import torch
import torchvision
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from torch import nn
from torch.nn.functional import batch_norm
from torchvision.transforms.functional import to_pil_image

from sagkit import WalkPairing, walk_term  # +
from sagkit.data import make_shapes


class BarlowTwins(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
        self.projection_head = BarlowTwinsProjectionHead(512, 512, 512)

    def forward(self, x):
        h = self.backbone(x).flatten(start_dim=1)
        return h, self.projection_head(h)


def views(images, transform):
    """Two views of every image of a batch, through Pillow as lightly's data sets go."""
    pairs = [transform(to_pil_image(image)) for image in images]
    return (torch.stack(view) for view in zip(*pairs, strict=True))


def train(steps: int = 20, batch_size: int = 64, seed: int = 0) -> list[float]:
    """Train on shapes; the loss of every step."""
    torch.manual_seed(seed)
    model, criterion = BarlowTwins(), BarlowTwinsLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    transform = BYOLTransform(
        BYOLView1Transform(input_size=32, gaussian_blur=0.0), BYOLView2Transform(input_size=32, gaussian_blur=0.0)
    )
    loader, losses = torch.utils.data.DataLoader(make_shapes(256).images, batch_size, shuffle=True, drop_last=True), []
    pairing = WalkPairing(k=5, length=2)  # +
    while len(losses) < steps:
        for batch in loader:
            x0, x1 = views(batch, transform)
            (h0, z0), (h1, z1) = model(x0), model(x1)
            loss = criterion(z0, z1)
            n0, n1 = (batch_norm(z, None, None, training=True) for z in (z0, z1))  # +
            loss = loss + 0.3 * z0.shape[1] / 2 * walk_term(n0, n1, pairing(h0, h1))  # +
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
