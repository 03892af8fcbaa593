"""Any embedding: every kind of thing has the figures of `evaluate`, a verdict, a row, pictures; errors are one line."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from sagkit.__main__ import main as sagkit
from sagkit.data.load import make_shapes
from sagkit.data.taxonomy import class_distances
from sagkit.metrics.evaluate import evaluate, labelled, references
from sagkit.metrics.labelfree import structure_score
from sagkit.metrics.semantic import random_floor, rank_correlation
from sagkit.metrics.tree import class_tree
from sagkit.model import make_encoder
from sagkit.pilot import assess as module
from sagkit.pilot.assess import assess, assessment_table, draw_tradeoff, main, recorded, summary
from sagkit.pilot.network import network
from sagkit.studies.zoo import gradients, histogram
from sagkit.train.record import read_records, save_encoder

QUICK = {"probe": False, "resamplings": 0}


ROWS = 324  # test images, a dozen of each class


@pytest.fixture(scope="module")
def test_set():
    return make_shapes(ROWS, size=32, seed=1)


@pytest.fixture(scope="module", autouse=True)
def bank(test_set):
    """Few images to train on; these and the test set stand for the whole of `shapes`."""
    few, load = make_shapes(540, size=32, seed=0), module.load_images
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module, "load_images", lambda name, *a, **k: test_set if name == "shapes" else load(name, *a, **k)
        )
        patch.setattr(module, "load_bank", lambda name, root: few)
        yield few


@pytest.fixture(scope="module")
def features(test_set) -> np.ndarray:
    return histogram(test_set.images)


@pytest.fixture(scope="module")
def bare(features):
    return assess(features, "shapes", **QUICK)


@pytest.mark.slow
def test_an_array_with_a_bank_has_the_figures_of_evaluate(bank, test_set, features):
    known = histogram(bank.images)
    found = assess(features, "shapes", bank=known, bank_labels=bank.labels, probe=True, resamplings=20)
    given = (torch.tensor(known), bank.labels, torch.tensor(features), test_set.labels)
    wanted = labelled(*given, "shapes", test_set.class_names, True, 20)
    assert {key: found.figures[key] for key in wanted} == wanted
    assert found.figures.keys() - wanted.keys() == {"floor", "floor_sd", "floor_n"}


@pytest.mark.slow
def test_an_array_alone_is_judged_whole_and_its_halves_serve_each_other(bare, test_set, features):
    reference = references("shapes", test_set.class_names)["tree"]
    wanted = rank_correlation(features, test_set.labels, reference)
    assert bare.figures["spearman_pairs"] == pytest.approx(wanted.spearman)
    assert bare.figures["kendall_pairs"] == pytest.approx(wanted.kendall)
    assert "label_free" not in bare.figures
    assert "needs a second view" in bare.table
    # Each image is its own twin: a bank that held the asked images would answer them all.
    alone = assess(np.eye(270), "shapes", labels=test_set.labels[:270], **QUICK)
    assert alone.figures["knn"] < 0.15


@pytest.mark.slow
def test_the_floor_of_an_array_is_that_of_random_projections_of_the_images(bare, test_set):
    few = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    images, y = test_set.images[few].numpy() / 255, test_set.labels[few].numpy()
    scores = random_floor(images, y, references("shapes", test_set.class_names)["tree"], 64, n_pairs=200_000)
    assert bare.figures["floor"] == pytest.approx(scores.mean(), abs=1e-9)
    gap = (bare.figures["spearman_pairs"] - scores.mean()) / scores.std(ddof=1)
    assert f"by {abs(gap):.1f} sd" in bare.verdict
    assert "10 random projections" in bare.verdict


@pytest.mark.slow
def test_tensors_files_and_a_second_view(tmp_path, bare, features, test_set):
    changed = gradients(test_set.images)
    np.savez(tmp_path / "mine.npz", features=features, changed=changed)
    filed = assess(tmp_path / "mine.npz", "shapes", **QUICK)
    given = assess(torch.tensor(features), "shapes", changed=changed, **QUICK)
    score = structure_score(features, changed).score
    assert filed.name == "mine"
    for found in (filed, given):
        assert found.figures == bare.figures | {"label_free": pytest.approx(score)}


def test_classes_of_ones_own_need_neither_images_nor_names(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)) + np.arange(60)[:, None] % 6, np.arange(60) % 6
    distances = np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0)))
    np.savez(tmp_path / "own.npz", features=x, labels=y, distances=distances)
    found = assess(str(tmp_path / "own.npz"), **QUICK)
    centred = x.astype(np.float32) - x.astype(np.float32).mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    i, j = (a[y[a0] != y[a1]] for a in np.triu_indices(60, 1) for a0, a1 in [np.triu_indices(60, 1)])
    wanted = spearmanr(1 - (unit[i] * unit[j]).sum(axis=1), distances[y[i], y[j]]).statistic
    assert found.figures["spearman_pairs"] == pytest.approx(wanted, abs=1e-5)
    assert found.verdict.startswith("no floor")
    assert found.classes["names"] == list("012345")
    np.testing.assert_allclose(found.classes["tree"], class_tree(x.astype(np.float32), y))
    assert found.picture.axes


@pytest.mark.slow
def test_labels_in_another_order_are_those_of_the_rows(bare, features, test_set):
    shuffled = np.random.default_rng(0).permutation(ROWS)
    found = assess(features[shuffled], "shapes", labels=test_set.labels[shuffled], **QUICK)
    assert found.figures["spearman_pairs"] == pytest.approx(bare.figures["spearman_pairs"], abs=1e-9)
    assert found.verdict.startswith("no floor")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """An encoder of ours beside records of three untrained networks and others that are none of its floor."""
    root = tmp_path_factory.mktemp("results")
    folder = root / "laptop/shapes"
    folder.mkdir(parents=True)
    torch.manual_seed(3)
    save_encoder(folder / "vicreg-seed0.safetensors", make_encoder("resnet10-w4"), "resnet10-w4")
    rows = [(0.01, 0, "resnet10-w4", "test"), (0.02, 0, "resnet10-w4", "test"), (0.06, 0, "resnet10-w4", "test")]
    rows += [(0.9, 5, "resnet10-w4", "test"), (0.9, 0, "resnet10-w8", "test"), (0.9, 0, "resnet10-w4", "val")]
    for seed, (score, epochs, encoder, split) in enumerate(rows):
        record = {"data": "shapes", "seed": seed, "evaluated_on": split, "metrics": {"spearman_pairs": score}}
        record["config"] = {"epochs": epochs, "encoder": encoder}
        (folder / f"vicreg-random-seed{seed}.json").write_text(json.dumps(record))
    return root


@pytest.mark.slow
def test_an_encoder_of_ours_is_set_against_untrained_networks_of_its_architecture(records, bank, test_set):
    path = records / "laptop/shapes/vicreg-seed0.safetensors"
    found = assess(str(path), "shapes", results=str(records), **QUICK)
    encoder = network(str(path))
    wanted = evaluate(encoder, bank, test_set, "shapes", False, 0, 0)
    assert {key: found.figures[key] for key in wanted} == wanted
    assert found.figures["floor"] == pytest.approx(0.03)
    assert found.figures["floor_sd"] == pytest.approx(np.std([0.01, 0.02, 0.06], ddof=1))
    assert "n = 3 random networks" in found.verdict


def test_random_networks_repeat_by_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    one, again, other = (network("random:resnet10-w4", seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    first, second, third = (next(net.parameters()) for net in (one, again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_pixels_are_the_images_themselves_without_a_floor_of_their_own_projections(tmp_path, monkeypatch):
    small = make_shapes(108, size=8, seed=1)
    monkeypatch.setattr(module, "load_images", lambda *_, **__: small)
    monkeypatch.setattr(module, "load_bank", lambda *_, **__: small)
    found = assess("pixels", "shapes", results=str(tmp_path), **QUICK)
    reference = references("shapes", small.class_names)["tree"]
    wanted = rank_correlation(small.images.flatten(1).numpy(), small.labels, reference).spearman
    assert found.figures["spearman_pairs"] == pytest.approx(wanted, abs=1e-5)
    assert "label_free" in found.figures
    assert "other than pixels" in found.verdict


def test_a_timm_network_sees_images_at_the_size_it_wants():
    pytest.importorskip("timm")
    encoder = network("timm:test_vit", 0, weights=False)
    x = torch.rand(2, 3, 32, 32)
    side = encoder.backbone.pretrained_cfg["input_size"][1]
    assert side != 32
    larger = nn.functional.interpolate(x, (side, side), mode="bilinear", antialias=True)
    plain = (larger - encoder.mean) / encoder.std
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), encoder.backbone(plain))


def test_cifar_100_is_drawn_with_its_own_names_and_superclasses(cifar_root):
    rng = np.random.default_rng(0)
    y = np.arange(400) % 100
    found = assess(rng.normal(size=(400, 8)), labels=y, root=str(cifar_root), name="noise", **QUICK)
    assert len(set(found.classes["groups"])) == 20
    np.testing.assert_array_equal(found.classes["reference"], class_distances("cifar100"))
    assert abs(found.figures["spearman_pairs"]) < 0.05


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("pixel", {}, "'pixel' is no network: give pixels"),
        ("absent.safetensors", {}, "does not exist"),
        ("absent.npz", {}, "does not exist: check the path"),
        ("random:resnet10-q4", {}, "unknown encoder"),
        (np.ones((10, 3)), {}, f"{ROWS} test images for 10 rows"),
        (np.ones((10, 3, 2)), {}, r"must be \(N, F\) .* got \(10, 3, 2\)"),
        (np.ones((10, 3)), {"labels": np.zeros(9, int)}, r"labels must be \(10,\) for 10 rows, got \(9,\)"),
        (np.ones((10, 3)), {"labels": np.full(10, 27)}, "labels 27..27 are not those of shapes with 27 classes"),
        (np.ones((ROWS, 3)), {"bank": np.ones((4, 3))}, "no labels: give bank_labels"),
    ],
)
def test_what_cannot_be_assessed_is_said_in_one_line(what, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        assess(what, "shapes", **options, **QUICK)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_writes_records_pictures_and_prints_a_table(tmp_path, capsys, features, bare):
    np.savez(tmp_path / "colours.npz", features=features)
    what = (str(tmp_path / "colours.npz"), "random:resnet10-w4")
    main(what, data="shapes", out=str(tmp_path / "out"), results=str(tmp_path), **QUICK)
    folder, row = tmp_path / "out/shapes", module.file_name(what[0])
    record = json.loads((tmp_path / "out/shapes.json").read_text())
    colours, network = record["rows"]
    assert colours["metrics"] == {key: round(value, 5) for key, value in bare.figures.items()}
    assert colours["verdict"] == bare.verdict
    assert record.keys() >= {"command", "commit", "versions", "processor", "seed", "resamplings", "data"}
    assert [one["what"] for one in record["rows"]] == list(what)
    assert "10 random projections" in network["verdict"]  # there are no records of this architecture
    assert network["metrics"]["label_free"] != 0
    pictures = {f"{name}-{kind}.png" for name in (row, "random_resnet10-w4") for kind in ("trees", "matrices")} | {
        "tradeoff.png"
    }
    assert pictures <= {path.name for path in folder.iterdir()}
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" |")[0] for line in said] == ["| embedding", "| ---", "| colours", "| random:resnet10-w4"]
    assert summary(record).splitlines()[:4] == said  # the record holds what was printed
    assert read_records(tmp_path) == []  # and is no run record, whatever was assessed
    with pytest.raises(SystemExit, match=r"^sagkit assess: 'nothing' is no network"):
        sagkit(["assess", "nothing", "--data", "shapes", "--out", str(tmp_path)])


def test_a_record_shows_intervals_what_was_not_measured_and_where_it_comes_from():
    figures = {"spearman_pairs": 0.12345, "spearman_pairs_low": 0.1, "spearman_pairs_high": 0.15, "knn": 0.3}
    row = {"what": "x.npz", "name": "x", "verdict": "above it", "metrics": figures | {"linear": None}}
    record = {"data": "cifar100", "rows": [row], "resamplings": 1000, "processor": "a machine", "command": "python x"}
    (found,), text = recorded(record), summary(record | {"commit": "0123456789abcdef"})
    assert found.figures == figures
    assert "| x | 0.123 [0.100, 0.150] | not measured | not measured | not measured | 0.300 | not measured |" in text
    assert "Test images of cifar100; brackets are 95 % intervals over 1,000 resamplings" in text
    assert "a machine; `python x`, made at 012345678." in text
    assert "no intervals" in summary(record | {"commit": "0", "resamplings": 0})


@pytest.mark.slow
def test_several_things_are_one_table_and_one_trade_off(bare):
    other = bare._replace(name="other", figures=bare.figures | {"spearman_pairs": 0.5, "knn": 0.25})
    assert assessment_table([bare, other]).count("\n") == 3
    drawn = [text.get_text() for text in draw_tradeoff([bare, other]).axes[0].texts]
    assert {"features", "other"} <= set(drawn)
    with pytest.raises(ValueError, match="need labels"):
        draw_tradeoff([bare._replace(figures={"label_free": 0.3})])


def test_labels_may_be_words_in_a_file_too_and_are_those_of_their_names(tmp_path):
    rng, names = np.random.default_rng(0), np.array(["cat", "dog", "oak", "wolf"])
    codes = np.arange(80) % 4
    x, reference = rng.normal(size=(4, 5))[codes] + rng.normal(size=(80, 5)), rng.random((4, 4))
    reference = reference + reference.T
    plain = assess(x, "shapes", labels=codes, distances=reference, probe=False, resamplings=0)
    np.savez(tmp_path / "f.npz", features=x.astype(np.float16), labels=names[codes], distances=reference)
    half = assess(x.astype(np.float16), "shapes", labels=codes, distances=reference, probe=False, resamplings=0)
    assert assess(tmp_path / "f.npz", "shapes", probe=False, resamplings=0).figures == half.figures
    found = assess(torch.tensor(x, requires_grad=True), labels=names[codes].tolist(), distances=reference,
                   probe=False, resamplings=0)  # fmt: skip
    assert found.figures == plain.figures
    assert found.classes["names"] == names.tolist()
    with pytest.raises(ValueError, match="row 0 is 'cat', which is not among the 27 class names"):
        assess(x, "shapes", labels=names[codes])
