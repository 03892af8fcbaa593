"""One training objective per method: two augmented views of a batch in, a loss and its terms out.

    h = encoder(view);  z = projector(h);  loss = vicreg_loss(za, zb)             vicreg
                                           loss = sag_vicreg_loss(za, zb, pairs)  sag-vicreg, scopes batch and queue
    view_b of image j, where a walk from i ended;  loss = vicreg_loss(za, zb)     sag-vicreg, scope dataset

Sources: [R] VICReg; [S] SAG-VICReg adds walk pairs within a batch to it; [K] the scopes queue and dataset, and the ramp
of alpha: 0 until `start`, then linear over `warmup`, both in epochs, because the first epochs' neighbours are noise.

Every method is a module whose `encoder` is what remains after training. With several processes, `gather` collects
projections and features with their gradients, so that the statistics and the graph are the global batch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sagkit.loss import Loss, sag_vicreg_loss, vicreg_loss
from sagkit.pairing import DatasetPairing, Queue, WalkPairing
from sagkit.timing import Stopwatch


def only_process(x: Tensor) -> Tensor:
    """The gather of a run with one process."""
    return x


class VICReg(nn.Module):
    """VICReg: encoder and projector under the three-term loss.

    Args:
        encoder: module from views (B, 3, H, W) to features (B, F).
        projector: module from (B, F) to (B, D).
        sim: weight of the invariance term.
        var: weight of the variance term.
        cov: weight of the covariance term.
        gather: (B, ...) of this process to (world B, ...) of all, with gradient.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        sim: float = 25,
        var: float = 25,
        cov: float = 1,
        gather: Callable[[Tensor], Tensor] = only_process,
    ):
        super().__init__()
        self.encoder, self.projector, self.gather = encoder, projector, gather
        self.weights = {"sim": sim, "var": var, "cov": cov}
        self.watch = Stopwatch()

    def forward(self, view_a: Tensor, view_b: Tensor, epoch: float = 0.0) -> Loss:
        """Loss of one batch; `epoch` is the training progress in epochs, with its fraction."""
        with self.watch("encoder"):
            ha, hb = self.encoder(view_a), self.encoder(view_b)  # (B, F)
        with self.watch("projector"):
            za, zb = self.projector(ha), self.projector(hb)  # (B, D)
        ha, hb = self.gather(ha.detach()), self.gather(hb.detach())
        za, zb = self.gather(za.float()), self.gather(zb.float())
        # Sums of squares over a batch lose too much in bfloat16.
        with torch.autocast(view_a.device.type, enabled=False):
            return self.objective(ha, hb, za, zb, epoch)

    def objective(self, ha: Tensor, hb: Tensor, za: Tensor, zb: Tensor, epoch: float) -> Loss:
        """Loss of detached features (B, F) and projections (B, D) of the global batch."""
        with self.watch("loss"):
            return vicreg_loss(za, zb, **self.weights)

    def begin_epoch(self, epoch: int, features: Callable[[], Tensor]) -> None:
        """Called before each epoch; `features()` encodes all training images, clean: (N, F)."""

    def second_images(self, index: Tensor, epoch: float, generator: torch.Generator) -> Tensor:
        """Rows of the training images (B,) whose second view is shown beside the first view of those at `index`."""
        return index


class Ramp(NamedTuple):
    """Strength of the pairing over training: 0 until `start`, `alpha` from `start + warmup` on; both in epochs."""

    alpha: float
    start: float = 0.0
    warmup: float = 0.0

    def at(self, epoch: float) -> float:
        if epoch < self.start:
            return 0.0
        return self.alpha * min(1.0, (epoch - self.start) / self.warmup if self.warmup else 1.0)


class SAGVICReg(VICReg):
    """VICReg with random-walk pairs in a weighted invariance term.

    Args:
        pairing: chooses pairs from the two views' features.
        ramp: strength of the walk term over training.
        keep: keep the augmentation term whole, or mix; see `loss.sag_vicreg_loss`.
        queue: further nodes for the walks, and targets; None for the batch alone.
        **vicreg: what VICReg takes.
    """

    def __init__(
        self, *args, pairing: WalkPairing, ramp: Ramp, keep: bool = True, queue: Queue | None = None, **vicreg
    ):
        super().__init__(*args, **vicreg)
        self.pairing, self.ramp, self.keep, self.queue = pairing, ramp, keep, queue

    def objective(self, ha: Tensor, hb: Tensor, za: Tensor, zb: Tensor, epoch: float) -> Loss:
        alpha = self.ramp.at(epoch)
        bank = None
        if self.queue is not None:
            bank = self.queue.read(za.device)
            self.queue.push((ha.float() + hb.float()) / 2, za, zb)
        if alpha == 0:
            return super().objective(ha, hb, za, zb, epoch)
        with self.watch("walk"):
            pairs = self.pairing(ha, hb, bank[0] if bank else None)
        with self.watch("loss"):
            return sag_vicreg_loss(za, zb, pairs, alpha, self.keep, bank=bank[1:] if bank else None, **self.weights)


class DatasetSAGVICReg(VICReg):
    """VICReg whose second view comes, now and then, from an image that a walk over the whole training set reached.

    Args:
        pairing: the graph of the training set, and its walks.
        ramp: probability of replacing the second view over training, times the walk's confidence.
        rebuild: epochs between two buildings of the graph, at least 1.
        **vicreg: what VICReg takes.
    """

    def __init__(self, *args, pairing: DatasetPairing, ramp: Ramp, rebuild: int = 1, **vicreg):
        super().__init__(*args, **vicreg)
        if rebuild < 1:
            raise ValueError(f"the graph is rebuilt every 1 epoch or more, got {rebuild}")
        self.pairing, self.ramp, self.rebuild = pairing, ramp, rebuild

    def begin_epoch(self, epoch: int, features: Callable[[], Tensor]) -> None:
        if self.ramp.at(epoch + 1) > 0 and (self.pairing.graph is None or epoch % self.rebuild == 0):
            self.pairing.rebuild(features())

    def second_images(self, index: Tensor, epoch: float, generator: torch.Generator) -> Tensor:
        alpha = self.ramp.at(epoch)
        return self.pairing.partners(index, alpha, generator) if alpha else index


METHODS = ("vicreg", "sag-vicreg")
