"""What `explore` shows, as plain data: one setting in, one answer out, whoever asks, a notebook or a browser tab.

    explorer = Explorer(scene);    explorer.answer(Setting(anchor=12, k=10)) -> dict
    explorer.ask({"about": "answer", "setting": {"anchor": 12, "k": 10}})    -> the same, a refusal told in words

    graph -> neighbourhood of the anchor -> its walks, one of them step by step -> pairs, their weights and purity

Graph, walks, weights and purity are those of `graph`, `walk` and `metrics`; here they are only chosen and put in order.
The neighbours are searched once for the largest K, so that every other move costs milliseconds, and what depends only
on the setting of graph or walks is kept while the anchor moves. Everything in an answer can be written as JSON. [K]
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from io import BytesIO
from itertools import pairwise
from threading import Lock
from typing import Any, NamedTuple

import torch
from PIL import Image
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from sagkit.graph import KERNELS, Graph, centre_and_normalize, check_graph, graph_of_neighbors, nearest_neighbors
from sagkit.metrics.purity import chance_level, pair_purity
from sagkit.show.maps import radial_places, umap_map
from sagkit.show.scene import Scene
from sagkit.walk import Pairs, Walk, weighted_walk

MOST_K, MOST_LENGTH, MOST_WALKS, MOST_RESTART = 30, 8, 32, 0.95  # where the controls end; code may go further
TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ALIKE = 12  # look-alikes shown
SECOND = 24  # nodes shown that are two steps away
THUMBNAIL = 96  # pixels, the longest side of a small picture; no picture is enlarged


@dataclass(frozen=True)
class Setting:
    """Everything that can be chosen.

    anchor: the image in the middle, a row.
    k, temperature, kernel, mutual: of `similarity_graph`.
    length, walks, restart, seed: of `sample_pairs`.
    walk: which of the anchor's walks is shown step by step, from 0.
    batch: rows that alone make up the graph; None for all.
    """

    anchor: int = 0
    k: int = 10
    length: int = 4
    temperature: float = 0.1
    kernel: str = "cosine"
    restart: float = 0.0
    mutual: bool = False
    walks: int = 16
    walk: int = 0
    seed: int = 0
    batch: tuple[int, ...] | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Setting:
        """A setting from plain values by name; the rows of a batch are put in order.

        Raises:
            ValueError: for a name that there is not, or a value of another type.
        """
        defaults = asdict(cls())
        for name, value in values.items():
            if name not in defaults:
                raise ValueError(f"no setting {name!r}: choose from {', '.join(defaults)}")
            kind = type(defaults[name])
            if name == "batch":
                fits = value is None or (isinstance(value, Sequence) and all(type(row) is int for row in value))
            else:
                fits = type(value) is kind or (kind is float and type(value) is int)
            if not fits:
                raise ValueError(f"{name} = {value!r} is not of the kind of its default, {defaults[name]!r}")
        batch = values.get("batch")
        exact = {name: type(defaults[name])(value) for name, value in values.items() if name != "batch"}  # 1 to 1.0
        return cls(**exact, batch=None if batch is None else tuple(sorted(set(batch))))

    def changed(self) -> dict[str, Any]:
        """What differs from the defaults, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


class Batch(NamedTuple):
    """The images of a graph: their rows in the scene, ascending, their features, and a search among them.

    neighbors: int64 (n, most), positions in `rows`, most similar first, with their similarities.
    """

    rows: Tensor
    features: Tensor
    similarity: Tensor
    neighbors: Tensor


class Explorer:
    """Answers about one scene.

    Args:
        scene: the images with their features.
        first: the setting to begin with.
        title: what is explored, in a few words.
        call: how the same view is made again, with `{}` where the setting belongs.
        credit: whose pictures these are, where they ask that it be said.
    """

    def __init__(
        self,
        scene: Scene,
        first: Setting,
        title: str = "",
        call: str = "sagkit.explore(images{})",
        credit: str = "",
    ):
        self.scene, self.first, self.title, self.call, self.credit = scene, first, title, call, credit
        self.batch_of = lru_cache(4)(self._search)  # kept by each explorer and not by the class
        self.graph_of = lru_cache(8)(self._connect)
        self.walks_of = lru_cache(8)(self._walk)
        self.facts_of = lru_cache(8)(self._facts)
        self._labels = None if scene.labels is None else scene.labels.tolist()
        self._groups = None if scene.groups is None else scene.groups.tolist()
        self._turn = Lock()  # the page asks from several threads; one answer at a time searches once

    def ask(self, question: Mapping[str, Any]) -> dict:
        """The answer to a question of the front end, or {"refused": why} where it asks for what is not possible.

        "about" is "begin" (what is there), "answer" (to a "setting"), "pictures" (of "rows") or "map" (the slow one).
        """
        about = {"begin": self.begin, "answer": self._answer_to, "pictures": self.pictures, "map": self.refined_map}
        given = {name: value for name, value in question.items() if name != "about"}
        try:
            if question.get("about") not in about:
                raise ValueError(f"no answer about {question.get('about')!r}: ask about {', '.join(about)}")
            return about[question["about"]](**given)
        except ValueError as refusal:
            return {"refused": str(refusal)}

    def _answer_to(self, setting: Mapping[str, Any]) -> dict:
        with self._turn:
            return self.answer(Setting.of(setting))

    def begin(self) -> dict:
        """What a front end needs once: names, classes, the first map, controls, and the setting to begin with."""
        scene = self.scene
        return {
            "kind": "explore",
            "title": self.title,
            "credit": self.credit,
            "names": list(scene.names),
            "side": max(scene.images.shape[2:]),
            "labels": self._labels,
            "classes": list(scene.class_names),
            "groups": self._groups,
            "superclasses": list(scene.group_names),
            "map": {"name": "PCA", "xy": _rounded(scene.plane)},
            "controls": self.controls(),
            "setting": asdict(self.first),
        }

    def controls(self) -> list[dict]:
        """What can be moved, and between which ends."""
        first, most = self.first, len(self.scene) - 1
        whole = {
            "length": ("walk length L", max(MOST_LENGTH, first.length), "steps of a walk"),
            "k": ("neighbours K", min(most, max(MOST_K, first.k)), "neighbours kept per image"),
            "walks": ("walks per image", max(MOST_WALKS, first.walks), "each makes one pair"),
        }
        whole = {
            name: {"name": name, "label": label, "kind": "range", "min": 1, "max": end, "step": 1, "help": told}
            for name, (label, end, told) in whole.items()
        }
        restart = {"min": 0, "max": max(MOST_RESTART, first.restart), "step": 0.05}
        temperatures = sorted({*TEMPERATURES, first.temperature})
        return [
            whole["length"],
            whole["k"],
            {"name": "kernel", "label": "kernel", "kind": "choice", "options": KERNELS, "help": "similarity to odds"},
            {
                "name": "temperature",
                "label": "temperature",
                "kind": "scale",
                "options": temperatures,
                "help": "small is sharp; only the cosine kernel has one",
                "only": ["kernel", "cosine"],
            },
            {"name": "restart", "label": "restart", "kind": "range", "help": "probability per step to jump home"}
            | restart,
            whole["walks"],
            {"name": "seed", "label": "seed", "kind": "number", "min": 0, "max": 2**31 - 1, "help": "of the walks"},
            {"name": "mutual", "label": "mutual edges only", "kind": "tick", "help": "both ends must have the edge"},
        ]

    def answer(self, setting: Setting) -> dict:
        """Everything that one setting shows.

        Raises:
            ValueError: for a setting that these images do not allow.
        """
        batch = self.batch_of(setting.batch)
        here = self._position(setting.anchor, batch.rows)
        connected = (setting.batch, setting.k, setting.kernel, setting.temperature, setting.mutual)
        graph = self.graph_of(*connected)
        everyone, purity, left = self.walks_of(replace(setting, anchor=0, walk=0))
        if not 0 <= setting.walk < setting.walks:
            raise ValueError(f"walk {setting.walk} is not among the {setting.walks} of an image: they count from 0")
        mine = slice(here * setting.walks, (here + 1) * setting.walks)
        walks = Walk(*(part[mine] for part in everyone))
        nodes, edges = self._neighborhood(graph, batch.rows, here, walks.paths[setting.walk].tolist())
        near = zip(batch.neighbors[here, :ALIKE].tolist(), batch.similarity[here, :ALIKE].tolist(), strict=True)
        return {
            "setting": asdict(setting),
            "nodes": nodes,
            "edges": edges,
            "walk": self._steps(graph, batch.rows, walks, setting.walk),
            "alike": [self._item(batch.rows, here, j) | {"similarity": round(s, 4)} for j, s in near],
            "pairs": self._partners(batch.rows, here, walks),
            "home": int((walks.paths[:, -1] == here).sum()),
            "purity": purity,
            "left": left,
            "graph": self.facts_of(*connected),
            "images": len(batch.rows),
            "code": self.code(setting),
        }

    def code(self, setting: Setting) -> str:
        """The line that makes this view again, and the pairing of a training run at the same setting."""
        changed = {name: list(value) if name == "batch" else value for name, value in setting.changed().items()}
        shared = {name: getattr(setting, name) for name in ("k", "length", "walks", "temperature", "kernel", "mutual")}
        pairing = _arguments(shared | {"restart": setting.restart, "seed": setting.seed})
        view = self.call.format("".join(f", {name}={value!r}" for name, value in changed.items()))
        return f"{view}\nsagkit.WalkPairing({pairing})  # the same setting in a training loop"

    def pictures(self, rows: Sequence[int], side: int = THUMBNAIL) -> dict[str, list[str]]:
        """JPEGs of some rows as addresses that a browser shows, at most `side` pixels high and wide.

        Raises:
            ValueError: for a row that is not there.
        """
        for row in rows:
            if not 0 <= row < len(self.scene):
                raise ValueError(f"image {row} is not there: choose 0 to {len(self.scene) - 1}")
        return {"urls": [_jpeg(self.scene.images[row], side) for row in rows]}

    def refined_map(self) -> dict:
        """The UMAP that takes the place of the first map, which it begins from; no places where it makes none.

        Raises:
            ValueError: see `maps.umap_map`.
        """
        with self._turn:
            batch = self.batch_of(None)
        found = umap_map(batch.features, batch.similarity, batch.neighbors, self.scene.seed)
        return {"name": "PCA, too few images for UMAP"} if found is None else {"name": "UMAP", "xy": _rounded(found)}

    def _position(self, anchor: int, rows: Tensor) -> int:
        if not 0 <= anchor < len(self.scene):
            raise ValueError(f"image {anchor} is not there: choose 0 to {len(self.scene) - 1}")
        at = int(torch.searchsorted(rows, anchor))
        if at == len(rows) or rows[at] != anchor:
            raise ValueError(f"image {anchor} is not in the batch: choose one of its {len(rows)}, or all images")
        return at

    def _search(self, chosen: tuple[int, ...] | None) -> Batch:
        """Neighbours of every image among the chosen ones, as many as a control asks for."""
        n = len(self.scene)
        rows = torch.arange(n) if chosen is None else torch.tensor(chosen, dtype=torch.int64)
        if len(rows) < 2:
            raise ValueError(f"a batch of {len(rows)} has no neighbours: choose 2 images or more")
        if chosen is not None and not 0 <= chosen[0] <= chosen[-1] < n:
            raise ValueError(f"the batch names images that are not there: choose from 0 to {n - 1}")
        features = self.scene.features[rows]
        most = min(max(MOST_K, self.first.k), len(rows) - 1)
        check_graph(features, most, "cosine", 1.0)
        similarity, neighbors = nearest_neighbors(centre_and_normalize(features), most)
        return Batch(rows, features, similarity, neighbors)

    def _connect(self, chosen, k: int, kernel: str, temperature: float, mutual: bool) -> Graph:
        batch = self.batch_of(chosen)
        check_graph(batch.features, k, kernel, temperature)
        if k > batch.neighbors.shape[1]:
            raise ValueError(f"{k} neighbours: this view searched for {batch.neighbors.shape[1]} at most")
        return graph_of_neighbors(batch.similarity[:, :k], batch.neighbors[:, :k], kernel, temperature, mutual)

    def _facts(self, *connected) -> dict:
        """A whole graph in figures; exp(entropy) of a row is its number of effective neighbours."""
        graph, rows = self.graph_of(*connected), self.batch_of(connected[0]).rows
        alone = (graph.neighbors == torch.arange(len(graph))[:, None]).all(dim=1)
        effective = torch.special.entr(graph.weights).sum(dim=1).exp()[~alone]
        facts = {
            "edges": int((graph.weights > 0)[~alone].sum()),
            "effective": float(effective.mean()) if len(effective) else 0.0,
            "isolated": int(alone.sum()),
            "components": int(connected_components(graph.to_scipy(), directed=False)[0]),
        }
        known = {"superclass": self.scene.groups, "class": self.scene.labels}
        kind = next((kind for kind, of in known.items() if of is not None), None)
        if kind is not None and len(effective):
            of = known[kind][rows]
            same = (graph.weights * (of[graph.neighbors] == of[:, None])).sum(dim=1)[~alone]
            facts["stays"] = {"kind": kind, "share": float(same.mean()), "chance": chance_level(of)}
        return facts

    def _walk(self, setting: Setting) -> tuple[Walk, list[dict], float]:
        """Every image's walks, those of `sample_pairs` at the same seed; purity of their pairs, and share of those."""
        if setting.walks < 1:
            raise ValueError(f"walks per image must be at least 1, got {setting.walks}")
        graph = self.graph_of(setting.batch, setting.k, setting.kernel, setting.temperature, setting.mutual)
        anchors = torch.arange(len(graph)).repeat_interleave(setting.walks)
        generator = torch.Generator().manual_seed(setting.seed)
        walks = weighted_walk(graph, anchors, setting.length, setting.restart, generator)
        pairs = Pairs(anchors, walks.paths[:, -1], walks.weight)
        left = float((pairs.anchor != pairs.positive).float().mean())
        return walks, self._purity(pairs, self.batch_of(setting.batch).rows), left

    def _purity(self, pairs: Pairs, rows: Tensor) -> list[dict]:
        """Purity of all pairs beside chance, by what the two share; nothing without labels."""
        if self.scene.labels is None:
            return []
        labels = self.scene.labels[rows]
        groups = labels if self.scene.groups is None else self.scene.groups[rows]
        found = pair_purity(pairs, labels, groups)
        kinds = [("class", labels, found.same_class, found.weighted_class)]
        if self.scene.groups is not None:
            kinds.append(("superclass", groups, found.same_superclass, found.weighted_superclass))
        return [
            {"kind": kind, "share": _known(share), "weighted": _known(weighted), "chance": chance_level(of)}
            for kind, of, share, weighted in kinds
        ]

    def _partners(self, rows: Tensor, here: int, walks: Walk) -> list[dict]:
        """Where the anchor's walks ended, heaviest first, each with the walks that led there."""
        led: dict[int, list[int]] = {}
        for number, end in enumerate(walks.paths[:, -1].tolist()):
            if end != here:
                led.setdefault(end, []).append(number)
        found = [
            self._item(rows, here, end) | {"walks": numbers, "weight": round(float(walks.weight[numbers].sum()), 4)}
            for end, numbers in led.items()
        ]
        return sorted(found, key=lambda pair: -pair["weight"])

    def _steps(self, graph: Graph, rows: Tensor, walks: Walk, which: int) -> dict:
        """One walk: where it is after each step, and how probable and how similar the edge was that took it there."""
        path, restarted = walks.paths[which].tolist(), walks.restarted[which].tolist()
        steps = [self._item(rows, path[0], path[0])]
        for (before, after), jump in zip(pairwise(path), restarted, strict=True):
            step = self._item(rows, path[0], after) | {"restart": jump}
            if not jump:
                slot = int((graph.neighbors[before] == after).nonzero()[0, 0])
                step["probability"] = round(float(graph.weights[before, slot]), 4)
                step["similarity"] = round(float(graph.similarity[before, slot]), 4)
            steps.append(step)
        return {"steps": steps, "weight": round(float(walks.weight[which]), 4)}

    def _neighborhood(self, graph: Graph, rows: Tensor, here: int, path: list[int]) -> tuple[list[dict], list[dict]]:
        """Nodes around the anchor with their places, and every edge among them.

        First ring: the anchor's neighbours. Second: the likeliest ends of two steps. Third: what else the walk visits.
        """
        ring, parent, reached = {here: 0}, {}, {}
        first = [(j, w) for j, w in _edges_of(graph, here) if j != here]
        ring.update((j, 1) for j, _ in first)
        for j, w in first:
            for end, v in _edges_of(graph, j):
                if end not in ring:
                    reached[end] = reached.get(end, 0.0) + w * v
                    parent.setdefault(end, j)
        for end in sorted(reached, key=lambda j: (-reached[j], j))[:SECOND]:
            ring[end] = 2
        for before, after in pairwise(path):
            if after not in ring:
                ring[after], parent[after] = 3, before
        plane = self.scene.plane[rows[list(ring)].numpy()]
        places = radial_places(ring, parent, dict(zip(ring, plane, strict=True)))
        nodes = [
            self._item(rows, here, j) | {"ring": steps, "place": [round(v, 4) for v in places[j]]}
            for j, steps in ring.items()
        ]
        edges: dict[tuple[int, int], dict] = {}
        for i in ring:
            similar = dict(zip(graph.neighbors[i].tolist(), graph.similarity[i].tolist(), strict=True))
            for j, weight in _edges_of(graph, i):
                if (j, i) in edges:
                    edges[j, i] |= {"mutual": True, "weight": max(edges[j, i]["weight"], round(weight, 4))}
                elif j != i and j in ring:
                    ends = {"from": int(rows[i]), "to": int(rows[j])}
                    known = {"weight": round(weight, 4), "similarity": round(similar[j], 4), "mutual": False}
                    edges[i, j] = ends | known | {"same": self._kind(*ends.values())}
        return nodes, list(edges.values())

    def _item(self, rows: Tensor, here: int, there: int) -> dict:
        """An image of the batch by its row, and what it shares with another."""
        return {"row": int(rows[there]), "same": self._kind(int(rows[here]), int(rows[there]))}

    def _kind(self, a: int, b: int) -> str:
        """What two rows share: "class", "superclass" or "neither"; nothing where classes are not known."""
        labels, groups = self._labels, self._groups
        if labels is None:
            return ""
        if labels[a] == labels[b]:
            return "class"
        return "superclass" if groups is not None and groups[a] == groups[b] else "neither"


def _edges_of(graph: Graph, node: int) -> list[tuple[int, float]]:
    """Where the edges of a node lead, with their probabilities, those of weight 0 left out."""
    ends, weights = graph.neighbors[node].tolist(), graph.weights[node].tolist()
    return [(end, weight) for end, weight in zip(ends, weights, strict=True) if weight > 0]


def _arguments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _rounded(xy) -> list[list[float]]:
    return xy.round(4).tolist()


def _known(share: float) -> float | None:
    """A share, None where no pair counts: JSON has no NaN."""
    return None if math.isnan(share) else share


def _jpeg(image: Tensor, side: int) -> str:
    """One image (3, H, W) as the address of a JPEG; a picture is made smaller, never larger."""
    picture, buffer = Image.fromarray(image.permute(1, 2, 0).numpy()), BytesIO()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    picture.save(buffer, "JPEG", quality=92, subsampling=0)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"
