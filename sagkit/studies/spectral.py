"""VICReg as spectral embedding: the graph behind it, its eigenmaps, and two toys that show what its edges decide.

    q(W, Y) = (1/n^2) sum_ij W_ij |y_i - y_j|^2 = (2/n^2) tr(Y' L Y),   L = diag(W 1) - W
    eigenmaps: least q subject to (1/n) Y'Y = I; the least value is (2/n) (sum of the d smallest eigenvalues of L)
    W = views of one image joined, n = 2 B rows Y = [Za; Zb]:   q = (D / 2B) s(Za, Zb), VICReg's invariance

Sources: [S] VICReg is SpectralNet's loss on a block-diagonal graph, variance and covariance its orthogonality made
soft; the claims about unseen clusters and dense subgraphs; [R] three spheres in training, a fourth at test time, from
the first author's SpectralNet fork; Laplacian eigenmaps, Belkin and Niyogi 2003; [K] sizes, noise, the small network,
and the two figures for where the fourth sphere lands.

Differs from the source: pairs are drawn along the edges, each step one a node with chance W_ij / sum_j W_ij: nodes of
low degree pull as strongly as others; the quadratic form above lets edges pull alike.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sagkit.loss import covariance, invariance, variance


def view_graph(images: int) -> Float[Tensor, "n n"]:
    """VICReg's graph: row i and row B + i are the two views of image i, and W = 1 exactly between them."""
    one, none = torch.eye(images), torch.zeros(images, images)
    return torch.cat([torch.cat([none, one]), torch.cat([one, none])], dim=1)


def laplacian(w: Float[Tensor, "n n"], normalized: bool = False) -> Float[Tensor, "n n"]:
    """diag(W 1) - W, or I - diag(W 1)^(-1/2) W diag(W 1)^(-1/2); a node without edges has a row of zeros in both.

    Raises:
        ValueError: for a matrix that is not symmetric or has negative entries.
    """
    if not torch.equal(w, w.T) or bool((w < 0).any()):
        raise ValueError("a Laplacian needs symmetric weights that are not negative: symmetrise with (W + W') / 2")
    degree = w.sum(dim=1)
    if not normalized:
        return torch.diag(degree) - w
    scale = degree.clamp(min=torch.finfo(w.dtype).tiny).rsqrt() * (degree > 0)
    return torch.diag((degree > 0).to(w.dtype)) - scale[:, None] * w * scale


def quadratic_form(w: Float[Tensor, "n n"], y: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """SpectralNet's loss (1/n^2) sum_ij W_ij |y_i - y_j|^2, without its constraint."""
    return 2 * (y * (laplacian(w) @ y)).sum() / len(y) ** 2


class Eigenmaps(NamedTuple):
    """Eigenvalues of a Laplacian, smallest first, and its eigenvectors scaled to mean square 1."""

    values: Float[Tensor, " D"]
    y: Float[Tensor, "n D"]


def eigenmaps(w: Float[Tensor, "n n"], dims: int, normalized: bool = False) -> Eigenmaps:
    """The spectral embedding of a graph, the constant direction left out, as VICReg's centred statistics leave it out.

    Args:
        w: symmetric weights.
        dims: D, 1 to n - 1.
        normalized: eigenvectors of the normalised Laplacian, divided by the root of the degree; sturdier where some
            nodes have few edges. Their mean square under the degrees is 1 instead of the plain one.

    Raises:
        ValueError: for dims out of range or a matrix that is not a graph's.
    """
    n = len(w)
    if not 1 <= dims < n:
        raise ValueError(f"a graph of {n} nodes has {n - 1} directions beside the constant, got dims = {dims}")
    degree = w.double().sum(dim=1)
    ground = degree.clamp(min=1e-12).sqrt() if normalized else torch.ones(n, dtype=torch.float64)
    ground = ground / ground.norm()
    # The constant direction is lifted above every other eigenvalue, so that it comes last whatever the null space is.
    lifted = laplacian(w.double(), normalized) + (2 * float(degree.max()) + 2) * torch.outer(ground, ground)
    values, vectors = torch.linalg.eigh(lifted)
    y = vectors[:, :dims] * n**0.5
    if normalized:
        y = y / (degree.clamp(min=1e-12) * n / degree.sum()).sqrt()[:, None]
        y[degree == 0] = 0
    return Eigenmaps(values[:dims], y)


def planted_partition(blocks: int, size: int, p_in: float, p_out: float, seed: int = 0) -> Float[Tensor, "n n"]:
    """A random graph with planted blocks: an edge with probability p_in inside a block, p_out between two.

    Nodes of block b are rows b size to (b + 1) size; symmetric, without self loops.

    Raises:
        ValueError: for probabilities outside [0, 1] or fewer than one block or node.
    """
    if not (0 <= p_in <= 1 and 0 <= p_out <= 1):
        raise ValueError(f"edge probabilities must lie in [0, 1], got p_in = {p_in}, p_out = {p_out}")
    if blocks < 1 or size < 1:
        raise ValueError(f"a partition needs at least one block of one node, got {blocks} blocks of {size}")
    block = torch.arange(blocks).repeat_interleave(size)
    chance = torch.where(block[:, None] == block[None, :], p_in, p_out)
    drawn = torch.rand(len(block), len(block), generator=torch.Generator().manual_seed(seed)) < chance
    upper = drawn.triu(diagonal=1).float()
    return upper + upper.T


CENTRES = ((-2.0, 0.0, 0.0), (2.0, 0.0, 0.0), (0.0, 3.4, 0.0), (0.0, 1.1, 3.0))  # a tetrahedron, about 4 apart


def spheres(n: int, noise: float = 0.05, seed: int = 0) -> tuple[Float[Tensor, "P 3"], Int[Tensor, " P"]]:
    """P = 4 n points, n on each of four spheres of radius 1 about `CENTRES`, and the sphere of each, in order."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(4 * n, 3, generator=generator), dim=1)
    label = torch.arange(4).repeat_interleave(n)
    return (
        torch.tensor(CENTRES)[label] + direction + noise * torch.randn(4 * n, 3, generator=generator),
        label,
    )


class Networks:
    """S small networks of one shape, trained and applied together: two hidden layers with ReLU.

    As one stack of matrices, ten runs cost little more than one: at this size the time goes into calls, not sums.
    """

    def __init__(self, runs: int, inputs: int, outputs: int, hidden: int = 32, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        widths = [inputs, hidden, hidden, outputs]
        self.layers = [
            (
                (torch.randn(runs, a, b, generator=generator) * (2 / a) ** 0.5).requires_grad_(),
                torch.zeros(runs, 1, b).requires_grad_(),
            )
            for a, b in pairwise(widths)
        ]

    def __call__(self, x: Float[Tensor, "S n F"]) -> Float[Tensor, "S n D"]:
        for weight, bias in self.layers[:-1]:
            x = torch.baddbmm(bias, x, weight).relu()
        return torch.baddbmm(self.layers[-1][1], x, self.layers[-1][0])


def draw_partners(cdf: Float[Tensor, "S n n"], generator: torch.Generator | None = None) -> Int[Tensor, "S n"]:
    """For each node of S graphs one neighbour, with probability W_ij / sum_j W_ij; itself where it has no edge.

    Args:
        cdf: cumulative sums of W along its rows, made once for many draws.
        generator: source of randomness.
    """
    total = cdf[:, :, -1:]
    u = torch.rand(total.shape, generator=generator) * total
    partner = torch.searchsorted(cdf, u, right=True)[:, :, 0].clamp(max=cdf.shape[2] - 1)
    return torch.where(total[:, :, 0] > 0, partner, torch.arange(cdf.shape[1]))


def train_on_edges(
    x: Float[Tensor, "S n F"],
    w: Float[Tensor, "S n n"],
    dims: int,
    steps: int = 300,
    noise: float = 0.1,
    lr: float = 5e-3,
    seed: int = 0,
) -> Networks:
    """Train S networks, each on its own points and graph, by VICReg over pairs drawn along the edges.

        loss = 25 s(f(x_i + e), f(x_j + e')) + 25 (v + v') / 2 + c + c',   j drawn along the edges of i

    Args:
        x: points of each run.
        w: graph of each run; with W = I every point is its own partner, which is VICReg with noise as augmentation.
        dims: D, width of the embedding.
        steps: of Adam, all n points in each.
        noise: standard deviation of e and e', the two views' augmentation.
        lr: learning rate.
        seed: of weights, views and partners.
    """
    networks = Networks(len(x), x.shape[2], dims, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.Adam([p for layer in networks.layers for p in layer], lr=lr)
    rows, cdf = torch.arange(len(x))[:, None], w.cumsum(dim=2)

    def objective(a, b):
        return 25 * invariance(a, b) + 12.5 * (variance(a) + variance(b)) + covariance(a) + covariance(b)

    for _ in range(steps):
        partner = draw_partners(cdf, generator)
        views = [points + noise * torch.randn(x.shape, generator=generator) for points in (x, x[rows, partner])]
        loss = torch.vmap(objective)(networks(views[0]), networks(views[1])).sum()  # runs do not touch each other
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return networks


class Landing(NamedTuple):
    """Where a cluster that training never saw lands among the others.

    purity: share of its points' k nearest neighbours that are of it, in [0, 1].
    silhouette: mean silhouette of its points against the other clusters, in [-1, 1]; below 0: inside another.
    """

    purity: float
    silhouette: float


def landing(y, labels, unseen: int, k: int = 10) -> Landing:
    """Purity and silhouette of the points labelled `unseen` in an embedding y (n, D).

    Raises:
        ValueError: where that cluster has no more than k points, or there is no other.
    """
    from sklearn.metrics import silhouette_samples

    y, labels = np.asarray(y, dtype=np.float64), np.asarray(labels)
    own = labels == unseen
    if own.sum() <= k or own.all():
        raise ValueError(
            f"cluster {unseen} has {own.sum()} of {len(own)} points: more than k = {k}, and others, are needed"
        )
    distance = ((y[own][:, None] - y[None]) ** 2).sum(axis=2)
    distance[np.arange(own.sum()), np.flatnonzero(own)] = np.inf
    nearest = np.argpartition(distance, k - 1, axis=1)[:, :k]
    return Landing(float(own[nearest].mean()), float(silhouette_samples(y, labels)[own].mean()))
