"""Anomaly scores: how unusual an item's features are among others', in four ways; larger is more unusual.

    distance    Euclidean distance to the k-th neighbour: the default, since it keeps the length of features
    knn         1 - cosine to the k-th neighbour
    mahalanobis sqrt((x - m)' C^-1 (x - m)),  m and C of the bank, C shrunk after Ledoit and Wolf
    walk        -log(N_bank pi_i),  pi = r t + (1 - r) P' pi,  P the symmetrised similarity graph, t uniform on the bank

Sources: [R] distance to the k-th neighbour, Mahalanobis distance (Ledoit and Wolf 2004), personalised PageRank (a walk
that restarts). [K] cosines are of features centred on the bank's mean, as in `graph`; edges of P weigh max(0, cosine);
an item that walks from the bank rarely visit is unusual.

An encoder is trained to overlook brightness, colour and noise, so that a picture that is odd in nothing else may lie in
the middle of its features. Of pictures, the default score therefore looks at features and appearance at once:

    d(x, y)^2 = (|h_x - h_y| / s_h)^2 + (|a_x - a_y| / s_a)^2,   s each one's median distance to the k-th neighbour
    a           means and log contrasts of the colours, log saturation, log roughness: each by its median and spread [K]
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sagkit import require
from sagkit.data.load import check_images
from sagkit.graph import similarity_graph
from sagkit.metrics.checks import feature_array, same_width
from sagkit.metrics.local import CHUNK, Index

K = 5  # neighbour whose distance counts; more than the copies that an anomaly is likely to have
LEAST = 0.02  # of [0, 1]: contrast below which differences mean nothing

ROUNDS = 10_000  # of conjugate gradients; a restart of 0.15 takes about 100


def distance_anomaly(bank, queries=None, k: int = K) -> Tensor:
    """Euclidean distance to the k-th nearest item of the bank, at least 0.

    Args:
        bank: features of normal items, or what `seen_at_once` makes of pictures.
        queries: features to score; None scores the bank's own items, each without itself.
        k: neighbour whose distance counts.

    Raises:
        ValueError: for k out of range.
    """
    bank, queries = _items(bank, queries)
    most = len(bank) - (queries is None)
    require("k", k, f"[1, {most}]", "it counts other items", whole=True)
    centre = bank.float().mean(dim=0)  # differences stay, and squares lose less of what is close
    bank = bank.float() - centre
    asked, found = bank if queries is None else queries.float() - centre, []
    for rows in torch.arange(len(asked)).split(CHUNK):
        distance = torch.cdist(asked[rows], bank)
        if queries is None:
            distance[torch.arange(len(rows)), rows] = float("inf")
        found.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(found)


def appearance(images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 10"]:
    """What is seen of a picture before what is on it: means and log contrasts of the three colours, log saturation, log
    roughness of both directions and relative to the contrast; each column less its median, over its spread."""
    parts = []
    for chunk in images.split(CHUNK):
        x = chunk.float() / 255
        mean, contrast = x.mean(dim=(2, 3)), x.std(dim=(2, 3))
        rough = torch.stack([x.diff(dim=axis).abs().mean(dim=(1, 2, 3)) for axis in (2, 3)], dim=1)
        saturation = (x - x.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2, 3)).sqrt()[:, None]
        relative = rough.mean(dim=1, keepdim=True) / (contrast.mean(dim=1, keepdim=True) + LEAST)
        logs = torch.cat([contrast, rough, saturation, relative], dim=1).add(LEAST).log()
        parts.append(torch.cat([mean, logs], dim=1))
    found = torch.cat(parts)
    centred = found - found.median(dim=0).values
    return centred / (1.4826 * centred.abs().median(dim=0).values).clamp(min=LEAST)


def seen_at_once(features: Float[Tensor, "N F"], images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N G"]:
    """Features and appearance of pictures side by side, each over its median distance to the k-th neighbour."""
    k = min(K, len(features) - 1)
    both = (features.float(), appearance(images))
    return torch.cat([x / distance_anomaly(x, k=k).median().clamp(min=1e-6) for x in both], dim=1)


def knn_anomaly(bank, queries=None, k: int = K) -> Tensor:
    """Centred cosine distance to the k-th nearest item of the bank, in [0, 2].

    Args:
        bank: features of normal items.
        queries: features to score; None scores the bank's own items, each without itself.
        k: neighbour whose distance counts.

    Raises:
        ValueError: for k out of range.
    """
    index = Index(bank)
    if queries is None:
        return 1 - index.similar(k)[0][:, -1]
    return 1 - index.search(queries, k)[0][:, -1]


def mahalanobis_anomaly(bank, queries=None) -> Tensor:
    """Mahalanobis distance from the bank's mean under its shrunk covariance, at least 0."""
    from sklearn.covariance import LedoitWolf

    bank, queries = _items(bank, queries)
    fitted = LedoitWolf().fit(bank.double().numpy())
    squared = fitted.mahalanobis((bank if queries is None else queries).double().numpy())
    return torch.from_numpy(squared).clamp(min=0).sqrt().float()


def walk_anomaly(
    bank,
    queries=None,
    k: int = 10,
    restart: float = 0.15,
) -> Tensor:
    """How rarely walks that restart at random items of the bank visit an item: -log(N pi), about 0 for an average one.

    Args:
        bank: features of normal items; walks restart there.
        queries: features to score, further nodes of the graph; None scores the bank itself.
        k: neighbours of each node; the graph holds an edge if one of its ends has it.
        restart: probability per step of going back to the bank, in (0, 1).

    Raises:
        ValueError: for restart outside (0, 1) or k out of range.
    """
    require("restart", restart, "(0, 1)", "it is a probability per step, 0.15 by default")
    bank, queries = _items(bank, queries)
    nodes = bank if queries is None else torch.cat([bank, queries])
    teleport = np.zeros(len(nodes))
    teleport[: len(bank)] = 1 / len(bank)
    visits = visit_probability(symmetric_weights(nodes, k), teleport, restart)
    scores = -np.log(np.maximum(len(bank) * visits, 1e-12))
    return torch.from_numpy(scores if queries is None else scores[len(bank) :]).float()


SCORES = {
    "distance": distance_anomaly,
    "neighbours": knn_anomaly,
    "Mahalanobis": mahalanobis_anomaly,
    "walks": walk_anomaly,
}
DEFAULT = next(iter(SCORES))  # chosen before any label is seen


def picture_scores(
    features: Float[Tensor, "N F"], images: UInt8[Tensor, "N 3 H W"], left_out: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Scores (N,) of pictures by name, but those left out; the default looks at features and appearance at once.

    Raises:
        ValueError: for images that are not uint8, as many as there are features, and as the scores.
    """
    check_images(images)
    if len(images) != len(features):
        raise ValueError(f"{len(features)} rows of features for {len(images)} images: give one each")
    given = dict.fromkeys(SCORES, features) | {DEFAULT: seen_at_once(features, images)}
    return {name: score(given[name]) for name, score in SCORES.items() if name not in left_out}


def _items(bank, queries) -> tuple[Tensor, Tensor | None]:
    """Features of both, in anything that holds them, as float32 (N, F) and (Q, F); NaN is refused with its row."""
    bank = torch.from_numpy(feature_array(bank, "bank", np.float32))
    if queries is None:
        return bank, None
    queries = torch.from_numpy(feature_array(queries, "queries", np.float32))
    same_width(bank=bank, queries=queries)
    return bank, queries


def symmetric_weights(features: Float[Tensor, "N F"], k: int):
    """Sparse (N, N) of max(0, centred cosine) between nodes of which one is among the other's k nearest."""
    from scipy.sparse import coo_array

    graph = similarity_graph(features, k)
    rows = np.repeat(np.arange(len(graph)), k)
    weight = graph.similarity.clamp(min=0).double().flatten().numpy()
    directed = coo_array((weight, (rows, graph.neighbors.flatten().numpy())), shape=(len(graph),) * 2).tocsr()
    return directed.maximum(directed.T)


def visit_probability(weights, teleport: np.ndarray, restart: float) -> np.ndarray:
    """Personalised PageRank (N,) of a symmetric non-negative weight matrix, solved to a relative error of 1e-12.

    With D the degrees, pi is proportional to D^(1/2) y, where (I - (1 - r) D^(-1/2) W D^(-1/2)) y = D^(-1/2) t: the
    matrix is positive definite with condition at most (2 - r) / r, so that conjugate gradients end soon.

    Args:
        weights: scipy sparse (N, N).
        teleport: where a restart leads, (N,), sums to 1; walks on a node without edges restart.
        restart: probability per step, in (0, 1).

    Raises:
        ValueError: for a restart outside (0, 1), or one so improbable that ROUNDS rounds of the solver do not suffice.
    """
    require("restart", restart, "(0, 1)", "it is a probability per step, 0.15 by default")
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import cg

    degree = np.asarray(weights.sum(axis=1)).ravel()
    root = np.sqrt(np.where(degree > 0, degree, 1))
    scale = diags_array(1 / root)
    system = diags_array(np.ones(len(root))) - (1 - restart) * (scale @ weights @ scale)
    solution, failed = cg(system, teleport / root, rtol=1e-12, maxiter=ROUNDS)
    if failed:
        raise ValueError(f"visits do not converge within {ROUNDS:,} rounds at restart = {restart}: give a larger one")
    visits = solution * root
    return visits / visits.sum()  # walks that end on a node without edges restart: a factor, the same for all


def auroc(scores: Tensor, anomalous: Tensor) -> float:
    """Probability that an anomalous item scores higher than a normal one, ties counting half.

    Raises:
        ValueError: where all items are anomalous, or none is.
    """
    from sklearn.metrics import roc_auc_score

    if not 0 < int(anomalous.sum()) < len(anomalous):
        raise ValueError(f"{int(anomalous.sum())} of {len(anomalous)} items are anomalous: AUROC needs both kinds")
    return float(roc_auc_score(anomalous.numpy(), scores.numpy()))
