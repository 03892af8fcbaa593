"""Weighted random walks on a graph, and the positive pairs they choose.

    Pr(next = neighbors[i, s] | at i) = weights[i, s];   Pr(end = j | start = i) = (P^L)_ij

Sources: [S] weighted random walks on the batch's similarity graph choose further positive pairs; [K] inverse-CDF
sampling from given uniforms, the pair's weight (product of max(0, similarity) along the path), and that a walk which
ends at home is a pair of weight 0.

`walk_from_uniforms` is pure tensor arithmetic, so it compiles, runs where its inputs live and never waits for the
host; `random_walk` draws the uniforms from a generator; `sample_pairs` turns walks into pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sagkit.graph import Graph


class Pairs(NamedTuple):
    """P further positive pairs: image `positive` is pulled towards image `anchor` with strength `weight` in [0, 1]."""

    anchor: Int[Tensor, " P"]
    positive: Int[Tensor, " P"]
    weight: Float[Tensor, " P"]


def no_pairs(device=None) -> Pairs:
    """The empty set of pairs; the walk term of it is 0."""
    index = torch.empty(0, dtype=torch.int64, device=device)
    return Pairs(index, index, torch.empty(0, device=device))


def walk_from_uniforms(
    graph: Graph, starts: Int[Tensor, " S"], u: Float[Tensor, "L S"], restart: float = 0.0
) -> Int[Tensor, "S L+1"]:
    """Walk S paths of L steps, one uniform number each step.

    Args:
        graph: any graph; rows need not be normalised.
        starts: first nodes.
        u: uniforms in [0, 1).
        restart: probability of jumping back to the start instead of taking a step, in [0, 1).

    A slot of weight 0 is never taken: its interval of the cumulative sum is empty.
    """
    # A parallel scan (CUDA) may round the sum differently on either side of a slot of weight 0: its interval is closed.
    cdf = graph.weights.cumsum(dim=1).masked_fill(graph.weights == 0, 0).cummax(dim=1).values
    cdf = cdf / cdf[:, -1:]  # the last entry becomes exactly 1, so that u < 1 always finds a slot
    below_one = 1 - torch.finfo(u.dtype).eps / 2
    node, path = starts, [starts]
    for step in range(u.shape[0]):
        draw = u[step]
        # Rescaled uniforms may round up to 1, which lies past the last slot: kept at the largest float below it.
        forward = ((draw - restart) / (1 - restart)).clamp(0, below_one) if restart else draw
        slot = (forward[:, None] >= cdf[node]).sum(dim=1)  # (S,)
        ahead = graph.neighbors[node, slot]
        node = torch.where(draw < restart, starts, ahead) if restart else ahead
        path.append(node)
    return torch.stack(path, dim=1)


def random_walk(
    graph: Graph,
    starts: Int[Tensor, " S"],
    length: int,
    restart: float = 0.0,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "S path"]:
    """Draw one weighted random walk from each start; the whole paths, so that they can be drawn.

    Args:
        graph: the graph to walk on.
        starts: first nodes, int64, on the graph's device.
        length: number of steps L, at least 1.
        restart: probability per step of jumping back to the start, in [0, 1).
        generator: source of randomness, on the graph's device.

    Raises:
        ValueError: for a length below 1 or a restart probability outside [0, 1).
    """
    if length < 1:
        raise ValueError(f"walk length must be at least 1 step, got {length}")
    if not 0 <= restart < 1:
        raise ValueError(f"restart must be a probability in [0, 1), got {restart}")
    device = graph.neighbors.device
    u = torch.rand(length, len(starts), generator=generator, device=device)
    return walk_from_uniforms(graph, starts, u, restart)


def path_weight(graph: Graph, paths: Int[Tensor, "S path"]) -> Float[Tensor, " S"]:
    """Confidence of a path, in [0, 1]: the product of max(0, similarity) along its edges; 0 if it ends at home [K].

    Meant for walks without restart, each hop of which is an edge. A graph without similarities gives weight 1.
    """
    away = (paths[:, -1] != paths[:, 0]).to(graph.weights.dtype)
    if graph.similarity is None:
        return away
    here, there = paths[:, :-1], paths[:, 1:]
    taken = graph.neighbors[here] == there[..., None]  # (S, L, K): the slot each hop went through
    hop = graph.similarity[here].clamp(min=0).masked_fill(~taken, 0).amax(dim=2)  # (S, L)
    return hop.prod(dim=1) * away


@torch.no_grad()
def sample_pairs(graph: Graph, length: int, walks: int = 1, generator: torch.Generator | None = None) -> Pairs:
    """Walk `walks` times from every node and pair it with where each walk ends: always N x walks pairs.

    Args:
        graph: the graph to walk on.
        length: number of steps L, at least 1.
        walks: walks per anchor, at least 1.
        generator: source of randomness, on the graph's device.

    Raises:
        ValueError: for a length or a number of walks below 1.
    """
    if walks < 1:
        raise ValueError(f"walks per anchor must be at least 1, got {walks}")
    anchor = torch.arange(len(graph), device=graph.neighbors.device).repeat_interleave(walks)
    paths = random_walk(graph, anchor, length, generator=generator)
    return Pairs(anchor, paths[:, -1], path_weight(graph, paths))
