"""Notebooks as reports with other parameters, by papermill; as they stand, `pytest --nbmake notebooks` runs them."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from sagkit.data.load import make_shapes

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PAGES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def tagged(cell: dict) -> bool:
    """Whether a cell is that of the parameters."""
    return "parameters" in cell["metadata"].get("tags", [])


def run(name: str, folder: Path, cwd: Path | None = None, /, **parameters):
    """The notebook as executed in `cwd` (where it is read from else), stored in `folder` and nowhere else."""
    import papermill

    return papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb",
        folder / f"{name}.ipynb",
        parameters,
        cwd=cwd or NOTEBOOKS,
        progress_bar=False,
        execution_timeout=300,
    )


def outputs(report) -> list[dict]:
    return [output for cell in report.cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("name", PAGES)
def test_what_a_notebook_writes_as_it_stands_goes_where_git_does_not_look(name):
    parameters = next(c for c in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"] if tagged(c))
    given = re.findall(r'^out = "(.*)"', "".join(parameters["source"]), re.MULTILINE)
    for out in given:
        stands = subprocess.run(["git", "check-ignore", "-q", out], cwd=NOTEBOOKS, check=False).returncode
        assert stands in (0, 128), f"{name} writes to {out}, which git tracks"  # 128: no checkout


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.parametrize("name", ["06_global_structure", "07_paper_tables", "08_unseen_data"])
def test_without_cifar_and_without_records_the_pages_say_so_and_run(tmp_path, monkeypatch, name):
    monkeypatch.setenv("SAGKIT_DATA", str(tmp_path / "nothing"))
    report = run(name, tmp_path, tmp_path, results="none")  # no records here
    assert sum("not measured yet" in str(output) for output in outputs(report)) >= 3


@pytest.mark.slow
@pytest.mark.notebook
def test_a_folder_of_ones_own_is_trained_on_and_searched(tmp_path, monkeypatch):
    monkeypatch.setenv("SAGKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    for i, image in enumerate(make_shapes(48, size=32, seed=0).images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "mine" / f"{i:02d}.png")
    given = {"folder": str(tmp_path / "mine"), "encoder": "", "minutes": 0.01, "results": "none"}
    report = run("10_your_own_images", tmp_path, tmp_path, **given)
    told = " ".join(str(output) for output in outputs(report))
    for words in (
        "48 images of 0 class folders",
        "No sets of near duplicates",
        "no known anomalies",
        "not measured yet",
    ):
        assert words in told
    cost = str(outputs(report)[-2])
    assert "training" in cost
    assert "reading the encoder" not in cost
