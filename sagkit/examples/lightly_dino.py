"""lightly's DINO with walk pairing dropped in: without the lines marked `# +` it is lightly's.

    python -m sagkit.examples.lightly_dino --steps 20

    + alpha mean over walk pairs (i, j) of  w H(teacher of j, view 2;  student of i, view 1),      alpha = 0.3

Structure of the loop after lightly's example [R]; the added term is [K]: DINO has no squared distance to weight, so the
student of an anchor is taught by the teacher of the image that its walk reached, under the loss's own temperatures
(student: 0.1) and centre. The graph stands on the teacher's features, which move slowly.
"""

import argparse
import copy

import torch
import torchvision
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.dino_transform import DINOTransform
from torch import nn
from torchvision.transforms.functional import to_pil_image

from sagkit import WalkPairing  # +
from sagkit.data import make_shapes


class DINO(nn.Module):
    def __init__(self):
        super().__init__()
        self.student_backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
        self.student_head = DINOProjectionHead(512, 256, 64, 512, freeze_last_layer=1)
        self.teacher_backbone = copy.deepcopy(self.student_backbone)
        self.teacher_head = DINOProjectionHead(512, 256, 64, 512)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)

    def student(self, x):
        return self.student_head(self.student_backbone(x).flatten(start_dim=1))

    def teacher(self, x):
        h = self.teacher_backbone(x).flatten(start_dim=1)
        return h, self.teacher_head(h)


def views(images, transform):
    """Two global and two local views of every image of a batch, through Pillow as lightly's data sets go."""
    several = [transform(to_pil_image(image)) for image in images]
    return [torch.stack(view) for view in zip(*several, strict=True)]


def train(steps: int = 20, batch_size: int = 64, seed: int = 0) -> list[float]:
    """Train on shapes; the loss of every step."""
    torch.manual_seed(seed)
    model, criterion = DINO(), DINOLoss(output_dim=512, warmup_teacher_temp_epochs=5)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    transform = DINOTransform(global_crop_size=32, local_crop_size=32, n_local_views=2, gaussian_blur=(0, 0, 0))
    loader, losses = torch.utils.data.DataLoader(make_shapes(256).images, batch_size, shuffle=True, drop_last=True), []
    pairing = WalkPairing(k=5, length=2)  # +
    while len(losses) < steps:
        for batch in loader:
            update_momentum(model.student_backbone, model.teacher_backbone, m=0.99)
            update_momentum(model.student_head, model.teacher_head, m=0.99)
            x = views(batch, transform)
            (h0, t0), (h1, t1) = model.teacher(x[0]), model.teacher(x[1])
            s = [model.student(view) for view in x]
            loss = criterion([t0, t1], s, epoch=0)
            i, j, w = pairing(h0, h1)  # +
            taught = ((t1[j] - criterion.center[0]) / criterion.teacher_temp).softmax(dim=1)  # +
            loss = loss + 0.3 * (w * nn.functional.cross_entropy(s[0][i] / 0.1, taught, reduction="none")).mean()  # +
            loss.backward()
            model.student_head.cancel_last_layer_gradients(current_epoch=0)
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
