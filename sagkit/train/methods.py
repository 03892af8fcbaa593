"""Training objectives: views of a batch in, a loss and its terms out.

    h = encoder(view);  z = projector(h);  pairs = pairing(ha, hb, index);  loss(za, zb, pairs, alpha)

    vicreg          TwoViews(encoder, projector, partial(sag_vicreg_loss, sim=25, ...))          alpha = 0
    sag-vicreg      TwoViews(encoder, projector, partial(sag_vicreg_loss, sim=25, ...), WalkPairing(...), Ramp(0.3))
    barlow-twins    TwoViews(encoder, projector, barlow_twins_loss, pairing, ramp)
    dino, ijepa     see sagkit.train.distill

The pairing is a walk, a control in its place (see sagkit.train.controls), or none; it does not care whose loss it
feeds. Under scope queue it sees the last batches, too; under scope dataset it chooses the image whose second view is
shown, and the loss is the plain one.

Sources: [R] VICReg, and Barlow Twins (Zbontar et al. 2021); [S] SAG-VICReg adds walk pairs within a batch to VICReg;
[K] the scopes queue and dataset, and the ramp of alpha: 0 until `start`, then linear over `warmup`, both in epochs,
because the first epochs' neighbours are noise.

Differs from the source: VICReg's authors train with SyncBatchNorm and start the last normalisation of every residual
block at 0 (`zero_init_residual`); here blocks start at 1, and each process normalises by its own share of the batch
unless `Config.sync_batchnorm` is set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sagkit.loss import Loss
from sagkit.metrics.purity import weight_per_anchor
from sagkit.pairing import Pairing, Queue, gather
from sagkit.train.timing import Stopwatch
from sagkit.walk import Ends, Pairs


class Method(nn.Module):
    """What the trainer asks of a method; every hook but `forward` may stay as it is.

    `forward(*views, epoch, index)` gives the loss of one batch: as many views as `views` says, each (B, 3, H, W), the
    progress in epochs with its fraction, and the images' rows (B,) of the training set.

    encoder: what remains after training. views: of each image, 1 or 2. watch: the stopwatch of its parts.
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


NEVER = Ramp(0.0)


class TwoViews(Method):
    """Encoder and projector under a loss of the two views' projections, and of the pairs that a pairing adds.

    Args:
        encoder: module from views (B, 3, H, W) to features (B, F).
        projector: module from (B, F) to (B, D).
        loss: (za, zb, pairs, alpha, bank=...) to Loss: `sag_vicreg_loss` or `barlow_twins_loss`, weights bound by
            functools.partial. alpha = 0 is the method without pairs to the last bit, and pairs are then None.
        pairing: gives pairs, or replaces images before their second views are drawn; by default neither.
        ramp: alpha over training; the strength of the walk term, or the probability of replacing an image.
        queue: the last batches, as further nodes and targets of pairs; None for the batch alone.
        gather: (B, ...) of this process to (world B, ...) of all, with gradient, so that statistics, graph and pairs
            are the global batch's.
        known: labels (N,) of all training images by kind; no choice reads them. How much of the pairs' weight is on
            partners of one label is told among the loss terms, see `pulls`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        loss: Callable[..., Loss],
        pairing: Pairing | None = None,
        ramp: Ramp = NEVER,
        queue: Queue | None = None,
        gather: Callable[[Tensor], Tensor] = gather,
        known: dict[str, Tensor] | None = None,
    ):
        super().__init__()
        self.kinds = tuple(known or ())
        for kind in self.kinds:
            self.register_buffer(f"known_{kind}", known[kind], persistent=False)  # follows the module to its device
        self._replaced: dict[str, Tensor] = {}  # the pulls of second views that were replaced, until `forward`
        self.encoder, self.projector, self.loss = encoder, projector, loss
        self.pairing, self.ramp, self.queue, self.gather = pairing or Pairing(), ramp, queue, gather

    def begin_epoch(self, epoch: int, features: Callable[[], Tensor]) -> None:
        if self.ramp.by(epoch + 1):
            self.pairing.begin_epoch(epoch, features)

    def second_images(self, index: Tensor, epoch: float, generator: torch.Generator) -> Tensor:
        alpha = self.ramp.at(epoch)
        if not alpha:
            return index
        partner = self.pairing.partners(index, alpha, generator)
        rows, other = torch.cat([index, partner]), (partner != index).float()
        own = torch.arange(len(index), device=index.device)
        self._replaced = self.pulls(Pairs(own, own + len(index), other), rows)
        return partner

    def forward(self, view_a: Tensor, view_b: Tensor, epoch: float = 0.0, index: Tensor | None = None) -> Loss:
        """Loss of one batch in two views."""
        with self.watch("encoder"):
            ha, hb = self.encoder(view_a), self.encoder(view_b)  # (B, F)
        with self.watch("projector"):
            za, zb = self.projector(ha), self.projector(hb)  # (B, D)
        # Sums of squares over a batch lose too much in bfloat16: from here on in float32.
        ha, hb, za, zb = (self.gather(x) for x in (ha.detach(), hb.detach(), za.float(), zb.float()))
        alpha, pairs, bank = self.ramp.at(epoch), None, None
        nodes = rows = self.gather(index) if alpha and index is not None else None
        if self.queue is not None and alpha:  # not before, so that a branch fills it as the run trained whole does
            bank = self.queue.read(za.device)
            nodes = rows if rows is None else torch.cat([rows, self.queue.rows(za.device)])
            self.queue.push((ha.float() + hb.float()) / 2, za, zb, rows)
        with torch.autocast(view_a.device.type, enabled=False):
            if alpha:
                with self.watch("walk"):
                    pairs = self.pairing(ha, hb, rows, bank and bank[0], self.watch)
            with self.watch("loss"):
                loss = self.loss(za, zb, pairs, alpha if pairs is not None else 0.0, bank=bank and bank[1:])
        pulls, self._replaced = self._replaced, {}
        if pairs is not None and nodes is not None:
            pulls = self.pulls(pairs, nodes, alpha)
        return loss._replace(terms=loss.terms | pulls)

    def pulls(self, pairs: Pairs | Ends, rows: Tensor, alpha: float = 1.0) -> dict[str, Tensor]:
        """The pairs' weight per anchor, strength included: all of it, and by kind of label that on one label.

        Args:
            pairs: of nodes.
            rows: of the training set, of each node.
            alpha: their strength in the loss.
        """
        labels = {kind: getattr(self, f"known_{kind}")[rows] for kind in self.kinds}
        told = {"pair_weight": None} | {f"{kind}_weight": of for kind, of in labels.items()}
        return {name: alpha * weight_per_anchor(pairs, of) for name, of in told.items()}
