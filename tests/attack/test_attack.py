"""A sample of both attacks; `make attack` runs them whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def attacked(script: str, *words: str) -> dict:
    command = [sys.executable, str(Path(__file__).with_name(script)), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow  # a training, killed three times, in processes of its own
def test_a_training_that_is_killed_three_times_ends_with_the_same_bytes():
    found = attacked("kill.py", "--kills", "3", "--only", "dataset")["jobs"]["dataset"]
    assert found["kills"] == 3
    assert found["differing"] == found["failed"] == []


@pytest.mark.slow  # starts a process that imports the whole kit
def test_hostile_files_and_command_lines_are_taken_or_refused_in_one_line():
    found = attacked("fuzz.py", "--files", "40", "--lines", "8")
    assert sum(row["cases"] for row in found["kinds"].values()) == 48
    assert [wrong for row in found["kinds"].values() for wrong in row["wrong"]] == []
    assert all(row["slowest"] < 10 for row in found["kinds"].values())
    assert found["peak_mb"] < 2048
