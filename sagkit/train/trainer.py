"""Optimisers by name and the learning-rate schedule.

    lr(step) = base * B / 256 * (step + 1) / warmup                         while warming up
    lr(step) = base * B / 256 * [f + (1 - f) (1 + cos(pi t)) / 2],  t in [0, 1]   after

Sources: [R] linear scaling with B / 256, warm-up and cosine as in METHOD.md section 6; LARS from lightly, with the
VICReg authors' exclusion of biases and normalisation parameters from adaptation and decay. [K] f = 0.001 at the end.

----
What a configuration asks for, made: its checks, its device and precision, its views, encoder and training method.

    check(config);  fabric = make_fabric(config);  encoder = build_encoder(config, train)
    view, local = build_views(config, train);      method = build_method(config, encoder)

Below this module arguments are explicit; `trainer` stands on it. [K]

----
The state of a run between epochs: model, optimiser, schedule position, log and clock, and how it is kept.

Randomness is a pure function of (seed, what for, step or epoch), so that a resumed run needs no generator state: the
checkpoint at the end of each epoch holds weights, optimiser and the clock, and the rest follows from the epoch's
number. [K]

----
How a run goes on: from its own checkpoint after an interruption, or from another run's that was the same so far.

    VICReg  o---o---o---o---o---o---o      --keep-at 3
    SAG             '---o---o---o---o      --trunk runs/laptop/cifar100/vicreg-seed0.epoch3.safetensors

Before its ramp begins, a walking run takes the very steps of VICReg. Runs that differ in their pairing alone may
therefore share those epochs: a branch ends with the same weights as the run trained whole, and the trunk's cost counts
as its own. Under scope queue it may not, because the queue fills from the first step. [K]

----
Train one method on one data set, resume it exactly, evaluate it, and leave a run record.

    python -m sagkit.train --method sag-vicreg --data cifar100 --profile laptop --seed 0 [--any-config-field ...]

This module and `trainer` are the only ones that read configuration; everything below them takes explicit arguments.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from sagkit.augment import NO_COLOUR, Augmentation, channel_statistics
from sagkit.data.load import family, load_bank, load_images
from sagkit.data.series import TRIED, Examples, VectorSet
from sagkit.data.taxonomy import superclasses
from sagkit.metrics.evaluate import evaluate, label_free, local, references, structure, view_of
from sagkit.model import NAME, Encoder, channels_last, extract_features, make_encoder, make_projector
from sagkit.pairing import Queue
from sagkit.train.config import PROFILES, Config, configure
from sagkit.train.controls import PAIRS, make_pairing
from sagkit.train.distill import DINO, IJEPA
from sagkit.train.doctor import examine_run, tell
from sagkit.train.methods import (
    METHODS,
    DatasetSAGBarlowTwins,
    DatasetSAGVICReg,
    Method,
    Ramp,
    SAGBarlowTwins,
    SAGVICReg,
    VICReg,
    only_process,
)
from sagkit.train.record import (
    load_encoder,
    load_state,
    provenance,
    run_path,
    save_encoder,
    save_state,
    snapshot_path,
    write_record,
)
from sagkit.train.timing import peak_memory

FINAL_FRACTION = 1e-3
OPTIMIZERS = ("lars", "adamw", "sgd")


def make_optimizer(name: str, module: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """Optimiser over a module's trainable parameters; vectors (biases, norms) are neither decayed nor adapted.

    Args:
        name: "lars" (large batches), "adamw" or "sgd" (momentum 0.9).
        module: what is trained.
        weight_decay: of weight matrices and kernels, at least 0.

    Raises:
        ValueError: for an unknown name, or LARS without weight decay (lightly's then adapts nothing).
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "lars":
        if weight_decay <= 0:
            raise ValueError(f"lars adapts decayed weights only, got weight_decay={weight_decay}: use 1e-4, or sgd")
        from lightly.utils.lars import LARS  # here, because importing lightly takes seconds

        return LARS(groups, lr=0.1, momentum=0.9)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=1e-3)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    raise ValueError(f"unknown optimizer {name!r}: choose one of {', '.join(OPTIMIZERS)}")


def learning_rate(step: int, steps: int, warmup: int, base: float, batch_size: int) -> float:
    """Learning rate of one step; a pure function, so that a resumed run needs no scheduler state.

    Args:
        step: from 0.
        steps: of the whole run.
        warmup: steps of linear rise.
        base: for a batch of 256 images.
        batch_size: of all processes together.
    """
    peak = base * batch_size / 256
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (FINAL_FRACTION + (1 - FINAL_FRACTION) * (1 + math.cos(math.pi * progress)) / 2)


GRAPH_FIELDS = ("k", "length", "temperature", "kernel", "mutual", "restart", "confident")
SCOPES = ("batch", "queue", "dataset")
WALKING = ("sag-vicreg", "barlow-twins")  # methods that may walk
TWO_VIEWS = ("vicreg", *WALKING)  # methods that ask for two views and nothing else
LOCAL_SMALLEST = 0.05  # area of a local view: from here to crop_min, where the global ones begin; DINO's authors


def native_precision(accelerator: str = "auto") -> str:
    """The fastest precision that the hardware computes itself: "bf16-mixed" if it has bfloat16 arithmetic, else
    "32-true", because emulated bfloat16 is slower than float32 (1.6 times, on an Intel Xeon without AVX512-BF16).

    Args:
        accelerator: as Lightning Fabric names it; "auto" is CUDA where there is a device, else the CPU.
    """
    if accelerator in ("cuda", "gpu") or (accelerator == "auto" and torch.cuda.is_available()):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator in ("cpu", "auto"):
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions of torch
        native = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    else:
        native = False
    return "bf16-mixed" if native else "32-true"


def check(config: Config) -> None:
    """Refuse impossible settings before anything is loaded or trained.

    Raises:
        ValueError: naming the setting, its value and the remedy.
    """
    for kind, name, known in (
        ("method", config.method, METHODS),
        ("scope", config.scope, SCOPES),
        ("pairs", config.pairs, PAIRS),
        ("split", config.split, ("train", "fit")),
        ("profile", config.profile, tuple(PROFILES)),
    ):
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}: choose one of {', '.join(known)}")
    if config.epochs < 0:
        raise ValueError(f"epochs must be at least 0, got {config.epochs}")
    if config.batch_size < 2 or config.batch_size % config.devices:
        raise ValueError(
            f"batch_size {config.batch_size} must be at least 2 and a multiple of devices = {config.devices}"
        )
    if not 0 <= config.ema < 1:
        raise ValueError(f"ema must lie in [0, 1), got {config.ema}: 0.996 is DINO's and I-JEPA's")
    if config.clip < 0:
        raise ValueError(f"clip must be at least 0 (0: gradients as they are), got {config.clip}")
    if config.local_views < 0 or (config.local_views and config.method != "dino"):
        raise ValueError(f"local_views {config.local_views} with {config.method}: at least 0, and dino alone has them")
    if config.method in WALKING:
        most = float("inf") if config.keep and config.scope != "dataset" else 1
        if not 0 <= config.alpha <= most:
            raise ValueError(f"alpha must lie in [0, {most}], got {config.alpha}: see Config.alpha and Config.keep")
        if config.scope == "batch" and config.k >= config.batch_size:
            raise ValueError(
                f"k = {config.k} neighbours need k < batch_size = {config.batch_size}: lower k or use a larger batch"
            )


def make_fabric(config: Config) -> Fabric:
    """Lightning Fabric for a configuration.

    Raises:
        ValueError: for an accelerator, a number of devices or a precision that is not to be had here.
    """
    try:
        return Fabric(accelerator=config.accelerator, devices=config.devices, precision=config.precision)
    except (RuntimeError, ValueError) as error:
        setting = f"accelerator {config.accelerator!r}, devices {config.devices}, precision {config.precision!r}"
        raise ValueError(f"{setting} cannot be had here ({error}): try --accelerator cpu --devices 1") from None


def build_encoder(config: Config, train: Examples) -> Encoder:
    """The encoder of a configuration under the statistics of what it is trained on, tried once.

    Raises:
        ValueError: where it cannot encode a view, or the method needs images and gets vectors.
    """
    if isinstance(train, VectorSet):
        if config.method not in TWO_VIEWS:
            raise ValueError(f"{config.method} needs images: of vectors, choose one of {', '.join(TWO_VIEWS)}")
        if NAME.fullmatch(config.encoder) is None:
            raise ValueError(f"{config.encoder} encodes images: of vectors, use mlp-w128-l2; of series, conv1d-w32-l3")
        encoder = make_encoder(config.encoder, *train.statistics())
        blank = train.values[:1].expand(2, *train.values[0].shape)
        what, remedy = f"values {tuple(train.values.shape)}", "mlp takes (N, F), conv1d takes (N, C, T)"
    else:
        encoder = make_encoder(config.encoder, *channel_statistics(train.images))
        blank = torch.zeros(2, 3, config.view_size, config.view_size)
        what, remedy = f"views of {config.view_size} pixels", "change view_size or encoder"
    try:
        with torch.no_grad():
            encoder.eval()(blank)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"{config.encoder} cannot encode {what} ({error}): {remedy}") from None
    return encoder.train()


def build_views(config: Config, train: Examples) -> tuple[Callable, Callable]:
    """The view of a configuration, and the small local one; of vectors, both are their own."""
    if isinstance(train, VectorSet):
        return train.view, train.view
    recipe = {"blur": config.blur, **({} if config.colour else NO_COLOUR)}
    view = Augmentation(size=config.view_size, crop_scale=(config.crop_min, 1.0), **recipe)
    return view, Augmentation(size=config.local_size, crop_scale=(LOCAL_SMALLEST, config.crop_min), **recipe)


def fingerprint(train: Examples) -> str:
    """Shape and checksum of what is trained on and, of vectors, of what their view makes of the first of them."""
    told = f"{tuple(train.images.shape)} {zlib.crc32(train.images.numpy()):08x}"
    if isinstance(train, VectorSet):
        seen = train.view(train.values[:TRIED].clone(), torch.Generator().manual_seed(0))
        told += f", view {zlib.crc32(seen.contiguous().numpy()):08x}"
    return told


def build_method(config: Config, encoder: nn.Module, gather=only_process, groups=None) -> Method:
    """The method of a configuration around an encoder; `groups` (N,) are superclasses of the training images."""
    if config.method == "dino":
        head = config.projector_hidden, config.projector_out, config.prototypes
        return DINO(encoder, *head, config.ema, config.epochs)
    if config.method == "ijepa":
        predictor = config.predictor_width, config.predictor_depth
        return IJEPA(encoder, config.view_size, *predictor, config.ema, config.epochs)
    projector = make_projector(
        encoder.feature_width, config.projector_hidden, config.projector_out, config.projector_layers
    )
    terms = {"gather": gather}
    if config.method != "barlow-twins":
        terms |= {"sim": config.sim, "var": config.var, "cov": config.cov}
    if config.method == "vicreg":
        return VICReg(encoder, projector, **terms)
    ramp = Ramp(config.alpha, config.walk_start * config.epochs, config.walk_warmup * config.epochs)
    graph = {name: getattr(config, name) for name in GRAPH_FIELDS}
    if config.scope == "dataset":
        pairing = make_pairing(config.pairs, True, groups, config.matched, **graph)
        kind = DatasetSAGBarlowTwins if config.method == "barlow-twins" else DatasetSAGVICReg
        return kind(encoder, projector, pairing=pairing, ramp=ramp, rebuild=config.graph_epochs, **terms)
    graph |= {name: getattr(config, name) for name in ("walks", "every", "seed", "unique")}
    pairing = make_pairing(config.pairs, False, groups, config.matched, **graph)
    queue = Queue(config.queue_batches) if config.scope == "queue" else None
    kind = SAGBarlowTwins if config.method == "barlow-twins" else SAGVICReg
    return kind(encoder, projector, pairing=pairing, ramp=ramp, keep=config.keep, queue=queue, **terms)


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


class Trainer:
    """The state of a run between epochs: model, optimiser, log and clock, and where they are kept."""

    def __init__(self, config: Config, fabric: Fabric, train: Examples):
        self.config, self.fabric, self.train = config, fabric, train
        self.path = run_path(config, config.results)
        self.checkpoint = run_path(config, config.runs).with_suffix(".safetensors")
        for path in (self.path, self.checkpoint):
            path.parent.mkdir(parents=True, exist_ok=True)  # now rather than after hours of training
        self.origin = provenance()  # of the code that trains, whatever happens to the checkout meanwhile
        self.fingerprint = fingerprint(train)
        self.images = train.images.to(fabric.device)
        self.augmentation, self.local_augmentation = build_views(config, train)
        encoder = build_encoder(config, train)
        gather = only_process if fabric.world_size == 1 else gather_through(fabric)
        groups = superclass_of_each(config.data, train)
        self.method = build_method(config, encoder, gather, groups).to(memory_format=torch.channels_last)
        self.method.watch.cuda = fabric.device.type == "cuda"
        optimizer = make_optimizer(config.optimizer, self.method, config.weight_decay)
        self.module, self.optimizer = fabric.setup(self.method, optimizer)
        self.steps_per_epoch = len(train) // config.batch_size
        self.epoch, self.log, self.clock = 0, [], Clock()
        self.trunk: dict | None = None  # where the run branched off from, see `resume.branch`

    def run_epoch(self, bar) -> None:
        """One pass over the training images in an order drawn from (seed, epoch); the last odd batch is dropped."""
        config, fabric, cost = self.config, self.fabric, (time.process_time(), time.perf_counter())
        order = torch.randperm(len(self.train), generator=stream(config.seed, "order", self.epoch))
        share = config.batch_size // fabric.world_size
        with self.method.watch("rebuild"):
            self.method.begin_epoch(self.epoch, self.clean_features)
        self.module.train()
        sums: dict[str, torch.Tensor] = {}
        for i in range(self.steps_per_epoch):
            first = i * config.batch_size + fabric.global_rank * share
            step, index = self.epoch * self.steps_per_epoch + i, order[first : first + share]
            try:
                terms = self.step(step, index)
            except ValueError as error:
                raise ValueError(f"{error}; {self.keep_step(step, index)}") from None
            sums = {name: sums.get(name, 0) + value for name, value in terms.items()}
            bar.update()
        means = {name: float(total) / self.steps_per_epoch for name, total in sums.items()}
        # A finite loss may have had gradients that were not; such weights must not replace the last good checkpoint.
        if not all(bool(torch.isfinite(p).all()) for p in self.method.parameters()):
            raise ValueError(
                f"the weights after epoch {self.epoch + 1} are not finite: lower lr = {config.lr}; "
                f"the checkpoint of the epoch before is kept at {self.checkpoint}"
            )
        core_seconds = fabric.all_reduce(torch.tensor(time.process_time() - cost[0]), reduce_op="sum")
        self.clock.add(
            float(core_seconds),
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
        rank = self.fabric.global_rank
        torch.manual_seed(stream(config.seed, f"model/{rank}", step).initial_seed())  # dropout and the like
        device, epoch = self.fabric.device, step / self.steps_per_epoch
        index = index.to(device)
        with watch("walk"):
            partner = self.method.second_images(index, epoch, stream(config.seed, f"walks/{rank}", step, device))
        with watch("augmentation"):
            generator = stream(config.seed, f"views/{rank}", step, device)
            views = [self.augmentation(self.images[i], generator) for i in (index, partner)[: self.method.views]]
            local = [self.local_augmentation(self.images[index], generator) for _ in range(config.local_views)]
        views, local = ([channels_last(view) for view in some] for some in (views, local))
        loss = self.module(*views, epoch, *([local] if local else []))
        if not torch.isfinite(loss.total):  # before the weights follow it; on a GPU the one wait of a step
            terms = ", ".join(f"{name} {float(value):.4g}" for name, value in loss.terms.items())
            raise ValueError(f"the loss of epoch {self.epoch + 1} is not finite ({terms}): lower lr = {config.lr}")
        with watch("backward"):
            self.fabric.backward(loss.total)
            if config.clip:
                self.fabric.clip_gradients(self.module, self.optimizer, max_norm=config.clip)
            self.method.after_backward(epoch)
        with watch("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.method.after_step(epoch)
        return {"loss": loss.total.detach(), **loss.terms}

    def clean_features(self) -> torch.Tensor:
        """Features (N, F) of all training images without augmentation, the same on every process."""
        with self.fabric.autocast():  # as precise as the training itself, and as fast
            features = extract_features(self.method.encoder, self.images).to(self.fabric.device)
        return self.fabric.broadcast(features) if self.fabric.world_size > 1 else features

    def state(self) -> dict:
        """All that a checkpoint holds."""
        return {
            "config": self.config.to_dict(),
            "epoch": self.epoch,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),  # the gradient scaler of 16-mixed
            "log": self.log,
            "clock": vars(self.clock),
            "origin": self.origin,
            "images": self.fingerprint,
            "trunk": self.trunk,
        }

    def save(self) -> None:
        """Write the checkpoint of the epoch just finished."""
        if self.fabric.is_global_zero:
            save_state(self.checkpoint, self.state())
            if self.epoch in self.config.keep_at:
                save_state(snapshot_path(self.checkpoint, self.epoch), self.state())
        self.fabric.barrier()

    def keep_step(self, step: int, index: torch.Tensor) -> str:
        """Store a step that failed, for `doctor.replay`; says where, and where the last good checkpoint is."""
        kept = self.checkpoint.with_suffix(f".step{step}.safetensors")
        if self.fabric.is_global_zero:
            save_state(kept, {**self.state(), "step": step, "index": index})
        before = f", the checkpoint of epoch {self.epoch} at {self.checkpoint}" if self.epoch else ""
        return f"its batch and state are kept for replay at {kept}{before}"


def replay(path, train: Examples) -> dict[str, float]:
    """Repeat a step that a run kept because its loss was not finite; its loss terms, if they are finite this time.

    Args:
        path: the file that the run's error message names.
        train: the images, or vectors, it trained on.

    Raises:
        ValueError: for other images, and again where the loss is not finite. Under scope queue the oldest batch of the
            queue is gone, and a run of several processes is repeated on the first one's share.
    """
    stored = load_state(path)
    with tempfile.TemporaryDirectory() as scratch:
        config = Config.from_dict(stored["config"])
        config = replace(config, results=scratch, runs=scratch, accelerator="cpu", devices=1)
        trainer = Trainer(config, make_fabric(config), train)
    if trainer.fingerprint != stored["images"]:
        raise ValueError(f"{path} was kept of other images ({stored['images']}): give those the run trained on")
    trainer.method.load_state_dict(stored["method"])
    trainer.optimizer.load_state_dict(stored["optimizer"])
    trainer.epoch, pairing = stored["epoch"], getattr(trainer.method, "pairing", None)
    if hasattr(pairing, "step"):
        pairing.step = max(0, pairing.step - 1)  # stored after the failed step had counted itself
    trainer.module.train()
    return {name: float(value) for name, value in trainer.step(stored["step"], stored["index"]).items()}


def superclass_of_each(data: str, images: Examples) -> torch.Tensor | None:
    """Superclass of every image (N,), or None where none are known."""
    if images.labels is None:
        return None
    try:
        group = superclasses(family(data), images.class_names)[1]
    except ValueError:
        return None
    return torch.as_tensor(group)[images.labels]


def gather_through(fabric: Fabric):
    """The gather of a run with several processes: rows of all processes in order of rank, with gradient.

    Pairs, statistics and loss are then those of the global batch. Not so BatchNorm inside encoder and projector: each
    process normalises by its own share, as under any data-parallel training without synchronised BatchNorm.
    """

    def gather(x: torch.Tensor) -> torch.Tensor:
        return fabric.all_gather(x, sync_grads=x.requires_grad).flatten(0, 1)

    return gather


# Fields that may differ between a checkpoint and the run that continues it: they do not change what is computed.
FREE_FIELDS = {"threads", "results", "runs", "data_root", "readout_every", "snapshots", "probe"}
FREE_FIELDS |= {"accelerator", "resamplings", "keep_at", "trunk"}
# Fields that change nothing before the ramp begins, and so may differ between a trunk and its branches.
LATER_FIELDS = {"method", "variant", "alpha", "keep", "walk_start", "walk_warmup", "pairs", "matched"}
LATER_FIELDS |= {"k", "length", "walks", "temperature", "kernel", "mutual", "restart", "unique", "confident"}
LATER_FIELDS |= {"every", "scope", "queue_batches", "graph_epochs"}
SHARED = ("vicreg", "sag-vicreg")  # methods that are one before the ramp


def resume(trainer: Trainer) -> bool:
    """Continue from the run's own checkpoint, if there is one; says whether.

    Raises:
        ValueError: for a checkpoint of another configuration or of other images.
    """
    if not trainer.checkpoint.exists():
        return False
    state = load_state(trainer.checkpoint)
    if differing := _differing(trainer, state, FREE_FIELDS):
        raise ValueError(f"{trainer.checkpoint} is of another configuration ({differing}): delete it or set variant")
    _same_images(trainer, state, trainer.checkpoint)
    trainer.method.load_state_dict(state["method"])
    _take(trainer, state)
    trainer.origin, trainer.trunk = state["origin"], state.get("trunk")
    return True


def branch(trainer: Trainer, path: str) -> None:
    """Start from the kept checkpoint of a run that was the same up to there.

    Args:
        trainer: at its first epoch.
        path: what `--keep-at` kept.

    Raises:
        ValueError: for a checkpoint later than the beginning of either run's ramp, or of a run that differs in more
            than its pairing.
        OSError: where there is none.
    """
    state = load_state(path)
    if differing := _differing(trainer, state, FREE_FIELDS | LATER_FIELDS):
        raise ValueError(f"{path} is no trunk of this run ({differing}): only the pairing may differ")
    for config in (Config().to_dict() | state["config"], trainer.config.to_dict()):
        method, scope = config["method"], config["scope"]
        if method not in SHARED or (method != "vicreg" and scope == "queue"):
            raise ValueError(
                f"a run of {method} under scope {scope} is VICReg at no time: "
                f"only {' and '.join(SHARED)} share a trunk, under the scopes batch and dataset"
            )
        start = config["epochs"] * (1 if method == "vicreg" else config["walk_start"])
        if state["epoch"] > start:
            raise ValueError(
                f"{path} is of epoch {state['epoch']}, and the pairing begins at epoch {start:g}: "
                "raise walk_start, or take an earlier trunk"
            )
    _same_images(trainer, state, path)
    own = trainer.method.state_dict()
    trainer.method.load_state_dict(own | {name: value for name, value in state["method"].items() if name in own})
    _take(trainer, state)
    trainer.trunk = {"path": str(path), "epoch": state["epoch"], "commit": state["origin"]["commit"]}


def _differing(trainer: Trainer, state: dict, free: set[str]) -> str:
    """The fields outside `free` in which a stored state and the run differ, in words."""
    now = trainer.config.to_dict()
    then = Config().to_dict() | state["config"]  # a field that is newer than the checkpoint had its default
    return ", ".join(f"{k} {then[k]} -> {now[k]}" for k in now if k not in free and then[k] != now[k])


def _same_images(trainer: Trainer, state: dict, path) -> None:
    if state["images"] != trainer.fingerprint:
        raise ValueError(
            f"{path} was trained on other images ({state['images']}, now {trainer.fingerprint}): "
            "delete it or set variant"
        )


def _take(trainer: Trainer, state: dict) -> None:
    """Optimiser, precision, position, log and clock of a stored state."""
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.fabric.strategy.precision.load_state_dict(state["precision"])
    trainer.epoch, trainer.log, trainer.clock = state["epoch"], state["log"], Clock(**state["clock"])


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
