"""Train one method on one data set, resume it exactly, evaluate it, and leave a run record.

    python -m sagkit.train --method sag-vicreg --data cifar100 --profile laptop --seed 0 [--any-config-field ...]

The only module that reads configuration; everything below it takes explicit arguments. Randomness is a pure function
of (seed, what for, step or epoch), so that a resumed run needs no generator state: the checkpoint at the end of each
epoch holds weights, optimiser and the clock, and the rest follows from the epoch's number. [K]
"""

from __future__ import annotations

import logging
import sys
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning_fabric import Fabric

from sagkit.augment import Augmentation, channel_statistics, two_views
from sagkit.checkpoint import load_state, save_state
from sagkit.config import Config, configure
from sagkit.data import ImageSet, load_images
from sagkit.evaluate import evaluate, local, references, structure
from sagkit.methods import METHODS, SAGVICReg, VICReg, only_process
from sagkit.model import Encoder, extract_features, make_encoder, make_projector
from sagkit.optim import learning_rate, make_optimizer
from sagkit.pairing import WalkPairing
from sagkit.record import load_encoder, provenance, record_path, save_encoder, write_record

READOUT_BANK, READOUT_QUERIES = 5000, 1000
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # else every fit announces its precision


@dataclass
class Run:
    """A finished run: its encoder, its record (see `record`), and where the record lies."""

    encoder: Encoder
    record: dict
    path: Path


@dataclass
class Clock:
    """Cost of training so far, over all resumptions; evaluation is not in it."""

    core_seconds: float = 0.0
    seconds: float = 0.0
    images: int = 0
    parts: dict[str, float] = field(default_factory=dict)

    def add(self, core_seconds: float, seconds: float, images: int, parts: dict[str, float]) -> None:
        """Add one epoch's cost."""
        self.core_seconds += core_seconds
        self.seconds += seconds
        self.images += images
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + value


def stream(seed: int, purpose: str, index: int = 0, device="cpu") -> torch.Generator:
    """The generator for one purpose at one step or epoch: the same numbers however often a run was interrupted."""
    mixed = zlib.crc32(f"{seed}/{purpose}/{index}".encode())
    return torch.Generator(device).manual_seed(mixed)


def build_method(config: Config, encoder: Encoder, gather=only_process) -> VICReg:
    """The method of a configuration around an encoder.

    Raises:
        ValueError: for an unknown method.
    """
    if config.method not in METHODS:
        raise ValueError(f"unknown method {config.method!r}: choose one of {', '.join(METHODS)}")
    projector = make_projector(
        encoder.feature_width, config.projector_hidden, config.projector_out, config.projector_layers
    )
    terms = {"sim": config.sim, "var": config.var, "cov": config.cov, "gather": gather}
    if config.method == "vicreg":
        return VICReg(encoder, projector, **terms)
    pairing = WalkPairing(
        config.k,
        config.length,
        config.walks,
        config.temperature,
        config.kernel,
        config.mutual,
        config.every,
        config.seed,
    )
    ramp = {"start": config.walk_start * config.epochs, "warmup": config.walk_warmup * config.epochs}
    return SAGVICReg(encoder, projector, pairing=pairing, alpha=config.alpha, keep=config.keep, **ramp, **terms)


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


class Trainer:
    """The state of a run between epochs: model, optimiser, log and clock, and where they are kept."""

    def __init__(self, config: Config, fabric: Fabric, train: ImageSet):
        self.config, self.fabric, self.train = config, fabric, train
        self.path = record_path(config.results, config.profile, config.data, config.method, config.variant, config.seed)
        self.checkpoint = Path(config.runs) / self.path.relative_to(config.results).with_suffix(".safetensors")
        self.images = train.images.to(fabric.device)
        self.augmentation = Augmentation(size=config.view_size, crop_scale=(config.crop_min, 1.0), blur=config.blur)
        encoder = make_encoder(config.encoder, *channel_statistics(train.images))
        gather = only_process if fabric.world_size == 1 else _gather_through(fabric)
        self.method = build_method(config, encoder, gather).to(memory_format=torch.channels_last)
        self.method.watch.cuda = fabric.device.type == "cuda"
        optimizer = make_optimizer(config.optimizer, self.method, config.weight_decay)
        self.module, self.optimizer = fabric.setup(self.method, optimizer)
        self.steps_per_epoch = len(train) // config.batch_size
        self.epoch, self.log, self.clock = 0, [], Clock()

    def run_epoch(self, bar) -> None:
        """One pass over the training images in an order drawn from (seed, epoch); the last odd batch is dropped."""
        config, fabric, cost = self.config, self.fabric, (time.process_time(), time.perf_counter())
        order = torch.randperm(len(self.train), generator=stream(config.seed, "order", self.epoch))
        share = config.batch_size // fabric.world_size
        self.module.train()
        sums: dict[str, torch.Tensor] = {}
        for i in range(self.steps_per_epoch):
            first = i * config.batch_size + fabric.global_rank * share
            terms = self.step(self.epoch * self.steps_per_epoch + i, order[first : first + share])
            sums = {name: sums.get(name, 0) + value for name, value in terms.items()}
            bar.update()
        means = {name: float(total) / self.steps_per_epoch for name, total in sums.items()}
        if not all(map(torch.isfinite, map(torch.as_tensor, means.values()))):
            raise ValueError(
                f"the loss of epoch {self.epoch + 1} is not finite ({means}): lower lr = {config.lr}; "
                f"the checkpoint of the epoch before is kept at {self.checkpoint}"
            )
        self.clock.add(
            time.process_time() - cost[0],
            time.perf_counter() - cost[1],
            self.steps_per_epoch * config.batch_size,
            self.method.watch.read(),
        )
        self.epoch += 1
        self.log.append({"epoch": self.epoch, **means})

    def step(self, step: int, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """One optimiser step on the images at `index`; returns the detached loss terms."""
        config, watch = self.config, self.method.watch
        rate = learning_rate(
            step,
            config.epochs * self.steps_per_epoch,
            round(config.warmup_epochs * self.steps_per_epoch),
            config.lr,
            config.batch_size,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with watch("augmentation"):
            generator = stream(config.seed, f"views/{self.fabric.global_rank}", step, self.fabric.device)
            batch = self.images[index.to(self.images.device)]
            view_a, view_b = two_views(batch, self.augmentation, generator=generator)
        torch.manual_seed(zlib.crc32(f"{config.seed}/model/{step}".encode()))  # dropout and the like
        loss = self.module(
            view_a.contiguous(memory_format=torch.channels_last),
            view_b.contiguous(memory_format=torch.channels_last),
            step / self.steps_per_epoch,
        )
        with watch("backward"):
            self.fabric.backward(loss.total)
        with watch("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.total.detach(), **loss.terms}

    def save(self) -> None:
        """Write the checkpoint of the epoch just finished."""
        if self.fabric.is_global_zero:
            state = {
                "config": self.config.to_dict(),
                "epoch": self.epoch,
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "log": self.log,
                "clock": vars(self.clock),
            }
            save_state(self.checkpoint, state)
        self.fabric.barrier()

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one; one of another configuration is an error."""
        if not self.checkpoint.exists():
            return
        state = load_state(self.checkpoint)
        now = self.config.to_dict()
        differing = [k for k in now if k not in FREE_FIELDS and state["config"].get(k) != now[k]]
        if differing:
            changes = ", ".join(f"{k} {state['config'].get(k)} -> {now[k]}" for k in differing)
            raise ValueError(f"{self.checkpoint} is of another configuration ({changes}): delete it or set variant")
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.log, self.clock = state["epoch"], state["log"], Clock(**state["clock"])


FREE_FIELDS = {"threads", "results", "runs", "data_root", "readout_every", "probe", "accelerator"}


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


def _gather_through(fabric: Fabric):
    def gather(x: torch.Tensor) -> torch.Tensor:
        return fabric.all_gather(x, sync_grads=x.requires_grad).flatten(0, 1)

    return gather


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
