"""Still pictures and picture boards show true figures, and refuse impossible settings in words."""

import re
from base64 import b64decode

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cophenet, fcluster
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score

from sagkit.data.load import make_shapes
from sagkit.graph import similarity_graph
from sagkit.loss import sag_vicreg_loss
from sagkit.show import plots, scenes, widgets
from sagkit.show.answers import Explorer, Setting
from sagkit.walk import sample_pairs


@pytest.fixture(scope="module")
def scene():
    batch = make_shapes(60, size=16, seed=0)
    features = batch.images.flatten(1).float() @ torch.randn(768, 12, generator=torch.Generator().manual_seed(0)) / 255
    return scenes.make_scene(batch.images, batch.labels, batch.class_names, features)


@pytest.fixture(scope="module")
def bare(scene):
    return scenes.make_scene(scene.images, None, (), scene.features, names=[f"folder/{i}.png" for i in range(60)])


@pytest.fixture(scope="module")
def projections():
    za = torch.randn(60, 5, generator=torch.Generator().manual_seed(1))
    return za, za + 0.3 * torch.randn(60, 5, generator=torch.Generator().manual_seed(2))


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))]


def texts(figure) -> str:
    return " ".join(text.get_text() for axis in figure.axes for text in (*axis.texts, axis.title))


def test_the_graphs_figures_are_those_of_loops(scene):
    k = 3
    unit = torch.nn.functional.normalize(scene.features - scene.features.mean(0), dim=1)
    near = [
        set(sorted((j for j in range(60) if j != i), key=lambda j: -float(unit[i] @ unit[j]))[:k]) for i in range(60)
    ]
    edges = [(i, j) for i in range(60) for j in near[i] if i in near[j]]
    alone = 60 - len({i for i, _ in edges})
    found = numbers(scenes.graph_view(scene, k, mutual=True, anchor=edges[0][0]).says)
    assert (found[0], found[2]) == (len(edges), alone)


def test_a_still_walk_is_the_one_that_explore_shows_and_its_nodes_are_numbered_on_top(scene):
    setting = Setting(anchor=11, k=10, length=5, seed=4)
    found = Explorer(scene, setting).answer(setting)
    path = [step["row"] for step in found["walk"]["steps"]]
    figure = scenes.walk_view(scene, start=11, length=5, seed=4, k=10)
    assert " → ".join(map(str, path)) in figure.says
    assert f"weighs {found['walk']['weight']:.2f}" in figure.says or path[-1] == 11
    left = figure.axes[0]
    badges = [text for text in left.texts if text.get_bbox_patch() is not None]
    numbered = sorted(int(step) for badge in badges for step in badge.get_text().split("·"))
    assert numbered == list(range(6))
    images = {image.get_extent()[0] + image.get_extent()[1]: image.get_zorder() for image in left.images}
    arrows = [text.get_zorder() for text in left.texts if getattr(text, "arrow_patch", None)]
    visited = {2 * node["place"][0] for node in found["nodes"] if node["row"] in path}
    assert min(order for x, order in images.items() if any(np.isclose(x, visited_x) for visited_x in visited)) > max(
        order for x, order in images.items() if not any(np.isclose(x, visited_x) for visited_x in visited)
    )
    assert arrows
    assert min(badge.get_zorder() for badge in badges) > max(arrows)


def test_a_legend_lies_outside_the_axes(scene):
    for figure in (scenes.graph_view(scene, 5), scenes.walk_view(scene, 5, 3)):
        figure.canvas.draw()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert not any(axis.get_window_extent().overlaps(box) for axis in figure.axes if axis.axison)


def test_the_boards_purity_is_a_count_over_its_pairs(scene):
    for length, k, alpha in ((1, 3, 0.5), (4, 8, 2.0)):
        text = scenes.pairing_view(scene, 5, length, k, alpha, walks=8).says
        pairs = sample_pairs(similarity_graph(scene.features, k), length, 8, torch.Generator().manual_seed(0))
        counted = [(i, j, w) for i, j, w in zip(*(part.tolist() for part in pairs), strict=True) if i != j]
        expected = []
        for of in (scene.labels.tolist(), scene.groups.tolist()):
            expected.append(sum(of[i] == of[j] for i, j, _ in counted) / len(counted))
        for of in (scene.labels.tolist(), scene.groups.tolist()):
            expected.append(sum(w * (of[i] == of[j]) for i, j, w in counted) / sum(w for *_, w in counted))
        mine = [(j, w) for i, j, w in zip(*(part.tolist() for part in pairs), strict=True) if i == 5]
        found = numbers(text)
        assert found[0] == len({j for j, _ in mine} - {5})
        np.testing.assert_allclose(found[2:6], expected, atol=6e-3)
        assert found[7] == pytest.approx(alpha * sum(w for _, w in mine) / 8, abs=6e-3)


@pytest.mark.slow  # draws a board
def test_pictures_of_images_without_classes_say_nothing_of_classes(bare):
    for figure in (
        scenes.graph_view(bare, 5),
        scenes.walk_view(bare, 5, 3),
        scenes.pairing_view(bare, 5, 2),
        scenes.search_view(bare, 5),
    ):
        assert "class" not in figure.says + texts(figure)
    with pytest.raises(ValueError, match="a tree of classes needs labels"):
        scenes.dendrogram_view(bare, 3)


def test_impossible_stills_are_refused_in_words(scene):
    alone = int((similarity_graph(scene.features, 1, mutual=True).neighbors[:, 0] == torch.arange(60)).nonzero()[0])
    for draw, words in (
        (lambda: scenes.pairing_view(scene, alone, 2, k=1, mutual=True), f"image {alone} has no pair"),
        (lambda: scenes.pairing_view(scene, 1000, 2), "image 1000 is not there: choose 0 to 59"),
        (lambda: scenes.pairing_view(scene, 0, 2, alpha=-1.0), "alpha must be at least 0"),
        (lambda: scenes.walk_view(scene, 60, 2), "image 60 is not there"),
        (lambda: scenes.search_view(scene, 0, 13), "13 results: choose 1 to 12"),
        (lambda: scenes.dendrogram_view(scene, 28), "27 classes cannot be cut into 28 clusters"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            draw()


def test_a_search_finds_what_loops_find_and_counts_its_class(scene):
    x = scene.features.double() - scene.features.double().mean(dim=0)
    cosine = [float(x[8] @ x[i] / x[8].norm() / x[i].norm()) for i in range(60)]
    expected = sorted((i for i in range(60) if i != 8), key=lambda i: -cosine[i])[:12]
    figure = scenes.search_view(scene, 8)
    same = sum(int(scene.labels[i] == scene.labels[8]) for i in expected)
    assert f"{same} of 12 share its class" in figure.says
    assert f"from {cosine[expected[0]]:.2f} down to {cosine[expected[-1]]:.2f}" in figure.says
    words = texts(figure)
    assert all(f"{n + 1} · {cosine[i]:.2f}" in words for n, i in enumerate(expected))


def test_numbers_have_their_plurals():
    assert [scenes.counted(n, "edge") for n in (0, 1, 2000)] == ["0 edges", "1 edge", "2,000 edges"]
    assert scenes.counted(2, "class", "classes") == "2 classes"


def asked(board, **setting) -> dict:
    return board.ask({"about": "answer", "setting": board.ask({"about": "begin"})["setting"] | setting})


def drawn(answer) -> str:
    return b64decode(answer["url"].split(",")[1]).decode()


@pytest.mark.slow  # draws a board many times
def test_a_picture_board_draws_every_move_and_tells_a_refusal(scene, projections):
    for board, moves in (
        (widgets.loss_explorer(*projections, scene.features), {"alpha": 0.8, "k": 3, "length": 5, "keep": False}),
        (widgets.dendrogram_cutter(scene), {"clusters": 7, "method": "ward"}),
    ):
        begin = board.ask({"about": "begin"})
        assert {control["name"] for control in begin["controls"]} == set(moves) == set(begin["setting"])
        first = asked(board)
        assert drawn(first).count("<svg") == 1
        assert all(drawn(asked(board, **{name: value})) != drawn(first) for name, value in moves.items())
        assert "run this cell in JupyterLab" in repr(board)
    assert "28 clusters" in asked(board, clusters=28)["refused"]


def test_a_board_begins_with_the_values_it_is_given(scene):
    board = widgets.dendrogram_cutter(scene, clusters=5, method="ward")
    assert board.ask({"about": "begin"})["setting"] == {"clusters": 5, "method": "ward"}
    with pytest.raises(ValueError, match="no control for 'cut': choose from clusters, method"):
        widgets.dendrogram_cutter(scene, cut=5)
    with pytest.raises(ValueError, match="unknown linkage 'x'"):
        widgets.dendrogram_cutter(scene, method="x")


@pytest.mark.slow  # draws a board many times
def test_every_end_of_a_boards_controls_is_possible(scene, projections):
    few = scenes.make_scene(scene.images[:4], scene.labels[:4], scene.class_names, scene.features[:4])
    za, zb = (part[:4] for part in projections)
    for board in (widgets.dendrogram_cutter(few), widgets.loss_explorer(za, zb, few.features)):
        for control in board.ask({"about": "begin"})["controls"]:
            for end in control.get("options") or [control[e] for e in ("min", "max") if e in control]:
                assert "refused" not in asked(board, **{control["name"]: end})


def test_a_fault_of_the_code_is_not_hidden():
    def broken(x):
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        widgets.picture_board(broken, [widgets.tick_of("x", "x", True)], "test", {})


def test_the_losss_figures_are_those_of_the_loss_and_of_autograd(scene, projections):
    za, zb = projections
    pairs = sample_pairs(similarity_graph(scene.features, 10), 2, 1, torch.Generator().manual_seed(0))
    found = numbers(scenes.loss_view(za, zb, scene.features, alpha=0.7).says)
    assert found[0] == pytest.approx(float(sag_vicreg_loss(za, zb, pairs, 0.7).total), abs=1e-3)
    z = torch.stack([za, zb]).requires_grad_()
    with_walk, without = (sag_vicreg_loss(z[0], z[1], pairs, alpha).total for alpha in (0.7, 0.0))
    (walk,) = torch.autograd.grad(with_walk - without, z)
    assert found[3] == pytest.approx(float(walk.norm()), rel=1e-2)


def test_the_trees_cut_is_scipys_on_cosine_free_loops(scene):
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
    text = scenes.dendrogram_view(scene, 5).says
    assert numbers(text)[2] == pytest.approx(adjusted_rand_score(family, member), abs=6e-4)


def test_a_dendrogram_is_drawn_at_its_heights_and_cut_where_it_says():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(9, 2))
    tree = scenes.linkage(points, "average")
    axis = plots.dendrogram(tree, [f"leaf {i}" for i in range(9)], cut=3).axes[0]
    tops = sorted(line.get_ydata()[1] for line in axis.lines[:8])
    np.testing.assert_allclose(tops, sorted(set(squareform(cophenet(tree)).flatten()) - {0.0}))
    for cut in range(2, 10):  # the last one too: nine leaves in nine clusters, below every join
        drawn = plots.dendrogram(tree, [f"leaf {i}" for i in range(9)], cut=cut).axes[0]
        level = drawn.lines[8].get_ydata()[0]
        assert (tree[:, 2] > level).sum() == cut - 1
    member = dict(zip((f"leaf {i}" for i in range(9)), fcluster(tree, 3, "maxclust"), strict=True))
    labels = [tick.get_text().split(" · ") for tick in axis.get_xticklabels()]
    assert len({(number, member[name]) for number, name in labels}) == 3


def test_a_scene_has_the_superclasses_its_names_tell_of(scene):
    families = [scene.class_names[label].split("/")[0] for label in scene.labels]
    assert [scene.group_names[group] for group in scene.groups] == families
    flat = scenes.make_scene(scene.images, scene.labels % 2, ("a", "b"), scene.features)
    assert flat.groups is None
    assert flat.names[:2] == (f"{'ab'[scene.labels[0] % 2]} 0", f"{'ab'[scene.labels[1] % 2]} 1")
    with pytest.raises(ValueError, match="one row each in all its parts"):
        scenes.make_scene(scene.images, scene.labels, scene.class_names, scene.features[:5])
