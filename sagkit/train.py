"""Train one method on one data set, resume it exactly, evaluate it, and leave a run record.

    python -m sagkit.train --method sag-vicreg --data cifar100 --profile laptop --seed 0 [--any-config-field ...]

This module and `trainer` are the only ones that read configuration; everything below them takes explicit arguments.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sagkit.build import check, make_fabric, native_precision
from sagkit.config import Config, configure
from sagkit.data import load_bank, load_images
from sagkit.doctor import examine_run, tell
from sagkit.evaluate import evaluate, label_free, local, references, structure, view_of
from sagkit.model import Encoder, extract_features
from sagkit.record import load_encoder, provenance, run_path, save_encoder, snapshot_path, write_record
from sagkit.resume import FREE_FIELDS, branch, resume
from sagkit.subsets import family
from sagkit.timing import peak_memory
from sagkit.trainer import Trainer, stream
from sagkit.vectors import Examples, VectorSet

READOUT_BANK, READOUT_QUERIES = 5000, 1000
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # else every fit announces its precision


@dataclass
class Run:
    """A finished run: its encoder, its record (see `record`), and where the record lies."""

    encoder: Encoder
    record: dict
    path: Path


def stored_run(config: Config, results: str | Path) -> Run | None:
    """The finished run of this configuration whose record and encoder lie under `results`; None where there is none.

    Fields that do not change what is learned (`resume.FREE_FIELDS`, precision, devices) may differ.
    """
    path = run_path(config, results)
    weights = path.with_suffix(".safetensors")
    if not (path.exists() and weights.exists()):
        return None
    record = json.loads(path.read_text())
    then, now = Config().to_dict() | record["config"], config.to_dict()
    if any(then[name] != now[name] for name in now.keys() - FREE_FIELDS - {"precision", "devices"}):
        return None
    return Run(load_encoder(weights), record, path)


def fit(
    config: Config,
    train: Examples | None = None,
    queries: Examples | None = None,
    progress: bool = True,
    after_epoch: Callable[[Trainer], None] | None = None,
) -> Run:
    """Train, evaluate and record one run; continue it if a checkpoint of the same configuration exists.

    Args:
        config: the run; see `config.configure`.
        train: training images, or vectors under their view; loaded by `config.data` when not given.
        queries: images to evaluate on; likewise (test, or validation under split "fit").
        progress: show a progress bar on standard error.
        after_epoch: called before each epoch's checkpoint; may add to `trainer.log[-1]`, and stops the run by raising.

    Raises:
        ValueError: for impossible settings, a batch larger than the data, or a loss that is not finite.
        OSError: where record or checkpoint cannot be written.
    """
    check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    train, queries = _sets(config, train, queries)
    if config.precision == "auto":  # resolved before anything is recorded, so that a run repeats exactly elsewhere
        config = replace(config, precision=native_precision(config.accelerator))
    fabric = make_fabric(config)
    fabric.launch()
    torch.manual_seed(config.seed)
    trainer = Trainer(config, fabric, train)
    if not resume(trainer) and config.trunk:
        branch(trainer, config.trunk)
    bar, told = _bar(config, trainer, progress and fabric.is_global_zero), set()
    for epoch in range(trainer.epoch, config.epochs):
        trainer.run_epoch(bar)
        begin = time.perf_counter()
        if config.readout_every and ((epoch + 1) % config.readout_every == 0 or epoch + 1 == config.epochs):
            trainer.log[-1] |= readout(trainer.method.encoder, train, config)
        if after_epoch is not None:
            after_epoch(trainer)
        trainer.clock.add(0.0, 0.0, 0, {"evaluation": time.perf_counter() - begin})
        bar.set_postfix({k: f"{v:.3f}" for k, v in trainer.log[-1].items() if k in ("loss", "knn", "spearman_pairs")})
        if config.snapshots and fabric.is_global_zero and (epoch + 1) & epoch == 0:
            save_encoder(snapshot_path(trainer.path, epoch + 1), trainer.method.encoder, config.encoder)
        trainer.save()
        for diagnosis in examine_run(trainer.log):
            if fabric.is_global_zero and diagnosis.name not in told:
                warnings.warn(f"epoch {epoch + 1}, {tell([diagnosis])}", stacklevel=2)
            told.add(diagnosis.name)
    bar.close()
    return finish(trainer, queries)


def _sets(config: Config, train: Examples | None, queries: Examples | None) -> tuple[Examples, Examples]:
    """What is trained on and judged on: as given, or loaded."""
    root = config.data_root or None
    if train is None:
        train = load_images(config.data, config.split, root=root)
    if isinstance(train, VectorSet) != isinstance(queries, VectorSet):
        kind = type(train).__name__
        raise ValueError(f"train is of type {kind} and queries are not: give queries as {kind}, too")
    if queries is None:
        queries = load_images(config.data, judged_on(config), root=root)
    if config.batch_size > len(train):
        raise ValueError(f"batch_size {config.batch_size} exceeds the {len(train)} training images: lower batch_size")
    return train, queries


def judged_on(config: Config) -> str:
    """The split that a run is judged on: test, or validation where a part of train was held back for it."""
    return "test" if config.split == "train" else "val"


def readout(encoder: Encoder, train: Examples, config: Config) -> dict[str, float]:
    """kNN and Spearman on a fixed sample of the training images: for watching a run, never for a table."""
    if train.labels is None:
        return label_free(encoder, train.images, view=view_of(train))
    order = torch.randperm(len(train), generator=stream(0, "readout"))
    bank = order[: min(READOUT_BANK, len(train) * 3 // 4)]
    asked = order[len(bank) : len(bank) + READOUT_QUERIES]
    features = extract_features(encoder, train.images[torch.cat([bank, asked])])
    h_bank, h_asked = features[: len(bank)], features[len(bank) :]
    labels = train.labels[asked]
    figures = local(h_bank, train.labels[bank], h_asked, labels, None, probe=False)
    primary = dict(list(references(config.data, train.class_names).items())[:1])
    return figures | structure(h_asked, labels, primary)


def finish(trainer: Trainer, queries: Examples) -> Run:
    """Store the encoder, evaluate it as stored, write the record, and drop the checkpoint."""
    config, fabric = trainer.config, trainer.fabric
    stored = trainer.path.with_suffix(".safetensors")
    if not fabric.is_global_zero:
        fabric.barrier()  # a process that leaves early would take the evaluating one with it
        return Run(trainer.method.encoder, {}, trainer.path)
    save_encoder(stored, trainer.method.encoder, config.encoder)
    encoder = load_encoder(stored).to(fabric.device)
    bank = trainer.train
    if family(config.data) != config.data:  # part of a data set: labels of all of it may be used to judge
        bank = load_bank(config.data, config.split, config.data_root or None)
    begin = time.perf_counter()
    metrics = evaluate(encoder, bank, queries, config.data, config.probe, config.seed, config.resamplings)
    trainer.clock.add(0.0, 0.0, 0, {"evaluation": time.perf_counter() - begin})
    record = record_of(trainer, metrics)
    write_record(trainer.path, record)
    trainer.checkpoint.unlink(missing_ok=True)
    fabric.barrier()
    return Run(encoder, record, trainer.path)


def record_of(trainer: Trainer, metrics: dict[str, float]) -> dict:
    """The record of a run that is over: its settings, cost, origin, scores (fractions) and log."""
    config, clock = trainer.config, trainer.clock
    walking = sum(clock.parts.get(part, 0.0) for part in ("graph", "walk", "rebuild"))
    return {
        "method": config.method,
        "variant": config.variant,
        "data": config.data,
        "train_set": trainer.path.parent.name,
        "profile": config.profile,
        "seed": config.seed,
        "evaluated_on": judged_on(config),
        "core_seconds": round(clock.core_seconds, 1),
        "images_per_second": round(clock.images / clock.seconds, 1) if clock.seconds else None,
        "walk_share": round(walking / clock.seconds, 5) if clock.seconds else 0.0,
        "training_seconds": round(clock.seconds, 2),
        "seconds": {name: round(value, 2) for name, value in sorted(clock.parts.items())},
        "peak_memory_mb": peak_memory(),
        "images": len(trainer.train),
        "parameters": sum(p.numel() for p in trainer.method.encoder.parameters()),
        "command": command_of(config),
        "config": config.to_dict(),
        **({"trunk": trainer.trunk} if trainer.trunk else {}),
        **trainer.origin,
        "evaluated_commit": provenance()["commit"],
        "metrics": {name: round(float(value), 5) for name, value in metrics.items()},
        "log": [{k: round(v, 5) for k, v in entry.items()} for entry in trainer.log],
    }


def command_of(config: Config) -> str:
    """The command that gives this run, as it can be pasted into a shell."""
    return "python -m sagkit.train " + shlex.join(flags(config))


def flags(config: Config) -> list[str]:
    """The command line that gives this configuration: what its profile does not say, and always the precision."""
    preset = configure(config.method, config.profile).to_dict()
    always = ("method", "data", "profile", "seed", "precision")
    now = config.to_dict()
    return spelled({k: now[k] for k in (*always, *(k for k in now if k not in always and now[k] != preset[k]))})


def spelled(fields: dict) -> list[str]:
    """Fields of a configuration, as `Config.to_dict` has them, as words of a command line."""
    words = []
    for name, value in fields.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return words


def _bar(config: Config, trainer: Trainer, shown: bool):
    from tqdm.auto import tqdm

    total = config.epochs * trainer.steps_per_epoch
    done = trainer.epoch * trainer.steps_per_epoch
    return tqdm(total=total, initial=done, desc=f"{config.method} seed {config.seed}", unit="step", disable=not shown)


def parse(arguments: list[str]) -> Config:
    """The configuration that words of a command line ask for: of its profile and method, with the fields it names.

    Raises:
        ValueError: for an unknown profile.
        SystemExit: for an unknown flag or a value of another type, told on standard error.
    """
    import tyro

    chosen = {}
    for i, word in enumerate(arguments):
        flag, _, value = word.partition("=")
        if flag in ("--profile", "--method"):
            chosen[flag[2:]] = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
    return tyro.cli(Config, default=configure(**chosen), args=arguments, prog="python -m sagkit.train")


def main(arguments: list[str] | None = None) -> None:
    """Command line: `--profile` and `--method` choose the defaults, any other field of Config overrides them."""
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        run = fit(config)
    except (ValueError, OSError) as error:
        raise SystemExit(f"sagkit.train: {error}") from None
    if run.record:  # the first process has it
        print(f"record: {run.path}")
    for name, value in run.record.get("metrics", {}).items():
        print(f"  {name:28s} {value:.4f}")


if __name__ == "__main__":
    main()
