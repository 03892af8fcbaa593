"""Near duplicates: copies of every kind are found, and series of pictures that are merely alike are left alone."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from imagehash import phash
from PIL import ImageEnhance

sys.path.insert(0, str(Path(__file__).parents[1]))
import families

from sagkit.pilot.duplicates import aligned, distinct, hashes, near_duplicates, planes, warped


def smooth(n: int, seed: int, side: int = 64) -> torch.Tensor:
    """Pictures with large and small forms, none like another; uint8 (n, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.rand(n, 3, k, k, generator=generator) for k in (4, 9, 20)]
    large = [torch.nn.functional.interpolate(x, (side, side), mode="bicubic", align_corners=False) for x in layers]
    return ((large[0] + 0.7 * large[1] + 0.5 * large[2]) / 2.2 * 255).clamp(0, 255).byte()


@pytest.fixture(scope="module")
def originals() -> torch.Tensor:
    return smooth(12, seed=0)


def test_copies_of_every_kind_lie_in_one_group_with_their_original(originals):
    n, made = 4, families.copies(originals[:4])
    made.pop("crop to 90 %, corner")  # is found mostly, not always
    groups = near_duplicates(torch.cat([originals, *made.values()]))
    expected = [sorted([row, *(12 + m * n + row for m in range(len(made)))]) for row in range(n)]
    assert sorted(groups) == expected
    assert near_duplicates(originals) == []


def test_what_compression_does_to_pale_colours_makes_no_other_picture():
    vivid = smooth(24, seed=3).float()
    pale = vivid.mean(dim=1, keepdim=True) * 0.8 + 0.2 * vivid  # colours that JPEG at quality 10 turns into others
    pale = pale.byte()
    copies = torch.stack([families.as_tensor(families.compressed(families.as_picture(i), 10)) for i in pale])
    assert sorted(near_duplicates(torch.cat([pale, copies]))) == [[row, 24 + row] for row in range(24)]


@pytest.mark.parametrize(
    "images", [torch.rand(4, 3, 8, 8), torch.zeros(4, 8, 8, 3).byte(), torch.zeros(3, 8, 8).byte()]
)
def test_what_are_no_pictures_is_refused(images):
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, 3, H, W\), got "):
        near_duplicates(images)


def test_the_same_and_the_changed_are_told_apart(originals):
    turned = originals[3].flip(-1)
    darker = families.as_tensor(ImageEnhance.Brightness(families.as_picture(originals[2])).enhance(0.7))
    recoloured = originals[4].roll(1, dims=0)  # the same forms in other colours
    flat = torch.tensor([10, 11, 200], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 64, 64)
    images = torch.cat([originals, darker[None], turned[None], recoloured[None], originals[:1], flat])
    assert near_duplicates(images) == [[0, 15], [2, 12], [16, 17]]


@pytest.mark.slow  # 80 pictures are drawn and compared, of each family
@pytest.mark.parametrize("family", [f.__name__ for f in families.FAMILIES])
def test_no_group_is_found_in_a_series_and_its_copies_are_never_mixed(family):
    drawn = families.series(family, 40, seed=5)
    assert near_duplicates(drawn) == []
    copies = torch.stack([families.as_tensor(families.compressed(families.as_picture(i), 90)) for i in drawn[:3]])
    groups = near_duplicates(torch.cat([drawn, copies]))
    assert all(len({row if row < 40 else row - 40 for row in group}) == 1 for group in groups)


def test_equal_pictures_are_one_group_however_many_there_are(originals):
    images = torch.cat([originals, originals[:1].expand(60, -1, -1, -1)])
    assert near_duplicates(images) == [[0, *range(12, 72)]]
    kept, equal = distinct(images)
    assert kept.tolist() == list(range(12))
    assert equal.tolist() == [[0, row] for row in range(12, 72)]
    assert near_duplicates(images[:1]) == []


def test_hashes_are_imagehashs(originals):
    expected = [phash(families.as_picture(image)).hash.ravel() for image in originals]
    np.testing.assert_array_equal(hashes(originals, torch.arange(12)) > 0, np.stack(expected))


def test_alignment_finds_the_scale_and_shift_that_a_picture_was_moved_by(originals):
    x = planes(originals, 32)
    wanted = torch.tensor([[0.93, 0.05, -0.03]]).expand(12, 3)
    y, _ = warped(x, wanted)
    warp = aligned(x, 0.8 * y + 20, torch.tensor([[0.9, 0.0, 0.0]]).expand(12, 3))
    torch.testing.assert_close(warp, wanted, rtol=0, atol=0.01)
    moved, inside = warped(x, warp)
    assert float(((moved - y).abs() * inside).max()) < 4  # of 255 levels


@pytest.mark.slow  # 80 pictures, all of which are candidates of each other
def test_memory_of_candidates_is_linear(originals, monkeypatch):
    """Of n alike pictures, each has at most 2 x NEAREST candidates, however many there are."""
    from sagkit.pilot import duplicates

    seen, plausible = [], duplicates.plausible
    spy = lambda looks, pairs: seen.append(len(pairs)) or plausible(looks, pairs)  # noqa: E731
    monkeypatch.setattr(duplicates, "plausible", spy)
    near_duplicates(families.series("parts", 80))
    assert sum(seen) <= 80 * 2 * duplicates.NEAREST
    assert max(seen) <= duplicates.CHUNK
