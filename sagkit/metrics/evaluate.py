"""What an encoder is worth: local accuracy and global structure of its features, as one flat dictionary.

Local: kNN, linear probe and retrieval, on classes and superclasses. Global: rank correlation of embedding distances
with semantic distances (figures/METHOD.md section 5), the tree of classes against the reference's, and the label-free
score. All as fractions, on clean images in evaluation mode. What an embedding must beat is a floor: random networks of
its architecture from the run records, or random projections of the images; `semantic.verdict` gives the distance of
Spearman over image pairs from the floor's mean, in its standard deviations. [K]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from sagkit.augment import Augmentation, in_bytes
from sagkit.data.load import ImageSet, family, left_out
from sagkit.data.series import Examples, VectorSet
from sagkit.data.taxonomy import class_distances, superclasses
from sagkit.metrics.labelfree import structure_score
from sagkit.metrics.local import Index, knn_accuracy, linear_probe, share_alike
from sagkit.metrics.semantic import KINDS, RankCorrelation, random_floor, rank_correlation, verdict
from sagkit.metrics.tree import hierarchy_figures
from sagkit.model import extract_features

# Views behind label-free scores. Strong colour changes undo what untrained networks and pixels go by [K]: hue all round
# the circle, the rest well beyond the training recipe.
STANDARD = Augmentation()
CHANGED = Augmentation(
    crop_scale=(0.3, 0.7),
    jitter=1.0,
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.5,
    grey=0.3,
    solarize=0.2,
)
RECOLOURED = replace(CHANGED, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
LEAST_EXAMPLES = 3  # of which two may be more alike than another two
NO_FLOOR = "no floor: it needs a semantic reference, and features of the data set's own test images other than pixels"


def evaluate(
    encoder: nn.Module,
    bank: Examples,
    queries: Examples,
    data: str,
    probe: bool = True,
    seed: int = 0,
    resamplings: int = 1000,
) -> dict[str, float]:
    """Every figure of an encoder.

    Args:
        encoder: images (B, 3, H, W) in [0, 1] to features (B, F).
        bank: images whose labels kNN and probe may use.
        queries: images that are judged.
        data: name of the data set, for its semantic references.
        probe: also fit the linear probes, the slowest part.
        seed: of the changed view behind the label-free figure.
        resamplings: behind the intervals; 0 leaves them out.

    Unlabelled data has the label-free figure only; labelled queries beside an unlabelled bank have those that need no
    bank, and a single class no order. Where the training set left classes out, "unseen_..." are the same figures,
    without probes, of queries of those classes alone, among all classes of the bank.
    """
    figures = label_free(encoder, queries.images, seed, bootstrap=resamplings, view=view_of(queries))
    if queries.labels is None:
        return figures
    features = extract_features(encoder, queries.images)
    if bank.labels is None:
        coarse, distances = coarse_of(data, queries.class_names), references(data, queries.class_names)
        return figures | arrangement(features, cast(Tensor, queries.labels), distances, coarse, resamplings)
    banked = extract_features(encoder, bank.images)
    return figures | judged(banked, cast(Tensor, bank.labels), features, queries, data, probe, resamplings)


def check_sets(bank: Examples, queries: Examples, data: str) -> None:
    """Refuse sets that `evaluate` could not use, before an encoder is trained for them.

    Raises:
        ValueError: for anything but two ImageSets or two VectorSets, fewer than three examples, classes of other names
            in the one than in the other, or names that are no tree.
    """
    for name, examples in (("train", bank), ("queries", queries)):
        if not isinstance(examples, ImageSet | VectorSet):
            raise ValueError(f"{name} is of type {type(examples).__name__}: give an ImageSet, or a VectorSet")
        if len(examples) < LEAST_EXAMPLES:
            raise ValueError(f"{name} has {len(examples)} examples: at least {LEAST_EXAMPLES} are needed to judge by")
    if bank.labels is not None and queries.labels is not None and bank.class_names != queries.class_names:
        found = " and ".join(f"{len(s.class_names)} ({', '.join(s.class_names[:3])}, ...)" for s in (bank, queries))
        raise ValueError(f"train and queries have other classes, {found}: labels of both are positions in one list")
    if queries.labels is not None:
        references(data, queries.class_names)
        coarse_of(data, queries.class_names)


def judged(
    bank: Tensor,
    bank_labels: Tensor,
    features: Tensor,
    queries: Examples,
    data: str,
    probe: bool = True,
    resamplings: int = 1000,
) -> dict[str, float]:
    """`labelled` of the queries' features, and "unseen_..." where training left classes out; see `evaluate`."""
    asked = cast(Tensor, queries.labels)
    figures = labelled(bank, bank_labels, features, asked, data, queries.class_names, probe, resamplings)
    unseen = torch.isin(asked, left_out(data))
    if not unseen.any():
        return figures
    few, labels = features[unseen], asked[unseen]
    apart = labelled(bank, bank_labels, few, labels, data, queries.class_names, False, resamplings)
    return figures | {f"unseen_{name}": value for name, value in apart.items()}


def labelled(
    bank: Tensor,
    bank_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    data: str,
    class_names: tuple[str, ...],
    probe: bool = True,
    resamplings: int = 1000,
) -> dict[str, float]:
    """Every figure that needs labels, of features from anywhere: local accuracy, structure, and the tree of classes."""
    coarse, distances = coarse_of(data, class_names), references(data, class_names)
    figures = local(bank, bank_labels, features, labels, coarse, probe)
    return figures | arrangement(features, labels, distances, coarse, resamplings, bank, bank_labels)


def arrangement(
    features: Tensor,
    labels: Tensor,
    distances: dict[str, np.ndarray],
    coarse: Tensor | None,
    resamplings: int = 0,
    bank: Tensor | None = None,
    bank_labels: Tensor | None = None,
) -> dict[str, float]:
    """How images lie among each other: `retrieval`, `structure`, and "tree_..." of the classes' dendrogram against the
    primary reference, from three classes on.

    Mistakes have a severity only where a bank's labels can be used.
    """
    figures = retrieval(features, labels, coarse) | structure(features, labels, distances, resamplings)
    if distances and labels.unique().numel() > 2:
        primary = next(iter(distances.values()))
        superclass = None if coarse is None else coarse.numpy()
        found = hierarchy_figures(features, labels, primary, superclass, bank, bank_labels)
        figures |= {f"tree_{name}": value for name, value in found.items()}
    return figures


def local(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, coarse, probe: bool) -> dict[str, float]:
    """kNN and, if asked for, linear-probe accuracy on classes and (with a mapping `coarse`) superclasses."""
    figures = {"knn": knn_accuracy(bank, bank_labels, queries, labels)}
    if probe and _differ(bank_labels):
        figures["linear"] = linear_probe(bank, bank_labels, queries, labels)
    if coarse is not None:
        figures["superclass_knn"] = knn_accuracy(bank, coarse[bank_labels], queries, coarse[labels])
        if probe and _differ(coarse[bank_labels]):
            figures["superclass_linear"] = linear_probe(bank, coarse[bank_labels], queries, coarse[labels])
    return figures


def retrieval(features: Tensor, labels: Tensor, coarse: Tensor | None, k: int = 10) -> dict[str, float]:
    """Share of the class, and (with a mapping `coarse`) of the superclass, among the k other images most alike."""
    k = min(k, len(features) - 1)
    if k < 1:
        return {}
    alike = Index(features).similar(k)[1]
    figures = {"retrieval": share_alike(alike, labels)}
    return figures if coarse is None else figures | {"superclass_retrieval": share_alike(alike, coarse[labels])}


def structure(
    features: Tensor, labels: Tensor, distances: dict[str, np.ndarray], resamplings: int = 0
) -> dict[str, float]:
    """Spearman and Kendall by kind against every reference; figures of the primary one carry no suffix.

    With resamplings, the primary one's have 95 % intervals over classes ("..._low", "..._high"), and pairs a Mantel p.
    A further reference in which all classes that occur are equally far apart has no order, and is left out; a single
    class has none at all.
    """
    figures: dict[str, float] = {}
    if not _differ(labels):
        return figures
    for i, (reference, matrix) in enumerate(distances.items()):
        if i and not _has_order(matrix, labels):
            continue
        suffix, drawn = (f"_{reference.replace('-', '_')}", 0) if i else ("", resamplings)
        for kind in KINDS:
            name = kind.replace("-", "_")
            tested = drawn if kind == "pairs" else 0
            found = rank_correlation(features, labels, matrix, kind=kind, bootstrap=drawn, permutations=tested)
            figures[f"spearman_{name}{suffix}"] = found.spearman
            figures[f"kendall_{name}{suffix}"] = found.kendall
            for which, interval in (("spearman", found.spearman_interval), ("kendall", found.kendall_interval)):
                if interval is not None:
                    figures |= dict(zip((f"{which}_{name}_low", f"{which}_{name}_high"), interval, strict=True))
            if found.p is not None:
                figures[f"mantel_p_{name}"] = found.p
    return figures


def view_of(queries: Examples) -> Callable[[Tensor, torch.Generator], Tensor]:
    """The change behind the label-free score of a set: that of images, or of vectors their own."""
    return queries.view if isinstance(queries, VectorSet) else recoloured_crop


def recoloured_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """The change behind the label-free score of images; both uint8 (B, 3, H, W)."""
    return in_bytes(CHANGED(images, generator))


def label_free(
    encoder: nn.Module, images: Tensor, seed: int = 0, n: int = 2000, bootstrap: int = 0, view=recoloured_crop
) -> dict[str, float]:
    """Label-free structure score of up to n images, clean against changed, with its interval if resampled."""
    generator = torch.Generator().manual_seed(seed)
    chosen = images[torch.randperm(len(images), generator=generator)[:n]]
    clean, changed = (extract_features(encoder, view) for view in (chosen, view(chosen, generator)))
    found = structure_score(clean, changed, bootstrap=bootstrap, seed=seed)
    figures = {"label_free": found.score}
    if found.low is not None and found.high is not None:
        figures |= {"label_free_low": found.low, "label_free_high": found.high}
    return figures


def references(data: str, class_names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Semantic distances (C, C) between the classes of a data set, by name; the first is the primary reference.

    CIFAR-10 has WordNet, CIFAR-100 and its parts have WordNet and superclasses; class names that are paths
    ("round/disc/striped") have their tree; other data sets have none.
    """
    data = family(data)
    if data in ("cifar100", "cifar10"):
        names = ("wordnet", "wordnet-path", "superclass") if data == "cifar100" else ("wordnet", "wordnet-path")
        return {name: class_distances(data, reference=name, class_names=class_names or None) for name in names}
    if class_names and all("/" in name for name in class_names):
        return {name: class_distances(data, reference=name, class_names=class_names) for name in ("tree", "superclass")}
    return {}


def coarse_of(data: str, class_names: tuple[str, ...]) -> Tensor | None:
    """Superclass of each class (C,) int64, or None for data without superclasses."""
    data = family(data)
    if data != "cifar100" and not all("/" in name for name in class_names):
        return None
    return torch.as_tensor(superclasses(data, class_names=class_names)[1])


def random_networks(results, data: str, architecture: str | None, figures) -> list[float]:
    """Spearman over image pairs of the untrained networks of one architecture in the run records."""
    if architecture is None or "spearman_pairs" not in figures:
        return []
    found = {}
    for path in sorted(Path(results).glob("*/*/*-seed*.json")):
        record = json.loads(path.read_text())
        config = record.get("config", {})
        alike = config.get("epochs") == 0 and config.get("encoder") == architecture and record.get("data") == data
        if alike and record.get("evaluated_on") == "test" and "spearman_pairs" in record["metrics"]:
            found[record["seed"]] = record["metrics"]["spearman_pairs"]
    return list(found.values())


def projections(images: ImageSet, width: int, reference, n: int = 2000) -> list[float]:
    """Spearman of random projections of up to n images, drawn at random."""
    if reference is None:
        return []
    # Pairs enough for a standard error of 0.002, below the spread of projections; a million take five times as long.
    few = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:n]
    inputs, y = images.images[few].numpy() / 255, cast(Tensor, images.labels)[few].numpy()
    return random_floor(inputs, y, reference, width, n_pairs=200_000).tolist()


def with_floor(figures: dict[str, float], scores: Sequence[float], of: str) -> tuple[dict[str, float], str]:
    """Figures with "floor", "floor_sd" and "floor_n" from at least two differing scores, and the verdict in one line.

    Args:
        figures: of the embedding.
        scores: Spearman over image pairs of the floor: random networks or random projections.
        of: what those are, in the plural.
    """
    if "spearman_pairs" not in figures or len(set(scores)) < 2:
        return figures, NO_FLOOR
    mean, sd = float(np.mean(scores)), float(np.std(scores, ddof=1))
    against = RankCorrelation(figures["spearman_pairs"], 0.0, floor=mean, floor_sd=sd, floor_n=len(scores))
    return figures | {"floor": mean, "floor_sd": sd, "floor_n": len(scores)}, verdict(against, of)


def _differ(labels: Tensor) -> bool:
    return labels.unique().numel() > 1


def _has_order(matrix: np.ndarray, labels: Tensor) -> bool:
    present = labels.unique().numpy()
    apart = matrix[np.ix_(present, present)][np.triu_indices(len(present), k=1)]
    return bool((apart != apart[:1]).any())
