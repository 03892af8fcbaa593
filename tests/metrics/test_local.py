"""kNN and search against scikit-learn's and scipy's own, the probe against its definition."""

import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from sagkit.metrics.local import Index, knn_accuracy, knn_predict, linear_probe, precision_at


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x = (x + np.random.default_rng(0).normal(scale=6, size=x.shape)).astype(np.float32)  # hard enough to err
    return x[:1000], y[:1000], x[1000:], y[1000:]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (200, 0.01)])
def test_knn_equals_scikit_learn_with_the_same_weights(digits, k, temperature):
    x, y, queries, labels = digits
    voter = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature)).fit(x, y)
    assert 0.3 < voter.score(queries, labels) < 0.99
    assert knn_accuracy(x, y, queries, labels, k, temperature, chunk=300) == pytest.approx(
        voter.score(queries, labels), abs=1 / len(queries)
    )


def test_predictions_are_those_of_scikit_learn_and_accuracy_is_their_share(digits):
    x, y, queries, labels = digits
    voter = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(x, y)
    predicted = knn_predict(x, y, queries, chunk=100).numpy()
    assert np.count_nonzero(predicted != voter.predict(queries)) <= 1  # float32 may turn a near tie
    assert knn_accuracy(x, y, queries, labels) == np.mean(predicted == labels)


def test_one_certain_neighbour_outweighs_many_doubtful_ones():
    bank = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    query, labels = torch.tensor([[1.0, 0.1]]), torch.tensor([0])
    assert knn_accuracy(bank, torch.tensor([0, 1, 1]), query, labels, k=3, temperature=0.07) == 1
    assert knn_accuracy(bank, torch.tensor([0, 1, 1]), query, labels, k=3, temperature=10.0) == 0


def test_the_probe_separates_what_a_line_separates_and_not_xor():
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, size=(2000, 2)).astype(np.float32)
    x = x[np.abs(x).min(axis=1) > 0.05]
    line, xor = (x[:, 0] + 2 * x[:, 1] > 0).astype(int), (x[:, 0] * x[:, 1] > 0).astype(int)
    half = len(x) // 2
    assert linear_probe(x[:half], line[:half], x[half:], line[half:]) > 0.97
    assert linear_probe(x[:half], xor[:half], x[half:], xor[half:]) < 0.6


def test_the_probe_does_not_care_about_scale_and_shift(digits):
    x, y, queries, labels = digits
    scale = np.geomspace(1e-3, 1e3, x.shape[1]).astype(np.float32)
    plain = linear_probe(x, y, queries, labels)
    assert linear_probe(x * scale + 5 * scale, y, queries * scale + 5 * scale, labels) == pytest.approx(plain, abs=0.01)


@pytest.mark.parametrize(
    ("bank", "k", "words"),
    [
        ((0, 3), 5, r"bank must be \(N, F\) .* got \(0, 3\)"),
        ((4, 3), 0, "k must be at least 1, got 0"),
        ((4, 5), 2, "width, bank 5 and queries 3"),
    ],
)
def test_an_impossible_knn_is_refused(bank, k, words):
    with pytest.raises(ValueError, match=words):
        knn_accuracy(torch.ones(bank), torch.zeros(bank[0]), torch.ones(2, 3), torch.zeros(2), k)


def test_search_finds_what_scipy_finds(generator):
    items, queries = torch.randn(300, 9, generator=generator) + 2, torch.randn(40, 9, generator=generator)
    distance = cdist(queries - items.mean(dim=0), items - items.mean(dim=0), "cosine")
    similarity, rows = Index(items).search(queries, 7)
    np.testing.assert_array_equal(rows, distance.argsort(axis=1)[:, :7])
    np.testing.assert_allclose(similarity, 1 - np.sort(distance, axis=1)[:, :7], atol=1e-5)
    others = Index(items).similar(5)[1]
    own = cdist(items - items.mean(dim=0), items - items.mean(dim=0), "cosine")
    np.fill_diagonal(own, np.inf)
    np.testing.assert_array_equal(others, own.argsort(axis=1)[:, :5])
    with pytest.raises(ValueError, match="k = 301 results need 1 <= k <= 300 items"):
        Index(items).search(queries, 301)


def test_faiss_answers_alike_and_is_asked_only_above_its_size(generator, monkeypatch):
    pytest.importorskip("faiss")
    items = torch.randn(300, 9, generator=generator)
    exact, fast = Index(items, faiss_above=300), Index(items, faiss_above=299)
    assert exact.faiss is None
    assert fast.faiss is not None
    for a, b in zip(exact.search(items[:20], 5), fast.search(items[:20], 5), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    monkeypatch.setitem(sys.modules, "faiss", None)  # not installed: the exact product takes over
    assert Index(items, faiss_above=10).faiss is None


def test_precision_is_counted_by_hand(generator):
    features, labels = torch.randn(60, 5, generator=generator), torch.randint(3, (60,), generator=generator)
    distance = cdist(features - features.mean(dim=0), features - features.mean(dim=0), "cosine")
    hits = 0
    for i in range(60):
        nearest = [j for j in distance[i].argsort() if j != i][:10]
        hits += sum(labels[j] == labels[i] for j in nearest)
    assert precision_at(features, labels) == pytest.approx(int(hits) / 600)
