"""What a pilot leaves alone, what it checks first, and what it never does twice."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sagkit.data.load import ImageSet, make_shapes
from sagkit.model import Encoder, make_encoder
from sagkit.pilot import budget
from sagkit.pilot import run as piloting
from sagkit.pilot.embedding import load_embedding
from sagkit.pilot.network import untrained
from sagkit.pilot.run import check_class, judge, pilot
from sagkit.train.record import save_encoder


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("SAGKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(piloting, "RESAMPLINGS", 2)
    monkeypatch.setattr(piloting, "STRUCTURE_IMAGES", 32)
    monkeypatch.setattr(piloting, "STORED", tmp_path / "none")
    chosen = budget.configure
    smaller = {"encoder": "resnet10-w4", "projector_hidden": 8, "projector_out": 8, "view_size": 8}
    monkeypatch.setattr(budget, "configure", lambda *a, **fields: chosen(*a, **{**fields, **smaller}))


def draw(folder: Path, names, seed: int = 0) -> Path:
    """Pictures of shapes under names, which may be bytes that are no text."""
    for name, image in zip(names, make_shapes(len(names), size=16, seed=seed).images, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return folder


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    save_encoder(tmp_path / "e.safetensors", make_encoder("resnet10-w4"), "resnet10-w4")
    return str(tmp_path / "e.safetensors")


@pytest.mark.slow  # trains
def test_a_failure_after_training_trains_nothing_again_and_others_files_stay(tmp_path, monkeypatch):
    folder = draw(tmp_path / "cifar100-80a", [f"{i}.png" for i in range(40)])  # a folder called as a data set is
    theirs = tmp_path / "out/unfinished/laptop/x/notes.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    page = piloting.findings_page
    monkeypatch.setattr(piloting, "findings_page", lambda found: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pilot(folder, tmp_path / "out", epochs=1, progress=False)
    assert theirs.read_text() == "mine"
    assert (tmp_path / "out/embedding.npz").exists()
    monkeypatch.setattr(piloting, "findings_page", page)
    monkeypatch.setattr(budget, "fit", lambda *_: pytest.fail("trained again"))
    first = load_embedding(tmp_path / "out/embedding.npz").features
    found = pilot(folder, tmp_path / "out", progress=False)
    torch.testing.assert_close(found.embedding.features, first)
    assert found.learnt.record["config"]["data"] == str(folder)
    assert [p.name for p in (tmp_path / "out/unfinished").rglob("*")] == ["laptop", "x", "notes.txt"]
    with pytest.raises(ValueError, match=r"trained for 1 epochs and not 2: give another --out"):
        pilot(folder, tmp_path / "out", epochs=2, progress=False)
    draw(folder, ["another.png"], seed=1)
    with pytest.raises(ValueError, match=r"trained on other images .* give another --out"):
        pilot(folder, tmp_path / "out", progress=False)


NAMES = [b"caf\xe9.png", "<script>alert(1)</script>.png", "a\nb.png", "a\rb.png", 'q"uote,.png', "é" * 120 + ".png"]


def test_every_output_takes_every_file_name(tmp_path, encoder, capsys):
    usual = [f"{i}.png" for i in range(34)]
    strange = [n.decode("utf8", "surrogateescape") if isinstance(n, bytes) else n.replace("/", "∕") for n in NAMES]
    folder = draw(tmp_path / "d\udce9", usual + strange)
    with open(folder / "br\udcffoken.png", "wb") as file:
        file.write(b"no picture")
    found = pilot(folder, tmp_path / "out", encoder=encoder)
    kept = load_embedding(tmp_path / "out/embedding.npz").names
    assert kept == found.embedding.names == found.images.paths
    assert {"caf\\xe9.png", "a\\nb.png", "a\\rb.png", 'q"uote,.png'} < set(kept)
    import csv

    for table, column in (("neighbours.csv", "neighbour"), ("anomalies.csv", "name")):
        with open(tmp_path / "out" / table, newline="", encoding="utf-8") as file:
            assert {row[column] for row in csv.DictReader(file)} <= set(kept)
    text = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "br\\xffoken.png" in text
    assert "report: " in capsys.readouterr().out


def test_an_odd_class_is_checked_before_any_image_is_read(tmp_path, monkeypatch):
    folder = draw(tmp_path / "d", [f"{c}/{i}.png" for c in ("roofs", "odd ones") for i in range(20)])
    monkeypatch.setattr(piloting, "load_folder", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(ValueError, match="no class folder 'Odd one' of anomalies: did you mean odd ones"):
        pilot(folder, tmp_path / "out", odd_class="Odd one", progress=False)
    split = draw(
        tmp_path / "split", [f"{c}/{i}.png" for c in ("train/a", "train/b", "test/a", "test/new1") for i in range(3)]
    )
    check_class(split, "new1")  # of either split


@pytest.mark.slow  # embeds and scores a folder
@pytest.mark.parametrize("usual", [1, 2, 8])
def test_fewer_usual_pictures_than_neighbours_are_said(tmp_path, encoder, usual):
    names = [f"usual/{i}.png" for i in range(usual)] + [f"odd/{i}.png" for i in range(40)]
    found = pilot(draw(tmp_path / "d", names), tmp_path / "out", encoder=encoder, odd_class="odd", progress=False)
    assert ("this encoder" in found.precision) == (usual > 1)
    text = (tmp_path / "out/report.html").read_text()
    assert (f"precision@{usual - 1}" in text) == (usual > 1)


def test_anomalies_need_both_kinds(tmp_path, encoder):
    folder = draw(tmp_path / "d", [f"odd/{i}.png" for i in range(40)])
    (folder / "usual").mkdir()
    (folder / "usual/broken.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no class folder|both kinds"):
        pilot(folder, tmp_path / "out", encoder=encoder, odd_class="odd", progress=False)


def test_the_untrained_network_is_of_the_encoders_architecture_statistics_and_size():
    torch.manual_seed(0)
    encoder = make_encoder("resnet20-w4", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    encoder.size = (24, 24)
    twin = untrained(encoder, seed=3)
    assert (twin.architecture, twin.size, twin.mean.flatten().tolist()) == (
        "resnet20-w4",
        (24, 24),
        encoder.mean.flatten().tolist(),
    )
    assert twin.state_dict().keys() == encoder.state_dict().keys()
    assert not torch.equal(next(twin.parameters()), next(encoder.parameters()))
    assert untrained(torch.nn.Flatten(), 0) is None


def test_the_better_of_two_is_used_by_labels_or_without_them():
    structure = {"a": {"structure": {"label_free": 0.4}}, "b": {"structure": {"label_free": 0.3}}}
    assert piloting.better(structure) == "a"
    assert piloting.better({"a": structure["a"] | {"precision": 0.2}, "b": structure["b"] | {"precision": 0.3}}) == "b"


@pytest.mark.slow  # trains
def test_the_stored_encoder_is_used_where_it_is_better(tmp_path, encoder, monkeypatch):
    folder = draw(tmp_path / "d", [f"{i}.png" for i in range(40)])
    monkeypatch.setattr(piloting, "STORED", Path(encoder))
    monkeypatch.setattr(piloting, "better", lambda judged: "stored encoder")
    found = pilot(folder, tmp_path / "out", epochs=1, progress=False)
    assert isinstance(found.learnt.network, Encoder)
    expected = judge(found.learnt.network, found.images, found.embedding.features, None, 0)["structure"]
    assert found.structure["this encoder"] == expected
    assert "encoder trained here, not used" in found.structure
    assert "stored encoder" in (tmp_path / "out/report.html").read_text()


def test_pixels_are_an_encoder_without_an_untrained_one(tmp_path):
    folder = draw(tmp_path / "d", [f"{i}.png" for i in range(34)])
    found = pilot(folder, tmp_path / "out", encoder="pixels", progress=False)
    assert set(found.structure) == {"this encoder", "raw pixels"}
    np.testing.assert_allclose(found.embedding.features, found.images.images.flatten(1).float() / 255)


def test_an_image_set_without_classes_has_no_precision():
    images = ImageSet(make_shapes(40, size=16).images)
    assert "precision" not in judge(torch.nn.Flatten(), images, images.images.flatten(1).float(), None, 0)
