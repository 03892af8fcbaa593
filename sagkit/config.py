"""Everything a training run can be told, in one flat frozen dataclass, and the profiles that fill it.

A profile is a budget: data size, encoder and epochs. `configure("sag-vicreg", "laptop", seed=1)` is the profile's
setting for that method, with any field replaced by name; the command line is generated from the same dataclass.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class Config:
    """One training run. Epochs are counted in passes over the training images."""

    method: str = "vicreg"  # vicreg, sag-vicreg
    data: str = "shapes"  # shapes, cifar10, cifar100, a folder of images, or an .npz file
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
    every: int = 1  # pairs at every m-th step only; scopes batch and queue
    scope: str = "batch"  # nodes of the graph: batch, queue (and the last batches), dataset (all training images)
    queue_batches: int = 4  # under scope queue
    graph_epochs: int = 1  # epochs between two graphs under scope dataset

    view_size: int = 32  # pixels, height and width of the augmented views
    crop_min: float = 0.2  # least area of a random crop, METHOD.md section 6
    blur: float = 0.0  # probability of Gaussian blur; for images larger than 32 pixels

    snapshots: bool = False  # also keep the encoder after epochs 1, 2, 4, 8, ..., for a zoo of embeddings
    readout_every: int = 5  # epochs between kNN and structure readouts; 0: never
    probe: bool = True  # fit the linear probe in the final evaluation
    accelerator: str = "auto"  # Lightning Fabric: auto, cpu, cuda, mps
    devices: int = 1  # processes
    precision: str = "auto"  # bf16-mixed, 16-mixed, 32-true; auto: see trainer.native_precision
    threads: int = 0  # CPU threads; 0: PyTorch's choice
    data_root: str = ""  # where CIFAR lies; empty: SAGKIT_DATA
    results: str = "figures/results"  # run records
    runs: str = "runs"  # checkpoints of unfinished runs

    def to_dict(self) -> dict:
        """Plain values by field name, for the run record."""
        return asdict(self)


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
PROFILES: dict[str, dict] = {
    "tour": {"view_size": 16, "batch_size": 128, "lr": 1e-2, "epochs": 10, "readout_every": 0},
    "sweep": {**_CIFAR, "epochs": 6, "split": "fit"},
    "laptop": {**_CIFAR, "epochs": 16},
    "gpu": {**_RESNET18, "epochs": 200},
    "full": {**_RESNET18, "epochs": 1000},
}


def configure(method: str = "vicreg", profile: str = "tour", **fields) -> Config:
    """The profile's setting for a method, with any field of Config replaced.

    Raises:
        ValueError: for an unknown profile or field (the nearest names are offered).
    """
    _known("profile", profile, PROFILES)
    for name in fields:
        _known("field", name, Config.__dataclass_fields__)
    return replace(Config(method=method, profile=profile), **{**PROFILES[profile], **fields})


def _known(kind: str, name: str, names) -> None:
    if name not in names:
        near = ", ".join(difflib.get_close_matches(name, list(names), n=3, cutoff=0) or names)
        raise ValueError(f"unknown {kind} {name!r}: did you mean {near}?")
