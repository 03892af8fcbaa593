"""Other people's folders: what is taken for a picture, what for a class or a split, and that the rest is told."""

import os
import re
import sys
import types
import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from sagkit.data import folder as listing
from sagkit.data.folder import arrange, list_images, printable
from sagkit.data.load import load_folder, load_images
from sagkit.train.build import load_sets
from sagkit.train.config import configure

HEIC = b"\0\0\0\x20ftypheic" + bytes(40)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAGKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def put(*paths: str, form: str = "PNG"):
    for path in paths:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            Image.new("RGB", (8, 8), (len(path), 0, 7)).save(file, form)


def read(*arguments, load=load_folder, **options):
    """The set, and all that was warned of, which is what its notes say."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = load(*arguments, **options)
    told = "\n".join(str(w.message) for w in caught)
    assert all(note in told for note in images.notes)
    return images, told


# ------------------------------------------------------------------ what is a picture


def test_files_passed_over_are_counted_by_suffix_with_the_remedy(tmp_path):
    put(*(f"d/{i}.png" for i in range(4)))
    contents = {f"x{i}.heic": HEIC for i in range(50)} | {
        "v.MOV": b"\0\0\0\x14ftypqt  " + bytes(9),
        "labels.csv": b"a,b",
    }
    for name, content in contents.items():
        Path("d", name).write_bytes(content)
    put("d/raw.nef", form="TIFF")  # raw photographs are TIFF with a small picture first
    put("d/video.thm", form="JPEG")
    images, told = read("d")
    assert len(images) == 4
    for words in (
        "50 .heic (pip install pillow-heif",
        "1 .mov (videos",
        "1 .csv (labels",
        "1 .nef (export raw",
        "1 .thm",
    ):
        assert words in told


def test_a_folder_of_nothing_else_says_so_in_its_refusal():
    Path("d").mkdir()
    for i in range(3):
        Path(f"d/{i}.heic").write_bytes(HEIC)
    with pytest.raises(ValueError, match=r"no images under d: .*3 \.heic \(pip install pillow-heif"):
        load_folder("d")


def test_content_decides_where_the_suffix_does_not():
    put("d/plain", "d/a.jpg_large", "d/b.txt", "d/c.PNG", "d/d.jpg")
    put("d/scan", form="TIFF")
    for name, content in {
        "Py.txt": b"PyTorch, and more words",
        "P6": b"P6 is no picture, though it begins as one",
    }.items():
        Path("d", name).write_bytes(content)
    Path("d/heic.jpg").write_bytes(HEIC)
    Path("d/web.jpg").write_bytes(b"<html>not found</html>")
    Path("d/nothing.jpg").write_bytes(b"")
    images, told = read("d")
    assert images.paths == ("a.jpg_large", "b.txt", "c.PNG", "d.jpg", "plain", "scan")
    assert "1 .txt" in told
    assert "1 without suffix" in told
    reasons = dict(images.unreadable)
    assert "pip install pillow-heif" in reasons["heic.jpg"]
    assert reasons["nothing.jpg"] == "empty file"
    assert reasons["web.jpg"] == "no picture of a known format"


def test_a_plug_in_that_is_installed_is_used(monkeypatch):
    """As pillow-heif does it: a function that registers a format and its suffixes."""
    plugin = types.ModuleType("pillow_heif")

    red = BytesIO()
    Image.new("RGB", (8, 8), "red").save(red, "PNG")

    def register():
        Image.register_open(
            "FAKEHEIF", lambda *_: PngImageFile(BytesIO(red.getvalue())), lambda magic: b"heic" in magic
        )
        Image.register_extension("FAKEHEIF", ".heic")

    plugin.register_heif_opener = register
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    for registry in ("OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, registry, dict(getattr(Image, registry)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    Image.init()
    listing.load_plugins.cache_clear()
    Path("d").mkdir()
    Path("d/a.heic").write_bytes(HEIC)
    put("d/b.png")
    try:
        images, _ = read("d")
        assert images.paths == ("a.heic", "b.png")
        assert images.images[0, :, 4, 4].tolist() == [255, 0, 0]
    finally:
        listing.load_plugins.cache_clear()


SYSTEM = ("@eaDir", "$RECYCLE.BIN", ".thumbnails", "__MACOSX", ".Trash-1000", "lost+found", ".git", "#recycle")


@pytest.mark.parametrize(
    "name", [*SYSTEM, ".ipynb_checkpoints", "System Volume Information", "THMBNL", "Photos.lrdata"]
)
def test_what_systems_keep_in_a_folder_is_no_class(name):
    put("d/a/0.png", "d/a/1.png", "d/b/0.png", "d/b/1.png", f"d/a/{name}/0.jpg/T.jpg", f"d/{name}/t.png")
    put("d/a/._0.png", "d/a/Thumbs.db")
    images, told = read("d")
    assert images.class_names == ("a", "b")
    assert len(images) == 4
    assert f"{name} (2)" in told


def test_hidden_pictures_are_counted_and_hashtag_classes_are_kept():
    put("d/#cat/0.png", "d/@dog/0.png", "d/#cat/.1.png")
    images, told = read("d")
    assert images.class_names == ("#cat", "@dog")
    assert "hidden .png" in told


def test_links_lead_neither_in_circles_nor_out_of_the_folder_by_its_parents():
    put("out/0.png", "d/a/0.png", "d/b/0.png")
    os.symlink("../../..", "d/a/up")
    os.symlink("self", "d/self")
    assert load_folder("d").paths == ("a/0.png", "b/0.png")


# ------------------------------------------------------------------ classes and splits


def layout(*paths: str) -> dict[str, tuple[str, str]]:
    found = arrange(paths)
    return dict(zip(paths, zip(found.splits, found.classes, strict=True), strict=True))


@pytest.mark.parametrize(
    ("template", "train", "test"),
    [
        ("{split}/{name}/1.png", "train", "test"),
        ("{split}/{name}/1.png", "TRAIN", "Test"),
        ("{split}/{name}/1.png", "training", "testing"),
        ("{split}/images/{name}/1.png", "train", "test"),
        ("archive/data/{split}/{name}/1.png", "train", "test"),
        ("{name}/{split}/1.png", "train", "test"),
        ("archive/{name}/{split}/1.png", "Training", "Testing"),
        ("{split}/{name}/images/1.png", "train", "test"),
        ("set/{name}/images/{split}/1.png", "train", "test"),
        ("{split}/{name}/1.png", "train2017", "test2017"),
        ("{split}/{name}/1.png", "train_images", "Test-Images"),
        ("data/{split}/{name}/1.png", "trainset", "testset"),
        ("{name}/{split}/1.png", "Train Data", "Test Data"),
        ("{split}/{name}/1.png", "01_train", "02_test"),
    ],
)
def test_splits_and_classes_are_found_at_any_level(template, train, test):
    paths = {(s, n): template.format(split=s, name=n) for s in (train, test) for n in ("cat", "dog")}
    found = layout(*paths.values())
    for (split, name), path in paths.items():
        assert found[path] == ("train" if split == train else "test", name)


def test_a_folder_of_val_and_test_alone_has_these_splits_and_no_classes_named_after_them():
    put(*(f"d/{s}/{c}/{i}.png" for s in ("val", "test") for c in "ab" for i in range(2)))
    with pytest.warns(UserWarning, match=r"all splits are read together: test \(4\), val \(4\)"):
        whole = load_folder("d")
    assert (len(whole), whole.class_names) == (8, ("a", "b"))
    assert len(load_folder("d", "test")) == 4
    with pytest.raises(ValueError, match="d has no train split, only test and val: give a folder train, too"):
        load_folder("d", "train")


def test_what_names_no_set_is_not_the_folder_one_is_in():
    put("a/0.png", "b/0.png")
    with pytest.raises(ValueError, match="no image set is called '': give one of shapes, "):
        load_images("")
    for size in (True, 0):
        with pytest.raises(ValueError, match="size must be "):
            load_folder(".", size=size)


@pytest.mark.parametrize(
    ("paths", "classes"),
    [
        (("bus/1", "car/1", "train/1"), ("bus", "car", "train")),  # a vehicle
        (("x/a/1", "x/b/1"), ("a", "b")),
        (("pets/cat/1", "pets/dog/1", "wild/fox/1"), ("pets/cat", "pets/dog", "wild/fox")),
        (("pets/cat/1", "pets/2", "wild/fox/1"), ("pets", "pets", "wild")),
        (("a/1", "a/2"), ("", "")),
        (("1", "2", "3", "best/1", "worst/1"), ("",) * 5),
        (("a/1", "b/1", "x"), ("a", "b", "")),
        (("1", "2"), ("", "")),
        (("training day/1", "test tube/1"), ("training day", "test tube")),
        (("tests/1", "trains/1", "valley/1"), ("tests", "trains", "valley")),
    ],
)
def test_classes_are_the_folders_that_tell_pictures_apart(paths, classes):
    found = arrange(paths)
    assert tuple(found.classes) == classes
    assert set(found.splits) == {""}


def test_both_splits_are_read_unless_one_is_asked_for():
    put(
        *(f"d/train/{c}/{i}.png" for c in "ab" for i in range(3)),
        *(f"d/test/{c}/{i}.png" for c in ("a", "new1") for i in range(2)),
    )
    whole, told = read("d")
    assert whole.labels.bincount().tolist() == [5, 3, 2]
    assert whole.class_names == ("a", "b", "new1")
    assert "all splits are read together: test (4), train (6)" in told
    assert "classes in one split only: b (train), new1 (test)" in told
    train, _ = read("d", "train", load=load_images)
    test, _ = read("d", "test", load=load_images)
    assert (len(train), len(test)) == (6, 4)
    assert torch.equal(torch.cat([test.images, train.images]), whole.images)
    assert test.paths + train.paths == whole.paths
    assert train.class_names == test.class_names == whole.class_names


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        (("train", "val", "test"), {"train": 40, "fit": 40, "val": 4, "test": 2}),
        (("train", "valid"), {"train": 40, "fit": 36, "val": 4, "test": 4}),
        (("train", "", "test"), {"train": 40, "fit": 36, "val": 4, "test": 2}),
    ],
)
def test_a_folder_of_validation_images_is_used(folders, sizes):
    for split, n in zip(folders, (20, 2, 1), strict=False):
        put(*(f"d/{split}/{c}/{i}.png" for c in "ab" for i in range(n) if split))
    for split, n in sizes.items():
        images, told = read("d", split)
        assert len(images) == n
        assert ("its folder val is its test split" in told) == (split == "test" and len(folders) == 2)


def test_pictures_beside_the_classes_are_named_and_the_others_keep_their_labels():
    put("d/a/0.png", "d/a/1.png", "d/b/0.png", "d/b/1.png", "d/x.png")
    images, told = read("d")
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert "beside the class folders, left out until they are moved into one: x.png" in told
    Path("d/x.png").rename("d/a/x.png")  # what it says
    images, told = read("d")
    assert (images.labels.tolist(), told) == ([0, 0, 0, 1, 1], "")


def test_a_split_without_classes_is_read_without_labels():
    put(*(f"d/train/{c}/{i}.png" for c in "ab" for i in range(3)), "d/test/0.png", "d/test/1.png")
    train, told = read("d", "train")
    assert (len(train), train.class_names, "beside" in told) == (6, ("a", "b"), True)
    test, told = read("d", "test")
    assert (len(test), test.labels, test.class_names) == (2, None, ())
    assert "no classes in split test: read without labels" in told


def test_pictures_beside_unlabelled_splits_are_only_left_out_of_a_split():
    put("d/train/0.png", "d/train/1.png", "d/test/0.png", "d/x.png")
    assert len(read("d")[0]) == 4
    images, told = read("d", "train")
    assert len(images) == 2
    assert "beside the splits, left out until they are moved into one: x.png" in told


def test_what_is_odd_about_classes_is_said():
    put("d/a/0.png", "d/a/1.png", "d/single/0.png")
    os.makedirs("d/empty")
    images, told = read("d")
    assert images.class_names == ("a", "single")
    assert "classes of one picture: single" in told
    assert "folders without a picture: empty/" in told
    put("one/only/0.png", "one/only/1.png")
    images, told = read("one")
    assert images.labels is None
    assert "fewer than two folders hold pictures: no classes" in told


def test_a_path_is_never_the_name_of_a_set(tmp_path):
    for name in ("shapes", "cifar100-80a"):
        put(f"{name}/0.png", f"{name}/1.png")
        assert len(load_folder(name)) == len(load_images(tmp_path / name)) == 2
    with pytest.raises(ValueError, match="no folder"):
        load_folder("cifar10")
    with pytest.raises(ValueError, match="choose from train, test, fit, val"):
        load_folder("shapes", "unseen")


# ------------------------------------------------------------------ names


def test_every_file_name_is_read_and_printable():
    names = [b"caf\xe9/a.png", b"caf\xe9/b.png", "日本/ü.png".encode(), b"new\nline/\x1b[31m.png"]
    for name in names:
        put(os.fsdecode(b"d/" + name))
    first, told = read("d")
    assert set(first.paths) == {r"caf\xe9/a.png", r"caf\xe9/b.png", "日本/ü.png", r"new\nline/\x1b[31m.png"}
    assert first.labels.tolist().count(first.class_names.index(r"caf\xe9")) == 2
    for text in (*first.paths, *first.class_names, told):
        text.encode()
    again, _ = read("d")  # from the cache, which takes such names, too
    assert torch.equal(first.images, again.images)
    assert len(list(Path("cache").iterdir())) == 1
    assert printable("plain") == "plain"


def test_a_folder_that_cannot_be_read_is_refused_in_one_line(monkeypatch):
    put("d/0.png")

    def shut(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", shut)
    with pytest.raises(ValueError, match=r"d cannot be read \(Permission denied\)"):
        list_images(Path("d"))


# ------------------------------------------------------------------ advice


def test_the_advice_of_a_refusal_is_taken_by_what_gave_it():
    put(*(f"d/{c}/{i}.png" for c in "ab" for i in range(20)))
    config = configure("vicreg", "tour", data="d", batch_size=16)
    with pytest.raises(ValueError, match="no test split") as refused:
        load_sets(config, None, None)
    advice = re.search(
        r"with subfolders (\w+) and (\w+); `sagkit train` does without by --split (\w+)$", str(refused.value)
    )
    fitted, judged = load_sets(replace(config, split=advice[3]), None, None)
    assert (len(fitted), len(judged)) == (36, 4)
    for split in advice.groups()[:2]:
        put(*(f"divided/{split}/{c}/{i}.png" for c in "ab" for i in range(20)))
    assert [len(images) for images in load_sets(replace(config, data="divided"), None, None)] == [40, 40]


def test_a_part_too_small_is_called_by_its_name():
    put(*(f"d/{i}.png" for i in range(8)))
    with pytest.raises(ValueError, match=r"^split val of d holds 1 readable image: at least 2"):
        load_folder("d", "val")
    assert len(load_folder("d", "fit")) == 7
