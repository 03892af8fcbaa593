"""What a configuration asks for, made: data, device and precision, views, encoder, method, optimiser and learning rate.

    lr(step) = base * B / 256 * (step + 1) / warmup                         while warming up
    lr(step) = base * B / 256 * [f + (1 - f) (1 + cos(pi t)) / 2],  t in [0, 1]   after
    lr(step) = base * B / 256 * [f + (1 - f) (1 - t)]                             or so: t = 0 up to the decay

Sources: [R] linear scaling with B / 256, warm-up and cosine as in figures/METHOD.md section 6, and f = 0.001 at the
end, the VICReg authors' `end_lr`; LARS from lightly, with their exclusion of biases and normalisation parameters from
adaptation and decay. Below this room arguments are explicit; the trainer stands on it. [K]
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from sagkit.augment import NO_COLOUR, Augmentation, channel_statistics
from sagkit.data.datasets import collect
from sagkit.data.load import family, load_images
from sagkit.data.series import Examples, VectorSet
from sagkit.data.taxonomy import superclasses
from sagkit.loss import barlow_twins_loss, sag_vicreg_loss
from sagkit.model import DENSE, Encoder, make_encoder, make_projector
from sagkit.pairing import Queue, gather
from sagkit.train.config import OPTIMIZERS, TWO_VIEWS, WALKING, Config
from sagkit.train.controls import make_pairing
from sagkit.train.distill import DINO, IJEPA
from sagkit.train.fabric import Fabric, TorchElasticEnvironment
from sagkit.train.methods import NEVER, Method, Ramp, TwoViews

Source = Examples | Dataset | DataLoader  # what a run can be given
FINAL_FRACTION = 1e-3  # VICReg's authors: end_lr = base_lr * 0.001
GRAPH_FIELDS = ("k", "length", "temperature", "kernel", "mutual", "sinkhorn", "restart", "confident")
# What gloo says where the process at the other end is gone; NCCL's errors are of a type of their own.
LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|timed? ?out|gloo|remote worker", re.IGNORECASE)
LOCAL_SMALLEST = 0.05  # area of a local view: from here to crop_min, where the global ones begin; DINO's authors


def judged_on(config: Config) -> str:
    """The split that a run is judged on: test, or validation where a part of train was held back for it."""
    return "test" if config.split == "train" else "val"


def load_sets(config: Config, train: Source | None, queries: Source | None) -> tuple[Examples, Examples]:
    """What is trained on and judged on: as given, or loaded; torch's data sets and loaders are read into image sets.

    Raises:
        ValueError: for images beside vectors, or a batch larger than the data.
    """
    root = config.data_root or None
    train, queries = (collect(s) if isinstance(s, Dataset | DataLoader) else s for s in (train, queries))
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


def make_fabric(config: Config) -> Fabric:
    """Lightning Fabric for a configuration; under torchrun or SLURM, its processes are those that were started.

    Raises:
        ValueError: for an accelerator, a number of devices or a precision that is not to be had here, and for other
            numbers of processes than torchrun has started.
    """
    torchrun, asked = TorchElasticEnvironment, config.devices * config.nodes
    if torchrun.detect() and (started := torchrun().world_size()) != asked:
        raise ValueError(
            f"torchrun has started {started} processes, and devices {config.devices} times nodes {config.nodes} is "
            f"{asked}: say --devices (its --nproc-per-node) and --nodes (its --nnodes)"
        )
    hardware = {"accelerator": config.accelerator, "devices": config.devices, "precision": config.precision}
    try:
        return Fabric(num_nodes=config.nodes, **hardware)
    except (RuntimeError, ValueError) as error:
        setting = ", ".join(f"{name} {value!r}" for name, value in hardware.items())
        raise ValueError(f"{setting} cannot be had here ({error}): try --accelerator cpu --devices 1") from None


@contextmanager
def together(config: Config) -> Iterator[None]:
    """Say in one line, in every process that is left, that another one has ended or cannot be reached.

    One that ends closes its connections, which the others see at once; a machine that falls silent is waited for as
    long as torch.distributed waits, half an hour.

    Raises:
        ConnectionError: for what torch.distributed then raises; everything else is raised as it is.
    """
    try:
        yield
    except RuntimeError as error:
        alone = config.devices * config.nodes == 1
        if alone or not (isinstance(error, torch.distributed.DistError) or LOST.search(str(error))):
            raise
        told = " ".join(str(error).split())
        raise ConnectionError(
            f"another process of this run has ended or cannot be reached ({told[:120]}): "
            "its own words say why, and the same command, on every machine, goes on from the last epoch"
        ) from None


def build_views(config: Config, train: Examples) -> tuple[Callable, Callable]:
    """The view of a configuration, and the small local one; of vectors, both are their own."""
    if isinstance(train, VectorSet):
        return train.view, train.view
    recipe = {"blur": config.blur, **({} if config.colour else NO_COLOUR)}
    view = Augmentation(size=config.view_size, crop_scale=(config.crop_min, 1.0), **recipe)
    return view, Augmentation(size=config.local_size, crop_scale=(LOCAL_SMALLEST, config.crop_min), **recipe)


def build_encoder(config: Config, train: Examples) -> Encoder:
    """The encoder of a configuration under the statistics of what it is trained on, tried once.

    Raises:
        ValueError: where it cannot encode a view, or the method needs images and gets vectors.
    """
    if isinstance(train, VectorSet):
        if config.method not in TWO_VIEWS:
            raise ValueError(f"{config.method} needs images: of vectors, choose one of {', '.join(TWO_VIEWS)}")
        if DENSE.fullmatch(config.encoder) is None:
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


def build_method(config: Config, encoder: nn.Module, known: dict | None = None) -> Method:
    """The method of a configuration around an encoder; `known` are labels of the training images, see `known_of`."""
    length = math.inf if config.schedule == "wsd" else config.epochs  # a trunk does not know how long it will be
    if config.method == "dino":
        head = config.projector_hidden, config.projector_out, config.prototypes
        return DINO(encoder, *head, config.ema, length, config.head_norm)
    if config.method == "ijepa":
        predictor = config.predictor_width, config.predictor_depth
        return IJEPA(encoder, config.view_size, *predictor, config.ema, length)
    width, *shape = encoder.feature_width, config.projector_hidden, config.projector_out, config.projector_layers
    projector = make_projector(width, *shape)
    if config.method == "vicreg":
        loss = partial(sag_vicreg_loss, sim=config.sim, var=config.var, cov=config.cov)
        return TwoViews(encoder, projector, loss)
    if config.method == "barlow-twins":
        loss = partial(barlow_twins_loss, keep=config.keep)
    else:
        loss = partial(sag_vicreg_loss, keep=config.keep, sim=config.sim, var=config.var, cov=config.cov)
    dataset = config.scope == "dataset"
    walk = {name: getattr(config, name) for name in GRAPH_FIELDS}
    if dataset:
        walk |= {"every": config.graph_epochs, "gather": gather}
    else:
        walk |= {name: getattr(config, name) for name in ("walks", "every", "seed", "unique", "expected", "null")}
        walk["weight"] = 1.0 if config.weight else None  # of which `ramp_of` makes the weight
    pairing = make_pairing(config.pairs, dataset, (known or {}).get("superclass"), config.matched, **walk)
    ramp = ramp_of(config)
    queue = Queue(config.queue_batches) if config.scope == "queue" else None
    return TwoViews(encoder, projector, loss, pairing, ramp, queue, known=known)


def ramp_of(config: Config) -> Ramp:
    """When the pairing of a configuration has a say; under schedule wsd, never before the decay."""
    if config.method not in WALKING:
        return NEVER
    strength = config.weight if config.weight and config.alpha else config.alpha  # alpha = 0: no pairs
    length = config.decay if config.schedule == "wsd" else config.epochs
    start = config.epochs - length + config.walk_start * length
    return Ramp(strength, start, config.walk_warmup * length)


def known_of(data: str, images: Examples) -> dict[str, torch.Tensor]:
    """Labels of every image (N,) by kind, "class" and "superclass", as far as there are any."""
    if images.labels is None:
        return {}
    try:
        group = superclasses(family(data), images.class_names)[1]
    except ValueError:
        return {"class": images.labels}
    return {"class": images.labels, "superclass": torch.as_tensor(group)[images.labels]}


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


def learning_rate(step: int, steps: int, warmup: int, base: float, batch_size: int, decay: int | None = None) -> float:
    """Learning rate of one step; a pure function, so that a resumed run needs no scheduler state.

    Half a cosine depends on the length of the run from its first step. With a decay [R: warm-up, stable, decay], steps
    before it do not, and runs of any length share them.

    Args:
        step: from 0.
        steps: of the whole run.
        warmup: steps of linear rise.
        base: for a batch of 256 images.
        batch_size: of all processes together.
        decay: the last steps, over which the rate falls along a line and before which it is constant; 0: constant to
            the end; None: half a cosine over all steps after the warm-up.
    """
    peak = base * batch_size / 256
    if step < warmup:
        return peak * (step + 1) / warmup
    falling = steps - warmup if decay is None else decay
    progress = max(0.0, (step - (steps - falling)) / max(1, falling))
    left = (1 + math.cos(math.pi * progress)) / 2 if decay is None else 1 - progress
    return peak * (FINAL_FRACTION + (1 - FINAL_FRACTION) * left)
