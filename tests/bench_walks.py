"""Walks and neighbour search beside their peers, alternating in one run.

    make bench        (python tests/bench_walks.py [--rounds 5] [--quick])

Walks: weighted first-order walks on a synthetic graph of K = 16 random neighbours with random weights. Everybody is
given the graph in its own form beforehand (ours: `walk_tables`; numba and numpy: cumulative weights) and is timed from
the start nodes to the paths, its random numbers included. "sagkit, graph to paths" makes the tables too. A peer that
needs over a second is given fewer walks of the same length; figures are per step. Neighbour search: clustered points,
cosine similarity, from features to the K = 10 nearest. Medians over rounds; the record is
figures/results/bench/walks.json.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import torch
import tyro
from scipy.sparse import csr_array

from sagkit.graph import Graph, approximate_neighbors, centre_and_normalize, nearest_neighbors, neighbor_recall
from sagkit.train.record import provenance, write_record
from sagkit.walk import random_walk, walk_from_uniforms, walk_tables

SLOTS = 16
SIZES = (  # nodes, walks, steps each
    (512, 5_120, 5),
    (1_024, 10_240, 5),
    (10_000, 100_000, 10),
    (100_000, 1_000_000, 5),
    (1_000_000, 1_000_000, 5),
)
NEIGHBOR_NODES, WIDTH, NEAREST = (1_024, 10_000, 50_000), 128, 10
LONGEST = 1.0  # seconds of a single call, beyond which a peer gets fewer walks
SHORTEST = 0.1  # seconds of a single timing


@numba.njit
def _numba_walk(neighbors, cdf, starts, length, paths):
    for s in range(len(starts)):
        node = starts[s]
        paths[s, 0] = node
        for step in range(length):
            u, slot = np.random.random(), 0  # noqa: NPY002 (numba's own generator)
            while slot < cdf.shape[1] - 1 and u >= cdf[node, slot]:
                slot += 1
            node = neighbors[node, slot]
            paths[s, step + 1] = node


def _numpy_walk(neighbors, cdf, starts, length, generator):
    node, path = starts, [starts]
    for _ in range(length):
        u = generator.random(len(starts), dtype=np.float32)
        node = neighbors[node, np.minimum((u[:, None] >= cdf[node]).sum(axis=1), cdf.shape[1] - 1)]
        path.append(node)
    return np.stack(path, axis=1)


def _torch_walk(neighbors, cdf, starts, length):
    """The ten lines one would write first."""
    node, path = starts, [starts]
    for _ in range(length):
        u = torch.rand(len(starts), 1)
        node = neighbors[node, (u >= cdf[node]).sum(dim=1).clamp(max=cdf.shape[1] - 1)]
        path.append(node)
    return torch.stack(path, dim=1)


def synthetic(nodes: int) -> Graph:
    """Random neighbours, random weights."""
    generator = torch.Generator().manual_seed(nodes)
    weights = torch.softmax(torch.randn(nodes, SLOTS, generator=generator), dim=1)
    return Graph(torch.randint(nodes, (nodes, SLOTS), generator=generator), weights)


def ours_and_arrays(graph: Graph, length: int) -> dict[str, Callable]:
    """Contestants that take an array of start nodes."""
    cdf = graph.weights.cumsum(dim=1)
    cdf = cdf / cdf[:, -1:]
    neighbors, tables, draw = graph.neighbors.numpy(), walk_tables(graph), np.random.default_rng(0)
    torch._dynamo.reset()  # every size is compiled afresh, and dynamo counts
    compiled = torch.compile(walk_from_uniforms, fullgraph=True, dynamic=False)
    return {
        "sagkit": lambda s: random_walk(graph, s, length, tables=tables),
        "sagkit, compiled": lambda s: compiled(graph, s, torch.rand(length, len(s)), tables=tables),
        "sagkit, graph to paths": lambda s: random_walk(graph, s, length),
        "numba CDF, 1 thread": lambda s: _numba_walk(
            neighbors, cdf.numpy(), s.numpy(), length, np.empty((len(s), length + 1), dtype=np.int64)
        ),
        "numpy CDF": lambda s: _numpy_walk(neighbors, cdf.numpy(), s.numpy(), length, draw),
        "torch, ten lines": lambda s: _torch_walk(graph.neighbors, cdf, s, length),
    }


def libraries(graph: Graph, length: int) -> tuple[dict[str, Callable], dict[str, str]]:
    """Peers that are installed, and why the others are not here."""
    contestants, absent = {}, {}
    makers = {"graph-walker": _graph_walker, "graph-walker's inner loop": _graph_walker_prepared}
    makers |= {"igraph": _igraph, "PecanPy": _pecanpy, "DGL": _dgl}
    makers["PecanPy, 100 times the walks"] = _pecanpy
    for name, make in makers.items():
        try:
            contestants[name] = make(graph, length)
        except Exception as error:  # whatever an old extension raises beside newer libraries
            absent[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:120]
    return contestants, absent


def _graph_walker(graph, length):
    import walker

    drawn = graph.to_networkx()
    return lambda s: walker.random_walks(drawn, n_walks=1, walk_len=length + 1, start_nodes=s.tolist(), verbose=False)


def _graph_walker_prepared(graph, length):
    import walker

    matrix = walker.get_normalized_adjacency(graph.to_networkx(), sub_sampling=0.0)
    arrays = matrix.indptr.astype(np.uint32), matrix.indices.astype(np.uint32), matrix.data.astype(np.float32)
    return lambda s: walker._random_walks(*arrays, s.numpy().astype(np.uint32), 1, length + 1)


def _igraph(graph, length):
    import igraph

    rows = torch.arange(len(graph)).repeat_interleave(SLOTS)
    drawn = igraph.Graph(
        n=len(graph), edges=list(zip(rows.tolist(), graph.neighbors.flatten().tolist(), strict=True)), directed=True
    )
    drawn.es["weight"] = graph.weights.flatten().tolist()
    return lambda s: [drawn.random_walk(i, length, weights="weight") for i in s.tolist()]


def _pecanpy(graph, length):
    # It and nptyping use names that numpy 2 has dropped; they are given back, or it could not run at all.
    for name, kind in {"bool8": np.bool_, "object0": np.object_, "int0": np.intp, "uint0": np.uintp, "void0": np.void,
                       "bytes0": np.bytes_, "str0": np.str_, "cfloat": np.cdouble, "longfloat": np.longdouble,
                       "singlecomplex": np.csingle, "complex_": np.cdouble, "clongfloat": np.clongdouble,
                       "longcomplex": np.clongdouble, "float_": np.float64, "unicode_": np.str_,
                       "string_": np.bytes_}.items():  # fmt: skip
        if name not in np.__dict__:
            setattr(np, name, kind)
    from pecanpy import pecanpy

    matrix = csr_array(graph.to_scipy())
    drawn = pecanpy.PreCompFirstOrder(p=1, q=1, workers=1, verbose=False)
    drawn.set_node_ids([str(i) for i in range(len(graph))])
    drawn.indptr, drawn.indices = matrix.indptr.astype(np.uint64), matrix.indices.astype(np.uint32)
    drawn.data = matrix.data.astype(np.float32)
    return lambda s: drawn.simulate_walks(num_walks=len(s) // len(graph), walk_length=length)


def _dgl(graph, length):
    import dgl

    rows = torch.arange(len(graph)).repeat_interleave(SLOTS)
    drawn = dgl.graph((rows, graph.neighbors.flatten()), num_nodes=len(graph))
    drawn.edata["p"] = graph.weights.flatten()
    return lambda s: dgl.sampling.random_walk(drawn, s, length=length, prob="p")[0]


def seconds_of(run: Callable, *arguments) -> float:
    begin = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - begin


def timed(run: Callable, *arguments) -> float:
    """Seconds of one call, the mean of as many as fill SHORTEST: a call alone pays for caches that others left cold."""
    first = seconds_of(run, *arguments)
    calls = int(SHORTEST / first)
    return sum(seconds_of(run, *arguments) for _ in range(calls)) / calls if calls else first


def walk_row(nodes: int, walks: int, steps: int, rounds: int) -> dict:
    """Nanoseconds per step of every contestant on one graph, alternating."""
    graph = synthetic(nodes)
    starts = torch.arange(walks) % nodes
    contestants = ours_and_arrays(graph, steps)
    absent = {}
    if nodes <= 10_000:  # their own graphs of Python objects take minutes to build beyond
        more, absent = libraries(graph, steps)
        contestants |= more
        if nodes > 1_024:  # minutes; its marginal cost shows at the smaller sizes
            contestants.pop("PecanPy, 100 times the walks", None)
    given = {}
    for name, run in contestants.items():
        few = starts[: min(walks, nodes)]
        run(few)  # compilers and caches
        spent = seconds_of(run, few) / len(few)
        share = walks if spent * walks < LONGEST else max(100, int(LONGEST / spent))
        given[name] = starts[:share]
        if name.startswith("PecanPy"):  # compiles at every call: given the same walks, and a hundred times as many
            given[name] = starts if name == "PecanPy" else starts.repeat(100)
    spent = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            spent[name].append(timed(run, given[name]) / (len(given[name]) * steps))
    median = {name: statistics.median(values) for name, values in spent.items()}
    fastest = median["numba CDF, 1 thread"]
    return {
        "nodes": nodes,
        "walks": walks,
        "steps": steps,
        "nanoseconds_per_step": {name: round(1e9 * value, 2) for name, value in median.items()},
        "seconds": {name: value * walks * steps for name, value in median.items()},
        "ratio": {name: round(value / fastest, 3) for name, value in median.items()},
        "absent": absent,
    }


def linearity(quick: bool) -> dict:
    """Exponent of time in walks x steps, from a line through logarithms."""
    graph = synthetic(10_000)
    tables = walk_tables(graph)
    sizes = [10**e for e in ((4, 5) if quick else (4, 5, 6, 7))]
    steps, spent = 10, []
    for walks in sizes:
        starts = torch.arange(walks) % 10_000
        repeats = max(1, 200_000 // walks)
        random_walk(graph, starts, steps, tables=tables)
        timings = [seconds_of(lambda s=starts: random_walk(graph, s, steps, tables=tables)) for _ in range(repeats + 2)]
        spent.append(statistics.median(timings))
    exponent = float(np.polyfit(np.log([w * steps for w in sizes]), np.log(spent), 1)[0])
    return {"total_steps": [w * steps for w in sizes], "seconds": spent, "exponent": round(exponent, 3)}


def neighbor_row(nodes: int, rounds: int) -> dict:
    """Seconds and recall of neighbour searches, alternating."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(100, WIDTH, generator=generator)
    x = centres[torch.randint(100, (nodes,), generator=generator)] + torch.randn(nodes, WIDTH, generator=generator)
    unit = centre_and_normalize(x)
    contestants = {"sagkit, exact": lambda: nearest_neighbors(unit, NEAREST)[1]}
    contestants["torch, ten lines"] = lambda: _plain_neighbors(unit)
    contestants["sagkit, approximate"] = lambda: approximate_neighbors(unit, NEAREST)[1]
    contestants["scikit-learn, brute"] = lambda: _sklearn(unit)
    absent = {}
    try:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        contestants["faiss-cpu, IndexFlatIP"] = lambda: _faiss(unit)
    except ImportError as error:
        absent["faiss-cpu"] = str(error)
    spent, recall = {name: [] for name in contestants}, {}
    slow: set[str] = set()
    for turn in range(rounds + 1):  # the first turn warms up, and stays for whom a second would take too long
        for name, run in contestants.items():
            if name in slow:
                continue
            begin = time.perf_counter()
            found = run()
            spent[name].append(time.perf_counter() - begin)
            recall[name] = round(neighbor_recall(unit, torch.as_tensor(np.asarray(found))), 4)
            if turn == 0 and spent[name][0] > 20:
                slow.add(name)
    median = {name: statistics.median(v[1:] or v) for name, v in spent.items()}
    ratio = {name: round(value / median["sagkit, exact"], 2) for name, value in median.items()}
    return {"nodes": nodes, "width": WIDTH, "k": NEAREST, "seconds": median, "times_ours": ratio, "recall": recall,
            "absent": absent}  # fmt: skip


def _plain_neighbors(unit):
    index = []
    for start in range(0, len(unit), 2048):
        similar = unit[start : start + 2048] @ unit.T
        rows = torch.arange(len(similar))
        similar[rows, rows + start] = -1
        index.append(similar.topk(NEAREST, dim=1).indices)
    return torch.cat(index)


def _faiss(unit):
    import faiss

    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit.numpy())
    return index.search(unit.numpy(), NEAREST + 1)[1][:, 1:]


def _sklearn(unit):
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=NEAREST, algorithm="brute", metric="cosine").fit(unit.numpy()).kneighbors()[1]


def main(rounds: int = 5, quick: bool = False, out: str = "figures/results/bench/walks.json") -> None:
    """Run the benchmark and write its record.

    Args:
        rounds: alternations.
        quick: small sizes only, to try the benchmark itself.
        out: the record.
    """
    warnings.filterwarnings("ignore")
    origin = provenance()
    found: dict = {"command": "make bench", "threads": torch.get_num_threads(), "slots": SLOTS, "rows": []}
    for size in SIZES[:2] if quick else SIZES:
        found["rows"].append(walk_row(*size, rounds))
        row = found["rows"][-1]
        print(f"{size[0]:,} nodes, {size[1]:,} walks of {size[2]} steps; ratio to numba's one thread", flush=True)
        for name, value in row["nanoseconds_per_step"].items():
            print(f"  {name:28s} {value:12.1f} ns/step {row['ratio'][name]:10.3f}", flush=True)
        for name, reason in row["absent"].items():
            print(f"  {name:28s} not here: {reason}")
    found["linearity"] = linearity(quick)
    print(f"time ~ steps^{found['linearity']['exponent']}", flush=True)
    found["neighbors"] = []
    for nodes in NEIGHBOR_NODES[: 1 if quick else None]:
        found["neighbors"].append(neighbor_row(nodes, 2))
        row = found["neighbors"][-1]
        print(f"{nodes:,} x {WIDTH}: the {NEAREST} nearest", flush=True)
        for name, value in row["seconds"].items():
            print(f"  {name:28s} {value:9.4f} s {row['times_ours'][name]:8.2f} x ours, recall {row['recall'][name]}")
    write_record(Path(out), {**found, **origin})


if __name__ == "__main__":
    tyro.cli(main)
