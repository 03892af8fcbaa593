"""Everything a training run can be told, in one flat frozen dataclass, and the profiles that fill it.

    configure("dino", "laptop", seed=1)         the profile's setting under the method's recipe, fields replaced by name
    parse(["--method", "dino", "--seed", "1"])  the same from a command line, and `flags(config)` back again
    check(config)                               one line for a setting that cannot be, before any work
    may_differ("threads", "resume")             whether two runs may differ in a field, for one purpose

A profile is a budget: data size, encoder and epochs; a recipe is what a method has of its own. Each field of `Config`
carries a role, which groups the command line and decides in what runs may differ:

    model       method, encoder, heads                       pairing     graph, walks and their say in the loss
    data        what is trained on and the views of it       host        where and in what arithmetic it is computed
    optimiser   loss weights, steps and their size           record      how the run is called and what is kept of it

This room imports nothing heavy, so that `--help` is quick. METHOD.md is figures/METHOD.md.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import Field, asdict, dataclass, field, fields, make_dataclass, replace
from typing import Annotated, Any, Literal

from sagkit import lies_in

ROLES = ("model", "data", "optimiser", "pairing", "host", "record")
METHODS = ("vicreg", "sag-vicreg", "barlow-twins", "dino", "ijepa")
WALKING = ("sag-vicreg", "barlow-twins")  # methods that may walk
TWO_VIEWS = ("vicreg", *WALKING)  # methods that ask for two views and nothing else
SCOPES = ("batch", "queue", "dataset")
PAIRS = ("walk", "random", "hub", "own", "nearest", "unweighted", "oracle")  # see sagkit.train.controls
KERNELS = ("cosine", "gaussian", "shared")  # see sagkit.graph
OPTIMIZERS = ("lars", "adamw", "sgd")
SCHEDULES = ("cosine", "wsd")  # see sagkit.train.build.learning_rate
SPLITS = ("train", "fit")
VARIANT = re.compile(r"[\w.+=,-]{1,100}")

# Views of 24 pixels cost about half of 32: more epochs for the same core time.
_CIFAR = {"data": "cifar100", "view_size": 24, "batch_size": 512, "lr": 1.5e-3}
_RESNET18 = {  # METHOD.md section 6: solo-learn's recipe
    "data": "cifar100",
    "encoder": "resnet18",
    "optimizer": "lars",
    "lr": 0.3,
    "warmup_epochs": 10,
    "projector_hidden": 2048,
    "projector_out": 2048,
    "readout_every": 10,
}
# What a search over VICReg alone chose on validation images; laptop holds what was set before any search.
_TUNED = {**_CIFAR, "epochs": 16, "lr": 3e-3, "projector_hidden": 1024, "projector_out": 1024}
# One trunk at a constant rate, many branches that decay from it in a tenth of its length, see sagkit.train.trainer; the
# rest as tuned. Pairs begin with the decay, all pairings with one total weight [K].
_LONG = {**_TUNED, "epochs": 27, "schedule": "wsd", "decay": 3.0, "walk_start": 0.0, "walk_warmup": 0.0, "weight": 0.4}
# Less than a minute of one H200, on which an encoder of four times the size takes no longer [K].
_MINUTE = {**_TUNED, "encoder": "resnet10-w32", "epochs": 24, "readout_every": 0}
PROFILES: dict[str, dict] = {
    "tour": {"view_size": 16, "batch_size": 128, "lr": 1e-2, "epochs": 10, "readout_every": 0},
    "sweep": {**_CIFAR, "epochs": 6, "split": "fit"},
    "laptop": {**_CIFAR, "epochs": 16},
    "tuned": _TUNED,
    "search": {**_TUNED, "split": "fit", "probe": False},
    "long": _LONG,
    "long-search": {**_LONG, "split": "fit", "probe": False, "resamplings": 0},
    "vectors": {  # rows of a table, or series (with --encoder conv1d-w32-l3); see sagkit.data.series [K]
        "data": "vectors",
        "encoder": "mlp-w128-l2",
        "projector_hidden": 128,
        "projector_out": 128,
        "epochs": 50,
        "batch_size": 128,
        "lr": 5e-3,
        "readout_every": 0,
    },
    "gpu-minute": _MINUTE,
    "gpu-search": {**_MINUTE, "split": "fit", "probe": False, "resamplings": 0},
    "gpu": {**_RESNET18, "epochs": 200},
    "full": {**_RESNET18, "epochs": 1000},
}


# What a method has of its own, in every profile. Weight decay: where the authors' schedules begin.
RECIPES: dict[str, dict] = {
    "barlow-twins": {"alpha": 0.0},  # no walks unless asked for; the rest as VICReg, as in solo-learn
    "dino": {  # METHOD.md section 6: small transformer; solo-learn's head; clipping of the authors' code
        "encoder": "vit-d192-l9-p4",
        "optimizer": "adamw",
        "lr": 1e-4,
        "weight_decay": 0.04,
        "batch_size": 128,  # with 512, an epoch has too few steps for the average to follow [K]
        "clip": 3.0,
        "projector_hidden": 2048,
        "projector_out": 256,
    },
    "ijepa": {  # METHOD.md section 6; the authors' views: crops of 0.3 to 1, no colours
        "encoder": "vit-d192-l6-p4-avg",
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.04,
        "batch_size": 128,
        "view_size": 32,  # an 8 x 8 grid of patches; 24 pixels leave 6 x 6, too coarse for blocks
        "crop_min": 0.3,
        "colour": False,
    },
}


# In the profiles of trunks and branches: rivals that leave their floors. DINO on the ResNet of the others by lightly's
# CIFAR recipe (SGD 0.06 for 128 images); I-JEPA's decay and a warm-up of a tenth of the shortest run.
_LONG_RECIPES: dict[str, dict] = {
    "dino": {
        "encoder": "resnet10-w16",
        "optimizer": "sgd",
        "lr": 0.12,
        "weight_decay": 5e-4,
        "clip": 0.0,
        "prototypes": 2048,
        "head_norm": True,
        "ema": 0.99,
    },
    "ijepa": {"weight_decay": 0.05, "warmup_epochs": 3.0},
}


def _of(role: str, default, says: str, among: str | tuple[str, ...] | None = None):
    """A field: its role, default, what `--help` says of it, and its values: names to choose from, or an interval."""
    return field(default=default, metadata={"role": role, "help": says, "among": among})


@dataclass(frozen=True)
class Config:
    """One training run. Epochs are counted in passes over the training images."""

    method: str = _of("model", "vicreg", "training objective", METHODS)
    data: str = _of("data", "shapes", "shapes, emoji, cifar10, cifar100[-80a, -80b, -lt], a folder, or an .npz file")
    profile: str = _of("data", "tour", "the budget this setting comes from", tuple(PROFILES))
    variant: str = _of("record", "default", "name of a setting that is not the profile's")
    seed: int = _of("data", 0, "of weights, data order, views and walks", "[0, 1e15]")
    split: str = _of("data", "train", "train: judge on test; fit: train on 90 %, judge on the other 10 %", SPLITS)

    encoder: str = _of("model", "resnet10-w16", "by name, see sagkit.model.make_encoder")
    projector_hidden: int = _of("model", 512, "inner width of the projector", "[1, inf)")
    projector_out: int = _of("model", 512, "its outputs, D", "[1, inf)")
    projector_layers: int = _of("model", 3, "its linear maps; 3: VICReg's authors", "[1, inf)")
    sync_batchnorm: bool = _of("model", False, "normalise by the global batch, as VICReg's authors; of processes")

    epochs: int = _of("optimiser", 10, "passes over the training images", "[0, inf)")
    batch_size: int = _of("optimiser", 256, "images per step over all processes; METHOD.md section 6", "[2, inf)")
    optimizer: str = _of("optimiser", "adamw", "see sagkit.train.build.make_optimizer", OPTIMIZERS)
    lr: float = _of("optimiser", 1e-3, "for 256 images; scaled by batch_size / 256", "[0, inf)")
    weight_decay: float = _of("optimiser", 1e-4, "of matrices and kernels; METHOD.md section 6", "[0, inf)")
    warmup_epochs: float = _of("optimiser", 1.0, "of the learning rate", "[0, inf)")
    schedule: str = _of("optimiser", "cosine", "of the rate after it; wsd: constant, then a linear decay", SCHEDULES)
    decay: float = _of("optimiser", 0.0, "wsd: epochs of decay, the last ones; 0: none, as of a trunk", "[0, inf)")
    clip: float = _of("optimiser", 0.0, "largest norm of the whole gradient; 0: gradients as they are", "[0, inf)")

    sim: float = _of("optimiser", 25.0, "weight of the invariance term; 25: VICReg's authors", "[0, inf)")
    var: float = _of("optimiser", 25.0, "weight of the variance term; 25: VICReg's authors", "[0, inf)")
    cov: float = _of("optimiser", 1.0, "weight of the covariance term; 1: VICReg's authors", "[0, inf)")

    # The batch-scope reading of the sources; these defaults were fixed before any tuning [K].
    alpha: float = _of("pairing", 0.3, "strength of the walk term; scope dataset: a probability", "[0, inf)")
    keep: bool = _of("pairing", True, "keep the augmentation term whole; else mix (1 - alpha) s + alpha r")
    walk_start: float = _of("pairing", 0.25, "fraction of the epochs (wsd: the decay) without pairing first", "[0, 1]")
    walk_warmup: float = _of("pairing", 0.1, "fraction of the same over which alpha then rises", "[0, 1]")
    k: int = _of("pairing", 10, "neighbours per image", "[1, inf)")
    length: int = _of("pairing", 2, "steps per walk, L", "[1, inf)")
    walks: int = _of("pairing", 1, "walks per image", "[1, inf)")
    temperature: float = _of("pairing", 0.1, "of the cosine kernel", "(0, inf)")
    kernel: str = _of("pairing", "cosine", "of the graph's edges", KERNELS)
    mutual: bool = _of("pairing", False, "keep only edges that both ends agree on")
    sinkhorn: int = _of("pairing", 0, "iterations towards doubly stochastic edges; 3: ReSA", "[0, inf)")
    restart: float = _of("pairing", 0.0, "probability per step of jumping back to the start", "[0, 1)")
    unique: bool = _of("pairing", False, "several walks of one image that meet count once")
    confident: float = _of("pairing", 1.0, "fraction of the pairs, those of largest weight, that count", "(0, 1]")
    pairs: str = _of("pairing", "walk", "the walk, or a control in its place", PAIRS)
    expected: bool = _of("pairing", False, "all ends of all walks with their weights; scopes batch and queue")
    null: float = _of("pairing", 0.0, "share of an anchor's weight spread evenly and taken off; likewise", "[0, 1]")
    weight: float = _of("pairing", 0.0, "total weight per anchor, in place of alpha; 0: alpha; likewise", "[0, inf)")
    matched: bool = _of("pairing", False, "scale a control's weights to the walk's total; scopes batch and queue")
    every: int = _of("pairing", 1, "pairs at every m-th step only; scopes batch and queue", "[1, inf)")
    scope: str = _of("pairing", "batch", "nodes of the graph: batch, last batches too, or all training images", SCOPES)
    queue_batches: int = _of("pairing", 4, "batches remembered under scope queue", "[1, inf)")
    graph_epochs: int = _of("pairing", 1, "epochs between two graphs under scope dataset", "[1, inf)")

    ema: float = _of("optimiser", 0.996, "dino, ijepa: the teacher's momentum at first, and under wsd always", "[0, 1)")
    head_norm: bool = _of("model", False, "dino: batch normalisation in the head")
    prototypes: int = _of("model", 4096, "dino: outputs of the head; METHOD.md section 6", "[1, inf)")
    local_views: int = _of("data", 0, "dino: further small crops per image; METHOD.md section 6", "[0, inf)")
    local_size: int = _of("data", 16, "their pixels; half the views, as 96 of 224 in DINO", "[1, inf)")
    predictor_width: int = _of("model", 96, "ijepa: width of the predictor; METHOD.md section 6", "[4, inf)")
    predictor_depth: int = _of("model", 4, "ijepa: its blocks; METHOD.md section 6", "[1, inf)")

    view_size: int = _of("data", 32, "pixels, height and width of the augmented views", "[1, inf)")
    crop_min: float = _of("data", 0.2, "least area of a random crop; METHOD.md section 6", "(0, 1]")
    colour: bool = _of("data", True, "jitter, grey and solarised views; else crops and mirror images alone")
    blur: float = _of("data", 0.0, "probability of Gaussian blur; for images larger than 32 pixels", "[0, 1]")

    snapshots: bool = _of("record", False, "also keep the encoder after epochs 1, 2, 4, 8, ...")
    readout_every: int = _of("record", 5, "epochs between kNN and structure readouts; 0: never", "[0, inf)")
    probe: bool = _of("record", True, "fit the linear probe in the final evaluation")
    resamplings: int = _of("record", 1000, "of classes and images, behind intervals; 0: no intervals", "[0, inf)")
    accelerator: str = _of("host", "auto", "Lightning Fabric's: auto, cpu, cuda, mps")
    devices: int = _of("host", 1, "processes of each machine", "[1, inf)")
    nodes: int = _of("host", 1, "machines, the same command on each by torchrun or srun", "[1, inf)")
    precision: str = _of("host", "auto", "bf16-mixed, 16-mixed, 32-true; auto: what the hardware computes itself")
    threads: int = _of("host", 0, "CPU threads; 0: PyTorch's choice", "[0, 1024]")
    data_root: str = _of("host", "", "where CIFAR lies; empty: SAGKIT_DATA")
    results: str = _of("host", "runs/results", "folder of run records")
    runs: str = _of("host", "runs", "folder of checkpoints of unfinished runs")
    keep_at: tuple[int, ...] = _of("record", (), "keep the checkpoints after these epochs, as trunks of other runs")
    overwrite: bool = _of("record", False, "train although a record lies in its place, and replace it")
    trunk: str = _of("record", "", "kept checkpoint of a run that was the same up to there: start from it")

    def __post_init__(self):
        for name, value in vars(self).items():  # of numpy and pathlib, which no record can hold
            plain = value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value
            plain = os.fspath(plain) if isinstance(plain, os.PathLike) else plain
            if plain is not value:
                object.__setattr__(self, name, plain)

    @classmethod
    def from_dict(cls, fields: dict) -> Config:
        """What `to_dict` made, of a record or checkpoint; a field that is newer than it has its default."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})

    def to_dict(self) -> dict:
        """Plain values by field name, as JSON has them: for the run record, and to compare with one."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def check(config: Config) -> None:
    """Refuse impossible settings before anything is loaded or trained.

    Raises:
        ValueError: naming the field, its value, what it may be, and the remedy.
    """
    for f in fields(Config):
        value, among = getattr(config, f.name), f.metadata["among"]
        if not _is_of(type(f.default), value):
            raise ValueError(f"{f.name} must be of {type(f.default).__name__}, got {value!r}: {f.metadata['help']}")
        if isinstance(among, tuple) and value not in among:
            raise ValueError(f"unknown {f.name} {value!r}: choose one of {', '.join(among)}")
    if not VARIANT.fullmatch(config.variant):
        raise ValueError(f"variant {config.variant!r} names files: give 1 to 100 letters, digits or signs of ._+=,-")
    if wrong := [epoch for epoch in config.keep_at if not 1 <= epoch <= config.epochs]:
        raise ValueError(f"keep_at {wrong[0]} is no epoch of {config.epochs}: name epochs that there are")
    if config.batch_size < 2 or config.batch_size % max(1, config.devices * config.nodes):
        processes = f"devices = {config.devices}" + (f" times nodes = {config.nodes}" if config.nodes > 1 else "")
        raise ValueError(f"batch_size {config.batch_size} must be at least 2 and a multiple of {processes}")
    if config.local_views < 0 or (config.local_views and config.method != "dino"):
        raise ValueError(f"local_views {config.local_views} with {config.method}: at least 0, and dino alone has them")
    if config.decay > (config.epochs if config.schedule == "wsd" else 0):
        raise ValueError(
            f"decay {config.decay:g} under schedule {config.schedule} of {config.epochs} epochs: "
            "wsd alone decays, and no longer than it runs"
        )
    if config.method in WALKING:
        if config.schedule == "wsd" and config.alpha and not config.decay:
            raise ValueError(
                "decay 0 leaves no time for pairs, which begin with the decay under schedule wsd: raise it"
            )
        most = float("inf") if config.keep and config.scope != "dataset" else 1
        if not 0 <= config.alpha <= most:
            raise ValueError(f"alpha must lie in [0, {most}], got {config.alpha}: see Config.alpha and Config.keep")
        if config.weight > most:
            raise ValueError(f"weight must lie in [0, {most}], got {config.weight}: it stands in place of alpha")
        for name in ("expected", "null", "weight", "matched"):
            if getattr(config, name) and config.scope == "dataset":
                raise ValueError(f"{name} is of pairs, and scope dataset replaces views: use scope batch or queue")
        if config.matched and (config.expected or config.null or config.weight):
            raise ValueError("matched is of drawn pairs with the walk's weights: drop expected, null and weight, or it")
        if config.expected and (config.walks > 1 or config.unique):
            raise ValueError(f"expected has all walks at once, got walks = {config.walks}: leave 1, and unique off")
        if config.scope == "batch" and config.k >= config.batch_size:
            raise ValueError(
                f"k = {config.k} neighbours need k < batch_size = {config.batch_size}: lower k or use a larger batch"
            )
    for f in fields(Config):
        value, among = getattr(config, f.name), f.metadata["among"]
        if isinstance(among, str) and not lies_in(value, among):
            low, high = among[1:-1].split(", ")
            bound = f"be {'at least' if among[0] == '[' else 'above'} {low}" if high == "inf" else f"lie in {among}"
            raise ValueError(f"{f.name} must {bound}, got {value}: {f.metadata['help']} (default {f.default})")


def _is_of(kind: type, value) -> bool:
    """Whether a value is of a field's kind; a whole number serves for a float, and True for none."""
    if kind is tuple:
        return isinstance(value, tuple) and all(_is_of(int, part) for part in value)
    return isinstance(value, int | float if kind is float else kind) and (kind is bool or not isinstance(value, bool))


_BY_ROLE = {role: {f.name for f in fields(Config) if f.metadata["role"] == role} for role in ROLES}
_PLACES = {"threads", "data_root", "results", "runs"}
# In what two runs may differ, by purpose. What is then equal: under `resume`, the rest of the training, bit for bit on
# the same machine with the same threads and accelerator; between devices, and between numbers of threads or processes,
# sums round differently, and the run goes on correctly but not to the last bit. Under the others, settings alone.
_MAY_DIFFER = {
    "resume": _BY_ROLE["record"] | _PLACES | {"accelerator"},  # a checkpoint and the run that continues it
    "branch": _BY_ROLE["record"] | _PLACES | {"accelerator", "method"} | _BY_ROLE["pairing"],  # a trunk and its branch
    "decay": _BY_ROLE["record"] | _PLACES | {"accelerator", "method", "seed", "epochs", "decay"} | _BY_ROLE["pairing"],
    "stored": _BY_ROLE["record"] | _BY_ROLE["host"],  # a finished run and one that is asked for
    "row": _BY_ROLE["record"] | _BY_ROLE["host"] | {"seed"},  # records of one row of a table
    "pairing": _BY_ROLE["record"] | _BY_ROLE["host"] | {"method"} | _BY_ROLE["pairing"],  # walks and VICReg beside them
    "study": _PLACES | {"variant", "precision"},  # a search for settings and its continuation
}


def may_differ(name: str, purpose: str) -> bool:
    """Whether two runs may differ in a field.

    Args:
        name: of a field of Config.
        purpose: "resume", a checkpoint and the run that continues it; "branch", a trunk and its branch; "decay",
            likewise under schedule wsd; "stored", a finished run and one that is asked for; "row", records of one row
            of a table; "pairing", a run with walks and the VICReg it is compared with when pairing settings are
            selected; "study", a search that goes on.
    """
    return name in _MAY_DIFFER[purpose]


def differing(then: dict, now: dict, purpose: str) -> dict[str, tuple[Any, Any]]:
    """Fields in which two runs differ and may not, with both values.

    Args:
        then: fields of one run, as a record or checkpoint has them; one that is newer than it had its default.
        now: of the other.
        purpose: see `may_differ`.
    """
    defaults = Config().to_dict()
    then, now = defaults | then, defaults | now
    return {
        name: (then[name], now[name]) for name in defaults if not may_differ(name, purpose) and then[name] != now[name]
    }


def configure(method: str = "vicreg", profile: str = "tour", **fields) -> Config:
    """The profile's setting under a method's recipe, with any field of Config replaced.

    Raises:
        ValueError: for an unknown method, profile or field (the nearest names are offered).
    """
    _known("method", method, METHODS)
    _known("profile", profile, PROFILES)
    for name in fields:
        _known("field", name, Config.__dataclass_fields__)
    recipe = RECIPES.get(method, {}) | (_LONG_RECIPES.get(method, {}) if profile.startswith("long") else {})
    return replace(Config(method=method, profile=profile), **{**PROFILES[profile], **recipe, **fields})


def _known(kind: str, name: str, names: Iterable[str]) -> None:
    if name not in names:
        near = ", ".join(difflib.get_close_matches(name, list(names), n=3, cutoff=0) or names)
        raise ValueError(f"unknown {kind} {name!r}: did you mean {near}?")


TOLD = """Train one method on one image set, judge it, and leave a record. Method and profile set every other default.

examples:
  sagkit train --method sag-vicreg --profile tour                     on drawn shapes: the quickest way to see it work
  sagkit train --method sag-vicreg --data cifar100 --profile laptop   a run of the tables
  sagkit train --method sag-vicreg --data photos/ --split fit --profile laptop --view-size 32 --batch-size 128"""


def parse(arguments: list[str], prog: str = "sagkit train") -> Config:
    """The configuration that words of a command line ask for: of its profile and method, with the fields it names.

    Raises:
        ValueError: for an unknown method or profile, and see `check`.
        SystemExit: for `--help`, an unknown flag or a value that is none of the field's, told on standard error.
    """
    import tyro

    chosen = {}
    for i, word in enumerate(arguments):
        flag, _, value = word.partition("=")
        if flag in ("--profile", "--method"):
            chosen[flag[2:]] = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
    preset = configure(**chosen)
    groups = {role: [_option(f, getattr(preset, f.name)) for f in fields(Config) if _role(f) == role] for role in ROLES}
    kinds = {role: make_dataclass(role, options, frozen=True) for role, options in groups.items()}
    nested = make_dataclass("Options", [(role, kind, kind()) for role, kind in kinds.items()])
    found = tyro.cli(nested, args=arguments, prog=prog, description=TOLD, config=(tyro.conf.OmitArgPrefixes,))
    config = Config(**{name: value for role in ROLES for name, value in vars(getattr(found, role)).items()})
    check(config)
    return config


def _role(f: Field) -> str:
    return f.metadata["role"]


def _option(f: Field, default) -> tuple[str, Any, Any]:
    """A field of Config as an option of the command line."""
    import tyro

    among, kind, told = f.metadata["among"], type(f.default), f.metadata["help"]
    if isinstance(among, str):
        told += f"; in {among}"
    kind = tuple[int, ...] if kind is tuple else Literal[among] if isinstance(among, tuple) else kind
    return f.name, Annotated[kind, tyro.conf.arg(help=told)], default


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
