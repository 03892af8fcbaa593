"""Approximate similarity graphs from 10,000 to a million nodes: which search, at what recall, time and memory.

    python tests/bench_graphs.py                       what is missing of the record, smallest first
    python tests/bench_graphs.py --nodes 10000 --again

Features are those an encoder might give: 100 classes, each a flat piece of SPREAD dimensions in 128 and a little noise.
Every search finds the K = 16 nearest by cosine similarity, from features to neighbours, index included, and is given
the first of its settings that reaches RECALL against the exact neighbours of 1,000 evenly spaced rows. Each is measured
in a process of its own, after a search of 2,000 nodes that compiles what is compiled; memory is that process's peak,
features and libraries included, seconds are on the clock and on the processor. The record is
figures/results/bench/graphs.json, an entry a search and size; one that the line through the last two sizes puts above
`--most-minutes` is not begun, and its expected time stands in its place.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import tyro

from sagkit.graph import centre_and_normalize, neighbor_recall, similarity_graph
from sagkit.train.record import provenance, write_record
from sagkit.train.timing import peak_memory
from sagkit.walk import random_walk

SIZES, WIDTH, NEAREST, RECALL = (10_000, 100_000, 1_000_000), 128, 16, 0.95
CLASSES, SPREAD, NOISE = 100, 16, 0.1
WALKS, LENGTH = 1_000_000, 8


def features(nodes: int) -> torch.Tensor:
    """Rows (nodes, WIDTH), the same for a size."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, WIDTH, generator=generator)
    planes = torch.randn(CLASSES, SPREAD, WIDTH, generator=generator) / math.sqrt(SPREAD)
    label = torch.randint(CLASSES, (nodes,), generator=generator).sort().values
    x = torch.randn(nodes, WIDTH, generator=generator).mul_(NOISE)
    for c, rows in enumerate(x.split(torch.bincount(label, minlength=CLASSES).tolist())):
        rows += centres[c] + torch.randn(len(rows), SPREAD, generator=generator) @ planes[c]
    return x[torch.randperm(nodes, generator=generator)]


def _without_self(index) -> torch.Tensor:
    """The K nearest others of K + 1 that a search found, the row itself among them or not."""
    index = torch.as_tensor(index).long()
    own = index == torch.arange(len(index))[:, None]
    own[:, -1] |= ~own.any(dim=1)
    return index[~own].view(len(index), -1)


def pynndescent(unit: torch.Tensor, wider: int) -> torch.Tensor:
    from pynndescent import NNDescent

    made = NNDescent(unit.numpy(), metric="cosine", n_neighbors=wider, random_state=0, n_jobs=torch.get_num_threads())
    return _without_self(made.neighbor_graph[0][:, : NEAREST + 1])


def _faiss(description: str, unit: torch.Tensor, **settings):
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.index_factory(unit.shape[1], description, faiss.METRIC_INNER_PRODUCT)
    faiss.ParameterSpace().set_index_parameters(index, ",".join(f"{k}={v}" for k, v in settings.items()))
    index.train(unit.numpy())
    index.add(unit.numpy())
    return _without_self(index.search(unit.numpy(), NEAREST + 1)[1])


def faiss_hnsw(unit: torch.Tensor, breadth: int) -> torch.Tensor:
    return _faiss("HNSW16,Flat", unit, efSearch=breadth)


def faiss_ivf(unit: torch.Tensor, probes: int) -> torch.Tensor:
    return _faiss(f"IVF{2 ** round(math.log2(4 * math.sqrt(len(unit))))},Flat", unit, nprobe=probes)


def exact(unit: torch.Tensor, _: int) -> torch.Tensor:
    from sagkit.graph import nearest_neighbors

    return nearest_neighbors(unit, NEAREST)[1]


# Each search with its settings, cheapest first.
SEARCHES: dict[str, tuple[Callable, tuple[int, ...]]] = {
    "sagkit, exact": (exact, (0,)),
    "pynndescent": (pynndescent, (NEAREST + 1, 24, 32, 48)),
    "faiss HNSW": (faiss_hnsw, (24, 48, 96)),
    "faiss IVF": (faiss_ivf, (4, 8, 16, 32)),
}


def measured(name: str, nodes: int) -> dict:
    """One search at one size, by the first of its settings that is good enough."""
    search, settings = SEARCHES[name]
    search(centre_and_normalize(features(2_000)), settings[0])
    unit = centre_and_normalize(features(nodes))
    for setting in settings:
        begin, processor = time.perf_counter(), time.process_time()
        found = search(unit, setting)
        spent = {"seconds": time.perf_counter() - begin, "core_seconds": time.process_time() - processor}
        recall = neighbor_recall(unit, found)
        if recall >= RECALL:
            break
    return {**spent, "recall": round(recall, 4), "setting": setting, "peak_mb": peak_memory()["host"]}


def graph_and_walks(name: str, nodes: int) -> dict:
    """`similarity_graph` as it is called, and a million walks on what it gives."""
    x, told = features(nodes), {}
    similarity_graph(features(2_000), NEAREST, approximate_above=0)
    begin, processor = time.perf_counter(), time.process_time()
    graph = similarity_graph(x, NEAREST, approximate_above=0)
    told |= {"seconds": time.perf_counter() - begin, "core_seconds": time.process_time() - processor}
    begin, processor = time.perf_counter(), time.process_time()
    paths = random_walk(graph, torch.arange(WALKS) % nodes, LENGTH, generator=torch.Generator().manual_seed(0))
    told |= {"walk_seconds": time.perf_counter() - begin, "walk_core_seconds": time.process_time() - processor}
    assert paths.shape == (WALKS, LENGTH + 1)
    return {**told, "recall": round(graph.recall, 4), "peak_mb": peak_memory()["host"]}


WHOLE = "similarity_graph, then walks"
MEASURES = {**dict.fromkeys(SEARCHES, measured), WHOLE: graph_and_walks}


def exponent(entries: dict[str, dict], key: str = "core_seconds") -> float | None:
    """Of the nodes in the time, from a line through logarithms; None with fewer than two sizes."""
    points = [(math.log(int(nodes)), math.log(of[key])) for nodes, of in entries.items() if key in of]
    if len(points) < 2:
        return None
    x, y = (torch.tensor(values, dtype=torch.float64) for values in zip(*points, strict=True))
    return float(torch.cov(torch.stack([x, y]))[0, 1] / x.var())


def expected(entries: dict[str, dict], nodes: int) -> float:
    """Seconds by the line through what was measured, on the clock; 0 where there is too little to draw one."""
    slope = exponent(entries, "seconds")
    if slope is None:
        return 0.0
    last = max(int(n) for n, of in entries.items() if "seconds" in of)
    return entries[str(last)]["seconds"] * (nodes / last) ** slope


def main(
    nodes: tuple[int, ...] = SIZES,
    only: tuple[str, ...] = (),
    again: bool = False,
    most_minutes: float = 15.0,
    out: str = "figures/results/bench/graphs.json",
) -> None:
    """Measure what the record lacks, and write it after every entry.

    Args:
        nodes: sizes.
        only: searches, by name; all where none is given.
        again: measure what is there, too.
        most_minutes: of one search.
        out: the record.
    """
    path, origin = Path(out), provenance()
    record = json.loads(path.read_text()) if path.exists() else {"entries": {}}
    record |= {"command": "python tests/bench_graphs.py", "threads": torch.get_num_threads(), "classes": CLASSES}
    record |= {"width": WIDTH, "k": NEAREST, "spread": SPREAD, "walks": WALKS, "length": LENGTH, **origin}
    for size in sorted(nodes):
        for name in only or MEASURES:
            entries = record["entries"].setdefault(name, {})
            if str(size) in entries and "seconds" in entries[str(size)] and not again:
                continue
            if (wait := expected(entries, size)) > 60 * most_minutes:
                entries[str(size)] = {"expected_seconds": round(wait)}
            else:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                    entries[str(size)] = alone.submit(MEASURES[name], name, size).result()
                entries[str(size)] |= {"commit": origin["commit"]}
            print(f"{size:,} nodes, {name}: {entries[str(size)]}", flush=True)
            record["exponents"] = {name: exponent(of) for name, of in record["entries"].items()}
            write_record(path, record)


if __name__ == "__main__":
    tyro.cli(main)
