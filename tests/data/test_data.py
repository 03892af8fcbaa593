"""Image sets: what is loaded, what is refused and with which words, and the cache of decoded trees."""

import hashlib
import os
import pickle
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from sagkit.data import decode, load
from sagkit.data.load import ImageSet, load_images, make_shapes, validation_split


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Every test has its own cache and data root; the machine's are out of reach."""
    monkeypatch.setenv("SAGKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAGKIT_DATA", str(tmp_path / "data"))


def write_image(path: Path, colour, size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


def write_tree(root: Path, classes, per_class):
    """Class c, image i is the one colour (c, i, 7)."""
    for c, name in enumerate(classes):
        for i in range(per_class):
            write_image(root / name / f"{i:03d}.png", (c, i, 7))


def colours(images: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(row) for row in images[:, :, 0, 0].tolist()]


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------ ImageSet


def test_subset_keeps_rows_together():
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    whole = ImageSet(images, torch.tensor([0, 1, 1, 0, 2]), ("a", "b", "c"), tuple("vwxyz"))
    for index, rows in ((torch.tensor([4, 1]), [4, 1]), (whole.labels == 1, [1, 2]), (slice(3, None), [3, 4])):
        part = whole.subset(index)
        assert part.images[:, 0, 0, 0].tolist() == rows
        assert part.labels.tolist() == [whole.labels[i] for i in rows]
        assert part.paths == tuple("vwxyz"[i] for i in rows)
        assert part.class_names == whole.class_names
        assert len(part) == len(rows)


GOOD = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((GOOD.float(),), "uint8"),
        ((GOOD[0],), r"\(3, 8, 8\)"),
        ((GOOD.permute(0, 2, 3, 1),), r"\(4, 8, 8, 3\)"),
        ((GOOD, torch.zeros(4), ("a",)), "float32"),
        ((GOOD, torch.zeros(3, dtype=torch.int64), ("a",)), r"\(3,\)"),
        ((GOOD, torch.tensor([0, 1, 2, 0]), ("a", "b")), r"0\.\.2"),
        ((GOOD, torch.tensor([0, -1, 1, 0]), ("a", "b")), r"-1\.\.1"),
        ((GOOD, torch.zeros(4, dtype=torch.int64)), "0 class names"),
        ((GOOD, None, ("a",)), "without labels"),
        ((GOOD, None, (), ("only.png",)), "1 paths for 4 images"),
    ],
)
def test_image_set_refuses(arguments, said):
    with pytest.raises(ValueError, match=said) as error:
        ImageSet(*arguments)
    one_line(error)


# -------------------------------------------------------------------- shapes


def test_shapes_names_form_a_tree_of_three_levels():
    names = [name.split("/") for name in make_shapes(2).class_names]
    assert len(names) == len(set(map(tuple, names))) == 27
    assert [len(name) for name in names] == [3] * 27
    assert list(make_shapes(2).class_names) == sorted(make_shapes(2).class_names)
    for depth, count in ((1, 3), (2, 9), (3, 27)):
        nodes = {tuple(name[:depth]) for name in names}
        assert len(nodes) == count
        children = [sum(node == tuple(name[:depth]) for name in names) for node in nodes]
        assert children == [27 // count] * count


@pytest.mark.slow
def test_shapes_are_fixed_by_seed_and_differ_between_seeds_and_splits():
    a, b, c = make_shapes(60, seed=5), make_shapes(60, seed=5), make_shapes(60, seed=6)
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.labels, b.labels)
    assert not torch.equal(a.images, c.images)
    train, test = load_images("shapes"), load_images("shapes", "test")
    assert (len(train), len(test)) == (4096, 1024)
    rows = {image.numpy().tobytes() for image in train.images}
    assert len(rows) == 4096  # no picture twice, and none of the test set's
    assert not rows & {image.numpy().tobytes() for image in test.images}


def test_shapes_are_balanced_and_of_any_size():
    for n, size in ((100, 8), (54, 48)):
        some = make_shapes(n, size=size)
        assert some.images.shape == (n, 3, size, size)
        counts = torch.bincount(some.labels, minlength=27)
        assert counts.max() - counts.min() <= 1
        assert counts.sum() == n
    assert load_images("shapes", "val", size=16).images.shape == (410, 3, 16, 16)


def nearest_class(train, train_labels, test):
    train, test = (x.flatten(1).float() - train.flatten(1).float().mean(0) for x in (train, test))
    return train_labels[torch.cdist(test, train).argmin(dim=1)]


@pytest.mark.slow
def test_raw_pixels_say_little_about_shapes_and_outlines_much():
    """The same classifier, on pixels and on the outline in its own frame, where position and colour are gone."""
    from sagkit.data.shapes import OUTLINES

    train, test = load_images("shapes"), load_images("shapes", "test")
    hits = nearest_class(train.images, train.labels, test.images) == test.labels
    assert 1 / 27 < hits.float().mean() < 0.25
    v, u = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    masks = torch.stack([sdf(u, v) < 0 for sdf in OUTLINES.values()]).flatten(1).float()
    overlap = masks @ masks.T / (masks.sum(1)[:, None] + masks.sum(1) - masks @ masks.T)  # Jaccard
    assert (overlap - torch.eye(len(masks))).max() < 0.85  # no two outlines are nearly the same
    assert masks.mean(dim=1).min() > 0.15  # and none is a sliver


def test_shape_classes_do_not_differ_in_colour():
    """Channel means of classes scatter as random groups of the same size do (one-way F statistic near 1)."""
    some = make_shapes(27 * 120, size=16, seed=3)
    border = some.images[:, :, 0, :].float().mean(dim=2)  # (N, 3), ground colour along the upper edge
    groups = torch.stack([border[some.labels == c] for c in range(27)])  # (27, 120, 3)
    between = groups.mean(dim=1).var(dim=0) * 120
    within = groups.var(dim=1).mean(dim=0)
    assert ((between / within) < 2.0).all()  # P(F(26, 3213) > 2) is 0.002


@pytest.mark.parametrize("bad", [{"n": 4, "size": 4}, {"n": -1}])
def test_shapes_refuses(bad):
    with pytest.raises(ValueError, match=r"at least 8, got 4|at least 0, got -1") as error:
        make_shapes(**bad)
    one_line(error)


# ---------------------------------------------------------- validation split


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.37])
def test_split_is_stratified_to_the_image(fraction):
    sizes = [1, 2, 3, 10, 50, 137]
    labels = torch.repeat_interleave(torch.arange(6), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    fit, val = validation_split(labels, fraction, seed=3)
    assert torch.equal(torch.cat([fit, val]).sort().values, torch.arange(len(labels)))
    assert len(val) == round(fraction * len(labels))
    for c, size in enumerate(sizes):
        taken = int((labels[val] == c).sum())
        assert abs(taken - fraction * size) < 1
        assert taken < size  # one image a class stays in fit


def test_split_repeats_by_seed_and_draws_every_row():
    labels = torch.arange(20) % 4
    first = validation_split(labels, 0.2, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(first, validation_split(labels, 0.2, seed=0), strict=True))
    drawn = torch.cat([validation_split(labels, 0.2, seed=s)[1] for s in range(60)])
    assert drawn.unique().tolist() == list(range(20))  # a fixed row is missed with probability 0.8^60, 2e-6
    fit, val = validation_split(50, 0.1, seed=2)
    assert (len(fit), len(val)) == (45, 5)


@pytest.mark.slow
def test_named_splits_are_parts_of_train():
    train, fit, val = (load_images("shapes", split) for split in ("train", "fit", "val"))
    rows_fit, rows_val = validation_split(train.labels, 0.1, seed=0)
    assert torch.equal(fit.images, train.images[rows_fit])
    assert torch.equal(val.labels, train.labels[rows_val])


@pytest.mark.parametrize(("rows", "fraction"), [(100, 0.0), (100, 1.0), (3, 0.1), (0, 0.5)])
def test_split_refuses(rows, fraction):
    with pytest.raises(ValueError, match=str(fraction)) as error:
        validation_split(rows, fraction)
    one_line(error)


# --------------------------------------------------------------------- CIFAR

CLASSES10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def small_cifar(monkeypatch):
    """CIFAR-10 with two images a class, so that a tree is written in no time."""
    monkeypatch.setattr(load, "CIFAR_IMAGES", {"train": 20, "test": 10})


@pytest.mark.parametrize("folder", ["cifar10/train", "train"])
def test_cifar_tree_in_both_layouts(tmp_path, small_cifar, folder):
    write_tree(tmp_path / "data" / folder, CLASSES10, 2)
    found = load_images("cifar10", download=False)
    assert found.class_names == tuple(CLASSES10)
    assert found.labels.tolist() == [c for c in range(10) for _ in range(2)]
    assert colours(found.images) == [(c, i, 7) for c in range(10) for i in range(2)]
    assert found.images.shape == (20, 3, 32, 32)
    assert found.paths[:2] == ("airplane/000.png", "airplane/001.png")
    assert load_images("cifar10", "val", download=False).images.shape == (2, 3, 32, 32)


def test_cifar_root_argument_comes_before_the_environment(tmp_path, small_cifar):
    write_tree(tmp_path / "elsewhere" / "train", CLASSES10, 2)
    assert len(load_images("cifar10", root=tmp_path / "elsewhere", download=False)) == 20


def test_a_tree_of_another_data_set_is_not_taken_for_cifar(tmp_path, small_cifar):
    write_tree(tmp_path / "data" / "train", ["cat", "dog"], 2)
    with pytest.raises(ValueError, match="cifar10 was not found under"):
        load_images("cifar10", download=False)


def test_incomplete_cifar_tree_is_refused(tmp_path, small_cifar):
    write_tree(tmp_path / "data" / "train", CLASSES10, 2)
    (tmp_path / "data" / "train" / "cat" / "001.png").unlink()
    with pytest.raises(ValueError, match=r"19 images.*has 20.*unpack it again") as error:
        load_images("cifar10", download=False)
    one_line(error)
    write_image(tmp_path / "data" / "train" / "cat" / "001.png", 0)
    (tmp_path / "data" / "train" / "cat" / "001.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 20 images.*cat/001\.png"):
        load_images("cifar10", download=False)


def write_cifar10_pickles(root: Path):
    """torchvision's file layout, filled with random pixels; returns the arrays of the train and test split."""
    folder = root / datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    written = {}
    for split, files in (("train", datasets.CIFAR10.train_list), ("test", datasets.CIFAR10.test_list)):
        pixels = generator.integers(0, 256, (len(files), 4, 3072), dtype=np.uint8)
        labels = generator.integers(0, 10, (len(files), 4))
        for row, (name, _) in enumerate(files):
            (folder / name).write_bytes(pickle.dumps({"data": pixels[row], "labels": labels[row].tolist()}))
        written[split] = pixels.reshape(-1, 3, 32, 32), labels.ravel()
    (folder / datasets.CIFAR10.meta["filename"]).write_bytes(pickle.dumps({"label_names": CLASSES10}))
    return written


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_cifar_pickles(tmp_path, monkeypatch, below):
    written = write_cifar10_pickles(tmp_path / "data" / below)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)  # the MD5 sums of the real files
    for split, (pixels, labels) in written.items():
        found = load_images("cifar10", split, download=False)
        assert np.array_equal(found.images.numpy(), pixels)
        assert np.array_equal(found.labels.numpy(), labels)
        assert found.class_names == tuple(CLASSES10)


def test_altered_pickles_are_not_unpickled(tmp_path):
    write_cifar10_pickles(tmp_path / "data")
    with pytest.raises(ValueError, match=r"not found or corrupted.*set SAGKIT_DATA") as error:
        load_images("cifar10", download=False)
    one_line(error)


@pytest.mark.parametrize("download", [False, True])
def test_missing_cifar_names_both_remedies(monkeypatch, download):
    def unreachable(*_, **__):
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unreachable)
    with pytest.raises(ValueError, match=r"set SAGKIT_DATA.*cifar-100-python.*network") as error:
        load_images("cifar100", download=download)
    assert ("Name or service not known" in one_line(error)) == download


@pytest.mark.slow
@pytest.mark.cifar100
def test_cifar100_has_its_published_mean(cifar_root, tmp_path_factory, monkeypatch):
    monkeypatch.delenv("SAGKIT_CACHE")  # ten seconds the first time only
    train = load_images("cifar100", root=cifar_root, download=False)
    assert train.images.shape == (50_000, 3, 32, 32)
    assert torch.bincount(train.labels).tolist() == [500] * 100
    assert train.class_names == tuple(sorted(train.class_names))
    mean = torch.stack([train.images[:, c].double().mean() / 255 for c in range(3)])
    torch.testing.assert_close(mean, torch.tensor([0.5071, 0.4865, 0.4409]).double(), atol=5e-5, rtol=0)


# ------------------------------------------------------------------- folders


def test_folder_with_classes(tmp_path):
    write_tree(tmp_path / "pets", ["b dog", "a cat"], 3)
    (tmp_path / "pets" / "b dog" / "notes.txt").write_text("not an image")
    write_image(tmp_path / "pets" / ".thumbs" / "hidden.png", 0)
    found = load_images(tmp_path / "pets")
    assert found.class_names == ("a cat", "b dog")
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert colours(found.images) == [(1, 0, 7), (1, 1, 7), (1, 2, 7), (0, 0, 7), (0, 1, 7), (0, 2, 7)]


def test_flat_folders_have_no_labels(tmp_path):
    for name in "ab":
        write_image(tmp_path / "flat" / f"{name}.png", (1, 2, 3))
    flat = load_images(tmp_path / "flat")
    assert (flat.labels, flat.class_names, flat.paths, flat.notes) == (None, (), ("a.png", "b.png"), ())


def test_folder_splits(tmp_path):
    write_tree(tmp_path / "set" / "train", ["a", "b"], 4)
    write_tree(tmp_path / "set" / "test", ["b", "c"], 2)
    train, test = load_images(tmp_path / "set"), load_images(tmp_path / "set", "test")
    assert train.class_names == test.class_names == ("a", "b", "c")  # one numbering for both
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert test.labels.tolist() == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="no test split") as error:
        load_images(tmp_path / "set" / "train", "test")
    one_line(error)


def test_every_kind_of_image_becomes_rgb(tmp_path):
    folder = tmp_path / "kinds"
    expected = {
        "a_rgba.png": (255, 127, 127),  # red at half opacity, on white
        "b_grey.png": (90, 90, 90),
        "c_16bit.png": (128, 128, 128),
        "d_cmyk.tif": (255, 0, 255),
        "e_animated.gif": (0, 0, 255),  # first frame
        "f_palette.png": (0, 0, 0),  # a transparency that hides everything is not meant
        "g_one_bit.png": (255, 255, 255),
        "h_float.tif": (255, 255, 255),  # constant 0.5 has no range; see below
    }
    write_image(folder / "a_rgba.png", (255, 0, 0, 128), mode="RGBA")
    write_image(folder / "b_grey.png", 90, mode="L")
    Image.fromarray(np.full((8, 8), 128 * 257, dtype=np.uint16)).save(folder / "c_16bit.png")
    write_image(folder / "d_cmyk.tif", (0, 255, 0, 0), mode="CMYK")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "red")]
    frames[0].save(folder / "e_animated.gif", save_all=True, append_images=frames[1:])
    write_image(folder / "f_palette.png", 0, mode="P", transparency=0)
    write_image(folder / "g_one_bit.png", 1, mode="1")
    ramp = np.linspace(-1, 3, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(ramp).save(folder / "h_float.tif")
    found = load_images(folder, size=8)
    assert found.paths == tuple(expected)
    got = dict(zip(found.paths, found.images, strict=True))
    for name, colour in list(expected.items())[:-1]:
        distance = (got[name][:, 4, 4].int() - torch.tensor(colour)).abs().max()
        assert distance <= 1, f"{name}: {got[name][:, 4, 4].tolist()}"
    stretched = (ramp + 1) / 4 * 255  # the file's own range becomes 0..255
    assert np.abs(got["h_float.tif"][0].numpy() - stretched).max() <= 1


def test_photographs_are_turned_upright_and_cropped_at_the_centre(tmp_path):
    wide = np.zeros((40, 120, 3), dtype=np.uint8)
    wide[:, 40:80] = (200, 100, 50)  # the middle third is what a square crop keeps
    for name in ("a", "b"):
        (tmp_path / "wide").mkdir(exist_ok=True)
        Image.fromarray(wide).save(tmp_path / "wide" / f"{name}.png")
    cropped = load_images(tmp_path / "wide", size=20)
    assert cropped.images.shape == (2, 3, 20, 20)
    assert cropped.images[0, :, 10, 2:18].T.unique(dim=0).tolist() == [[200, 100, 50]]
    corner = np.full((64, 64, 3), 255, dtype=np.uint8)
    corner[:32, :32] = 0  # black at the upper left; orientation 6 shows it at the upper right
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "turned").mkdir()
    for name in ("a", "b"):
        Image.fromarray(corner).save(tmp_path / "turned" / f"{name}.jpg", exif=exif, quality=95)
    upright = load_images(tmp_path / "turned", size=64).images[0, 0]
    assert upright[8, 56] < 20
    assert min(upright[8, 8], upright[56, 8], upright[56, 56]) > 235


def test_folder_size_follows_its_images(tmp_path):
    for side, chosen in ((28, 32), (63, 32), (64, 64), (300, 64)):
        folder = tmp_path / str(side)
        for name in "abc":
            write_image(folder / f"{name}.png", 5, size=(side, side + 9))
        assert load_images(folder).images.shape == (3, 3, chosen, chosen)
    assert load_images(tmp_path / "300", size=17).images.shape[2:] == (17, 17)


def test_unreadable_images_are_named_and_counted(tmp_path):
    write_tree(tmp_path / "set", ["a", "b"], 3)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cut = tmp_path / "set" / "a" / "001.png"
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    (tmp_path / "set" / "b" / "000.png").write_bytes(b"")
    for _ in range(2):  # decoded, then from the cache: told both times
        with pytest.warns(UserWarning, match=r"2 of 6 images.*a/001\.png.*and 1 more; left out"):
            found = load_images(tmp_path / "set")
        assert colours(found.images) == [(0, 0, 7), (0, 2, 7), (1, 1, 7), (1, 2, 7)]
        assert found.labels.tolist() == [0, 0, 1, 1]
        assert [name for name, _ in found.unreadable] == ["a/001.png", "b/000.png"]
        assert all(reason for _, reason in found.unreadable)
        with pytest.raises(ValueError, match=r"2 of 6 images.*a/001\.png") as error:
            load_images(tmp_path / "set", strict=True)
        one_line(error)


def test_what_is_no_file_or_no_longer_readable_stops_nothing(tmp_path, monkeypatch):
    write_tree(tmp_path / "set", ["a", "ünï 日本"], 2)
    os.mkfifo(tmp_path / "set" / "a" / "pipe.png")  # opening it would wait for a writer
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cut = tmp_path / "set" / "a" / "cut.jpg"
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:1500])
    scan = os.scandir
    (tmp_path / "set" / "shut").mkdir()

    def guarded(folder):
        if str(folder).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.warns(UserWarning, match=r"folder shut/ cannot be read \(Permission denied"):
        found = load_images(tmp_path / "set")
    assert found.paths == ("a/000.png", "a/001.png", "ünï 日本/000.png", "ünï 日本/001.png")
    assert dict(found.unreadable).keys() == {"a/cut.jpg", "a/pipe.png"}
    assert dict(found.unreadable)["a/pipe.png"] == "not a regular file"
    assert "truncated" in dict(found.unreadable)["a/cut.jpg"]


DECODER = """
import resource, sys
from pathlib import Path
from sagkit.data import decode
from sagkit.data.folder import list_images
files = list_images(Path(sys.argv[1])).files
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
images, _, reasons, _ = decode.decode_images(Path(sys.argv[1]), files, 64)
print(len(images), len(reasons), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_photographs_of_thirty_megapixels_take_little_memory(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    big = Image.effect_mandelbrot((6708, 4472), (-3, -2.5, 2, 2.5), 2).convert("RGB")  # 30 megapixels, 90 MB
    for i in range(3):
        big.save(folder / f"{i}.jpg")
    run = subprocess.run([sys.executable, "-c", DECODER, str(folder)], capture_output=True, text=True, check=True)
    images, unreadable, megabytes = map(int, run.stdout.split())
    assert (images, unreadable) == (3, 0)
    assert megabytes < 60  # less than one of them decoded whole


def test_huge_pictures_without_a_draft_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "HUGE", 1000)
    inside, most, convert = [0], [0], decode._fit

    def slow(image, size):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        inside[0] -= 1
        return convert(image, size)

    monkeypatch.setattr(decode, "_fit", slow)
    write_tree(tmp_path / "small", ["a"], 6)
    load_images(tmp_path / "small", size=8)
    assert most[0] > 1
    most[0] = 0
    for i in range(6):
        write_image(tmp_path / "large" / f"{i}.png", (i, 0, 0), size=(40, 40))
    assert len(load_images(tmp_path / "large", size=8)) == 6
    assert most[0] == 1


@pytest.mark.slow
def test_thousands_of_tiny_files(tmp_path):
    (tmp_path / "set").mkdir()
    write_image(tmp_path / "set" / "0.png", (3, 1, 4), size=(4, 4))
    tiny = (tmp_path / "set" / "0.png").read_bytes()
    for i in range(1, 3000):
        (tmp_path / "set" / f"{i}.png").write_bytes(tiny)
    found = load_images(tmp_path / "set", size=8)
    assert len(found) == 3000
    assert set(colours(found.images[::299])) == {(3, 1, 4)}


def test_a_full_disk_leaves_no_half_of_a_cache(tmp_path, monkeypatch):
    write_tree(tmp_path / "set", ["a"], 3)

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decode, "save_file", full)
    with pytest.warns(UserWarning, match="No space left on device.*set SAGKIT_CACHE"):
        assert len(load_images(tmp_path / "set")) == 3
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".part", ".safetensors")]


def test_links_that_run_in_circles_end(tmp_path):
    write_tree(tmp_path / "set", ["a"], 2)
    (tmp_path / "set" / "a" / "up").symlink_to(tmp_path / "set", target_is_directory=True)
    (tmp_path / "set" / "self").symlink_to("self")
    (tmp_path / "set" / "a" / "gone.png").symlink_to("nowhere.png")
    with pytest.warns(UserWarning, match=r"1 of 3 images.*a/gone\.png"):
        found = load_images(tmp_path / "set")
    assert found.paths == ("a/000.png", "a/001.png")
    (tmp_path / "linked").mkdir()
    for name in ("p", "q"):  # the same folder under two names is two classes, not a circle
        (tmp_path / "linked" / name).symlink_to(tmp_path / "set" / "a", target_is_directory=True)
    with pytest.warns(UserWarning, match=r"2 of 6"):
        assert load_images(tmp_path / "linked").labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("content", [[], ["notes.txt"], ["only.png"], ["only.png", "broken.png"]])
def test_folder_with_fewer_than_two_images_is_refused(tmp_path, content):
    folder = tmp_path / "few"
    folder.mkdir()
    for name in content:
        (folder / name).write_bytes(b"")
    if "only.png" in content:
        write_image(folder / "only.png", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"no images under" if "only.png" not in content else r"holds 1 ") as error:
            load_images(folder)
    assert str(folder) in one_line(error)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cifar-100", "did you mean cifar100"),
        ("shape", "did you mean shapes"),
        ("zzz", "did you mean shapes, emoji, cifar10, cifar100"),
        ("./no/such/folder", "does not exist"),
        ("missing.npz", "does not exist"),
        (__file__, "neither a folder nor an .npz"),
    ],
)
def test_unknown_names_are_answered(name, said):
    with pytest.raises(ValueError, match=said) as error:
        load_images(name)
    assert name in one_line(error)


def test_bad_split_and_size_are_refused(tmp_path):
    write_tree(tmp_path / "set", ["a"], 2)
    with pytest.raises(ValueError, match=r"'dev'.*train, test, fit, val"):
        load_images("shapes", "dev")
    with pytest.raises(ValueError, match="size=64"):
        load_images("cifar100", size=64)
    with pytest.raises(ValueError, match="got 0"):
        load_images(tmp_path / "set", size=0)


# ----------------------------------------------------------------------- npz


def test_npz_channels_first_or_last(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 7), dtype=np.uint8)
    labels = np.array([0, 2, 1, 0, 2], dtype=np.uint8)
    np.savez(tmp_path / "first.npz", images=pixels, labels=labels, class_names=np.array(["x", "y", "z"]))
    np.savez(tmp_path / "last.npz", images=pixels.transpose(0, 2, 3, 1))
    first, last = load_images(tmp_path / "first.npz"), load_images(str(tmp_path / "last.npz"))
    for found in (first, last):
        assert np.array_equal(found.images.numpy(), pixels)
    assert (first.labels.tolist(), first.class_names) == ([0, 2, 1, 0, 2], ("x", "y", "z"))
    assert (last.labels, last.class_names) == (None, ())


@pytest.mark.parametrize("names", [["dog", "cat", "dog", "é"], [b"dog", b"cat", b"dog", b"\xe9"]])
def test_labels_of_npz_may_be_names(tmp_path, names):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 3, 8, 8), np.uint8), labels=np.array(names))
    found = load_images(tmp_path / "x.npz")
    shown = [found.class_names[c] for c in found.labels.tolist()]
    assert shown[:3] == ["dog", "cat", "dog"]
    assert shown[3] in ("é", r"\xe9")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((4, 3, 8, 8))}, r"uint8.*float64 \(4, 3, 8, 8\)"),
        ({"images": np.zeros((4, 8, 8), np.uint8)}, r"uint8 \(4, 8, 8\)"),
        ({"images": np.zeros((4, 3, 8, 8), np.uint8), "labels": np.zeros((4, 1), np.int64)}, r"int64 \(4, 1\)"),
        ({"images": np.zeros((4, 3, 8, 8), np.uint8), "labels": np.zeros(4)}, r"or names.*float64 \(4,\)"),
        ({"images": np.zeros((1, 3, 8, 8), np.uint8)}, "at least 2"),
        ({"pictures": np.zeros((4, 3, 8, 8), np.uint8)}, "no array 'images'"),
        ({"images": np.array([{}, {}], dtype=object)}, "without objects"),
        (
            {"images": np.zeros((2, 3, 8, 8), np.uint8), "labels": np.arange(2), "class_names": np.array(["a"])},
            r"0\.\.1",
        ),
    ],
)
def test_npz_refuses(tmp_path, arrays, said):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=said) as error:
        load_images(tmp_path / "bad.npz")
    one_line(error)


def test_damaged_npz_and_its_missing_test_split_are_refused(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not a zip file")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "bad.npz"))) as error:
        load_images(tmp_path / "bad.npz")
    one_line(error)
    with pytest.raises(ValueError, match="no test split"):
        load_images(tmp_path / "bad.npz", "test")


# --------------------------------------------------------------------- cache


def cached(tmp_path) -> list[Path]:
    return sorted((tmp_path / "cache").iterdir())


def test_cache_is_used_and_follows_the_files(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    write_tree(folder, ["a", "b"], 2)
    first = load_images(folder, size=8)
    (kept,) = cached(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(decode, "_decode", lambda *_: pytest.fail("decoded although cached"))
        assert torch.equal(load_images(folder, size=8).images, first.images)
    changes = [
        lambda: write_image(folder / "a" / "000.png", (99, 0, 0)),
        lambda: write_image(folder / "c" / "000.png", (98, 0, 0)),
        lambda: (folder / "b" / "001.png").unlink(),
        lambda: (folder / "b" / "000.png").rename(folder / "b" / "renamed.png"),
    ]
    expected = [
        [(99, 0, 0), (0, 1, 7), (1, 0, 7), (1, 1, 7)],
        [(99, 0, 0), (0, 1, 7), (1, 0, 7), (1, 1, 7), (98, 0, 0)],
        [(99, 0, 0), (0, 1, 7), (1, 0, 7), (98, 0, 0)],
        [(99, 0, 0), (0, 1, 7), (1, 0, 7), (98, 0, 0)],
    ]
    for change, rows in zip(changes, expected, strict=True):
        change()
        assert colours(load_images(folder, size=8).images) == rows
        (now,) = cached(tmp_path)  # the superseded file is gone
        assert now != kept
        kept = now
    load_images(folder, size=9)
    assert len(cached(tmp_path)) == 2  # another size has a file of its own


def test_damaged_cache_is_decoded_afresh(tmp_path):
    write_tree(tmp_path / "set", ["a"], 3)
    whole = load_images(tmp_path / "set").images
    (kept,) = cached(tmp_path)
    for damage in (b"", kept.read_bytes()[:-5], b"\xff" * 100):
        kept.write_bytes(damage)
        assert torch.equal(load_images(tmp_path / "set").images, whole)


def test_unwritable_cache_is_a_warning(tmp_path, monkeypatch):
    write_tree(tmp_path / "set", ["a"], 3)
    (tmp_path / "file").write_text("where a folder should be")
    monkeypatch.setenv("SAGKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="set SAGKIT_CACHE to a writable folder"):
        assert len(load_images(tmp_path / "set")) == 3


RACER = """
import hashlib, sys, time
from pathlib import Path
from sagkit.data import decode
from sagkit.data.folder import list_images
folder, ready = Path(sys.argv[1]), Path(sys.argv[2])
files = list_images(folder).files
(ready / sys.argv[3]).touch()
while len(list(ready.iterdir())) < 2:
    time.sleep(0.001)
target, decoded = decode._cache_path(folder, files, 32), decode._decode(folder, files, 32)
for turn in range(40):  # both write the same file and read it while the other writes
    decode._write_cache(target, decoded)
    stored = decode._read_cache(target, 32)
    assert stored is not None and (stored.images == decoded.images).all(), turn
images = decode.decode_images(folder, files, 32).images
print(hashlib.sha256(images.numpy().tobytes()).hexdigest(), len(images))
"""


@pytest.mark.slow
def test_two_processes_race_for_the_cache(tmp_path):
    write_tree(tmp_path / "set", [f"c{c}" for c in range(10)], 30)
    (tmp_path / "ready").mkdir()
    command = [sys.executable, "-W", "error", "-c", RACER, str(tmp_path / "set"), str(tmp_path / "ready")]
    racers = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, env=os.environ) for i in range(2)]
    answers = [racer.communicate(timeout=60)[0].decode() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    images = load_images(tmp_path / "set", size=32).images
    assert answers == [f"{hashlib.sha256(images.numpy().tobytes()).hexdigest()} 300\n"] * 2
    assert [path.suffix for path in cached(tmp_path)] == [".safetensors"]  # one file, nothing temporary left
