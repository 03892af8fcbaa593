"""The script for a machine with an accelerator, tried without one: what it calls, in what time, and what it leaves."""

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import bench_gpu
import pytest

ROOT = Path(__file__).parents[2]
# Says what it was asked; packed images are whole, benchmarks fail, and a training leaves a record.
PYTHON = """#!/bin/sh
echo "$@" >> {asked}
case "$*" in
  *gpu_data.py\\ check*) {check} ;;
  *bench_gpu.py*) exit 3 ;;
  *sagkit.train*) mkdir -p runs/gpu-out/results; echo '{{}}' > runs/gpu-out/results/a.json ;;
esac
"""


def run(tmp_path: Path, check: str, **env: str) -> tuple[list[str], Path]:
    """What the script asks of Python, line by line, and where its results lie."""
    tree, asked = tmp_path / "tree", tmp_path / "asked"
    (tree / "tests").mkdir(parents=True)
    shutil.copy(ROOT / "tests/gpu.sh", tree / "tests")
    (tmp_path / "python3").write_text(PYTHON.format(asked=asked, check=check))
    (tmp_path / "python3").chmod(0o755)
    asked.write_text("")
    places = {"OUT": str(tmp_path / "out"), "DATA": str(tmp_path / "data"), "PYTHON": str(tmp_path / "python3")}
    subprocess.run(["bash", "tests/gpu.sh"], cwd=tree, env=os.environ | places | env, check=True, capture_output=True)
    return asked.read_text().splitlines(), tmp_path / "out"


def test_a_part_that_fails_stops_none_and_the_results_come_back(tmp_path):
    asked, out = run(tmp_path, "echo CIFAR-100 is what was packed")
    assert [line.split()[0] for line in asked] == ["tests/gpu_data.py", "-m", "tests/bench_gpu.py", "-m", "-m"]
    assert all("--data cifar100" in line for line in asked[3:])
    told = (out / "parts.txt").read_text()
    assert "bench: exit code 3" in told
    assert "vicreg: exit code 0" in told
    with tarfile.open(out / "results.tgz") as archive:
        assert "./results/a.json" in archive.getnames()
    assert len(list(out.iterdir())) <= 8  # no more files come back


def test_without_all_images_it_trains_on_shapes_and_beyond_its_time_it_begins_nothing(tmp_path):
    asked, _ = run(tmp_path / "shapes", "exit 1")
    assert all("--data shapes" in line for line in asked[3:])
    asked, out = run(tmp_path / "late", "sleep 60", MINUTES="0")
    assert asked == []
    assert (out / "parts.txt").read_text().count("no time is left") == 5


@pytest.mark.slow  # a compiler of tables, and a few steps of training
def test_its_benchmark_runs_on_a_cpu(tmp_path):
    bench_gpu.main(device="cpu", quick=True, out=str(tmp_path / "gpu.json"))
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert sum(record["step"]["share_of_step"].values()) == pytest.approx(1, abs=1e-3)
    assert record["billion_steps_per_second"]["500"]["sagkit"] > 0
    assert record["neighbor_seconds"]["500"]["sagkit, exact"] > 0
