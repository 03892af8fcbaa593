"""Seconds from moving a control to the new picture, for every widget, on a batch of 512.

    python tests/bench_widgets.py [--threads 2]

A control is moved as a reader would move it, and the widget's answer (graph, walks, figure, PNG) is waited for; the
median and the slowest of the moves stand in figures/results/bench/widgets.json. Maps are computed beforehand, because
the widgets show them computed. What the browser adds is not in these seconds.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch
import tyro

from sagkit.data.load import make_shapes
from sagkit.show import widgets
from sagkit.show.scenes import Gallery, make_scene
from sagkit.studies.zoo import gradients
from sagkit.train.record import provenance, write_record

BATCH = 512


def panels() -> dict[str, tuple[widgets.Panel, dict[str, list]]]:
    """Every widget with the moves it is put through, by control."""
    images = make_shapes(BATCH, seed=0)
    features = torch.as_tensor(gradients(images.images))
    scene = make_scene(images.images, images.labels, images.class_names, features)
    _ = scene.layout, scene.flat
    names = tuple(str(i) for i in range(BATCH))
    gallery = Gallery(images.images, features, names, images.labels)
    generator = torch.Generator().manual_seed(0)
    za = torch.randn(BATCH, 128, generator=generator)
    zb = za + 0.3 * torch.randn(BATCH, 128, generator=generator)
    return {
        "graph explorer": (widgets.graph_explorer(scene), {"k": [3, 15, 8], "temperature": [0.05, 0.3]}),
        "walk player": (widgets.walk_player(scene), {"length": [1, 7, 3], "seed": [1, 2, 3]}),
        "pairing board": (widgets.pairing_board(scene), {"length": [1, 8], "k": [3, 15], "alpha": [0.1, 0.9]}),
        "loss terms": (widgets.loss_explorer(za, zb, features), {"alpha": [0.1, 0.5, 0.9]}),
        "dendrogram cut": (widgets.dendrogram_cutter(scene), {"clusters": [5, 9, 12], "method": ["ward"]}),
        "look-alike search": (widgets.look_alikes(gallery), {"query": [1, 100, 500]}),
    }


def seconds_of(panel: widgets.Panel, moves: dict[str, list]) -> list[float]:
    """Seconds of each move.

    Raises:
        ValueError: where a widget refuses a move.
    """
    found = []
    for name, values in moves.items():
        for value in values:
            begin = time.perf_counter()
            panel.controls[name].value = value
            found.append(time.perf_counter() - begin)
            if panel.message.value:
                raise ValueError(f"{panel.name} refuses {name} = {value}: {panel.message.value}")
    return found


def main(threads: int = 2, out: str = "figures/results/bench/widgets.json") -> None:
    """Time every widget and write the record.

    Args:
        threads: of torch.
        out: the record.
    """
    torch.set_num_threads(threads)
    rows = {}
    for name, (panel, moves) in panels().items():
        spent = seconds_of(panel, moves)
        rows[name] = {"median": round(statistics.median(spent), 4), "slowest": round(max(spent), 4)}
        print(f"{name:20s} median {rows[name]['median']:.3f} s, slowest {rows[name]['slowest']:.3f} s")
    command = " ".join(["python tests/bench_widgets.py", *sys.argv[1:]])
    write_record(Path(out), {"command": command, **provenance(), "threads": threads, "batch": BATCH, "seconds": rows})


if __name__ == "__main__":
    tyro.cli(main)
