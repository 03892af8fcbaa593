"""The graph behind VICReg: closed forms of its quadratic form and eigenmaps, and the toys' laws."""

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from scipy.stats import binom
from sklearn.metrics import silhouette_score

from sagkit.loss import invariance, vicreg_loss
from sagkit.studies import spectral


def random_weights(n: int, seed: int = 0) -> torch.Tensor:
    w = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.triu(w, 1) + torch.triu(w, 1).T


def test_the_quadratic_form_is_the_double_sum_it_is_defined_by():
    w, y = random_weights(7), torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loop = sum(float(w[i, j]) * float((y[i] - y[j]).square().sum()) for i in range(7) for j in range(7)) / 49
    assert float(spectral.quadratic_form(w, y)) == pytest.approx(loop, rel=1e-12)


def test_on_the_view_graph_it_is_vicregs_invariance_value_and_gradient():
    images, dims = 6, 4
    z = torch.randn(2 * images, dims, generator=torch.Generator().manual_seed(2), requires_grad=True)
    by_graph = spectral.quadratic_form(spectral.view_graph(images), z)
    (gradient,) = torch.autograd.grad(by_graph, z)
    scale = dims / (2 * images)
    s = invariance(z[:images], z[images:])
    (expected,) = torch.autograd.grad(scale * s, z)
    torch.testing.assert_close(by_graph, scale * s)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("normalized", [False, True])
def test_the_laplacian_is_networkxs(normalized):
    graph = nx.gnp_random_graph(12, 0.2, seed=3)  # with a node that has no edge
    graph.add_node(12)
    w = torch.tensor(nx.to_numpy_array(graph))
    reference = (nx.normalized_laplacian_matrix if normalized else nx.laplacian_matrix)(graph).toarray()
    np.testing.assert_allclose(spectral.laplacian(w, normalized).numpy(), reference, atol=1e-12)


def test_eigenmaps_of_a_block_diagonal_graph_are_constant_on_blocks_at_no_cost():
    w = torch.block_diag(*(random_weights(size, size) for size in (4, 5, 6)))
    values, y = spectral.eigenmaps(w, 3)
    torch.testing.assert_close(values[:2], torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)
    assert values[2] > 0.1  # three blocks leave two directions beside the constant
    for block in y[:, :2].split([4, 5, 6]):
        torch.testing.assert_close(block, block[:1].expand_as(block), atol=1e-8, rtol=0)
    assert torch.cdist(*[torch.stack([b[0] for b in y[:, :2].split([4, 5, 6])])] * 2).add(torch.eye(3)).min() > 0.5


def test_the_view_graph_of_b_images_costs_nothing_in_b_minus_1_directions():
    values = spectral.eigenmaps(spectral.view_graph(5), 9).values
    torch.testing.assert_close(values, torch.tensor([0.0] * 4 + [2.0] * 5, dtype=torch.float64), atol=1e-9, rtol=0)


def test_eigenmaps_of_a_ring_are_its_closed_form():
    n = 12
    w = torch.tensor(nx.to_numpy_array(nx.cycle_graph(n)))
    values, y = spectral.eigenmaps(w, 4)
    expected = [2 - 2 * np.cos(2 * np.pi * k / n) for k in (1, 1, 2, 2)]
    np.testing.assert_allclose(values, expected, atol=1e-9)
    torch.testing.assert_close(y[:, :2].square().sum(1), torch.full((n,), 2.0, dtype=torch.float64))  # a circle


def test_eigenmaps_meet_the_constraint_and_reach_the_least_value():
    n, dims = 10, 3
    w = random_weights(n, 4)
    values, y = spectral.eigenmaps(w, dims)
    torch.testing.assert_close(y.T @ y / n, torch.eye(dims, dtype=torch.float64))
    torch.testing.assert_close(y.mean(0), torch.zeros(dims, dtype=torch.float64), atol=1e-9, rtol=0)
    least = spectral.quadratic_form(w, y)
    torch.testing.assert_close(least, 2 / n * values.sum())
    for seed in range(20):  # Ky Fan: no other centred orthogonal frame does better
        other = torch.randn(n, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        frame = torch.linalg.qr(other - other.mean(0)).Q * n**0.5
        assert spectral.quadratic_form(w, frame) > least


def test_normalized_eigenmaps_solve_the_generalised_problem_of_scipy():
    w = random_weights(9, 5)
    values, y = spectral.eigenmaps(w, 3, normalized=True)
    degree = np.diag(w.sum(1).numpy())
    reference, _ = eigh(spectral.laplacian(w).numpy(), degree)
    np.testing.assert_allclose(values, reference[1:4], atol=1e-9)
    np.testing.assert_allclose(
        spectral.laplacian(w).numpy() @ y.numpy(), degree @ y.numpy() * values.numpy(), atol=1e-8
    )


def test_a_planted_partition_has_its_densities():
    w = spectral.planted_partition(3, 40, 0.3, 0.05, seed=6)
    assert torch.equal(w, w.T)
    assert w.diagonal().sum() == 0
    block = torch.arange(120) // 40
    upper = torch.ones(120, 120).triu(1).bool()
    for same, p in ((True, 0.3), (False, 0.05)):
        cells = upper & ((block[:, None] == block[None]) == same)
        low, high = binom.interval(1 - 1e-6, int(cells.sum()), p)
        assert low <= int(w[cells].sum()) <= high


def test_partners_follow_the_edges_weights():
    w = torch.tensor([[0.0, 3.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    cdf = w.expand(4000, 3, 3).cumsum(2)
    drawn = spectral.draw_partners(cdf, torch.Generator().manual_seed(7))
    assert (drawn[:, 1] == 0).all()
    assert (drawn[:, 2] == 2).all()  # no edge: its own partner
    low, high = binom.interval(1 - 1e-6, 4000, 0.75)
    assert low <= int((drawn[:, 0] == 1).sum()) <= high
    assert not (drawn[:, 0] == 0).any()


def test_spheres_lie_on_spheres_about_their_centres():
    points, label = spectral.spheres(50, noise=0.0, seed=8)
    radius = (points - torch.tensor(spectral.CENTRES)[label]).norm(dim=1)
    torch.testing.assert_close(radius, torch.ones(200))


def test_a_stack_of_networks_is_trained_as_each_would_be_alone():
    points, label = spectral.spheres(10, seed=9)
    w = (label[:, None] == label[None]).float()
    x, graphs = torch.stack([points, points.flip(0)]), torch.stack([w, torch.eye(40)])
    stack = spectral.train_on_edges(x, graphs, 3, steps=1, lr=1e-2, seed=0)
    # One step by hand: the same draws, one network at a time, VICReg from its own function.
    networks, generator = spectral.Networks(2, 3, 3, seed=0), torch.Generator().manual_seed(1)
    partner = spectral.draw_partners(graphs.cumsum(2), generator)
    noise = [0.1 * torch.randn(x.shape, generator=generator) for _ in range(2)]
    for run in range(2):
        views = (x[run] + noise[0][run], x[run, partner[run]] + noise[1][run])
        a, b = ((v @ networks.layers[0][0][run] + networks.layers[0][1][run]).relu() for v in views)
        a, b = ((v @ networks.layers[1][0][run] + networks.layers[1][1][run]).relu() for v in (a, b))
        a, b = (v @ networks.layers[2][0][run] + networks.layers[2][1][run] for v in (a, b))
        (gradient,) = torch.autograd.grad(vicreg_loss(a, b).total, networks.layers[2][0])
        moved = networks.layers[2][0][run] - 1e-2 * gradient[run].sign()  # Adam's first step
        large = gradient[run].abs() > 1e-4
        torch.testing.assert_close(stack.layers[2][0][run][large], moved[large], atol=1e-5, rtol=0)


def test_landing_counts_neighbours_and_agrees_with_sklearn():
    rng = np.random.default_rng(10)
    y = np.concatenate([rng.normal(size=(30, 2)), rng.normal(50, 1, size=(20, 2))])
    labels = np.repeat([0, 1], [30, 20])
    found = spectral.landing(y, labels, 1)
    assert found.purity == 1
    assert found.silhouette > 0.9
    mixed = spectral.landing(rng.normal(size=(3000, 2)), np.arange(3000) % 4, 3)
    assert mixed.purity == pytest.approx(0.25, abs=0.03)  # nothing of its own
    parts = [spectral.landing(y, labels, c).silhouette * (labels == c).mean() for c in (0, 1)]
    assert sum(parts) == pytest.approx(silhouette_score(y, labels))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: spectral.laplacian(torch.tensor([[0.0, 1.0], [0.0, 0.0]])), "symmetric"),
        (lambda: spectral.laplacian(torch.tensor([[0.0, -1.0], [-1.0, 0.0]])), "not negative"),
        (lambda: spectral.eigenmaps(torch.eye(4), 4), "dims = 4"),
        (lambda: spectral.planted_partition(2, 5, 1.2, 0.1), "p_in = 1.2"),
        (lambda: spectral.planted_partition(0, 5, 0.2, 0.1), "0 blocks"),
        (lambda: spectral.landing(np.zeros((12, 2)), np.repeat([0, 1], 6), 1), "k = 10"),
    ],
)
def test_impossible_requests_are_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()
