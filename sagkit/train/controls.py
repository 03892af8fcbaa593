"""Controls without which no claim about walks stands: the same training with the walk's partner replaced.

    random      the walk's pairs with their weights, each positive replaced by any other node
    hub         likewise, by another node drawn from where the walks end, whoever began: how popular a node is counts,
                and whom it is near does not
    own         likewise, by the anchor itself, whose two views are so pulled harder: no partner at all
    nearest     one step to the nearest neighbour: no walk (with `mutual`: where both are each other's nearest)
    unweighted  walks that take every kept edge alike, and pairs that all weigh 1
    oracle      any other image of the anchor's superclass, weight 1: an upper bound that reads labels

Source: [K], figures/METHOD.md section 3. `random`, `hub` and `own` keep the number of the walk's pairs and their
weights (`OtherPartner`), `oracle` the number alone. The others have a total weight of their own, unless every pairing
is scaled to one (`weight` of `WalkPairing`) or they are `Matched`: then their weights have the mean of the walk's, and
who is paired is all that differs. `expected` and `null` mean for a control what they mean for a walk: all partners with
their probabilities in place of drawn ones, and less an even share for everybody. VICReg with sim = 25 (1 + alpha) from
the first step on needs no code: `--method vicreg --sim 32.5`.

Every control is a `Pairing`, for the batch (and the queue, where partners of `oracle` are of the batch) and for the
whole training set.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sagkit.graph import Graph
from sagkit.pairing import DatasetPairing, Pairing, WalkPairing, untimed
from sagkit.train.config import PAIRS
from sagkit.walk import Ends, Pairs, expected_ends

SMALLEST = 1e-6  # mean weight of pairs below which there is nothing to scale
LEAST = 1e-12  # total weight of ends that a node has at least: where no walk ends elsewhere, hubs are anybody
NEAREST = {"k": 1, "length": 1, "walks": 1, "restart": 0.0}  # what `nearest` fixes of a pairing


def make_pairing(
    pairs: str, dataset: bool, groups: Int[Tensor, " N"] | None = None, matched: bool = False, **settings
) -> Pairing:
    """The pairing of a name.

    Args:
        pairs: one of PAIRS.
        dataset: over all training images, else in the batch.
        groups: of every training image; the oracle needs them, and the others ignore them.
        matched: scale a control's weights to the mean of the walk's pairs, drawn ones.
        **settings: what WalkPairing or DatasetPairing takes.

    Raises:
        ValueError: for an unknown name, an oracle without groups, or weights to match where views are replaced.
    """
    if pairs not in PAIRS:
        raise ValueError(f"unknown pairs {pairs!r}: choose one of {', '.join(PAIRS)}")
    if pairs == "oracle" and groups is None:
        raise ValueError("pairs 'oracle' needs data whose superclasses are known: name its classes like 'family/kind'")
    if matched:
        if dataset:
            raise ValueError("matched scales the weights of pairs, and scope dataset replaces views: use scope batch")
        return Matched(make_pairing(pairs, dataset, groups, **settings), WalkPairing(**settings))
    if dataset:
        return _of_dataset(pairs, groups, **settings)
    if pairs in LAWS:
        return OtherPartner(LAWS[pairs], **settings)
    if pairs == "nearest":
        return WalkPairing(**settings | NEAREST)
    if pairs == "unweighted":
        return UnweightedPairing(**settings)
    return OraclePairing(groups, **settings) if pairs == "oracle" else WalkPairing(**settings)


def _of_dataset(pairs: str, groups: Tensor | None, **settings) -> Pairing:
    if pairs == "own":  # to replace a view by one of the same image is to replace none
        return Pairing()
    if pairs in ("random", "hub"):
        return OtherDatasetPairing(another if pairs == "random" else end_of_anyone, **settings)
    if pairs == "nearest":
        return DatasetPairing(**settings | {name: value for name, value in NEAREST.items() if name != "walks"})
    if pairs == "unweighted":
        return UnweightedDatasetPairing(**settings)
    return OracleDatasetPairing(groups, **settings) if pairs == "oracle" else DatasetPairing(**settings)


def anybody(ends: Callable[[], Tensor], blank: Float[Tensor, "A N"]) -> Float[Tensor, "A N"]:
    """Every node but the anchor alike."""
    return torch.ones_like(blank).fill_diagonal_(0)


def as_walks_end(ends: Callable[[], Tensor], blank: Float[Tensor, "A N"]) -> Float[Tensor, "A N"]:
    """Every node but the anchor, as the walks of all anchors end there."""
    return ends().clamp(min=LEAST).repeat(len(blank), 1).fill_diagonal_(0)


def itself(ends: Callable[[], Tensor], blank: Float[Tensor, "A N"]) -> Float[Tensor, "A N"]:
    """The anchor."""
    return torch.ones_like(blank).tril().triu()


LAWS = {"random": anybody, "hub": as_walks_end, "own": itself}


class OtherPartner(WalkPairing):
    """A walk's pairs with their weights, and partners that it did not choose.

    Args:
        law: how likely each node is each anchor's partner (A, N), up to a factor by row; from a function that gives the
            total weight of the walks that end on each node (N,), which not every law asks for, and from zeros (A, N).
        **settings: what WalkPairing takes.
    """

    def __init__(self, law: Callable[[Callable[[], Tensor], Tensor], Tensor], **settings):
        super().__init__(**settings)
        self.law = law

    def walked(self, graph: Graph, anchors: int) -> Pairs | Ends:
        found, n = super().walked(graph, anchors), len(graph)

        def ends() -> Tensor:
            walks = {"anchors": anchors, "restart": self.restart, "confident": self.confident}
            every = found if isinstance(found, Ends) else expected_ends(graph, self.length, **walks)
            return every.to_dense(n).sum(dim=0)

        law = self.law(ends, torch.zeros(anchors, n, device=graph.neighbors.device))
        if isinstance(found, Ends):
            weight = found.weight.sum(dim=1, keepdim=True) * law / law.sum(dim=1, keepdim=True)
            return _all_nodes(weight)
        drawn = torch.multinomial(law, self.walks, replacement=True, generator=_beside(self, law.device))
        return found._replace(positive=drawn.flatten())


def _all_nodes(weight: Float[Tensor, "A N"]) -> Ends:
    """Ends of which each node is a slot."""
    node = torch.arange(weight.shape[1], device=weight.device)
    return Ends(node.expand_as(weight), weight, weight.new_zeros(len(weight)))


class OtherDatasetPairing(DatasetPairing):
    """Replaces as many views as walks would, by images that these did not choose.

    Args:
        choose: partner of each image at `index`, from the ends of the batch's walks, the number of images and a
            generator: `another`, `end_of_anyone`.
        **settings: what DatasetPairing takes.
    """

    def __init__(self, choose: Callable[..., Tensor], **settings):
        super().__init__(**settings)
        self.choose = choose

    @torch.no_grad()
    def partners(
        self, index: Int[Tensor, " B"], alpha: float, generator: torch.Generator | None = None
    ) -> Int[Tensor, " B"]:
        found = super().partners(index, alpha, generator)
        away = found != index
        if not away.any():
            return index
        return found.masked_scatter(away, self.choose(index[away], found[away], len(self.graph), generator))


def another(
    index: Int[Tensor, " P"], ends: Int[Tensor, " P"] | None, n: int, generator: torch.Generator | None = None
) -> Int[Tensor, " P"]:
    """For each row of n, any other row with equal probability.

    Raises:
        ValueError: for fewer than 2 rows.
    """
    if n < 2:
        raise ValueError(f"another image needs at least 2, got {n}")
    step = torch.randint(1, n, index.shape, generator=generator, device=index.device)
    return (index + step) % n


def end_of_anyone(
    index: Int[Tensor, " P"], ends: Int[Tensor, " P"], n: int, generator: torch.Generator | None = None
) -> Int[Tensor, " P"]:
    """For each row, the end of some row's walk: the same ends as often, in another order."""
    return ends[torch.randperm(len(ends), generator=generator, device=ends.device)]


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
        **settings: what WalkPairing takes; what is of graph and walks does not matter.
    """

    def __init__(self, known: Int[Tensor, " N"], **settings):
        super().__init__(**settings)
        self.register_buffer("known", known, persistent=False)

    def choose(
        self, ha: Tensor, hb: Tensor, index: Tensor | None, bank: Tensor | None, watch: Callable
    ) -> Pairs | Ends:
        if index is None:
            raise ValueError("an oracle has to know which images it pairs: call pairing(ha, hb, index)")
        group = self.known[index]
        if self.expected:
            same = (group[:, None] == group).float().fill_diagonal_(0)
            return _all_nodes(same / same.sum(dim=1, keepdim=True).clamp(min=1))
        anchor = torch.arange(len(ha), device=ha.device).repeat_interleave(self.walks)
        positive = another_of_group(anchor, group, _beside(self, ha.device))
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
