"""How pure walk pairs are on CIFAR-100, by scope, kernel, K and L; `metrics.purity` defines purity and chance.

    sagkit study purity --threads 1         the CIFAR-100 table, figures/results/purity/cifar100.json

Scopes as in figures/METHOD.md section 3: a batch with the mean of two augmented views' features; the same batch with
the four batches before it, walks starting in the newest only; all training images, clean. The encoder is in evaluation
mode and the same for all batches, so that a queue does not age here as it does in training. [K]
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sagkit.augment import Augmentation, two_views
from sagkit.data.load import ImageSet, load_images
from sagkit.data.taxonomy import superclasses
from sagkit.graph import Graph, similarity_graph
from sagkit.metrics.purity import Purity, chance_level, pair_purity
from sagkit.model import extract_features
from sagkit.show.tables import origin, to_markdown
from sagkit.train.record import command_line, load_encoder, provenance, write_record
from sagkit.walk import Pairs, sample_pairs

KERNEL_SETTINGS = {  # name in the table: (kernel, mutual)
    "cosine": ("cosine", False),
    "cosine, mutual": ("cosine", True),
    "gaussian": ("gaussian", False),
    "shared": ("shared", False),
}
KS, LENGTHS = (3, 10, 30), (1, 2, 4, 8)
CONFIDENT = (1.0, 0.3, 0.1)  # shares of all pairs, the most confident first; below 1 for dataset scope only


def heaviest_pairs(pairs: Pairs, share: float) -> Pairs:
    """The given share of the pairs, in (0, 1], most confident first; of equals the earlier.

    Raises:
        ValueError: for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    order = pairs.weight.argsort(descending=True, stable=True)[: max(1, round(share * len(pairs.weight)))]
    return Pairs(*(part[order] for part in pairs))


def walk_purity(
    graph: Graph,
    labels: Int[Tensor, " N"],
    coarse: Int[Tensor, " N"],
    length: int,
    walks: int = 1,
    seed: int = 0,
    *,
    anchors: Int[Tensor, " A"] | None = None,
    restart: float = 0.0,
    shares: tuple[float, ...] = (1.0,),
) -> list[Purity]:
    """Purity of walk pairs on a graph, one for each share of the most confident pairs; see `walk.sample_pairs`."""
    generator = torch.Generator(graph.neighbors.device).manual_seed(seed)
    pairs = sample_pairs(graph, length, walks, generator, anchors=anchors, restart=restart)
    return [pair_purity(heaviest_pairs(pairs, share), labels, coarse) for share in shares]


def view_features(encoder, images: ImageSet, index: Int[Tensor, "M B"], size: int, seed: int) -> Float[Tensor, "M B F"]:
    """Mean of two augmented views' features, for M batches of row numbers."""
    augmentation, generator, found = Augmentation(size=size), torch.Generator().manual_seed(seed), []
    for rows in index:
        views = two_views(images.images[rows], augmentation, generator)
        with torch.no_grad():
            found.append(sum(encoder(view.contiguous(memory_format=torch.channels_last)) for view in views) / 2)
    return torch.stack(found)


class Nodes(NamedTuple):
    """The nodes of one graph with their labels, and which of them walks start from (None: all)."""

    features: Float[Tensor, "N F"]
    labels: Int[Tensor, " N"]
    coarse: Int[Tensor, " N"]
    anchors: Int[Tensor, " A"] | None = None


def batch_nodes(
    features: Float[Tensor, "M B F"], labels: Int[Tensor, "M B"], group: Int[Tensor, " C"], queue: int, first: int
) -> list[Nodes]:
    """Each batch from number `first` on, followed by the `queue` batches before it; walks start in the batch itself."""
    anchors, found = torch.arange(features.shape[1]), []
    for b in range(first, len(features)):
        held = slice(b - queue, b + 1)  # oldest first; reversed, so that the batch itself has the first rows
        own = labels[held].flip(0).flatten()
        found.append(Nodes(features[held].flip(0).flatten(0, 1), own, group[own], anchors))
    return found


def scope_rows(scope: str, nodes: list[Nodes], walks: int, seed: int, shares=(1.0,)) -> Iterator[dict]:
    """One row per kernel, K, L and share of pairs: means over the graphs, with standard errors of the plain figures."""
    for (name, (kernel, mutual)), k in product(KERNEL_SETTINGS.items(), KS):
        graphs = [similarity_graph(of.features, k, kernel, mutual=mutual) for of in nodes]
        for length in LENGTHS:
            found = [
                walk_purity(graph, of.labels, of.coarse, length, walks, seed + i, anchors=of.anchors, shares=shares)
                for i, (graph, of) in enumerate(zip(graphs, nodes, strict=True))
            ]  # graphs, shares, figures
            mean, n = np.mean(found, axis=0), len(found)
            error = np.std(found, axis=0, ddof=1)[:, :2] / n**0.5 if n > 1 else None
            for i, share in enumerate(shares):
                row = {"scope": scope, "kernel": name, "k": k, "length": length, "confident": share}
                row |= dict(zip(Purity._fields, mean[i].round(4).tolist(), strict=True))
                yield row if error is None else row | {"standard_error": error[i].round(4).tolist()}


def chance_of(nodes: list[Nodes]) -> list[float]:
    """Chance level of class and superclass, mean over the graphs."""
    levels = [[chance_level(of.labels, of.anchors), chance_level(of.coarse, of.anchors)] for of in nodes]
    return np.mean(levels, axis=0).round(5).tolist()


def purity_table(rows: list[dict], kind: str = "same") -> str:
    """Markdown: a row per scope, kernel and K, a column per L; cells are class / superclass purity in per cent.

    A cell of the most confident pairs says `fewer` where fewer walks than that ended elsewhere with any confidence.
    """
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        share = "" if row["confident"] == 1 else f", top {row['confident']:.0%}"
        name = f"{row['scope']}{share} | {row['kernel']} | {row['k']}"
        cell = f"{100 * row[f'{kind}_class']:.1f} / {100 * row[f'{kind}_superclass']:.1f}"
        table.setdefault(name, {})[f"L = {row['length']}"] = cell if share == "" or row["left"] == 1 else "fewer"
    frame = pd.DataFrame.from_dict(table, orient="index").rename_axis("scope | kernel | K")
    head, rule, *body = to_markdown(frame).splitlines()
    return "\n".join([head, "| --- | --- " + rule.replace("---", "--:", 1), *body])


def summary(record: dict) -> str:
    """The cosine rows of a purity record for the smaller K, with chance level and provenance, as Markdown."""
    rows = [row for row in record["rows"] if row["kernel"].startswith("cosine") and row["k"] in KS[:2]]
    chance = " / ".join(f"{100 * level:.1f}" for level in record["chance"]["dataset"])
    return (
        f"{purity_table(rows)}\n\nclass / superclass purity of the pairs in per cent, chance {chance}; one encoder "
        f"(`{Path(record['encoder']).name}`), {record['batches']} batches of {record['batch_size']}; "
        f"{origin(record)}"
    )


def main(
    encoder: str = "figures/results/laptop/cifar100/vicreg-seed0.safetensors",
    out: str = "figures/results/purity/cifar100.json",
    batches: int = 20,
    batch_size: int = 512,
    queue: int = 4,
    walks: int = 4,
    view_size: int = 24,
    seed: int = 0,
    threads: int = 0,
) -> None:
    """Measure how often a walk's pairs share a class, by scope, kernel, K and L, and store the record.

    Args:
        encoder: stored encoder beside a run record.
        out: the record to write.
        batches: node sets that batch and queue scope are averaged over, at least 2.
        batch_size: images of a batch.
        queue: earlier batches that queue scope adds.
        walks: walks per anchor under batch and queue scope; dataset scope takes one.
        view_size: pixels of an augmented view; 24 is the laptop profile's.
        seed: of batches, views and walks.
        threads: of torch; 0 leaves its default.
    """
    if threads:
        torch.set_num_threads(threads)
    model, images = load_encoder(encoder), load_images("cifar100", "train")
    labels, group = images.labels, torch.as_tensor(superclasses("cifar100", images.class_names)[1])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    index = order[: (batches + queue) * batch_size].view(-1, batch_size)
    views = view_features(model, images, index, view_size, seed)
    scopes = {
        "batch": batch_nodes(views, labels[index], group, 0, queue),
        "queue": batch_nodes(views, labels[index], group, queue, queue),
        "dataset": [Nodes(extract_features(model, images.images), labels, group[labels])],
    }
    rows = []
    for scope, nodes in scopes.items():
        every = scope == "dataset"
        rows += scope_rows(scope, nodes, 1 if every else walks, seed, CONFIDENT if every else (1.0,))
    chance = {scope: chance_of(nodes) for scope, nodes in scopes.items()}
    command = command_line("study purity")
    settings = {"batches": batches, "batch_size": batch_size, "queue": queue, "walks": walks, "view_size": view_size}
    made = {"command": command, "encoder": encoder, "data": "cifar100", "seed": seed, "temperature": 0.1, **settings}
    write_record(Path(out), made | {"chance": chance, **provenance(), "rows": rows})
    plain, weighted = purity_table(rows), purity_table(rows, "weighted")
    print(f"plain, per cent\n\n{plain}\n\nweighted by confidence, per cent\n\n{weighted}")
