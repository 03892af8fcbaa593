"""A training that fits into a given time: settings by number of images and hardware, and an estimate of its duration.

    epochs = 60 minutes / seconds_per_epoch,  measured on a few steps; at least LEAST_EPOCHS, at most MOST_EPOCHS

[K] all of it.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from sagkit.data.folder import printable
from sagkit.data.load import ImageSet
from sagkit.train.config import Config, configure
from sagkit.train.record import load_encoder, load_state, read_record, run_path
from sagkit.train.trainer import Run, Trainer, fingerprint, fit, make_fabric, native_precision

LEAST_EPOCHS, MOST_EPOCHS = 10, 400


def settings(n: int, out: Path, source: str, epochs: int = LEAST_EPOCHS, seed: int = 0, device: str = "auto") -> Config:
    """The training of a pilot on n images: network by hardware, batch and neighbours by n.

    Args:
        n: number of images.
        out: record and encoder go to `out/run`, the checkpoint to `out/unfinished`.
        source: folder of the images; made absolute, since a bare name may be that of a data set.
        epochs: of training.
        seed: of weights, order, views and walks.
        device: "auto", "cpu", "cuda".
    """
    gpu = device != "cpu" and torch.cuda.is_available()
    batch = max(16, min(256, 2 ** int(math.log2(n / 8))))  # small folders need the steps more than the batch
    return configure(
        "sag-vicreg",
        "laptop",
        data=os.path.abspath(source),
        encoder="resnet18" if gpu else "resnet10-w16",
        view_size=32,
        batch_size=batch,
        k=max(1, min(10, batch // 10)),
        lr=2e-3,
        epochs=epochs,
        readout_every=max(1, epochs // 3),
        accelerator=device.partition(":")[0],
        precision=native_precision(device.partition(":")[0]),
        seed=seed,
        probe=False,
        results=str(out / "run"),
        overwrite=True,  # a folder is looked at anew with every pilot
        runs=str(out / "unfinished"),  # not beside the record: a finished run deletes its checkpoint there
    )


def seconds_per_epoch(config: Config, train: ImageSet, steps: int = 3) -> float:
    """Seconds an epoch takes, graph and walks included, measured on a few steps of a trainer that is then discarded."""
    with tempfile.TemporaryDirectory() as scratch:
        trial = replace(config, results=scratch, runs=scratch, walk_start=0.0, walk_warmup=0.0)
        trainer = Trainer(trial, make_fabric(trial), train)
        index = torch.arange(config.batch_size)
        trainer.module.train()
        float(trainer.step(0, index)["loss"])  # the first pays for allocation
        start = time.perf_counter()
        for step in range(1, steps + 1):
            float(trainer.step(step, index)["loss"])
        return (time.perf_counter() - start) / steps * trainer.steps_per_epoch


def interrupted_epochs(config: Config) -> int | None:
    """Epochs that an interrupted training with a checkpoint in the same place was started with; None without one."""
    checkpoint = run_path(config, config.runs).with_suffix(".safetensors")
    return load_state(checkpoint)["config"]["epochs"] if checkpoint.exists() else None


def earlier_training(config: Config, images: ImageSet, epochs: int | None) -> Run | None:
    """The training that an earlier call finished in the same place; None where there is none.

    Args:
        config: of the training that is asked for.
        images: likewise.
        epochs: that were asked for; None takes any number.

    Raises:
        ValueError: where another training lies there, which this one would replace.
    """
    path = run_path(config, config.results)
    if not (path.exists() and path.with_suffix(".safetensors").exists()):
        return None
    record = read_record(path)
    done = record["config"]["epochs"]
    if record.get("fingerprint") != fingerprint(images):
        raise ValueError(f"{path} was trained on other images than are in {config.data} now: give another --out")
    if epochs not in (None, done):
        raise ValueError(f"{path} was trained for {done} epochs and not {epochs}: give another --out")
    return Run(load_encoder(path.with_suffix(".safetensors")), record, path)


def train_within(
    images: ImageSet,
    out: Path,
    source: str,
    minutes: float,
    epochs: int | None,
    seed: int,
    progress: bool,
    device: str = "auto",
) -> tuple[Run, float | None]:
    """Train without labels for about `minutes`; the run, and the estimate of its duration in seconds.

    A training that was interrupted under the same `out` is resumed, with the epochs it was started with; one that was
    finished is not repeated, and has no estimate.

    Args:
        images: to train on; their labels are not used.
        out: the run's record and encoder are written under it.
        source: where the images come from, for the record.
        minutes: of training to aim for, above 0.
        epochs: train this many instead, at least 1.
        seed: of weights, order, views and walks.
        progress: print the estimate and show a progress bar.
        device: "auto", "cpu", "cuda".

    Raises:
        ValueError: for minutes or epochs out of range, as `finished` and as `train.fit`.
    """
    check_length(minutes, epochs)
    unlabelled, config = ImageSet(images.images), settings(len(images), out, source, seed=seed, device=device)
    if earlier := earlier_training(config, unlabelled, epochs):
        if progress:
            print(printable(f"{earlier.path} is used; another --out trains anew"))
        return earlier, None
    if progress:
        print("timing a few steps")
    per_epoch = seconds_per_epoch(config, unlabelled)
    epochs = epochs or interrupted_epochs(config) or max(LEAST_EPOCHS, min(MOST_EPOCHS, int(60 * minutes / per_epoch)))
    if progress:
        estimate = f"about {epochs * per_epoch / 60:.1f} minutes on this machine"
        print(f"training {config.encoder} for {epochs} epochs: {estimate}")
    config = settings(len(images), out, source, epochs, seed, device)
    run = fit(config, unlabelled, unlabelled, progress)
    remove_empty(run_path(config, config.runs).parent, Path(config.runs))
    return run, epochs * per_epoch


def check_length(minutes: float, epochs: int | None) -> None:
    """Refuse a training of no length.

    Raises:
        ValueError: for minutes that are not above 0, epochs below 1.
    """
    if not minutes > 0 or (epochs is not None and epochs < 1):
        raise ValueError(f"minutes must be above 0 and epochs at least 1, got {minutes} and {epochs}")


def remove_empty(folder: Path, top: Path) -> None:
    """Remove a folder and those above it up to `top`, as far as they are empty: what others put there stays."""
    with suppress(OSError):  # not empty
        for place in (folder, *folder.parents):
            place.rmdir()
            if place == top:
                return
