"""Train one method on one data set, resume it exactly, evaluate it, and leave a run record.

    python -m sagkit.train --method sag-vicreg --data cifar100 --profile laptop --seed 0 [--any-config-field ...]

This module and `trainer` are the only ones that read configuration; everything below them takes explicit arguments.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric

from sagkit.config import Config, configure
from sagkit.data import ImageSet, load_images
from sagkit.evaluate import evaluate, local, references, structure
from sagkit.model import Encoder, extract_features
from sagkit.record import load_encoder, provenance, save_encoder, write_record
from sagkit.trainer import Trainer, native_precision, stream

READOUT_BANK, READOUT_QUERIES = 5000, 1000
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # else every fit announces its precision


@dataclass
class Run:
    """A finished run: its encoder, its record (see `record`), and where the record lies."""

    encoder: Encoder
    record: dict
    path: Path


def fit(config: Config, train: ImageSet | None = None, queries: ImageSet | None = None, progress: bool = True) -> Run:
    """Train, evaluate and record one run; continue it if a checkpoint of the same configuration exists.

    Args:
        config: the run; see `config.configure`.
        train: training images; loaded by `config.data` when not given.
        queries: images to evaluate on; likewise (test, or validation under split "fit").
        progress: show a progress bar on standard error.

    Raises:
        ValueError: for a batch smaller than 2 or larger than the data, or a loss that is not finite.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    train = train or load_images(config.data, config.split, root=config.data_root or None)
    queries = queries or load_images(
        config.data, "test" if config.split == "train" else "val", root=config.data_root or None
    )
    if not 2 <= config.batch_size <= len(train):
        raise ValueError(f"batch_size {config.batch_size} must be between 2 and the {len(train)} training images")
    if config.precision == "auto":  # resolved before anything is recorded, so that a run repeats exactly elsewhere
        config = replace(config, precision=native_precision(config.accelerator))
    fabric = Fabric(accelerator=config.accelerator, devices=config.devices, precision=config.precision)
    fabric.launch()
    torch.manual_seed(config.seed)
    trainer = Trainer(config, fabric, train)
    trainer.resume()
    bar = _bar(config, trainer, progress and fabric.is_global_zero)
    for epoch in range(trainer.epoch, config.epochs):
        trainer.run_epoch(bar)
        if config.readout_every and ((epoch + 1) % config.readout_every == 0 or epoch + 1 == config.epochs):
            trainer.log[-1] |= readout(trainer.method.encoder, train, config)
        bar.set_postfix({k: f"{v:.3f}" for k, v in trainer.log[-1].items() if k in ("loss", "knn", "spearman_pairs")})
        trainer.save()
    bar.close()
    return finish(trainer, queries)


def readout(encoder: Encoder, train: ImageSet, config: Config) -> dict[str, float]:
    """kNN and Spearman on a fixed sample of the training images: for watching a run, never for a table."""
    if train.labels is None:
        return {}
    order = torch.randperm(len(train), generator=stream(0, "readout"))
    bank = order[: min(READOUT_BANK, len(train) * 3 // 4)]
    asked = order[len(bank) : len(bank) + READOUT_QUERIES]
    features = extract_features(encoder, train.images[torch.cat([bank, asked])])
    h_bank, h_asked = features[: len(bank)], features[len(bank) :]
    labels = train.labels[asked]
    figures = local(h_bank, train.labels[bank], h_asked, labels, None, probe=False)
    primary = dict(list(references(config.data, train.class_names).items())[:1])
    return figures | structure(h_asked, labels, primary)


def finish(trainer: Trainer, queries: ImageSet) -> Run:
    """Store the encoder, evaluate it as stored, write the record, and drop the checkpoint."""
    config, clock = trainer.config, trainer.clock
    stored = trainer.path.with_suffix(".safetensors")
    if not trainer.fabric.is_global_zero:
        return Run(trainer.method.encoder, {}, trainer.path)
    save_encoder(stored, trainer.method.encoder, config.encoder)
    encoder = load_encoder(stored).to(trainer.fabric.device)
    metrics = evaluate(encoder, trainer.train, queries, config.data, config.probe, config.seed)
    origin = provenance()
    record = {
        "method": config.method,
        "variant": config.variant,
        "data": config.data,
        "train_set": trainer.path.parent.name,
        "profile": config.profile,
        "seed": config.seed,
        "evaluated_on": "test" if config.split == "train" else "val",
        "core_seconds": round(clock.core_seconds, 1),
        "images_per_second": round(clock.images / clock.seconds, 1) if clock.seconds else None,
        "walk_share": round(clock.parts.get("walk", 0) / clock.seconds, 5) if clock.seconds else 0.0,
        "seconds": {name: round(value, 2) for name, value in sorted(clock.parts.items())},
        "parameters": sum(p.numel() for p in trainer.method.encoder.parameters()),
        "command": "python -m sagkit.train " + " ".join(_flags(config)),
        "config": config.to_dict(),
        **origin,
        "evaluated_commit": origin["commit"],
        "metrics": {name: round(float(value), 5) for name, value in metrics.items()},
        "log": [{k: round(v, 5) for k, v in entry.items()} for entry in trainer.log],
    }
    write_record(trainer.path, record)
    trainer.checkpoint.unlink(missing_ok=True)
    return Run(encoder, record, trainer.path)


def _flags(config: Config) -> list[str]:
    preset = configure(config.method, config.profile).to_dict()
    always = ("method", "data", "profile", "seed")
    now = config.to_dict()
    changed = [k for k in now if k not in always and now[k] != preset[k]]
    return [f"--{k.replace('_', '-')} {now[k]}" for k in (*always, *changed)]


def _bar(config: Config, trainer: Trainer, shown: bool):
    from tqdm.auto import tqdm

    total = config.epochs * trainer.steps_per_epoch
    done = trainer.epoch * trainer.steps_per_epoch
    return tqdm(total=total, initial=done, desc=f"{config.method} seed {config.seed}", unit="step", disable=not shown)


def main(arguments: list[str] | None = None) -> None:
    """Command line: `--profile` and `--method` choose the defaults, any other field of Config overrides them."""
    import tyro

    arguments = sys.argv[1:] if arguments is None else arguments
    chosen = {}
    for i, word in enumerate(arguments):
        flag, _, value = word.partition("=")
        if flag in ("--profile", "--method"):
            chosen[flag[2:]] = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
    try:
        preset = configure(**chosen)
        config = tyro.cli(Config, default=preset, args=arguments, prog="python -m sagkit.train")
        run = fit(config)
    except ValueError as error:
        raise SystemExit(f"sagkit.train: {error}") from None
    print(f"record: {run.path}")
    for name, value in run.record["metrics"].items():
        print(f"  {name:28s} {value:.4f}")


if __name__ == "__main__":
    main()
