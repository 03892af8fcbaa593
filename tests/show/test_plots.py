"""Pictures show the arrays they were given: positions, lengths, edges and order are read back from the drawing."""

from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.offsetbox import AnnotationBbox
from PIL import Image
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.stats import rankdata, spearmanr

from sagkit.graph import similarity_graph
from sagkit.metrics.ranks import attainable
from sagkit.show import plots


@pytest.fixture(scope="module")
def scene():
    generator = torch.Generator().manual_seed(0)
    graph = similarity_graph(torch.randn(10, 4, generator=generator), k=2)
    images = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8, generator=generator)
    drawn = graph.to_networkx()
    return graph, drawn, plots.graph_layout(drawn), images


def thumbnails(axis) -> list[AnnotationBbox]:
    return [artist for artist in axis.artists if isinstance(artist, AnnotationBbox)]


def test_the_layout_repeats_by_seed(scene):
    _, drawn, xy, _ = scene
    np.testing.assert_array_equal(plots.graph_layout(drawn), xy)
    assert not np.allclose(plots.graph_layout(drawn, seed=1), xy)


def test_a_graph_has_a_thumbnail_at_every_node_and_an_edge_as_thick_as_its_probability(scene):
    graph, drawn, xy, images = scene
    axis = plots.graph_figure(drawn, xy, images).axes[0]
    boxes = thumbnails(axis)
    np.testing.assert_allclose([box.xy for box in boxes], xy)
    np.testing.assert_array_equal(boxes[3].offsetbox.get_data(), images[3].permute(1, 2, 0).numpy())
    (edges,) = (c for c in axis.collections if isinstance(c, LineCollection))
    weights = np.array([w for *_, w in drawn.edges(data="weight")])
    assert len(edges.get_segments()) == int((graph.weights > 0).sum())
    order = np.argsort(edges.get_linewidths())
    assert (np.diff(weights[order]) >= -1e-6).all()


def test_a_walk_has_an_arrow_per_step_and_its_images_in_order(scene):
    _, drawn, xy, images = scene
    path = [4, 7, 4, 2]
    axis, *strip = plots.walk_figure(drawn, xy, images, path).axes
    arrows = [(a.xyann, a.xy) for a in axis.texts if a.arrow_patch is not None]
    expected = [(xy[a], xy[b]) for a, b in ((4, 7), (7, 4), (4, 2))]
    np.testing.assert_allclose(arrows, expected)
    for small, node in zip(strip, path, strict=True):
        np.testing.assert_array_equal(small.images[0].get_array(), images[node].permute(1, 2, 0).numpy())


def test_bars_are_as_long_as_their_figures():
    figures = {"a": {"x": 0.1, "y": -0.2}, "b": {"x": 0.3, "y": 0.4}}
    left, right = plots.comparison(figures, ["x", "y"], ["X", "Y"]).axes
    assert [bar.get_width() for bar in left.patches] == [0.1, 0.3]
    assert [bar.get_width() for bar in right.patches] == [-0.2, 0.4]
    assert [text.get_text() for text in left.texts] == ["0.100", "0.300"]
    assert right.get_xlim()[0] <= -0.2


def test_a_scatter_puts_every_point_under_its_label():
    xy, labels = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 3
    axis = plots.scatter({"map": xy}, labels, ["p", "q", "r"]).axes[0]
    for i, points in enumerate(axis.collections):
        np.testing.assert_array_equal(points.get_offsets(), xy[labels == i])


def test_points_without_a_label_are_the_others():
    xy, labels = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 3 - 1
    others, *named = plots.scatter({"map": xy}, labels, ["p", "q"]).axes[0].collections
    np.testing.assert_array_equal(others.get_offsets(), xy[labels == -1])
    assert [points.get_label() for points in (others, *named)] == ["others", "p", "q"]


def test_twenty_labels_have_twenty_looks():
    xy, labels = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20)
    points = plots.scatter({"map": xy}, labels, [str(i) for i in labels]).axes[0].collections
    looks = {(tuple(p.get_facecolor()[0]), p.get_paths()[0].vertices.tobytes()) for p in points}
    assert len(looks) == 20


def test_intervals_are_as_wide_as_told_and_a_row_without_one_has_no_bar():
    rows = {"a": ([0.1, 0.2, 0.6], 0.3, (0.05, 0.55)), "b": ([1.0, 2.0], 1.5, None)}
    axis = plots.intervals({"Spearman": rows}, nothing=0.0).axes[0]
    drawn = [line.get_xydata() for line in axis.lines]
    np.testing.assert_allclose(drawn[0][:, 0], [0, 0])  # the line of no effect
    np.testing.assert_allclose(drawn[1][:, 0], [0.1, 0.2, 0.6])  # one faint mark a seed
    np.testing.assert_allclose(drawn[2], [[0.05, 0], [0.55, 0]])
    np.testing.assert_allclose(drawn[3], [[0.3, 0]])
    assert [len(xy) for xy in drawn[4:]] == [2, 1]  # seeds and their mean, no bar
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b"]
    assert axis.yaxis_inverted()
    with pytest.raises(ValueError, match="give all panels the same"):
        plots.intervals({"x": rows, "y": {"a": rows["a"]}})


def test_heatmaps_and_curves_hold_their_values():
    matrix = np.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(plots.heatmaps({"m": matrix}).axes[0].images[0].get_array(), matrix)
    for ticks, named in (((), 0), (list("abc"), 3), ([str(i) for i in range(13)], 0)):  # many names would overlap below
        axis = plots.heatmaps({"m": np.eye(13)}, ticks).axes[0]
        assert [len(axis.get_xticks()), len(axis.get_yticks())] == [named, len(ticks)]
    line = plots.curves({"s": ([1, 2], [3, 4])}, "x", "y").axes[0].lines[0]
    np.testing.assert_array_equal(line.get_xydata(), [[1, 3], [2, 4]])


def test_points_that_are_not_joined_have_no_line():
    ticks = {x: plots.curves({"s": (x, [3, 4, 5])}, "x", "y").axes[0].get_xticks() for x in ((1, 2, 3), (1, 2, 2.5))}
    assert [all(tick.is_integer() for tick in found) for found in ticks.values()] == [True, False]
    line = plots.curves({"s": ([1, 2], [3, 4])}, "x", "y", joined=False).axes[0].lines[0]
    assert (line.get_linestyle(), line.get_marker()) == ("None", "o")


def test_point_graphs_number_their_nodes_and_give_them_their_share_of_area(scene):
    _, drawn, xy, _ = scene
    shares = np.arange(10) / 45
    panels = {"all alike": drawn, "by share": drawn}
    axes = plots.point_graphs(panels, xy, {"all alike": np.full(10, 0.1), "by share": shares}).axes
    nodes = [next(c for c in axis.collections if not isinstance(c, LineCollection)) for axis in axes]
    np.testing.assert_allclose(nodes[1].get_offsets(), xy)
    np.testing.assert_allclose(nodes[1].get_sizes() / nodes[1].get_sizes().sum(), shares)
    assert [text.get_text() for text in axes[0].texts] == [str(node) for node in range(10)]
    assert len(set(plots.point_graphs({"plain": drawn}, xy).axes[0].collections[-1].get_sizes())) == 1
    moved = [text.get_position() != (0, 0) for text in axes[1].texts]  # numbers stand beside nodes too small for them
    assert moved == [size < 130 for size in nodes[1].get_sizes()]
    assert len(set(moved)) == 2


def test_a_picture_shows_itself_in_a_notebook_and_is_saved_as_svg_and_png(scene, tmp_path):
    _, drawn, xy, images = scene
    figure = plots.graph_figure(drawn, xy, images)
    plots.save(figure, tmp_path / "deep/name")
    assert (tmp_path / "deep/name.svg").read_text().count("<image") == 10
    for png in ((tmp_path / "deep/name.png").read_bytes(), figure._repr_png_()):
        with Image.open(BytesIO(png)) as picture:
            assert min(picture.size) > 300


def test_the_palette_stays_apart_for_the_colour_blind():
    # Viénot 1999: deuteranopes see colours through this projection of linear RGB.
    view = np.array([[0.29275, 0.70725, -0.02978], [0.29275, 0.70725, 0.02978], [-0.02233, 0.02233, 1.0]])
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in plots.PALETTE[:6]])
    seen = (rgb**2.2) @ view.T
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(gaps) > 0.08


@pytest.fixture(scope="module")
def classes():
    """Six classes in three groups, and two trees over them."""
    x = np.array([0.0, 1.0, 4.0, 4.5, 9.0, 9.2])[:, None]
    left, right = (linkage(y, "average") for y in (x, x[[1, 0, 5, 4, 3, 2]]))
    return left, right, list("abcdef"), [0, 0, 1, 1, 2, 2]


def test_two_trees_have_every_name_once_on_either_side_and_a_line_between_its_two_places(classes):
    left, right, names, groups = classes
    one, two, middle = plots.trees(left, right, names, groups).axes
    for axis, tree in ((one, left), (two, right)):
        order = [names[i] for i in leaves_list(tree)]
        texts = sorted((t for t in axis.texts), key=lambda t: t.get_position()[1])
        assert [t.get_text() for t in texts] == order
        heights = {round(float(line.get_xdata().max()), 9) for line in axis.lines if len(line.get_xdata()) == 4}
        assert heights == {round(h, 9) for h in tree[:, 2]}
    places = {t.get_text(): t.get_position()[1] for t in one.texts}
    others = {t.get_text(): t.get_position()[1] for t in two.texts}
    joined = {tuple(line.get_ydata()) for line in middle.lines}
    assert joined == {(places[name], others[name]) for name in names}
    with pytest.raises(ValueError, match="6 and 6 leaves, 5 names"):
        plots.trees(left, right, names[:5], groups)


def test_branches_of_one_group_alone_have_its_colour_and_others_are_grey(classes):
    left, right, names, groups = classes
    branches = [line for line in plots.trees(left, right, names, groups).axes[0].lines if len(line.get_xdata()) == 4]
    colours = {round(float(line.get_xdata().max()), 6): line.get_color() for line in branches}
    low, high = np.sort(left[:, 2])[:3], np.sort(left[:, 2])[3:]
    assert len({colours[round(h, 6)] for h in low}) == 3
    assert {colours[round(h, 6)] for h in high} == {plots.FAINT}


def test_class_matrices_are_in_the_order_given_with_a_border_round_each_group():
    matrix, order, groups = np.arange(16.0).reshape(4, 4), [2, 0, 3, 1], ["x", "y", "x", "y"]
    axis = plots.class_matrices({"m": matrix}, order, groups).axes[0]
    shown = axis.images[0].get_array()
    for i in range(4):
        for j in range(4):
            assert np.ma.is_masked(shown[i, j]) if i == j else shown[i, j] == matrix[order[i], order[j]]
    corners = {(line.get_xdata().min(), line.get_xdata().max()) for line in axis.lines}
    assert corners == {(-0.5, 1.5), (1.5, 3.5)}
    ranked = plots.class_matrices({"m": matrix}, order, groups, ranks=True).axes[0].images[0].get_array()
    off = ~np.eye(4, dtype=bool)
    wanted = rankdata(matrix[np.ix_(order, order)][off]) / 12
    np.testing.assert_allclose(np.asarray(ranked[off], dtype=float), wanted)


def test_a_trade_off_names_every_point_without_overlap_and_has_the_ends_of_intervals():
    points = {f"method {i}": {"x": 0.3 + i / 1000, "y": 0.1, "y_low": 0.08, "y_high": 0.13} for i in range(6)}
    figure = plots.tradeoff(points, floor=(0.02, 0.005))
    axis = figure.axes[0]
    figure.draw_without_rendering()
    labels = [text for text in axis.texts if text.get_text() in points]
    assert {text.get_text() for text in labels} == points.keys()
    boxes = [text.get_window_extent() for text in labels]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    ends = [segment for c in axis.collections if isinstance(c, LineCollection) for segment in c.get_segments()]
    assert {tuple(segment[:, 1].round(6)) for segment in ends} == {(0.08, 0.13)}


def test_the_names_of_a_trade_off_keep_off_the_intervals_of_others():
    points = {
        name: {"x": x, "y": 0.1, "y_low": 0.05, "y_high": 0.2}
        for name, x in (("the first method", 0.28), ("the other", 0.3))
    }
    figure = plots.tradeoff(points | {"far": {"x": 0.1, "y": 0.1}})
    axis = figure.axes[0]
    figure.draw_without_rendering()
    for text in axis.texts:
        box = text.get_window_extent()
        for point in points.values():
            x, low = axis.transData.transform((point["x"], point["y_low"]))
            high = axis.transData.transform((point["x"], point["y_high"]))[1]
            assert not (box.x0 < x < box.x1 and low < box.y1 and box.y0 < high), text.get_text()


def test_a_validity_scatter_puts_kinds_apart_and_says_each_correlation():
    rng = np.random.default_rng(0)
    semantic, kinds = rng.normal(size=30), np.array(["trained", "noise"])[rng.integers(2, size=30)]
    panels = {"good": semantic + 0.1 * rng.normal(size=30), "bad": rng.normal(size=30)}
    axes = plots.validity_scatter(panels, semantic, kinds, np.stack([semantic - 1, semantic + 1], axis=1)).axes
    for axis, (name, scores) in zip(axes, panels.items(), strict=False):
        assert axis.get_title(loc="left") == f"{name}\nSpearman {spearmanr(scores, semantic).statistic:+.2f}"
        for container in axis.containers:
            chosen = kinds == container.get_label()
            np.testing.assert_array_equal(container.lines[0].get_xdata(), scores[chosen])
            np.testing.assert_array_equal(container.lines[0].get_ydata(), semantic[chosen])


def test_the_ceiling_under_ties_is_that_of_the_metrics():
    values = {"all apart": np.arange(40), "two levels": np.arange(40) % 4 > 0, "five": np.arange(40) % 5}
    for axis, (name, v) in zip(plots.tie_ceiling(values).axes, values.items(), strict=True):
        found = float(axis.get_title(loc="left").split("ceiling ")[1].split(",")[0])
        code = np.unique(v, return_inverse=True)[1]
        assert found == pytest.approx(attainable(code)[0], abs=6e-4), name
        best, wanted = axis.lines[1].get_data()
        assert (np.diff(wanted) >= 0).all()
        assert np.corrcoef(best, wanted)[0, 1] == pytest.approx(found, abs=6e-4)


def test_a_trial_map_has_each_trial_once_and_marks_and_joins_the_ones_it_is_told():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.1, 0.4, 0.2, 0.3])
    panels = {"a": (x, y, "cost", "gain"), "b": (y, x, "gain", "cost")}
    figure = plots.trial_map(panels, ["tpe", "random", "tpe", "random"], {"best": 1, "default": 0}, {"a": [0, 1]})
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert drawn["tpe"] == [[1.0, 0.1], [3.0, 0.2]]
    assert drawn["random"] == [[2.0, 0.4], [4.0, 0.3]]
    assert (drawn["best"], drawn["default"]) == ([[2.0, 0.4]], [[1.0, 0.1]])
    assert drawn["front"] == [[1.0, 0.1], [2.0, 0.4]]
    assert "front" not in {line.get_label() for line in figure.axes[1].lines}
    assert [text.get_text() for text in figure.legends[0].texts] == ["front", "tpe", "random", "best", "default"]
    looks = [(line.get_marker(), line.get_color()) for line in figure.axes[0].lines[1:]]
    assert len(set(looks)) == 4


def test_a_method_looks_the_same_in_every_picture_and_no_other_looks_like_it():
    from sagkit.show.plots.style import looks

    names = ["SAG-VICReg", "sag-vicreg (random)", "VICReg", "another"]
    assert looks(names)[0] == looks(["x", "y", "sag-vicreg"])[2] == (plots.PALETTE[1], "s")
    assert looks(names)[2] == looks(["vicreg"])[0]
    assert len(set(looks(names))) == 4
    assert len(set(looks([f"row {i}" for i in range(8)]))) == 8
    for colour in plots.PALETTE:  # readable on white: at least 2 to 1, where yellow has 1.3
        light = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in light]
        assert 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05) > 2
