"""What an encoder is worth: local accuracy and global structure of its features, as one flat dictionary.

Local: kNN and linear probe, on classes and superclasses. Global: rank correlation of embedding distances with
semantic distances (METHOD.md section 5), and the label-free agreement of two views. All as fractions, on clean images
in evaluation mode. [K]
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sagkit.augment import Augmentation, two_views
from sagkit.data import ImageSet
from sagkit.hierarchy import class_distances, superclasses
from sagkit.metrics.labelfree import structure_score
from sagkit.metrics.local import knn_accuracy, linear_probe
from sagkit.metrics.semantic import rank_correlation
from sagkit.model import extract_features
from sagkit.subsets import family, left_out

KINDS = ("pairs", "pairs-all", "confusion", "centroid")


def references(data: str, class_names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Semantic distances (C, C) between the classes of a data set, by name; the first is the primary reference.

    CIFAR-10 has WordNet, CIFAR-100 and its parts (`subsets`) have WordNet and superclasses; class names that are paths
    ("round/disc/striped") have their tree; other data sets have none.
    """
    data = family(data)
    if data in ("cifar100", "cifar10"):
        names = ("wordnet", "superclass") if data == "cifar100" else ("wordnet",)
        return {name: class_distances(data, reference=name) for name in names}
    if class_names and all("/" in name for name in class_names):
        return {name: class_distances(data, reference=name, class_names=class_names) for name in ("tree", "superclass")}
    return {}


def structure(features: Tensor, labels: Tensor, distances: dict[str, np.ndarray]) -> dict[str, float]:
    """Spearman and Kendall by kind against every reference; figures of the primary one carry no suffix."""
    figures = {}
    for i, (reference, matrix) in enumerate(distances.items()):
        suffix = f"_{reference.replace('-', '_')}" if i else ""
        for kind in KINDS:
            found = rank_correlation(features, labels, matrix, kind=kind)
            name = kind.replace("-", "_")
            figures[f"spearman_{name}{suffix}"] = found.spearman
            figures[f"kendall_{name}{suffix}"] = found.kendall
    return figures


def local(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, coarse, probe: bool) -> dict[str, float]:
    """kNN and, if asked for, linear-probe accuracy on classes and (with a mapping `coarse`) superclasses."""
    figures = {"knn": knn_accuracy(bank, bank_labels, queries, labels)}
    if probe:
        figures["linear"] = linear_probe(bank, bank_labels, queries, labels)
    if coarse is not None:
        figures["superclass_knn"] = knn_accuracy(bank, coarse[bank_labels], queries, coarse[labels])
        if probe:
            figures["superclass_linear"] = linear_probe(bank, coarse[bank_labels], queries, coarse[labels])
    return figures


def evaluate(
    encoder: nn.Module, bank: ImageSet, queries: ImageSet, data: str, probe: bool = True, seed: int = 0
) -> dict[str, float]:
    """Every figure of an encoder.

    Args:
        encoder: images (B, 3, H, W) in [0, 1] to features (B, F).
        bank: images whose labels kNN and probe may use.
        queries: images that are judged.
        data: name of the data set, for its semantic references.
        probe: also fit the linear probes, the slowest part.
        seed: of the two views behind the label-free figure.

    Unlabelled data has the label-free figure only. Where the training set left classes out, "unseen_..." are kNN and
    structure on queries of those classes alone, among all classes of the bank.
    """
    features = extract_features(encoder, queries.images)
    figures = {"label_free": label_free(encoder, queries.images, seed)}
    if queries.labels is None:
        return figures
    coarse = _coarse(data, queries.class_names)
    banked = extract_features(encoder, bank.images)
    figures |= local(banked, bank.labels, features, queries.labels, coarse, probe)
    distances = references(data, queries.class_names)
    figures |= structure(features, queries.labels, distances)
    unseen = torch.isin(queries.labels, left_out(data))
    if not unseen.any():
        return figures
    few, labels = features[unseen], queries.labels[unseen]
    apart = local(banked, bank.labels, few, labels, coarse, probe=False) | structure(few, labels, distances)
    return figures | {f"unseen_{name}": value for name, value in apart.items()}


def label_free(encoder: nn.Module, images: Tensor, seed: int = 0, n: int = 2000) -> float:
    """Label-free structure score of up to n images from two augmented views each."""
    generator = torch.Generator().manual_seed(seed)
    chosen = images[torch.randperm(len(images), generator=generator)[:n]]
    views = two_views(chosen, Augmentation(), generator=generator)
    ha, hb = (extract_features(encoder, (view * 255).round().to(torch.uint8)) for view in views)
    return structure_score(ha, hb, seed=seed).score


def _coarse(data: str, class_names: tuple[str, ...]) -> Tensor | None:
    data = family(data)
    if data != "cifar100" and not all("/" in name for name in class_names):
        return None
    return torch.as_tensor(superclasses(data, class_names=class_names)[1])
