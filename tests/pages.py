"""Notebooks run cell by cell in this process, as a kernel would, whose start costs more than most of them."""

import ast
import contextlib
import io
import json
from pathlib import Path

from IPython.core.formatters import DisplayFormatter

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def tagged(cell: dict) -> bool:
    """Whether a cell is that of the parameters."""
    return "parameters" in cell["metadata"].get("tags", [])


def run(name: str, **parameters) -> tuple[dict, dict[str, dict[str, str]]]:
    """The names that a notebook leaves, and by code cell what it shows: what it prints, and its value by media type."""
    space, shown, shapes = {"__name__": "__main__"}, {}, DisplayFormatter()
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        body = ast.parse("".join(cell["source"])).body
        last = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(compile(ast.Module(body, []), cell["id"], "exec"), space)
            value = eval(compile(last, cell["id"], "eval"), space) if last else None
        if tagged(cell):
            space |= parameters
        shown[cell["id"]] = {"printed": said.getvalue(), **(shapes.format(value)[0] if value is not None else {})}
    return space, shown
