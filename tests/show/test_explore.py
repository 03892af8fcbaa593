"""What `explore` shows is what loops, the kit's own walks and counts say; whoever asks hears the same."""

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import asdict
from io import BytesIO
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

import sagkit
from sagkit.data.load import ImageSet, make_shapes
from sagkit.graph import KERNELS, graph_of_neighbors, nearest_neighbors, similarity_graph
from sagkit.model import make_encoder
from sagkit.show import maps
from sagkit.show.answers import SECOND, Explorer, Setting
from sagkit.show.explore import features_of, image_set, make_explorer
from sagkit.show.serve import Opening, Server
from sagkit.show.widgets import Board
from sagkit.train.record import save_encoder
from sagkit.walk import sample_pairs

N = 60


@pytest.fixture(scope="module")
def batch() -> ImageSet:
    return make_shapes(N, size=16, seed=0)


@pytest.fixture(scope="module")
def features(batch):
    return batch.images.flatten(1).float() @ torch.randn(768, 12, generator=torch.Generator().manual_seed(0)) / 255


@pytest.fixture(scope="module")
def explorer(batch, features) -> Explorer:
    return make_explorer(batch, features, progress=False)


def ranked(features, i) -> list[int]:
    """The other images by cosine of centred features, most similar first."""
    x = features.double() - features.double().mean(dim=0)
    cosine = [float(x[i] @ x[j] / x[i].norm() / x[j].norm()) for j in range(len(x))]
    return sorted((j for j in range(len(x)) if j != i), key=lambda j: -cosine[j])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mutual", [False, True])
def test_one_wide_search_gives_the_graph_of_every_k(features, kernel, mutual):
    unit = features - features.mean(dim=0)
    similarity, neighbors = nearest_neighbors(unit / unit.norm(dim=1, keepdim=True), 20)
    for k in (1, 7, 20):
        wide = graph_of_neighbors(similarity[:, :k], neighbors[:, :k], kernel, 0.2, mutual)
        narrow = similarity_graph(features, k, kernel, 0.2, mutual)
        assert torch.equal(wide.neighbors, narrow.neighbors)
        torch.testing.assert_close(wide.weights, narrow.weights)


@pytest.mark.parametrize("setting", [Setting(anchor=9), Setting(anchor=31, k=3, length=2, mutual=True, seed=5)])
def test_neighbours_look_alikes_and_edges_are_those_of_loops(explorer, features, setting):
    found = explorer.answer(setting)
    near = {i: ranked(features, i)[: setting.k] for i in range(N)}
    kept = {i: [j for j in near[i] if not setting.mutual or i in near[j]] for i in range(N)}
    ring = {node["row"]: node["ring"] for node in found["nodes"]}
    assert [row for row, steps in ring.items() if steps == 0] == [setting.anchor]
    assert {row for row, steps in ring.items() if steps == 1} == set(kept[setting.anchor])
    two_steps = {j for i in kept[setting.anchor] for j in kept[i]} - {setting.anchor, *kept[setting.anchor]}
    second = {row for row, steps in ring.items() if steps == 2}
    assert second <= two_steps
    assert len(second) == min(SECOND, len(two_steps))
    assert {step["row"] for step in found["walk"]["steps"]} <= set(ring)
    drawn = {frozenset((edge["from"], edge["to"])): edge for edge in found["edges"]}
    assert drawn.keys() == {frozenset((i, j)) for i in ring for j in kept[i] if j in ring}
    for ends, edge in drawn.items():
        i, j = tuple(ends)
        assert edge["mutual"] == (j in kept[i] and i in kept[j])
    assert [item["row"] for item in found["alike"]] == ranked(features, setting.anchor)[:12]
    alone = sum(not kept[i] for i in range(N))
    edges = sum(map(len, kept.values()))
    assert (found["graph"]["isolated"], found["graph"]["edges"]) == (alone, edges)


def test_an_edge_and_an_image_say_what_they_share(explorer, batch):
    family = [name.split("/")[0] for name in batch.class_names]
    labels = batch.labels.tolist()

    def shared(a, b):
        if labels[a] == labels[b]:
            return "class"
        return "superclass" if family[labels[a]] == family[labels[b]] else "neither"

    found = explorer.answer(Setting(anchor=4, k=8))
    assert {edge["same"] for edge in found["edges"]} == {"class", "superclass", "neither"}
    assert all(edge["same"] == shared(edge["from"], edge["to"]) for edge in found["edges"])
    for part in ("nodes", "alike", "pairs"):
        assert all(item["same"] == shared(4, item["row"]) for item in found[part])


def test_walks_are_those_that_pairs_are_sampled_from_and_their_steps_are_edges(explorer, features):
    setting = Setting(anchor=11, k=6, length=5, restart=0.3, walks=8, seed=4)
    graph = similarity_graph(features, 6)
    pairs = sample_pairs(graph, 5, 8, torch.Generator().manual_seed(4), restart=0.3)
    mine = pairs.anchor == 11
    found = explorer.answer(setting)
    expected: dict[int, float] = {}
    for end, weight in zip(pairs.positive[mine].tolist(), pairs.weight[mine].tolist(), strict=True):
        if end != 11:
            expected[end] = expected.get(end, 0.0) + weight
    assert {pair["row"] for pair in found["pairs"]} == set(expected)
    for pair in found["pairs"]:
        assert pair["weight"] == pytest.approx(expected[pair["row"]], abs=1e-4)
    assert found["home"] == int((pairs.positive[mine] == 11).sum())
    ends, restarts = [], 0
    for number in range(8):
        walk = explorer.answer(Setting(**{**asdict(setting), "walk": number}))["walk"]
        rows = [step["row"] for step in walk["steps"]]
        ends.append(rows[-1])
        for before, step in zip(rows, walk["steps"][1:], strict=False):
            restarts += step["restart"]
            if step["restart"]:
                assert step["row"] == 11
            else:
                slot = graph.neighbors[before].tolist().index(step["row"])
                assert step["probability"] == pytest.approx(float(graph.weights[before, slot]), abs=1e-4)
                assert step["similarity"] == pytest.approx(float(graph.similarity[before, slot]), abs=1e-4)
        assert walk["weight"] == pytest.approx(float(pairs.weight[mine][number]), abs=1e-4)
    assert ends == pairs.positive[mine].tolist()
    assert restarts > 0
    for pair in found["pairs"]:
        assert [ends[number] for number in pair["walks"]] == [pair["row"]] * len(pair["walks"])


def test_a_longer_walk_of_a_seed_goes_on_from_the_shorter(explorer):
    short, long = (explorer.answer(Setting(length=length))["walk"]["steps"] for length in (3, 7))
    assert long[:4] == short


def test_purity_is_a_count_over_all_pairs(explorer, batch, features):
    pairs = sample_pairs(similarity_graph(features, 3), 2, 8, torch.Generator().manual_seed(0))
    counted = [(i, j, w) for i, j, w in zip(*(part.tolist() for part in pairs), strict=True) if i != j]
    labels = batch.labels.tolist()
    family = [batch.class_names[label].split("/")[0] for label in labels]
    found = explorer.answer(Setting(k=3, length=2, walks=8))["purity"]
    assert [row["kind"] for row in found] == ["class", "superclass"]
    for row, of in zip(found, (labels, family), strict=True):
        assert row["share"] == pytest.approx(sum(of[i] == of[j] for i, j, _ in counted) / len(counted))
        weight = sum(w for *_, w in counted)
        assert row["weighted"] == pytest.approx(sum(w * (of[i] == of[j]) for i, j, w in counted) / weight)
        others = sum(of[i] == of[j] for i in range(N) for j in range(N) if i != j)
        assert row["chance"] == pytest.approx(others / (N * (N - 1)))


def test_a_batch_is_a_graph_of_its_own_images(explorer, batch, features):
    rows = (3, 5, 8, 9, 14, 20, 33, 41, 50, 59)
    found = explorer.answer(Setting(anchor=20, k=4, batch=rows))
    alone = make_explorer(batch.subset(list(rows)), features[list(rows)], progress=False)
    expected = alone.answer(Setting(anchor=5, k=4))
    assert [item["row"] for item in found["alike"]] == [rows[item["row"]] for item in expected["alike"]]
    assert found["purity"] == expected["purity"]
    assert found["images"] == 10
    assert [step["row"] for step in found["walk"]["steps"]] == [rows[s["row"]] for s in expected["walk"]["steps"]]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"anchor": 60}, "image 60 is not there: choose 0 to 59"),
        ({"anchor": -1}, "image -1 is not there"),
        ({"anchor": 1, "batch": [0, 2, 4]}, "image 1 is not in the batch: choose one of its 3"),
        ({"anchor": 0, "batch": [0, 2, 4]}, "k = 10 neighbours need 1 <= k < nodes = 3"),
        ({"batch": [0]}, "a batch of 1 has no neighbours"),
        ({"batch": [0, 1, 99]}, "names images that are not there"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": 40}, "40 neighbours: this view searched for 30 at most"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"restart": 1}, "restart must be in [0, 1), got 1.0"),
        ({"temperature": 0.0}, "temperature must be greater than 0"),
        ({"kernel": "cubic"}, "unknown kernel 'cubic'"),
        ({"walks": 0}, "walks per image must be at least 1"),
        ({"walk": 16}, "walk 16 is not among the 16"),
        ({"pace": 1}, "no setting 'pace': choose from anchor"),
        ({"k": "10"}, "k = '10' is not of the kind of its default, 10"),
        ({"mutual": 1}, "mutual = 1 is not of the kind"),
        ({"batch": "all"}, "batch = 'all' is not of the kind"),
    ],
)
def test_a_setting_that_is_not_possible_is_refused_in_words(explorer, setting, words):
    assert words in explorer.ask({"about": "answer", "setting": setting})["refused"]
    assert "refused" not in explorer.ask({"about": "answer", "setting": {}})


@pytest.mark.slow  # draws many views
def test_every_end_of_every_control_is_possible(batch, features):
    for n in (2, 5, N):
        explorer = make_explorer(batch.subset(slice(n)), features[:n], progress=False)
        for control in explorer.controls():
            for end in control.get("options") or [control[e] for e in ("min", "max") if e in control]:
                answer = explorer.ask({"about": "answer", "setting": {**asdict(explorer.first), control["name"]: end}})
                assert "refused" not in answer, (n, control["name"], end)


def test_without_labels_nothing_is_said_of_classes_and_with_flat_ones_nothing_of_superclasses(batch, features):
    bare = make_explorer(batch.images, features, progress=False)
    found = bare.answer(Setting(anchor=3))
    assert found["purity"] == []
    assert "stays" not in found["graph"]
    assert {item["same"] for part in ("nodes", "edges", "alike", "pairs") for item in found[part]} == {""}
    assert bare.begin()["labels"] is None
    flat = make_explorer(batch.images, features, labels=batch.labels % 3, class_names="abc", progress=False)
    found = flat.answer(Setting(anchor=3))
    assert [row["kind"] for row in found["purity"]] == ["class"]
    assert {edge["same"] for edge in found["edges"]} == {"class", "neither"}


def test_all_that_is_said_can_be_written_as_json_and_an_answer_repeats(explorer):
    for question in ({"about": "begin"}, {"about": "answer", "setting": {"anchor": 2}}, {"about": "x"}):
        answer = explorer.ask(question)
        assert json.loads(json.dumps(answer, allow_nan=False)) == json.loads(json.dumps(explorer.ask(question)))


def test_the_code_of_a_setting_makes_the_same_view(batch, features):
    explorer = make_explorer(batch, features, progress=False)
    setting = Setting(anchor=7, k=5, length=3, kernel="shared", restart=0.2, mutual=True, batch=tuple(range(5, 40)))
    view, pairing = explorer.code(setting).splitlines()
    board = eval(view, {"sagkit": sagkit, "images": batch, "features": features})
    again = board.ask({"about": "answer", "setting": board.ask({"about": "begin"})["setting"]})
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(explorer.answer(setting)))
    walk = eval(pairing)
    assert (walk.k, walk.length, walk.kernel, walk.restart, walk.mutual) == (5, 3, "shared", 0.2, True)


def decoded(url: str) -> np.ndarray:
    with urllib.request.urlopen(url) as data, Image.open(BytesIO(data.read())) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_pictures_are_the_images_and_never_larger(explorer, batch):
    small, large = explorer.pictures([4, 9]), explorer.pictures([4], side=8)
    assert decoded(large["urls"][0]).shape == (8, 8, 3)
    for row, url in zip((4, 9), small["urls"], strict=True):
        assert np.abs(decoded(url) - batch.images[row].permute(1, 2, 0).numpy()).mean() < 6
    assert "image 60 is not there" in explorer.ask({"about": "pictures", "rows": [60]})["refused"]


def arrays_of(batch):
    images = batch.images
    return {
        "channels first": images,
        "numpy, channels last": images.permute(0, 2, 3, 1).numpy(),
        "floats": images.float() / 255,
        "ImageSet": batch,
    }


@pytest.mark.parametrize("kind", ["channels first", "numpy, channels last", "floats", "ImageSet"])
def test_images_of_every_kind_are_the_same_images(batch, kind):
    assert torch.equal(image_set(arrays_of(batch)[kind])[0].images, batch.images)


def test_grey_images_have_three_equal_channels_and_wrong_ones_are_refused(batch):
    grey = image_set(batch.images[:, 0])[0].images
    assert torch.equal(grey[:, 2], batch.images[:, 0])
    with pytest.raises(ValueError, match=r"floats must lie in \[0, 1\], got 0 to 255"):
        image_set(batch.images.float())
    with pytest.raises(ValueError, match="images must be uint8"):
        image_set(np.zeros((5, 7)))
    with pytest.raises(ValueError, match="1 image: at least 2"):
        image_set(batch.images[:1])


def test_labels_may_be_names(batch):
    named, source = image_set(batch.images, [batch.class_names[i] for i in batch.labels])
    assert [named.class_names[i] for i in named.labels] == [batch.class_names[i] for i in batch.labels]
    assert source == "images, labels=labels"


def test_a_folder_keeps_its_names_and_is_called_so_in_code(batch, tmp_path, monkeypatch):
    monkeypatch.setenv("SAGKIT_CACHE", str(tmp_path / "cache"))
    for i in range(6):
        path = tmp_path / f"photos/{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(batch.images[i].permute(1, 2, 0).numpy()).save(path)
    explorer = make_explorer(tmp_path / "photos", progress=False)
    assert explorer.scene.names == ("a/0.png", "a/2.png", "a/4.png", "b/1.png", "b/3.png", "b/5.png")
    assert explorer.scene.class_names == ("a", "b")
    assert explorer.first.k == 5
    assert explorer.code(explorer.first).startswith(f"sagkit.explore('{tmp_path}/photos', k=5)")


def test_features_come_from_whatever_stands_for_an_encoder(batch, tmp_path):
    network = make_encoder("resnet10-w4").eval()
    save_encoder(tmp_path / "e.safetensors", network, "resnet10-w4")
    module, name = features_of(batch.images, network)
    stored, _ = features_of(batch.images, tmp_path / "e.safetensors")
    torch.testing.assert_close(stored, module, atol=1e-2, rtol=1e-2)  # stored in half precision
    assert name == "Encoder"
    given, _ = features_of(batch.images, module.numpy())
    assert torch.equal(given, module)
    pixels, name = features_of(batch.images, None)
    flat = batch.images.flatten(1).double() / 255
    expected = torch.cdist(flat, flat)  # 59 components hold all that 60 images differ in
    torch.testing.assert_close(torch.cdist(pixels, pixels).double(), expected, atol=1e-2, rtol=1e-2)
    assert name == "pixels"
    with pytest.raises(ValueError, match=r"features must be \(60, F\)"):
        features_of(batch.images, module[:5])
    with pytest.raises(ValueError, match="no encoder at nowhere"):
        features_of(batch.images, "nowhere")


def test_any_timm_network_is_an_encoder(batch):
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    found, _ = features_of(batch.images[:4], network)
    with torch.no_grad():
        torch.testing.assert_close(found, network.eval()(batch.images[:4].float() / 255), atol=1e-4, rtol=1e-4)


def test_the_plane_is_the_first_two_principal_components(features):
    unit = features - features.mean(dim=0)
    unit = (unit / unit.norm(dim=1, keepdim=True)).double().numpy()
    u, s, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    found = maps.pca_map(features)
    np.testing.assert_allclose(np.abs(found), np.abs(u[:, :2] * s[:2]), atol=1e-4)
    np.testing.assert_array_equal(found, maps.pca_map(features))
    assert maps.pca_map(features[:, :1]).shape == (N, 2)


def test_spread_keeps_order_and_gap_and_moves_as_little_as_can_be():
    wanted = np.array([0.1, 0.12, 2.0, -3.0, 0.11])
    found = maps.spread(wanted, 0.5)
    around = np.argsort(found % (2 * np.pi)).tolist()  # 0, 4, 1, 2, 3 from wherever the circle is cut
    assert around in [[*order[i:], *order[:i]] for order in [[0, 4, 1, 2, 3]] for i in range(5)]
    turned = np.sort(found % (2 * np.pi))
    assert np.diff(turned, append=turned[0] + 2 * np.pi).min() >= 0.5 - 1e-9
    moved = (found - wanted + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(moved[[2, 3]], 0, atol=1e-9)  # those with room stay
    np.testing.assert_allclose(moved[[0, 1, 4]].sum(), 0, atol=1e-9)
    many = np.sort(maps.spread(np.zeros(20), 0.5) % (2 * np.pi))
    np.testing.assert_allclose(np.diff(many), 2 * np.pi / 20)


def test_no_thumbnail_of_a_ring_covers_another(explorer):
    for setting in (Setting(anchor=8), Setting(anchor=8, k=30, length=8)):
        nodes = explorer.answer(setting)["nodes"]
        for one in nodes:
            for other in nodes:
                if one["row"] < other["row"] and one["ring"] == other["ring"]:
                    away = np.hypot(*(np.array(one["place"][:2]) - other["place"][:2]))
                    assert away > 0.9 * one["place"][2]


@pytest.mark.slow  # numba compiles UMAP in a process of its own
def test_the_refined_map_keeps_neighbours_together_and_few_images_keep_their_pca(batch, features):
    explorer = make_explorer(batch, features, progress=False)
    found = explorer.ask({"about": "map"})
    assert found["name"] == "UMAP"
    xy = np.array(found["xy"])
    away = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    near = similarity_graph(features, 5).neighbors.numpy()
    assert np.median(np.take_along_axis(away, near, axis=1)) < 0.7 * np.median(away)
    few = make_explorer(batch.images[:8], features[:8], progress=False)
    assert few.ask({"about": "map"}) == {"name": "PCA, too few images for UMAP"}


def test_a_map_that_cannot_be_made_is_said(explorer, monkeypatch):
    monkeypatch.setattr(maps, "find_spec", lambda name: None)
    assert "umap-learn is not installed" in explorer.ask({"about": "map"})["refused"]


def test_a_widget_answers_as_the_explorer_does_and_a_static_page_shows_a_sentence(explorer, monkeypatch):
    board, sent = Board(explorer.ask, "explore 60 images"), []
    monkeypatch.setattr(board, "send", sent.append)
    question = {"about": "answer", "setting": {"anchor": 5}}
    board._handle_custom_msg({"id": 3, "question": question}, [])
    assert sent == [{"id": 3, "answer": explorer.ask(question)}]
    assert "run this cell in JupyterLab" in repr(board)
    assert "https://" not in board._esm.replace(SVG, "")  # nothing is fetched from elsewhere
    assert "http" not in board._css


SVG = "http://www.w3.org/2000/svg"


def test_explore_begins_with_the_setting_it_is_given_and_refuses_a_wrong_one_at_once(batch, features, capsys):
    board = sagkit.explore(batch, features, anchor=5, k=3, mutual=True)
    assert board.ask({"about": "begin"})["setting"] == asdict(Setting(anchor=5, k=3, mutual=True))
    assert "60 images, given features: ready" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no setting 'start'"):
        sagkit.explore(batch, features, start=5, progress=False)
    with pytest.raises(ValueError, match="k = 60 neighbours"):
        sagkit.explore(batch, features, k=60, progress=False)


@pytest.fixture(scope="module")
def server(explorer):
    with Server(explorer.ask) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def fetch(address: str, question: dict | bytes | None = None, **headers) -> tuple[int, str]:
    data = question if question is None or isinstance(question, bytes) else json.dumps(question).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data, headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.reason


def test_the_page_has_the_same_front_end_and_answers(server, explorer):
    assert server.server_address[0] == "127.0.0.1"
    assert fetch(f"{server.address}board.js") == (200, str(Board._esm))
    assert fetch(f"{server.address}board.css") == (200, str(Board._css))
    assert "page.js" in fetch(server.address)[1]
    question = {"about": "answer", "setting": {"anchor": 5}}
    status, answer = fetch(f"{server.address}ask", question)
    assert (status, json.loads(answer)) == (200, json.loads(json.dumps(explorer.ask(question))))


def test_who_lacks_the_token_or_comes_by_another_name_finds_nothing(server):
    split = urlsplit(server.address)
    root = f"{split.scheme}://{split.netloc}/"
    question = {"about": "begin"}
    for address in (root, f"{root}ask", f"{root}{'x' * len(server.token)}/ask", f"{server.address}../serve.py"):
        assert fetch(address, question)[0] == 404
        assert fetch(address)[0] == 404
    assert fetch(f"{server.address}ask", question, Host="example.org:80")[0] == 404
    assert fetch(server.address, Host="example.org")[0] == 404
    assert fetch(f"{server.address}ask", b"{")[0] == 400


def test_the_page_says_what_is_being_done_until_there_is_an_answer(explorer, capsys):
    opening = Opening()
    assert opening({"about": "ready"}) == {"doing": "starting"}
    made = make_explorer(explorer.scene.images, explorer.scene.features, progress=False, told=opening.tell)
    assert opening({"about": "ready"}) == {"doing": f"{N} images, given features: ready"}
    opening.ask = made.ask
    assert "doing" not in opening({"about": "ready"})
    assert opening({"about": "begin"}) == made.ask({"about": "begin"})
    assert capsys.readouterr().out == ""


def test_the_page_is_served_before_torch_is_imported():
    told = "import sys, sagkit.show.serve; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_principal_components_are_those_of_a_singular_value_decomposition(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(1, -3, shape[1])
    centred = (x - x.mean(dim=0)).double().numpy()
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    expected = u[:, :5] * s[:5]
    expected *= np.sign(expected[np.abs(expected).argmax(axis=0), range(5)])
    np.testing.assert_allclose(maps.principal(x, 5).numpy(), expected, atol=2e-3 * np.abs(expected).max())
