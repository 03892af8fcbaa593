"""Notebooks run as reports with other parameters, by papermill."""

import json
from pathlib import Path

import papermill
import pytest
from PIL import Image

from sagkit.data.load import make_shapes

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FAST = {"epochs": 1, "seed": 3}

# Each entry: a notebook, parameters other than its defaults, the methods it then trains, its least number of pictures.
REPORTS = {
    "tour": ("00_tour", FAST, {"vicreg", "sag-vicreg"}, 5),
    "training": ("05_train_cifar100", {**FAST, "method": "sag-vicreg", "profile": "tour"}, {"sag-vicreg"}, 5),
}


def run(name: str, folder: Path, parameters: dict):
    target = folder / "report.ipynb"
    given = parameters | {"out": str(folder / "out")}
    return papermill.execute_notebook(NOTEBOOKS / f"{name}.ipynb", target, given, progress_bar=False)


def outputs(report) -> list[dict]:
    return [output for cell in report.cells for output in cell.get("outputs", [])]


@pytest.mark.slow
@pytest.mark.parametrize("name", REPORTS)
def test_a_notebook_runs_with_other_parameters(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    notebook, parameters, methods, pictures = REPORTS[name]
    report = run(notebook, tmp_path, parameters)
    injected = next(cell for cell in report.cells if "injected-parameters" in cell.metadata.get("tags", []))
    assert "epochs = 1" in injected.source
    records = [json.loads(path.read_text()) for path in (tmp_path / "out/results").rglob("*.json")]
    assert {(r["method"], r["seed"], len(r["log"]), r["data"]) for r in records} == {
        (method, 3, 1, "shapes") for method in methods
    }
    assert sum("image/png" in output.get("data", {}) for output in outputs(report)) >= pictures
    assert (tmp_path / "out/umap.png").exists() == (notebook == "00_tour")


@pytest.mark.slow
def test_without_cifar_and_without_records_the_pages_say_so_and_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no records here
    monkeypatch.setenv("SAGKIT_DATA", str(tmp_path / "nothing"))
    for name in ("06_global_structure", "07_paper_tables", "08_unseen_data"):
        report = papermill.execute_notebook(
            NOTEBOOKS / f"{name}.ipynb", tmp_path / f"{name}.ipynb", {"results": "none"}, progress_bar=False
        )
        assert sum("not measured yet" in str(output) for output in outputs(report)) >= 3


@pytest.mark.slow
def test_a_folder_of_ones_own_is_trained_on_and_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAGKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    for i, image in enumerate(make_shapes(48, size=32, seed=0).images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "mine" / f"{i:02d}.png")
    given = {"folder": str(tmp_path / "mine"), "encoder": "", "minutes": 0.01, "results": "none"}
    report = papermill.execute_notebook(
        NOTEBOOKS / "10_your_own_images.ipynb", tmp_path / "report.ipynb", given, progress_bar=False
    )
    told = " ".join(str(output) for output in outputs(report))
    for words in ("48 images of 0 class folders", "no duplicates", "no known anomalies", "not measured yet"):
        assert words in told
    cost = str(outputs(report)[-1])
    assert "training" in cost
    assert "reading the encoder" not in cost
