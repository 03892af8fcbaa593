"""Anomaly scores against scipy, scikit-learn, networkx and closed forms."""

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from sagkit.pilot.anomaly import (
    DEFAULT,
    SCORES,
    auroc,
    distance_anomaly,
    knn_anomaly,
    mahalanobis_anomaly,
    picture_scores,
    symmetric_weights,
    visit_probability,
    walk_anomaly,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


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
    with pytest.raises(ValueError, match=r"restart must be in \(0, 1\), got 1.0"):
        walk_anomaly(torch.randn(9, 3), restart=1.0)


@pytest.mark.parametrize("k", [1, 5])
def test_the_default_is_the_euclidean_distance_of_scikit_learn_which_keeps_the_length(generator, k):
    bank, queries = torch.randn(200, 6, generator=generator) + 1, torch.randn(30, 6, generator=generator)
    search = NearestNeighbors(n_neighbors=k + 1).fit(bank.numpy())
    np.testing.assert_allclose(distance_anomaly(bank, k=k), search.kneighbors()[0][:, k - 1], atol=1e-5)
    expected = search.kneighbors(queries, n_neighbors=k)[0][:, -1]
    np.testing.assert_allclose(distance_anomaly(bank, queries, k=k), expected, atol=1e-5)
    assert DEFAULT == next(iter(SCORES)) == "distance"
    longer = torch.cat([bank, 9 * bank[:1]])  # of a usual direction
    assert int(distance_anomaly(longer).argmax()) == 200
    with pytest.raises(ValueError, match=r"k must be in \[1, 199\], got 200"):
        distance_anomaly(bank, k=200)


def test_what_an_encoder_overlooks_is_seen_in_the_appearance(generator):
    coarse = torch.rand(400, 3, 5, 5, generator=generator) * torch.rand(400, 1, 1, 1, generator=generator)
    usual = (torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1) * 255).byte()
    squares = ((torch.arange(32)[:, None] // 4 + torch.arange(32) // 4) % 2 * 255).byte().expand(3, 32, 32)
    red = usual[0].clone()
    red[1:] = 0
    noise = torch.randint(256, (3, 32, 32), generator=generator, dtype=torch.uint8)
    for odd in (torch.zeros_like(red), squares, noise, red):
        images = torch.cat([usual, odd[None]])
        blind = torch.randn(401, 8, generator=generator)
        blind[-1] = blind[:-1].mean(dim=0)  # in the middle of all
        found = picture_scores(blind, images, left_out=("walks",))
        assert list(found) == ["distance", "neighbours", "Mahalanobis"]
        assert int((found["distance"] > found["distance"][-1]).sum()) < 10
        assert int((found["Mahalanobis"] > found["Mahalanobis"][-1]).sum()) == 400


@pytest.mark.parametrize("score", SCORES.values())
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


@pytest.mark.parametrize("score", SCORES.values())
def test_any_holder_of_features_gives_the_same_score_and_nan_is_refused_with_its_row(score):
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = score(x.float())
    for held in (x, x.double().requires_grad_(), x.float().numpy(), x.float().numpy().T.copy().T, x.tolist()):
        torch.testing.assert_close(score(held), expected)
        torch.testing.assert_close(score(held, held[:5]), score(x.float(), x.float()[:5]))
    broken = x.float().clone()
    broken[3, 2] = float("nan")
    for call in (lambda: score(broken), lambda: score(x, broken)):
        with pytest.raises(ValueError, match=r"not finite \(first: row 3\)"):
            call()
    with pytest.raises(ValueError, match="differ in width"):
        score(x, x[:, :3])
