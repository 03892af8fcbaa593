"""The zoo's members are what their names say: noise, rank, whitening, hand-made features; what is stored is kept."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA

from sagkit.data.load import ImageSet, make_shapes
from sagkit.metrics.labelfree import structure_score
from sagkit.studies import kinds_zoo as zoo
from sagkit.studies.kinds_zoo import HAND_MADE, Member, degraded, halves, histogram, pixels, restore, store

N, F = 300, 24


def images(seed: int, n: int = N, side: int = 9) -> torch.Tensor:
    return torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def embedded(seed: int) -> np.ndarray:
    """Features that differ in size and lie off the origin."""
    x = np.random.default_rng(seed).normal(size=(N, F)) * np.linspace(0.2, 2, F)
    return x @ np.random.default_rng(9).normal(size=(F, F)) + 3


@pytest.fixture(scope="module")
def original() -> Member:
    return Member("net", "trained", "kind", {"clean": embedded(0), "changed0": embedded(1)})


@pytest.fixture(scope="module")
def copies(original) -> dict[str, Member]:
    return {member.name: member for member in degraded(original)}


def test_every_kind_of_harm_is_done_once(copies):
    harms = [" + noise 1", " + noise 4", ", rank 1", ", rank 2", ", rank 6", ", whitened", ", collapsed"]
    assert list(copies) == [f"net{harm}" for harm in harms]
    assert {(member.kind, member.family) for member in copies.values()} == {("degraded", "kind")}


@pytest.mark.parametrize("level", [1, 4])
def test_noise_has_the_stated_level_and_is_independent_between_views(original, copies, level):
    spread = original.views["clean"].std(axis=0)
    noise = [(copies[f"net + noise {level}"].views[v] - x) / spread for v, x in original.views.items()]
    # N F independent normal draws: 4 standard errors of mean, deviation or correlation have probability 0.0001.
    assert abs(noise[0].mean()) < 4 * level / (N * F) ** 0.5
    assert noise[0].std() == pytest.approx(level, rel=4 / (2 * N * F) ** 0.5)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 4 / (N * F) ** 0.5


@pytest.mark.parametrize("rank", [1, 2, 6])
def test_low_rank_copies_are_the_first_principal_components_of_clean_images(original, copies, rank):
    found = copies[f"net, rank {rank}"].views["changed0"]
    wanted = PCA(rank, svd_solver="full").fit(original.views["clean"]).transform(original.views["changed0"])
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-9)


def test_a_whitened_copy_has_mahalanobis_distances_and_a_collapsed_one_a_thousandth_of_the_spread(original, copies):
    clean, x = original.views["clean"], original.views["changed0"]
    inverse, moved = np.linalg.inv(np.cov(clean.T, bias=True)), copies["net, whitened"].views["changed0"]
    for i, j in ((0, 1), (5, 9)):
        gap = x[i] - x[j]
        assert ((moved[i] - moved[j]) ** 2).sum() == pytest.approx(gap @ inverse @ gap, rel=1e-4)
    flat = copies["net, collapsed"].views["clean"]
    assert ((flat - clean.mean(axis=0)) / clean.std(axis=0)).std() == pytest.approx(1e-3, rel=0.05)


def test_pixels_are_means_over_squares():
    seen = images(3, n=2, side=8)
    squares = seen.numpy().reshape(2, 3, 4, 2, 4, 2).mean(axis=(3, 5)).reshape(2, -1) / 255
    np.testing.assert_allclose(pixels(seen, size=4), squares, atol=1e-6)


def test_stored_features_keep_distances_and_scores_and_lose_no_more_than_is_said(tmp_path):
    a, noise = embedded(0), np.random.default_rng(5).normal(size=(N, F))
    views = {"clean": a, "changed0": a + 2 * noise}
    store(tmp_path / "x.npz.xz", views)
    found = restore(tmp_path / "x.npz.xz")
    assert found["clean"].mean(axis=0) @ found["clean"].mean(axis=0) == pytest.approx(a.mean(0) @ a.mean(0), rel=0.01)
    lost = sum(((pdist(views[v]) ** 2 - pdist(found[v]) ** 2) ** 2).mean() ** 0.5 for v in views)
    assert lost < 4 * zoo.LOST * sum((pdist(x) ** 2).mean() for x in views.values())
    kept, whole = (structure_score(x["clean"], x["changed0"]).score for x in (found, views))
    assert kept == pytest.approx(whole, abs=0.02)
    assert (tmp_path / "x.npz.xz").stat().st_size < 0.5 * 2 * 2 * N * F  # of float16


def test_halves_are_drawn_between_families():
    assert halves(["a", "b", "a", "c", "b"]) == {"a": 0, "b": 1, "c": 0}


def test_a_zoo_is_stored_resumed_and_read_again(tmp_path, monkeypatch, capsys):
    train, test = make_shapes(40, size=16, seed=0), make_shapes(30, size=16, seed=1)
    monkeypatch.setattr(zoo, "load_images", lambda name, split: train if split == "train" else test)
    monkeypatch.setattr(zoo, "UNTRAINED", {})
    monkeypatch.setattr(zoo, "trainings", list)
    assert zoo.row_of(zoo.Source("a", "trained", "SimCLR", pixels, {"kind": "SimCLR", "seed": 1}))["kind"] == "trained"
    encoded = []

    def counted(name, embedding):
        return lambda x: encoded.append(name) or embedding(x)

    monkeypatch.setattr(zoo, "HAND_MADE", {name: counted(name, HAND_MADE[name]) for name in HAND_MADE})
    where = {"data": "shapes", "results": tmp_path, "cache": tmp_path, "n": 100}
    zoo.main(**where)
    assert Counter(encoded) == dict.fromkeys(HAND_MADE, len(zoo.VIEWS))
    zoo.main(**where)
    assert len(encoded) == len(HAND_MADE) * len(zoo.VIEWS)  # nothing anew
    test = ImageSet(255 - test.images, test.labels, test.class_names)
    zoo.main(**where)
    assert len(encoded) == 2 * len(HAND_MADE) * len(zoo.VIEWS)  # other images
    record, members = zoo.read_zoo(tmp_path, "shapes")
    assert [m.name for m in members] == list(HAND_MADE)
    assert sorted(record["labels"]) == sorted(test.labels.tolist())
    few, seen = zoo.shown(test, 100)
    np.testing.assert_allclose(seen["turned0"].numpy(), few.images.numpy()[:, :, ::-1, ::-1])
    wanted = pdist(histogram(seen["changed0"]))
    assert np.corrcoef(pdist(members[1].views["changed0"]), wanted)[0, 1] > 0.97
    assert json.loads((tmp_path / "kinds-zoo/shapes.json").read_text())["rows"][0]["family"] == "pixels"
    assert "3 members" in capsys.readouterr().out
