"""Notebooks as reports with other parameters; as they stand, `pytest --nbmake notebooks` runs them."""

import json
import re
import subprocess

import pytest
from pages import NOTEBOOKS, run, tagged
from PIL import Image

from sagkit.data.load import make_shapes

PAGES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("name", PAGES)
def test_what_a_notebook_writes_as_it_stands_goes_where_git_does_not_look(name):
    parameters = next(c for c in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"] if tagged(c))
    given = re.findall(r'^out = "(.*)"', "".join(parameters["source"]), re.MULTILINE)
    for out in given:
        stands = subprocess.run(["git", "check-ignore", "-q", out], cwd=NOTEBOOKS, check=False).returncode
        assert stands in (0, 128), f"{name} writes to {out}, which git tracks"  # 128: no checkout


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("06_global_structure", {"resamplings": 10, "experiments": 3}),
        ("07_paper_tables", {}),
        ("08_unseen_data", {}),
    ],
)
def test_without_cifar_and_without_records_the_pages_say_so_and_run(tmp_path, monkeypatch, name, given):
    monkeypatch.setenv("SAGKIT_DATA", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)  # no records here
    shown = run(name, results="none", **given)[1]
    assert sum("not measured yet" in str(output) for output in shown.values()) >= 3


@pytest.mark.slow
@pytest.mark.notebook
def test_a_folder_of_ones_own_is_trained_on_and_searched(tmp_path, monkeypatch):
    monkeypatch.setenv("SAGKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    for i, image in enumerate(make_shapes(48, size=32, seed=0).images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "mine" / f"{i:02d}.png")
    given = {"folder": str(tmp_path / "mine"), "encoder": "", "minutes": 0.01, "results": "none"}
    monkeypatch.chdir(tmp_path)
    shown = run("10_your_own_images", **given)[1]
    told = " ".join(map(str, shown.values()))
    for words in (
        "48 images of 0 class folders",
        "No sets of near duplicates",
        "no known anomalies",
        "not measured yet",
    ):
        assert words in told
    cost = str(shown["pilot-27"])
    assert "training" in cost
    assert "reading the encoder" not in cost
