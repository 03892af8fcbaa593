"""Widgets answer every move with another picture and true figures, and refuse impossible settings in words."""

import re
from io import BytesIO

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.cluster.hierarchy import cophenet, fcluster
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score

from sagkit.data.load import make_shapes
from sagkit.graph import similarity_graph
from sagkit.loss import sag_vicreg_loss
from sagkit.show import plots, scenes, widgets
from sagkit.show.scenes import Gallery
from sagkit.walk import random_walk, sample_pairs


@pytest.fixture(scope="module")
def scene():
    batch = make_shapes(60, size=16, seed=0)
    features = batch.images.flatten(1).float() @ torch.randn(768, 12, generator=torch.Generator().manual_seed(0)) / 255
    scene = scenes.make_scene(batch.images, batch.labels, batch.class_names, features)
    scene.__dict__["flat"] = np.random.default_rng(1).normal(size=(60, 2))  # UMAP compiles for seconds
    return scene


@pytest.fixture(scope="module")
def projections():
    za = torch.randn(60, 5, generator=torch.Generator().manual_seed(1))
    return za, za + 0.3 * torch.randn(60, 5, generator=torch.Generator().manual_seed(2))


def gallery_of(scene) -> Gallery:
    return Gallery(scene.images, scene.features, tuple(f"folder/{i}.png" for i in range(60)), scene.labels)


PANELS = {
    "graph": lambda scene, projections: widgets.graph_explorer(scene),
    "walk": lambda scene, projections: widgets.walk_player(scene),
    "pairs": lambda scene, projections: widgets.pairing_board(scene),
    "loss": lambda scene, projections: widgets.loss_explorer(*projections, scene.features),
    "tree": lambda scene, projections: widgets.dendrogram_cutter(scene),
    "search": lambda scene, projections: widgets.look_alikes(gallery_of(scene)),
}


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))]


def pixels(panel) -> np.ndarray:
    with Image.open(BytesIO(panel.picture.value)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


MOVES = [
    *[
        ("graph", name, value)
        for name, value in {"k": 4, "kernel": "shared", "temperature": 0.01, "mutual": True}.items()
    ],
    *[("walk", name, value) for name, value in {"length": 6, "restart": 0.9, "seed": 3, "start": 7, "k": 2}.items()],
    *[("pairs", name, value) for name, value in {"anchor": 9, "length": 1, "k": 3, "alpha": 1.0, "walks": 4}.items()],
    *[("loss", name, value) for name, value in {"alpha": 0.8, "k": 3, "length": 5, "keep": False}.items()],
    *[("tree", name, value) for name, value in {"clusters": 7, "method": "ward"}.items()],
    *[("search", name, value) for name, value in {"query": 17, "results": 5}.items()],
]


@pytest.mark.slow
@pytest.mark.parametrize(("panel", "control", "value"), MOVES, ids=[f"{p}-{c}" for p, c, _ in MOVES])
def test_every_control_changes_the_picture(scene, projections, panel, control, value):
    chosen = PANELS[panel](scene, projections)
    before, text = pixels(chosen), chosen.text.value
    chosen.controls[control].value = value
    assert chosen.message.value == ""
    assert (np.abs(pixels(chosen) - before).max(axis=2) > 16).sum() > 30
    assert chosen.text.value != text or panel == "tree"


REFUSALS = [
    ("graph", {"temperature": 0.0}, "temperature must be greater than 0"),
    ("walk", {"restart": 1.0}, "restart must be a probability"),
    ("walk", {"start": 60}, "image 60 is not in the batch: choose 0 to 59"),
    ("walk", {"start": -1}, "image -1 is not in the batch"),
    ("pairs", {"anchor": 1000}, "image 1000 is not in the batch"),
    ("loss", {"keep": False, "alpha": 1.5}, "alpha must be in [0, 1], got 1.5"),
    ("search", {"query": 60}, "image 60 is not in the gallery: choose 0 to 59"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("panel", "settings", "words"), REFUSALS, ids=[w for *_, w in REFUSALS])
def test_impossible_settings_are_refused_in_words_and_the_last_picture_stays(
    scene, projections, panel, settings, words
):
    chosen = PANELS[panel](scene, projections)
    good = {name: chosen.controls[name].value for name in settings}
    *others, last = settings
    for name in others:
        chosen.controls[name].value = settings[name]
    before = chosen.picture.value
    chosen.controls[last].value = settings[last]
    assert words in chosen.message.value
    assert 'role="alert"' in chosen.message.value
    assert chosen.picture.value == before
    chosen.controls[last].value = good[last]
    assert chosen.message.value == ""


@pytest.mark.slow
def test_k_that_no_batch_meets_and_an_anchor_without_pairs_are_refused(scene):
    few = scenes.make_scene(scene.images[:20], scene.labels[:20], scene.class_names, scene.features[:20])
    panel = widgets.graph_explorer(few)
    panel.controls["k"].value = 25
    assert "lower k or use a larger batch" in panel.message.value
    graph = similarity_graph(scene.features, 1, mutual=True)
    alone = int((graph.neighbors[:, 0] == torch.arange(60)).nonzero()[0])
    board = widgets.pairing_board(scene)
    board.controls["k"].value, board.controls["mutual"].value = 1, True
    board.controls["anchor"].value = alone
    assert f"image {alone} has no pair" in board.message.value


@pytest.mark.slow
def test_a_panel_begins_with_the_picture_of_the_settings_it_is_given(scene):
    panel = widgets.walk_player(scene, start=5, length=3, seed=1)
    assert panel.picture.value == scenes.walk_view(scene, start=5, length=3, seed=1, k=10).quick_png()
    moved = widgets.walk_player(scene)
    assert moved.picture.value != panel.picture.value
    for argument, value in (("start", 5), ("length", 3), ("seed", 1)):
        moved.controls[argument].value = value
    assert moved.picture.value == panel.picture.value
    with pytest.raises(ValueError, match="no control for 'anchor': choose from length"):
        widgets.walk_player(scene, anchor=5)
    with pytest.raises(ValueError, match="k = 99 lies outside its slider, which ends at 30"):
        widgets.walk_player(scene, k=99)
    with pytest.raises(ValueError, match="method = 'x' is no choice"):
        widgets.dendrogram_cutter(scene, method="x")


def test_markup_in_a_refusal_is_shown_and_not_run():
    def refuse(x):
        raise ValueError("<script>alert(1)</script>")

    panel = widgets.Panel(refuse, {"x": ipywidgets.IntSlider()}, "test")
    assert "<script>" not in panel.message.value
    assert "&lt;script&gt;" in panel.message.value


def test_a_fault_of_the_code_is_not_hidden():
    def broken(x):
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        widgets.Panel(broken, {"x": ipywidgets.IntSlider()}, "test")


@pytest.mark.slow
def test_controls_wait_for_the_hand_to_let_go_and_a_static_page_shows_a_sentence(scene, projections):
    for make in PANELS.values():
        panel = make(scene, projections)
        movable = [c for c in panel.controls.values() if hasattr(c, "continuous_update")]
        assert not any(control.continuous_update for control in movable)
        assert all(control.description for control in panel.controls.values())
        assert "run this cell in JupyterLab" in repr(panel)


def test_the_graphs_figures_are_those_of_loops(scene):
    k = 3
    panel = widgets.graph_explorer(scene)
    panel.controls["k"].value, panel.controls["mutual"].value = k, True
    unit = torch.nn.functional.normalize(scene.features - scene.features.mean(0), dim=1)
    near = [
        set(sorted((j for j in range(60) if j != i), key=lambda j: -float(unit[i] @ unit[j]))[:k]) for i in range(60)
    ]
    edges = [(i, j) for i in range(60) for j in near[i] if i in near[j]]
    alone = 60 - len({i for i, _ in edges})
    found = numbers(panel.text.value.split("(in")[0].removeprefix('<div role="status">'))
    assert (found[0], found[2]) == (len(edges), alone)


@pytest.mark.slow
def test_the_walk_on_show_is_the_one_its_settings_draw(scene):
    panel = widgets.walk_player(scene)
    panel.controls["length"].value, panel.controls["seed"].value, panel.controls["start"].value = 5, 4, 11
    graph = similarity_graph(scene.features, 10)
    path = random_walk(graph, torch.tensor([11]), 5, generator=torch.Generator().manual_seed(4))[0].tolist()
    assert " → ".join(map(str, path)) in panel.text.value


@pytest.mark.slow
def test_the_boards_purity_is_a_count_over_its_pairs(scene):
    panel = widgets.pairing_board(scene)
    for length, k, alpha in ((1, 3, 0.5), (4, 8, 2.0)):
        for name, value in {"length": length, "k": k, "alpha": alpha, "walks": 8, "anchor": 5}.items():
            panel.controls[name].value = value
        pairs = sample_pairs(similarity_graph(scene.features, k), length, 8, torch.Generator().manual_seed(0))
        counted = [(i, j, w) for i, j, w in zip(*(part.tolist() for part in pairs), strict=True) if i != j]
        expected = []
        for of in (scene.labels.tolist(), scene.groups.tolist()):
            expected.append(sum(of[i] == of[j] for i, j, _ in counted) / len(counted))
        for of in (scene.labels.tolist(), scene.groups.tolist()):
            expected.append(sum(w * (of[i] == of[j]) for i, j, w in counted) / sum(w for *_, w in counted))
        mine = [(j, w) for i, j, w in zip(*(part.tolist() for part in pairs), strict=True) if i == 5]
        found = numbers(panel.text.value.removeprefix('<div role="status">'))
        assert found[0] == len({j for j, _ in mine} - {5})
        np.testing.assert_allclose(found[2:6], expected, atol=6e-4)
        assert found[7] == pytest.approx(alpha * sum(w for _, w in mine) / 8, abs=6e-3)


def test_the_losss_figures_are_those_of_the_loss_and_of_autograd(scene, projections):
    za, zb = projections
    panel = widgets.loss_explorer(za, zb, scene.features)
    panel.controls["alpha"].value = 0.7
    pairs = sample_pairs(similarity_graph(scene.features, 10), 2, 1, torch.Generator().manual_seed(0))
    found = numbers(panel.text.value.removeprefix('<div role="status">'))
    assert found[0] == pytest.approx(float(sag_vicreg_loss(za, zb, pairs, 0.7).total), abs=1e-3)
    z = torch.stack([za, zb]).requires_grad_()
    with_walk, without = (sag_vicreg_loss(z[0], z[1], pairs, alpha).total for alpha in (0.7, 0.0))
    (walk,) = torch.autograd.grad(with_walk - without, z)
    assert found[3] == pytest.approx(float(walk.norm()), rel=1e-2)


@pytest.mark.slow
def test_the_trees_cut_is_scipys_on_cosine_free_loops(scene):
    panel = widgets.dendrogram_cutter(scene)
    panel.controls["clusters"].value = 5
    unit = torch.nn.functional.normalize(scene.features - scene.features.mean(0), dim=1)
    present = sorted(set(scene.labels.tolist()))
    means = [unit[scene.labels == label].mean(0) for label in present]
    distance = [[float((a - b).norm()) for b in means] for a in means]
    clusters = [{i} for i in range(len(means))]
    while len(clusters) > 5:  # average linkage by its definition

        def gap(pair):
            a, b = (clusters[i] for i in pair)
            return sum(distance[i][j] for i in a for j in b) / (len(a) * len(b))

        a, b = min(((i, j) for i in range(len(clusters)) for j in range(i)), key=gap)
        clusters[b] |= clusters.pop(a)
    member = [next(c for c, cluster in enumerate(clusters) if i in cluster) for i in range(len(means))]
    family = [scene.class_names[label].split("/")[0] for label in present]
    assert numbers(panel.text.value)[2] == pytest.approx(adjusted_rand_score(family, member), abs=6e-4)


def test_a_dendrogram_is_drawn_at_its_heights_and_cut_where_it_says():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(9, 2))
    tree = scenes.linkage(points, "average")
    axis = plots.dendrogram(tree, [f"leaf {i}" for i in range(9)], cut=3).axes[0]
    tops = sorted(line.get_ydata()[1] for line in axis.lines[:8])
    np.testing.assert_allclose(tops, sorted(set(squareform(cophenet(tree)).flatten()) - {0.0}))
    level = axis.lines[8].get_ydata()[0]
    assert (tree[:, 2] > level).sum() == 2  # two joins above the cut: three clusters below
    member = dict(zip((f"leaf {i}" for i in range(9)), fcluster(tree, 3, "maxclust"), strict=True))
    labels = [tick.get_text().split(" · ") for tick in axis.get_xticklabels()]
    assert len({(number, member[name]) for number, name in labels}) == 3


def test_a_scene_is_laid_out_the_same_for_the_same_seed():
    batch = make_shapes(30, size=8, seed=1)
    features = batch.images.flatten(1).float()[:, :20]
    one, two = (scenes.make_scene(batch.images, batch.labels, batch.class_names, features, k=4) for _ in range(2))
    np.testing.assert_array_equal(one.layout, two.layout)
    families = [one.class_names[label].split("/")[0] for label in one.labels]
    assert [one.group_names[group] for group in one.groups] == families


def nearest(scene, query: int) -> list[int]:
    """The other images by cosine of centred features, most similar first."""
    x = scene.features.double() - scene.features.double().mean(dim=0)
    cosine = [float(x[query] @ x[i] / x[query].norm() / x[i].norm()) for i in range(len(scene))]
    return sorted((i for i in range(len(scene)) if i != query), key=lambda i: -cosine[i])


@pytest.mark.slow
def test_a_click_searches_on_from_that_result_and_back_returns(scene):
    panel = widgets.look_alikes(gallery_of(scene), query=8)
    first, path = pixels(panel), [8]
    for number in (2, 0, 11):
        expected = nearest(scene, path[-1])
        assert panel.found == expected[:12]
        assert panel.steps[number].tooltip == f"folder/{expected[number]}.png"
        panel.steps[number].click()
        path.append(expected[number])
        assert panel.controls["query"].value == path[-1]
        same = sum(int(scene.labels[i] == scene.labels[path[-1]]) for i in nearest(scene, path[-1])[:12])
        assert f"Image {path[-1]}, folder/{path[-1]}.png" in panel.text.value
        assert f"{same} of 12 share its class folder" in panel.text.value
    for query in reversed(path[:-1]):
        assert not panel.back.disabled
        panel.back.click()
        assert panel.controls["query"].value == query
    assert panel.back.disabled
    assert (pixels(panel) == first).all()


def test_buttons_follow_the_number_of_results_and_a_refusal_leaves_them(scene):
    panel = widgets.look_alikes(gallery_of(scene))
    panel.controls["results"].value = 4
    assert [button.disabled for button in panel.steps] == [False] * 4 + [True] * 8
    before = panel.found
    panel.controls["query"].value = 99
    assert panel.found == before
    panel.steps[1].click()
    assert panel.controls["query"].value == before[1]
    assert panel.message.value == ""
    panel.back.click()  # to the last query that was answered, not to the one that was refused
    assert panel.controls["query"].value == 0
    assert panel.message.value == ""


def test_a_search_that_begins_with_a_refusal_and_a_query_typed_by_hand_leave_buttons_in_order(scene):
    panel = widgets.look_alikes(gallery_of(scene), query=99)
    assert "image 99 is not in the gallery" in panel.message.value
    assert all(button.disabled for button in panel.steps)
    panel.controls["query"].value = 8
    assert panel.found == nearest(scene, 8)[:12]
    panel.steps[0].click()
    panel.controls["query"].value = 8
    assert not panel.back.disabled
    panel.back.click()
    assert panel.back.disabled
    assert panel.controls["query"].value == 8


def test_duplicates_of_the_query_are_found_and_the_query_is_not(scene):
    images, features = scene.images[:5], scene.features[:5].clone()
    features[3] = features[1]
    gallery = Gallery(images, features, tuple("abcde"))
    similarity, rows = gallery.alike(1, 4)
    assert rows[0] == 3
    assert similarity[0] == pytest.approx(1, abs=1e-5)
    assert sorted(rows) == [0, 2, 3, 4]
    assert gallery.alike(3, 4)[1][0] == 1
    with pytest.raises(ValueError, match="5 results: choose 1 to 4"):
        gallery.alike(0, 5)
    with pytest.raises(ValueError, match="one row each in all its parts"):
        Gallery(images, features, tuple("abcd"))
