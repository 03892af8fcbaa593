"""What a hosted notebook service or an editor's container is built by names things that exist here."""

import json
import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_container_is_made_by_a_target_of_the_makefile():
    made = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    (target,) = re.findall(r"^make (\w+)$", made["postCreateCommand"])
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    where = made["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert (
        where.removeprefix("${containerWorkspaceFolder}/").split("/")[0]
        == re.search(r"^VENV\s*\?= (\S+)", makefile, re.M)[1]
    )


def test_a_notebook_service_installs_what_the_tests_run_with():
    script = ROOT / ".binder/postBuild"
    assert os.access(script, os.X_OK)
    assert all((ROOT / name).is_file() for name in re.findall(r"-r (\S+)", script.read_text()))
    (version,) = re.findall(r"^python-(\d+\.\d+)$", (ROOT / ".binder/runtime.txt").read_text().strip())
    least = re.search(r'requires-python = ">=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert tuple(map(int, version.split("."))) >= tuple(map(int, least.groups()))
