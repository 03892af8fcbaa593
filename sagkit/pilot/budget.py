"""A training that fits into a given time: settings by number of images and hardware, and an estimate of its duration.

    epochs = 60 minutes / seconds_per_epoch,  measured on a few steps; at least LEAST_EPOCHS, at most MOST_EPOCHS

[K] all of it.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from sagkit.data.load import ImageSet
from sagkit.train.config import Config, configure
from sagkit.train.record import load_state, run_path
from sagkit.train.trainer import Run, Trainer, fit, make_fabric, native_precision

LEAST_EPOCHS, MOST_EPOCHS = 10, 400


def settings(n: int, out: Path, source: str, epochs: int = LEAST_EPOCHS, seed: int = 0) -> Config:
    """The training of a pilot on n images: network by hardware, batch and neighbours by n."""
    gpu = torch.cuda.is_available()
    batch = max(16, min(256, 2 ** int(math.log2(n / 8))))  # small folders need the steps more than the batch
    return configure(
        "sag-vicreg",
        "laptop",
        data=source,
        encoder="resnet18" if gpu else "resnet10-w16",
        view_size=32,
        batch_size=batch,
        k=max(1, min(10, batch // 10)),
        lr=2e-3,
        epochs=epochs,
        readout_every=max(1, epochs // 3),
        precision=native_precision(),
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


def train_within(
    images: ImageSet, out: Path, source: str, minutes: float, epochs: int | None, seed: int, progress: bool
) -> tuple[Run, float]:
    """Train without labels for about `minutes`; the run, and the estimate of its duration in seconds.

    A training that was interrupted under the same `out` is resumed, with the epochs it was started with.

    Args:
        images: to train on; their labels are not used.
        out: the run's record and encoder are written under it.
        source: where the images come from, for the record.
        minutes: of training to aim for, above 0.
        epochs: train this many instead, at least 1.
        seed: of weights, order, views and walks.
        progress: print the estimate and show a progress bar.

    Raises:
        ValueError: for minutes or epochs out of range, and as `train.fit`.
    """
    if not minutes > 0 or (epochs is not None and epochs < 1):
        raise ValueError(f"minutes must be above 0 and epochs at least 1, got {minutes} and {epochs}")
    unlabelled, config = ImageSet(images.images), settings(len(images), out, source, seed=seed)
    per_epoch = seconds_per_epoch(config, unlabelled)
    epochs = epochs or interrupted_epochs(config) or max(LEAST_EPOCHS, min(MOST_EPOCHS, int(60 * minutes / per_epoch)))
    if progress:
        estimate = f"about {epochs * per_epoch / 60:.1f} minutes on this machine"
        print(f"training {config.encoder} for {epochs} epochs: {estimate}")
    config = settings(len(images), out, source, epochs, seed)
    run = fit(config, unlabelled, unlabelled, progress)
    shutil.rmtree(config.runs)  # the finished run's checkpoint was deleted: empty folders
    return run, epochs * per_epoch
