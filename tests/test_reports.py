"""Notebooks run as reports with other parameters, by papermill."""

import json
from pathlib import Path

import papermill
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
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
