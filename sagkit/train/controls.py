"""Controls without which no claim about walks stands: the same training with the walk's partner replaced.

    random      the walk's pairs with their weights, each positive replaced by any other image
    own         likewise, by the anchor itself, whose two views are so pulled harder: no partner at all
    nearest     one step to the nearest neighbour: no walk (with `mutual`: where both are each other's nearest)
    unweighted  walks that take every kept edge alike, and pairs that all weigh 1
    oracle      any other image of the anchor's superclass, weight 1: an upper bound that reads labels

Source: [K], figures/METHOD.md section 3. `random` and `own` keep the number of the walk's pairs and their weights
(`OtherPartner`), `oracle` the number alone. The others have a total weight of their own unless they are `Matched`: then
their weights have the mean of the walk's, and who is paired is all that differs. VICReg with sim = 25 (1 + alpha) from
the first step on needs no code: `--method vicreg --sim 32.5`.

Every control is a `Pairing`, for the batch (and the queue, where partners of `random` and `oracle` are of the batch)
and for the whole training set.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sagkit.graph import Graph
from sagkit.pairing import DatasetPairing, Pairing, WalkPairing, untimed
from sagkit.train.config import PAIRS
from sagkit.walk import Pairs, no_pairs

SMALLEST = 1e-6  # mean weight of pairs below which there is nothing to scale
NEAREST = {"k": 1, "length": 1, "walks": 1, "restart": 0.0}  # what `nearest` fixes of a pairing


def make_pairing(
    pairs: str, dataset: bool, groups: Int[Tensor, " N"] | None = None, matched: bool = False, **settings
) -> Pairing:
    """The pairing of a name.

    Args:
        pairs: one of PAIRS.
        dataset: over all training images, else in the batch.
        groups: of every training image; the oracle needs them, and the others ignore them.
        matched: scale a control's weights to the mean of the walk's pairs.
        **settings: what WalkPairing or DatasetPairing takes.

    Raises:
        ValueError: for an unknown name, an oracle without groups, or weights to match where views are replaced.
    """
    if pairs not in PAIRS:
        raise ValueError(f"unknown pairs {pairs!r}: choose one of {', '.join(PAIRS)}")
    if pairs == "oracle" and groups is None:
        raise ValueError("pairs 'oracle' needs data whose superclasses are known: use cifar100 or shapes")
    if matched:
        if dataset:
            raise ValueError("matched scales the weights of pairs, and scope dataset replaces views: use scope batch")
        return Matched(make_pairing(pairs, dataset, groups, **settings), WalkPairing(**settings))
    walk, unlike, oracle = (
        (DatasetPairing, UnweightedDatasetPairing, OracleDatasetPairing)
        if dataset
        else (WalkPairing, UnweightedPairing, OraclePairing)
    )
    if pairs == "random":
        return OtherPartner(walk(**settings), another)
    if pairs == "own":  # to replace a view by one of the same image is to replace none
        return Pairing() if dataset else OtherPartner(walk(**settings), itself)
    if pairs == "nearest":
        return walk(**settings | {name: value for name, value in NEAREST.items() if name in settings})
    if pairs == "unweighted":
        return unlike(**settings)
    return oracle(groups, **settings) if pairs == "oracle" else walk(**settings)


class OtherPartner(Pairing):
    """A walk's pairs with their weights, or the views it replaces, with partners that it did not choose.

    Args:
        walk: WalkPairing or DatasetPairing.
        choose: partner of each image (P,) among so many rows, by a generator: `another`, `itself`.
    """

    def __init__(self, walk: Pairing, choose: Callable[..., Tensor]):
        super().__init__()
        self.walk, self.choose = walk, choose

    def begin_epoch(self, epoch: int, features: Callable[[], Tensor]) -> None:
        self.walk.begin_epoch(epoch, features)

    @torch.no_grad()
    def partners(
        self, index: Int[Tensor, " B"], alpha: float, generator: torch.Generator | None = None
    ) -> Int[Tensor, " B"]:
        found = self.walk.partners(index, alpha, generator)
        if found is index:  # a pairing that replaces no view, or has no graph yet
            return index
        return torch.where(found == index, index, self.choose(index, len(self.walk.graph), generator))

    @torch.no_grad()
    def forward(
        self,
        ha: Float[Tensor, "B F"],
        hb: Float[Tensor, "B F"],
        index: Int[Tensor, " B"] | None = None,
        bank: Float[Tensor, "Q F"] | None = None,
        watch: Callable = untimed,
    ) -> Pairs | None:
        pairs = self.walk(ha, hb, index, bank, watch)
        if pairs is None:
            return None
        return pairs._replace(positive=self.choose(pairs.anchor, len(ha), _beside(self.walk, ha.device)))


def another(index: Int[Tensor, " P"], n: int, generator: torch.Generator | None = None) -> Int[Tensor, " P"]:
    """For each row of n, any other row with equal probability.

    Raises:
        ValueError: for fewer than 2 rows.
    """
    if n < 2:
        raise ValueError(f"another image needs at least 2, got {n}")
    step = torch.randint(1, n, index.shape, generator=generator, device=index.device)
    return (index + step) % n


def itself(index: Int[Tensor, " P"], n: int, generator: torch.Generator | None = None) -> Int[Tensor, " P"]:
    """Each row."""
    return index


class Matched(Pairing):
    """A control matched to the walk in total pair weight: its weights are scaled to the mean of the walk's, each call.

    Scaled weights may exceed 1, where few pairs have to carry the weight of many.

    Args:
        control: the pairing whose pairs are taken.
        walk: the pairing whose mean weight is.
    """

    def __init__(self, control: Pairing, walk: Pairing):
        super().__init__()
        self.control, self.walk = control, walk

    @torch.no_grad()
    def forward(
        self,
        ha: Float[Tensor, "B F"],
        hb: Float[Tensor, "B F"],
        index: Int[Tensor, " B"] | None = None,
        bank: Float[Tensor, "Q F"] | None = None,
        watch: Callable = untimed,
    ) -> Pairs:
        pairs, wanted = (pairing(ha, hb, index, bank, watch) for pairing in (self.control, self.walk))
        if not len(pairs.weight):
            return pairs
        factor = wanted.weight.mean() / pairs.weight.mean().clamp(min=SMALLEST)
        return pairs._replace(weight=pairs.weight * factor)


def unweighted(graph: Graph) -> Graph:
    """The same edges, all of a row equally likely, and no similarities: every path that leaves home weighs 1."""
    edges = (graph.weights > 0).to(graph.weights.dtype)
    return Graph(graph.neighbors, edges / edges.sum(dim=1, keepdim=True), None, graph.recall)


class UnweightedPairing(WalkPairing):
    """Walks on the batch's graph without its weights."""

    def graph_of(self, nodes: Float[Tensor, "N F"]) -> Graph:
        return unweighted(super().graph_of(nodes))


class UnweightedDatasetPairing(DatasetPairing):
    """Walks on the whole set's graph without its weights."""

    def graph_of(self, nodes: Float[Tensor, "N F"]) -> Graph:
        return unweighted(super().graph_of(nodes))


class OraclePairing(WalkPairing):
    """Pairs of weight 1 within groups.

    Args:
        known: group of every training image, (N,).
        **settings: what WalkPairing takes; only `walks`, `every` and `seed` matter.
    """

    def __init__(self, known: Int[Tensor, " N"], **settings):
        super().__init__(**settings)
        self.register_buffer("known", known, persistent=False)

    @torch.no_grad()
    def forward(
        self,
        ha: Float[Tensor, "B F"],
        hb: Float[Tensor, "B F"],
        index: Int[Tensor, " B"] | None = None,
        bank: Float[Tensor, "Q F"] | None = None,
        watch: Callable = untimed,
    ) -> Pairs:
        if index is None:
            raise ValueError("an oracle has to know which images it pairs: call pairing(ha, hb, index)")
        step, self.step = self.step, self.step + 1
        if step % self.every:
            return no_pairs(ha.device)
        anchor = torch.arange(len(ha), device=ha.device).repeat_interleave(self.walks)
        positive = another_of_group(anchor, self.known[index], _beside(self, ha.device))
        return Pairs(anchor, positive, (positive != anchor).float())


class OracleDatasetPairing(DatasetPairing):
    """Replaces second views with probability alpha by another image of the group; it builds no graph.

    Args:
        known: group of every training image, (N,).
        **settings: what DatasetPairing takes; none matters.
    """

    def __init__(self, known: Int[Tensor, " N"], **settings):
        super().__init__(**settings)
        self.register_buffer("known", known, persistent=False)

    def begin_epoch(self, epoch: int, features: Callable[[], Tensor]) -> None:
        """Nothing to build."""

    @torch.no_grad()
    def partners(
        self, index: Int[Tensor, " B"], alpha: float, generator: torch.Generator | None = None
    ) -> Int[Tensor, " B"]:
        u = torch.rand(index.shape, generator=generator, device=index.device)
        return torch.where(u < alpha, another_of_group(index, self.known, generator), index)


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


def _beside(pairing: Pairing, device) -> torch.Generator:
    """A generator of its own for the call just made, beside that of the walks."""
    return torch.Generator(device).manual_seed((1 << 40) + pairing.seed * 1_000_003 + pairing.step)
