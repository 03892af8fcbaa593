"""Agreements beyond plain distances, consensus and rivals, by explicit loops and other packages."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr

from sagkit.graph import similarity_graph
from sagkit.metrics import labelfree
from sagkit.metrics.labelfree import (
    agreement_beyond,
    clid,
    consensus,
    predicted_agreement,
    profile_agreement,
    structure_score,
    total_persistence,
    visit_agreement,
)

N, F = 60, 5
PAIR_SCORES = [
    lambda a, b: structure_score(a, b).score,
    profile_agreement,
    predicted_agreement,
    visit_agreement,
    labelfree.cross_cophenetic,
    labelfree.cluster_agreement,
]


def views(noise: float = 0.5, seed: int = 0, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = 2 + np.repeat(rng.normal(size=(3, F)), n // 3, axis=0) + 0.7 * rng.normal(size=(n, F))
    return x, x + noise * rng.normal(size=x.shape)


def cosine(x: np.ndarray) -> np.ndarray:
    return 1 - squareform(pdist(x - x.mean(axis=0), "cosine"))


def neighbours(x: np.ndarray, i: int, k: int) -> list[int]:
    close = cosine(x)
    return sorted(set(range(len(x))) - {i}, key=lambda j: -close[i, j])[:k]


def test_two_images_are_alike_in_second_order_where_their_rows_of_similarities_correlate():
    found = []
    for x in views():
        close = cosine(x)
        np.fill_diagonal(close, 0)
        found.append([-np.corrcoef(close[i], close[j])[0, 1] for i, j in combinations(range(N), 2)])
    assert profile_agreement(*views()) == pytest.approx(spearmanr(*found).statistic, abs=1e-9)


def test_a_distance_is_predicted_by_those_of_the_other_views_neighbours():
    (a, b), k = views(), 4
    apart, near = 1 - cosine(a), [neighbours(b, i, k) for i in range(N)]
    np.fill_diagonal(apart, 0)
    observed, predicted = [], []
    for i, j in combinations(range(N), 2):
        observed.append(apart[i, j])
        predicted.append(np.mean([apart[p, q] for p in near[i] for q in near[j]]))
    assert predicted_agreement(a, b, k) == pytest.approx(spearmanr(observed, predicted).statistic, abs=1e-9)


def test_visits_overlap_as_those_of_the_kits_own_graph_do():
    k, found = 6, []
    steps = []
    for x in views():
        centred = torch.as_tensor(x - x.mean(axis=0))
        steps.append(similarity_graph(centred, k, temperature=0.1).to_dense().double().numpy())
    for length in (1, 3):
        p, q = (np.linalg.matrix_power(step, length) for step in steps)
        found.append(np.mean([sum(min(u, v) for u, v in zip(p[i], q[i], strict=True)) for i in range(N)]))
    assert visit_agreement(*views(), k, (1, 3)) == pytest.approx(np.mean(found), abs=1e-5)
    assert visit_agreement(views()[0], views()[0]) == pytest.approx(1)


def test_one_axis_has_two_directions_and_no_neighbourhoods_for_walks_to_agree_on():
    a, b = views(0.1)
    line = np.array([[1.0, 0, 0, 0, 0]]).T
    assert structure_score(a @ line, b @ line).score > 0.7  # what distances are taken in by
    assert visit_agreement(a @ line, b @ line, lengths=(1,)) < 0.2
    assert visit_agreement(a, b, lengths=(1,)) > 0.5


def test_agreement_beyond_what_is_known_is_the_partial_correlation_of_ranks():
    a, b = views(1.0)
    known = np.random.default_rng(3).normal(size=(N, 2)) + a[:, :2]
    p, q, z = (pdist(x - x.mean(axis=0), "cosine") for x in (a, b, known))
    xy, xz, yz = (spearmanr(u, v).statistic for u, v in ((p, q), (p, z), (q, z)))
    wanted = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert agreement_beyond(a, b, [known]) == pytest.approx(wanted, abs=1e-9)
    assert agreement_beyond(known, b, [known]) == 0


def test_consensus_hears_other_families_each_once_and_takes_off_what_is_known():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(N, 4))
    made = [truth + s * rng.normal(size=truth.shape) for s in (0.3, 0.5, 0.6, 0.6, 2.0)]
    families, panel = ["a", "b", "c", "c", "d"], [True, True, True, True, False]
    ranks = [labelfree.distance_ranks(x) for x in made]
    found = consensus(made, families, panel)
    others = {0: [1, (2, 3)], 1: [0, (2, 3)], 2: [0, 1], 3: [0, 1], 4: [0, 1, (2, 3)]}
    for i, heard in others.items():
        common = sum(ranks[j] if isinstance(j, int) else (ranks[j[0]] + ranks[j[1]]) / 2 for j in heard)
        assert found[i] == pytest.approx(np.corrcoef(ranks[i], common)[0, 1], abs=1e-9)
    assert list(np.argsort(-found[[0, 1, 4]])) == [0, 1, 2]
    pixels = rng.normal(size=(N, 3))
    rest = labelfree.left_over(ranks[1] + (ranks[2] + ranks[3]) / 2, labelfree.distance_ranks(pixels)[None])
    beyond = consensus(made, families, panel, [pixels])[0]
    assert beyond == pytest.approx(np.corrcoef(ranks[0], rest)[0, 1], abs=1e-9)


def test_a_consensus_needs_others():
    a, b = views()
    with pytest.raises(ValueError, match="x has a panel of 1 other families"):
        consensus([a, b], ["x", "y"], [True, True])
    with pytest.raises(ValueError, match="2 embeddings, 1 families"):
        consensus([a, b], ["x"], [True, True])


@pytest.mark.parametrize("score", PAIR_SCORES)
def test_rotation_scale_and_translation_of_features_move_no_score(score):
    a, b = views()
    turn = np.linalg.qr(np.random.default_rng(7).normal(size=(F, F)))[0]
    moved = [3.7 * x @ turn + np.array([5.0, -2, 0, 1, 9]) for x in (a, b)]
    assert score(*moved) == pytest.approx(score(a, b), abs=1e-9)
    one_sided = score(a, moved[1])  # each view on axes of its own
    assert one_sided == pytest.approx(score(a, b), abs=1e-9)


@pytest.mark.parametrize("score", PAIR_SCORES)
def test_a_collapsed_view_agrees_with_nothing(score):
    flat, x = np.full((N, F), 0.1), views()[0]
    assert score(flat, flat) == score(flat, x) == pytest.approx(0, abs=1e-9)


def test_clid_counts_what_neighbours_tell_of_clusters_and_the_dimension_of_the_space():
    rng = np.random.default_rng(0)
    tight = np.repeat(rng.normal(size=(6, 8)), 40, axis=0) + 0.01 * rng.normal(size=(240, 8))
    assert clid(tight, clusters=6)[0] == 1
    assert clid(rng.normal(size=(240, 8)), clusters=60)[0] < 0.8
    for d in (2, 4):  # directions of d + 1 numbers lie on a sphere of dimension d
        flat = np.zeros((2000, 9))
        flat[:, : d + 1] = rng.normal(size=(2000, d + 1))
        assert clid(flat, clusters=10)[1] == pytest.approx(d, rel=0.1)
    assert clid(np.ones((50, 4)), clusters=2)[1] == 0


def test_total_persistence_is_the_spanning_tree_and_the_loops():
    x = views(n=45)[0]
    unit = (x - x.mean(axis=0)) / np.linalg.norm(x - x.mean(axis=0), axis=1, keepdims=True)
    components = minimum_spanning_tree(squareform(pdist(unit))).sum()
    assert total_persistence(x) >= components - 1e-4
    angle = 2 * np.pi * np.arange(24) / 24
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    side = 2 * np.sin(np.pi / 24)
    # 23 edges, and one loop from the first edge until triangles close it, at an arc of a third.
    assert total_persistence(circle) == pytest.approx(23 * side + 2 * np.sin(np.pi * 8 / 24) - side, abs=1e-4)


def test_rivals_agree_with_reptrix_where_it_computes_what_the_papers_define():
    pytest.importorskip("reptrix")
    from reptrix import alpha, rankme

    x = views(n=300)[0] @ np.diag([3, 2, 1, 0.5, 0.2])
    # reptrix takes the eigenvalues of the covariance where RankMe's authors take singular values, not centred.
    ours = labelfree.entropy_rank(np.linalg.eigvalsh(np.cov(x.T))[::-1])
    assert rankme.get_rankme(torch.as_tensor(x)) == pytest.approx(ours, rel=1e-4)
    eigenvalues = np.arange(1.0, 101) ** -1.3
    assert alpha.get_powerlaw(eigenvalues, np.arange(3, 60))[0] == pytest.approx(1.3, abs=1e-6)
    scaled = np.linalg.qr(np.random.default_rng(0).normal(size=(400, 101)))[0]
    scaled = np.linalg.qr(scaled - scaled.mean(axis=0))[0][:, :100] * np.sqrt(eigenvalues)
    assert labelfree.alpha_req(scaled) == pytest.approx(1.3, abs=1e-6)
