"""What a configuration asks for, made: its checks, its device and precision, its views, encoder and training method.

    check(config);  fabric = make_fabric(config);  encoder = build_encoder(config, train)
    view, local = build_views(config, train);      method = build_method(config, encoder)

Below this module arguments are explicit; `trainer` stands on it. [K]
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from torch import nn

from sagkit.augment import NO_COLOUR, Augmentation, channel_statistics
from sagkit.config import PROFILES, Config
from sagkit.controls import PAIRS, make_pairing
from sagkit.dense import NAME
from sagkit.distill import DINO, IJEPA
from sagkit.methods import (
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
from sagkit.model import Encoder, make_encoder, make_projector
from sagkit.pairing import Queue
from sagkit.vectors import TRIED, Examples, VectorSet

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
