"""The zoo's training runs: twelve kinds of training, each at several lengths, widths and seeds, in a minute or less.

    trained(Training("SimCLR", epochs=2, width=8, seed=0), images, folder)      trains once, and keeps encoder and cost

Kinds that `sagkit.train` has are trained by it, under the recipes of its profile `long`, which start quickly; the
others by `sagkit.studies.objectives`. All see 10,000 images in views of 16 pixels; none is meant to be good, and they
are to differ in what they learn. [K]
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sagkit.augment import Augmentation, channel_statistics
from sagkit.data.load import ImageSet
from sagkit.data.taxonomy import superclasses
from sagkit.metrics.evaluate import CHANGED
from sagkit.model import Encoder, make_encoder
from sagkit.studies.objectives import GENTLE, learn
from sagkit.train.config import configure
from sagkit.train.record import provenance, save_encoder, write_record
from sagkit.train.trainer import fit

TRAINED_ON = 10_000  # images of CIFAR-100, the same for each run
SIDE = 16  # pixels of the views
SETTINGS = ((2, 8, 0), (3, 8, 1), (1, 8, 2), (2, 16, 3), (4, 8, 4))  # epochs, width, seed of the runs of a kind
# Kinds that sagkit.train has: method, and what differs from the profile `long`, whose recipes start quickly.
METHODS = {
    "VICReg": ("vicreg", {}),
    "SAG-VICReg": ("sag-vicreg", {}),
    "Barlow Twins": ("barlow-twins", {}),
    "DINO": ("dino", {"prototypes": 512}),
    "I-JEPA": ("ijepa", {"view_size": 32, "predictor_width": 32, "predictor_depth": 1}),
}
# Kinds that it has not: objective, labels, view; what sees one view an image takes twice the epochs in the same time.
OBJECTIVES = {
    "SimCLR": ("contrast", None, Augmentation(size=SIDE)),
    "rotation": ("rotation", None, Augmentation(size=SIDE, **GENTLE)),
    "classes": ("labels", "classes", Augmentation(size=SIDE, **GENTLE)),
    "autoencoder": ("reconstruction", None, Augmentation(size=SIDE, **GENTLE)),
    "superclasses": ("labels", "superclasses", Augmentation(size=SIDE, **GENTLE)),
    "random labels": ("labels", "random", Augmentation(size=SIDE, **GENTLE)),
    # Blind to the very changes that `structure_score` makes.
    "SimCLR, strong changes": ("contrast", None, Augmentation(**{**vars(CHANGED), "size": SIDE})),
}
KINDS = ("VICReg", "SimCLR", "Barlow Twins", "rotation", "DINO", "classes", "SAG-VICReg", "superclasses")
KINDS += ("autoencoder", "I-JEPA", "SimCLR, strong changes", "random labels")


class Training(NamedTuple):
    """One run of the zoo."""

    kind: str
    epochs: int
    width: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind.lower().replace(', ', '-').replace(' ', '-')}-e{self.epochs}-w{self.width}-s{self.seed}"


def trainings() -> list[Training]:
    """Every run, in an order that covers all kinds first."""
    return [
        Training(kind, epochs * (2 if one_view(kind) else 1), width, seed)
        for epochs, width, seed in SETTINGS
        for kind in KINDS
    ]


def one_view(kind: str) -> bool:
    """Whether a kind of training sees one view of an image a step."""
    return kind in OBJECTIVES and OBJECTIVES[kind][0] != "contrast"


def train(run: Training, images: ImageSet, folder: Path) -> tuple[Encoder, list[float]]:
    """The encoder of one run and the mean loss of its epochs; without labels unless its kind is of labels."""
    if run.kind in METHODS:
        method, differing = METHODS[run.kind]
        fields = {
            **{"data": "cifar100", "variant": run.name, "seed": run.seed, "epochs": run.epochs, "view_size": SIDE},
            **{"batch_size": 256, "schedule": "cosine", "decay": 0.0, "warmup_epochs": 0.2, "walk_start": 0.25},
            **{"projector_hidden": 256, "projector_out": 256, "readout_every": 0, "probe": False, "resamplings": 0},
            **{"encoder": f"resnet10-w{run.width}", "results": str(folder / "results"), "runs": str(folder)},
        }
        if run.kind == "I-JEPA":
            fields["encoder"] = f"vit-d{4 * run.width}-l2-p4-avg"
        unlabelled = ImageSet(images.images)
        found = fit(
            configure(method, "long", **{**fields, **differing}), unlabelled, unlabelled.subset(slice(50)), False
        )
        return found.encoder, [entry["loss"] for entry in found.record["log"]]
    objective, labels, view = OBJECTIVES[run.kind]
    torch.manual_seed(run.seed)
    encoder = make_encoder(f"resnet10-w{run.width}", *channel_statistics(images.images))
    known = None if labels is None else labels_of(labels, images, run.seed)
    return encoder, learn(objective, encoder, images.images, known, run.epochs, view, run.seed)


def labels_of(kind: str, images: ImageSet, seed: int) -> Tensor:
    """Classes, superclasses, or as many random labels as there are classes."""
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(len(images.class_names), (len(images),), generator=generator)
    group = torch.as_tensor(superclasses("cifar100", images.class_names)[1])
    return images.labels if kind == "classes" else group[images.labels]


def trained(run: Training, images: ImageSet, cache: Path) -> dict:
    """What one run cost and lost, after training it unless its encoder lies in the cache."""
    told = cache / f"{run.name}.json"
    if not told.exists():
        begin = time.process_time()
        encoder, losses = train(run, images, cache)
        spent = time.process_time() - begin
        save_encoder(told.with_suffix(".safetensors"), encoder, encoder.architecture)
        origin = {"core_seconds": round(spent, 1), "loss": round(losses[-1], 4), "commit": provenance()["commit"]}
        write_record(told, {**run._asdict(), **origin})
        print(f"{run.name}: {spent:.0f} s of one core", flush=True)
    return json.loads(told.read_text())
