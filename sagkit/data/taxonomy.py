"""Semantic distances between classes: the reference that embeddings are judged against.

    wordnet       1 - Wu-Palmer similarity,  max over common hypernyms a of 2 d(a) / (2 d(a) + p(i, a) + p(j, a))
    wordnet-path  1 - path similarity,       1 / (1 + length of the shortest path between i and j)
    superclass    0 within a superclass, 1 across
    tree          1 - depth of the common prefix of two path-like class names / depth of the tree

d(a) counts the nodes on the longest path from the root to a (the root has 1), p(i, a) the edges of the shortest path up
from i to a; a class with several hypernyms takes the best. Sources: [R] Wu and Palmer 1994, WordNet 3.0 (its notice is
in wordnet/LICENSE beside this file), the superclasses of Krizhevsky 2009; [K] one synset per class, chosen by eye: the
table with glosses is wordnet/taxonomy.tsv, the choices and the script that made it wordnet/build.py.

Differs from the source: Wu and Palmer take the deepest common hypernym; with several paths the best one is taken, which
is the same wherever the taxonomy is a tree.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import count, pairwise
from numbers import Real

import numpy as np
from jaxtyping import Float, Int

CIFAR100_SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
REFERENCES = ("wordnet", "wordnet-path", "superclass", "tree")


def class_distances(
    data: str, reference: str = "wordnet", class_names: Sequence[str] | None = None
) -> Float[np.ndarray, "C C"]:
    """Semantic distances between the classes of a data set, in [0, 1], zero on the diagonal.

    Args:
        data: "cifar100" or "cifar10"; any name if `class_names` is given and the reference reads the tree from them.
        reference: "wordnet", "wordnet-path", "superclass" or "tree".
        class_names: of the classes asked for, in the order of the rows: of CIFAR's own (some or all, capitals, blanks
            and underscores aside), or for "tree" and "superclass" (first component) path-like names such as
            "round/disc/striped", all of one depth. Without them CIFAR's, sorted.

    Raises:
        ValueError: for an unknown reference or data set, names that are no tree, and names that the data set lacks: its
            reference says nothing of them. Classes of any hierarchy of your own: `hierarchy_distances`.
    """
    if reference not in REFERENCES:
        raise ValueError(f"unknown reference {reference!r}: {_nearest(reference, REFERENCES)}")
    if reference.startswith("wordnet"):
        rows = _rows_of(class_names, data, _synsets_of(data, bool(class_names)))
        return _wordnet(data, reference)[np.ix_(rows, rows)]
    if reference == "superclass":
        group = superclasses(data, class_names)[1]
        return (group[:, None] != group[None, :]).astype(float)
    return tree_distances(tuple(class_names or ()))


def superclasses(data: str, class_names: Sequence[str] | None = None) -> tuple[tuple[str, ...], Int[np.ndarray, " C"]]:
    """Names of the superclasses, sorted, and the superclass of each class: 20 for "cifar100", or path prefixes.

    Args:
        data: "cifar100", or any name of data whose class names are paths.
        class_names: as in `class_distances`.

    Raises:
        ValueError: for a data set whose superclasses are not known, and names that it lacks.
    """
    if data == "cifar100":
        of = {name: group for group, members in CIFAR100_SUPERCLASSES.items() for name in members.split()}
        known = sorted(of)
        groups = [of[known[row]] for row in _rows_of(class_names, data, known)]
    elif class_names and all("/" in name for name in class_names):
        groups = [name.split("/")[0] for name in class_names]
    else:
        raise ValueError(
            f"no superclasses are known for {data!r}: name its classes like 'family/kind', "
            "or give their distances from a hierarchy of your own (hierarchy_distances)"
        )
    names = tuple(sorted(set(groups)))
    return names, np.array([names.index(group) for group in groups])


def is_hierarchy(given) -> bool:
    """Whether something is a hierarchy for `hierarchy_distances`, and not a matrix."""
    return isinstance(given, str | Mapping) or hasattr(given, "number_of_edges")


def hierarchy_distances(hierarchy, class_names: Sequence[str]) -> Float[np.ndarray, "C C"]:
    """Distances of classes in any tree whose nodes they name: the length of the way from one to the other.

    Args:
        hierarchy: a tree of networkx (an edge counts its `weight`, or 1); a Newick string such as
            "((wolf,dog)canine,cat);" (a branch counts the length behind its colon, or 1); or a mapping of each class to
            its path from the root, as a sequence or as "animal/canine/wolf" (a step counts 1).
        class_names: nodes, one a row of the result; where no node is called so, one that differs in capitals, blanks,
            hyphens and underscores alone. In a mapping a class is its own leaf, wherever its path ends.

    Raises:
        ValueError: for what is no tree, branches shorter than 0, and names that it lacks or that are given twice.
    """
    import networkx as nx

    tree = _tree_of(hierarchy)
    if not tree.number_of_nodes() or not nx.is_tree(tree):
        raise ValueError(
            f"the hierarchy of {tree.number_of_nodes()} nodes and {tree.number_of_edges()} edges is no tree: "
            "give each class one path from the root"
        )
    lengths = [length for _, _, length in tree.edges.data("weight", default=1.0)]
    if not all(isinstance(length, Real) and 0 <= length < float("inf") for length in lengths):
        raise ValueError(f"lengths of branches must be at least 0 and finite, got {min(lengths, key=str)}")
    nodes = list(tree)
    rows = _rows_of(class_names, "the hierarchy", [str(node) for node in nodes])
    order = [nodes[row] for row in rows]
    away = [nx.single_source_dijkstra_path_length(tree, node, weight="weight") for node in order]
    return np.array([[lengths[other] for other in order] for lengths in away], dtype=float)


def _tree_of(hierarchy):
    """A hierarchy as an undirected networkx graph."""
    import networkx as nx

    if isinstance(hierarchy, str):
        return _newick(hierarchy)
    if not isinstance(hierarchy, Mapping):
        return hierarchy.to_undirected()
    tree = nx.Graph()
    for name, path in hierarchy.items():
        if not isinstance(path, str | list | tuple):
            raise ValueError(f"the path of {name!r} must be like 'animal/canine' or a sequence of steps, got {path!r}")
        steps = [step for step in path.split("/") if step] if isinstance(path, str) else [str(step) for step in path]
        if steps and _plain(steps[-1]) == _plain(str(name)):
            steps.pop()
        tree.add_edges_from(pairwise([*(("root", *steps[:end]) for end in range(len(steps) + 1)), str(name)]))
    return tree


def _newick(text: str):
    """The tree of a Newick string, comments in brackets left out.

    Raises:
        ValueError: naming the place that is not understood.
    """
    import networkx as nx

    tree, inner, parents, node = nx.Graph(), count(), [], None
    names: dict = {}
    length = "1"

    def close() -> None:
        if node is not None and parents:
            tree.add_edge(parents[-1], node, weight=float(length))

    token = re.compile(
        r"\s+|\[[^\]]*\]|(?P<mark>[(),;])|:\s*(?P<length>[-+.\deE]+)|'(?P<quoted>(?:[^']|'')*)'|(?P<name>[^\s()\[\]{},:;']+)"
    )
    at = 0
    while at < len(text):
        found = token.match(text, at)
        if found is None:
            raise ValueError(f"not a Newick string at character {at} ({text[at : at + 12]!r}): write ((a,b)c,d);")
        at = found.end()
        mark = found["mark"]
        if mark == "(":
            parents.append(next(inner))
            node, length = None, "1"
        elif mark and mark in ",)":
            if not parents:
                raise ValueError(f"not a Newick string: {mark!r} without an open bracket at character {at - 1}")
            close()
            node, length = (parents.pop(), "1") if mark == ")" else (None, "1")
        elif found["length"]:
            length = found["length"]
        elif (word := found["quoted"] if found["quoted"] is not None else found["name"]) is not None:
            if node is None:
                node = next(inner)
            names[node] = word.replace("''", "'")
    if parents:
        raise ValueError(f"not a Newick string: {len(parents)} brackets are left open")
    times = Counter(names.values())
    for twice in [node for node, name in names.items() if times[name] > 1]:
        if tree.degree(twice) == 1:
            raise ValueError(f"the hierarchy has {names[twice]!r} twice: name each class once")
        del names[twice]  # support values of inner nodes, usually
    return nx.relabel_nodes(tree, names)


def _rows_of(class_names: Sequence[str] | None, data: str, known: Sequence[str]) -> list[int]:
    """Place of each name among the known, all of them in order where no names are given.

    Raises:
        ValueError: for names that are not among them, or given twice.
    """
    if not class_names:
        return list(range(len(known)))
    exact = {name: row for row, name in enumerate(known)}
    alike: dict[str, list[int]] = {}
    for row, name in enumerate(known):
        alike.setdefault(_plain(name), []).append(row)
    rows = []
    for name in class_names:
        near = alike.get(_plain(str(name)), [])
        rows.append(exact.get(name, near[0] if len(near) == 1 else -1))
    foreign = [str(name) for name, row in zip(class_names, rows, strict=True) if row < 0]
    if foreign:
        few = ", ".join(map(repr, foreign[:3])) + (", ..." if len(foreign) > 3 else "")
        raise ValueError(
            f"{len(foreign)} of {len(rows)} class names are not among the {len(known)} of {data}: {few}; "
            "for classes of your own give a hierarchy that names them, or their distances"
        )
    if twice := [name for name, row in zip(class_names, rows, strict=True) if rows.count(row) > 1]:
        raise ValueError(f"class names {twice[0]!r} and {twice[1]!r} are one class of {data}: name each class once")
    return rows


def _plain(name: str) -> str:
    """A name without the differences that spellings of one class have."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def tree_distances(class_names: tuple[str, ...]) -> Float[np.ndarray, "C C"]:
    """Distance of path-like names by the level at which they part: 0 for the same leaf, 1 for nothing in common.

    Raises:
        ValueError: for no names, or names of different depth.
    """
    paths = [name.split("/") for name in class_names]
    depths = {len(path) for path in paths}
    if len(depths) != 1 or depths == {1}:
        raise ValueError(f"class names are no tree (depths {sorted(depths)}): name all of them like 'family/kind/leaf'")
    (depth,) = depths
    levels = np.array([[_common(a, b) for b in paths] for a in paths])
    return 1 - levels / depth


def _common(a: list[str], b: list[str]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


@cache
def _taxonomy() -> tuple[dict[str, dict[str, str]], dict[str, set[str]]]:
    """Synset of each class by data set, and the hypernyms of each synset."""
    synsets: dict[str, dict[str, str]] = {}
    parents: dict[str, set[str]] = {}
    for line in files("sagkit.data").joinpath("wordnet/taxonomy.tsv").read_text().splitlines():
        kind, child, parent, _ = line.split("\t")
        if kind == "is-a":
            parents.setdefault(child, set()).add(parent)
        else:
            synsets.setdefault(kind, {})[child] = parent
    return synsets, parents


@cache
def _depth(synset: str) -> int:
    above = _taxonomy()[1].get(synset, ())
    return 1 + max(map(_depth, above), default=0)


@cache
def _climb(synset: str) -> dict[str, int]:
    """Edges of the shortest way up from a synset to each of its hypernyms, itself included."""
    steps = {synset: 0}
    for parent in sorted(_taxonomy()[1].get(synset, ())):
        for node, distance in _climb(parent).items():
            steps[node] = min(steps.get(node, distance + 1), distance + 1)
    return steps


def _synsets_of(data: str, named: bool) -> list[str]:
    """The classes of a data set that have synsets, sorted.

    Raises:
        ValueError: for any other data set; where it comes with names of its own, another's would be no remedy.
    """
    synsets = _taxonomy()[0]
    if data not in synsets:
        known = tuple(synsets)
        remedy = (
            "for classes of your own give a hierarchy that names them (hierarchy_distances), or their distances"
            if named or not difflib.get_close_matches(data, known, cutoff=0.75)
            else _nearest(data, known)
        )
        raise ValueError(f"no WordNet synsets for {data!r}, but for {' and '.join(known)} alone: {remedy}")
    return sorted(synsets[data])


@cache
def _wordnet(data: str, reference: str) -> np.ndarray:
    climbs = [_climb(synset) for _, synset in sorted(_taxonomy()[0][data].items())]
    similarity = wu_palmer if reference == "wordnet" else path_similarity
    return np.array([[1 - similarity(a, b) for b in climbs] for a in climbs])


def wu_palmer(a: dict[str, int], b: dict[str, int]) -> float:
    """Wu-Palmer similarity in (0, 1] of two synsets, each given by its way up (hypernym: edges)."""
    shared = a.keys() & b.keys()
    return max(2 * _depth(node) / (2 * _depth(node) + a[node] + b[node]) for node in shared)


def path_similarity(a: dict[str, int], b: dict[str, int]) -> float:
    """1 / (1 + edges of the shortest path), in (0, 1], of two synsets, each given by its way up."""
    return 1 / (1 + min(a[node] + b[node] for node in a.keys() & b.keys()))


def _nearest(name: str, known: tuple[str, ...]) -> str:
    return "did you mean " + ", ".join(difflib.get_close_matches(name, known, n=2, cutoff=0.3) or known) + "?"
