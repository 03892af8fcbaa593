"""Torch data sets and loaders of other people: read to the pixels and labels that they give, or refused in words."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from sagkit.data import collect, mapped
from sagkit.data.load import make_shapes
from sagkit.train.config import configure
from sagkit.train.trainer import fit

PIXELS = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PICTURES = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in PIXELS]


class Items(Dataset):
    """A list as a data set, with class names where there are any."""

    def __init__(self, items, classes=None):
        self.items = items
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Stream(IterableDataset):
    def __iter__(self):
        yield from PICTURES


@pytest.mark.parametrize(
    "items",
    [
        list(PIXELS),
        [(image,) for image in PICTURES],
        [{"jpg": image, "__key__": "x"} for image in PICTURES],
        list(PIXELS.permute(0, 2, 3, 1).numpy()),
        list(PIXELS.float() / 255),
    ],
    ids=["bytes", "pictures", "webdataset", "channels last", "floats"],
)
def test_images_of_every_form_keep_their_pixels(items):
    found = collect(Items(items))
    assert (found.images == PIXELS).all()
    assert found.labels is None


def test_a_loader_is_read_in_the_order_of_its_data_set():
    assert (collect(DataLoader(Items(PICTURES), 4, shuffle=True)).images == PIXELS).all()
    assert (collect(Stream()).images == PIXELS).all()


@pytest.mark.parametrize("label", [int, np.int64, torch.tensor])
def test_labels_keep_the_classes_of_their_data_set(label):
    items = Items([(image, label(i % 2)) for i, image in enumerate(PICTURES)], ["cat", "ant"])
    found = collect(Subset(items, [1, 2, 4]))
    assert found.class_names == ("cat", "ant")
    assert found.labels.tolist() == [1, 0, 0]
    assert (found.images == PIXELS[[1, 2, 4]]).all()


def test_names_become_positions_in_their_sorted_order():
    found = collect(Items([{"image": image, "label": "ba"[i % 2]} for i, image in enumerate(PICTURES)]))
    assert found.class_names == ("a", "b")
    assert found.labels.tolist() == [1, 0, 1, 0, 1, 0]


def test_hugging_face_keeps_its_class_names():
    class Feature:
        names = ("low", "high")

    items = Items([{"img": image, "label": 1} for image in PICTURES])
    items.features = {"img": None, "label": Feature()}
    assert collect(items).class_names == ("low", "high")


def test_pictures_of_several_sizes_take_one():
    items = Items([PICTURES[0], PICTURES[1].resize((20, 10))])
    with pytest.raises(ValueError, match=r"item 1 has shape \(3, 10, 20\), and the first \(3, 8, 8\): give a size"):
        collect(items)
    assert collect(items, size=8).images.shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([(PIXELS[0].float() / 127.5 - 1, 0)], "item 0 is float32 from -1 to .*: leave Normalize out"),
        ([(PIXELS[0] / 255).where(PIXELS[0] > 9, torch.nan)], "item 0 is float32 from nan"),
        ([PIXELS[0, :1]], r"item 0 has shape \(1, 8, 8\)"),
        ([PIXELS], r"item 0 has shape \(6, 3, 8, 8\)"),
        ([{"text": "a"}], "item 0 has the keys text: name its image 'image'"),
        (["a.png"], "item 0 is of type str"),
        ([(PIXELS[0], {"boxes": []})], "item 0 has a label of type dict"),
        ([(PIXELS[0], 1), (PIXELS[1], None)], "item 1 has no label"),
        ([(PIXELS[0], -1)], "labels must lie in"),
        ([], "Items has no items"),
    ],
)
def test_what_is_no_image_is_refused_by_its_number(items, told):
    with pytest.raises(ValueError, match=told):
        collect(Items(items))


def test_many_images_lie_in_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("SAGKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(mapped, "IN_MEMORY", 500)
    found = collect(Items(PICTURES))
    assert (found.images == PIXELS).all()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # trains twice
def test_a_data_set_trains_as_the_image_set_of_its_images(tmp_path):
    """The same record, figure by figure, and the same weights."""
    train, queries = make_shapes(64, 16, 1), make_shapes(27, 16, 2)

    def run(name, *sets):
        places = {"results": str(tmp_path / name), "runs": str(tmp_path / name / "runs")}
        sizes = {"epochs": 1, "batch_size": 32, "view_size": 16, "resamplings": 0, "probe": False}
        return fit(configure("sag-vicreg", "tour", **sizes, **places), *sets)

    def source(images):
        return Items(list(zip(images.images, images.labels.tolist(), strict=True)), list(images.class_names))

    whole, read = run("a", train, queries), run("b", source(train), DataLoader(source(queries), 8, shuffle=True))
    assert read.record["metrics"] == whole.record["metrics"]
    assert read.record["fingerprint"] == whole.record["fingerprint"]
    for mine, theirs in zip(read.encoder.parameters(), whole.encoder.parameters(), strict=True):
        assert torch.equal(mine, theirs)
