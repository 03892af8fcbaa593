"""Controls without which no claim about walks stands: the same training with the walk's partner replaced.

    random      the walk's pairs with their weights, each positive replaced by any other image
    own         likewise, by the anchor itself, whose two views are so pulled harder: no partner at all
    nearest     one step to the nearest neighbour: no walk (with `mutual`: where both are each other's nearest)
    unweighted  walks that take every kept edge alike, and pairs that all weigh 1
    oracle      any other image of the anchor's superclass, weight 1: an upper bound that reads labels

Source: [K], METHOD.md section 3. `random` and `own` keep the number of the walk's pairs and their weights, `oracle`
the number alone. The others pull with a strength of their own unless they are `Matched`: then their weights have the
mean of the walk's, and who is paired is all that differs. VICReg with sim = 25 (1 + alpha) from the first step on
needs no code: `--method vicreg --sim 32.5`.

Every control is a pairing, for the batch (and the queue, where partners of `random` and `oracle` are of the batch) and
for the whole training set.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sagkit.graph import Graph
from sagkit.pairing import DatasetPairing, WalkPairing
from sagkit.walk import Pairs

PAIRS = ("walk", "random", "own", "nearest", "unweighted", "oracle")
SMALLEST = 1e-6  # mean weight of pairs below which there is nothing to scale
NEAREST = {"k": 1, "length": 1, "walks": 1, "restart": 0.0}  # what `nearest` fixes of a pairing


def another(index: Int[Tensor, " P"], n: int, generator: torch.Generator | None = None) -> Int[Tensor, " P"]:
    """For each row of n, any other row with equal probability.

    Raises:
        ValueError: for fewer than 2 rows.
    """
    if n < 2:
        raise ValueError(f"another image needs at least 2, got {n}")
    step = torch.randint(1, n, index.shape, generator=generator, device=index.device)
    return (index + step) % n


def another_of_group(
    index: Int[Tensor, " P"], groups: Int[Tensor, " N"], generator: torch.Generator | None = None
) -> Int[Tensor, " P"]:
    """For each row, any other row of its group with equal probability; itself where it is alone."""
    order = torch.argsort(groups, stable=True)  # rows, group by group
    size = torch.bincount(groups)
    first = size.cumsum(0) - size
    place = torch.empty_like(order)
    place[order] = torch.arange(len(groups), device=groups.device)
    group = groups[index]
    u = torch.rand(index.shape, generator=generator, device=index.device)
    step = 1 + (u * (size[group] - 1)).long().clamp(max=(size[group] - 2).clamp(min=0))
    return order[first[group] + (place[index] - first[group] + step) % size[group]]


def unweighted(graph: Graph) -> Graph:
    """The same edges, all of a row equally likely, and no similarities: every path that leaves home weighs 1."""
    edges = (graph.weights > 0).to(graph.weights.dtype)
    return Graph(graph.neighbors, edges / edges.sum(dim=1, keepdim=True), None, graph.recall)


class ReplacedPairing(WalkPairing):
    """The walks' pairs with their weights, each positive replaced by what `instead` says."""

    @torch.no_grad()
    def forward(
        self, ha: Float[Tensor, "B F"], hb: Float[Tensor, "B F"], bank: Float[Tensor, "Q F"] | None = None
    ) -> Pairs:
        pairs = super().forward(ha, hb, bank)
        return pairs._replace(positive=self.instead(pairs.anchor, len(ha)))

    def instead(self, anchor: Int[Tensor, " P"], rows: int) -> Int[Tensor, " P"]:
        """The partner of each anchor, among the rows of the batch."""
        raise NotImplementedError


class RandomPairing(ReplacedPairing):
    """Pairs as many and as strong as the walks', with any other image of the batch."""

    def instead(self, anchor: Int[Tensor, " P"], rows: int) -> Int[Tensor, " P"]:
        return another(anchor, rows, _beside(self, anchor.device))


class OwnPairing(ReplacedPairing):
    """The walks' weights on the images themselves: their own two views are pulled harder, by as much in sum."""

    def instead(self, anchor: Int[Tensor, " P"], rows: int) -> Int[Tensor, " P"]:
        return anchor


class UnweightedPairing(WalkPairing):
    """Walks on the graph without its weights."""

    def graph_of(self, nodes: Float[Tensor, "N F"]) -> Graph:
        return unweighted(super().graph_of(nodes))


class OraclePairing(WalkPairing):
    """Pairs of weight 1 within groups; `groups` are those of the batch at hand and set before each call.

    Args:
        known: group of every training image, (N,).
        **settings: what WalkPairing takes; only `walks`, `every` and `seed` matter.
    """

    def __init__(self, known: Int[Tensor, " N"], **settings):
        super().__init__(**settings)
        self.register_buffer("known", known, persistent=False)
        self.groups: Tensor | None = None

    @torch.no_grad()
    def forward(
        self, ha: Float[Tensor, "B F"], hb: Float[Tensor, "B F"], bank: Float[Tensor, "Q F"] | None = None
    ) -> Pairs:
        step, self.step = self.step, self.step + 1
        rows = len(ha) if step % self.every == 0 else 0
        anchor = torch.arange(rows, device=ha.device).repeat_interleave(self.walks)
        positive = another_of_group(anchor, self.groups, _beside(self, ha.device)) if rows else anchor
        return Pairs(anchor, positive, (positive != anchor).float())


class Matched(nn.Module):
    """A control that pulls as hard as the walk would: its weights are scaled to the mean of the walk's, call by call.

    Scaled weights may exceed 1, where few pairs have to carry the strength of many.

    Args:
        control: the pairing whose pairs are taken.
        walk: the pairing whose strength is.
    """

    def __init__(self, control: WalkPairing, walk: WalkPairing):
        super().__init__()
        self.control, self.walk = control, walk

    @torch.no_grad()
    def forward(
        self, ha: Float[Tensor, "B F"], hb: Float[Tensor, "B F"], bank: Float[Tensor, "Q F"] | None = None
    ) -> Pairs:
        pairs, wanted = self.control(ha, hb, bank), self.walk(ha, hb, bank).weight
        if not len(pairs.weight):
            return pairs
        return pairs._replace(weight=pairs.weight * (wanted.mean() / pairs.weight.mean().clamp(min=SMALLEST)))


class RandomDatasetPairing(DatasetPairing):
    """Replaces second views as often as walks do, by any other image."""

    @torch.no_grad()
    def partners(
        self, index: Int[Tensor, " B"], alpha: float, generator: torch.Generator | None = None
    ) -> Int[Tensor, " B"]:
        found = super().partners(index, alpha, generator)
        if self.graph is None:
            return found
        return torch.where(found == index, index, another(index, len(self.graph), generator))


class OwnDatasetPairing(DatasetPairing):
    """Replaces no view, so that this is the method without walks; it builds no graph."""

    def rebuild(self, features: Float[Tensor, "N F"]) -> None:
        """Nothing to build."""


class UnweightedDatasetPairing(DatasetPairing):
    """Walks on the whole set's graph without its weights."""

    def graph_of(self, nodes: Float[Tensor, "N F"]) -> Graph:
        return unweighted(super().graph_of(nodes))


class OracleDatasetPairing(DatasetPairing):
    """Replaces second views with probability alpha by another image of the group; it builds no graph.

    Args:
        known: group of every training image, (N,).
        **settings: what DatasetPairing takes; none matters.
    """

    def __init__(self, known: Int[Tensor, " N"], **settings):
        super().__init__(**settings)
        self.register_buffer("known", known, persistent=False)

    def rebuild(self, features: Float[Tensor, "N F"]) -> None:
        """Nothing to build."""

    @torch.no_grad()
    def partners(
        self, index: Int[Tensor, " B"], alpha: float, generator: torch.Generator | None = None
    ) -> Int[Tensor, " B"]:
        u = torch.rand(index.shape, generator=generator, device=index.device)
        return torch.where(u < alpha, another_of_group(index, self.known, generator), index)


BATCH = {"walk": WalkPairing, "random": RandomPairing, "own": OwnPairing, "nearest": WalkPairing}
BATCH |= {"unweighted": UnweightedPairing, "oracle": OraclePairing}
DATASET = {"walk": DatasetPairing, "random": RandomDatasetPairing, "own": OwnDatasetPairing, "nearest": DatasetPairing}
DATASET |= {"unweighted": UnweightedDatasetPairing, "oracle": OracleDatasetPairing}


def make_pairing(
    pairs: str, dataset: bool, groups: Int[Tensor, " N"] | None = None, matched: bool = False, **settings
) -> WalkPairing | DatasetPairing | Matched:
    """The pairing of a name.

    Args:
        pairs: one of PAIRS.
        dataset: over all training images, else in the batch.
        groups: of every training image; the oracle needs them, and the others ignore them.
        matched: give a control the mean weight of the walk's pairs.
        **settings: what WalkPairing or DatasetPairing takes.

    Raises:
        ValueError: for an unknown name, an oracle without groups, or weights to match where views are replaced.
    """
    if pairs not in PAIRS:
        raise ValueError(f"unknown pairs {pairs!r}: choose one of {', '.join(PAIRS)}")
    if pairs == "oracle" and groups is None:
        raise ValueError("pairs 'oracle' needs data whose superclasses are known: use cifar100 or shapes")
    if matched and dataset:
        raise ValueError("matched scales the weights of pairs, and scope dataset replaces views: use scope batch")
    walk = WalkPairing(**settings) if matched else None
    if pairs == "nearest":
        settings |= {name: value for name, value in NEAREST.items() if name in settings}
    kind = (DATASET if dataset else BATCH)[pairs]
    pairing = kind(groups, **settings) if pairs == "oracle" else kind(**settings)
    return Matched(pairing, walk) if matched else pairing


def _beside(pairing: WalkPairing, device) -> torch.Generator:
    """A generator of its own for the call just made, beside that of the walks."""
    return torch.Generator(device).manual_seed((1 << 40) + pairing.seed * 1_000_003 + pairing.step)
