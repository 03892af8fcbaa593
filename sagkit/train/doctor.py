"""Says in plain words what is wrong with an embedding or a training run, by which number, and what to try.

    spread          rms distance of the features from their mean / rms length of the features
    effective rank  exp(entropy of the covariance's eigenvalues, scaled to sum 1)          [R: RankMe, on eigenvalues]

    sagkit doctor runs/results/tour/shapes/sag-vicreg-seed0.json
    sagkit doctor runs/pilot/embedding.npz

Source: [R] VICReg's own account of collapse: variance term at 1, covariance and invariance at 0; RankMe takes singular
values where this takes their squares; [K] the thresholds, set between what trained, untrained and broken networks of
this kit showed: spread 0.18 untrained, 0.33 trained, below 0.01 collapsed; effective rank 4 to 20 of 128 against 1
to 3. They tell where to look closer and belong in no table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sagkit.augment import in_bytes
from sagkit.data.files import read_arrays
from sagkit.data.load import load_images
from sagkit.data.series import Examples, VectorSet
from sagkit.metrics import labelfree
from sagkit.model import extract_features
from sagkit.pairing import WalkPairing
from sagkit.train.build import build_views
from sagkit.train.config import WALKING, Config
from sagkit.train.record import load_encoder, read_record
from sagkit.walk import Pairs

LEAST_SPREAD = 0.02
LEAST_RANK = 3.0  # or a quarter of F or N - 1, where that is less
MOST_UNUSED = 0.5  # share of dimensions that hardly vary
GONE_VARIANCE, GONE_COVARIANCE = 0.95, 1e-3  # of VICReg's terms: standard deviations below 0.05, covariances of 0
MOST_COVARIANCE = 100.0  # a covariance term that trains stays below 10
RISE = 2.0  # factor between a loss and an earlier one
MOVING = ("smooth_l1", "cross_entropy")  # terms towards a teacher that learns, too: they may rise in a sound run
JUDGED = 1500  # images whose features are looked at
STRUCTURE = ("label_free", "spearman_pairs")  # readouts of a log, the first that it holds
FALL, LEAST_FALL = 0.1, 0.05  # share of its best value that structure may lose, or this much: readouts are samples
BATCH_SHARE = 10  # a neighbour list may hold one image of a batch in ten
SURE = 3.0  # standard errors


class Diagnosis(NamedTuple):
    """One finding: its name, "error" (results are worthless) or "warning", the number that shows it, what to try."""

    name: str
    severity: str
    evidence: str
    remedy: str


def effective_rank(x: np.ndarray) -> float:
    """exp of the entropy of the covariance's eigenvalues of rows (N, F); 1 to min(F, N - 1), 0 without variance."""
    return labelfree.entropy_rank(np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2)


def examine(features) -> list[Diagnosis]:
    """What is wrong with an embedding; an empty list where nothing is found.

    Args:
        features: (N, F), tensor or array, N at least 2.

    Raises:
        ValueError: for another shape.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features must be (N, F) with N >= 2, got {x.shape}")
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        found = f"{(~finite).sum()} of {len(x)} rows hold NaN or infinity, the first is row {int((~finite).argmax())}"
        return [Diagnosis("not finite", "error", found, "lower the learning rate, go back to the last good checkpoint")]
    centred = x - x.mean(axis=0)
    spread = np.sqrt((centred**2).sum() / max((x**2).sum(), 1e-300))
    if spread < LEAST_SPREAD:
        found = f"all images look alike: features spread {spread:.2g} of their length (least {LEAST_SPREAD})"
        return [Diagnosis("collapse", "error", found, "raise var (25 is the default), lower the learning rate")]
    rank, least = effective_rank(x), min(LEAST_RANK, x.shape[1] / 4, (len(x) - 1) / 4)
    std = centred.std(axis=0)
    unused = float((std < 0.01 * std.max()).mean())
    if rank < least or unused > MOST_UNUSED:
        found = f"effective rank {rank:.1f} (least {least:.1f}), {unused:.0%} of {x.shape[1]} dimensions hardly vary"
        remedy = "raise cov (1 is the default), lower the learning rate, train longer, or widen the projector"
        return [Diagnosis("partial collapse", "warning", found, remedy)]
    return []


def examine_run(log: Sequence[Mapping[str, float]]) -> list[Diagnosis]:
    """What is wrong with a run, from its log: one entry an epoch (or step) with `loss`, VICReg's terms and readouts.

    Keys that an entry lacks are not judged, so that any loop's losses will do.
    """
    found = []
    for i, entry in enumerate(log):
        bad = [name for name, value in entry.items() if not math.isfinite(value)]
        if bad:
            told = f"{', '.join(bad)} of entry {entry.get('epoch', i)} is not a finite number"
            remedy = (
                "lower the learning rate; go on from the last good checkpoint; trainer.replay repeats the kept step"
            )
            return [Diagnosis("not finite", "error", told, remedy)]
    if log and log[-1].get("variance", 0) >= GONE_VARIANCE and log[-1].get("covariance", 1) <= GONE_COVARIANCE:
        told = f"variance term {log[-1]['variance']:.3f} of at most 1 and covariance term {log[-1]['covariance']:.1g}"
        remedy = "raise var (25 is the default), lower the learning rate"
        found.append(Diagnosis("collapse", "error", f"{told}: every image has one projection", remedy))
    return found + _rate_too_high(log) + _structure_falls(log)


def _rate_too_high(log) -> list[Diagnosis]:
    losses = [entry["loss"] for entry in log if "loss" in entry and not entry.keys() & set(MOVING)]
    told = None
    for i, loss in enumerate(losses[1:], start=1):
        if loss > RISE * min(losses[:i]) > 0:
            told = f"the loss rose from {min(losses[:i]):.4g} to {loss:.4g} (entry {i + 1})"
            break
    largest = max((entry.get("covariance", 0) for entry in log), default=0)
    if largest > MOST_COVARIANCE:
        told = f"the covariance term reached {largest:.3g} (most {MOST_COVARIANCE:g})"
    remedy = "divide lr by 10; lengthen warmup_epochs"
    return [Diagnosis("learning rate too high", "error", told, remedy)] if told else []


def _structure_falls(log) -> list[Diagnosis]:
    for name in STRUCTURE:
        read = [(entry[name], entry["loss"]) for entry in log if name in entry and "loss" in entry]
        if len(read) < 3:
            continue
        best = max(range(len(read)), key=lambda i: read[i][0])
        (peak, loss_then), (last, loss_now) = read[best], read[-1]
        if peak > 0 and last < peak - max(FALL * peak, LEAST_FALL) and read[-2][0] < peak and loss_now < loss_then:
            told = (
                f"{name} fell from {peak:.3f} to {last:.3f} while the loss fell from {loss_then:.4g} to {loss_now:.4g}"
            )
            remedy = "stop at the best readout; lower alpha, start the walks later, keep only confident pairs"
            return [Diagnosis("loss falls, structure falls", "warning", told, remedy)]
    return []


def examine_settings(batch_size: int, k: int) -> list[Diagnosis]:
    """Whether a batch is large enough for its neighbour lists: k may be a tenth of it at most."""
    if k * BATCH_SHARE <= batch_size:
        return []
    told = f"k = {k} neighbours are {k / batch_size:.0%} of a batch of {batch_size} (most {1 / BATCH_SHARE:.0%})"
    remedy = f"batch_size {k * BATCH_SHARE} or more, k = {max(1, batch_size // BATCH_SHARE)}, or scope queue or dataset"
    return [Diagnosis("batch too small for k", "warning", f"{told}: lists must take in strangers", remedy)]


def examine_pairs(pairs: Pairs, labels: Tensor | None = None, view: Tensor | None = None) -> list[Diagnosis]:
    """Whether walk pairs are better than chance, by labels or, without any, by features that the walks did not see.

    Args:
        pairs: as WalkPairing gives them, from features of one set of views.
        labels: classes (N,) of the images; chance is that two different images share one.
        view: features (N, F) of other views of the same images; chance is the similarity of random pairs.

    Raises:
        ValueError: without labels and view.
    """
    away = (pairs.anchor != pairs.positive) & (pairs.weight > 0)
    anchor, positive = pairs.anchor[away], pairs.positive[away]
    remedy = "start the walks later, use a larger batch or scope dataset, mutual edges, smaller k and length"
    if not len(anchor):
        told = f"none of {len(pairs.anchor)} pairs has a weight"
        return [Diagnosis("walk pairs at chance", "warning", told, remedy)]
    if labels is not None:
        count = torch.bincount(labels).double()
        chance = float((count * (count - 1)).sum() / (len(labels) * (len(labels) - 1)))
        agreement, what = (labels[anchor] == labels[positive]).double(), "pairs of one class"
        error = math.sqrt(chance * (1 - chance) / len(anchor))
    elif view is not None:
        unit = torch.nn.functional.normalize((view - view.mean(dim=0)).double(), dim=1)
        similar = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
        agreement, what = (unit[anchor] * unit[positive]).sum(dim=1), "similarity of pairs in views not walked on"
        chance, error = float(similar.mean()), float(similar.std()) / math.sqrt(len(anchor))
    else:
        raise ValueError("pairs are judged by labels or by features of other views: give one of them")
    if float(agreement.mean()) > chance + SURE * error:
        return []
    told = f"{what}: {float(agreement.mean()):.3f}, chance {chance:.3f} ± {error:.3f}, over {len(anchor)} pairs"
    return [Diagnosis("walk pairs at chance", "warning", told, remedy)]


def tell(diagnoses: Sequence[Diagnosis]) -> str:
    """Findings as text, one paragraph each."""
    lines = [f"{d.severity}: {d.name}. {d.evidence}.\n  Try: {d.remedy}." for d in diagnoses]
    return "\n".join(lines) or "nothing found that looks wrong"


class CheckUp(NamedTuple):
    """Findings by what was looked at, and what could not be looked at with the reason."""

    found: dict[str, list[Diagnosis]]
    unchecked: dict[str, str]

    def told(self) -> str:
        """All of it as text, one line or paragraph for each thing."""
        lines = [f"{what}: {tell(diagnoses)}" for what, diagnoses in self.found.items()]
        return "\n".join(lines + [f"{what}: not checked, {reason}" for what, reason in self.unchecked.items()])


def check_up(record: dict, encoder: nn.Module | None, train: Examples | None, judged: Examples | None) -> CheckUp:
    """Everything that can be looked at of a run: its log, its settings, its encoder's features, the pairs it walks to.

    Args:
        record: see `sagkit.train.record`.
        encoder: of the run; None where it is not stored.
        train: what it was trained on; None where that is not to be had.
        judged: what it was judged on; features of up to 1,500 of them, drawn by the run's seed, are looked at.
    """
    config = Config.from_dict(record["config"])
    found, unchecked = {"log": examine_run(record["log"])}, {}
    absent = "no encoder lies beside the record" if encoder is None else "the images are not here"
    if encoder is None or judged is None:
        unchecked["features"] = absent
    else:
        chosen = torch.randperm(len(judged), generator=torch.Generator().manual_seed(config.seed))[:JUDGED]
        found["features"] = examine(extract_features(encoder, judged.images[chosen]))
    if config.method not in WALKING or not config.alpha or config.scope != "batch":
        unchecked |= dict.fromkeys(("settings", "pairs"), "the run does not walk within a batch")
        return CheckUp(found, unchecked)
    found["settings"] = examine_settings(config.batch_size, config.k)
    if encoder is None or train is None or isinstance(train, VectorSet):
        unchecked["pairs"] = absent if encoder is None or train is None else "their views are for images"
    else:
        found["pairs"] = examine_pairs(*_walked(config, encoder, train))
    return CheckUp(found, unchecked)


def _walked(config: Config, encoder: nn.Module, train: Examples) -> tuple[Pairs, None, Tensor]:
    """Pairs of one batch under the run's own views, and features of other views of it; see `examine_pairs`."""
    generator = torch.Generator().manual_seed(config.seed)
    rows = torch.randperm(len(train), generator=generator)[: config.batch_size]
    view, _ = build_views(config, train)
    ha, hb, other = (extract_features(encoder, in_bytes(view(train.images[rows], generator))) for _ in range(3))
    return WalkPairing(k=config.k, length=config.length, seed=config.seed)(ha, hb), None, other


def main(path: Path, /) -> None:
    """Say what is wrong with a run or an embedding, by which number, and what to try.

    Args:
        path: a run record (.json), whose encoder beside it and images are looked at where they are there; or an
            embedding (.npz with `features`).
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist: check the path")
    if path.suffix == ".npz":
        features = read_arrays(path, ["features"]).get("features")
        if features is None or features.ndim != 2 or features.dtype.kind not in "fiu":
            raise ValueError(f"{path} is no embedding: give an .npz with an array `features` of numbers (N, F)")
        unchecked = dict.fromkeys(("log", "settings", "pairs"), "an embedding says nothing of them")
        print(f"read: {len(features):,} rows of {path}")
        print(CheckUp({"features": examine(features)}, unchecked).told())
        return
    record = read_record(path)
    read, weights = [f"{path} ({len(record['log'])} epochs)"], path.with_suffix(".safetensors")
    encoder = load_encoder(weights) if weights.exists() else None
    sets = {}
    for split in (record["config"]["split"], record["evaluated_on"]) if encoder is not None else ():
        try:
            sets[split] = load_images(record["data"], split, download=False)
        except ValueError as error:
            print(f"images: {error}")
    read += [str(weights)] if encoder is not None else []
    read += [f"{len(images):,} images of {record['data']}, {split}" for split, images in sets.items()]
    print("read: " + "; ".join(read))
    print(check_up(record, encoder, sets.get(record["config"]["split"]), sets.get(record["evaluated_on"])).told())
