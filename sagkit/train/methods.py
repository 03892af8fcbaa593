"""One training objective per method: two augmented views of a batch in, a loss and its terms out.

    h = encoder(view);  z = projector(h);  loss = vicreg_loss(za, zb)             vicreg
                                           loss = sag_vicreg_loss(za, zb, pairs)  sag-vicreg, scopes batch and queue
    view_b of image j, where a walk from i ended;  loss = vicreg_loss(za, zb)     sag-vicreg, scope dataset

Sources: [R] VICReg, and Barlow Twins (Zbontar et al. 2021); [S] SAG-VICReg adds walk pairs within a batch to VICReg;
[K] the scopes queue and dataset, and the ramp of alpha: 0 until `start`, then linear over `warmup`, both in epochs,
because the first epochs' neighbours are noise. The pairing does not care whose loss it feeds: `Walks` and
`DatasetWalks` stand in front of any `TwoViews`.

Every method is a module whose `encoder` is what remains after training. With several processes, `gather` collects
projections and features with their gradients, so that the statistics and the graph are the global batch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sagkit.loss import Loss, barlow_twins_loss, sag_vicreg_loss, vicreg_loss
from sagkit.pairing import DatasetPairing, Queue
from sagkit.train.controls import Matched, OraclePairing
from sagkit.train.timing import Stopwatch
from sagkit.walk import Pairs


def only_process(x: Tensor) -> Tensor:
    """The gather of a run with one process."""
    return x


class Method(nn.Module):
    """What the trainer asks of a method; every hook but `forward` may stay as it is.

    encoder: what remains after training. views: views of each image that `forward` takes, 1 or 2. watch: its stopwatch.
    """

    encoder: nn.Module
    views = 2

    def __init__(self):
        super().__init__()
        self.watch = Stopwatch()

    def begin_epoch(self, epoch: int, features: Callable[[], Tensor]) -> None:
        """Called before each epoch; `features()` encodes all training images, clean: (N, F)."""

    def second_images(self, index: Tensor, epoch: float, generator: torch.Generator) -> Tensor:
        """Rows of the training images (B,) whose second view is shown beside the first view of those at `index`."""
        return index

    def after_backward(self, epoch: float) -> None:
        """Called between the backward pass and the optimiser's step."""

    def after_step(self, epoch: float) -> None:
        """Called after the optimiser's step."""


class TwoViews(Method):
    """Encoder and projector under a loss of two views' projections; `plain` and `walked` say which.

    Args:
        encoder: module from views (B, 3, H, W) to features (B, F).
        projector: module from (B, F) to (B, D).
        gather: (B, ...) of this process to (world B, ...) of all, with gradient.
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module, gather: Callable[[Tensor], Tensor] = only_process):
        super().__init__()
        self.encoder, self.projector, self.gather = encoder, projector, gather

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
            return self.plain(za, zb)

    def plain(self, za: Tensor, zb: Tensor) -> Loss:
        """Loss of the two views alone."""
        raise NotImplementedError

    def walked(self, za: Tensor, zb: Tensor, pairs: Pairs, alpha: float, keep: bool, bank) -> Loss:
        """Loss with further positive pairs; the arguments are those of `loss.sag_vicreg_loss`."""
        raise NotImplementedError


class VICReg(TwoViews):
    """VICReg: the three-term loss.

    Args:
        encoder: see TwoViews.
        projector: likewise.
        sim: weight of the invariance term.
        var: weight of the variance term.
        cov: weight of the covariance term.
        gather: see TwoViews.
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
        super().__init__(encoder, projector, gather)
        self.weights = {"sim": sim, "var": var, "cov": cov}

    def plain(self, za: Tensor, zb: Tensor) -> Loss:
        return vicreg_loss(za, zb, **self.weights)

    def walked(self, za: Tensor, zb: Tensor, pairs: Pairs, alpha: float, keep: bool, bank) -> Loss:
        return sag_vicreg_loss(za, zb, pairs, alpha, keep, bank=bank, **self.weights)


class BarlowTwins(TwoViews):
    """Barlow Twins: the views' correlation matrix is pulled towards the identity, with solo-learn's constants."""

    def plain(self, za: Tensor, zb: Tensor) -> Loss:
        return barlow_twins_loss(za, zb)

    def walked(self, za: Tensor, zb: Tensor, pairs: Pairs, alpha: float, keep: bool, bank) -> Loss:
        return barlow_twins_loss(za, zb, pairs, alpha, keep, bank=bank)


class Ramp(NamedTuple):
    """Strength of the pairing over training: 0 until `start`, `alpha` from `start + warmup` on; both in epochs."""

    alpha: float
    start: float = 0.0
    warmup: float = 0.0

    def by(self, epoch: float) -> bool:
        """Whether the pairing has a say anywhere before `epoch`."""
        return self.alpha > 0 and epoch > self.start

    def at(self, epoch: float) -> float:
        """The strength at `epoch`."""
        if epoch < self.start:
            return 0.0
        return self.alpha * min(1.0, (epoch - self.start) / self.warmup if self.warmup else 1.0)


class Walks(TwoViews):
    """Stands in front of a two-view method: random-walk pairs in a weighted term beside its own.

    Args:
        *method: what the method takes.
        pairing: chooses pairs from the two views' features.
        ramp: strength of the walk term over training.
        keep: keep the method's own term whole, or mix; see `loss.sag_vicreg_loss`.
        queue: further nodes for the walks, and targets; None for the batch alone.
        **fields: what the method takes.
    """

    def __init__(
        self, *method, pairing: nn.Module, ramp: Ramp, keep: bool = True, queue: Queue | None = None, **fields
    ):
        super().__init__(*method, **fields)
        self.pairing, self.ramp, self.keep, self.queue = pairing, ramp, keep, queue
        pairing.watch = self.watch  # "graph" apart from "walk"

    def second_images(self, index: Tensor, epoch: float, generator: torch.Generator) -> Tensor:
        control = self.pairing.control if isinstance(self.pairing, Matched) else self.pairing
        if isinstance(control, OraclePairing):  # the one pairing that has to know which images it sees
            control.groups = self.gather(control.known[index])
        return index

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
            return self.walked(za, zb, pairs, alpha, self.keep, bank[1:] if bank else None)


class DatasetWalks(TwoViews):
    """Stands in front of a two-view method: now and then the second view comes from an image that a walk over the
    whole training set reached.

    Args:
        *method: what the method takes.
        pairing: the graph of the training set, and its walks.
        ramp: probability of replacing the second view over training, times the walk's confidence.
        rebuild: epochs between two buildings of the graph, at least 1.
        **fields: what the method takes.
    """

    def __init__(self, *method, pairing: DatasetPairing, ramp: Ramp, rebuild: int = 1, **fields):
        super().__init__(*method, **fields)
        if rebuild < 1:
            raise ValueError(f"the graph is rebuilt every 1 epoch or more, got {rebuild}")
        self.pairing, self.ramp, self.rebuild = pairing, ramp, rebuild

    def begin_epoch(self, epoch: int, features: Callable[[], Tensor]) -> None:
        if self.ramp.by(epoch + 1) and (self.pairing.graph is None or epoch % self.rebuild == 0):
            self.pairing.rebuild(features())

    def second_images(self, index: Tensor, epoch: float, generator: torch.Generator) -> Tensor:
        alpha = self.ramp.at(epoch)
        return self.pairing.partners(index, alpha, generator) if alpha else index


class SAGVICReg(Walks, VICReg):
    """VICReg with random-walk pairs in a weighted invariance term."""


class DatasetSAGVICReg(DatasetWalks, VICReg):
    """VICReg whose second view comes, now and then, from an image that a walk reached."""


class SAGBarlowTwins(Walks, BarlowTwins):
    """Barlow Twins with random-walk pairs."""


class DatasetSAGBarlowTwins(DatasetWalks, BarlowTwins):
    """Barlow Twins whose second view comes, now and then, from an image that a walk reached."""


METHODS = ("vicreg", "sag-vicreg", "barlow-twins", "dino", "ijepa")
