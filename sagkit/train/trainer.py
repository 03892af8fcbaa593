"""Train one method on one data set, resume it exactly, judge it, and leave a record.

    fit(config) -> Run                      loops over epochs and steps
      Trainer.step                          views -> method -> backward -> step
        methods.TwoViews.forward            encode -> project -> pairs -> loss(za, zb, pairs, alpha)

A run goes on from its own checkpoint after an interruption (`resume`), or from another run's that was the same so far
(`branch`). Before its ramp begins, a walking run takes the very steps of VICReg; runs that differ in their pairing
alone may therefore share those epochs:

    VICReg  o---o---o---o---o---o---o      --keep-at 3
    SAG             '---o---o---o---o      --trunk runs/laptop/cifar100/vicreg-seed0.epoch3.safetensors

Under schedule wsd the rate is constant up to the decay, too, so that one trunk serves branches of many lengths, each a
decay with or without walks; and a trunk is itself gone on with:

    VICReg  o---o---o---o---o---o---o---o      --profile long --epochs 100 --decay 0 --keep-at 24 48 100 --variant trunk
    any         '-o     '-o         '-o        --epochs 27 --decay 3 --trunk runs/...trunk-seed0.epoch24.safetensors

A branch ends with the same weights as the run trained whole; its record has its own cost and, under `trunk`, the
trunk's. Under schedule wsd a branch may have another seed than its trunk: of what is drawn from there on.

Randomness is a pure function of (seed, what for, step or epoch), so that a resumed run needs no generator state: the
checkpoint holds weights, optimiser, the clock and the sums of an epoch that is not over, and the rest follows from the
step's number. It is written after each epoch, and between two steps by a run that is asked to stop (Ctrl-C, SIGTERM).
Resumed equals uninterrupted to the last bit on the same machine with the same versions, accelerator and number of
threads; elsewhere sums round differently, and the run goes on correctly but not to the last bit. [K] all of it.
"""

from __future__ import annotations

import logging
import math
import signal
import tempfile
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sagkit.data.files import alone
from sagkit.data.load import family, load_bank
from sagkit.data.mapped import chunks
from sagkit.data.series import TRIED, Examples, VectorSet
from sagkit.metrics.evaluate import (
    LEAST_EXAMPLES,
    check_sets,
    evaluate,
    label_free,
    local,
    references,
    structure,
    view_of,
)
from sagkit.model import Encoder, channels_last, extract_features
from sagkit.pairing import gather
from sagkit.train.batchnorm import synchronised
from sagkit.train.build import (
    Source,
    build_encoder,
    build_method,
    build_views,
    judged_on,
    known_of,
    learning_rate,
    load_sets,
    make_fabric,
    make_optimizer,
    native_precision,
    ramp_of,
    together,
)
from sagkit.train.config import Config, check, command_of, differing
from sagkit.train.doctor import examine_run, tell
from sagkit.train.fabric import Fabric
from sagkit.train.record import (
    load_encoder,
    load_state,
    processor,
    provenance,
    read_record,
    run_path,
    save_encoder,
    save_state,
    snapshot_path,
    write_record,
)
from sagkit.train.timing import peak_memory

SHARED = ("vicreg", "sag-vicreg")  # methods that are one before the ramp, as any method is itself
HELD = 0.25  # of a GPU's free memory may hold the training images; more of them are moved there batch by batch
READOUT_BANK, READOUT_QUERIES = 5000, 1000
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # else every fit announces its precision


@dataclass
class Run:
    """A finished run: its encoder, its record (see `record_of`), and where the record lies."""

    encoder: Encoder
    record: dict
    path: Path


def fit(
    config: Config,
    train: Source | None = None,
    queries: Source | None = None,
    progress: bool = True,
    after_epoch: Callable[[Trainer], None] | None = None,
) -> Run:
    """Train, evaluate and record one run; continue it if a checkpoint of the same configuration exists.

    A run whose record is there is not trained again: it is read, and judged if it had not been. Ctrl-C and SIGTERM stop
    a run of one process after the step that it is at, with a checkpoint there; of several, at once, and what was done
    since the last epoch is done again. A second signal is not waited for.

    Args:
        config: the run; see `sagkit.train.config.configure`.
        train: training images, or vectors under their view; loaded by `config.data` when not given. A torch data set or
            loader is read once, see `sagkit.data.datasets.collect`.
        queries: images to evaluate on; likewise (test, or validation under split "fit").
        progress: show a progress bar on standard error.
        after_epoch: called before each epoch's checkpoint; may add to `trainer.log[-1]`, and stops the run by raising.

    Raises:
        ValueError: for impossible settings, sets that do not go together, a record of other settings or images in the
            run's place (unless it is to be overwritten), another process at the same run, a loss that is not finite, or
            an evaluation that failed; the encoder is then kept.
        OSError: where record or checkpoint cannot be written, or another process of the run has ended.
        KeyboardInterrupt: for a run that was stopped; says what is kept.
    """
    check(config)
    refuse_others(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    train, queries = load_sets(config, train, queries)
    check_sets(train, queries, config.data)
    if run := finished(config, train, queries):
        return run
    config = replace(config, overwrite=False)  # of this call, and not of the run
    if config.precision == "auto":  # resolved before anything is recorded, so that a run repeats exactly elsewhere
        config = replace(config, precision=native_precision(config.accelerator))
    fabric = make_fabric(config)
    with together(config), ExitStack() as held:
        fabric.launch()
        torch.manual_seed(config.seed)
        trainer = Trainer(config, fabric, train)
        check_encodes(trainer, queries)
        for path in (trainer.checkpoint, trainer.path) if fabric.is_global_zero else ():
            held.enter_context(alone(path.with_suffix(".lock"), f"{path.with_suffix('')} is being trained"))
        if not resume(trainer) and config.trunk:
            branch(trainer, config.trunk)
        refuse_apart(trainer)
        with Stop(noted=fabric.world_size == 1) as stop:
            _train(trainer, _bar(config, trainer, progress and fabric.is_global_zero), stop, after_epoch)
        return finish(trainer, queries)


def refuse_apart(trainer: Trainer) -> None:
    """Refuse to train where processes stand at different steps, as when not all machines see the checkpoint.

    Raises:
        ValueError: by every process, naming the folder.
    """
    stands = gather(torch.tensor([[trainer.epoch, trainer.done]], device=trainer.fabric.device)).tolist()
    if stands != stands[:1] * len(stands):
        told = ", ".join(f"{steps} steps after epoch {epoch}" for epoch, steps in stands)
        raise ValueError(
            f"processes stand apart, {told}: --runs {trainer.config.runs} has to be one folder that all machines share"
        )


def _train(trainer: Trainer, bar, stop: Stop, after_epoch: Callable[[Trainer], None] | None) -> None:
    """The epochs that are left, each with its readout, its checkpoint, and a warning of what looks wrong."""
    config, fabric, train, told = trainer.config, trainer.fabric, trainer.train, set()
    for epoch in range(trainer.epoch, config.epochs):
        trainer.begin_epoch()
        for step, index in trainer.batches():
            try:
                trainer.step(step, index)
            except ValueError as error:
                raise ValueError(f"{error}; {trainer.keep_step(step, index)}") from None
            bar.update()
            if stop.asked:
                trainer.require_finite()
                trainer.spend()
                trainer.save()
                raise KeyboardInterrupt(trainer.kept())
        trainer.end_epoch()
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
        if stop.asked and trainer.epoch < config.epochs:
            raise KeyboardInterrupt(trainer.kept())
    bar.close()


class Stop:
    """Ctrl-C and SIGTERM while a run trains: noted, for the run to end between two steps. The second one is raised.

    noted: if not, the first one is raised, too. Outside the main thread, signals are nobody's.
    """

    def __init__(self, noted: bool = True):
        self.noted, self.asked, self._before = noted, False, {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _note(self, number, frame) -> None:
        if self.asked or not self.noted:
            raise KeyboardInterrupt
        self.asked = True


def check_encodes(trainer: Trainer, queries: Examples) -> None:
    """Refuse examples that the encoder, which takes views, cannot encode as they are.

    Raises:
        ValueError: naming their shape.
    """
    for name, examples in (("train", trainer.train), ("queries", queries)):
        try:
            extract_features(trainer.method.encoder, examples.images[:LEAST_EXAMPLES])
        except (RuntimeError, AssertionError, ValueError) as error:
            shape, told = tuple(examples.images.shape[1:]), " ".join(str(error).split())
            raise ValueError(f"{trainer.config.encoder} cannot encode {name} of shape {shape} ({told})") from None


def refuse_others(config: Config) -> None:
    """Refuse to put a run where the record of another lies.

    Raises:
        ValueError: for a record of other settings; see `config.may_differ` for those that count.
    """
    path = run_path(config, config.results)
    if config.overwrite or not path.exists():
        return
    if found := differing(read_record(path)["config"], config.to_dict(), "stored"):
        told = ", ".join(f"{name} {then} -> {now}" for name, (then, now) in found.items())
        raise ValueError(f"{path} is the record of another run ({told}): name this one by --variant, or --overwrite it")


def finished(config: Config, train: Examples, queries: Examples) -> Run | None:
    """The run of this configuration whose record, encoder and kept files lie in their place; None where one is absent.

    One that was not judged, or without the probes or intervals that are asked for now, is judged now.

    Raises:
        ValueError: for a run that was trained on other images.
    """
    run = None if config.overwrite else stored_run(config, config.results)
    if run is None or not all(path.exists() for path in _kept_files(config, run.path)):
        return None
    record, asked = run.record, {"probe": config.probe, "resamplings": config.resamplings}
    if record.get("fingerprint", now := fingerprint(train)) != now:
        raise ValueError(
            f"{run.path} is of a run on other images ({record['fingerprint']}, now {now}): "
            "name this one by --variant, or --overwrite it"
        )
    if record["metrics"] and all(record["config"][name] >= value for name, value in asked.items()):
        warnings.warn(f"{run.path} is there, and read: nothing is trained (--overwrite trains anew)", stacklevel=3)
        return run
    record["metrics"] = judge(run.encoder, config, train, queries)
    made = Config.from_dict(record["config"] | asked)
    record |= {"config": made.to_dict(), "command": command_of(made), "evaluated_commit": provenance()["commit"]}
    write_record(run.path, record)
    return run


def _kept_files(config: Config, path: Path) -> list[Path]:
    """The encoders and checkpoints that a run is asked to keep beside its record."""
    checkpoint = run_path(config, config.runs).with_suffix(".safetensors")
    powers = [2**i for i in range(config.epochs.bit_length())] if config.snapshots else []
    return [snapshot_path(checkpoint, epoch) for epoch in config.keep_at] + [snapshot_path(path, e) for e in powers]


def stored_run(config: Config, results: str | Path) -> Run | None:
    """The finished run of this configuration whose record and encoder lie under `results`; None where there is none.

    Settings that only name a run, or say where and in what arithmetic it is computed, may differ; see
    `sagkit.train.config.may_differ`. Its figures are then those of its own machine.
    """
    path = run_path(config, results)
    weights = path.with_suffix(".safetensors")
    if not (path.exists() and weights.exists()):
        return None
    record = read_record(path)
    if differing(record["config"], config.to_dict(), "stored"):
        return None
    return Run(load_encoder(weights), record, path)


class Trainer:
    """The state of a run between epochs: model, optimiser, log and clock, and where they are kept."""

    def __init__(self, config: Config, fabric: Fabric, train: Examples):
        self.config, self.fabric, self.train = config, fabric, train
        self.path = run_path(config, config.results)
        self.checkpoint = run_path(config, config.runs).with_suffix(".safetensors")
        for path in (self.path, self.checkpoint):
            path.parent.mkdir(parents=True, exist_ok=True)  # now rather than after hours of training
        self.origin = provenance()  # of the code that trains, whatever happens to the checkout meanwhile
        # With any of these, sums round differently.
        self.arithmetic = {
            "device": fabric.device.type,
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        self.fingerprint = fingerprint(train)
        self.images = train.images.to(home_of(train.images, fabric.device))
        self.augmentation, self.local_augmentation = build_views(config, train)
        encoder = build_encoder(config, train)
        known = known_of(config.data, train)
        method = build_method(config, encoder, known)
        method = synchronised(method, fabric.device) if config.sync_batchnorm else method
        self.method = method.to(memory_format=torch.channels_last)
        self.method.watch.cuda = fabric.device.type == "cuda"
        optimizer = make_optimizer(config.optimizer, self.method, config.weight_decay)
        self.module, self.optimizer = fabric.setup(self.method, optimizer)
        self.steps_per_epoch = len(train) // config.batch_size
        self.epoch, self.log, self.clock = 0, [], Clock()
        self.done, self.sums = 0, {}  # steps of the epoch so far; by term, its sum and the steps that had it
        # What a module counts or remembers of its calls: a step that failed is repeated from before them.
        self._counting = [m for m in self.method.modules() if type(m).get_extra_state is not nn.Module.get_extra_state]
        self._before: list[tuple[nn.Module, dict]] = []
        self.trunk: dict | None = None  # where the run branched off from, see `branch`
        self._begun = 0, 0.0, 0.0  # steps done, processor and wall clock since when nothing is counted yet

    def begin_epoch(self) -> None:
        """Before the steps of an epoch, or those that are left of it: its clock starts, and the method may look at all
        images."""
        self._begun = self.done, time.process_time(), time.perf_counter()
        if not self.done:
            with self.method.watch("rebuild"):
                self.method.begin_epoch(self.epoch, self.clean_features)
        self.module.train()

    def batches(self) -> Iterator[tuple[int, Tensor]]:
        """Number and image rows of each step of the epoch, in an order drawn from (seed, epoch).

        Each process has its share of every batch; the last odd batch is dropped.
        """
        size, share = self.config.batch_size, self.config.batch_size // self.fabric.world_size
        order = torch.randperm(len(self.train), generator=stream(self.config.seed, "order", self.epoch))
        for i in range(self.done, self.steps_per_epoch):
            first = i * size + self.fabric.global_rank * share
            yield self.epoch * self.steps_per_epoch + i, order[first : first + share]

    def step(self, step: int, index: Tensor) -> dict[str, Tensor]:
        """One optimiser step on the images at `index`: views, loss, backward, step; returns the detached loss terms.

        Raises:
            ValueError: for a loss, or features of a graph, that are not finite; the weights are then as before.
        """
        config, fabric, method, watch = self.config, self.fabric, self.method, self.method.watch
        epoch, index = step / self.steps_per_epoch, index.to(fabric.device)
        self._before = [(module, vars(module).copy()) for module in self._counting]
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        torch.manual_seed(self.stream("model", step, "cpu").initial_seed())  # dropout and the like
        with watch("walk"):
            partner = method.second_images(index, epoch, self.stream("walks", step))
        with watch("augmentation"):
            views, local = self.views(index, partner, step)
        # Encode, project, pairs, loss: see methods.TwoViews.forward.
        loss = self.module(*views, epoch, index, *([local] if local else []))
        if not torch.isfinite(loss.total):  # before the weights follow it; on a GPU the one wait of a step
            terms = ", ".join(f"{name} {float(value):.4g}" for name, value in loss.terms.items())
            raise ValueError(f"the loss of epoch {self.epoch + 1} is not finite ({terms}): lower lr = {config.lr}")
        with watch("backward"):
            fabric.backward(loss.total)
            if config.clip:
                fabric.clip_gradients(self.module, self.optimizer, max_norm=config.clip)
            method.after_backward(epoch)
        with watch("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            method.after_step(epoch)
        terms = {"loss": loss.total.detach(), **loss.terms}
        for name, value in terms.items():
            total, steps = self.sums.get(name, (0, 0))
            self.sums[name] = total + value, steps + 1
        self.done += 1
        return terms

    def views(self, index: Tensor, partner: Tensor, step: int) -> tuple[list[Tensor], list[Tensor]]:
        """As many views of the images as the method takes, the second one of `partner`, and small local ones."""
        generator, home = self.stream("views", step), self.images.device
        images = [self.images[rows.to(home)].to(index.device) for rows in (index, partner)[: self.method.views]]
        shown = [self.augmentation(x, generator) for x in images]
        local = [self.local_augmentation(images[0], generator) for _ in range(self.config.local_views)]
        return [channels_last(view) for view in shown], [channels_last(view) for view in local]

    def rate(self, step: int) -> float:
        """The learning rate of one step."""
        config, per_epoch = self.config, self.steps_per_epoch
        warmup = round(config.warmup_epochs * per_epoch)
        decay = round(config.decay * per_epoch) if config.schedule == "wsd" else None
        return learning_rate(step, config.epochs * per_epoch, warmup, config.lr, config.batch_size, decay)

    def stream(self, purpose: str, step: int, device=None) -> torch.Generator:
        """This process's generator for one purpose at one step, on the run's device unless told otherwise."""
        name = f"{purpose}/{self.fabric.global_rank}"
        return stream(self.config.seed, name, step, self.fabric.device if device is None else device)

    def end_epoch(self) -> None:
        """After the steps of an epoch: its means go to the log and its cost to the clock. A term that only some steps
        have, as the walk's where walks begin, has their mean.

        Raises:
            ValueError: for weights that are not finite.
        """
        means = {name: float(total) / steps for name, (total, steps) in self.sums.items()}
        self.require_finite()
        self.spend()
        self.epoch, self.done, self.sums = self.epoch + 1, 0, {}
        self.log.append({"epoch": self.epoch, **means})

    def require_finite(self) -> None:
        """Refuse weights that are not finite, as a finite loss may make them: they must not replace good ones."""
        weights = self.method.state_dict().values()  # running statistics, too
        if not all(bool(torch.isfinite(w).all()) for w in weights if isinstance(w, Tensor)):
            raise ValueError(
                f"the weights after epoch {self.epoch + 1} are not finite: lower lr = {self.config.lr}; "
                f"the checkpoint before it is kept at {self.checkpoint}"
            )

    def spend(self) -> None:
        """Add to the clock what the steps since `begin_epoch` cost."""
        before, processor, wall = self._begun
        spent = self.fabric.all_reduce(torch.tensor(time.process_time() - processor), reduce_op="sum")
        images = (self.done - before) * self.config.batch_size
        self.clock.add(float(spent), time.perf_counter() - wall, images, self.method.watch.read())

    def kept(self) -> str:
        """What a run that is stopped leaves, and how to go on."""
        return (
            f"{self.done} of {self.steps_per_epoch} steps of epoch {self.epoch + 1} are done and kept at "
            f"{self.checkpoint}: the same command goes on"
        )

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
            "done": self.done,
            "sums": self.sums,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),  # the gradient scaler of 16-mixed
            "log": self.log,
            "clock": vars(self.clock),
            "origin": self.origin,
            "arithmetic": self.arithmetic,
            "images": self.fingerprint,
            "trunk": self.trunk,
        }

    def save(self) -> None:
        """Write the checkpoint of the step just done; first what is kept of it, as a run that goes on is past that."""
        if self.fabric.is_global_zero:
            if self.epoch in self.config.keep_at and not self.done:
                save_state(snapshot_path(self.checkpoint, self.epoch), self.state())
            save_state(self.checkpoint, self.state())
        self.fabric.barrier()

    def keep_step(self, step: int, index: torch.Tensor) -> str:
        """Store a step that failed, for `replay`; says where, and where the last good checkpoint is."""
        kept = self.checkpoint.with_suffix(f".step{step}.safetensors")
        for module, state in self._before:
            vars(module).update(state)
        if self.fabric.is_global_zero:
            save_state(kept, {**self.state(), "step": step, "index": index})
        before = f", the checkpoint of epoch {self.epoch} at {self.checkpoint}" if self.epoch else ""
        return f"its batch and state are kept for replay at {kept}{before}"


def home_of(images: Tensor, device: torch.device) -> torch.device:
    """Where images lie while they are trained on: on the run's device, unless they take much of a GPU's free memory."""
    if device.type != "cuda" or images.nbytes <= HELD * torch.cuda.mem_get_info(device)[0]:
        return device
    return images.device


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


def fingerprint(train: Examples) -> str:
    """Shape and checksum of what is trained on and, of vectors, of what their view makes of the first of them."""
    checksum = 0
    for part in chunks(train.images):
        checksum = zlib.crc32(part.cpu().contiguous().numpy(), checksum)
    told = f"{tuple(train.images.shape)} {checksum:08x}"
    if isinstance(train, VectorSet):
        seen = train.view(train.values[:TRIED].clone(), torch.Generator().manual_seed(0))
        told += f", view {zlib.crc32(seen.contiguous().numpy()):08x}"
    return told


def resume(trainer: Trainer) -> bool:
    """Continue from the run's own checkpoint, if there is one; says whether, and warns if not to the last bit.

    Raises:
        ValueError: for a checkpoint of another configuration or of other images.
    """
    if not trainer.checkpoint.exists():
        return False
    state = load_state(trainer.checkpoint)
    with _fitting(trainer.checkpoint):
        if changed := _changes(trainer, state, "resume"):
            raise ValueError(f"{trainer.checkpoint} is of another configuration ({changed}): delete it or set variant")
        _same_images(trainer, state, trainer.checkpoint)
        trainer.method.load_state_dict(state["method"])
        _take(trainer, state)
        _say_where(trainer, state, trainer.checkpoint)
        trainer.origin, trainer.trunk = state["origin"], state.get("trunk")
    return True


@contextmanager
def _fitting(path) -> Iterator[None]:
    """Say of a state that is damaged, or of other code, which file it is in."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path} does not fit this run ({told}): delete it to begin anew, or set variant") from None


def branch(trainer: Trainer, path: str) -> None:
    """Start from the kept checkpoint of a run that was the same up to there.

    Args:
        trainer: at its first epoch.
        path: what `--keep-at` kept.

    Raises:
        ValueError: for a checkpoint later than the beginning of either run's pairing or decay, or of a run that differs
            in more than these.
        OSError: where there is none.
    """
    state = load_state(path)
    wsd = trainer.config.schedule == "wsd"
    if changed := _changes(trainer, state, "decay" if wsd else "branch"):
        what = "pairing, decay and seed" if wsd else "the pairing"
        raise ValueError(f"{path} is no trunk of this run ({changed}): only {what} may differ")
    then, now = Config.from_dict(state["config"]), trainer.config
    if then.method != now.method and not {then.method, now.method} <= set(SHARED):
        raise ValueError(
            f"a run of {now.method} is one of {then.method} at no time: only {' and '.join(SHARED)} share a trunk"
        )
    for config in (then, now):
        same_until = min(_pairing_begins(config), config.epochs - config.decay)
        if state["epoch"] + bool(state.get("done")) > same_until:
            raise ValueError(
                f"{path} is of epoch {state['epoch']}, and the pairing or decay begins at epoch {same_until:g}: "
                "raise walk_start or epochs, or take an earlier trunk"
            )
    _same_images(trainer, state, path)
    own = trainer.method.state_dict()
    trainer.method.load_state_dict(own | {name: value for name, value in state["method"].items() if name in own})
    _take(trainer, state)
    before = state.get("trunk") or {"core_seconds": 0.0}  # a trunk may have gone on from another
    trainer.trunk = {
        "name": Path(path).stem,
        "seed": then.seed,
        "epoch": state["epoch"],
        "core_seconds": round(before["core_seconds"] + trainer.clock.core_seconds, 1),
        "commit": state["origin"]["commit"],
    }
    trainer.clock = Clock()


def _pairing_begins(config: Config) -> float:
    """The epoch up to which a run is one without a pairing."""
    ramp = ramp_of(config)
    return ramp.start if ramp.alpha else config.epochs


def _changes(trainer: Trainer, state: dict, purpose: str) -> str:
    """The fields in which a stored state and the run differ and may not, in words."""
    found = differing(state["config"], trainer.config.to_dict(), purpose)
    return ", ".join(f"{name} {then} -> {now}" for name, (then, now) in found.items())


def _same_images(trainer: Trainer, state: dict, path) -> None:
    if state["images"] != trainer.fingerprint:
        raise ValueError(
            f"{path} was trained on other images ({state['images']}, now {trainer.fingerprint}): "
            "delete it or set variant"
        )


def _say_where(trainer: Trainer, state: dict, path) -> None:
    """Warn where a stored state was computed in another arithmetic than the run's."""
    then, now = state.get("arithmetic", {}), trainer.arithmetic
    if told := ", ".join(f"{name} {then[name]} -> {now[name]}" for name in then if then[name] != now[name]):
        warnings.warn(f"{path}: sums round differently here, so not the same to the last bit ({told})", stacklevel=4)


def _take(trainer: Trainer, state: dict) -> None:
    """Optimiser, precision, position, log and clock of a stored state."""
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.fabric.strategy.precision.load_state_dict(state["precision"])
    trainer.epoch, trainer.log, trainer.clock = state["epoch"], state["log"], Clock(**state["clock"])
    device = trainer.fabric.device
    trainer.done = state.get("done", 0)
    trainer.sums = {name: (total.to(device), steps) for name, (total, steps) in state.get("sums", {}).items()}


def replay(path, train: Examples) -> dict[str, float]:
    """Repeat a step that a run kept because its loss was not finite; its loss terms, if they are finite this time.

    The step is the very same on the device that it was kept on, with its number of threads; elsewhere a warning says
    that it may round differently. DINO's centre alone is that of one step later.

    Args:
        path: the file that the run's error message names.
        train: the images, or vectors, it trained on.

    Raises:
        ValueError: for other images, and again where the loss is not finite. A run of several processes is repeated on
            the first one's share.
    """
    stored = load_state(path)
    device = stored["arithmetic"]["device"]
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(device, True)
    with tempfile.TemporaryDirectory() as scratch:
        config = Config.from_dict(stored["config"])
        config = replace(
            config, results=scratch, runs=scratch, accelerator=device if here else "cpu", devices=1, nodes=1
        )
        if config.threads:
            torch.set_num_threads(config.threads)
        trainer = Trainer(config, make_fabric(config), train)
    if trainer.fingerprint != stored["images"]:
        raise ValueError(f"{path} was kept of other images ({stored['images']}): give those the run trained on")
    trainer.method.load_state_dict(stored["method"])
    _take(trainer, stored)
    _say_where(trainer, stored, path)
    trainer.module.train()
    return {name: float(value) for name, value in trainer.step(stored["step"], stored["index"]).items()}


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
    encoder, begin = load_encoder(stored).to(fabric.device), time.perf_counter()
    try:
        metrics, failed = judge(encoder, config, trainer.train, queries), None
    except Exception as error:  # whatever it is, what was trained is worth more
        metrics, failed = {}, error
    trainer.clock.add(0.0, 0.0, 0, {"evaluation": time.perf_counter() - begin})
    record = record_of(trainer, metrics)
    write_record(trainer.path, record)
    trainer.checkpoint.unlink(missing_ok=True)
    if failed is not None:
        raise ValueError(
            f"trained, and kept at {stored}, but not judged ({type(failed).__name__}: {failed}): the same command, or "
            f"sagkit report --results {config.results} --reevaluate, judges it"
        ) from failed
    fabric.barrier()
    return Run(encoder, record, trainer.path)


def judge(encoder: Encoder, config: Config, train: Examples, queries: Examples) -> dict[str, float]:
    """Scores of a run's encoder, rounded as a record has them."""
    bank = train
    if family(config.data) != config.data:  # part of a data set: labels of all of it may be used to judge
        bank = load_bank(config.data, config.split, config.data_root or None)
    metrics = evaluate(encoder, bank, queries, config.data, config.probe, config.seed, config.resamplings)
    return {name: round(float(value), 5) for name, value in metrics.items() if math.isfinite(value)}


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
        "fingerprint": trainer.fingerprint,
        "parameters": sum(p.numel() for p in trainer.method.encoder.parameters()),
        "command": command_of(config),
        "config": config.to_dict(),
        **({"trunk": trainer.trunk} if trainer.trunk else {}),
        **pull_of(trainer.log),
        **trainer.origin,
        "evaluated_commit": provenance()["commit"],
        "metrics": metrics,
        "log": [{k: round(v, 5) for k, v in entry.items()} for entry in trainer.log],
    }


def pull_of(log: list[dict]) -> dict[str, dict[str, float]]:
    """What pairs weighed in the last epoch: total per anchor, and which share of it was on partners of one label."""
    last = log[-1] if log else {}
    if not (total := last.get("pair_weight")):
        return {}
    shares = {
        name.replace("weight", "share"): value / total for name, value in last.items() if name.endswith("s_weight")
    }
    return {"pull": {"weight": round(total, 5)} | {name: round(value, 5) for name, value in shares.items()}}


def _bar(config: Config, trainer: Trainer, shown: bool):
    from tqdm.auto import tqdm

    total = config.epochs * trainer.steps_per_epoch
    done = trainer.epoch * trainer.steps_per_epoch
    return tqdm(total=total, initial=done, desc=f"{config.method} seed {config.seed}", unit="step", disable=not shown)
