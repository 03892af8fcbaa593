"""Does the tree that an embedding makes of the classes agree with the reference tree, and how bad are its mistakes?

    cophenetic     rank correlation of (height at which two classes merge) with (reference distance), average linkage
                   over centred cosine distances of class means
    adjusted Rand  of the cut into as many clusters as there are superclasses
    purity         mean over pairs of classes of one superclass of the share of that superclass among the leaves
                   below their lowest common ancestor; 1 only if every superclass is a subtree
    severity       mean reference distance between true and predicted class, over wrong predictions of kNN

Sources: [R] dendrogram purity of Heller and Ghahramani 2005 (exact here, over all pairs); mistake severity of
Bertinetto et al. 2020; adjusted Rand index of Hubert and Arabie 1985; [K] the linkage and the distance.

Differs from the source: severity is in the units of the given reference, not the height of the lowest common ancestor.
It falls when easy mistakes are added, so it is read beside accuracy; `mean_distance` counts right predictions as 0.
"""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import cophenet, cut_tree, linkage
from scipy.spatial.distance import squareform

from sagkit.metrics.checks import distance_array, label_array
from sagkit.metrics.local import knn_predict
from sagkit.metrics.semantic import check_semantic, class_matrix, statistics


def class_tree(features, labels, metric: str = "centred-cosine", method: str = "average") -> np.ndarray:
    """Dendrogram (C - 1, 4) of class means, in scipy's linkage format; leaves are the classes that occur, ascending.

    Args:
        features: (N, F) floats.
        labels: (N,) classes.
        metric: of centroids: "centred-cosine", "cosine" or "euclidean".
        method: linkage of scipy.

    Raises:
        ValueError: for what is no features or labels, or fewer than two classes.
    """
    matrix = class_matrix(features, labels, "centroid", metric)
    if len(matrix) < 2:
        raise ValueError("a tree joins at least two classes: all labels are one class")
    np.fill_diagonal(matrix, 0)
    return linkage(squareform(np.maximum(matrix, 0), checks=False), method=method)


def hierarchy_figures(
    features,
    labels,
    distances,
    superclass=None,
    bank=None,
    bank_labels=None,
    metric: str = "centred-cosine",
    k: int = 20,
) -> dict[str, float]:
    """Agreement of the embedding's class tree with the reference, as one flat dictionary.

    Args:
        features: (N, F) features of the images that are judged.
        labels: (N,) their classes, 0 to C - 1.
        distances: (C, C) reference distances.
        superclass: (C,) int, superclass of each class; without it, or where no two of the classes that occur share one,
            no adjusted Rand index and no purity.
        bank: (M, F) features whose labels kNN may use; without it no severity.
        bank_labels: (M,) their classes.
        metric: of centroids.
        k: neighbours that vote.

    Keys: cophenetic_spearman, cophenetic_kendall; adjusted_rand, dendrogram_purity, purity_chance (mean purity of a
    random assignment, estimated by 100 shuffles); mistake_severity, mean_distance, severity_chance (mean over all other
    classes).

    Raises:
        ValueError: as `semantic.rank_correlation`, and for superclasses that do not name every class.
    """
    x, y, reference = check_semantic(features, labels, distances, "centroid", metric)
    classes = np.unique(y)
    tree = class_tree(x, y, metric)
    upper = np.triu_indices(len(classes), k=1)
    found = statistics(cophenet(tree), reference[np.ix_(classes, classes)][upper])
    figures = {"cophenetic_spearman": found.spearman, "cophenetic_kendall": found.kendall}
    if superclass is not None:
        group = label_array(superclass, name="superclasses")
        if group.shape != (len(reference),):
            raise ValueError(f"one superclass a class: {len(reference)} classes and superclasses {group.shape}")
        if len(np.unique(group[classes])) < len(classes):
            figures |= _group_figures(tree, group[classes])
    if bank is not None:
        predicted = knn_predict(bank, bank_labels, x, k=k).numpy()
        figures |= severity(predicted, y, reference)
    return figures


def dendrogram_purity(tree: np.ndarray, group) -> float:
    """Purity in (0, 1] of a dendrogram over all pairs of leaves of one group.

    Args:
        tree: (n - 1, 4) linkage of scipy.
        group: (n,) int, group of each leaf; at least one has two leaves.

    Raises:
        ValueError: for a number of leaves that does not fit, or groups of one leaf only.

    Cost: n times the number of groups, since all pairs that meet at a node are counted at once.
    """
    names, code = np.unique(label_array(group, name="groups"), return_inverse=True)
    if len(code) != len(tree) + 1:
        raise ValueError(f"one group a leaf: the tree has {len(tree) + 1} leaves, groups {len(code)}")
    counts = np.zeros((2 * len(code) - 1, len(names)))
    counts[np.arange(len(code)), code] = 1
    total = pairs = 0.0
    for node, (a, b) in enumerate(tree[:, :2].astype(int), start=len(code)):
        counts[node] = counts[a] + counts[b]
        met = counts[a] * counts[b]
        total += met @ counts[node] / counts[node].sum()
        pairs += met.sum()
    if not pairs:
        raise ValueError(f"purity needs a group of two leaves or more: {len(code)} leaves in {len(names)} groups")
    return float(total / pairs)


def severity(predicted, labels, distances) -> dict[str, float]:
    """How far wrong predictions are from the truth, in the reference's units.

    Args:
        predicted: (N,) int.
        labels: (N,) int, the true classes.
        distances: (C, C) reference distances.

    Keys: mistake_severity (mean over wrong predictions, NaN if there are none), mean_distance (over all predictions),
    severity_chance (mean over all wrong answers that could be given: what mistakes without any sense would cost).

    Raises:
        ValueError: for numbers of labels that differ, or labels that the distances do not have.
    """
    predicted = label_array(predicted, name="predicted")
    labels, (distances, _) = label_array(labels, len(predicted)), distance_array(distances)
    if max(predicted.max(initial=0), labels.max(initial=0)) >= len(distances) or not len(labels):
        raise ValueError(
            f"{len(labels)} labels and predictions must be among the {len(distances)} classes of the distances"
        )
    wrong = predicted != labels
    apart = distances[labels, predicted]
    others = distances[labels].sum(axis=1) - distances[labels, labels]
    return {
        "mistake_severity": float(apart[wrong].mean()) if wrong.any() else float("nan"),
        "mean_distance": float(np.where(wrong, apart, 0).mean()),
        "severity_chance": float(others.mean() / (len(distances) - 1)),
    }


def _group_figures(tree: np.ndarray, group: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import adjusted_rand_score

    cut = cut_tree(tree, n_clusters=len(np.unique(group)))[:, 0]
    generator = np.random.default_rng(0)
    chance = [dendrogram_purity(tree, generator.permutation(group)) for _ in range(100)]
    return {
        "adjusted_rand": float(adjusted_rand_score(group, cut)),
        "dendrogram_purity": dendrogram_purity(tree, group),
        "purity_chance": float(np.mean(chance)),
    }
