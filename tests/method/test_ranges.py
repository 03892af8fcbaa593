"""Every numeric argument of the method has a range: what lies outside is refused in one line, before any work."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from sagkit import require
from sagkit.augment import Augmentation
from sagkit.data.load import make_shapes
from sagkit.graph import Graph, similarity_graph
from sagkit.loss import barlow_twins_loss, sag_vicreg_loss, variance, vicreg_loss, walk_term
from sagkit.pairing import DatasetPairing, Queue, WalkPairing
from sagkit.walk import (
    Ends,
    Pairs,
    most_confident,
    no_pairs,
    path_weight,
    random_walk,
    sample_pairs,
    walk_from_uniforms,
)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", (0, 0.5, 1 - 1e-16, np.float32(0.5)), (1, -1e-9, 1.0, math.nan, -math.inf)),
        ("(0, 1]", (1, 1e-9), (0, 1 + 1e-9, math.nan)),
        ("[1, inf)", (1, 1e300, np.int64(3)), (0.99, math.inf, math.nan)),
        ("(0, inf)", (1e-300,), (0, -0.0, math.inf)),
    ],
)
def test_an_interval_says_which_ends_belong_to_it(interval, inside, outside):
    for value in inside:
        require("x", value, interval, "remedy")
    for value in outside:
        with pytest.raises(ValueError, match=r"^x must be .*, got .*: remedy$"):
            require("x", value, interval, "remedy")


@pytest.mark.parametrize("value", [True, np.True_, "3", None, 1j, torch.tensor(3), [3]])
def test_what_is_no_number_is_refused_and_whole_numbers_are_integers(value):
    for whole in (False, True):
        with pytest.raises(ValueError, match=r"must be a (whole )?number at least 1, got"):
            require("x", value, "[1, inf)", "remedy", whole)
    require("x", 3.0, "[1, inf)", "remedy")
    with pytest.raises(ValueError, match=r"whole number at least 1, got 3\.0"):
        require("x", 3.0, "[1, inf)", "remedy", whole=True)


GRAPH = similarity_graph(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), 3)
Z = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
START = torch.arange(12)
HOP = torch.tensor([[0, 0]])


def pairs_to(row: int) -> Pairs:
    return Pairs(torch.tensor([0]), torch.tensor([row]), torch.ones(1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: random_walk(GRAPH, START, True), "length must be a whole number"),
        (lambda: random_walk(GRAPH, START, -1), "length must be at least 1, got -1"),
        (lambda: random_walk(GRAPH, START, 2, restart=-0.1), r"restart must be in \[0, 1\), got -0.1"),
        (lambda: random_walk(GRAPH, START, 2, restart=math.nan), "got nan"),
        (lambda: random_walk(GRAPH, START, 2, lazy=1.0), r"lazy must be in \[0, 1\), got 1.0"),
        (lambda: random_walk(GRAPH, START, 2, p=-1.0), "p must be greater than 0, got -1.0"),
        (lambda: random_walk(GRAPH, START, 2, q=math.inf), "q must be greater than 0, got inf"),
        (lambda: random_walk(GRAPH, torch.tensor([0, 12]), 2), r"starts 0..12 exceed the graph's 12 nodes"),
        (lambda: random_walk(GRAPH, torch.tensor([-1]), 2), r"starts -1..-1 exceed"),
        (lambda: sample_pairs(GRAPH, 2, walks=-3), "walks must be at least 1, got -3"),
        (lambda: sample_pairs(GRAPH, 2, anchors=torch.tensor([99])), "starts 99..99 exceed"),
        (lambda: walk_from_uniforms(GRAPH, START, torch.full((2, 12), 1.0)), r"lie in \[0, 1\), got 1 to 1"),
        (lambda: walk_from_uniforms(GRAPH, START, torch.full((2, 12), -0.1)), "got -0.1 to -0.1"),
        (lambda: walk_from_uniforms(GRAPH, START, torch.full((2, 12), math.nan)), "got nan"),
        (lambda: walk_from_uniforms(GRAPH, START, torch.rand(2, 12), restart=1.0), "restart must be"),
        (lambda: most_confident(torch.ones(3), 0.0), r"fraction must be in \(0, 1\], got 0.0"),
        (lambda: WalkPairing(k=0), "k must be at least 1, got 0"),
        (lambda: WalkPairing(walks=True), "walks must be a whole number"),
        (lambda: WalkPairing(temperature=math.inf), "temperature must be greater than 0, got inf"),
        (lambda: WalkPairing(restart=1.0), "restart must be in"),
        (lambda: WalkPairing(confident=0.0), "confident must be in"),
        (lambda: WalkPairing(every=0), "every must be at least 1, got 0"),
        (lambda: WalkPairing(seed=-1), "seed must be at least 0, got -1"),
        (lambda: DatasetPairing(temperature=-1.0), "temperature must be greater than 0, got -1.0"),
        (lambda: DatasetPairing().partners(START, 1.5), r"alpha must be in \[0, 1\], got 1.5"),
        (lambda: similarity_graph(Z, 2, approximate_above=-1), "approximate_above must be at least 0, got -1"),
        (lambda: path_weight(GRAPH, START[:, None] - 1), r"starts -1..10 exceed"),
        (lambda: path_weight(GRAPH, HOP, torch.zeros(1, 3).bool()), r"restarted must be \(S, L\) = \(1, 1\)"),
        (lambda: walk_term(Z, Z, pairs_to(6)), r"pairs lead to rows 6..6, and there are 6: give their bank"),
        (lambda: walk_term(Z, Z, pairs_to(-1)), r"pairs lead to rows -1..-1, and there are 6"),
        (lambda: walk_term(Z, Z, pairs_to(7), (Z[:1], Z[:1])), r"pairs lead to rows 7..7, and there are 7"),
        (lambda: walk_term(Z, Z, Ends(START[None, :1] + 9, Z[:1, :1], Z[:1, 0])), r"pairs lead to rows 9..9"),
        (lambda: Graph(HOP, torch.full((1, 2), 3e38)), "weights must be at least 0 and finite: row 0"),
        (lambda: Queue(0), "batches must be at least 1, got 0"),
        (lambda: sag_vicreg_loss(Z, Z, no_pairs(), math.nan), "alpha must be at least 0, got nan"),
        (lambda: sag_vicreg_loss(Z, Z, no_pairs(), math.inf), "alpha must be at least 0, got inf"),
        (lambda: sag_vicreg_loss(Z, Z, None, 0.1), "give pairs, or alpha = 0"),
        (lambda: vicreg_loss(Z, Z, sim=-1), "sim must be at least 0, got -1"),
        (lambda: vicreg_loss(Z, Z, var=math.nan), "var must be at least 0, got nan"),
        (lambda: vicreg_loss(Z, Z, cov=math.inf), "cov must be at least 0, got inf"),
        (lambda: barlow_twins_loss(Z, Z, redundancy=-1.0), "redundancy must be at least 0, got -1.0"),
        (lambda: barlow_twins_loss(Z, Z, scale=math.nan), "scale must be at least 0, got nan"),
        (lambda: make_shapes(-1), "n must be at least 0, got -1"),
        (lambda: make_shapes(4, size=7), "size must be at least 8, got 7"),
        (lambda: make_shapes(4, seed=-1), "seed must be at least 0, got -1"),
        (lambda: Augmentation(flip=1.5), r"flip must be in \[0, 1\], got 1.5"),
        (lambda: Augmentation(jitter=math.nan), "jitter must be in .* got nan"),
        (lambda: Augmentation(hue=0.6), r"hue must be in \[0, 0.5\], got 0.6"),
        (lambda: Augmentation(brightness=1.5), r"brightness must be in \[0, 1\], got 1.5"),
        (lambda: Augmentation(crop_scale=(0.0, 1.0)), r"crop_scale must be in \(0, 1\], got 0.0"),
        (lambda: Augmentation(crop_scale=(0.9, 0.2)), "crop_scale must be a range .* the smaller end first"),
        (lambda: Augmentation(crop_ratio=(-1.0, 1.0)), "crop_ratio must be greater than 0, got -1.0"),
        (lambda: Augmentation(size=0), "size must be at least 1, got 0"),
        (lambda: variance(Z, eps=-1.0), "eps must be at least 0, got -1.0"),
        (lambda: variance(Z[:1]), "at least 2 rows, got 1"),
    ],
)
def test_what_lies_out_of_range_is_refused_in_one_line(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_a_graph_does_not_depend_on_the_unit_of_its_features(size):
    wanted, found = similarity_graph(Z, 2), similarity_graph(Z * size, 2)
    assert torch.equal(found.neighbors, wanted.neighbors)
    torch.testing.assert_close(found.weights, wanted.weights)


def test_extreme_temperatures_and_biases_are_their_limits():
    nearest = similarity_graph(Z, 2, temperature=1e-300)
    assert torch.equal(nearest.weights, torch.tensor([[1.0, 0.0]]).expand(6, 2))
    line = Graph(torch.tensor([[1, 1], [0, 2], [1, 1]]), torch.full((3, 2), 0.5))
    start = torch.zeros(50, dtype=torch.int64)
    draw = torch.Generator().manual_seed(0)
    assert random_walk(line, start, 4, p=1e300, generator=draw)[:, 2].unique().tolist() == [2]  # never back at once
    assert random_walk(line, start, 4, p=1e-300, generator=draw)[:, 2].unique().tolist() == [0]
    assert random_walk(line, start, 4, p=1e300, q=1e300, generator=draw)[:, 3].unique().tolist() == [1]  # no other way


def test_a_graph_in_half_precision_or_under_autograd_is_handed_to_other_libraries():
    halves = torch.full((3, 2), 0.5)
    around = torch.tensor([[1, 2], [0, 2], [0, 1]])
    wanted = Graph(around, halves).to_scipy().toarray()
    for weights in (halves.half(), halves.bfloat16(), halves.clone().requires_grad_()):
        np.testing.assert_array_equal(Graph(around, weights).to_scipy().toarray(), wanted)
        assert Graph(around, weights).to_networkx().number_of_edges() == 6


def test_a_generator_of_another_device_is_refused():
    elsewhere = (
        torch.Generator("cuda") if torch.cuda.is_available() else type("G", (), {"device": torch.device("cuda")})()
    )
    with pytest.raises(ValueError, match="generator is of cuda and the graph of cpu"):
        random_walk.__wrapped__(GRAPH, START, 2, generator=elsewhere)


WITHOUT_CHECKER = """
import math, numpy, torch
from sagkit.graph import Graph, similarity_graph
from sagkit.loss import sag_vicreg_loss, vicreg_loss, walk_term
from sagkit.pairing import Queue, WalkPairing
from sagkit.walk import Pairs, path_weight, random_walk, sample_pairs, walk_from_uniforms

x, z = torch.randn(12, 4), torch.randn(6, 4)
nodes, halves = torch.tensor([[1, 2], [0, 2], [0, 1]]), torch.full((3, 2), 0.5)
g, starts = similarity_graph(x, 3), torch.arange(12)
one, w = torch.tensor([1]), torch.ones(1)
for call in (
    lambda: similarity_graph(x, 2.5), lambda: similarity_graph(x, "3"), lambda: similarity_graph(x[0], 2),
    lambda: similarity_graph(x, 3, temperature="hot"),
    lambda: Graph(nodes, halves[:, :1]), lambda: Graph(nodes[0], halves[0]), lambda: Graph(nodes, nodes),
    lambda: Graph(halves, halves), lambda: Graph(nodes, halves, halves[:2]), lambda: Graph(nodes[:0], halves[:0]),
    lambda: random_walk(g, starts.float(), 2), lambda: random_walk(g, starts > 3, 2),
    lambda: random_walk(g, starts[:, None], 2), lambda: random_walk(g, starts, 2.0),
    lambda: random_walk(g, starts, 2, restart="no"), lambda: sample_pairs(g, 2, walks=1.5),
    lambda: walk_from_uniforms(g, starts, torch.rand(12)), lambda: walk_from_uniforms(g, starts, torch.rand(2, 11)),
    lambda: walk_from_uniforms(g, starts, torch.zeros(2, 12, dtype=torch.int64)),
    lambda: WalkPairing(k=2.0), lambda: WalkPairing(length="2"), lambda: WalkPairing(temperature=None),
    lambda: sag_vicreg_loss(z, z, None, "0.3"), lambda: sag_vicreg_loss(z, z, None, None),
    lambda: vicreg_loss(z, z[:5]), lambda: vicreg_loss(z[0], z[0]), lambda: vicreg_loss(z.long(), z.long()),
    lambda: walk_term(z, z, Pairs(one, one, torch.ones(2))), lambda: walk_term(z, z, None),
    lambda: walk_term(z, z, [1, 2]), lambda: vicreg_loss(z.numpy(), z.numpy()), lambda: vicreg_loss(z, z.to("meta")),
    lambda: similarity_graph(x.numpy(), 3), lambda: similarity_graph(x.tolist(), 3),
    lambda: similarity_graph(x + 0j, 3), lambda: similarity_graph(x.to("meta"), 3),
    lambda: similarity_graph(x, 3, approximate_above="few"), lambda: Graph(nodes.numpy(), halves.numpy()),
    lambda: Graph(nodes, halves, halves.to("meta")), lambda: random_walk(g, [0, 1], 2),
    lambda: random_walk(g, numpy.arange(3), 2), lambda: random_walk(g, starts, 2, generator=0),
    lambda: random_walk(g, starts, 2, generator=numpy.random.default_rng(0)),
    lambda: walk_from_uniforms(g, starts, numpy.zeros((2, 12))), lambda: WalkPairing(k=3)(x.numpy(), x.numpy()),
    lambda: WalkPairing(k=3)(x, x.to("meta")), lambda: WalkPairing(k=3)(x, x, bank=x[0]),
    lambda: WalkPairing(k=3)(x, x, bank=x[:, :3]), lambda: walk_term(z, z, Pairs(one, one, w), (z[:, :2], z[:, :2])),
    lambda: path_weight(g, starts), lambda: Queue(2).push(z, z[:3], z),
):
    try:
        call()
    except ValueError as error:
        assert str(error) and "\\n" not in str(error), error
    else:
        raise AssertionError(call.__code__)
drawn = [WalkPairing(k=3, seed=seed)(x, x) for seed in (7, numpy.int64(7), 2**70)]
assert torch.equal(drawn[0].positive, drawn[1].positive)
"""


@pytest.mark.slow  # torch is loaded anew, without the type checker that tests run under
def test_wrong_types_and_shapes_are_refused_without_a_type_checker_too():
    done = subprocess.run([sys.executable, "-c", WITHOUT_CHECKER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
