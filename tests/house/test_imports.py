"""Imports run downwards (pyproject.toml, importlinter), and the face and the drop-in load no more than they need."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def lint(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True, check=False)


def test_the_house_keeps_its_rules():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow  # a process a case
@pytest.mark.parametrize(
    ("module", "imported", "rule"),
    [
        ("metrics/ranks.py", "sagkit.train.config", "imports run downwards BROKEN"),
        ("pilot/embedding.py", "sagkit.studies.zoo", "imports run downwards BROKEN"),
        ("show/scenes.py", "sagkit.pilot.embedding", "imports run downwards BROKEN"),
        ("graph.py", "sagkit.augment", "imports run downwards BROKEN"),
        ("walk.py", "sagkit.data.load", "the method stands alone BROKEN"),
        ("newcomer.py", "sagkit.graph", "newcomer"),  # a module that has no place among the layers
    ],
)
def test_the_rules_bite(tmp_path, module, imported, rule):
    shutil.copytree(ROOT / "sagkit", tmp_path / "sagkit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "sagkit" / module).open("a") as file:
        file.write(f"\nimport {imported}\n")
    done = lint(tmp_path)
    assert done.returncode != 0
    assert rule in done.stdout + done.stderr


def loaded_by(code: str) -> set[str]:
    """Third-party packages in a fresh interpreter after running `code`."""
    script = f"import sys\n{code}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split()) - set(sys.stdlib_module_names)


def test_importing_the_face_loads_nothing_but_itself():
    assert loaded_by("import sagkit, sagkit.data, sagkit.metrics, sagkit.train, sagkit.pilot") - loaded_by("") == {
        "sagkit"
    }


@pytest.mark.slow
def test_importing_and_using_the_drop_in_module_loads_nothing_beyond_torch_and_jaxtyping():
    drop_in = "import sagkit; h = torch.randn(16, 4); sagkit.WalkPairing(k=3)(h, h); sagkit.vicreg_loss(h, h)"
    # torch brings packages of its own (numpy, tqdm); the difference is what sagkit adds, at import or later.
    added = loaded_by(f"import torch, jaxtyping; {drop_in}") - loaded_by("import torch, jaxtyping")
    assert added == {"sagkit"}


POSIX = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "curses", "readline"}


def test_no_module_asks_for_what_windows_lacks_when_it_is_imported():
    for path in sorted((ROOT / "sagkit").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {a.name for a in node.names} if isinstance(node, ast.Import) else {node.module}
                assert not names & POSIX, f"{path}:{node.lineno}"
