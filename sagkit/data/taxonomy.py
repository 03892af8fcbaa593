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
from functools import cache
from importlib.resources import files

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
    data: str, reference: str = "wordnet", class_names: tuple[str, ...] | None = None
) -> Float[np.ndarray, "C C"]:
    """Semantic distances between the classes of a data set, in [0, 1], zero on the diagonal.

    Args:
        data: "cifar100" or "cifar10", in the order of their sorted class names; any name if `class_names` is given
            and the reference reads the tree from them.
        reference: "wordnet", "wordnet-path", "superclass" or "tree".
        class_names: path-like names such as "round/disc/striped", all of one depth; for "tree" and "superclass" (first
            component) of data sets other than CIFAR.

    Raises:
        ValueError: for an unknown reference or data set, or names that are no tree.
    """
    if reference not in REFERENCES:
        raise ValueError(f"unknown reference {reference!r}: {_nearest(reference, REFERENCES)}")
    if reference.startswith("wordnet"):
        return _wordnet(data, reference).copy()
    if reference == "superclass":
        group = superclasses(data, class_names)[1]
        return (group[:, None] != group[None, :]).astype(float)
    return tree_distances(class_names or ())


def superclasses(
    data: str, class_names: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], Int[np.ndarray, " C"]]:
    """Names of the superclasses, sorted, and the superclass of each class: 20 for "cifar100", or path prefixes.

    Raises:
        ValueError: for a data set whose superclasses are not known.
    """
    if data == "cifar100":
        of = {name: group for group, members in CIFAR100_SUPERCLASSES.items() for name in members.split()}
        groups = [of[name] for name in sorted(of)]
    elif class_names and all("/" in name for name in class_names):
        groups = [name.split("/")[0] for name in class_names]
    else:
        raise ValueError(f"no superclasses are known for {data!r}: use cifar100, or class names like 'family/kind'")
    names = tuple(sorted(set(groups)))
    return names, np.array([names.index(group) for group in groups])


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


@cache
def _wordnet(data: str, reference: str) -> np.ndarray:
    synsets = _taxonomy()[0]
    if data not in synsets:
        raise ValueError(f"no WordNet synsets for {data!r}: {_nearest(data, tuple(synsets))}")
    climbs = [_climb(synset) for _, synset in sorted(synsets[data].items())]
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
