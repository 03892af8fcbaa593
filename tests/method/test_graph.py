"""The graph: neighbours of a float64 brute force, every kernel from its formula, isolated nodes, conversions."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sagkit.graph import (
    BLOCK,
    KERNELS,
    Graph,
    approximate_neighbors,
    centre_and_normalize,
    is_mutual,
    nearest_neighbors,
    neighbor_recall,
    similarity_graph,
    top_k_of_wide_rows,
)
from sagkit.walk import random_walk

N, K = 40, 5


@pytest.fixture(scope="module")
def features():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 6, generator=generator)
    return centres[torch.arange(N) % 4] + 0.5 * torch.randn(N, 6, generator=generator) + 3.0


@pytest.fixture(scope="module")
def cosine(features):
    x = features.double().numpy()
    x = x - x.mean(0)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def nearest(cosine, i):
    return sorted((j for j in range(N) if j != i), key=lambda j: -cosine[i, j])[:K]


def dense(rows) -> np.ndarray:
    matrix = np.zeros((N, N))
    for i, row in enumerate(rows):
        for j, weight in row.items():
            matrix[i, j] = weight / sum(row.values())
    return matrix


def test_neighbours_are_those_of_a_float64_brute_force(features, cosine):
    graph = similarity_graph(features, K)
    for i in range(N):
        assert graph.neighbors[i].tolist() == nearest(cosine, i)
        np.testing.assert_allclose(graph.similarity[i], cosine[i, nearest(cosine, i)], atol=1e-5)


def test_the_cosine_kernel(features, cosine):
    expected = dense([{j: np.exp(cosine[i, j] / 0.2) for j in nearest(cosine, i)} for i in range(N)])
    np.testing.assert_allclose(similarity_graph(features, K, temperature=0.2).to_dense(), expected, atol=1e-5)


def test_the_gaussian_kernel_is_self_tuned(features, cosine):
    distance = np.sqrt(np.maximum(2 - 2 * cosine, 0))
    sigma = [distance[i, nearest(cosine, i)[-1]] for i in range(N)]
    rows = [{j: np.exp(-(distance[i, j] ** 2) / (sigma[i] * sigma[j])) for j in nearest(cosine, i)} for i in range(N)]
    np.testing.assert_allclose(similarity_graph(features, K, "gaussian").to_dense(), dense(rows), atol=1e-5)


def test_the_shared_kernel_is_the_jaccard_overlap_of_neighbourhoods(features, cosine):
    sets = [{i, *nearest(cosine, i)} for i in range(N)]
    rows = [{j: len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for j in nearest(cosine, i)} for i in range(N)]
    np.testing.assert_allclose(similarity_graph(features, K, "shared").to_dense(), dense(rows), atol=1e-6)


@pytest.mark.parametrize("kernel", ["cosine", "gaussian", "shared"])
def test_rows_are_probabilities_and_no_node_is_its_own_neighbour(features, kernel):
    graph = similarity_graph(features, K, kernel)
    torch.testing.assert_close(graph.weights.sum(1), torch.ones(N))
    assert (graph.weights >= 0).all()
    assert (graph.neighbors != torch.arange(N)[:, None]).all()


def test_the_mutual_filter_keeps_what_both_ends_agree_on_and_isolated_nodes_stay_home(features, cosine):
    features = torch.cat([features, torch.tensor([[3.0, 3.0, 3.0, 3.0, 3.0, 9.0]])])  # nobody's neighbour
    graph = similarity_graph(features, 2, mutual=True)
    x = features.double() - features.double().mean(0)
    closeness = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    closeness.fill_diagonal_(-2)
    near = closeness.topk(2).indices.tolist()
    matrix = graph.to_dense()
    lonely = 0
    for i in range(N + 1):
        agreed = {j for j in near[i] if i in near[j]}
        reached = set(matrix[i].nonzero().flatten().tolist())
        assert reached == (agreed or {i})
        if not agreed:
            lonely += 1
            assert matrix[i, i] == 1
    assert lonely >= 1
    torch.testing.assert_close(matrix.sum(1), torch.ones(N + 1))


def test_is_mutual_equals_a_loop():
    neighbors = torch.tensor([[1, 2], [0, 3], [3, 1], [2, 0]])
    expected = [[i in neighbors[j].tolist() for j in row] for i, row in enumerate(neighbors.tolist())]
    assert is_mutual(neighbors).tolist() == expected


def test_dense_scipy_and_networkx_are_one_matrix(features):
    graph = similarity_graph(features, K, mutual=True)
    matrix = graph.to_dense().numpy()
    np.testing.assert_array_equal(graph.to_scipy().toarray(), matrix)
    drawn = graph.to_networkx(label=list(range(100, 100 + N)))
    assert {(i, j): w for i, j, w in drawn.edges(data="weight")} == pytest.approx(
        {(i, j): matrix[i, j] for i, j in zip(*matrix.nonzero(), strict=True)}
    )
    assert drawn.nodes[3]["label"] == 103


@pytest.mark.parametrize("chunk", [1, 7, 40, 1000])
def test_the_chunk_size_changes_nothing(features, chunk):
    whole, parts = similarity_graph(features, K), similarity_graph(features, K, chunk=chunk)
    assert torch.equal(whole.neighbors, parts.neighbors)
    torch.testing.assert_close(whole.weights, parts.weights)


def test_shift_and_scale_of_the_features_change_nothing(features):
    moved = similarity_graph(features * 7 - 2, K)
    torch.testing.assert_close(moved.to_dense(), similarity_graph(features, K).to_dense(), atol=1e-4, rtol=0)


def test_duplicates_stay_finite_under_every_kernel():
    x = torch.cat([torch.ones(6, 3), -torch.ones(6, 3)])
    for kernel in ("cosine", "gaussian", "shared"):
        graph = similarity_graph(x, 3, kernel)
        assert torch.isfinite(graph.weights).all()
        assert ((graph.neighbors < 6) == (torch.arange(12) < 6)[:, None]).all()


def test_half_precision_is_computed_in_float32_even_under_autocast(features):
    rounded = features.bfloat16()
    expected = similarity_graph(rounded.float(), K)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        graph = similarity_graph(rounded, K)
    assert torch.equal(graph.neighbors, expected.neighbors)
    assert graph.weights.dtype == torch.float32
    torch.testing.assert_close(graph.similarity, expected.similarity)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 40}, "k = 40 .*nodes = 40: lower k or use a larger batch"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": True}, "k must be a whole number at least 1, got True"),
        ({"temperature": math.inf}, "temperature must be greater than 0, got inf"),
        ({"temperature": math.nan}, "temperature must be greater than 0, got nan"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"x": torch.zeros(40, 0)}, r"got shape \(40, 0\)"),
        ({"kernel": "cosin"}, "unknown kernel 'cosin': choose one of cosine, gaussian, shared"),
        ({"temperature": 0.0}, "temperature must be greater than 0, got 0.0"),
        ({"x": torch.full((40, 2), float("nan"))}, r"40 of 40 feature rows are not finite \(first: row 0\)"),
    ],
)
def test_bad_input_is_refused_in_one_line(features, change, words):
    with pytest.raises(ValueError, match=words) as error:
        similarity_graph(**{"x": features, "k": K, **change})
    assert "\n" not in str(error.value)


@pytest.mark.gpu
def test_the_graph_is_the_same_on_the_gpu(features):
    here, there = similarity_graph(features, K), similarity_graph(features.cuda(), K)
    assert torch.equal(here.neighbors, there.neighbors.cpu())
    torch.testing.assert_close(here.weights, there.weights.cpu(), atol=1e-5, rtol=1e-4)


rows_of_small_integers = st.integers(2, 9).flatmap(
    lambda n: st.lists(st.lists(st.integers(-2, 2).map(float), min_size=3, max_size=3), min_size=n, max_size=n)
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(rows_of_small_integers, st.integers(1, 8), st.sampled_from(KERNELS), st.booleans())
def test_every_graph_is_stochastic_whatever_ties_duplicates_and_zero_rows(rows, k, kernel, mutual):
    x, k = torch.tensor(rows), min(k, len(rows) - 1)
    graph = similarity_graph(x, k, kernel, mutual=mutual)
    assert (graph.weights >= 0).all()
    torch.testing.assert_close(graph.weights.sum(dim=1), torch.ones(len(x)))
    assert graph.similarity.abs().max() <= 1
    for i, row in enumerate(graph.neighbors.tolist()):
        alone = set(row) == {i}
        assert alone or (i not in row and len(set(row)) == k)
        assert mutual or not alone


def test_temperature_runs_from_the_nearest_to_uniform():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    sharp, flat = similarity_graph(x, 4, temperature=1e-6), similarity_graph(x, 4, temperature=1e6)
    torch.testing.assert_close(sharp.weights, torch.eye(4)[0].repeat(30, 1))
    torch.testing.assert_close(flat.weights, torch.full((30, 4), 0.25))


def test_dense_adds_up_slots_that_lead_to_the_same_node():
    graph = Graph(torch.tensor([[1, 1], [0, 1]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    assert graph.to_dense().tolist() == [[0, 1], [0.5, 0.5]]
    assert graph.to_scipy().toarray().tolist() == [[0, 1], [0.5, 0.5]]


def test_wide_rows_give_the_k_largest_of_a_stable_sort_whatever_the_ties():
    generator = torch.Generator().manual_seed(0)
    columns = 40 * BLOCK  # many more blocks than k, so that only the best blocks are searched
    for rows in (
        torch.randn(50, columns, generator=generator),
        torch.randint(0, 40, (50, columns), generator=generator).float(),  # ties everywhere
        torch.zeros(3, columns),
        torch.randn(50, columns, generator=generator).sort(dim=1, descending=True).values,  # all in the first block
    ):
        values, index = top_k_of_wide_rows(rows, 6)
        expected = rows.sort(dim=1, descending=True, stable=True)
        assert torch.equal(values, expected.values[:, :6])
        assert torch.equal(index, expected.indices[:, :6])


@pytest.mark.parametrize("n", [65, 3000])
def test_neighbours_in_chunks_and_blocks_are_those_of_float64(n):
    x = centre_and_normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(1)))
    similarity, neighbors = nearest_neighbors(x, 7, chunk=100)
    exact = x.double() @ x.double().T
    exact.fill_diagonal_(-2)
    expected = exact.topk(8, dim=1)
    apart = (expected.values[:, :-1] - expected.values[:, 1:]).amin(dim=1) > 1e-6  # away from ties
    assert apart.float().mean() > 0.9
    assert torch.equal(neighbors[apart], expected.indices[apart, :7])
    torch.testing.assert_close(similarity.double(), expected.values[:, :7], atol=1e-6, rtol=0)


def test_of_equally_similar_nodes_the_smaller_number_comes_first():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(5, 1)  # 0, 2, 4, ... are one point, 1, 3, 5, ... another
    graph = similarity_graph(x, 3)
    assert graph.neighbors[0].tolist() == [2, 4, 6]
    assert graph.neighbors[5].tolist() == [1, 3, 7]
    assert graph.neighbors[8].tolist() == [0, 2, 4]


def clustered(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 16, generator=generator)[torch.arange(n) % 12] + torch.randn(n, 16, generator=generator)


def test_an_approximate_search_finds_what_it_promises_says_how_much_and_finds_it_again():
    pytest.importorskip("faiss")
    x = clustered(3000)
    exact, near = similarity_graph(x, 8), similarity_graph(x, 8, approximate_above=2999)
    assert exact.recall is None
    assert similarity_graph(x, 8, approximate_above=3000).recall is None
    hits = (near.neighbors[:, :, None] == exact.neighbors[:, None, :]).any(dim=2).float().mean()
    assert near.recall == pytest.approx(float(hits), abs=0.02)  # of 1,000 rows
    assert 0.95 <= near.recall < 1
    unit = centre_and_normalize(x)
    found = (unit[:, None] * unit[near.neighbors]).sum(dim=2)
    torch.testing.assert_close(near.similarity, found, atol=1e-5, rtol=0)
    assert (near.similarity.diff(dim=1) <= 0).all()
    assert (near.neighbors != torch.arange(3000)[:, None]).all()
    assert all(len(set(row)) == 8 for row in near.neighbors.tolist())
    assert torch.equal(near.neighbors, similarity_graph(x, 8, approximate_above=0).neighbors)
    assert torch.equal(approximate_neighbors(unit, 8, least=1.0)[1], exact.neighbors)  # every cell, if it has to


def test_rows_in_cells_of_too_few_find_their_neighbours_elsewhere():
    """Four rows far from all others, and one cell searched for each row."""
    pytest.importorskip("faiss")
    x = torch.eye(8)[torch.tensor([0] * 4 + [1] * 300 + [2] * 300)] + 1e-3 * clustered(604)[:, :8]
    index = approximate_neighbors(centre_and_normalize(x), 40, least=0.01)[1]
    assert index.min() >= 0
    assert all(len(set(row)) == 40 for row in index.tolist())


def test_an_approximate_search_without_faiss_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match="needs faiss: pip install faiss-cpu, or search exactly"):
        similarity_graph(clustered(100), 8, approximate_above=0)


def test_recall_is_the_share_of_true_neighbours_on_rows_evenly_spaced():
    x, own = clustered(300), torch.arange(300)[:, None]
    exact = similarity_graph(x, 8).neighbors
    shuffled = torch.cat([exact[:, :4], (own + torch.arange(4) + 140) % 300], dim=1)
    overlap = (shuffled[:, :, None] == exact[:, None, :]).any(dim=2).float()
    unit = centre_and_normalize(x)
    assert neighbor_recall(unit, shuffled, sample=300) == pytest.approx(float(overlap.mean()), abs=1e-6)
    few = overlap[[0, 99, 199, 299]].mean()
    assert neighbor_recall(unit, shuffled, sample=4) == pytest.approx(float(few), abs=1e-6)


@pytest.mark.slow
def test_memory_is_of_order_nk_plus_chunk_n():
    # In a process of its own, whose peak memory is its own: 30,000 nodes would need 3.6 GB as a whole matrix.
    code = """
import resource, torch
from sagkit.graph import similarity_graph
x = torch.randn(30_000, 16)
similarity_graph(x[:2000], 10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
similarity_graph(x, 10, mutual=True, kernel="shared")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400  # MB; 60 of them are one chunk


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": torch.tensor([[0.5, 0.5], [-0.1, 1.1], [1.0, 0.0]])}, r"at least 0 and finite: row 1 is \[-0.1"),
        ({"weights": torch.tensor([[0.5, 0.5], [0.5, 0.5], [math.nan, 0.0]])}, "row 2 is"),
        ({"weights": torch.tensor([[0.5, 0.5], [math.inf, 0.5], [1.0, 0.0]])}, "row 1 is"),
        ({"neighbors": torch.tensor([[1, 2], [0, 3], [0, 1]])}, r"neighbors 0..3 exceed the graph's 3 nodes"),
        ({"neighbors": torch.tensor([[1, 2], [0, -1], [0, 1]])}, r"neighbors -1..2 exceed"),
        ({"similarity": torch.full((3, 2), 1.5)}, r"cosine in \[-1, 1\]: row 0"),
        ({"similarity": torch.full((3, 2), math.nan)}, r"cosine in \[-1, 1\]: row 0"),
    ],
)
def test_a_graph_that_cannot_be_walked_is_refused(change, words):
    sound = {"neighbors": torch.tensor([[1, 2], [0, 2], [0, 1]]), "weights": torch.full((3, 2), 0.5)}
    Graph(**sound)
    with pytest.raises(ValueError, match=words) as error:
        Graph(**sound | change)
    assert "\n" not in str(error.value)


def test_the_transition_matrix_is_the_walks_law_where_rows_do_not_sum_to_one_and_where_nothing_leads_away():
    graph = Graph(torch.tensor([[1, 2], [2, 0], [1, 1]]), torch.tensor([[0.0, 0.0], [3.0, 1.0], [2.0, 6.0]]))
    law = torch.tensor([[1.0, 0, 0], [0.25, 0, 0.75], [0, 1.0, 0]])
    torch.testing.assert_close(graph.to_dense(), law)
    np.testing.assert_allclose(graph.to_scipy().toarray(), law)
    starts = torch.arange(3).repeat_interleave(4000)
    ends = random_walk(graph, starts, 1, generator=torch.Generator().manual_seed(0))[:, 1].view(3, -1)
    for row, expected in zip(ends, law, strict=True):
        share = torch.bincount(row, minlength=3) / 4000
        assert (share - expected).abs().max() < 0.03  # 4.4 standard deviations


def test_sinkhorns_iterations_make_walks_end_everywhere_alike_and_keep_edges_and_their_odds():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for fields in ({"k": 39}, {"k": 12, "mutual": True}):
        plain, much = (similarity_graph(x, temperature=0.3, sinkhorn=n, **fields) for n in (0, 200))
        assert torch.equal(plain.neighbors, much.neighbors)
        assert torch.equal(plain.weights > 0, much.weights > 0)
        into = much.to_dense().sum(dim=0)
        torch.testing.assert_close(into, torch.ones_like(into), rtol=0, atol=0.02)
        assert plain.to_dense().sum(dim=0).std() > 0.1, "hubs"
        few = similarity_graph(x, temperature=0.3, sinkhorn=3, **fields).to_dense()
        by_hand = plain.to_dense()
        for _ in range(3):
            by_hand = by_hand / by_hand.sum(dim=0)
            by_hand = by_hand / by_hand.sum(dim=1, keepdim=True)
        torch.testing.assert_close(few, by_hand)
