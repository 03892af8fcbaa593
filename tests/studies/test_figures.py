"""Pictures for a talk show what was computed: images, pairs and figures are read back from the drawing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sagkit.data.load import make_shapes
from sagkit.graph import similarity_graph
from sagkit.show import plots, scenes
from sagkit.studies import figures
from sagkit.walk import random_walk


@pytest.fixture(scope="module")
def scene():
    batch = make_shapes(40, size=16, seed=2)
    features = batch.images.flatten(1).float()[:, ::40] / 255
    return scenes.make_scene(batch.images, batch.labels, batch.class_names, features)


def shown(axis) -> np.ndarray:
    return np.moveaxis(np.asarray(axis.images[0].get_array()), -1, 0)


@pytest.mark.slow
def test_the_method_diagram_pairs_images_by_walks_of_its_graph(scene):
    nodes, k, length, seed = 20, 3, 2, 5
    figure = figures.method_picture(scene, nodes, k, length, seed)
    small = [axis for axis in figure.axes if axis.images]  # rows of image, view, view, anchor, positive
    assert len(small) == 20
    graph = similarity_graph(scene.features[:nodes], k)
    paths = random_walk(graph, torch.arange(nodes), length, generator=torch.Generator().manual_seed(seed))
    ends = {int(path[0]): int(path[-1]) for path in paths}
    index = {image.numpy().tobytes(): node for node, image in enumerate(scene.images[:nodes])}
    anchors = [index[shown(axis).tobytes()] for axis in small[0::5]]
    assert [index[shown(axis).tobytes()] for axis in small[3::5]] == anchors
    assert [index[shown(axis).tobytes()] for axis in small[4::5]] == [ends[anchor] for anchor in anchors]
    unit = torch.nn.functional.normalize(scene.features[:nodes] - scene.features[:nodes].mean(0), dim=1)
    for anchor in anchors:
        a, b, c = paths[anchor].tolist()
        weight = float(unit[a] @ unit[b]).__abs__() * float(unit[b] @ unit[c]).__abs__()
        assert f"w {weight:.2f}" in [text.get_text() for text in figure.texts] or a == c


def test_the_class_tree_cuts_into_the_three_families():
    labels = [tick.get_text() for tick in figures.shapes_tree().axes[0].get_xticklabels()]
    assert len(labels) == 27
    family = {}
    for label in labels:
        number, name = label.split(" · ")
        family.setdefault(number, set()).add(name.split("/")[0])
    assert sorted(family.values(), key=min) == [{"angular"}, {"radial"}, {"round"}]


def test_purity_is_the_records(tmp_path):
    assert figures.purity_picture(tmp_path) is None
    base = {"kernel": "cosine", "k": 10, "confident": 1.0, "scope": "batch"}
    rows = [{**base, "length": length, "same_superclass": value} for length, value in ((1, 0.3), (8, 0.1))]
    rows += [{**rows[0], "k": 3, "same_superclass": 0.9}]
    (tmp_path / "purity").mkdir()
    (tmp_path / "purity/cifar100.json").write_text(json.dumps({"rows": rows, "chance": {"dataset": [0.01, 0.05]}}))
    lines = figures.purity_picture(tmp_path).axes[0].lines
    np.testing.assert_array_equal(lines[0].get_xydata(), [[1, 0.3], [8, 0.1]])
    np.testing.assert_array_equal(lines[1].get_ydata(), [0.05, 0.05])


def test_gain_and_price_are_means_of_differences_by_seed_with_their_intervals():
    def run(method, variant, seed, knn, spearman):
        metrics = {"knn": knn, "spearman_pairs": spearman}
        return {"method": method, "variant": variant, "seed": seed, "config": {"epochs": 1}, "metrics": metrics}

    plain = [run("vicreg", "default", seed, 0.3 + seed / 10, 0.1 + seed / 10) for seed in range(3)]
    walks = [run("sag-vicreg", "nearest", s, 0.3 + s / 10 - 0.01 * s, 0.1 + s / 10 + 0.02) for s in range(3)]
    axis = figures.gain_and_price([*plain, *walks]).axes[0]
    places = [container.lines[0].get_xydata()[0] for container in axis.containers]
    np.testing.assert_allclose(places, [[0, 0], [-1, 0.02]], atol=1e-12)  # -0, -1 and -2 points
    ends = axis.containers[1].lines[2][0].get_segments()[0][:, 0]
    np.testing.assert_allclose(ends, [-1 - 4.302653 / 3**0.5, -1 + 4.302653 / 3**0.5], rtol=1e-5)  # t(0.975; 2)
    assert {text.get_text() for text in axis.texts} == {"vicreg", "nearest"}
    assert figures.gain_and_price(plain) is None


HOUSE = Path(__file__).parents[2]


@pytest.mark.slow  # draws every picture
def test_the_committed_pictures_show_the_committed_records():
    for name, picture in figures.of_records(HOUSE / "figures/results").items():
        kept = Image.open(HOUSE / f"figures/talk/{name}.png").text["Source"]
        assert kept == f"shown: {figures.content(picture)}", f"{name} is stale: run sagkit study figures"


def test_a_pictures_content_is_its_numbers_and_words_and_not_where_they_lie(tmp_path):
    def drawn(y=0.5, name="a", limits=(0, 1)):
        picture = plots.curves({name: ([0.1, 0.2], [0.3, y])}, "x", "y")
        picture.axes[0].set_ylim(limits)
        return picture

    assert figures.content(drawn()) == figures.content(drawn(limits=(-5, 9)))
    assert figures.content(drawn()) == figures.content(drawn(0.5 + 1e-9))
    assert len({figures.content(drawn(*other)) for other in ((), (0.51,), (0.5, "b"))}) == 3
    plots.save(drawn(), tmp_path / "p", (".png",), f"shown: {figures.content(drawn())}")
    assert Image.open(tmp_path / "p.png").text["Source"] == f"shown: {figures.content(drawn())}"


def test_scores_across_kinds_are_the_records(tmp_path, monkeypatch):
    assert figures.kinds_picture(tmp_path) is None
    monkeypatch.setattr(figures.kinds_validity, "choose_design", lambda rows: "consensus")
    rows = [
        {"name": name, "kind": kind, "family": family, "semantic": 0.1 * i, "scores": {"consensus": i, **others}}
        for i, (name, kind, family) in enumerate(
            [
                ("a", "trained", "VICReg"),
                ("b", "trained", "classes"),
                ("a, rank 2", "degraded", "VICReg"),
                ("p", "hand-made", "pixels"),
            ]
        )
        for others in [{"clean, changed: distances": -i, "RankMe": i**2}]
    ]
    (tmp_path / "kinds-validity").mkdir()
    (tmp_path / "kinds-validity/cifar100.json").write_text(json.dumps({"rows": rows}))
    axis = figures.kinds_picture(tmp_path).axes[0]
    places = {c.get_label(): c.lines[0].get_xydata()[0].tolist() for c in axis.containers}
    names = ["trained without labels", "trained on labels", "copy of rank 1, 2 or 6", "not trained"]
    assert places == {name: pytest.approx([i, 0.1 * i]) for i, name in enumerate(names)}
