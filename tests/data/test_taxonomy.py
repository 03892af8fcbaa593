"""Semantic distances: worked by hand on the taxonomy, and the table agrees with the data set."""

import networkx as nx
import numpy as np
import pytest

from sagkit.data import taxonomy
from sagkit.data.shapes import SHAPE_CLASSES as SHAPES
from sagkit.data.taxonomy import class_distances, superclasses, tree_distances

CLASSES = sorted(name for members in taxonomy.CIFAR100_SUPERCLASSES.values() for name in members.split())


def between(a: str, b: str, reference: str = "wordnet") -> float:
    return float(class_distances("cifar100", reference)[CLASSES.index(a), CLASSES.index(b)])


@pytest.fixture(scope="module")
def wordnet_graph() -> nx.DiGraph:
    """The same table as a networkx graph, hypernym to hyponym."""
    return nx.DiGraph([(p, c) for c, parents in taxonomy._taxonomy()[1].items() for p in parents])


def test_the_superclasses_are_twenty_of_five_as_published():
    names, group = superclasses("cifar100")
    assert len(names) == 20
    assert np.bincount(group).tolist() == [5] * 20
    assert names[group[CLASSES.index("streetcar")]] == "vehicles_2"
    assert names[group[CLASSES.index("ray")]] == "fish"
    assert names[group[CLASSES.index("mushroom")]] == "fruit_and_vegetables"


@pytest.mark.parametrize("reference", ["wordnet", "wordnet-path", "superclass"])
def test_distances_are_symmetric_within_zero_and_one_and_zero_only_on_the_diagonal(reference):
    matrix = class_distances("cifar100", reference)
    assert matrix.shape == (100, 100)
    assert (matrix == matrix.T).all()
    assert matrix.diagonal().max() == 0
    assert matrix.max() <= 1
    assert (matrix + np.eye(100) > 0).all() or reference == "superclass"


def test_wolf_and_fox_worked_by_hand():
    # Both are canines, one edge below it. Counted down to it on the longest path: entity, physical entity, object,
    # whole, living thing, organism, animal, chordate, vertebrate, mammal, placental, carnivore, canine.
    above = taxonomy._climb(taxonomy._taxonomy()[0]["cifar100"]["wolf"])
    canine = next(node for node in above if node.startswith("canine."))
    depth = 13
    assert taxonomy._depth(canine) == depth
    assert between("wolf", "fox") == pytest.approx(1 - 2 * depth / (2 * depth + 1 + 1))
    assert between("wolf", "fox", "wordnet-path") == pytest.approx(1 - 1 / 3)  # wolf - canine - fox: two edges


def test_wu_palmer_and_path_equal_networkx_on_every_pair(wordnet_graph):
    root = next(node for node in wordnet_graph if wordnet_graph.in_degree(node) == 0)
    depth = {root: 1}
    for node in nx.topological_sort(wordnet_graph):
        for child in wordnet_graph.successors(node):
            depth[child] = max(depth.get(child, 0), depth[node] + 1)
    synsets = taxonomy._taxonomy()[0]["cifar100"]
    upwards = wordnet_graph.reverse()
    up = {name: nx.single_source_shortest_path_length(upwards, synsets[name]) for name in CLASSES}
    wordnet, path = class_distances("cifar100"), class_distances("cifar100", "wordnet-path")
    for i, a in enumerate(CLASSES):
        for j, b in enumerate(CLASSES):
            common = set(up[a]) & set(up[b])
            wup = max(2 * depth[n] / (2 * depth[n] + up[a][n] + up[b][n]) for n in common)
            assert wordnet[i, j] == pytest.approx(1 - wup, abs=1e-12)
            assert path[i, j] == pytest.approx(1 - 1 / (1 + min(up[a][n] + up[b][n] for n in common)), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "kin", "stranger"),
    [
        ("trout", "flatfish", "pear"),  # the fish, not the food
        ("ray", "shark", "plain"),
        ("seal", "whale", "lamp"),
        ("television", "telephone", "rose"),
        ("aquarium_fish", "trout", "cup"),
        ("plate", "bowl", "tank"),
        ("forest", "plain", "trout"),
        ("beaver", "squirrel", "wardrobe"),
        ("mouse", "hamster", "keyboard"),
        ("orange", "apple", "oak_tree"),
        ("lobster", "crab", "apple"),
        ("turtle", "lizard", "wardrobe"),
    ],
)
def test_the_senses_that_are_traps_are_the_right_ones(name, kin, stranger):
    assert between(name, kin) < between(name, stranger)


def test_tree_distances_of_shapes_are_thirds():
    matrix = tree_distances(SHAPES)
    at = SHAPES.index
    family, shape, _ = SHAPES[0].split("/")
    sibling = next(n for n in SHAPES if n.startswith(f"{family}/{shape}/") and n != SHAPES[0])
    cousin = next(n for n in SHAPES if n.startswith(family) and n.split("/")[1] != shape)
    stranger = next(n for n in SHAPES if not n.startswith(family))
    assert [matrix[0, at(n)] for n in (SHAPES[0], sibling, cousin, stranger)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert (class_distances("shapes", "tree", SHAPES) == matrix).all()
    assert (class_distances("shapes", "superclass", SHAPES) == (matrix == 1)).all()


OWN = ("sofa", "armchair")


def test_some_of_cifars_names_in_any_order_and_spelling_have_cifars_distances():
    mine = ("Wolf", "maple tree", "pickup-truck", "apple")
    rows = [CLASSES.index(name) for name in ("wolf", "maple_tree", "pickup_truck", "apple")]
    for reference in ("wordnet", "wordnet-path", "superclass"):
        whole = class_distances("cifar100", reference)
        assert (class_distances("cifar100", reference, mine) == whole[np.ix_(rows, rows)]).all()
    names, group = superclasses("cifar100", mine)
    assert [names[g] for g in group] == ["large_carnivores", "trees", "vehicles_1", "fruit_and_vegetables"]


@pytest.mark.parametrize("data", ["mine", "cifar100"])
def test_no_hint_sends_classes_of_ones_own_to_another_data_set(data):
    for call in (lambda: class_distances(data, "wordnet", OWN), lambda: superclasses(data, OWN)):
        with pytest.raises(ValueError, match="of your own") as error:
            call()
        assert "use cifar" not in str(error.value)
        assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: class_distances("cifar100", "wordnett"), "did you mean wordnet"),
        (lambda: class_distances("cifar1000"), "did you mean cifar100"),
        (lambda: class_distances("cifar100", "wordnet", OWN), r"2 of 2 class names are not among the 100 of cifar100"),
        (lambda: class_distances("cifar100", "superclass", OWN), "own give a hierarchy"),
        (lambda: class_distances("cifar10", "wordnet-path", ("cat", "sofa")), r"1 of 2 .* the 10 of cifar10: 'sofa'"),
        (lambda: superclasses("cifar100", ("apple", "sofa")), r"1 of 2 .*: 'sofa'"),
        (lambda: superclasses("cifar100", ("round/disc", "round/ring")), "2 of 2 class names"),
        (lambda: class_distances("cifar100", "wordnet", ("maple tree", "Maple_Tree")), "are one class of cifar100"),
        (lambda: class_distances("mine", "wordnet", OWN), "own give a hierarchy"),
        (lambda: superclasses("cifar10"), "no superclasses are known for 'cifar10'"),
        (lambda: tree_distances(("a/b", "c")), r"depths \[1, 2\]"),
        (lambda: tree_distances(()), "no tree"),
    ],
)
def test_what_is_not_known_is_said_in_one_line(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
