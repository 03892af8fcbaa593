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

from sagkit import require
from sagkit.graph import LEAST_TEMPERATURE, centre_and_normalize, nearest_neighbors
from sagkit.metrics.checks import feature_array, label_array, same_width, words_of

PROBE_ITERATIONS = 200
FAISS_ABOVE = 200_000  # items; below, one matrix product answers a query in milliseconds
CHUNK = 1024  # queries at a time


def knn_predict(bank, bank_labels, queries, k: int = 20, temperature: float = 0.07, chunk: int = 1000) -> torch.Tensor:
    """Classes (N,) int64 that weighted kNN by cosine similarity predicts; ties between classes go to the smaller label.

    Args:
        bank: (M, F) features whose labels are known, in anything that holds them. A row of zeros has similarity 0.
        bank_labels: (M,) whole numbers, or class names, of which the prediction is the place among them in order.
        queries: (N, F) features to classify.
        k: neighbours that vote, at least 1; at most M vote.
        temperature: of the vote's weight, greater than 0.
        chunk: queries at a time; memory is chunk x M.

    Raises:
        ValueError: for an empty bank, numbers out of range, sizes that differ, or features that are not finite.
    """
    require("k", k, "[1, inf)", "it counts neighbours", whole=True)
    require("temperature", temperature, "(0, inf)", "0.07 is the default")
    require("chunk", chunk, "[1, inf)", "it counts queries", whole=True)
    bank, queries = feature_array(bank, "bank", np.float32), feature_array(queries, "queries", np.float32)
    same_width(bank=bank, queries=queries)
    found, place = np.unique(label_array(bank_labels, len(bank), "bank_labels"), return_inverse=True)
    named, of = torch.from_numpy(found), torch.from_numpy(place)  # the labels that there are, and which each row has
    bank, queries = (F.normalize(torch.from_numpy(x), dim=1) for x in (bank, queries))
    predicted = []
    for asked in queries.split(chunk):
        similarity, nearest = (asked @ bank.T).topk(min(k, len(bank)), dim=1)  # (chunk, k)
        # Weights relative to the nearest: the same argmax, and no overflow at small temperatures.
        weight = ((similarity - similarity[:, :1]) / max(temperature, LEAST_TEMPERATURE)).exp()
        votes = torch.zeros(len(asked), len(named)).scatter_add_(1, of[nearest], weight)
        predicted.append(named[votes.argmax(dim=1)])
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
    bank, queries = feature_array(bank, "bank", np.float32), feature_array(queries, "queries", np.float32)
    known, asked = _alike(bank_labels, len(bank), labels, len(queries))
    predicted = knn_predict(bank, known, queries, k, temperature, chunk)
    return int((predicted.numpy() == asked).sum()) / len(queries)


def linear_probe(bank, bank_labels, queries, labels, max_iter: int = PROBE_ITERATIONS) -> float:
    """Accuracy of logistic regression fitted on the bank, as a fraction.

    Args:
        bank: (M, F) training features.
        bank_labels: (M,) int, at least two classes.
        queries: (N, F) features to classify.
        labels: (N,) int, their true classes.
        max_iter: of L-BFGS.

    Raises:
        ValueError: for sizes that differ, features that are not finite, or fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    require("max_iter", max_iter, "[1, inf)", f"{PROBE_ITERATIONS} are part of the definition", whole=True)
    x, asked = feature_array(bank, "bank", np.float32), feature_array(queries, "queries", np.float32)
    same_width(bank=x, queries=asked)
    y, wanted = _alike(bank_labels, len(x), labels, len(asked))
    if len(np.unique(y)) < 2:
        raise ValueError("a probe needs at least two classes among the bank's labels")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=max_iter, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the iteration limit is part of the definition
        probe.fit(x, y)
    return float(probe.score(asked, wanted))


def _alike(bank_labels, rows: int, labels, asked: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of bank and queries as numbers of one list of classes."""
    words = words_of(bank_labels, labels)
    return label_array(bank_labels, rows, "bank_labels", words), label_array(labels, asked, "labels", words)


class Index:
    """Exact search for the most similar items by centred cosine.

    Args:
        features: (N, F) of the items, in anything that holds them; searched on the CPU. An item at their mean has
            similarity 0 to every other.
        faiss_above: with more items than this, faiss searches, if it is installed; its flat index is exact, too.

    Raises:
        ValueError: for features that are not (N, F) or not finite.
    """

    def __init__(self, features, faiss_above: int = FAISS_ABOVE):
        require("faiss_above", faiss_above, "[0, inf]", f"{FAISS_ABOVE} is the default")
        features = torch.from_numpy(feature_array(features, dtype=np.float32))
        self.mean = features.mean(dim=0)
        self.unit = centre_and_normalize(features)
        self.faiss = _faiss_index(self.unit) if len(features) > faiss_above else None

    def __len__(self) -> int:
        return len(self.unit)

    def search(self, queries, k: int) -> tuple[Float[Tensor, "Q K"], Int[Tensor, "Q K"]]:
        """The k most similar items of each query: similarities, largest first, and rows.

        Raises:
            ValueError: for k out of range, and queries (Q, F) that are not finite or of another width.
        """
        require("k", k, "[1, inf)", "it counts results", whole=True)
        if k > len(self):
            raise ValueError(f"k = {k} results need 1 <= k <= {len(self)} items")
        asked = feature_array(queries, "queries", np.float32)
        same_width(items=self.unit, queries=asked)
        unit = F.normalize(torch.from_numpy(asked) - self.mean, dim=1)
        if self.faiss is not None:
            similarity, rows = self.faiss.search(unit.numpy(), k)
            return torch.from_numpy(similarity), torch.from_numpy(rows)
        found = [(part @ self.unit.T).topk(k, dim=1) for part in unit.split(CHUNK)]
        return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])

    def similar(self, k: int) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]:
        """The k most similar other items of every item.

        Raises:
            ValueError: for k out of range.
        """
        require("k", k, "[1, inf)", "it counts neighbours", whole=True)
        if k >= len(self):
            raise ValueError(f"k = {k} neighbours need 1 <= k < items = {len(self)}: lower k")
        return nearest_neighbors(self.unit, k)


def precision_at(features, labels, k: int = 10) -> float:
    """Mean share of an item's k most similar others that have its label; features (N, F), labels (N,)."""
    index = Index(features)
    return share_alike(index.similar(k)[1], torch.from_numpy(label_array(labels, len(index))))


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
