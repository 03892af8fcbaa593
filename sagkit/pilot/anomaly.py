"""How strange an item is among others, by three scores of its features; larger is stranger.

    knn         1 - cosine to the k-th neighbour
    mahalanobis sqrt((x - m)' C^-1 (x - m)),  m and C of the bank, C shrunk after Ledoit and Wolf
    walk        -log(N_bank pi_i),  pi = r t + (1 - r) P' pi,  P the symmetrised similarity graph, t even on the bank

Sources: [R] distance to the k-th neighbour, Mahalanobis distance (Ledoit and Wolf 2004), personalised PageRank (a walk
that restarts). [K] cosines are of features centred on the bank's mean, as in `graph`; edges of P weigh max(0, cosine);
a place that walks from the bank seldom visit is strange.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sagkit.graph import similarity_graph
from sagkit.metrics.local import Index


def knn_anomaly(bank: Float[Tensor, "N F"], queries: Float[Tensor, "Q F"] | None = None, k: int = 5) -> Tensor:
    """Centred cosine distance to the k-th nearest item of the bank, in [0, 2].

    Args:
        bank: features of what is usual.
        queries: features to judge; the bank's own, each without itself, where there are none.
        k: neighbour whose distance counts; more than an anomaly is likely to have companions.

    Raises:
        ValueError: for k out of range.
    """
    index = Index(bank)
    if queries is None:
        if not 1 <= k < len(bank):
            raise ValueError(f"k = {k} neighbours need 1 <= k < items = {len(bank)}")
        return 1 - index.similar(k)[0][:, -1]
    return 1 - index.search(queries, k)[0][:, -1]


def mahalanobis_anomaly(bank: Float[Tensor, "N F"], queries: Float[Tensor, "Q F"] | None = None) -> Tensor:
    """Mahalanobis distance from the bank's mean under its shrunk covariance, at least 0."""
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(bank.double().numpy())
    squared = fitted.mahalanobis((bank if queries is None else queries).double().numpy())
    return torch.from_numpy(squared).clamp(min=0).sqrt().float()


def walk_anomaly(
    bank: Float[Tensor, "N F"],
    queries: Float[Tensor, "Q F"] | None = None,
    k: int = 10,
    restart: float = 0.15,
) -> Tensor:
    """How seldom walks that restart at random items of the bank visit an item: -log(N pi), about 0 for an average one.

    Args:
        bank: features of what is usual; walks restart there.
        queries: features to judge, further nodes of the graph; the bank itself where there are none.
        k: neighbours of each node; the graph holds an edge if one of its ends has it.
        restart: probability per step of going back to the bank, in (0, 1).

    Raises:
        ValueError: for restart outside (0, 1) or k out of range.
    """
    if not 0 < restart < 1:
        raise ValueError(f"restart must be a probability in (0, 1), got {restart}")
    nodes = bank if queries is None else torch.cat([bank, queries])
    teleport = np.zeros(len(nodes))
    teleport[: len(bank)] = 1 / len(bank)
    visits = visit_probability(symmetric_weights(nodes, k), teleport, restart)
    scores = -np.log(np.maximum(len(bank) * visits, 1e-12))
    return torch.from_numpy(scores if queries is None else scores[len(bank) :]).float()


SCORES = {"neighbours": knn_anomaly, "Mahalanobis": mahalanobis_anomaly, "walks": walk_anomaly}


def symmetric_weights(features: Float[Tensor, "N F"], k: int):
    """Sparse (N, N) of max(0, centred cosine) between nodes of which one is among the other's k nearest."""
    from scipy.sparse import coo_array

    graph = similarity_graph(features, k)
    rows = np.repeat(np.arange(len(graph)), k)
    weight = graph.similarity.clamp(min=0).double().flatten().numpy()
    directed = coo_array((weight, (rows, graph.neighbors.flatten().numpy())), shape=(len(graph),) * 2).tocsr()
    return directed.maximum(directed.T)


def visit_probability(weights, teleport: np.ndarray, restart: float, tolerance: float = 1e-10) -> np.ndarray:
    """Personalised PageRank (N,) of a symmetric non-negative weight matrix, by power iteration.

    Args:
        weights: scipy sparse (N, N).
        teleport: where a restart leads, (N,), sums to 1; walks on a node without edges restart.
        restart: probability per step, in (0, 1); the error shrinks by 1 - restart per iteration.
        tolerance: total change at which iteration stops.
    """
    degree = np.asarray(weights.sum(axis=1)).ravel()
    stuck = degree == 0
    scale = 1 / np.where(stuck, 1, degree)
    visits = teleport.astype(np.float64)
    while True:
        moved = weights.T @ (visits * scale) + visits[stuck].sum() * teleport
        after = restart * teleport + (1 - restart) * moved
        if np.abs(after - visits).sum() < tolerance:
            return after
        visits = after


def auroc(scores: Tensor, anomalous: Tensor) -> float:
    """Probability that an anomalous item scores higher than a usual one, ties counting half.

    Raises:
        ValueError: where one of the two kinds is absent.
    """
    from sklearn.metrics import roc_auc_score

    if not 0 < int(anomalous.sum()) < len(anomalous):
        raise ValueError(f"{int(anomalous.sum())} of {len(anomalous)} items are anomalous: AUROC needs both kinds")
    return float(roc_auc_score(anomalous.numpy(), scores.numpy()))
