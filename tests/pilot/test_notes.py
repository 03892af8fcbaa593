"""What a pilot says of other people's folders: the notes of their reading stand in its log and on its page."""

import html
import os

import numpy as np
import pytest
from PIL import Image

from sagkit.__main__ import main as sagkit
from sagkit.pilot import run as piloting


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two splits, a class in one of them alone, a picture beside, a name that is no UTF-8, and what cannot be read."""
    monkeypatch.setenv("SAGKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(piloting, "RESAMPLINGS", 10)
    monkeypatch.setattr(piloting, "STRUCTURE_IMAGES", 40)
    draw, root = np.random.default_rng(0), tmp_path / "d"
    names = [f"{place}/{i}.png" for place in ("train/a", "train/b", "test/a", "test/new") for i in range(10)]
    for name in [*names, "x.png", os.fsdecode(b"train/a/caf\xe9.png")]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / name)
    for i in range(50):
        (root / "train" / f"{i}.heic").write_bytes(b"\0\0\0\x20ftypheic" + bytes(20))
    return root


@pytest.mark.slow  # a whole pilot, of pixels
def test_what_was_passed_over_and_guessed_is_in_the_log_and_on_the_page(tmp_path, folder, capsys):
    sagkit(["pilot", str(folder), "--out", str(tmp_path / "out"), "--encoder", "pixels", "--odd-class", "new"])
    page = html.unescape((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    for text in (capsys.readouterr().out, page):
        assert "files passed over: 50 .heic (pip install pillow-heif to read them)" in text
        assert "all splits are read together: test (20), train (21)" in text
        assert "classes in one split only: b (train), new (test)" in text
        assert "left out until they are moved into one: x.png" in text
    for name in ("anomalies.csv", "neighbours.csv"):
        assert r"train/a/caf\xe9.png" in (tmp_path / "out" / name).read_text(encoding="utf-8")


def test_a_class_that_is_not_there_is_refused_before_any_picture_is_decoded(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("sagkit.data.load.decode_images", lambda *_: pytest.fail("decoded"))
    with pytest.raises(SystemExit, match=r"no class folder 'none' of anomalies: there are a, b, new"):
        sagkit(["pilot", str(folder), "--out", str(tmp_path / "out"), "--encoder", "pixels", "--odd-class", "none"])


def test_too_few_pictures_are_refused_with_what_was_passed_over(tmp_path, folder):
    with pytest.raises(SystemExit, match=r"holds 21 readable images: a pilot needs 32 or more; .*50 \.heic"):
        sagkit(["pilot", str(folder / "train"), "--out", str(tmp_path / "out")])
