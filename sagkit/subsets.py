"""Training sets made from CIFAR-100 by leaving classes or images out; labels and class names stay those of all 100.

    cifar100-80a   without four whole superclasses: every fifth of the twenty in the order of their names
    cifar100-80b   without one class of each superclass: the i-th superclass loses class i mod 5 of its own order
    cifar100-lt    a long tail: class c of C keeps floor(500 * 100^(-c / (C - 1))) images, from 500 down to 5

Sources: [R] the long tail is that of Cao et al. 2019 (after Cui et al. 2019): exponential, imbalance 100, classes in
the order of their names; [K] the two rules of 80 classes, which need no seed, and that images of the long tail are
drawn with seed 0. A test set is never thinned: it has all classes, and those never trained on are a split of their own.
"""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from sagkit.hierarchy import CIFAR100_SUPERCLASSES

WHOLE = "cifar100"
SUBSETS = ("cifar100-80a", "cifar100-80b", "cifar100-lt")
IMBALANCE = 100  # images of the first class over those of the last, Cao et al. 2019
EVERY = 5  # of superclasses in 80a, and classes in a superclass


def family(name: str) -> str:
    """The data set whose classes a training set has: "cifar100" for its subsets, else the name itself."""
    return WHOLE if name in SUBSETS else name


def left_out(name: str) -> Int64[Tensor, " classes"]:
    """Classes of all 100 that a training set has no image of, ascending; none for any other name than the 80s."""
    groups = [sorted(members.split()) for _, members in sorted(CIFAR100_SUPERCLASSES.items())]
    names = sorted(member for group in groups for member in group)
    if name == "cifar100-80a":
        gone = [member for group in groups[EVERY - 1 :: EVERY] for member in group]
    elif name == "cifar100-80b":
        gone = [group[i % EVERY] for i, group in enumerate(groups)]
    else:
        gone = []
    return torch.tensor(sorted(names.index(member) for member in gone), dtype=torch.int64)


def kept_rows(name: str, labels: Int64[Tensor, " N"]) -> Int64[Tensor, " n"]:
    """Rows of CIFAR-100's training set that a subset keeps, ascending.

    Args:
        name: one of SUBSETS.
        labels: of the training set, 0 to 99.
    """
    if name != "cifar100-lt":
        return torch.isin(labels, left_out(name), invert=True).nonzero()[:, 0]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    members = [order[labels[order] == c] for c in range(int(labels.max()) + 1)]
    last = len(members) - 1
    # A float power may fall a hair short of a whole number: 500 / 100 is 5 images and not 4.
    keep = [int(len(rows) * IMBALANCE ** (-c / last) + 1e-9) for c, rows in enumerate(members)]
    return torch.cat([rows[:n] for rows, n in zip(members, keep, strict=True)]).sort().values
