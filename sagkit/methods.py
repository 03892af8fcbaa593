"""One training objective per method: two augmented views of a batch in, a loss and its terms out.

    h = encoder(view);  z = projector(h);  loss = vicreg_loss(za, zb)             vicreg
                                           loss = sag_vicreg_loss(za, zb, pairs)  sag-vicreg

Sources: [R] VICReg; [S] SAG-VICReg adds walk pairs to it; [K] the ramp of alpha: 0 until `start`, then linear over
`warmup`, both in epochs, because the first epochs' neighbours are noise.

Every method is a module whose `encoder` is what remains after training. With several processes, `gather` collects
projections and features with their gradients, so that the statistics and the graph are the global batch's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sagkit.loss import Loss, sag_vicreg_loss, vicreg_loss
from sagkit.pairing import WalkPairing
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


class SAGVICReg(VICReg):
    """VICReg with random-walk pairs in a weighted invariance term.

    Args:
        pairing: chooses pairs from the two views' features.
        alpha: final strength of the walk term.
        start: epochs of plain VICReg first.
        warmup: epochs over which alpha then rises from 0.
        keep: keep the augmentation term whole, or mix; see `loss.sag_vicreg_loss`.
        **vicreg: what VICReg takes.
    """

    def __init__(
        self,
        *args,
        pairing: WalkPairing,
        alpha: float,
        start: float,
        warmup: float,
        keep: bool = True,
        **vicreg,
    ):
        super().__init__(*args, **vicreg)
        self.pairing, self.alpha, self.keep = pairing, alpha, keep
        self.start, self.warmup = start, warmup

    def alpha_at(self, epoch: float) -> float:
        """The ramp: 0 until `start`, alpha from `start + warmup` on."""
        if epoch < self.start:
            return 0.0
        return self.alpha * min(1.0, (epoch - self.start) / self.warmup if self.warmup else 1.0)

    def objective(self, ha: Tensor, hb: Tensor, za: Tensor, zb: Tensor, epoch: float) -> Loss:
        alpha = self.alpha_at(epoch)
        if alpha == 0:
            return super().objective(ha, hb, za, zb, epoch)
        with self.watch("walk"):
            pairs = self.pairing(ha, hb)
        with self.watch("loss"):
            return sag_vicreg_loss(za, zb, pairs, alpha, self.keep, **self.weights)


METHODS = {"vicreg": VICReg, "sag-vicreg": SAGVICReg}
