"""DINO and I-JEPA: a student learns to predict what a slow average of itself, the teacher, makes of the same image.

    teacher <- m teacher + (1 - m) student,  m rising to 1 over the run; constant where that has no length
    DINO    cross-entropy( softmax((t - centre) / T_t) of one view,  softmax(s / T_s) of another )
    I-JEPA  smooth L1( layer-normalised teacher's patches of the whole view,  predictor(student's context patches) )

Sources: [R] Caron et al. 2021 and Assran et al. 2023, from lightly's parts (loss, head, masked transformer, predictor,
momentum update); constants of the small-image recipes in figures/METHOD.md section 6.

Differs from the sources: weight decay and DINO's warm-ups are constant or fractions of the run, because a budget may
be a single epoch [K]; I-JEPA's context is cut to one length by a random choice of patches, where the authors keep the
uppermost, and it never contains a target patch: lightly's collator lets them in after 20 vain draws, and numbers its
draws by a counter of its own, which a resumed run would not find again.

What remains after training, `encoder`, is the teacher: DINO's authors evaluate it and I-JEPA's the mean of its patches.
"""

from __future__ import annotations

import copy
import math
import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn

from sagkit.loss import Loss
from sagkit.model import Encoder
from sagkit.train.methods import Method

STUDENT_TEMPERATURE = 0.1  # DINO, and solo-learn's recipe
TEACHER_TEMPERATURE = 0.04, 0.07  # from, to: solo-learn's recipe, and DINO's authors for small transformers
TEMPERATURE_WARMUP = 0.3  # of the run: 30 of 100 epochs, DINO's authors
FREEZE = 1.0, 0.1  # DINO's authors hold the prototypes for 1 epoch; here at most a tenth of the run [K]
CENTRE_MOMENTUM = 0.9  # DINO
TARGETS = 4  # I-JEPA, as all of the block shapes below; scales from figures/METHOD.md section 6
TARGET_SCALE = 0.15, 0.25
TARGET_ASPECT = 0.75, 1.5
CONTEXT_SCALE = 0.75, 0.95
LEAST_CONTEXT = 10  # patches; I-JEPA's min_keep
PREDICTOR_HEAD = 32  # width of an attention head: I-JEPA's predictor of width 384 has 12


class Distillation(Method):
    """A student and, as `encoder`, the exponential moving average of it.

    Args:
        encoder: becomes the teacher, and the student a copy of it.
        ema: the average's momentum at the start, in [0, 1); it ends at 1.
        epochs: of the run; infinite for one whose length nothing may depend on: all schedules stay where they begin.
    """

    def __init__(self, encoder: Encoder, ema: float, epochs: float):
        super().__init__()
        self.student = copy.deepcopy(encoder)
        self.encoder = encoder.requires_grad_(False)
        self.ema, self.epochs = ema, epochs

    def averages(self) -> list[tuple[nn.Module, nn.Module]]:
        """Pairs of a trained module and the one that follows it."""
        return [(self.student, self.encoder)]

    def momentum(self, epoch: float) -> float:
        """Momentum of the average at some progress, in epochs."""
        raise NotImplementedError

    def after_step(self, epoch: float) -> None:
        from lightly.models.utils import update_momentum

        for trained, average in self.averages():
            update_momentum(trained, average, self.momentum(epoch))


class DINO(Distillation):
    """DINO: the student's prototypes for one view match the teacher's sharpened, centred ones for another.

    Args:
        encoder: any encoder; a class-token transformer in the paper.
        hidden: inner width of the head.
        bottleneck: width of its last inner layer.
        prototypes: outputs.
        ema: see Distillation.
        epochs: likewise.
        norm: batch normalisation in the head, as in lightly's CIFAR recipe; the authors' has none.
    """

    def __init__(
        self,
        encoder: Encoder,
        hidden: int,
        bottleneck: int,
        prototypes: int,
        ema: float,
        epochs: float,
        norm: bool = False,
    ):
        super().__init__(encoder, ema, epochs)
        from lightly.loss import DINOLoss  # here, because importing lightly takes seconds
        from lightly.models.modules import DINOProjectionHead

        freeze = min(FREEZE[0], FREEZE[1] * epochs)
        with warnings.catch_warnings():  # lightly's head uses torch's older weight_norm
            warnings.simplefilter("ignore", FutureWarning)
            self.head, self.teacher_head = (
                DINOProjectionHead(
                    encoder.feature_width, hidden, bottleneck, prototypes, batch_norm=norm, freeze_last_layer=freeze
                )
                for _ in range(2)
            )
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher_head.requires_grad_(False)
        self.cross_entropy = DINOLoss(prototypes, student_temp=STUDENT_TEMPERATURE, center_momentum=CENTRE_MOMENTUM)

    def forward(
        self,
        view_a: Tensor,
        view_b: Tensor,
        epoch: float = 0.0,
        index: Tensor | None = None,
        local: tuple[Tensor, ...] | list = (),
    ) -> Loss:
        """Loss of one batch in two views (B, 3, H, W) and any number of smaller local ones, which only students see."""
        pair = [view_a, view_b]
        with self.watch("teacher"), torch.no_grad():
            targets = [self.teacher_head(h).float() for h in through(self.encoder, pair)]
        with self.watch("encoder"):
            features = [*through(self.student, pair), *through(self.student, list(local))]
        with self.watch("projector"):
            logits = [self.head(h).float() for h in features]
        with self.watch("loss"), torch.autocast(view_a.device.type, enabled=False):
            total = self.cross_entropy(targets, logits, teacher_temp=self.temperature(epoch))
        return Loss(total, {"cross_entropy": total.detach()})

    def temperature(self, epoch: float) -> float:
        """Temperature of the teacher: linear over the first part of the run, then constant."""
        low, high = TEACHER_TEMPERATURE
        return low + (high - low) * min(1.0, epoch / (TEMPERATURE_WARMUP * self.epochs))

    def momentum(self, epoch: float) -> float:
        """From `ema` to 1 along half a cosine, as DINO's authors have it."""
        return 1 - (1 - self.ema) * (1 + math.cos(math.pi * epoch / self.epochs)) / 2

    def averages(self) -> list[tuple[nn.Module, nn.Module]]:
        return [*super().averages(), (self.head, self.teacher_head)]

    def after_backward(self, epoch: float) -> None:
        self.head.cancel_last_layer_gradients(epoch)


def through(encoder: nn.Module, views: list[Tensor]) -> list[Tensor]:
    """Features of views of one size, each (B, 3, H, W), in one pass where that changes nothing: a small transformer on
    a GPU waits for its launches. Batch statistics are of one view each, as in solo-learn.
    """
    if len(views) < 2 or any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules()):
        return [encoder(view) for view in views]
    return list(encoder(torch.cat(views)).chunk(len(views)))


class IJEPA(Distillation):
    """I-JEPA: from some patches of an image, predict the teacher's features of others; one view, and no projector.

    Args:
        encoder: a vision transformer without class token ("vit-...-avg").
        size: of the views, pixels; a multiple of the patch.
        width: of the predictor, a multiple of 4.
        depth: blocks of the predictor.
        ema: see Distillation.
        epochs: likewise.

    Raises:
        ValueError: for another encoder.
    """

    views = 1

    def __init__(self, encoder: Encoder, size: int, width: int, depth: int, ema: float, epochs: float):
        vit = getattr(encoder.backbone, "vit", None)
        if vit is None or vit.num_prefix_tokens:
            raise ValueError("ijepa needs a vision transformer without class token: --encoder vit-d192-l6-p4-avg")
        super().__init__(encoder, ema, epochs)
        from lightly.models.modules import IJEPAPredictorTIMM

        self.grid = size // vit.patch_embed.patch_size[0]
        heads = max(1, width // PREDICTOR_HEAD)
        self.predictor = IJEPAPredictorTIMM(self.grid**2, depth, encoder.feature_width, width, heads)

    def forward(self, view: Tensor, epoch: float = 0.0, index: Tensor | None = None) -> Loss:
        """Loss of one batch (B, 3, H, W); masks are drawn from torch's global generator, which the trainer seeds."""
        from lightly.models.utils import apply_masks

        context, targets = block_masks(len(view), self.grid, device=view.device)
        with self.watch("teacher"), torch.no_grad():
            whole = self.encoder.tokens(view).float()  # (B, T, F)
            wanted = apply_masks(F.layer_norm(whole, whole.shape[-1:]), list(targets))  # (4 B, m, F)
        with self.watch("encoder"):
            seen = self.student.tokens(view, context)  # (B, n, F)
        with self.watch("projector"):
            predicted = self.predictor(seen, context, list(targets))  # (4 B, m, F)
        with self.watch("loss"):
            total = F.smooth_l1_loss(predicted.float(), wanted)
        return Loss(total, {"smooth_l1": total.detach()})

    def momentum(self, epoch: float) -> float:
        """From `ema` to 1 along a line, as I-JEPA's authors have it."""
        return self.ema + (1 - self.ema) * epoch / self.epochs


def block_masks(
    batch: int, grid: int, generator: torch.Generator | None = None, device=None
) -> tuple[Int[Tensor, "B n"], Int[Tensor, "T B m"]]:
    """Patches for I-JEPA, by row: a context, and target blocks that the context has no patch of.

    Sizes of the blocks are drawn once per batch and places for each image, as I-JEPA's authors do. Images whose targets
    leave too few patches of the context are drawn anew; the rest is then cut to one length at random.

    Args:
        batch: number of images.
        grid: patches along a side of the (square) view, at least 4.
        generator: source of randomness, on `device`.
        device: where the masks are wanted.
    """
    scale, aspect, extent = torch.rand(3, generator=generator, device=device).tolist()
    area = grid**2 * _between(TARGET_SCALE, scale)
    aspect = _between(TARGET_ASPECT, aspect)
    block = tuple(min(grid - 1, max(1, round(side))) for side in (math.sqrt(area * aspect), math.sqrt(area / aspect)))
    side = min(grid, round(grid * math.sqrt(_between(CONTEXT_SCALE, extent))))
    least = min(LEAST_CONTEXT, grid**2 // 6)

    def draw(n: int) -> tuple[Bool[Tensor, "n T patches"], Bool[Tensor, "n patches"]]:
        hidden = _blocks(n, TARGETS, grid, block, generator, device)
        return hidden, _blocks(n, 1, grid, (side, side), generator, device)[:, 0] & ~hidden.any(dim=1)

    hidden, left = draw(batch)
    while len(poor := (left.sum(dim=1) < least).nonzero()[:, 0]):
        hidden[poor], left[poor] = draw(len(poor))
    chance = torch.rand(left.shape, generator=generator, device=device).masked_fill(~left, -1)
    context = chance.topk(int(left.sum(dim=1).min()), dim=1).indices.sort(dim=1).values
    targets = hidden.nonzero()[:, 2].view(batch, TARGETS, block[0] * block[1])
    return context, targets.transpose(0, 1)


def _blocks(n: int, blocks: int, grid: int, size, generator, device) -> Bool[Tensor, "n blocks patches"]:
    """Rectangles of one size (rows, columns) at uniform places of the grid."""
    line = torch.arange(grid, device=device)
    inside = []
    for extent in size:
        first = torch.randint(grid - extent + 1, (n, blocks, 1), generator=generator, device=device)
        inside.append((line >= first) & (line < first + extent))  # (n, blocks, grid)
    return (inside[0][..., None] & inside[1][..., None, :]).flatten(2)


def _between(bounds: tuple[float, float], u: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * u
