"""Parameters of a notebook are checked in the cell after them: a bad one ends a papermill run in a second."""

import ast
import json
import math
import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
LATER = {"00_tour"}
PAGES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb") if path.stem not in LATER)
# Folders and rows that may be absent: the page then says what is not measured yet.
MAY_BE_ABSENT = {"results", "out", "stored", "train_set", "baseline"}
LIGHT = {"pathlib", "sagkit", "sagkit.train.config"}  # none of these loads torch


def first_cells(name: str) -> tuple[str, str]:
    """Sources of the parameters and of the code cell after them."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    at = next(i for i, cell in enumerate(code) if "parameters" in cell["metadata"].get("tags", []))
    return "".join(code[at]["source"]), "".join(code[at + 1]["source"])


def parameters(name: str) -> dict:
    given: dict = {}
    exec(first_cells(name)[0], given)
    return {key: value for key, value in given.items() if not key.startswith("__")}


def start(name: str, **injected) -> None:
    """The first cells as papermill runs them: parameters, those injected, and the cell after them."""
    exec(first_cells(name)[1], {**parameters(name), **injected})


def bad(value) -> list:
    if isinstance(value, (int, float)):
        return [-1, "many", None, math.nan, True] if not isinstance(value, bool) else []
    return [("no such thing",)] if isinstance(value, (list, tuple)) else ["no such thing"]


CASES = [
    pytest.param(name, {key: value}, id=f"{name}-{key}-{value}")
    for name in PAGES
    for key, default in parameters(name).items()
    if key not in MAY_BE_ABSENT
    for value in bad(default)
]


@pytest.fixture(autouse=True)
def _in_the_notebooks_folder(monkeypatch):
    monkeypatch.chdir(NOTEBOOKS)


@pytest.mark.parametrize("name", PAGES)
def test_the_defaults_pass_and_nothing_heavy_is_loaded_before_they_do(name):
    start(name)
    loads = [
        node for node in ast.walk(ast.parse(first_cells(name)[1])) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in loads}
    assert names <= LIGHT


@pytest.mark.parametrize(("name", "injected"), CASES)
def test_a_bad_parameter_is_refused_in_the_first_cell(name, injected):
    with pytest.raises(ValueError, match=re.escape(str(next(iter(injected.values()))).strip("(),'"))) as error:
        start(name, **injected)
    assert "\n" not in str(error.value)


def test_neighbours_are_fewer_than_images():
    for name in ("02_similarity_graph", "04_pairs_and_loss"):
        with pytest.raises(ValueError, match=r"k must be in \[1, 63\], got 64"):
            start(name, images=64, k=64)
