"""Features to a sparse similarity graph: who is whose neighbour, and how likely a walk is to go there.

    x_i <- (x_i - mean) / |x_i - mean|;   S = X X';   keep each row's K largest, no self loop
    cosine    P_ij ~ exp(S_ij / temperature)
    gaussian  P_ij ~ exp(-d_ij^2 / (sigma_i sigma_j)),  d^2 = 2 - 2 S,  sigma_i = distance to the K-th neighbour
    shared    P_ij ~ |N(i) n N(j)| / |N(i) u N(j)|,     N(i) = i and its K neighbours

Sources: [S] a similarity graph within the batch, cosine named, pairs from "shared neighbours and partial overlaps";
[R] the self-tuned gaussian is SpectralNet's; [K] everything else: centring, K, no self loop, that N(i) contains i, the
mutual filter.
An (N, N) matrix is never formed: similarities are computed `chunk` rows at a time and only K of them are kept. The K
largest of a row are among the K blocks of columns with the largest maxima, so one pass for the maxima and a search in K
blocks replace a selection over all N columns: exact, and several times faster (`top_k_of_wide_rows`).

Ties: of equally similar nodes the one with the smaller number comes first and is kept, so duplicates of an image are
each other's first neighbours, in the order of their numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sagkit import require

Search = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]  # (N, F), K, chunk: similarities and neighbours, (N, K)
KERNELS = ("cosine", "gaussian", "shared")
BLOCK = 64  # columns per maximum: 64 floats are one pass of a vector unit over four cache lines
SMALLEST = 1e-30  # weight into a node: what is there before a division, where every edge's weight was rounded to 0
USUAL = 1e-6  # features whose largest lies between this and its inverse are taken as they are
LEAST_TEMPERATURE = 1e-30  # smaller ones are taken for it: a similarity over them is infinite in float32
SAMPLE, RECALL = 1000, 0.95  # rows on which an approximate search is judged, and what it has to find of theirs
ROWS_OF_A_CELL = 39  # on average, at least: what faiss asks for to place a cell
CHUNK = 512  # rows of similarities held at a time: 100 MB for 50,000 nodes; 1,024 rows took 2.5 times as long


@dataclass(frozen=True)
class Graph:
    """A sparse directed graph of N nodes with K slots each; unused slots have weight 0.

    neighbors: where each slot leads, 0 to N - 1. A node without edges is its own neighbour with weight 1. Two slots of
        a row that lead to one node count together.
    weights: transition probabilities, at least 0, of finite sum; a row of another sum than 1 is read as its shares, and
        a row of zeros as a node that walks do not leave.
    similarity: absolute cosine similarity behind each slot, in [-1, 1]; None where there is none.
    recall: share of the true K nearest that an approximate search found, on a sample; None for an exact search.

    Raises:
        ValueError: for shapes or types that do not fit, and on a CPU for values out of range; reading them on another
            device would make every step wait for it.
    """

    neighbors: Int[Tensor, "N K"]
    weights: Float[Tensor, "N K"]
    similarity: Float[Tensor, "N K"] | None = None
    recall: float | None = None

    def __post_init__(self):
        neighbors, weights, similarity = self.neighbors, self.weights, self.similarity
        parts = {"neighbors": neighbors, "weights": weights, "similarity": similarity}
        require_tensors(**{name: part for name, part in parts.items() if part is not None})
        shapes = {tuple(x.shape) for x in (neighbors, weights, similarity) if x is not None}
        if len(shapes) > 1 or neighbors.ndim != 2 or not neighbors.numel():
            told = ", ".join(str(tuple(x.shape)) for x in (neighbors, weights, similarity) if x is not None)
            raise ValueError(
                f"a graph needs neighbors and weights, and similarity if any, of one shape (N, K): got {told}"
            )
        if neighbors.is_floating_point() or neighbors.dtype == torch.bool or not weights.is_floating_point():
            raise ValueError(f"neighbors are whole and weights floats: got {neighbors.dtype} and {weights.dtype}")
        if weights.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_values()

    def _check_values(self) -> None:
        low, high = self.neighbors.aminmax()
        if low < 0 or high >= len(self):
            raise ValueError(
                f"neighbors {int(low)}..{int(high)} exceed the graph's {len(self)} nodes, 0..{len(self) - 1}"
            )
        bad = ~((self.weights >= 0).all(dim=1) & self.weights.sum(dim=1).isfinite())
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(f"weights must be at least 0 and finite: row {row} is {self.weights[row].tolist()}")
        if self.similarity is not None and not (self.similarity.abs() <= 1 + 1e-3).all():
            row = int((~(self.similarity.abs() <= 1 + 1e-3)).any(dim=1).nonzero()[0])
            raise ValueError(f"similarity is a cosine in [-1, 1]: row {row} is {self.similarity[row].tolist()}")

    def __len__(self) -> int:
        return len(self.neighbors)

    def to(self, device) -> Graph:
        """The same graph on another device."""
        similarity = None if self.similarity is None else self.similarity.to(device)
        return Graph(self.neighbors.to(device), self.weights.to(device), similarity, self.recall)

    def to_dense(self) -> Float[Tensor, "N N"]:
        """The transition matrix P; N^2 numbers, for small graphs and tests."""
        n, (neighbors, shares) = len(self), self.transitions()
        return shares.new_zeros(n, n).scatter_add_(1, neighbors, shares)

    def transitions(self) -> tuple[Tensor, Tensor]:
        """Where each slot leads and with which probability, as walks go: rows sum to 1, and a row of zeros stays."""
        total = self.weights.sum(dim=1, keepdim=True)
        stays = total == 0
        own = torch.arange(len(self), device=total.device)[:, None]
        shares = torch.where(stays, 1 / self.weights.shape[1], self.weights / torch.where(stays, 1, total))
        return torch.where(stays, own, self.neighbors), shares

    def to_scipy(self):
        """P as a scipy CSR array."""
        from scipy.sparse import coo_array

        neighbors, shares = self.transitions()
        shares = shares.detach().to(torch.promote_types(shares.dtype, torch.float32))  # scipy has no half precision
        rows, slots = (shares > 0).nonzero(as_tuple=True)
        values, columns = shares[rows, slots].cpu().numpy(), neighbors[rows, slots].cpu().numpy()
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
    chunk: int = CHUNK,
    approximate_above: int | None = None,
    sinkhorn: int = 0,
    search: Search | None = None,
) -> Graph:
    """Build the K-nearest-neighbour graph of features by cosine similarity.

    Args:
        x: features, any float dtype (bfloat16 and float16 are computed in float32); centred and normalised here.
        k: neighbours kept per node, 1 to N - 1.
        kernel: "cosine", "gaussian" or "shared" (module docstring).
        temperature: of the cosine softmax; greater than 0 and finite, small is sharp. The other kernels have none.
        mutual: keep an edge only if each end is among the other's K.
        chunk: rows of similarities held at a time; memory is O(N K + chunk N).
        approximate_above: with more nodes than this, faiss searches on the CPU (an optional package) and
            `Graph.recall` says how well; None: always exact.
        sinkhorn: times that weights are scaled to sum to 1 into each node, and then again out of it, at least 0; 3 in
            ReSA [R]. Walks then end on no node more than on another: no hubs, as far as the kept edges allow.
        search: of an exact graph, in place of `nearest_neighbors` and with its first three arguments; None: that.

    Raises:
        ValueError: for k out of range, non-finite features, an unknown kernel, a temperature that is not positive, or
            an approximate search without faiss.
    """
    check_graph(x, k, kernel, temperature, chunk)
    require("sinkhorn", sinkhorn, "[0, inf)", "0 leaves the kernel's weights", whole=True)
    unit, recall = centre_and_normalize(x), None
    if approximate_above is not None:
        require("approximate_above", approximate_above, "[0, inf)", "None always searches exactly", whole=True)
    if approximate_above is not None and len(x) > approximate_above:
        similarity, neighbors = approximate_neighbors(unit, k)
        recall = neighbor_recall(unit, neighbors)
    else:
        similarity, neighbors = (search or nearest_neighbors)(unit, k, chunk)
    return graph_of_neighbors(similarity, neighbors, kernel, temperature, mutual, sinkhorn, recall)


def graph_of_neighbors(
    similarity: Float[Tensor, "N K"],
    neighbors: Int[Tensor, "N K"],
    kernel: str = "cosine",
    temperature: float = 0.1,
    mutual: bool = False,
    sinkhorn: int = 0,
    recall: float | None = None,
) -> Graph:
    """The second half of `similarity_graph`: edges' weights from what `nearest_neighbors` found, most similar first.

    The first columns of a wider search are the search for fewer neighbours, so that one search serves every k.
    """
    logits = _KERNELS[kernel](neighbors, similarity, temperature)
    if mutual:
        logits = logits.masked_fill(~is_mutual(neighbors), float("-inf"))
    alone = torch.isinf(logits).all(dim=1)  # (N,): a node whose every edge was dropped
    own = torch.arange(len(neighbors), device=neighbors.device)
    neighbors = torch.where(alone[:, None], own[:, None], neighbors)
    logits[:, 0] = logits[:, 0].masked_fill(alone, 0.0)
    weights = balanced(neighbors, torch.softmax(logits, dim=1), sinkhorn)
    return Graph(neighbors, weights, similarity.masked_fill(alone[:, None], 1.0), recall)


def balanced(neighbors: Int[Tensor, "N K"], weights: Float[Tensor, "N K"], iterations: int) -> Float[Tensor, "N K"]:
    """Row-stochastic weights brought nearer to doubly stochastic ones by Sinkhorn's iterations over the kept edges."""
    for _ in range(iterations):
        into = weights.new_zeros(len(weights)).index_add_(0, neighbors.flatten(), weights.flatten())
        weights = weights / into.index_select(0, neighbors.flatten()).view_as(weights).clamp(min=SMALLEST)
        weights = weights / weights.sum(dim=1, keepdim=True)
    return weights


def centre_and_normalize(x: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
    """Rows minus their mean, scaled to unit length (a row at the mean stays 0)."""
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    largest = x.abs().amax()  # beyond USUAL, squares or lengths leave the range of numbers
    x = x * torch.where((largest > USUAL) & (largest < 1 / USUAL), 1, 1 / largest.clamp(min=SMALLEST))
    return F.normalize(x - x.mean(dim=0), dim=1)


def nearest_neighbors(
    unit: Float[Tensor, "N F"], k: int, chunk: int = CHUNK, among: range | None = None
) -> tuple[Float[Tensor, "R K"], Int[Tensor, "R K"]]:
    """Exact K most similar other rows by inner product: (similarities, indices), most similar first.

    Rows are taken as they are; of equal inner products the smaller index comes first.

    Args:
        unit: the rows.
        k: neighbours kept.
        chunk: rows of similarities held at a time.
        among: consecutive rows whose neighbours are searched, R of them; None: of all, R = N.
    """
    n, among = len(unit), range(len(unit)) if among is None else among
    columns = -(-n // BLOCK) * BLOCK
    # Under mixed precision an inner product in bfloat16 would tie neighbours that float32 tells apart.
    with torch.autocast(unit.device.type, enabled=False):
        others = F.pad(unit, (0, 0, 0, columns - n)).T.contiguous()  # (F, columns)
        held = unit.new_empty(min(chunk, n), columns)
        values = unit.new_empty(len(among), k)
        indices = torch.empty(len(among), k, dtype=torch.int64, device=unit.device)
        for begin in range(0, len(among), chunk):
            start, end = among.start + begin, min(among.start + begin + chunk, among.stop)
            rows = unit[start:end]
            block = torch.mm(rows, others, out=held[: len(rows)])  # (chunk, columns)
            block[:, n:] = float("-inf")
            block.diagonal(start).fill_(float("-inf"))  # no self loop
            values[begin : begin + chunk], indices[begin : begin + chunk] = top_k_of_wide_rows(block, k)
    return values.clamp_(-1, 1), indices


def top_k_of_wide_rows(rows: Float[Tensor, "n columns"], k: int) -> tuple[Float[Tensor, "n K"], Int[Tensor, "n K"]]:
    """The k largest of each row, largest first and of equals the leftmost; columns a multiple of BLOCK.

    Exact: a value among the k largest lies in a block whose maximum is among the k largest maxima.
    """
    maxima = rows.view(len(rows), -1, BLOCK).amax(dim=2)  # (n, blocks)
    if maxima.shape[1] > 4 * k:
        best = maxima.topk(k, dim=1).indices.sort(dim=1).values  # (n, K), left to right
        inside = rows.view(len(rows), -1, BLOCK).gather(1, best[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    else:
        best, inside = None, rows
    found = inside.topk(k, dim=1)
    values, index = found.values, found.indices
    if best is not None:
        index = best.gather(1, index // BLOCK) * BLOCK + index % BLOCK
    # topk breaks ties as it likes, among those it keeps and between them and others that are as large.
    smallest = values[:, -1:]
    unclear = ((inside >= smallest).sum(dim=1) > k) | ((maxima >= smallest).sum(dim=1) > k)
    unclear |= (values[:, 1:] == values[:, :-1]).any(dim=1)
    again = unclear.nonzero().flatten()
    for few in again.split(64):
        ordered = rows[few].sort(dim=1, descending=True, stable=True)
        values[few], index[few] = ordered.values[:, :k], ordered.indices[:, :k]
    return values, index


def approximate_neighbors(
    unit: Float[Tensor, "N F"], k: int, least: float = RECALL
) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]:
    """About the K most similar other rows, by an inverted file (faiss), on the CPU.

    Rows are sorted into cells, about 4 sqrt(N) of them, and the nearest cells are searched: the fewest, doubled from
    one on, in which the neighbours of SAMPLE rows are found. The same rows give the same neighbours.

    Args:
        unit: the rows.
        k: neighbours kept.
        least: share of the exact neighbours of these rows that has to be found.

    Raises:
        ValueError: where faiss is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ValueError("an approximate search needs faiss: pip install faiss-cpu, or search exactly") from None
    rows, n = unit.float().cpu().numpy(), len(unit)
    cells = max(1, min(2 ** round(math.log2(4 * math.sqrt(n))), n // ROWS_OF_A_CELL))
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.index_factory(rows.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)

    def search(these: Tensor, probes: int) -> tuple[Tensor, Tensor]:
        found = index.search(rows[these], k + 1, params=faiss.SearchParametersIVF(nprobe=probes))  # type: ignore[call-arg]
        similarity, nearest = map(torch.as_tensor, found)
        own = nearest == these[:, None]
        own[:, -1] |= ~own.any(dim=1)  # a row that did not find itself gives up its farthest
        order = own.to(torch.int8).sort(dim=1, stable=True).indices[:, :k]  # all but itself, nearest first
        return similarity.gather(1, order), nearest.gather(1, order)

    some, probes = _sample(n, "cpu"), 1
    true = _exact_of(unit, some.to(unit.device), k).cpu()
    while probes < cells and _share_found(search(some, probes)[1], true) < least:
        probes *= 2
    similarity, nearest = search(torch.arange(n), min(probes, cells))
    few = (nearest < 0).any(dim=1).nonzero().flatten()  # in cells that hold fewer than K others
    if len(few):
        similarity[few], nearest[few] = search(few, cells)
    return similarity.to(unit).clamp_(-1, 1), nearest.to(unit.device)


def neighbor_recall(unit: Float[Tensor, "N F"], neighbors: Int[Tensor, "N K"], sample: int = SAMPLE) -> float:
    """Share of the true K nearest among the given neighbours, on `sample` evenly spaced rows."""
    rows = _sample(len(unit), unit.device, sample)
    return _share_found(neighbors[rows], _exact_of(unit, rows, neighbors.shape[1]))


def _sample(n: int, device, sample: int = SAMPLE) -> Int[Tensor, " R"]:
    """Evenly spaced rows of n."""
    return torch.linspace(0, n - 1, min(sample, n), device=device, dtype=torch.float64).long()


def _exact_of(unit: Float[Tensor, "N F"], rows: Int[Tensor, " R"], k: int) -> Int[Tensor, "R K"]:
    """The K nearest others of some rows; (64, N) similarities at a time: 250 MB for a million nodes."""
    found = []
    for few in rows.split(BLOCK):
        similar = unit[few] @ unit.T
        similar[torch.arange(len(few), device=unit.device), few] = float("-inf")
        found.append(similar.topk(k, dim=1).indices)
    return torch.cat(found)


def _share_found(neighbors: Int[Tensor, "R K"], true: Int[Tensor, "R K"]) -> float:
    return float((neighbors[:, :, None] == true[:, None, :]).any(dim=2).float().mean())


def is_mutual(neighbors: Int[Tensor, "N K"]) -> Tensor:
    """Bool (N, K): whether node i is also among the neighbours of its neighbour j."""
    own = torch.arange(len(neighbors), device=neighbors.device)[:, None]
    slots = [(neighbors.index_select(0, slot) == own).any(dim=1) for slot in neighbors.unbind(dim=1)]
    return torch.stack(slots, dim=1)


def _cosine_logits(neighbors, similarity, temperature):
    return similarity / max(temperature, LEAST_TEMPERATURE)


def _gaussian_logits(neighbors, similarity, temperature):
    distance = (2 - 2 * similarity).clamp(min=0)  # squared, between unit vectors
    # The floor keeps exact duplicates finite: at distance 0 they get logit 0, the largest there is.
    sigma = distance[:, -1].sqrt().clamp(min=1e-6)  # (N,)
    return -distance / (sigma[:, None] * sigma[neighbors])


def _shared_logits(neighbors, similarity, temperature):
    own = torch.arange(len(neighbors), device=neighbors.device)[:, None]
    sets = torch.cat([own, neighbors], dim=1)  # (N, K + 1), each node counted in its own set
    overlap = torch.empty_like(similarity)
    for start in range(0, len(sets), CHUNK):  # (chunk, K+1, K+1) at a time
        mine = sets[start : start + CHUNK]
        for slot in range(neighbors.shape[1]):
            other = sets[mine[:, slot + 1]]
            overlap[start : start + CHUNK, slot] = (mine[:, :, None] == other[:, None, :]).sum(dim=(1, 2))
    return (overlap / (2 * sets.shape[1] - overlap)).log()


_KERNELS = {"cosine": _cosine_logits, "gaussian": _gaussian_logits, "shared": _shared_logits}


def check_kernel(kernel: str, temperature: float) -> None:
    """Refuse a kernel that is none of KERNELS, and a temperature that is not positive and finite.

    Raises:
        ValueError: naming the value and what may stand there.
    """
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}: choose one of {', '.join(KERNELS)}")
    require("temperature", temperature, "(0, inf)", "0.1 is the default")


def require_tensors(**given) -> None:
    """Refuse what is no tensor, and tensors that do not lie on one device.

    Raises:
        ValueError: naming the argument.
    """
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(x).__name__}: give torch.as_tensor({name})")
    if len({x.device for x in given.values()}) > 1:
        told = " and ".join(f"{name} on {x.device}" for name, x in given.items())
        raise ValueError(f"{told}: move them to one device")


def check_graph(x: Tensor, k: int, kernel: str, temperature: float, chunk: int = CHUNK) -> None:
    """Refuse features or settings that make no graph; raises the errors of `similarity_graph`."""
    require_tensors(features=x)
    if x.is_complex() or x.is_meta:
        raise ValueError(f"features must be real numbers, got {x.dtype} on {x.device}: encode images to such")
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(f"features must be (N, F), got shape {tuple(x.shape)}: flatten or pool them first")
    require("k", k, "[1, inf)", "it counts neighbours", whole=True)
    if k >= len(x):
        raise ValueError(f"k = {k} neighbours need 1 <= k < nodes = {len(x)}: lower k or use a larger batch")
    check_kernel(kernel, temperature)
    require("chunk", chunk, "[1, inf)", f"{CHUNK} rows are the default", whole=True)
    finite = torch.isfinite(x).all(dim=1)
    if not finite.all():
        bad = (~finite).nonzero().flatten()
        raise ValueError(
            f"{len(bad)} of {len(x)} feature rows are not finite (first: row {bad[0].item()}): "
            "lower the learning rate or drop those images"
        )
