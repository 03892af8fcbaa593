"""Figures of an encoder, by hand: which labels, images, views and references each is made of; report --reevaluate."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kendalltau, spearmanr
from tiny import tiny
from torch import nn

from sagkit.data.load import ImageSet, load_images, make_shapes
from sagkit.data.taxonomy import CIFAR100_SUPERCLASSES
from sagkit.metrics.evaluate import CHANGED, evaluate, label_free, references, retrieval
from sagkit.model import Encoder
from sagkit.studies import tables
from sagkit.train.config import Config
from sagkit.train.record import load_encoder, provenance, read_records
from sagkit.train.trainer import fit, readout

LABEL_FREE = {"label_free", "label_free_low", "label_free_high"}
NAMES = ("a/p/1", "a/p/2", "a/q/1", "b/r/1")
TREE = [[0, 1 / 3, 2 / 3, 1], [1 / 3, 0, 2 / 3, 1], [2 / 3, 2 / 3, 0, 1], [1, 1, 1, 0]]
SUPERCLASS = [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 0]]


def unit(positions, side: int = 4) -> torch.Tensor:
    """Images with one bright value each, so that flattened images of different positions are orthogonal."""
    images = torch.zeros(len(positions), 3 * side * side, dtype=torch.uint8)
    images[torch.arange(len(positions)), torch.as_tensor(positions)] = 255
    return images.view(-1, 3, side, side)


def flat(side: int) -> Encoder:
    """Pixels as features, where an Encoder is asked for."""
    return Encoder(nn.Flatten(), 3 * side * side, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def noise(n: int, side: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def distances(x: np.ndarray) -> list[float]:
    """Centred cosine distance of every two rows, one pair after the other."""
    x = np.asarray(x, dtype=np.float64)
    x = x - x.mean(axis=0)
    return [1 - a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in combinations(x, 2)]


def test_class_names_that_are_paths_have_their_tree_as_primary_reference_and_then_their_superclasses():
    found = references("anything", NAMES)
    assert list(found) == ["tree", "superclass"]
    np.testing.assert_allclose(found["tree"], TREE)
    np.testing.assert_allclose(found["superclass"], SUPERCLASS)
    assert references("anything", ("cat", "dog")) == {}
    assert list(references("cifar100", ())) == ["wordnet", "wordnet-path", "superclass"]
    assert list(references("cifar10", ())) == ["wordnet", "wordnet-path"]


def test_figures_without_suffix_are_against_the_tree_and_those_with_one_against_superclasses():
    images = noise(24, side=4)
    labels = torch.arange(24) % 4
    # Some structure to find: class b is bright in one corner, as class a/q is, if less.
    images[labels == 3, :, :2] //= 4
    images[labels == 2, :, :2] //= 2
    queries = ImageSet(images, labels, NAMES)
    found = evaluate(nn.Flatten(), queries, queries, "anything", probe=False)
    different = [a != b for a, b in combinations(labels.tolist(), 2)]
    distance = np.array(distances(images.flatten(1).numpy() / 255))
    for suffix, matrix in (("", TREE), ("_superclass", SUPERCLASS)):
        wanted = np.array([matrix[a][b] for a, b in combinations(labels.tolist(), 2)])
        for kind, kept in (("pairs", different), ("pairs_all", [True] * len(different))):
            rho, tau = spearmanr(distance[kept], wanted[kept])[0], kendalltau(distance[kept], wanted[kept])[0]
            assert found[f"spearman_{kind}{suffix}"] == pytest.approx(rho, abs=1e-6)
            assert found[f"kendall_{kind}{suffix}"] == pytest.approx(tau, abs=1e-6)
    assert abs(found["spearman_pairs"] - found["spearman_pairs_superclass"]) > 0.05


@pytest.mark.filterwarnings("ignore:all distances are equal")
def test_superclass_accuracy_asks_for_the_superclass_alone():
    # Each query looks like a class: (what it looks like, what it is). Right are 1 class and 3 superclasses of 4.
    asked = [(0, 0), (1, 0), (2, 1), (3, 2)]
    bank = ImageSet(unit([0, 1, 2, 3] * 6), torch.arange(24) % 4, NAMES)
    queries = ImageSet(unit([like for like, _ in asked]), torch.tensor([true for _, true in asked]), NAMES)
    found = evaluate(nn.Flatten(), bank, queries, "anything")
    assert found["knn"] == found["linear"] == 1 / 4
    assert found["superclass_knn"] == found["superclass_linear"] == 3 / 4
    assert "linear" not in evaluate(nn.Flatten(), bank, queries, "anything", probe=False)


@pytest.mark.slow
def test_cifar_100_is_judged_by_its_own_superclasses():
    members = [names.split() for names in CIFAR100_SUPERCLASSES.values()]
    classes = tuple(sorted(name for group in members for name in group))
    after = {one: group[(i + 1) % 5] for group in members for i, one in enumerate(group)}
    bank = ImageSet(unit(range(100), side=6), torch.arange(100), classes)
    # Every image looks like another class of its own superclass, but for five that look like one of the next letter.
    likes = [classes.index(after[name]) for name in classes]
    strangers = [c for c in range(99) if not any({classes[c], classes[c + 1]} <= set(group) for group in members)][:5]
    for c in strangers:
        likes[c] = c + 1
    queries = ImageSet(unit(likes, side=6), torch.arange(100), classes)
    found = evaluate(nn.Flatten(), bank, queries, "cifar100", probe=False)
    assert found["knn"] == 0
    assert found["superclass_knn"] == 0.95


def test_the_label_free_score_compares_clean_images_with_one_changed_view_of_a_sample():
    images, seen = noise(60), []

    class Recorder(nn.Flatten):
        def forward(self, x):
            seen.append(super().forward(x))
            return seen[-1]

    score = label_free(Recorder(), images, seed=3, n=40)["label_free"]
    clean, changed = seen
    assert clean.shape == changed.shape == (40, 3 * 8 * 8)
    assert score == pytest.approx(spearmanr(distances(clean), distances(changed))[0], abs=1e-6)
    assert score < 0.9  # one view twice would score 1
    generator = torch.Generator().manual_seed(3)
    chosen = torch.randperm(60, generator=generator)[:40]
    torch.testing.assert_close(clean, images[chosen].flatten(1) / 255)
    expected = (CHANGED(images[chosen], generator) * 255).round() / 255  # in 8 bits, as images are kept
    torch.testing.assert_close(changed, expected.flatten(1))
    assert label_free(nn.Flatten(), images, seed=3, n=40) == {"label_free": score}
    assert label_free(nn.Flatten(), images, seed=4, n=40) != {"label_free": score}
    assert label_free(nn.Flatten(), images, seed=3, n=40, bootstrap=50).keys() == LABEL_FREE


def test_the_label_free_figure_is_of_the_queries_and_needs_no_labels():
    images = noise(30)
    for queries in (ImageSet(images), ImageSet(images, torch.arange(30) % 4, NAMES)):
        bank = ImageSet(noise(30, seed=1), torch.arange(30) % 4, NAMES)
        found = evaluate(nn.Flatten(), bank, queries, "anything", probe=False, seed=2)
        assert found["label_free"] == label_free(nn.Flatten(), images, seed=2)["label_free"]
        assert (found.keys() == LABEL_FREE) == (queries.labels is None)


def test_retrieval_counts_the_class_and_the_superclass_among_the_images_most_alike():
    # On a circle, centred already: every point has one neighbour 10 degrees away and the next 30 degrees away.
    degrees = torch.tensor([0.0, 10.0, 40.0, 50.0, 180.0, 190.0, 220.0, 230.0])
    points = torch.stack([torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))], dim=1)
    labels, coarse = torch.tensor([0, 0, 1, 2, 3, 3, 3, 3]), torch.tensor([0, 0, 0, 1])
    assert retrieval(points, labels, None, k=1) == {"retrieval": 6 / 8}  # all but the third and the fourth
    found = retrieval(points, labels, coarse, k=3)
    assert found["retrieval"] == pytest.approx((1 / 3 + 1 / 3 + 4) / 8)
    assert found["superclass_retrieval"] == 1.0
    assert retrieval(points, labels, coarse) == retrieval(points, labels, coarse, k=7)
    assert retrieval(points[:1], labels[:1], coarse) == {}


def test_a_readout_asks_for_none_of_the_images_in_its_bank():
    # Every image is a class of its own: an image in the bank finds itself, any other finds nothing.
    alone = ImageSet(unit(range(40)), torch.arange(40), tuple(f"{i:02}" for i in range(40)))
    assert readout(flat(4), alone, Config()) == {"knn": 0.0}
    # Two classes of many images each are found all the same.
    pair = ImageSet(unit([0, 1] * 20), torch.arange(40) % 2, ("x", "y"))
    assert readout(flat(4), pair, Config()) == {"knn": 1.0}


def test_a_readout_is_against_the_primary_reference_alone_and_of_the_same_images_each_time():
    train = make_shapes(80, size=8, seed=0)
    found = readout(flat(8), train, Config())
    assert {name for name in found if name.startswith("spearman")} == {
        f"spearman_{kind}" for kind in ("pairs", "pairs_all", "confusion", "centroid", "centroid_whitened")
    }
    assert readout(flat(8), train, Config(seed=1)) == found


def small(tmp_path, **fields) -> Config:
    whole = {"probe": True, "resamplings": 1000}
    return tiny(tmp_path, **{"method": "vicreg", "epochs": 1, "batch_size": 16, **whole, **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tree of PNG images with 80 to train on and 40 to test on, of four classes."""
    root = tmp_path_factory.mktemp("images") / "four"
    for split, n, seed in (("train", 80, 0), ("test", 40, 1)):
        for i, image in enumerate(make_shapes(n, size=32, seed=seed).images):
            path = root / split / "wxyz"[i % 4] / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return root


def rounded(metrics: dict) -> dict:
    return {name: round(float(value), 5) for name, value in metrics.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("split", "asked"), [("train", "test"), ("fit", "val")])
def test_a_run_is_judged_on_test_or_tuned_on_validation_images(tmp_path, folder, split, asked):
    run = fit(small(tmp_path, data=str(folder), split=split, seed=2), progress=False)
    encoder = load_encoder(run.path.with_suffix(".safetensors"))
    bank, queries, other = (load_images(folder, name) for name in (split, asked, "val" if asked == "test" else "test"))
    assert run.record["evaluated_on"] == asked
    assert run.record["metrics"] == rounded(evaluate(encoder, bank, queries, str(folder), True, 2))
    assert run.record["metrics"] != rounded(evaluate(encoder, bank, other, str(folder), True, 2))


@pytest.mark.slow
def test_unlabelled_images_train_and_are_judged_without_labels(tmp_path):
    path = tmp_path / "plain.npz"
    np.savez(path, images=make_shapes(100, size=16, seed=0).images.numpy())
    run = fit(small(tmp_path, data=str(path), split="fit", method="sag-vicreg", walk_start=0.0, k=4), progress=False)
    queries = load_images(path, "val")
    encoder = load_encoder(run.path.with_suffix(".safetensors"))
    assert run.record["metrics"] == rounded(label_free(encoder, queries.images, 0, bootstrap=1000))
    assert run.record["train_set"] == "plain"
    (entry,) = run.record["log"]
    assert entry["epoch"] == 1
    assert "loss" in entry
    assert not {"knn", "spearman_pairs"} & entry.keys()
    assert "not measured" in tables.tables_of("tour", "plain", read_records(tmp_path / "results"))


@pytest.mark.slow
@pytest.mark.parametrize(("split", "probe"), [("train", True), ("fit", False)])
def test_reevaluation_finds_a_records_metrics_again_and_leaves_the_rest(tmp_path, folder, capsys, split, probe):
    run = fit(small(tmp_path, data=str(folder), split=split, seed=3, probe=probe), progress=False)
    original = json.loads(run.path.read_text())
    stale = {**original, "metrics": {"knn": 0.123, "dropped": 1.0}, "commit": "trained", "evaluated_commit": "old"}
    run.path.write_text(json.dumps(stale))
    lost = run.path.with_name("vicreg-lost-seed3.json")  # its encoder was not kept
    lost.write_text(json.dumps({**stale, "variant": "lost"}))
    before = lost.read_bytes()
    tables.main(results=str(tmp_path / "results"), reevaluate=True)
    expected = {**stale, "metrics": original["metrics"], "evaluated_commit": provenance()["commit"]}
    assert json.loads(run.path.read_text()) == expected
    assert lost.read_bytes() == before
    printed = capsys.readouterr().out
    assert f"{100 * original['metrics']['knn']:.1f}" in printed  # the table is of the new metrics
    assert "12.3" in printed  # and, where there is no encoder, of the old ones


@pytest.mark.slow
def test_reevaluation_without_the_probe_keeps_its_accuracy_as_recorded(tmp_path, folder):
    run = fit(small(tmp_path, data=str(folder)), progress=False)
    original = json.loads(run.path.read_text())
    run.path.write_text(json.dumps({**original, "metrics": {"linear": 0.123, "knn": 0.456}}))
    tables.main(results=str(tmp_path / "results"), reevaluate=True, probe=False)
    found = json.loads(run.path.read_text())["metrics"]
    assert found["linear"] == 0.123
    assert found["knn"] == original["metrics"]["knn"]


@pytest.mark.slow
def test_a_run_that_left_out_probes_and_intervals_is_given_them_as_if_it_had_not(tmp_path, folder):
    whole = fit(small(tmp_path / "whole", data=str(folder), probe=True, resamplings=50), progress=False).record
    run = fit(small(tmp_path / "hasty", data=str(folder), probe=False, resamplings=0), progress=False)
    assert not {"linear", "spearman_pairs_low"} & run.record["metrics"].keys()
    tables.main(results=str(tmp_path / "hasty"), reevaluate=True, resamplings=50)
    found = json.loads(run.path.read_text())
    assert found["metrics"] == whole["metrics"]
    assert found["command"].replace("hasty", "whole") == whole["command"]


def test_without_being_asked_a_report_changes_no_record(tmp_path, folder, capsys):
    run = fit(small(tmp_path, data=str(folder), epochs=0, probe=False), progress=False)
    stale = {**json.loads(run.path.read_text()), "metrics": {"knn": 0.123}}
    run.path.write_text(json.dumps(stale))
    tables.main(results=str(tmp_path / "results"))
    assert json.loads(run.path.read_text()) == stale
    assert "12.3" in capsys.readouterr().out
