"""Pictures show the arrays they were given: positions, lengths, edges and order are read back from the drawing."""

from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.offsetbox import AnnotationBbox
from PIL import Image

from sagkit import plots
from sagkit.graph import similarity_graph


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
    line = plots.curves({"s": ([1, 2], [3, 4])}, "x", "y").axes[0].lines[0]
    np.testing.assert_array_equal(line.get_xydata(), [[1, 3], [2, 4]])


def test_points_that_are_not_joined_have_no_line():
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
