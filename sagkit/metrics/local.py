"""Local quality of features: which items are most similar, and do the nearest neighbours, and a linear classifier, know
the class?

    kNN:    class of q = argmax over c of  sum over the k nearest j of class c of  exp(cos(q, j) / temperature)
    probe:  multinomial logistic regression on standardised features
    search: similarity of x and y = cos(x - m, y - m),  m the mean of the items searched

Sources: [R] weighted kNN of Wu et al. 2018 with k = 20 and temperature 0.07 (figures/METHOD.md section 5); the probe is
scikit-learn's LogisticRegression (L-BFGS). [K] features standardised by the bank, C = 1, tolerance 1e-3, at most 200
iterations: part of the definition, the same for every method; cosines of the search centred, as in `graph`. Search is
exact at every size.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sagkit.graph import centre_and_normalize, nearest_neighbors
from sagkit.metrics.checks import require_finite

PROBE_ITERATIONS = 200
FAISS_ABOVE = 200_000  # items; below, one matrix product answers a query in milliseconds
CHUNK = 1024  # queries at a time


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


class Index:
    """Exact search for the most similar items by centred cosine.

    Args:
        features: (N, F) of the items.
        faiss_above: with more items than this, faiss searches, if it is installed; its flat index is exact, too.
    """

    def __init__(self, features: Float[Tensor, "N F"], faiss_above: int = FAISS_ABOVE):
        self.mean = features.float().mean(dim=0)
        self.unit = centre_and_normalize(features.float())
        self.faiss = _faiss_index(self.unit) if len(features) > faiss_above else None

    def __len__(self) -> int:
        return len(self.unit)

    def search(self, queries: Float[Tensor, "Q F"], k: int) -> tuple[Float[Tensor, "Q K"], Int[Tensor, "Q K"]]:
        """The k most similar items of each query: similarities, largest first, and rows.

        Raises:
            ValueError: for k out of range.
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k = {k} results need 1 <= k <= {len(self)} items")
        unit = F.normalize(queries.float() - self.mean, dim=1)
        if self.faiss is not None:
            similarity, rows = self.faiss.search(unit.numpy(), k)
            return torch.from_numpy(similarity), torch.from_numpy(rows)
        found = [(part @ self.unit.T).topk(k, dim=1) for part in unit.split(CHUNK)]
        return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])

    def similar(self, k: int) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]:
        """The k most similar other items of every item."""
        return nearest_neighbors(self.unit, k)


def precision_at(features: Float[Tensor, "N F"], labels: Int[Tensor, " N"], k: int = 10) -> float:
    """Mean share of an item's k most similar others that have its label."""
    return share_alike(Index(features).similar(k)[1], labels)


def share_alike(neighbors: Int[Tensor, "N K"], labels: Int[Tensor, " N"]) -> float:
    """Mean share of each item's neighbours that have its label."""
    return float((labels[neighbors] == labels[:, None]).float().mean())


def _faiss_index(unit: Tensor):
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit.numpy())
    return index
