"""The state of a run between epochs: model, optimiser, schedule position, log and clock, and how it is kept.

Randomness is a pure function of (seed, what for, step or epoch), so that a resumed run needs no generator state: the
checkpoint at the end of each epoch holds weights, optimiser and the clock, and the rest follows from the epoch's
number. [K]
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, field

import torch
from lightning_fabric import Fabric

from sagkit.build import build_encoder, build_method, build_views, fingerprint
from sagkit.checkpoint import save_state
from sagkit.config import Config
from sagkit.hierarchy import superclasses
from sagkit.methods import only_process
from sagkit.model import channels_last, extract_features
from sagkit.optim import learning_rate, make_optimizer
from sagkit.record import provenance, run_path, snapshot_path
from sagkit.subsets import family
from sagkit.vectors import Examples


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
