"""Local quality of features: do the nearest neighbours, and a linear classifier, know the class?

    kNN:    class of q = argmax over c of  sum over the k nearest j of class c of  exp(cos(q, j) / temperature)
    probe:  multinomial logistic regression on standardised features

Sources: [R] weighted kNN of Wu et al. 2018 with k = 20 and temperature 0.07 (METHOD.md section 5); the probe is
scikit-learn's LogisticRegression (L-BFGS). [K] features standardised by the bank, C = 1, tolerance 1e-3, at most 200
iterations: part of the definition, the same for every method.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F

from sagkit.metrics.checks import require_finite

PROBE_ITERATIONS = 200


def knn_predict(bank, bank_labels, queries, k: int = 20, temperature: float = 0.07, chunk: int = 1000) -> torch.Tensor:
    """Classes (N,) int64 that weighted kNN by cosine similarity predicts; ties between classes go to the smaller label.

    Args:
        bank: (M, F) features whose labels are known.
        bank_labels: (M,) int.
        queries: (N, F) features to classify.
        k: neighbours that vote; at most M vote.
        temperature: of the vote's weight.
        chunk: queries at a time; memory is chunk x M.

    Raises:
        ValueError: for an empty bank, k below 1, sizes that differ, or features that are not finite.
    """
    bank, queries = (F.normalize(torch.as_tensor(x).float(), dim=1) for x in (bank, queries))
    require_finite(bank)
    require_finite(queries)
    bank_labels = torch.as_tensor(bank_labels).long()
    if bank_labels.shape != bank.shape[:1]:
        raise ValueError(f"one label a row: {len(bank)} rows and labels {tuple(bank_labels.shape)} in the bank")
    if not len(bank) or k < 1:
        raise ValueError(f"kNN needs k >= 1 and a bank of images, got k = {k} and {len(bank)} images")
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(f"bank and queries differ in width, {bank.shape[1]} and {queries.shape[1]}")
    classes, predicted = int(bank_labels.max()) + 1, []
    for asked in queries.split(chunk):
        similarity, nearest = (asked @ bank.T).topk(min(k, len(bank)), dim=1)  # (chunk, k)
        # Weights relative to the nearest: the same argmax, and no overflow at small temperatures.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = torch.zeros(len(asked), classes).scatter_add_(1, bank_labels[nearest], weight)
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted)


def knn_accuracy(
    bank, bank_labels, queries, labels, k: int = 20, temperature: float = 0.07, chunk: int = 1000
) -> float:
    """Accuracy of `knn_predict` as a fraction.

    Args:
        bank: (M, F) features whose labels are known.
        bank_labels: (M,) int.
        queries: (N, F) features to classify.
        labels: (N,) int, their true classes.
        k: neighbours that vote; at most M vote.
        temperature: of the vote's weight.
        chunk: queries at a time; memory is chunk x M.

    Raises:
        ValueError: for a number of labels other than that of queries, and as `knn_predict`.
    """
    labels = torch.as_tensor(labels).long()
    if labels.shape != (len(queries),):
        raise ValueError(f"one label a row: {len(queries)} rows and labels {tuple(labels.shape)} in the queries")
    predicted = knn_predict(bank, bank_labels, queries, k, temperature, chunk)
    return int((predicted == labels).sum()) / len(queries)


def linear_probe(bank, bank_labels, queries, labels, max_iter: int = PROBE_ITERATIONS) -> float:
    """Accuracy of logistic regression fitted on the bank, as a fraction.

    Args:
        bank: (M, F) training features.
        bank_labels: (M,) int, at least two classes.
        queries: (N, F) features to classify.
        labels: (N,) int, their true classes.
        max_iter: of L-BFGS.

    Raises:
        ValueError: for features that are not finite, or fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = np.asarray(bank, dtype=np.float32), np.asarray(bank_labels)
    asked = np.asarray(queries, dtype=np.float32)
    require_finite(x)
    require_finite(asked)
    if len(np.unique(y)) < 2:
        raise ValueError("a probe needs at least two classes among the bank's labels")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=max_iter, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the iteration limit is part of the definition
        probe.fit(x, y)
    return float(probe.score(asked, np.asarray(labels)))
