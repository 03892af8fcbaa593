"""The pilot from a folder to its page: what is written, what it says, and what is kept when something fails."""

import base64
import csv
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist

from sagkit.__main__ import main as sagkit
from sagkit.data.load import load_images, make_shapes
from sagkit.metrics.evaluate import label_free
from sagkit.model import extract_features, make_encoder
from sagkit.pilot import budget
from sagkit.pilot import run as piloting
from sagkit.pilot.anomaly import mahalanobis_anomaly
from sagkit.pilot.budget import seconds_per_epoch, settings
from sagkit.pilot.duplicates import near_duplicates
from sagkit.pilot.embedding import load_embedding
from sagkit.pilot.page import COLUMNS, TILE, Tile, sheet, templates
from sagkit.pilot.photos import ODD, make_photo_folder
from sagkit.pilot.run import pilot
from sagkit.train import record
from sagkit.train.record import load_encoder, save_encoder
from sagkit.train.trainer import Trainer

STRANGE = "<b>ünï & 日本"  # a class folder whose name is no harmless HTML


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("SAGKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(piloting, "RESAMPLINGS", 10)
    monkeypatch.setattr(piloting, "STRUCTURE_IMAGES", 40)
    monkeypatch.setattr(piloting, "STORED", tmp_path / "none")
    chosen = budget.configure
    smaller = {"encoder": "resnet10-w4", "projector_hidden": 16, "projector_out": 16, "view_size": 16}
    monkeypatch.setattr(budget, "configure", lambda *a, **fields: chosen(*a, **{**fields, **smaller}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """48 pictures in three class folders, one of them a copy, and a broken file."""
    root, drawn = tmp_path_factory.mktemp("pictures"), make_shapes(47, size=32, seed=0)
    for i, image in enumerate(drawn.images):
        place = root / ("round", "other", STRANGE)[i % 3]
        place.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{i:02d}.png")
    Image.open(root / "round" / "00.png").save(root / "other" / "copy.jpg", quality=95)
    (root / "other" / "broken.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "e.safetensors"
    save_encoder(path, make_encoder("resnet10-w4"), "resnet10-w4")
    return path


class Page(HTMLParser):
    """Collects text and sources, and fails on tags that do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.words, self.sources, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def names(folder) -> set[str]:
    """What lies in a folder; the .parquet beside an embedding is there only where pyarrow is."""
    return {path.name for path in folder.iterdir()} - {"embedding.parquet"}


def rows(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_folder_becomes_features_neighbours_scores_and_a_page(tmp_path, folder):
    found = pilot(folder, tmp_path / "out", epochs=2, odd_class=STRANGE, progress=False)
    images = found.images
    # The stored encoder gives the stored features, row by row the files' names.
    (stored,) = (tmp_path / "out").rglob("*-seed0.safetensors")
    assert names(tmp_path / "out") == {"run", "embedding.npz", "neighbours.csv", "anomalies.csv", "report.html"}
    kept = load_embedding(tmp_path / "out" / "embedding.npz")
    assert kept.names == images.paths
    torch.testing.assert_close(kept.features, extract_features(load_encoder(stored), images.images))
    x = kept.features.double().numpy()
    distance = cdist(x - x.mean(axis=0), x - x.mean(axis=0), "cosine")
    np.fill_diagonal(distance, np.inf)
    first = [row for row in rows(tmp_path / "out" / "neighbours.csv") if row["rank"] == "1"]
    assert [row["name"] for row in first] == list(kept.names)
    for i, row in enumerate(first):
        assert float(row["similarity"]) == pytest.approx(1 - distance[i].min(), abs=2e-4)
        assert distance[i, kept.names.index(row["neighbour"])] == pytest.approx(distance[i].min(), abs=2e-4)
    scores = rows(tmp_path / "out" / "anomalies.csv")
    np.testing.assert_allclose(
        [float(row["Mahalanobis"]) for row in scores], mahalanobis_anomaly(kept.features), atol=1e-4
    )
    # Class folders score, and are not shown to training.
    assert set(found.learnt.record["metrics"]) == {"label_free", "label_free_low", "label_free_high"}
    assert found.precision.keys() == found.auroc.keys() == {"raw pixels", "untrained network", "this encoder"}
    assert int(found.odd.sum()) == 15
    # The structure on the page is the label-free score of the stored encoder, with its interval.
    score = label_free(load_encoder(stored), images.images, 0, 40, 10)
    assert found.structure["this encoder"] == pytest.approx(score, abs=1e-5)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    read = Page(text)
    assert set(read.sources) == {"embedding.npz", "neighbours.csv", "anomalies.csv"}  # and nothing is fetched
    assert "b" not in read.tags  # the folder's name is text
    words = " ".join(read.words)
    for told in (
        "48 images read",
        "1 file could not be read",
        "broken.png",
        "1 group of near duplicates",
        STRANGE,
        "AUROC",
        f"{score['label_free_low']:.2f} to {score['label_free_high']:.2f}",
    ):
        assert told in words
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings[:3] == ["What it means", "What to do next", "Map"]
    assert headings[3:] == ["Look-alikes", "Anomalies", "Near duplicates", "Data", "Training", "Structure", "Cost"]


def test_with_an_encoder_nothing_is_trained_and_a_flat_folder_has_no_scores_by_label(tmp_path, folder, encoder):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in folder.rglob("[0-9]*.png"):
        (flat / path.name).write_bytes(path.read_bytes())
    found = pilot(flat, tmp_path / "out", encoder=str(encoder), progress=False)
    assert found.learnt.record is None
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    expected = extract_features(load_encoder(encoder), load_images(flat).images)
    torch.testing.assert_close(found.embedding.features, expected)
    assert (found.precision, found.auroc, found.odd) == ({}, {}, None)
    assert "Nothing was trained" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--encoder", "absent.safetensors"], "absent.safetensors.* does not exist"),
        (["--odd-class", "elsewhere"], "no class folder 'elsewhere' of anomalies: there are .*other, round"),
        (["--odd-class", "Rund"], "no class folder 'Rund' of anomalies: did you mean round.?"),
        (["--device", "gpux"], "device 'gpux' cannot be had here"),
        (["--size", "0"], "size must be at least 1"),
    ],
)
def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path, folder, arguments, words):
    with pytest.raises(SystemExit, match=rf"^sagkit.pilot: .*{words}") as stopped:
        sagkit(["pilot", str(folder), "--out", str(tmp_path / "out"), *arguments])
    assert "\n" not in str(stopped.value)


def test_too_few_images_and_an_output_that_cannot_be_written_are_refused_at_once(tmp_path, folder):
    one = tmp_path / "one"
    one.mkdir()
    Image.new("RGB", (8, 8)).save(one / "a.png")
    with pytest.raises(SystemExit, match="1 readable image"):
        sagkit(["pilot", str(one), "--out", str(tmp_path / "out")])
    for i in range(5):
        Image.new("RGB", (8, 8)).save(one / f"{i}.png")
    with pytest.raises(SystemExit, match="6 readable images: a pilot needs 32 or more"):
        sagkit(["pilot", str(one), "--out", str(tmp_path / "out")])
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"cannot be written to .*choose another --out"):
        sagkit(["pilot", str(folder), "--out", str(tmp_path / "file" / "out")])
    with pytest.raises(SystemExit):
        sagkit(["pilot", "--out", str(tmp_path / "out")])  # neither a folder nor --demo


WRITTEN = ["embedding.npz", "neighbours.csv", "anomalies.csv", "report.html"]


@pytest.mark.parametrize("last", WRITTEN)
def test_a_disk_that_fills_up_costs_only_what_comes_after(tmp_path, folder, encoder, monkeypatch, last):
    replace = os.replace

    def full(draft, path):
        if Path(path).name == last:
            Path(draft).write_bytes(Path(draft).read_bytes()[:100])  # half of it is on the disk
            raise OSError(28, "No space left on device", str(path))
        replace(draft, path)

    monkeypatch.setattr(record.os, "replace", full)
    with pytest.raises(SystemExit, match=rf"sagkit.pilot: .*{last} .*No space left on device") as stopped:
        sagkit(["pilot", str(folder), "--out", str(tmp_path / "out"), "--encoder", str(encoder)])
    assert "\n" not in str(stopped.value)
    kept = set(WRITTEN[: WRITTEN.index(last)])
    assert names(tmp_path / "out") == kept
    if "embedding.npz" in kept:
        assert len(load_embedding(tmp_path / "out" / "embedding.npz").names) == 48


@pytest.mark.slow
def test_a_training_that_was_interrupted_goes_on_with_the_epochs_it_began_with(tmp_path, folder, monkeypatch):
    whole = pilot(folder, tmp_path / "whole", epochs=3, progress=False).learnt
    save = Trainer.save

    def full(trainer):
        if trainer.epoch == 3:
            raise OSError(28, "No space left on device", str(trainer.checkpoint))
        save(trainer)

    monkeypatch.setattr(Trainer, "save", full)
    with pytest.raises(SystemExit, match=r"sagkit.pilot: .*No space left on device"):
        sagkit(["pilot", str(folder), "--out", str(tmp_path / "out"), "--epochs", "3"])
    assert names(tmp_path / "out") == {"run", "unfinished"}
    monkeypatch.setattr(Trainer, "save", save)
    again = pilot(folder, tmp_path / "out", minutes=1000, progress=False).learnt  # not the epochs of 1000 minutes
    assert [entry["epoch"] for entry in again.record["log"]] == [1, 2, 3]
    assert [e["loss"] for e in again.record["log"]] == [e["loss"] for e in whole.record["log"]]
    for name, value in whole.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value), name
    assert "unfinished" not in names(tmp_path / "out")


@pytest.mark.parametrize("asked", [["--minutes", "0"], ["--epochs", "0"], ["--minutes", "nan"]])
def test_a_training_of_no_length_is_refused(tmp_path, folder, asked):
    with pytest.raises(SystemExit, match=r"minutes must be above 0 and epochs at least 1, got") as refusal:
        sagkit(["pilot", str(folder), "--out", str(tmp_path / "out"), *asked])
    assert "\n" not in str(refusal.value)


def test_every_kind_of_file_name_and_format_reaches_the_page(tmp_path, encoder):
    drawn, mixed = make_shapes(40, size=32, seed=3).images, tmp_path / "my pictures"
    place = mixed / "Zürich 東京" / "a b"
    place.mkdir(parents=True)
    for i, image in enumerate(drawn):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"№ {i:02d}.png")
    picture = Image.fromarray(drawn[0].permute(1, 2, 0).numpy())
    picture.convert("CMYK").save(mixed / "cmyk.tif")
    picture.convert("RGBA").save(mixed / "alpha.png")
    picture.save(mixed / "moving.gif", save_all=True, append_images=[picture.rotate(90)])
    Image.fromarray(np.full((32, 32), 40_000, dtype=np.uint16)).save(mixed / "16 bit.png")
    (mixed / "loop").symlink_to(mixed, target_is_directory=True)
    (mixed / "cut.jpg").write_bytes((place / "№ 00.png").read_bytes()[:200])
    (mixed / "notes.txt").write_text("no picture")
    found = pilot(mixed, tmp_path / "out", encoder=str(encoder), progress=False)
    others = {"16 bit.png", "alpha.png", "cmyk.tif", "moving.gif"}
    assert set(found.embedding.names) == {f"Zürich 東京/a b/№ {i:02d}.png" for i in range(40)} | others
    assert [name for name, _ in found.images.unreadable] == ["cut.jpg"]
    assert load_embedding(tmp_path / "out" / "embedding.npz").names == found.embedding.names
    words = " ".join(Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).words)
    assert "44 images read" in words
    assert {row["name"] for row in rows(tmp_path / "out" / "anomalies.csv")} == set(found.embedding.names)


@pytest.mark.parametrize("n", [32, 60, 766, 50_000])
def test_settings_leave_several_steps_an_epoch_and_ten_images_a_neighbour(tmp_path, n):
    config = settings(n, tmp_path, "x")
    assert n // config.batch_size >= 2
    assert config.batch_size <= 256
    assert 1 <= config.k <= config.batch_size / 10


def test_the_estimate_is_steps_times_the_time_of_one(tmp_path, monkeypatch):
    clock, step = [0.0], Trainer.step

    def slow(trainer, number, index):
        clock[0] += 2.5
        return step(trainer, number, index)

    monkeypatch.setattr(Trainer, "step", slow)
    monkeypatch.setattr(budget.time, "perf_counter", lambda: clock[0])
    config = settings(200, tmp_path, "x")
    assert seconds_per_epoch(config, make_shapes(200, size=16)) == 2.5 * (200 // config.batch_size)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_demonstration_has_classes_oddities_copies_and_broken_files(tmp_path):
    folder = make_photo_folder(tmp_path / "photos", per_class=6, odd=8)
    with pytest.warns(UserWarning, match="2 of 58 images"):
        images = load_images(folder)
    assert len(images.class_names) == 8
    assert int((images.labels == images.class_names.index(ODD)).sum()) == 8
    assert {name for name, _ in images.unreadable} == {"china-a1/cut off.jpg", "china-a2/empty.png"}
    groups = [{images.paths[i] for i in group} for group in near_duplicates(images.images)]
    for place in ("china-a1", "china-a2", "china-b1", "china-b2", "china-b3", "flower-a2"):
        assert any({f"{place}/000.jpg", f"{place}/copy of 000.jpg"} <= group for group in groups)
    again = make_photo_folder(tmp_path / "again", per_class=6, odd=8)
    for path in folder.rglob("*.jpg"):
        assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes()


def test_the_demonstration_is_not_mixed_with_anybodys_photographs(tmp_path):
    make_photo_folder(tmp_path / "photos", per_class=2, odd=1)
    make_photo_folder(tmp_path / "photos", per_class=2, odd=1)  # its own are replaced
    (tmp_path / "photos" / ".DS_Store").write_text("")
    theirs = tmp_path / "photos/2024/IMG 1.jpg"
    theirs.parent.mkdir()
    Image.new("RGB", (8, 8)).save(theirs)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match=r"photos holds pictures of yours \(2024/IMG 1.jpg\): choose another folder"):
        sagkit(["pilot", "--demo", "--out", str(tmp_path)])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_tables_pictures_and_strips_say_what_they_are_given():
    parts = templates().get_template("macros.html.j2").module
    numbers = parts.table(["n", "x", "a < b"], [[1234, 0.12345, "c & d"], [5, 1.0, ""]])
    read = Page(numbers + parts.table([], [["p", "q"]]))
    assert read.words == ["n", "x", "a < b", "1,234", "0.12", "c & d", "5", "1.00", "p", "q"]
    assert numbers.count('class="n"') == 6  # two columns of numbers, with their headings
    assert "th" not in Page(parts.table([], [["p", "q"]])).tags
    shown = parts.strip([Tile(33, "a/<i>", "0.5", "first"), Tile(0, '"')], 32)
    read = Page(shown)
    assert read.words == ["<i>", "0.5", '"']
    assert re.findall(r"--x:(\d+);--y:(\d+)", shown) == [("1", "1"), ("0", "0")]
    assert re.findall(r'<figure(.*?) title="(.*?)"', shown) == [(' class="first"', "a/&lt;i&gt;"), ("", "&#34;")]


def test_every_picture_of_the_sheet_lies_where_its_tile_looks():
    levels = torch.arange(40, dtype=torch.uint8) * 6
    images = levels.view(-1, 1, 1, 1).expand(-1, 3, 48, 48).clone()
    whole = Image.open(io.BytesIO(base64.b64decode(sheet(images).split(",")[1])))
    assert whole.size == (TILE * COLUMNS, 2 * TILE)
    for place, level in enumerate(levels.tolist()):
        x, y = place % COLUMNS * TILE, place // COLUMNS * TILE
        part = np.asarray(whole.crop((x, y, x + TILE, y + TILE))).astype(int)
        assert np.abs(part - level).max() < 6
