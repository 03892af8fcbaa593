"""Everything a training run can be told, in one flat frozen dataclass, and the profiles that fill it.

A profile is a budget: data size, encoder and epochs; a recipe is what a method has of its own. `configure("dino",
"laptop", seed=1)` is the profile's setting under the method's recipe, with any field replaced by name; the command line
is generated from the same dataclass.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class Config:
    """One training run. Epochs are counted in passes over the training images."""

    method: str = "vicreg"  # vicreg, sag-vicreg, barlow-twins, dino, ijepa
    data: str = "shapes"  # shapes, cifar10, cifar100[-80a, -80b, -lt], a folder of images, or an .npz file
    profile: str = "tour"  # the budget this setting comes from
    variant: str = "default"  # name of a setting that is not the profile's, for the run record
    seed: int = 0  # of weights, data order, views and walks
    split: str = "train"  # "train": evaluate on test; "fit": 90 % of train, evaluate on the other 10 % (for tuning)

    encoder: str = "resnet10-w16"  # see model.make_encoder
    projector_hidden: int = 512  # inner width
    projector_out: int = 512  # D
    projector_layers: int = 3  # linear maps, VICReg authors

    epochs: int = 10
    batch_size: int = 256  # images per step over all processes, METHOD.md section 6
    optimizer: str = "adamw"  # lars, adamw, sgd
    lr: float = 1e-3  # for 256 images; scaled by batch_size / 256
    weight_decay: float = 1e-4  # METHOD.md section 6
    warmup_epochs: float = 1.0  # of the learning rate
    clip: float = 0.0  # largest norm of the whole gradient; 0: as it is

    sim: float = 25.0  # invariance, VICReg authors
    var: float = 25.0  # variance, VICReg authors
    cov: float = 1.0  # covariance, VICReg authors

    # Batch-scope reading of the sources: constants frozen on 2026-11-24, before any tuning [K].
    alpha: float = 0.3  # strength of the walk term
    keep: bool = True  # keep the augmentation term whole; else mix (1 - alpha) s + alpha r
    walk_start: float = 0.25  # fraction of the epochs trained as plain VICReg first
    walk_warmup: float = 0.1  # fraction of the epochs over which alpha then rises
    k: int = 10  # neighbours per image
    length: int = 2  # steps per walk, L
    walks: int = 1  # per image
    temperature: float = 0.1  # of the cosine kernel
    kernel: str = "cosine"  # cosine, gaussian, shared
    mutual: bool = False  # keep only edges both ends agree on
    restart: float = 0.0  # probability per step of jumping back to the start
    unique: bool = False  # several walks of one image that meet count once
    confident: float = 1.0  # fraction of the pairs, those of largest weight, that count
    pairs: str = "walk"  # or a control: random, own, nearest, unweighted, oracle; see sagkit.controls
    matched: bool = False  # a control's weights get the mean of the walk's; scopes batch and queue
    every: int = 1  # pairs at every m-th step only; scopes batch and queue
    scope: str = "batch"  # nodes of the graph: batch, queue (and the last batches), dataset (all training images)
    queue_batches: int = 4  # under scope queue
    graph_epochs: int = 1  # epochs between two graphs under scope dataset

    ema: float = 0.996  # dino, ijepa: the teacher's momentum at the start; it ends at 1; METHOD.md section 6
    prototypes: int = 4096  # dino: outputs of the head, METHOD.md section 6
    local_views: int = 0  # dino: further small crops per image; none in solo-learn's small-image recipe
    local_size: int = 16  # pixels; half the views, as 96 of 224 in DINO
    predictor_width: int = 96  # ijepa, METHOD.md section 6
    predictor_depth: int = 4  # ijepa: blocks, METHOD.md section 6

    view_size: int = 32  # pixels, height and width of the augmented views
    crop_min: float = 0.2  # least area of a random crop, METHOD.md section 6
    colour: bool = True  # jitter, grey and solarised views; else crops and mirror images alone
    blur: float = 0.0  # probability of Gaussian blur; for images larger than 32 pixels

    snapshots: bool = False  # also keep the encoder after epochs 1, 2, 4, 8, ..., for a zoo of embeddings
    readout_every: int = 5  # epochs between kNN and structure readouts; 0: never
    probe: bool = True  # fit the linear probe in the final evaluation
    resamplings: int = 1000  # of classes and images, behind the final evaluation's intervals; 0: none
    accelerator: str = "auto"  # Lightning Fabric: auto, cpu, cuda, mps
    devices: int = 1  # processes
    precision: str = "auto"  # bf16-mixed, 16-mixed, 32-true; auto: see build.native_precision
    threads: int = 0  # CPU threads; 0: PyTorch's choice
    data_root: str = ""  # where CIFAR lies; empty: SAGKIT_DATA
    results: str = "figures/results"  # run records
    runs: str = "runs"  # checkpoints of unfinished runs
    keep_at: tuple[int, ...] = ()  # also keep the checkpoints after these epochs, as trunks of other runs
    trunk: str = ""  # kept checkpoint of a run that was the same up to there: start from it; see sagkit.resume

    @classmethod
    def from_dict(cls, fields: dict) -> Config:
        """What `to_dict` made, of a record or checkpoint; a field that is newer than it has its default."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})

    def to_dict(self) -> dict:
        """Plain values by field name, as JSON has them: for the run record, and to compare with one."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


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
# Less than a minute of one H200, on which an encoder of four times the size takes no longer [K].
_MINUTE = {**_TUNED, "encoder": "resnet10-w32", "epochs": 24, "readout_every": 0}
PROFILES: dict[str, dict] = {
    "tour": {"view_size": 16, "batch_size": 128, "lr": 1e-2, "epochs": 10, "readout_every": 0},
    "sweep": {**_CIFAR, "epochs": 6, "split": "fit"},
    "laptop": {**_CIFAR, "epochs": 16},
    "tuned": _TUNED,
    "search": {**_TUNED, "split": "fit", "probe": False},
    "vectors": {  # rows of a table, or series (with --encoder conv1d-w32-l3); see sagkit.vectors [K]
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


def configure(method: str = "vicreg", profile: str = "tour", **fields) -> Config:
    """The profile's setting under a method's recipe, with any field of Config replaced.

    Raises:
        ValueError: for an unknown profile or field (the nearest names are offered).
    """
    _known("profile", profile, PROFILES)
    for name in fields:
        _known("field", name, Config.__dataclass_fields__)
    return replace(Config(method=method, profile=profile), **{**PROFILES[profile], **RECIPES.get(method, {}), **fields})


def _known(kind: str, name: str, names) -> None:
    if name not in names:
        near = ", ".join(difflib.get_close_matches(name, list(names), n=3, cutoff=0) or names)
        raise ValueError(f"unknown {kind} {name!r}: did you mean {near}?")
