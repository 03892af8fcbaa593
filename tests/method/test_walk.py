"""Walks: their law by chi-square, a scalar loop, restart in closed form, pairs by an explicit loop."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from sagkit.graph import Graph, similarity_graph
from sagkit.walk import (
    CPU_WALKS,
    Ends,
    expected_ends,
    path_weight,
    random_walk,
    sample_pairs,
    walk_from_uniforms,
    walk_tables,
    weighted_walk,
)

DRAWS = 40_000
LEVEL = 1e-3 / 12  # a family of at most twelve chi-square tests each, at 0.1 % together; seeds are fixed


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return similarity_graph(torch.randn(12, 3, generator=seeded()), k=4, temperature=0.5)


def follows(ends: torch.Tensor, probabilities: np.ndarray) -> bool:
    counts = np.bincount(ends.numpy(), minlength=len(probabilities))
    possible = probabilities > 1e-12
    assert counts[~possible].sum() == 0
    expected = probabilities[possible] / probabilities[possible].sum() * counts.sum()
    return possible.sum() == 1 or chisquare(counts[possible], expected).pvalue > LEVEL


@pytest.mark.parametrize("length", [1, 2, 5])
def test_ends_follow_the_rows_of_the_power_of_p(graph, length):
    power = np.linalg.matrix_power(graph.to_dense().double().numpy(), length)
    starts = torch.arange(12).repeat_interleave(DRAWS)
    ends = random_walk(graph, starts, length, generator=seeded(length))[:, -1].view(12, DRAWS)
    assert all(follows(ends[i], power[i]) for i in range(12))


def test_restart_follows_its_closed_form(graph):
    restart, length = 0.3, 4
    p = graph.to_dense().double().numpy()
    law = np.eye(12)
    for _ in range(length):  # each step: home with probability c, else along P
        law = restart * np.eye(12) + (1 - restart) * law @ p
    starts = torch.arange(12).repeat_interleave(DRAWS)
    ends = random_walk(graph, starts, length, restart, seeded(9))[:, -1].view(12, DRAWS)
    assert all(follows(ends[i], law[i]) for i in range(12))


def test_lazy_steps_and_restarts_together_follow_their_closed_form(graph):
    restart, lazy, length = 0.2, 0.35, 3
    p = graph.to_dense().double().numpy()
    law = np.eye(12)
    for _ in range(length):  # each step: home, else stay, else along P
        law = restart * np.eye(12) + lazy * law + (1 - restart - lazy) * law @ p
    starts = torch.arange(12).repeat_interleave(DRAWS)
    ends = random_walk(graph, starts, length, restart, seeded(7), lazy=lazy)[:, -1].view(12, DRAWS)
    assert all(follows(ends[i], law[i]) for i in range(12))


@pytest.mark.parametrize(("p", "q"), [(0.25, 1.0), (1.0, 4.0), (4.0, 0.25)])
def test_return_and_in_out_parameters_follow_node2vecs_law(graph, p, q):
    plain = graph.to_dense().double().numpy()
    ends = random_walk(graph, torch.zeros(12 * DRAWS, dtype=torch.int64), 3, generator=seeded(5), p=p, q=q)
    second = {}  # law of the next node by (last, here), from the definition
    for last in range(12):
        for here in np.flatnonzero(plain[last]):
            bias = np.where(plain[last] > 0, 1.0, 1 / q)
            bias[last] = 1 / p
            second[last, here] = plain[here] * bias / (plain[here] * bias).sum()
    law = np.zeros(12)
    for a in np.flatnonzero(plain[0]):
        for b in np.flatnonzero(second[0, a]):
            law += plain[0, a] * second[0, a][b] * second[a, b]
    assert follows(ends[:, -1], law)
    assert not follows(ends[:, -1], np.linalg.matrix_power(plain, 3)[0])


def test_walks_from_different_starts_are_independent(graph):
    paths = random_walk(graph, torch.tensor([0, 5]).repeat(DRAWS, 1).T.flatten(), 2, generator=seeded(3))
    a, b = paths[:DRAWS, -1].numpy(), paths[DRAWS:, -1].numpy()
    p = graph.to_dense().double().numpy()
    joint = np.outer((p @ p)[0], (p @ p)[5]).flatten()
    assert follows(torch.from_numpy(a * 12 + b), joint)


@st.composite
def graphs(draw):
    nodes, slots = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    neighbors = draw(
        st.lists(
            st.lists(st.integers(0, nodes - 1), min_size=slots, max_size=slots, unique=slots <= nodes),
            min_size=nodes,
            max_size=nodes,
        )
    )
    weight = st.one_of(st.just(0.0), st.floats(1e-6, 1e6))
    rows = st.lists(weight, min_size=slots, max_size=slots).filter(lambda row: sum(row) > 0)
    weights = draw(st.lists(rows, min_size=nodes, max_size=nodes))
    return Graph(torch.tensor(neighbors), torch.tensor(weights))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(graphs(), st.integers(0, 2**31), st.sampled_from([0.0, 0.25, 0.9]))
def test_every_path_equals_a_scalar_loop_and_takes_no_edge_of_weight_zero(graph, seed, restart):
    length, nodes = 6, len(graph)
    u = torch.rand(length, nodes, generator=seeded(seed))
    u[0, 0], u[1, 0] = 0.0, 1 - 2**-24  # both ends of [0, 1)
    paths = walk_from_uniforms(graph, torch.arange(nodes), u, restart)
    for start in range(nodes):
        node = start
        for step in range(length):
            draw = float(u[step, start])
            expected = {node}
            if draw < restart:
                expected = {start}
            else:
                below = np.float64(0)
                weights = graph.weights[node].double().numpy()
                target = (draw - restart) / (1 - restart) * weights.sum()
                expected = set()
                for slot, weight in enumerate(weights):  # a float32 sum may fall on either side of a border
                    slack = 1e-5 * weights.sum()
                    if weight > 0 and below - slack <= target <= below + weight + slack:
                        expected.add(int(graph.neighbors[node, slot]))
                    below += weight
            node = int(paths[start, step + 1])
            assert node in expected


def test_a_generator_reproduces_the_walks_and_restart_zero_draws_the_same(graph):
    starts = torch.arange(12)
    first = random_walk(graph, starts, 5, generator=seeded(1))
    assert torch.equal(first, random_walk(graph, starts, 5, generator=seeded(1)))
    assert not torch.equal(first, random_walk(graph, starts, 5, generator=seeded(2)))
    assert torch.equal(first[:, 0], starts)


def test_many_walks_are_those_of_their_parts_in_turn(graph):
    starts = torch.arange(2 * CPU_WALKS + 5) % 12
    generator = seeded(1)
    parts = [random_walk(graph, part, 2, generator=generator) for part in starts.split(CPU_WALKS)]
    assert torch.equal(random_walk(graph, starts, 2, generator=seeded(1)), torch.cat(parts))


def test_rows_need_not_be_normalised(graph):
    scaled = Graph(graph.neighbors, graph.weights * torch.logspace(-3, 3, 12)[:, None])
    u = torch.rand(4, 12, generator=seeded())
    starts = torch.arange(12)
    assert torch.equal(walk_from_uniforms(scaled, starts, u), walk_from_uniforms(graph, starts, u))


def test_pairs_equal_a_loop_over_paths(graph):
    pairs = sample_pairs(graph, 3, walks=2, generator=seeded(4))
    paths = random_walk(graph, torch.arange(12).repeat_interleave(2), 3, generator=seeded(4)).tolist()
    similarity = {
        (i, j): float(s)
        for i in range(12)
        for j, s in zip(graph.neighbors[i].tolist(), graph.similarity[i], strict=True)
    }
    for path, anchor, positive, weight in zip(paths, *(column.tolist() for column in pairs), strict=True):
        assert (anchor, positive) == (path[0], path[-1])
        product = 1.0
        for hop in pairwise(path):
            product *= max(0.0, similarity[hop])
        assert weight == pytest.approx(0.0 if positive == anchor else product, abs=1e-6)
    assert len(pairs.anchor) == 24
    assert any(w == 0 and a == p for a, p, w in zip(*(c.tolist() for c in pairs), strict=True))


def test_without_similarities_a_pair_that_left_home_has_weight_one():
    graph = Graph(torch.tensor([[1], [2], [0]]), torch.ones(3, 1))
    paths = torch.tensor([[0, 1, 2], [0, 1, 0]])
    assert path_weight(graph, paths).tolist() == [1.0, 0.0]


def test_a_restart_begins_the_product_anew_and_a_lazy_step_leaves_it():
    graph = Graph(torch.tensor([[1], [2], [3], [0]]), torch.ones(4, 1), torch.tensor([[0.5], [0.25], [0.75], [0.125]]))
    paths = torch.tensor([[0, 1, 0, 1], [0, 1, 1, 2], [0, 1, 2, 3], [0, 1, 2, 0]])
    assert path_weight(graph, paths).tolist() == [0.5, 0.125, 0.09375, 0.0]


def scalar_walk(graph, start, draws, restart, lazy):
    """One walk by hand: path, weight, restarts; similarities are multiplied along the edges that were taken."""
    here, weight, path, jumps = start, 1.0, [start], []
    for draw in draws:
        jumps.append(draw < restart)
        if draw < restart:
            here, weight = start, 1.0
        elif draw >= restart + lazy:
            shares = graph.weights[here].double()
            reached = (shares.cumsum(0) / shares.sum()).tolist()
            slot = next(s for s, share in enumerate(reached) if (draw - restart - lazy) / (1 - restart - lazy) < share)
            weight *= max(0.0, float(graph.similarity[here, slot]))
            here = int(graph.neighbors[here, slot])
        path.append(here)
    return path, weight * (here != start), jumps


@pytest.mark.slow
@pytest.mark.parametrize(("restart", "lazy", "length"), [(0.0, 0.0, 3), (0.3, 0.0, 4), (0.2, 0.3, 5)])
def test_a_walk_multiplies_the_similarities_of_the_edges_it_took_since_its_last_restart(graph, restart, lazy, length):
    starts = torch.arange(12).repeat_interleave(300)
    walk = weighted_walk(graph, starts, length, restart, seeded(5), lazy=lazy)
    u = torch.rand(length, len(starts), generator=seeded(5))
    by_hand = [
        scalar_walk(graph, s, draws, restart, lazy) for s, draws in zip(starts.tolist(), u.T.tolist(), strict=True)
    ]
    assert walk.paths.tolist() == [path for path, _, _ in by_hand]
    assert walk.restarted.tolist() == [jumps for _, _, jumps in by_hand]
    torch.testing.assert_close(walk.weight.double(), torch.tensor([weight for _, weight, _ in by_hand]).double())
    pairs = sample_pairs(graph, length, 300, seeded(5), restart=restart, lazy=lazy)
    assert torch.equal(pairs.weight, walk.weight)
    assert torch.equal(pairs.positive, walk.paths[:, -1])
    if not lazy:  # a stay along a self loop and a lazy step are one path
        torch.testing.assert_close(path_weight(graph, walk.paths, walk.restarted), walk.weight)


def test_a_path_does_not_tell_a_restart_from_the_edge_home_and_the_walk_does():
    both_ways = Graph(torch.tensor([[1], [0]]), torch.ones(2, 1), torch.full((2, 1), 0.5))
    walk = weighted_walk(both_ways, torch.zeros(4000, dtype=torch.int64), 3, 0.3, seeded(1))
    home = walk.restarted[:, 1]  # 0 -> 1 by the edge or 0 -> 0 by a jump; then home by a jump; then 0 -> 1
    reached = walk.paths[:, -1] == 1
    assert set(walk.weight[home & ~walk.restarted[:, 2]].tolist()) == {0.5}
    assert set(walk.weight[reached & ~walk.restarted.any(dim=1)].tolist()) == {0.125}


def test_an_edge_of_weight_zero_lends_a_path_no_similarity():
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
    graph = Graph(torch.tensor([[1, 2], [2, 0], [0, 1]]), weights, torch.full((3, 2), 0.5))
    assert path_weight(graph, torch.tensor([[0, 1]])).tolist() == [0.5]
    with pytest.raises(ValueError, match=r"path 1 takes the hop 0 -> 2, which is no edge"):
        path_weight(graph, torch.tensor([[0, 1], [0, 2]]))


@pytest.mark.parametrize("extra", [{}, {"restart": 0.2}, {"p": 2.0, "q": 0.5}])
def test_a_walk_stays_at_a_node_whose_edges_all_weigh_nothing(extra):
    graph = Graph(torch.tensor([[1, 2], [2, 0], [0, 1]]), torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.5, 0.5]]))
    paths = random_walk(graph, torch.tensor([0, 1, 2]).repeat(200), 6, generator=seeded(), **extra)
    assert (paths[::3] == 0).all()
    stepped = paths[:, 1:][paths[:, :-1] == 0]
    home = paths[:, :1].expand(-1, 6)[paths[:, :-1] == 0]
    assert ((stepped == 0) | ((stepped == home) if "restart" in extra else False)).all()
    assert set(paths[1::3, 1].tolist()) >= {0, 2}


def test_anchors_are_where_walks_start_and_unique_counts_each_partner_once(graph):
    anchors = torch.tensor([7, 2])
    pairs = sample_pairs(graph, 1, walks=9, generator=seeded(1), anchors=anchors, unique=True)
    plain = sample_pairs(graph, 1, walks=9, generator=seeded(1), anchors=anchors)
    assert pairs.anchor.tolist() == [7] * 9 + [2] * 9
    assert torch.equal(pairs.positive, plain.positive)
    for row in range(2):
        mine = slice(9 * row, 9 * row + 9)
        ends = plain.positive[mine].tolist()
        first = torch.tensor([end not in ends[:i] for i, end in enumerate(ends)])
        assert len(set(ends)) < 9
        assert torch.equal(pairs.weight[mine], plain.weight[mine] * first)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 9, 31, 33])
def test_any_number_of_slots_gives_the_walks_of_a_search_in_the_cumulative_weights(k):
    generator = seeded(k)
    weights = torch.rand(50, k, generator=generator) + 1e-3
    graph = Graph(torch.randint(50, (50, k), generator=generator), weights)
    starts, u = torch.arange(50), torch.rand(4, 50, generator=generator)
    cdf = weights.cumsum(dim=1)
    cdf = cdf / cdf[:, -1:]
    node, path = starts, [starts]
    for draw in u:
        node = graph.neighbors[node, torch.searchsorted(cdf[node], draw[:, None], right=True)[:, 0]]
        path.append(node)
    expected = torch.stack(path, dim=1)
    assert torch.equal(walk_from_uniforms(graph, starts, u), expected)
    assert torch.equal(walk_from_uniforms(graph, starts, u, tables=walk_tables(graph)), expected)
    assert torch.equal(walk_from_uniforms(graph, starts, u.double()), expected)


def test_no_gradient_flows_through_a_walk(graph):
    weights = graph.weights.clone().requires_grad_()
    pairs = sample_pairs(
        Graph(graph.neighbors, weights, graph.similarity.clone().requires_grad_()), 2, generator=seeded()
    )
    assert not pairs.weight.requires_grad


def test_an_isolated_node_pairs_with_nobody():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.05], [-1.0, 0.0], [0.0, 9.0]])
    graph = similarity_graph(x, 1, mutual=True)
    assert graph.neighbors[4].tolist() == [4]
    pairs = sample_pairs(graph, 3, generator=seeded())
    assert pairs.weight[4] == 0


@pytest.mark.slow
def test_the_walk_compiles_as_one_graph_and_gives_the_same_paths():
    # In a process of its own: the shape checks that tests switch on are not made to be compiled.
    code = """
import torch
from sagkit.graph import similarity_graph
from sagkit.walk import walk_from_uniforms
torch.manual_seed(0)
graph, starts, u = similarity_graph(torch.randn(12, 3), k=4), torch.arange(12), torch.rand(3, 12)
for restart, lazy in ((0.0, 0.0), (0.3, 0.2)):
    plain = walk_from_uniforms(graph, starts, u, restart, lazy)
    compiled = torch.compile(walk_from_uniforms, fullgraph=True, backend="aot_eager")(graph, starts, u, restart, lazy)
    assert torch.equal(plain, compiled)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
def test_the_law_is_the_same_on_the_gpu(graph):
    power = np.linalg.matrix_power(graph.to_dense().double().numpy(), 3)
    starts = torch.arange(12, device="cuda").repeat_interleave(DRAWS)
    generator = torch.Generator("cuda").manual_seed(0)
    ends = random_walk(graph.to("cuda"), starts, 3, generator=generator)[:, -1].cpu().view(12, DRAWS)
    assert all(follows(ends[i], power[i]) for i in range(12))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda g: random_walk(g, torch.arange(12), 0), "length must be at least 1, got 0"),
        (lambda g: random_walk(g, torch.arange(12), 2, restart=1.0), r"in \[0, 1\), got 1.0"),
        (lambda g: sample_pairs(g, 2, walks=0), "at least 1, got 0"),
        (lambda g: random_walk(g, torch.arange(12), 2, restart=0.5, lazy=0.5), r"in \[0, 1 - restart = 0.5\), got 0.5"),
        (lambda g: random_walk(g, torch.arange(12), 2, q=0.0), "q must be greater than 0, got 0.0"),
        (lambda g: random_walk(g, torch.arange(12), 2, restart=0.1, q=2.0), "restart = lazy = 0, got restart = 0.1"),
    ],
)
def test_impossible_walks_are_refused(graph, call, words):
    with pytest.raises(ValueError, match=words):
        call(graph)


@pytest.mark.parametrize(
    "weights", [(0.0, 0.3, 0.7), (0.3, 0.0, 0.7), (0.3, 0.7, 0.0), (0.0, 1.0, 0.0), (0.1, 0.2, 0.0)]
)
@pytest.mark.parametrize("restart", [0.0, 0.22, 0.35, 0.48, 0.9])
def test_an_edge_of_weight_zero_is_never_taken(weights, restart):
    graph = Graph(torch.tensor([[1, 2, 3]] * 4), torch.tensor([weights] * 4))
    borders = [restart, 0.3, 0.7, *(1 - i * 2**-24 for i in range(1, 20))]  # 1 - 2^-24: the largest torch.rand gives
    u = torch.cat([torch.tensor(borders), torch.rand(10_000, generator=torch.Generator().manual_seed(0))])
    ends = walk_from_uniforms(graph, torch.zeros(len(u), dtype=torch.int64), u[None], restart)[:, 1]
    assert set(ends.tolist()) - {0} == {node for node, w in zip((1, 2, 3), weights, strict=True) if w > 0}


def test_walks_leave_the_global_generator_alone():
    graph = similarity_graph(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), 4)
    state = torch.get_rng_state()
    random_walk(graph, torch.arange(12), 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)


def every_walk(graph: Graph, start: int, length: int, restart: float):
    """All walks from a node, one by one: (end, probability, weight), by the definition of each step."""
    under_way = [(start, 1.0, 1.0)]
    for _ in range(length):
        ahead = []
        for here, chance, weight in under_way:
            if restart:
                ahead.append((start, chance * restart, 1.0))
            row, total = graph.weights[here], float(graph.weights[here].sum())
            if total == 0:
                ahead.append((here, chance * (1 - restart), weight))
                continue
            for slot, w in enumerate(row.tolist()):
                sure = 1.0 if graph.similarity is None else max(0.0, float(graph.similarity[here, slot]))
                ahead.append((int(graph.neighbors[here, slot]), chance * (1 - restart) * w / total, weight * sure))
        under_way = ahead
    return [(end, chance, weight * (end != start)) for end, chance, weight in under_way]


@pytest.mark.parametrize("restart", [0.0, 0.3])
@pytest.mark.parametrize(("k", "length"), [(2, 1), (2, 3), (5, 3)])
@pytest.mark.parametrize("similar", [True, False])
def test_expected_ends_are_the_sum_over_all_walks(k, length, restart, similar):
    generator = torch.Generator().manual_seed(k)
    neighbors = torch.stack([torch.randperm(9, generator=generator)[:k] for _ in range(9)])
    weights = torch.rand(9, k, generator=generator)
    weights[:, 0] = weights[:, 0] * (torch.arange(9) % 3 > 0)  # an edge of weight 0
    weights[4] = 0  # a walk stays there
    similarity = torch.rand(9, k, generator=generator) * 1.5 - 0.5 if similar else None
    graph = Graph(neighbors, weights, similarity)
    ends = expected_ends(graph, length, anchors=6, restart=restart)
    by_hand = torch.zeros(6, 9)
    for start in range(6):
        for end, chance, weight in every_walk(graph, start, length, restart):
            by_hand[start, end] += chance * weight
    torch.testing.assert_close(ends.to_dense(9), by_hand)
    assert ends.node.shape[1] <= max(9, k) * length, "paths while they are fewer than nodes"


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_the_surest_walks_are_those_of_largest_weight_that_make_up_the_fraction(fraction):
    graph = similarity_graph(torch.randn(30, 5, generator=torch.Generator().manual_seed(1)), 4, temperature=0.3)
    walks = [(i, *walk) for i in range(30) for walk in every_walk(graph, i, 2, 0.0)]
    by_hand, reached, least = torch.zeros(30, 30), 0.0, 1.0
    for start, end, chance, weight in sorted(walks, key=lambda walk: -walk[3]):
        if reached < fraction * 30:
            least = weight
        if weight > least - 1e-6:  # there and back weigh the same
            by_hand[start, end] += chance * weight
        reached += chance
    torch.testing.assert_close(expected_ends(graph, 2, confident=fraction).to_dense(30), by_hand)


def test_ends_are_scaled_by_anchor_and_have_an_even_share_taken_off():
    weight = torch.tensor([[0.1, 0.3], [0.0, 0.0], [0.5, 0.0]])
    ends = Ends(torch.tensor([[1, 2], [0, 2], [3, 0]]), weight, torch.zeros(3))
    scaled = ends.scaled(0.4)
    torch.testing.assert_close(scaled.weight.sum(dim=1), torch.tensor([0.6, 0.0, 0.6]))  # the empty one's 0.4, shared
    torch.testing.assert_close(scaled.weight[0] / scaled.weight[0].sum(), weight[0] / 0.4)
    less = scaled.against_null(0.5, 4).to_dense(4)
    torch.testing.assert_close(less.sum(dim=1), torch.tensor([0.3, 0.0, 0.3]))
    torch.testing.assert_close(less[2], torch.tensor([0.0, 0.0, 0.0, 0.6]) - 0.5 * 0.6 / 4)
