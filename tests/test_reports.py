"""Notebooks run as reports with other parameters, by papermill."""

import json
from pathlib import Path

import papermill
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"

# Each entry: other parameters than the defaults, and they must show in the report. A training notebook joins here.
REPORTS = {"00_tour": {"epochs": 1, "seed": 3}}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPORTS)
def test_a_notebook_runs_with_other_parameters(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    parameters = REPORTS[name] | {"out": str(tmp_path / "out")}
    source, target = NOTEBOOKS / f"{name}.ipynb", tmp_path / "report.ipynb"
    report = papermill.execute_notebook(source, target, parameters, progress_bar=False)
    injected = next(cell for cell in report.cells if "injected-parameters" in cell.metadata.get("tags", []))
    assert "epochs = 1" in injected.source
    records = [json.loads(path.read_text()) for path in (tmp_path / "out/results").rglob("*.json")]
    assert {(record["method"], record["seed"], len(record["log"])) for record in records} == {
        ("vicreg", 3, 1),
        ("sag-vicreg", 3, 1),
    }
    assert (tmp_path / "out/umap.png").exists()
    assert (
        sum("image/png" in output.get("data", {}) for cell in report.cells for output in cell.get("outputs", [])) >= 5
    )
