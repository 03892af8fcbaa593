"""Weighted random walks on a graph, and the positive pairs they choose.

    Pr(next = neighbors[i, s] | at i) = weights[i, s];   Pr(end = j | start = i) = (P^L)_ij
    W_ij = E[weight of a walk from i, if it ends on j] = (C^L)_ij,  C_ij = P_ij max(0, similarity_ij),  W_ii = 0

Sources: [S] weighted random walks on the batch's similarity graph choose further positive pairs; [R] node2vec's
return and in-out parameters (Grover and Leskovec 2016); [K] inverse-CDF sampling from given uniforms, the pair's weight
(product of max(0, similarity) along the path), and that a walk which ends at home is a pair of weight 0.

`walk_from_uniforms` is pure tensor arithmetic, so it compiles, runs where its inputs live and never waits for the
host; `random_walk` draws the uniforms from a generator, `weighted_walk` multiplies similarities as it goes,
`sample_pairs` turns walks into pairs, and `expected_ends` has all of an anchor's walks at once. A step finds its slot
by bisection of the row's cumulative weights: log2 K rounds of gather, compare and add over all walks at once, with
positions instead of (row, slot) and 32-bit numbers while they fit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sagkit import require
from sagkit.graph import Graph, require_tensors

MOST_BIAS = 1e30  # of p and q: beyond, weights of float32 would be infinite, or 0 and their edges none
CPU_WALKS = 2**17  # walks at once on a CPU: their positions fit its caches, and two threads still share the work


class Pairs(NamedTuple):
    """P further positive pairs: image `positive` is pulled towards image `anchor` with strength `weight` in [0, 1]."""

    anchor: Int[Tensor, " P"]
    positive: Int[Tensor, " P"]
    weight: Float[Tensor, " P"]


class Ends(NamedTuple):
    """All partners of A anchors, the first A nodes in order: node[i, s] is pulled towards anchor i by weight[i, s].

    W_ij = sum over the slots s of i with node[i, s] = j of weight[i, s], less null[i]: a weight that every node, itself
    included, has taken off. With null[i] = w_i / N, w_i the total of row i, W is the walk against its null model, in
    which the anchor's weight is spread evenly [K].
    """

    node: Int[Tensor, "A S"]
    weight: Float[Tensor, "A S"]
    null: Float[Tensor, " A"]

    def to_dense(self, n: int) -> Float[Tensor, "A N"]:
        """W over n nodes."""
        filled = self.weight.new_zeros(len(self.weight), n).scatter_add_(1, self.node, self.weight)
        return filled - self.null[:, None]

    def scaled(self, total: float) -> Ends:
        """Weights with this total per anchor; the share of anchors without any goes to the others, evenly."""
        row = self.weight.sum(dim=1)
        some = row > 0
        each = total * len(row) / some.sum().clamp(min=1).to(row)
        factor = torch.where(some, each / row.masked_fill(~some, 1), 0)
        return self._replace(weight=self.weight * factor[:, None], null=self.null * factor)

    def against_null(self, share: float, n: int) -> Ends:
        """With `share` of each anchor's weight, spread evenly over n nodes, taken off."""
        return self._replace(null=share * self.weight.sum(dim=1) / n)


def ends_of(pairs: Pairs, anchors: int) -> Ends:
    """Pairs with as many of each anchor as of any other, anchor by anchor, as `Ends`: the same walk term."""
    node, weight = (part.view(anchors, -1) for part in (pairs.positive, pairs.weight))
    return Ends(node, weight / node.shape[1], weight.new_zeros(anchors))


def no_pairs(device=None) -> Pairs:
    """The empty set of pairs; the walk term of it is 0."""
    index = torch.empty(0, dtype=torch.int64, device=device)
    return Pairs(index, index, torch.empty(0, device=device))


class Walk(NamedTuple):
    """S walks of L steps as they went.

    paths: the nodes, first to last.
    weight: confidence of each walk in [0, 1]: the product of max(0, similarity) along the edges it took since it last
        jumped back to its start, and 0 where it ended there; 1 per edge on a graph without similarities [K].
    restarted: whether a step jumped back to the start instead of following an edge.
    """

    paths: Int[Tensor, "S L+1"]
    weight: Float[Tensor, " S"]
    restarted: Bool[Tensor, "S L"]


class Tables(NamedTuple):
    """What walks read of a graph; kept by a caller who walks one graph many times.

    cdf: cumulative weights of each row, slots filled up to a power of two with 2, flattened.
    ahead: the position in `cdf` where the row of each slot's neighbour begins.
    bits: log2 of the slots of a row.
    confidence: max(0, similarity) of each slot, flattened likewise; None on a graph without similarities.
    """

    cdf: Float[Tensor, " slots"]
    ahead: Int[Tensor, " slots"]
    bits: int
    confidence: Float[Tensor, " slots"] | None = None


def walk_tables(graph: Graph) -> Tables:
    """Tables of a graph; of order N K. A node whose weights are all 0 is its own neighbour: a walk stays there."""
    n, k = graph.weights.shape
    bits = (k - 1).bit_length()
    filling = (0, 2**bits - k)
    # A parallel scan (CUDA) may round the sum differently on either side of a slot of weight 0: its interval is closed.
    cdf = graph.weights.cumsum(dim=1).masked_fill(graph.weights == 0, 0).cummax(dim=1).values
    stuck = cdf[:, -1:] == 0  # (N, 1)
    cdf = torch.where(stuck, 1, cdf / cdf[:, -1:])  # the last slot ends at exactly 1, so that u < 1 finds one
    positions = torch.int32 if n << bits < 2**31 else torch.int64
    own = torch.arange(n, device=graph.neighbors.device)[:, None]
    ahead = F.pad(torch.where(stuck, own, graph.neighbors).to(positions) << bits, filling)
    confidence = graph.similarity
    if confidence is not None:
        confidence = F.pad(confidence.clamp(min=0).masked_fill(stuck, 1), filling).flatten()
    return Tables(F.pad(cdf, filling, value=2.0).flatten(), ahead.flatten(), bits, confidence)


def walk_from_uniforms(
    graph: Graph,
    starts: Int[Tensor, " S"],
    u: Float[Tensor, "L S"],
    restart: float = 0.0,
    lazy: float = 0.0,
    tables: Tables | None = None,
) -> Int[Tensor, "S L+1"]:
    """Walk S paths of L steps, one uniform number each step.

    Args:
        graph: any graph; rows need not be normalised.
        starts: first nodes.
        u: uniforms in [0, 1).
        restart: probability of jumping back to the start instead of taking a step; restart + lazy in [0, 1).
        lazy: probability of staying where one is.
        tables: `walk_tables(graph)`, if the caller keeps them.

    Raises:
        ValueError: for probabilities or shapes that do not fit, and on a CPU for starts or uniforms out of range.

    A slot of weight 0 is never taken: its interval of the cumulative sum is empty. In memory the returned tensor holds
    one step of all walks after the other.
    """
    _check_rates(restart, lazy)
    _check_starts(graph, starts)
    require_tensors(starts=starts, uniforms=u)
    if u.ndim != 2 or u.shape[1] != len(starts) or not u.is_floating_point() or not len(u):
        raise ValueError(f"{len(starts)} walks need uniforms (L, {len(starts)}), got {tuple(u.shape)} of {u.dtype}")
    if _readable(u) and not ((u >= 0) & (u < 1)).all():
        raise ValueError(f"uniforms must lie in [0, 1), got {u.min():g} to {u.max():g}: draw them with torch.rand")
    return _walk(walk_tables(graph) if tables is None else tables, starts, u, restart, lazy)


def _walk(tables: Tables, starts: Tensor, u: Tensor, restart: float, lazy: float) -> Int[Tensor, "S path"]:
    step = _stepper(tables, u.dtype, restart, lazy)
    home = here = starts.to(tables.ahead.dtype) << tables.bits
    path = [home]
    for draw in u:
        here, _ = step(home, here, draw)
        path.append(here)
    return (torch.stack(path) >> tables.bits).long().T


def _stepper(tables: Tables, dtype: torch.dtype, restart: float, lazy: float):
    """One step of all walks, in positions of `tables.cdf`: (home, here, draw) to (there, slot whose edge was drawn)."""
    cdf, ahead, bits, _ = tables
    rounds = [(1 << b, cdf[(1 << b) - 1 :]) for b in reversed(range(bits))]
    idle, below_one = restart + lazy, 1 - torch.finfo(dtype).eps / 2

    def step(home: Tensor, here: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        # Rescaled uniforms may round up to 1, which lies past the last slot: kept at the largest float below it.
        forward = ((draw - idle) / (1 - idle)).clamp(0, below_one) if idle else draw
        slot = here
        for half, middle in rounds:  # bisection: `slot` moves past every cumulative weight that is not above the draw
            slot = torch.add(slot, forward >= middle.index_select(0, slot), alpha=half)
        there = ahead.index_select(0, slot)
        if lazy:
            there = torch.where(draw < idle, here, there)
        if restart:
            there = torch.where(draw < restart, home, there)
        return there, slot

    return step


def _weigh(tables: Tables, starts: Tensor, u: Tensor, restart: float, lazy: float) -> Walk:
    """Walks on the given uniforms with their weights; the paths are those of `walk_from_uniforms`."""
    step = _stepper(tables, u.dtype, restart, lazy)
    home = here = starts.to(tables.ahead.dtype) << tables.bits
    path, product, restarted = [home], torch.ones_like(u[0]), u < restart
    for draw, jump in zip(u, restarted, strict=True):
        here, slot = step(home, here, draw)
        path.append(here)
        if tables.confidence is None:
            continue
        along = product * tables.confidence.index_select(0, slot)
        if lazy:
            along = torch.where(draw < restart + lazy, product, along)
        product = along.masked_fill(jump, 1) if restart else along
    return Walk((torch.stack(path) >> tables.bits).long().T, product * (here != home), restarted.T)


def random_walk(
    graph: Graph,
    starts: Int[Tensor, " S"],
    length: int,
    restart: float = 0.0,
    generator: torch.Generator | None = None,
    *,
    lazy: float = 0.0,
    p: float = 1.0,
    q: float = 1.0,
    tables: Tables | None = None,
) -> Int[Tensor, "S path"]:
    """Draw one weighted random walk from each start; the whole paths, so that they can be drawn.

    Args:
        graph: the graph to walk on.
        starts: first nodes, int64, on the graph's device.
        length: number of steps L, at least 1.
        restart: probability per step of jumping back to the start, in [0, 1).
        generator: source of randomness, on the graph's device.
        lazy: probability per step of staying; restart + lazy in [0, 1).
        p: node2vec's return parameter, greater than 0: an edge back to where the walk came from counts 1 / p.
        q: node2vec's in-out parameter, greater than 0: an edge to a node that the last one has no edge to counts 1 / q.
        tables: `walk_tables(graph)`, if the caller keeps them.

    Raises:
        ValueError: for a length below 1, probabilities outside [0, 1), p or q that are not positive and finite, p and q
            together with restart or lazy, a generator of another device than the graph's, or starts that are no nodes
            (their values are read on a CPU alone).
    """
    _check(graph, starts, length, restart, lazy, generator)
    for name, value in (("p", p), ("q", q)):
        require(name, value, "(0, inf)", "1 is the plain walk")
    if p == q == 1:
        tables = walk_tables(graph) if tables is None else tables

        def some(nodes: Tensor, u: Tensor) -> tuple[Tensor]:
            return (_walk(tables, nodes, u, restart, lazy),)

        return _in_parts(some, starts, length, generator)[0]
    if restart or lazy:
        raise ValueError(f"p and q need restart = lazy = 0, got restart = {restart}, lazy = {lazy}")
    u = torch.rand(length, len(starts), generator=generator, device=graph.neighbors.device)
    return _second_order_walk(graph, starts, u, p, q)


@torch.no_grad()
def weighted_walk(
    graph: Graph,
    starts: Int[Tensor, " S"],
    length: int,
    restart: float = 0.0,
    generator: torch.Generator | None = None,
    *,
    lazy: float = 0.0,
    tables: Tables | None = None,
) -> Walk:
    """The walks of `random_walk` with their weights and restarts, which a path alone does not tell: a walk may come
    home along an edge or by a jump. The arguments are those of `random_walk`.

    Raises:
        ValueError: as `random_walk`.
    """
    _check(graph, starts, length, restart, lazy, generator)
    tables = walk_tables(graph) if tables is None else tables
    return Walk(*_in_parts(lambda nodes, u: _weigh(tables, nodes, u, restart, lazy), starts, length, generator))


def _check(graph: Graph, starts: Tensor, length: int, restart: float, lazy: float, generator) -> None:
    require("length", length, "[1, inf)", "a walk takes a step at least", whole=True)
    _check_rates(restart, lazy)
    _check_starts(graph, starts)
    if generator is not None and not hasattr(generator, "device"):
        raise ValueError(f"generator must be a torch.Generator, got {generator!r}: None takes torch's own")
    if generator is not None and generator.device.type != graph.weights.device.type:
        raise ValueError(
            f"the generator is of {generator.device.type} and the graph of {graph.weights.device.type}: "
            f"make it by torch.Generator({graph.weights.device.type!r})"
        )


def _check_rates(restart: float, lazy: float) -> None:
    require("restart", restart, "[0, 1)", "it is a probability per step, and 0 walks on")
    require("lazy", lazy, "[0, 1)", "it is a probability per step, and 0 walks on")
    if lazy >= 1 - restart:
        raise ValueError(f"lazy must be a probability in [0, 1 - restart = {1 - restart:g}), got {lazy}: lower either")


def _check_starts(graph: Graph, starts: Tensor) -> None:
    require_tensors(starts=starts)
    if starts.ndim != 1 or starts.is_floating_point() or starts.dtype == torch.bool:
        raise ValueError(f"starts must be whole numbers (S,), got {tuple(starts.shape)} of {starts.dtype}: give nodes")
    if starts.device.type != graph.weights.device.type:
        raise ValueError(f"starts are on {starts.device} and the graph on {graph.weights.device}: move either")
    if _readable(starts) and len(starts) and not ((starts >= 0) & (starts < len(graph))).all():
        raise ValueError(
            f"starts {starts.min()}..{starts.max()} exceed the graph's {len(graph)} nodes: give nodes of it"
        )


def _readable(x: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device, or breaking a compiled graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _in_parts(walks, starts: Tensor, length: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """`walks(starts, uniforms)`, whose results have one row a walk; many walks on a CPU take turns, because all at once
    would spend their time on memory that was never touched before."""
    device = starts.device
    parts = starts.split(CPU_WALKS) if device.type == "cpu" else (starts,)
    done = [walks(some, torch.rand(length, len(some), generator=generator, device=device)) for some in parts]
    if len(done) == 1:
        return tuple(done[0])
    columns = zip(*done, strict=True)  # walk by walk in the last axis, as they lie in memory
    return tuple(torch.cat([part.movedim(0, -1) for part in parts], dim=-1).movedim(-1, 0) for parts in columns)


def _second_order_walk(graph, starts, u, p, q) -> Tensor:
    """node2vec's walk: each step's weights depend on the last node too, so rows are formed for every walk."""
    back, out = (min(max(1 / value, 1 / MOST_BIAS), MOST_BIAS) for value in (p, q))
    reach = graph.neighbors.masked_fill(graph.weights == 0, -1)  # (N, K): an edge of weight 0 is none
    before, here, path = None, starts, [starts]
    for draw in u:
        weights, ahead = graph.weights.index_select(0, here), graph.neighbors.index_select(0, here)  # (S, K)
        if before is not None:
            near = (ahead[:, :, None] == reach.index_select(0, before)[:, None, :]).any(dim=2)
            bias = torch.where(near, 1.0, out).masked_fill(ahead == before[:, None], back)
            weights = weights * bias
        cdf = weights.cumsum(dim=1)
        stuck = cdf[:, -1:] == 0
        slot = torch.searchsorted(torch.where(stuck, 1, cdf / cdf[:, -1:]), draw[:, None], right=True)
        before, here = here, torch.where(stuck, here[:, None], ahead.gather(1, slot))[:, 0]
        path.append(here)
    return torch.stack(path).T


def path_weight(
    graph: Graph, paths: Int[Tensor, "S path"], restarted: Bool[Tensor, "S hops"] | None = None
) -> Float[Tensor, " S"]:
    """Confidence of given paths, in [0, 1]; see `Walk.weight`, which a walk has of itself.

    A hop to where one is, is a lazy step, and a hop to the start along no edge of positive weight a restart. Whether a
    hop to the start along an edge was a restart, a path does not tell: `restarted` does, and without it none was.

    Raises:
        ValueError: for paths that are no nodes (S, L + 1), and a path with a hop that is none of these.
    """
    require_tensors(paths=paths)
    if paths.ndim != 2 or not paths.shape[1]:
        raise ValueError(f"paths must be (S, L + 1), got {tuple(paths.shape)}: of one walk, give paths[None]")
    if restarted is not None and restarted.shape != paths[:, 1:].shape:
        raise ValueError(f"restarted must be (S, L) = {tuple(paths[:, 1:].shape)}, got {tuple(restarted.shape)}")
    _check_starts(graph, paths.flatten())
    away = (paths[:, -1] != paths[:, 0]).to(graph.weights.dtype)
    product = torch.ones_like(away)
    for hop, (here, there) in enumerate(zip(paths.T[:-1], paths.T[1:], strict=True)):
        taken = graph.neighbors.index_select(0, here) == there[:, None]  # (S, K): the slot that the hop went through
        taken &= graph.weights.index_select(0, here) > 0
        along, home = taken.any(dim=1), there == paths[:, 0]
        jump = home & ~along if restarted is None else restarted[:, hop]
        if bool((wrong := ~(along | jump | (here == there))).any()):
            s = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"path {s} takes the hop {int(here[s])} -> {int(there[s])}, which is no edge of this graph: "
                "give the one it was walked on"
            )
        if graph.similarity is not None:
            similarity = graph.similarity.index_select(0, here).clamp(min=0).masked_fill(~taken, 0).amax(dim=1)
            product = (product * torch.where(along, similarity, 1.0)).masked_fill(jump, 1)
    return product * away


def most_confident(weight: Float[Tensor, " P"], fraction: float) -> Float[Tensor, " P"]:
    """Weights of which the largest `fraction` stays and the rest is 0 [K].

    Args:
        weight: of pairs, each at least 0.
        fraction: in (0, 1]; what is tied with the last kept weight stays, too.

    Raises:
        ValueError: for a fraction outside (0, 1].
    """
    require("fraction", fraction, "(0, 1]", "1 keeps every pair")
    if fraction == 1 or not len(weight):
        return weight
    return weight.where(weight >= threshold(weight, fraction), 0)


def threshold(weight: Float[Tensor, " P"], fraction: float) -> Tensor:
    """The least of the largest `fraction` of P weights, a scalar tensor; the largest alone where that is none."""
    return weight.topk(max(1, round(fraction * len(weight)))).values[-1]


@torch.no_grad()
def sample_pairs(
    graph: Graph,
    length: int,
    walks: int = 1,
    generator: torch.Generator | None = None,
    *,
    anchors: Int[Tensor, " A"] | None = None,
    restart: float = 0.0,
    lazy: float = 0.0,
    unique: bool = False,
) -> Pairs:
    """Walk `walks` times from every anchor and pair it with where each walk ends: always anchors x walks pairs.

    Args:
        graph: the graph to walk on.
        length: number of steps L, at least 1.
        walks: walks per anchor, at least 1.
        generator: source of randomness, on the graph's device.
        anchors: where walks start; every node by default.
        restart: probability per step of jumping back to the anchor, in [0, 1).
        lazy: probability per step of staying; restart + lazy in [0, 1).
        unique: give weight 0 to a pair that an earlier walk of the same anchor has found already.

    Raises:
        ValueError: for a number of walks below 1, and as `random_walk`.
    """
    require("walks", walks, "[1, inf)", "1 per anchor is the default", whole=True)
    every = torch.arange(len(graph), device=graph.neighbors.device) if anchors is None else anchors
    anchor = every.repeat_interleave(walks)
    paths, weight, _ = weighted_walk(graph, anchor, length, restart, generator, lazy=lazy)
    positive = paths[:, -1]
    if unique:
        ends = positive.view(-1, walks)
        again = (ends[:, :, None] == ends[:, None, :]).tril(diagonal=-1).any(dim=2)  # (A, W)
        weight = weight.masked_fill(again.flatten(), 0)
    return Pairs(anchor, positive, weight)


@torch.no_grad()
def expected_ends(
    graph: Graph, length: int, *, anchors: int | None = None, restart: float = 0.0, confident: float = 1.0
) -> Ends:
    """Where walks end, with what weight on average: the expectation over all walks of what `sample_pairs` draws [K].

    A walk since its last restart, at a step drawn from (1 - restart)^s restart, is a plain one of the steps left. While
    the paths of an anchor are fewer than the nodes they are listed one by one, each a slot; else each node is one.

    Args:
        graph: the graph to walk on.
        length: number of steps L, at least 1.
        anchors: walks start on so many first nodes; all by default.
        restart: probability per step of jumping back to the anchor, in [0, 1).
        confident: fraction of all walks, those of largest weight, that keep it; what is tied with the last stays, too.
            Where nodes are slots, walks to one node count with their mean weight.

    Raises:
        ValueError: for a length below 1, anchors the graph has not, a restart outside [0, 1) or a fraction outside
            (0, 1].
    """
    n = len(graph)
    anchors = n if anchors is None else anchors
    require("length", length, "[1, inf)", "a walk takes a step at least", whole=True)
    require("anchors", anchors, f"[1, {n}]", "they are the first nodes of the graph", whole=True)
    require("restart", restart, "[0, 1)", "it is a probability per step, and 0 walks on")
    require("confident", confident, "(0, 1]", "1 keeps every walk")
    own = torch.arange(anchors, device=graph.neighbors.device)[:, None]
    ahead, likely = graph.transitions()
    confidence = torch.ones_like(likely) if graph.similarity is None else graph.similarity.clamp(min=0)
    sure = likely * confidence.masked_fill(graph.weights.sum(dim=1, keepdim=True) == 0, 1)
    walks = Walks(own, torch.ones_like(likely[:anchors, :1]), torch.ones_like(likely[:anchors, :1]))
    ended = []
    for step in range(1, length + 1):
        walks = walks.one_step(ahead, likely, sure)
        odds = (1 - restart) ** step * (restart if step < length else 1.0)
        if odds:
            ended.append((walks.node, walks.chance * odds, walks.weight * odds))
    node, chance, weight = (torch.cat(parts, dim=1) for parts in zip(*ended, strict=True))
    weight = weight.masked_fill(node == own, 0)
    if confident < 1:
        weight = weight.where(_among_surest(weight, chance, confident), 0)
    return Ends(node, weight, weight.new_zeros(anchors))


class Walks(NamedTuple):
    """Walks under way: of each anchor's slot, where they are, how likely, and that times their confidence so far."""

    node: Int[Tensor, "A S"]
    chance: Float[Tensor, "A S"]
    weight: Float[Tensor, "A S"]

    def one_step(self, ahead: Int[Tensor, "N K"], likely: Float[Tensor, "N K"], sure: Float[Tensor, "N K"]) -> Walks:
        """Where they are a step later: a slot each way, while ways are fewer than nodes; else a slot a node."""
        node, chance, weight = self
        if node.shape[1] * ahead.shape[1] <= len(ahead):
            chance, weight = (
                (part[:, :, None] * by[node]).flatten(1) for part, by in ((chance, likely), (weight, sure))
            )
            return Walks(ahead[node].flatten(1), chance, weight)
        shape = len(node), len(ahead)
        chance, weight = (
            part.new_zeros(shape).scatter_add_(1, node, part)
            @ by.new_zeros(len(by), len(by)).scatter_add_(1, ahead, by)
            for part, by in ((chance, likely), (weight, sure))
        )
        return Walks(torch.arange(len(ahead), device=node.device).expand(shape), chance, weight)


def _among_surest(weight: Tensor, chance: Tensor, fraction: float) -> Tensor:
    """Whether a slot is among the slots of largest confidence, weight / chance, that make up the fraction of walks."""
    confidence = (weight / chance.masked_fill(chance == 0, 1)).flatten()
    order = confidence.argsort(descending=True)
    reached = chance.flatten()[order].cumsum(0)
    last = (reached < fraction * reached[-1]).sum().clamp(max=len(order) - 1)
    return (confidence >= confidence[order[last]]).view_as(weight)
