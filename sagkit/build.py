"""What a configuration asks for, made: its checks, its device and precision, its training method.

    check(config);  fabric = make_fabric(config);  method = build_method(config, encoder)

Below this module arguments are explicit; `trainer` stands on it. [K]
"""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import nn

from sagkit.config import PROFILES, Config
from sagkit.controls import PAIRS, make_pairing
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
from sagkit.model import make_projector
from sagkit.pairing import Queue

GRAPH_FIELDS = ("k", "length", "temperature", "kernel", "mutual", "restart", "confident")
SCOPES = ("batch", "queue", "dataset")
WALKING = ("sag-vicreg", "barlow-twins")  # methods that may walk


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
        pairing = make_pairing(config.pairs, True, groups, **graph)
        kind = DatasetSAGBarlowTwins if config.method == "barlow-twins" else DatasetSAGVICReg
        return kind(encoder, projector, pairing=pairing, ramp=ramp, rebuild=config.graph_epochs, **terms)
    graph |= {name: getattr(config, name) for name in ("walks", "every", "seed", "unique")}
    pairing = make_pairing(config.pairs, False, groups, **graph)
    queue = Queue(config.queue_batches) if config.scope == "queue" else None
    kind = SAGBarlowTwins if config.method == "barlow-twins" else SAGVICReg
    return kind(encoder, projector, pairing=pairing, ramp=ramp, keep=config.keep, queue=queue, **terms)
