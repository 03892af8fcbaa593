"""Search, near duplicates and anomaly scores against scipy, scikit-learn, networkx and loops; files that fail whole."""

import errno
import sys

import networkx as nx
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from sagkit.data.load import make_shapes
from sagkit.metrics.local import Index, precision_at
from sagkit.model import make_encoder
from sagkit.pilot.anomaly import (
    auroc,
    knn_anomaly,
    mahalanobis_anomaly,
    symmetric_weights,
    visit_probability,
    walk_anomaly,
)
from sagkit.pilot.duplicates import near_duplicates
from sagkit.pilot.search import embed, load_embedding, save_embedding


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


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


def test_embedding_is_stored_by_name_and_read_back(tmp_path):
    images, encoder = make_shapes(6, size=16).images, make_encoder("resnet10-w4")
    names = ("a b.png", "ünï/日本.jpg", "c", "d", "e", "bad\udcff.png")
    stored = embed(encoder, images, names)
    assert save_embedding(tmp_path / "deep" / "x.npz", stored)[0] == tmp_path / "deep" / "x.npz"
    again = load_embedding(tmp_path / "deep" / "x.npz")
    assert torch.equal(again.features, stored.features)
    assert again.names == (*names[:5], "bad\\xff.png")
    with torch.no_grad():
        expected = encoder.eval()(images.float() / 255)
    torch.testing.assert_close(stored.features, expected, rtol=1e-4, atol=1e-5)
    assert embed(encoder, images).names == ("0", "1", "2", "3", "4", "5")
    with pytest.raises(ValueError, match="1 names for 6 images"):
        embed(encoder, images, ["one"])


def test_a_full_disk_leaves_the_old_embedding_and_no_half_of_the_new(tmp_path, monkeypatch):
    images, encoder = make_shapes(6, size=16).images, make_encoder("resnet10-w4")
    path = tmp_path / "x.npz"
    save_embedding(path, embed(encoder, images))
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}  # with pyarrow, a .parquet too

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        save_embedding(path, embed(encoder, images))
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_near_duplicates_are_copies_recompressed_rescaled_or_brightened(tmp_path, generator):
    coarse = torch.rand(40, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 1)
    originals = (smooth * 255).byte()
    picture = [Image.fromarray(o.permute(1, 2, 0).numpy()) for o in originals[:4]]
    picture[0].save(tmp_path / "x.jpg", quality=40)
    copies = [
        Image.open(tmp_path / "x.jpg"),
        picture[1].resize((40, 40)).resize((64, 64)),
        ImageEnhance.Brightness(picture[2]).enhance(0.7),
        picture[3].transpose(Image.Transpose.FLIP_LEFT_RIGHT),  # another picture
    ]
    copies = torch.stack([torch.from_numpy(np.array(c.convert("RGB"))).permute(2, 0, 1) for c in copies])
    flat = torch.tensor([10, 11, 200], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 64, 64)
    images = torch.cat([originals, copies, originals[:1], flat])
    assert near_duplicates(images) == [[0, 40, 44], [1, 41], [2, 42], [45, 46]]
    assert near_duplicates(originals) == []


@pytest.mark.parametrize("k", [1, 5])
def test_distance_to_the_kth_neighbour_is_scikit_learns(generator, k):
    bank, queries = torch.randn(200, 6, generator=generator) + 1, torch.randn(30, 6, generator=generator)
    search = NearestNeighbors(n_neighbors=k + 1, metric="cosine").fit((bank - bank.mean(dim=0)).numpy())
    np.testing.assert_allclose(knn_anomaly(bank, k=k), search.kneighbors()[0][:, k - 1], atol=1e-5)
    expected = search.kneighbors((queries - bank.mean(dim=0)).numpy(), n_neighbors=k)[0][:, -1]
    np.testing.assert_allclose(knn_anomaly(bank, queries, k=k), expected, atol=1e-5)
    with pytest.raises(ValueError, match="k = 200 neighbours"):
        knn_anomaly(bank, k=200)


def test_mahalanobis_is_scipys_under_the_shrunk_covariance(generator):
    bank, queries = torch.randn(50, 6, generator=generator) * torch.arange(1, 7), torch.randn(9, 6, generator=generator)
    shrunk = LedoitWolf().fit(bank.numpy())
    inverse = np.linalg.inv(shrunk.covariance_)
    expected = [mahalanobis(q, bank.double().mean(dim=0), inverse) for q in queries.double()]
    np.testing.assert_allclose(mahalanobis_anomaly(bank, queries), expected, rtol=1e-4)
    assert mahalanobis_anomaly(bank).shape == (50,)


@pytest.mark.parametrize("restart", [0.01, 0.15, 0.6])
def test_visits_are_networkxs_personalised_pagerank(generator, restart):
    bank, queries = torch.randn(60, 5, generator=generator), torch.randn(9, 5, generator=generator)
    weights = symmetric_weights(torch.cat([bank, queries]), k=4)
    assert abs(weights - weights.T).max() == 0
    unit = torch.nn.functional.normalize(torch.cat([bank, queries]) - torch.cat([bank, queries]).mean(dim=0), dim=1)
    similar = (unit @ unit.T).fill_diagonal_(-2).numpy()
    drawn = nx.Graph()
    drawn.add_nodes_from(range(69))
    for i in range(69):
        for j in similar[i].argsort()[-4:]:
            drawn.add_edge(i, int(j), weight=max(0.0, float(similar[i, j])))
    even = dict.fromkeys(range(60), 1 / 60)
    found = nx.pagerank(drawn, alpha=1 - restart, personalization=even, tol=1e-12, max_iter=5000)
    teleport = np.r_[np.full(60, 1 / 60), np.zeros(9)]
    visits = visit_probability(weights, teleport, restart)
    np.testing.assert_allclose(visits, [found[i] for i in range(69)], atol=1e-6)
    expected = -np.log(60 * np.array([found[i] for i in range(60, 69)]))
    np.testing.assert_allclose(walk_anomaly(bank, queries, k=4, restart=restart), expected, rtol=1e-3)


def test_a_node_without_edges_is_visited_by_restarts_alone():
    from scipy.sparse import csr_array

    weights = csr_array(np.array([[0, 2.0, 0], [2.0, 0, 0], [0, 0, 0]]))
    visits = visit_probability(weights, np.array([0.5, 0.0, 0.5]), restart=0.2)
    # Closed form: x = r t + (1 - r)(P' x + x_2 t), solved as a linear system.
    p, t = np.array([[0, 1.0, 0], [1.0, 0, 0], [0, 0, 0]]), np.array([0.5, 0.0, 0.5])
    system = np.eye(3) - 0.8 * (p.T + np.outer(t, [0, 0, 1.0]))
    np.testing.assert_allclose(visits, np.linalg.solve(system, 0.2 * t), atol=1e-9)
    with pytest.raises(ValueError, match="restart must be a probability"):
        walk_anomaly(torch.randn(9, 3), restart=1.0)


@pytest.mark.parametrize("score", [knn_anomaly, mahalanobis_anomaly, walk_anomaly])
def test_every_score_tells_strangers_from_the_usual(generator, score):
    centres = 5 * torch.randn(4, 16, generator=generator)
    bank = centres[torch.arange(200) % 4] + torch.randn(200, 16, generator=generator)
    usual = centres[torch.arange(40) % 4] + torch.randn(40, 16, generator=generator)
    strange = 5 * torch.randn(40, 16, generator=generator)
    is_strange = torch.arange(80) >= 40
    assert auroc(score(bank, torch.cat([usual, strange])), is_strange) > 0.95
    among = score(torch.cat([bank, strange[:8]]))  # nobody said which are usual
    assert auroc(among, torch.arange(208) >= 200) > 0.9


def test_auroc_is_the_share_of_ordered_pairs(generator):
    scores, odd = torch.randint(5, (50,), generator=generator).float(), torch.rand(50, generator=generator) < 0.3
    ordered = [float(a > b) + 0.5 * float(a == b) for a in scores[odd] for b in scores[~odd]]
    assert auroc(scores, odd) == pytest.approx(np.mean(ordered))
    with pytest.raises(ValueError, match="0 of 50 items are anomalous"):
        auroc(scores, torch.zeros(50, dtype=torch.bool))


def test_precision_is_counted_by_hand(generator):
    features, labels = torch.randn(60, 5, generator=generator), torch.randint(3, (60,), generator=generator)
    distance = cdist(features - features.mean(dim=0), features - features.mean(dim=0), "cosine")
    hits = 0
    for i in range(60):
        nearest = [j for j in distance[i].argsort() if j != i][:10]
        hits += sum(labels[j] == labels[i] for j in nearest)
    assert precision_at(features, labels) == pytest.approx(int(hits) / 600)
