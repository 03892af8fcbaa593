"""Features to a sparse similarity graph: who is whose neighbour, and how likely a walk is to go there.

    x_i <- (x_i - mean) / |x_i - mean|;   S = X X';   keep each row's K largest, no self loop
    cosine    P_ij ~ exp(S_ij / temperature)
    gaussian  P_ij ~ exp(-d_ij^2 / (sigma_i sigma_j)),  d^2 = 2 - 2 S,  sigma_i = distance to the K-th neighbour
    shared    P_ij ~ |N(i) n N(j)| / |N(i) u N(j)|,     N(i) = i and its K neighbours

Sources: [S] a similarity graph within the batch, cosine named, pairs from "shared neighbours and partial overlaps";
[R] the self-tuned gaussian is SpectralNet's; [K] everything else: centring, K, no self loop, that N(i) contains i, the
mutual filter.
An (N, N) matrix is never formed: similarities are computed `chunk` rows at a time and only K of them are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

KERNELS = ("cosine", "gaussian", "shared")


@dataclass(frozen=True)
class Graph:
    """A sparse directed graph of N nodes with K slots each; unused slots have weight 0.

    neighbors: where each slot leads. A node without edges is its own neighbour with weight 1.
    weights: row-stochastic transition probabilities.
    similarity: absolute cosine similarity behind each slot, in [-1, 1]; None where there is none.
    """

    neighbors: Int[Tensor, "N K"]
    weights: Float[Tensor, "N K"]
    similarity: Float[Tensor, "N K"] | None = None

    def __len__(self) -> int:
        return len(self.neighbors)

    def to(self, device) -> Graph:
        """The same graph on another device."""
        similarity = None if self.similarity is None else self.similarity.to(device)
        return Graph(self.neighbors.to(device), self.weights.to(device), similarity)

    def to_dense(self) -> Float[Tensor, "N N"]:
        """The transition matrix P; N^2 numbers, for small graphs and tests."""
        n = len(self)
        return self.weights.new_zeros(n, n).scatter_add_(1, self.neighbors, self.weights)

    def to_scipy(self):
        """P as a scipy CSR array."""
        from scipy.sparse import coo_array

        rows, slots = (self.weights > 0).nonzero(as_tuple=True)
        values = self.weights[rows, slots].cpu().numpy()
        columns = self.neighbors[rows, slots].cpu().numpy()
        return coo_array((values, (rows.cpu().numpy(), columns)), shape=(len(self), len(self))).tocsr()

    def to_networkx(self, **attributes):
        """P as a networkx DiGraph with edge attribute `weight`.

        Args:
            attributes: one sequence of length N each, set on the nodes under its name (labels=..., image=...).
        """
        import networkx as nx

        drawn = nx.from_scipy_sparse_array(self.to_scipy(), create_using=nx.DiGraph)
        for name, values in attributes.items():
            nx.set_node_attributes(drawn, dict(enumerate(values)), name)
        return drawn


@torch.no_grad()
def similarity_graph(
    x: Float[Tensor, "N F"],
    k: int,
    kernel: str = "cosine",
    temperature: float = 0.1,
    mutual: bool = False,
    chunk: int = 2048,
) -> Graph:
    """Build the K-nearest-neighbour graph of features by cosine similarity.

    Args:
        x: features, any float dtype (bfloat16 and float16 are computed in float32); centred and normalised here.
        k: neighbours kept per node, 1 to N - 1.
        kernel: "cosine", "gaussian" or "shared" (module docstring).
        temperature: of the cosine softmax; greater than 0, small is sharp. The other kernels have none.
        mutual: keep an edge only if each end is among the other's K.
        chunk: rows of similarities held at a time; memory is O(N K + chunk N).

    Raises:
        ValueError: for k out of range, non-finite features, an unknown kernel or a temperature that is not positive.
    """
    _check(x, k, kernel, temperature)
    # Under mixed precision an inner product in bfloat16 would tie neighbours that float32 tells apart.
    with torch.autocast(x.device.type, enabled=False):
        similarity, neighbors = nearest_neighbors(centre_and_normalize(x), k, chunk)
    logits = _KERNELS[kernel](neighbors, similarity, temperature)
    if mutual:
        logits = logits.masked_fill(~is_mutual(neighbors), float("-inf"))
    alone = torch.isinf(logits).all(dim=1)  # (N,): a node whose every edge was dropped
    own = torch.arange(len(x), device=x.device)
    neighbors = torch.where(alone[:, None], own[:, None], neighbors)
    logits[:, 0] = logits[:, 0].masked_fill(alone, 0.0)
    return Graph(neighbors, torch.softmax(logits, dim=1), similarity.masked_fill(alone[:, None], 1.0))


def centre_and_normalize(x: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
    """Rows minus their mean, scaled to unit length (a row at the mean stays 0)."""
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return F.normalize(x - x.mean(dim=0), dim=1)


def nearest_neighbors(
    unit: Float[Tensor, "N F"], k: int, chunk: int = 2048
) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]:
    """Exact K most similar other rows by inner product: (similarities, indices), most similar first."""
    values, indices = [], []
    for start in range(0, len(unit), chunk):
        block = unit[start : start + chunk] @ unit.T  # (chunk, N)
        rows = torch.arange(len(block), device=unit.device)
        block[rows, rows + start] = float("-inf")  # no self loop
        top = block.topk(k, dim=1)
        values.append(top.values)
        indices.append(top.indices)
    return torch.cat(values).clamp_(-1, 1), torch.cat(indices)


def is_mutual(neighbors: Int[Tensor, "N K"]) -> Tensor:
    """Bool (N, K): whether node i is also among the neighbours of its neighbour j."""
    own = torch.arange(len(neighbors), device=neighbors.device)[:, None, None]
    return (neighbors[neighbors] == own).any(dim=2)


def _cosine_logits(neighbors, similarity, temperature):
    return similarity / temperature


def _gaussian_logits(neighbors, similarity, temperature):
    distance = (2 - 2 * similarity).clamp(min=0)  # squared, between unit vectors
    # The floor keeps exact duplicates finite: at distance 0 they get logit 0, the largest there is.
    sigma = distance[:, -1].sqrt().clamp(min=1e-6)  # (N,)
    return -distance / (sigma[:, None] * sigma[neighbors])


def _shared_logits(neighbors, similarity, temperature):
    own = torch.arange(len(neighbors), device=neighbors.device)[:, None]
    sets = torch.cat([own, neighbors], dim=1)  # (N, K + 1), each node counted in its own set
    overlap = torch.empty_like(similarity)
    for slot in range(neighbors.shape[1]):  # (N, K+1, K+1) per slot rather than (N, K, K+1, K+1) at once
        other = sets[neighbors[:, slot]]
        overlap[:, slot] = (sets[:, :, None] == other[:, None, :]).sum(dim=(1, 2))
    return (overlap / (2 * sets.shape[1] - overlap)).log()


_KERNELS = {"cosine": _cosine_logits, "gaussian": _gaussian_logits, "shared": _shared_logits}


def _check(x: Tensor, k: int, kernel: str, temperature: float) -> None:
    if x.ndim != 2:
        raise ValueError(f"features must be (N, F), got shape {tuple(x.shape)}: flatten or pool them first")
    if not 1 <= k < len(x):
        raise ValueError(f"k = {k} neighbours need 1 <= k < nodes = {len(x)}: lower k or use a larger batch")
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}: choose one of {', '.join(KERNELS)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, got {temperature}: 0.1 is the default")
    finite = torch.isfinite(x).all(dim=1)
    if not finite.all():
        bad = (~finite).nonzero().flatten()
        raise ValueError(
            f"{len(bad)} of {len(x)} feature rows are not finite (first: row {bad[0].item()}): "
            "lower the learning rate or drop those images"
        )
