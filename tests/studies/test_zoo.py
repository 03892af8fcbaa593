"""The zoo's members are what their names say: noise, rank, whitening, hand-made features, and halves between runs."""

import json
from collections import Counter
from math import atan2, hypot, pi

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from sagkit.data.shapes import SHAPE_CLASSES, draw_shapes
from sagkit.model import make_encoder
from sagkit.studies.zoo import Member, degraded, distinct, gradients, hand_made, histogram, raw_pixels, sides, zoo
from sagkit.train.record import save_encoder

N, F = 300, 24


def images(seed: int, n: int = N, side: int = 9) -> torch.Tensor:
    return torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def embed(x: torch.Tensor) -> np.ndarray:
    """A fixed linear map whose features differ in size and lie off the origin."""
    flat = x.flatten(1).numpy().astype(np.float64) / 255
    weight = np.random.default_rng(0).normal(size=(flat.shape[1], F)) * np.linspace(0.2, 2, F)
    return flat @ weight + 3


@pytest.fixture(scope="module")
def copies() -> dict[str, Member]:
    return {member.name: member for member in degraded("net", embed, images(0))}


def test_every_kind_of_harm_is_done_once(copies):
    assert list(copies) == [
        *(f"net + noise {level}" for level in (0.5, 1.0, 2.0, 4.0)),
        *(f"net, rank {rank}" for rank in (1, 2, 4, 16)),
        *("net, whitened", "net, collapsed"),
    ]
    assert {(member.kind, member.run) for member in copies.values()} == {("degraded", "net")}


@pytest.mark.parametrize("level", [0.5, 1.0, 2.0, 4.0])
def test_noise_has_the_stated_level_in_standard_deviations_of_each_feature(copies, level):
    seen = images(1)
    noise = (copies[f"net + noise {level}"].embed(seen) - embed(seen)) / embed(images(0)).std(axis=0)
    # N F independent normal draws: 4 standard errors of mean and deviation have probability 0.0001.
    assert abs(noise.mean()) < 4 * level / (N * F) ** 0.5
    assert noise.std() == pytest.approx(level, rel=4 / (2 * N * F) ** 0.5)


def test_noise_is_the_same_for_the_same_images_and_independent_between_views(copies):
    for name in ("net + noise 1.0", "net, collapsed"):
        one, view, mean = images(1), images(1).flip(3), embed(images(0)).mean(axis=0)
        base = (lambda x: embed(x)) if "noise" in name else (lambda x, mean=mean: np.tile(mean, (len(x), 1)))
        first, again, other = (copies[name].embed(x) - base(x) for x in (one, one.clone(), view))
        np.testing.assert_array_equal(first, again)
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 4 / (N * F) ** 0.5


@pytest.mark.parametrize("rank", [1, 2, 4, 16])
def test_low_rank_copies_are_the_first_principal_components_of_the_reference(copies, rank):
    found = copies[f"net, rank {rank}"].embed(images(1))
    assert found.shape == (N, rank)
    assert np.linalg.matrix_rank(found) == rank
    wanted = PCA(rank, svd_solver="full").fit(embed(images(0))).transform(embed(images(1)))
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-9)


def test_a_whitened_copy_is_uncorrelated_with_equal_variances_on_the_reference_and_an_affine_map_elsewhere(copies):
    found = copies["net, whitened"].embed(images(0))
    np.testing.assert_allclose(np.cov(found.T, bias=True), np.eye(F), atol=1e-4)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-9)
    # Mahalanobis distances are what whitening gives, whatever the axes.
    x, inverse = embed(images(1)), np.linalg.inv(np.cov(embed(images(0)).T, bias=True))
    moved = copies["net, whitened"].embed(images(1))
    for i, j in ((0, 1), (5, 9)):
        gap = x[i] - x[j]
        assert ((moved[i] - moved[j]) ** 2).sum() == pytest.approx(gap @ inverse @ gap, rel=1e-4)


def test_a_collapsed_copy_has_a_thousandth_of_the_spread(copies):
    found, x = copies["net, collapsed"].embed(images(1)), embed(images(0))
    ratio = (found - x.mean(axis=0)) / x.std(axis=0)
    assert ratio.std() == pytest.approx(1e-3, rel=0.05)


def test_a_histogram_counts_each_pixels_cell_of_colour():
    seen = images(2, n=3, side=5)
    found = histogram(seen, levels=4)
    for image, row in zip(seen, found, strict=True):
        colours = [tuple(int(v) // 64 for v in image[:, y, x]) for y in range(5) for x in range(5)]
        wanted = np.zeros(64)
        for (red, green, blue), count in Counter(colours).items():
            wanted[16 * red + 4 * green + blue] = np.sqrt(count / 25)
        np.testing.assert_allclose(row, wanted, atol=1e-6)


def test_gradients_vote_with_their_length_for_their_direction():
    # No gradient of these images lies on the border of two bins, where rounding decides.
    seen, wanted = images(5, n=2, side=9), np.zeros((2, 8, 4, 4))
    for n, image in enumerate(seen.double().mean(dim=1) / 255):
        for y in range(8):
            for x in range(8):
                dx, dy = float(image[y, x + 1] - image[y, x]), float(image[y + 1, x] - image[y, x])
                turn = int(atan2(dy, dx) % pi / pi * 8)
                wanted[n, min(turn, 7), y // 2, x // 2] += hypot(dx, dy) / 4  # a cell is 2 x 2 pixels
    np.testing.assert_allclose(gradients(seen), wanted.reshape(2, -1), atol=1e-5)


def test_hand_made_components_are_those_of_the_reference_and_applied_to_any_images():
    members = {member.name: member.embed for member in hand_made(images(0))}
    assert list(members) == ["pixels", "colour histogram", "gradients", "pixels, 8 components", "pixels, 64 components"]
    x, y = (images(seed).flatten(1).numpy() / 255 for seed in (0, 1))
    np.testing.assert_allclose(members["pixels"](images(1)), y, atol=1e-6)
    for rank in (8, 64):
        wanted = PCA(rank, svd_solver="full").fit(x).transform(y)
        np.testing.assert_allclose(np.abs(members[f"pixels, {rank} components"](images(1))), np.abs(wanted), atol=1e-3)


def stored(folder, name: str, epochs: int, snapshots=()) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, suffix in enumerate(["", *(f".epoch{epoch}" for epoch in snapshots)]):
        torch.manual_seed(len(name) + 100 * i)
        save_encoder(folder / f"{name}{suffix}.safetensors", make_encoder("resnet10-w4"), "resnet10-w4")
    (folder / f"{name}.json").write_text(json.dumps({"config": {"epochs": epochs}}))


def test_records_become_members_and_no_run_is_on_both_halves(tmp_path):
    stored(tmp_path / "sweep/shapes", "vicreg-seed0", 3, snapshots=(1, 2))
    stored(tmp_path / "sweep/shapes", "sag-vicreg-seed0", 3, snapshots=(1,))
    stored(tmp_path / "sweep/shapes", "dino-seed0", 3)
    stored(tmp_path / "sweep/shapes", "vicreg-random-seed10", 0)
    stored(tmp_path / "sweep/elsewhere", "vicreg-seed1", 3)
    members = zoo(tmp_path, ["shapes"], images(0, side=16))
    kinds = Counter(member.kind for member in members)
    assert kinds == {"hand-made": 5, "trained": 6, "untrained": 1, "degraded": 10}
    of_run = {m.name for m in members if m.run == "sweep/vicreg-seed0" and m.kind == "trained"}
    assert of_run == {"sweep/vicreg-seed0", "sweep/vicreg-seed0.epoch1", "sweep/vicreg-seed0.epoch2"}
    half = sides(members)
    placed = {run: {half[m.run] for m in members if m.run == run} for run in {m.run for m in members}}
    assert all(len(found) == 1 for found in placed.values())
    for kind in ("trained", "hand-made"):
        count = Counter(half[run] for run in {m.run for m in members if m.kind == kind})
        assert abs(count[0] - count[1]) == 1  # three and five runs
    assert half[next(m.run for m in members if m.kind == "degraded")] == half["sweep/vicreg-seed0"]


def test_a_stored_encoder_embeds_as_the_network_does(tmp_path):
    stored(tmp_path / "sweep/shapes", "vicreg-random-seed10", 0)
    member = zoo(tmp_path, ["shapes"], images(0, n=70, side=16))[-1]
    torch.manual_seed(len("vicreg-random-seed10"))
    encoder = make_encoder("resnet10-w4").eval()
    seen = draw_shapes(torch.arange(4) % len(SHAPE_CLASSES), 16, torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = encoder(seen.float() / 255)
    np.testing.assert_allclose(member.embed(seen), wanted, rtol=0.02, atol=0.02)  # weights are kept as float16


def test_of_equal_members_the_first_is_kept():
    def made(name, scale):
        return Member(name, "hand-made", name, lambda x: scale * raw_pixels(x))

    members = [made("a", 1), made("b", 2), made("a again", 1), made("c", 3), made("b again", 2)]
    assert [member.name for member in distinct(members, images(0, n=5))] == ["a", "b", "c"]
