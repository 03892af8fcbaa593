"""The wheel holds every file of the package and works from elsewhere; requirements and extras are one list."""

import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.xdist_group("packaging")  # costly fixtures, made once

ROOT = Path(__file__).parents[2]
FILES = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "sagkit").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the tree by the build backend, with no network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "sagkit", source / "sagkit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (found,) = out.glob("sagkit-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel, installed by pip beside nothing else."""
    target = tmp_path_factory.mktemp("target")
    options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "-q", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True, capture_output=True)
    return target


def from_elsewhere(installed: Path, *words: str) -> str:
    run = [sys.executable, *words]
    done = subprocess.run(run, cwd=installed.parent, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.startswith("sagkit/")} == FILES
    assert {"sagkit/py.typed", "sagkit/data/wordnet/taxonomy.tsv", "sagkit/data/wordnet/LICENSE"} <= FILES
    assert {"sagkit/data/unicode/emoji.tsv", "sagkit/data/unicode/LICENSE"} <= FILES


@pytest.mark.slow
def test_the_installed_wheel_reads_its_data_and_answers(installed):
    code = "import sagkit; print(sagkit.__file__); from sagkit.data.taxonomy import class_distances as d; "
    where, shape = from_elsewhere(installed, "-c", f"{code}print(d('cifar100').shape)").splitlines()
    assert Path(where) == installed / "sagkit/__init__.py"
    assert shape == "(100, 100)"
    assert from_elsewhere(installed, "-m", "sagkit.report", "--help").startswith("usage: sagkit report ")
    assert (installed / "bin/sagkit").exists() or (installed / "Scripts/sagkit.exe").exists()


@pytest.fixture(scope="module")
def needs(wheel) -> dict[str, set[str]]:
    """Requirements by extra, as `name>=version`; under "" those of the drop-in."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    found: dict[str, set[str]] = {}
    for line in message_from_string(metadata).get_all("Requires-Dist"):
        need = Requirement(line)
        extra = str(need.marker).partition("== ")[2].strip('"') if need.marker else ""
        found.setdefault(extra, set()).add(f"{need.name}[{','.join(sorted(need.extras))}]{need.specifier}")
    return found


def test_the_drop_in_needs_torch_and_jaxtyping_alone(needs):
    assert {need.partition("[")[0] for need in needs[""]} == {"torch", "jaxtyping"}


@pytest.mark.slow
def test_requirements_are_the_drop_in_and_every_extra_but_the_bench(needs):
    text = (ROOT / "requirements.txt").read_text()
    whole = {line.partition("#")[0].strip().replace(">=", "[]>=") for line in text.splitlines()} - {"", "-e ."}
    assert text.endswith("\n-e .\n")
    stated = set().union(*(lines for extra, lines in needs.items() if extra != "bench"))
    assert whole == {need for need in stated if not need.startswith("sagkit[")}


def test_the_extras_contain_one_another(needs):
    inside = {extra: {need for need in lines if need.startswith("sagkit[")} for extra, lines in needs.items()}
    assert inside == {
        "": set(),
        "train": set(),
        "approximate": set(),
        "emoji": {"sagkit[train]"},
        "pilot": {"sagkit[train]"},
        "notebooks": {"sagkit[approximate,emoji,pilot]"},
        "test": {"sagkit[notebooks]"},
        "bench": {"sagkit[test]"},
    }


def test_the_first_look_at_the_package_is_sixteen_entries():
    assert len({Path(name).parts[1] for name in FILES}) <= 16
