"""What a run would cost on more images, in other batches, at a price per hour: scaled from the seconds it recorded.

    seconds(N', B') = epochs * sum over parts of  c_part(record) * growth_part(N', B')

| part | grows with |
|---|---|
| augmentation, encoder, projector, loss, backward, walk, evaluation, what is not timed | images |
| optimizer | steps: images / batch |
| graph (inside a batch, every pair of images is compared) | images * batch |
| rebuild (a graph of all images) | images squared |

[K] The growth is of counted operations, so it is an assumption and not a measurement: caches, memory and larger
batches that a device fills better all change it. `rebuild` also holds one pass of clean images, which grows more
slowly, so that part is an upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from sagkit.train.record import core_seconds, row_name

CIFAR = {(name, split): n for name in ("cifar10", "cifar100") for split, n in (("train", 50_000), ("fit", 45_000))}
TIMED = ("augmentation", "encoder", "projector", "loss", "backward", "optimizer", "graph", "walk", "rebuild")


@dataclass(frozen=True)
class Estimate:
    """Seconds by part, their sum in hours, what that costs, and what was assumed, one sentence each."""

    seconds: dict[str, float]
    hours: float
    price: float | None
    assumptions: tuple[str, ...]


def estimate(record: dict, images: int | None = None, batch: int | None = None, price: float | None = None) -> Estimate:
    """Seconds of a run like the recorded one on the same machine.

    Args:
        record: a run record of a trained encoder.
        images: training images, N'; the record's where not given.
        batch: images per step, B'; likewise.
        price: of one hour of the machine, in any currency.

    Raises:
        ValueError: for a record without training time, fewer images than a batch, or a negative price.
    """
    config, measured = record["config"], dict(record.get("seconds", {}))
    notes = [f"measured on {record['processor']}, {config.get('threads') or 'all'} thread(s), and priced there"]
    seconds, n = _training(record)
    then = config["batch_size"]
    images, batch = (n if images is None else images), (then if batch is None else batch)
    if not 1 <= batch <= images:
        raise ValueError(f"batch {batch} of {images:,} images: at least 1, and no more than there are images")
    if price is not None and price < 0:
        raise ValueError(f"price per hour must be at least 0, got {price}")
    if measured.get("walk") and "graph" not in measured and "rebuild" not in measured:  # timed as one part
        whole = "rebuild" if config.get("scope") == "dataset" else "graph"
        measured[whole] = measured.pop("walk")
        notes.append(f"graph and walk were timed as one; all of it is taken for {whole}, the part that grows fastest")
    parts = {part: measured.get(part, 0.0) for part in (*TIMED, "evaluation")}
    parts["not timed"] = max(0.0, seconds - sum(parts[part] for part in TIMED))
    more, larger = images / n, batch / then
    growth = dict.fromkeys(parts, more) | {"optimizer": more / larger, "graph": more * larger, "rebuild": more**2}
    scaled = {part: value * growth[part] for part, value in parts.items() if value}
    notes += [
        f"{config['epochs']} epochs of {images:,} images in batches of {batch}, from {n:,} in batches of {then}",
        "optimizer grows with steps, graph with images times batch, rebuild with images squared (an upper bound), "
        "everything else with images",
        "memory is not extrapolated, and a batch that the machine fills better runs faster than this",
    ]
    if before := record.get("trunk", {}).get("core_seconds"):
        notes.append(f"the cost of its trunk, {before / 60:.1f} core-minutes, is not in it")
    if "evaluation" not in measured:
        notes.append("evaluation was not timed and is left out")
    hours = sum(scaled.values()) / 3600
    return Estimate(scaled, hours, None if price is None else hours * price, tuple(notes))


def _training(record: dict) -> tuple[float, int]:
    """Wall seconds of training and number of training images; by speed and data set where the record does not say."""
    config, split = record["config"], record["config"].get("split", "train")
    if not config.get("epochs") or not record.get("images_per_second"):
        raise ValueError(f"{row_name(record)} was not trained: there is no time to extrapolate")
    images = record.get("images") or CIFAR.get((record["train_set"], split))
    if images is None:
        raise ValueError("the record says neither its number of images nor its wall time: train anew")
    shown = images // config["batch_size"] * config["batch_size"] * config["epochs"]
    return record.get("training_seconds") or shown / record["images_per_second"], images


def estimate_text(name: str, found: Estimate) -> str:
    """The estimate as lines of text, assumptions last."""
    total, largest = sum(found.seconds.values()), sorted(found.seconds.items(), key=lambda part: -part[1])
    parts = ", ".join(f"{part} {value / total:.0%}" for part, value in largest)
    cost = "" if found.price is None else f", price {found.price:,.2f}"
    return "\n".join([f"{name}: {found.hours:,.2f} h{cost} ({parts})", *(f"  assumed: {a}" for a in found.assumptions)])


def extrapolated(
    rows: dict[str, list[dict]], images: int | None = None, batch: int | None = None, price: float | None = None
) -> str:
    """The first run of each row at another size, in words; see `estimate`."""
    told = []
    for name, (first, *_) in rows.items():
        try:
            told.append(estimate_text(name, estimate(first, images, batch, price)))
        except ValueError as error:
            told.append(f"{name}: {error}")
    return "\n".join(told)


def costs(rows: dict[str, list[dict]]) -> pd.DataFrame:
    """What rows of runs (`record.rows_of`) cost to train, means over seeds; text cells."""

    def mean(runs, key):
        return sum(run[key] or 0 for run in runs) / len(runs)

    shown = {
        name: {
            "encoder": runs[0]["config"]["encoder"],
            "parameters": f"{runs[0]['parameters']:,}",
            "core-min": f"{sum(map(core_seconds, runs)) / len(runs) / 60:.1f}",
            "images/s": f"{mean(runs, 'images_per_second'):,.0f}",
            "graph, walk, rebuild": f"{mean(runs, 'walk_share'):.2%}",
        }
        for name, runs in rows.items()
        if runs[0]["config"]["epochs"] > 0
    }
    return pd.DataFrame.from_dict(shown, orient="index").rename_axis("cost")
