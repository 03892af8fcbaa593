"""How often the two images of a pair share their class or superclass.

    purity = sum over pairs of v [label of anchor = label of positive] / sum over pairs of v
    plain: v = 1 for a walk that ended elsewhere, else 0;   weighted: v = w, the confidence, as the loss weighs it
    chance = mean over anchors of the share of the *other* nodes that carry the anchor's label

Source: [K] all of it. A walk that ended at home is no pair and counts in neither share.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sagkit.walk import Ends, Pairs


class Purity(NamedTuple):
    """Purity of a set of pairs; shares in [0, 1], NaN where no pair counts.

    same_class, same_superclass: plain; weighted_class, weighted_superclass: weighted by confidence.
    weight: mean confidence over all pairs, those at home counted as 0. left: share of walks that ended elsewhere.
    """

    same_class: float
    same_superclass: float
    weighted_class: float
    weighted_superclass: float
    weight: float
    left: float


def pair_purity(pairs: Pairs, labels: Int[Tensor, " N"], coarse: Int[Tensor, " N"]) -> Purity:
    """Purity of given pairs.

    Args:
        pairs: P pairs of nodes.
        labels: class of each node.
        coarse: superclass of each node.

    Raises:
        ValueError: for numbers of nodes that differ, or pairs of nodes beyond them.
    """
    if len(labels) != len(coarse):
        raise ValueError(f"one class and one superclass a node: got {len(labels)} and {len(coarse)}")
    if len(pairs.anchor) and max(int(pairs.anchor.max()), int(pairs.positive.max())) >= len(labels):
        raise ValueError(f"pairs of nodes beyond the {len(labels)} labels: give those of the graph that was walked")
    left = (pairs.anchor != pairs.positive).double()
    weight = pairs.weight.double() * left
    same = [(of[pairs.anchor] == of[pairs.positive]).double() for of in (labels, coarse)]
    plain, plain_coarse, weighted, weighted_coarse = (
        float((v * s).sum() / v.sum()) for v in (left, weight) for s in same
    )
    return Purity(plain, plain_coarse, weighted, weighted_coarse, float(weight.mean()), float(left.mean()))


def weight_per_anchor(pairs: Pairs | Ends, labels: Int[Tensor, " N"] | None = None) -> Float[Tensor, ""]:
    """Total weight of partners per anchor, as the walk term has it; with labels, of those that share the anchor's.

    Args:
        pairs: pairs of nodes, as many of each anchor; or all ends, whose null model is not taken off.
        labels: of each node.
    """
    if isinstance(pairs, Ends):
        weight, anchor, node = (
            pairs.weight,
            torch.arange(len(pairs.node), device=pairs.node.device)[:, None],
            pairs.node,
        )
    else:
        weight, anchor, node = pairs.weight, pairs.anchor, pairs.positive
    if labels is not None:
        weight = weight * (labels[anchor] == labels[node])
    return weight.sum() / max(1, len(weight))


def chance_level(labels: Int[Tensor, " N"], anchors: Int[Tensor, " A"] | None = None) -> float:
    """Probability that an anchor and another node, drawn evenly, share their label; anchors are all nodes by default.

    Raises:
        ValueError: for fewer than two nodes.
    """
    if len(labels) < 2:
        raise ValueError(f"chance needs another node to draw: got {len(labels)} labels")
    others = torch.bincount(labels)[labels if anchors is None else labels[anchors]] - 1
    return float(others.double().mean() / (len(labels) - 1))
