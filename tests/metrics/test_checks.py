"""The border of the metrics: one figure whatever holds the numbers, and one line for what holds none."""

import math

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from sagkit.data.taxonomy import class_distances, hierarchy_distances
from sagkit.metrics.checks import distance_array, feature_array, label_array
from sagkit.metrics.labelfree import lidar, structure_score
from sagkit.metrics.local import Index, knn_accuracy, knn_predict, linear_probe, precision_at
from sagkit.metrics.semantic import noise_ceiling, paired_difference, rank_correlation
from sagkit.metrics.tree import class_tree, hierarchy_figures, severity

N, F, C = 60, 5, 4
RNG = np.random.default_rng(0)
Y = np.arange(N) % C
X = (RNG.normal(size=(C, F))[Y] * 2 + RNG.normal(size=(N, F))).round(1).astype(np.float16).astype(np.float64)
D = RNG.random((C, C))
D = D + D.T
NAMES = ("cat", "dog", "oak", "wolf")
WORDS = np.array(NAMES)[Y]

METRICS = {
    "rank_correlation": lambda x, y: rank_correlation(x, y, D).spearman,
    "structure_score": lambda x, y: structure_score(x, X + 0.5 * np.sin(9 * X)).score,
    "knn_accuracy": lambda x, y: knn_accuracy(x, y, x, y, k=3),
    "linear_probe": lambda x, y: linear_probe(x, y, x, y),
    "precision_at": lambda x, y: precision_at(x, y, 3),
    "class_tree": lambda x, y: class_tree(x, y)[:, 2].sum(),
    "noise_ceiling": lambda x, y: noise_ceiling(x, y).half,
    "search": lambda x, y: float(Index(x).search(x, 3)[0].sum()),
}
HOLDERS = {
    "bfloat16": lambda x: torch.tensor(x).bfloat16(),
    "float16": lambda x: torch.tensor(x).half(),
    "needs a gradient": lambda x: torch.tensor(x, requires_grad=True),
    "lies in columns": lambda x: torch.tensor(x).T.contiguous().T,
    "numpy float16": lambda x: x.astype(np.float16),
    "objects": lambda x: x.astype(object),
    "every other column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "may not be written to": lambda x: np.frombuffer(x.tobytes()).reshape(x.shape),
    "lists": lambda x: x.tolist(),
    "a list of tensors": lambda x: [torch.tensor(row, requires_grad=True) for row in x],
    "a table": pd.DataFrame,
    "sparse": scipy.sparse.csr_array,
    "big-endian": lambda x: x.astype(">f8"),
}
LABELS = {
    "uint8": lambda y: y.astype(np.uint8),
    "floats": lambda y: y.astype(np.float32),
    "torch": torch.tensor,
    "torch uint8": lambda y: torch.tensor(y, dtype=torch.uint8),
    "torch half": lambda y: torch.tensor(y).bfloat16(),
    "a list": lambda y: y.tolist(),
    "objects": lambda y: y.astype(object),
    "a series": lambda y: pd.Series(y, index=np.arange(N)[::-1]),
    "words": lambda y: np.array(NAMES)[y],
    "word objects": lambda y: np.array(NAMES)[y].astype(object),
    "bytes": lambda y: np.array(NAMES)[y].astype("S"),
    "a list of words": lambda y: np.array(NAMES)[y].tolist(),
    "a series of categories": lambda y: pd.Series(np.array(NAMES)[y], dtype="category"),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_figure_does_not_depend_on_what_holds_the_numbers(name):
    figure, rounded = METRICS[name], torch.tensor(X).bfloat16().double().numpy()
    expected = figure(X, Y)
    for kind, hold in HOLDERS.items():
        same = figure(rounded, Y) if kind == "bfloat16" else expected
        assert figure(hold(X), Y) == pytest.approx(same, abs=1e-6), kind
    for kind, hold in LABELS.items():
        assert figure(X, hold(Y)) == pytest.approx(expected, abs=1e-6), kind


def test_two_classes_may_be_true_and_false():
    assert linear_probe(X, Y > 1, X, torch.tensor(Y > 1)) == linear_probe(
        X, (Y > 1).astype(int), X, (Y > 1).astype(int)
    )


@pytest.mark.gpu
def test_what_lies_on_a_gpu_gives_the_figures_of_a_cpu():
    for name, figure in METRICS.items():
        assert figure(torch.tensor(X).cuda(), torch.tensor(Y).cuda()) == pytest.approx(figure(X, Y), abs=1e-6), name


def broken(value):
    x = X.copy()
    x[3, 2] = value
    return x


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_row(name, value):
    with pytest.raises(ValueError, match=r"1 of 60 \w+ rows are not finite \(first: row 3\)"):
        METRICS[name](broken(value), Y)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (X[:, 0], r"got \(60,\): one number a row is \(N, 1\)"),
        (X[:0], r"got \(0, 5\)"),
        (X[:, :0], r"got \(60, 0\)"),
        (X.reshape(N, F, 1), r"got \(60, 5, 1\): flatten"),
        ([[1.0, 2.0], [3.0]], "rows of one length"),
        (np.array([["1", "2"]]), "must be numbers, got <U1"),
        (np.array([["1", 2]], dtype=object), "must be numbers, got object"),
        (X + 1j, "must be numbers, got complex128"),
        (np.array([[1.0, None]], dtype=object), "not finite"),
        (np.ma.masked_greater(X, 1.0), "not finite"),
        (1e200 * X, "features reach .*e\\+200, .*: scale them"),
        (1e-13 * X, "scale them to about 1"),
        (None, r"\(N, F\) with N, F >= 1, got \(\)"),
        ("features.npy", "must be numbers"),
    ],
)
def test_what_is_no_feature_matrix_is_refused_in_one_line(given, words):
    with pytest.raises(ValueError, match=words) as error:
        feature_array(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Y[:-1], r"labels must be \(60,\) for 60 rows, got \(59,\)"),
        (Y[:, None], r"got \(60, 1\)"),
        (np.where(np.arange(N) == 7, 1.5, Y), "row 7 is 1.5"),
        (np.where(np.arange(N) == 7, np.nan, Y), "row 7 is nan"),
        (np.where(np.arange(N) == 7, -1, Y), "row 7 is -1"),
        ([*WORDS[:-1], None], "row 59 is None"),
        ([*WORDS[:-1], 3], "row 59 is 3"),
        ([*WORDS[:-1], math.nan], "row 59 is nan"),
        (Y + 0j, "whole numbers or class names, got complex128"),
        (np.full(N, "2020-01-01", "M8[D]"), "got datetime64"),
    ],
)
def test_what_is_no_label_is_refused_with_its_row(given, words):
    with pytest.raises(ValueError, match=words) as error:
        label_array(given, N)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (D[:3], r"square \(C, C\) matrix, got \(3, 4\)"),
        (-D, "at least 0, row . has -.*: of similarities, give 1 - s"),
        (np.where(np.eye(C), np.nan, D), r"4 of the semantic distances are not finite \(first: row 0\)"),
        (np.where(np.eye(C), np.inf, D), "not finite"),
        (D + np.triu(np.ones((C, C)), 1), r"not symmetric \(by up to 1\)"),
        (D[:3, :3], "labels 0..3 exceed the 3 classes"),
        (D.astype(str), "must be numbers"),
        (D[0], r"got \(4,\)"),
    ],
)
def test_what_are_no_class_distances_is_refused(given, words):
    for call in (rank_correlation, lambda x, y, d: paired_difference(x, x, y, d), hierarchy_figures):
        with pytest.raises(ValueError, match=words):
            call(X, Y, given)


def test_sizes_that_differ_are_refused_with_both():
    with pytest.raises(ValueError, match=r"got \(60, 5\) and \(59, 5\)"):
        structure_score(X, X[:-1])
    with pytest.raises(ValueError, match=r"differ in width, bank 5 and queries 4"):
        knn_predict(X, Y, X[:, :4])
    with pytest.raises(ValueError, match=r"differ in width, items 5 and queries 4"):
        Index(X).search(X[:, :4], 2)
    with pytest.raises(ValueError, match=r"labels must be \(60,\) for 60 rows, got \(59,\)"):
        knn_accuracy(X, Y, X, Y[:-1])
    with pytest.raises(ValueError, match=r"bank_labels must be \(60,\) for 60 rows, got \(2,\)"):
        linear_probe(X, Y[:2], X, Y)


@pytest.mark.parametrize(
    "call",
    [
        lambda: rank_correlation(X, Y, D, n_pairs=0),
        lambda: rank_correlation(X, Y, D, bootstrap=-1),
        lambda: rank_correlation(X, Y, D, permutations=True),
        lambda: rank_correlation(X, Y, D, seed=-1),
        lambda: paired_difference(X, X, Y, D, bootstrap=0),
        lambda: noise_ceiling(X, Y, splits=0),
        lambda: structure_score(X, X, n=2),
        lambda: structure_score(X, X, bootstrap=-1),
        lambda: lidar(np.stack([X])),
        lambda: lidar(np.stack([X, X]), delta=0.0),
        lambda: knn_accuracy(X, Y, X, Y, k=0),
        lambda: knn_accuracy(X, Y, X, Y, temperature=0.0),
        lambda: knn_accuracy(X, Y, X, Y, temperature=math.nan),
        lambda: linear_probe(X, Y, X, Y, max_iter=0),
        lambda: Index(X).search(X, 61),
        lambda: Index(X).similar(60),
        lambda: precision_at(X, Y, True),
        lambda: severity([0, 1], [0], D),
        lambda: severity([0, 4], [0, 1], D),
    ],
)
def test_numbers_out_of_range_are_refused_in_one_line(call):
    with pytest.raises(ValueError, match=r"(must be|need|LiDAR).*") as error:
        call()
    assert "\n" not in str(error.value)


def test_a_row_without_direction_is_at_distance_one_from_all_and_similar_to_none():
    x = np.vstack([np.eye(3), np.zeros((1, 3))])
    labels = np.arange(4)
    reference = np.ones((4, 4))
    reference[:3, :3] = 0.5  # the zero row is the odd one
    # Cosine distances of unit vectors at right angles are 1, too: all six are alike.
    with pytest.warns(UserWarning, match="reported as 0"):
        assert rank_correlation(x, labels, reference, metric="cosine").spearman == 0
    at_mean = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])
    similarity, _ = Index(at_mean).search(at_mean, 5)
    np.testing.assert_allclose(similarity[4], 0)
    assert similarity[0].tolist() == [1, 0, 0, 0, -1]
    assert knn_predict(np.eye(2), [0, 1], np.zeros((1, 2)), k=2).tolist() == [0]  # a tie, to the smaller label


TREE = {"cat": "animal/cat", "dog": "animal/canine/dog", "oak": "plant/oak", "wolf": ("animal", "canine", "wolf")}


def test_any_hierarchy_gives_the_correlation_of_its_matrix_to_any_names():
    newick = "(((dog,wolf)canine,cat)animal,(oak)plant)root;"
    drawn = nx.DiGraph([("root", "animal"), ("root", "plant"), ("animal", "canine"), ("animal", "cat")])
    drawn.add_edges_from([("canine", "dog"), ("canine", "wolf"), ("plant", "oak")])
    steps = np.array([[0, 3, 4, 3], [3, 0, 5, 2], [4, 5, 0, 5], [3, 2, 5, 0]], dtype=float)
    expected = rank_correlation(X, Y, steps)
    for given in (TREE, newick, drawn, drawn.to_undirected(), pd.DataFrame(steps, NAMES, NAMES)):
        np.testing.assert_array_equal(distance_array(given, NAMES)[0], steps)
        assert rank_correlation(X, WORDS, given) == expected
        assert rank_correlation(X, Y, given, class_names=NAMES) == expected
        assert paired_difference(X, X[:, :2], WORDS, given, bootstrap=20) == paired_difference(
            X, X[:, :2], Y, steps, bootstrap=20
        )
    assert rank_correlation(X, WORDS, steps) == expected  # all classes occur: ascending


def test_names_are_looked_up_in_any_order_and_spelling():
    order = ["wolf", "oak", "cat", "dog"]
    here = [NAMES.index(name) for name in order]
    steps = hierarchy_distances(TREE, NAMES)
    np.testing.assert_array_equal(hierarchy_distances(TREE, order), steps[np.ix_(here, here)])
    np.testing.assert_array_equal(hierarchy_distances(TREE, ["Wolf", " OAK", "cat", "dog"]), steps[np.ix_(here, here)])
    table = pd.DataFrame(D, NAMES, NAMES)
    assert rank_correlation(X, WORDS, table.loc[order, order]) == rank_correlation(X, Y, D)
    some = WORDS != "oak"
    assert rank_correlation(X[some], WORDS[some], D, class_names=NAMES) == rank_correlation(X[some], Y[some], D)
    with pytest.raises(
        ValueError, match="3 class names among the labels and distances of 4 classes: give class_names="
    ):
        rank_correlation(X[some], WORDS[some], D)
    with pytest.raises(ValueError, match="row 2 is 'oak', which is not among"):
        rank_correlation(X, WORDS, D, class_names=("cat", "dog", "elm", "wolf"))


def test_branches_have_their_lengths():
    newick = "((wolf:0.5,'domestic dog':1.5)canine:2,cat:4)[a comment]:9;"
    names = ("wolf", "domestic_dog", "cat")
    expected = [[0, 2, 6.5], [2, 0, 7.5], [6.5, 7.5, 0]]
    np.testing.assert_allclose(hierarchy_distances(newick, names), expected)
    drawn = nx.Graph()
    drawn.add_weighted_edges_from([("canine", "wolf", 0.5), ("canine", "domestic dog", 1.5), ("canine", "cat", 6)])
    np.testing.assert_allclose(hierarchy_distances(drawn, names), expected)


@pytest.mark.parametrize(
    ("hierarchy", "words"),
    [
        ("((cat,dog)", "brackets are left open"),
        ("cat,dog)", "without an open bracket"),
        ("(cat,cat);", "'cat' twice"),
        ("(cat:-1,dog);", "at least 0"),
        ("(cat,dog){;", "not a Newick string at character 9"),
        ("", "is no tree"),
        (nx.cycle_graph(["cat", "dog", "oak"]), "is no tree"),
        (nx.empty_graph(["cat", "dog"]), "is no tree"),
        ("(cat,elm);", "1 of 2 class names are not among the 3 of the hierarchy: 'dog'"),
        ({"cat": {"dog": 1.0}}, "the path of 'cat'"),
    ],
)
def test_a_hierarchy_that_is_none_or_lacks_a_class_is_refused(hierarchy, words):
    with pytest.raises(ValueError, match=words) as error:
        hierarchy_distances(hierarchy, ("cat", "dog"))
    assert "\n" not in str(error.value)


def test_cifars_distances_of_some_of_its_names_are_those_of_all():
    labels = np.repeat(["bear", "maple tree", "wolf"], 4)
    x = RNG.normal(size=(12, 3))
    some = class_distances("cifar100", "wordnet", ("bear", "maple tree", "wolf"))
    assert rank_correlation(x, labels, some) == rank_correlation(
        x, np.repeat([3, 47, 97], 4), class_distances("cifar100")
    )


def test_tensors_that_are_views_or_quantised_are_the_numbers_that_they_show():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(feature_array(torch._neg_view(x)), -x.double().numpy())
    np.testing.assert_allclose(feature_array(torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)), x, atol=0.051)
    with pytest.raises(ValueError, match="features are on meta, where there are shapes and no numbers"):
        feature_array(x.to("meta"))
    with pytest.raises(ValueError, match="features must be numbers, got complex64"):
        feature_array(torch.conj(x + 1j))


def test_labels_of_neighbours_may_be_any_numbers_and_the_temperature_next_to_none():
    x = torch.eye(4)
    assert knn_predict(x, [10**12, 7, 7, 10**15], x, k=1).tolist() == [10**12, 7, 7, 10**15]
    assert knn_predict(x, [3, 1, 1, 1], x[:1], k=4, temperature=1e-300).tolist() == [3]
