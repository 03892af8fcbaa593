"""On one GPU: walks, neighbour search, and a training step beside the encoder's forward and backward alone.

    python tests/bench_gpu.py                           as tests/gpu.sh runs it
    python tests/bench_gpu.py --device cpu --quick      the same code, small, where there is no GPU: a trial, no figures

Walks: graphs of 16 neighbours with random weights, a million walks; billions of steps a second. Neighbour search: 128
features to the 10 nearest. Step: `Trainer.step` of SAG-VICReg, ResNet-18, batch 512, bfloat16, channels_last, images on
the device; the encoder alone has the same two batches of views, ready made. Medians, by the clock with the device
waited for at both ends; shares are of the stopwatch in the same steps. The record is figures/results/bench/gpu.json.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from bench_walks import _dgl, _torch_walk, synthetic

from sagkit.data.load import make_shapes
from sagkit.graph import centre_and_normalize, nearest_neighbors
from sagkit.model import channels_last, make_encoder
from sagkit.train.build import make_fabric
from sagkit.train.config import configure
from sagkit.train.record import provenance, write_record
from sagkit.train.trainer import Trainer
from sagkit.walk import random_walk, walk_from_uniforms, walk_tables

NODES, WALKS, LENGTH, NEAREST, WIDTH = (10_000, 100_000, 1_000_000), 1_000_000, 8, 10, 128
BATCH, STEPS, WARMUP = 512, 40, 10


def median_seconds(run: Callable[[], object], device: str, repeats: int = 10) -> float:
    """Of a call, after three that warm up."""
    spent = []
    for _ in range(repeats + 3):
        begin = _now(device)
        run()
        spent.append(_now(device) - begin)
    return statistics.median(spent[3:])


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def walks(nodes: int, count: int, device: str) -> dict[str, float]:
    """Seconds by contestant."""
    made = synthetic(nodes)
    graph = made.to(device)
    tables, starts = walk_tables(graph), torch.arange(count, device=device) % nodes
    cdf = graph.weights.cumsum(dim=1)

    def ten_lines():
        with torch.device(device):
            return _torch_walk(graph.neighbors, cdf, starts, LENGTH)

    contestants = {"sagkit": lambda: random_walk(graph, starts, LENGTH, tables=tables), "torch, ten lines": ten_lines}
    if device == "cuda":
        compiled = torch.compile(walk_from_uniforms, fullgraph=True, dynamic=False)
        u = torch.rand(LENGTH, count, device=device)
        contestants["sagkit, compiled, uniforms given"] = lambda: compiled(graph, starts, u, tables=tables)
    try:
        on_cpu = _dgl(made, LENGTH)  # its wheels for CUDA are of older versions of torch
        contestants["DGL, on the CPU"] = lambda: on_cpu(starts.cpu())
    except Exception as error:
        print(f"DGL: {type(error).__name__}: {error}")
    return {name: median_seconds(run, device) for name, run in contestants.items()}


def neighbors(nodes: int, device: str) -> dict[str, float]:
    """Seconds by contestant."""
    unit = centre_and_normalize(torch.randn(nodes, WIDTH, generator=torch.Generator().manual_seed(0)).to(device))

    def ten_lines():
        return [(rows @ unit.T).topk(NEAREST + 1, dim=1).indices[:, 1:] for rows in unit.split(2048)]

    contestants = {"sagkit, exact": lambda: nearest_neighbors(unit, NEAREST), "torch, ten lines": ten_lines}
    return {name: median_seconds(run, device, 3) for name, run in contestants.items()}


def step(device: str, quick: bool) -> dict:
    """Seconds of a training step and of the encoder alone in it, and the shares of the step's parts."""
    encoder, batch, steps = ("resnet10-w4", 64, 2) if quick else ("resnet18", BATCH, STEPS)
    images = make_shapes(2 * batch if quick else 16 * batch)
    with tempfile.TemporaryDirectory() as scratch:
        places = {"results": scratch, "runs": scratch, "walk_start": 0.0, "walk_warmup": 0.0}
        precision = "bf16-mixed" if device == "cuda" else "32-true"
        fields = {"encoder": encoder, "batch_size": batch, "accelerator": device, "precision": precision}
        config = configure("sag-vicreg", "gpu-minute", **fields, **places)
        trainer = Trainer(config, make_fabric(config), images)
        trainer.module.train()
        order = [torch.randperm(len(images))[:batch] for _ in range(steps + WARMUP)]
        for number, index in enumerate(order):
            if number == WARMUP:
                trainer.method.watch.read()
                begin = _now(device)
            trainer.step(number, index)
        whole = (_now(device) - begin) / steps
        parts = trainer.method.watch.read()
    alone = make_encoder(encoder).to(device).to(memory_format=torch.channels_last)
    views = [channels_last(torch.rand(batch, 3, config.view_size, config.view_size, device=device)) for _ in range(2)]

    def forward_and_backward():
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            total = sum(alone(view).float().sum() for view in views)
        total.backward()

    encoded = median_seconds(forward_and_backward, device)
    total = sum(parts.values())
    return {
        "encoder": encoder,
        "batch": batch,
        "step_seconds": whole,
        "encoder_seconds": encoded,
        "share_of_encoder": round(encoded / whole, 4),
        "share_of_step": {name: round(value / total, 4) for name, value in sorted(parts.items())},
    }


def main(device: str = "cuda", quick: bool = False, out: str = "figures/results/bench/gpu.json") -> None:
    """Measure, and write the record after each part.

    Args:
        device: cuda; cpu to try the benchmark itself.
        quick: small sizes.
        out: the record.
    """
    record = {"command": "tests/gpu.sh", "walks": WALKS, "length": LENGTH, **provenance()}
    record["processor"] = torch.cuda.get_device_name() if device == "cuda" else record["processor"]
    record["step"] = step(device, quick)
    write_record(Path(out), record)
    record["neighbor_seconds"] = {str(n): neighbors(n, device) for n in ((500,) if quick else (10_000, 50_000))}
    write_record(Path(out), record)
    count = 1_000 if quick else WALKS
    found = {str(n): walks(n, count, device) for n in ((500,) if quick else NODES)}
    record["billion_steps_per_second"] = {
        nodes: {name: count * LENGTH / seconds / 1e9 for name, seconds in of.items()} for nodes, of in found.items()
    }
    write_record(Path(out), record)
    print(record)


if __name__ == "__main__":
    tyro.cli(main)
