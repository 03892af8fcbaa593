"""A ledger's runs are those of `train`, made once, in an order that trunks allow; a line that fails stops no other."""

import json
import math
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tiny import tiny

from sagkit.data.load import load_images
from sagkit.studies import ledger
from sagkit.studies.ledger import read_plan, work_off
from sagkit.train.config import Config, check, configure, flags
from sagkit.train.record import load_encoder, load_state, run_path, snapshot_path
from sagkit.train.trainer import fit


def line(config) -> str:
    return shlex.join(flags(config))


@pytest.fixture
def plan(tmp_path):
    """A branch, a run without data, and the branch's trunk, as lines of a plan in this order."""
    few = {"readout_every": 0, "probe": False, "resamplings": 0, "epochs": 4, "batch_size": 512}
    few |= {"threads": torch.get_num_threads()}  # sums of another number of threads round differently
    trunk = tiny(tmp_path, method="vicreg", keep_at=(1,), **few)
    kept = run_path(trunk, trunk.runs).with_name("vicreg-seed0.epoch1.safetensors")
    branch = tiny(tmp_path, walk_start=0.25, trunk=str(kept), **few)
    nowhere = tiny(tmp_path, method="vicreg", seed=2, data=str(tmp_path / "nowhere"), **few)
    path = tmp_path / "plan.txt"
    path.write_text("\n".join(["# three runs", line(branch) + "  # waits", "", line(nowhere), line(trunk)]))
    return path, branch, trunk


def kill_once_it_has_kept(checkpoint: Path, folder: Path) -> None:
    """SIGKILL for the process that trains, as soon as its first checkpoint lies there."""
    while not checkpoint.exists():
        time.sleep(0.02)
    for process in Path("/proc").glob("[0-9]*"):
        words = (process / "cmdline").read_bytes() if process.exists() else b""
        if b"submitit.core._submit" in words and str(folder).encode() in words:
            os.kill(int(process.name), signal.SIGKILL)


@pytest.mark.slow  # five processes that import torch
def test_a_killed_run_is_told_the_next_call_goes_on_and_runs_are_those_of_train_made_once(plan, tmp_path):
    path, branch, trunk = plan
    told, logs = [], tmp_path / "logs"
    mine = run_path(trunk, trunk.runs).with_suffix(".safetensors")
    killer = threading.Thread(target=kill_once_it_has_kept, args=(mine, logs))
    killer.start()
    failed = work_off([c for c in read_plan(path) if c != branch], jobs=1, tell=told.append, logs=logs)
    killer.join()
    assert sorted(config.seed for config in failed) == [0, 2]
    assert any(f"{tmp_path}/nowhere does not exist" in text for text in told)
    assert any("ended from outside" in text and "goes on from its last epoch" in text for text in told)
    before = load_state(mine)["log"]
    assert before

    assert [config.seed for config in work_off(read_plan(path), jobs=2, tell=told.append, logs=logs)] == [2]
    record = json.loads(run_path(trunk, trunk.results).read_text())
    assert [entry["loss"] for entry in record["log"]][: len(before)] == [round(e["loss"], 5) for e in before]
    alone = tiny(tmp_path / "alone", **{k: getattr(branch, k) for k in ("epochs", "batch_size", "walk_start")})
    expected = fit(alone, load_images("shapes"), load_images("shapes", "test"), progress=False).encoder.state_dict()
    record = run_path(branch, branch.results)
    for name, value in load_encoder(record.with_suffix(".safetensors")).state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert json.loads(record.read_text())["trunk"]["epoch"] == 1

    written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("results/**/*.json")}
    again = []
    done = [c for c in read_plan(path) if c.seed == 0]
    assert work_off(done, tell=again.append, logs=logs) == []
    assert again == ["2 runs, 2 of them done before"]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("results/**/*.json")} == written


SBATCH = """#!{python}
import pathlib, sys
folder = pathlib.Path(__file__).parent
number = len(list(folder.glob("job*"))) + 1
(folder / f"job{{number}}").write_text(pathlib.Path(sys.argv[-1]).read_text())
print(f"Submitted batch job {{number}}")
"""


def test_on_a_cluster_a_branch_depends_on_its_trunk_and_no_run_overtakes_itself(tmp_path, monkeypatch):
    """A stand-in for SLURM takes the scripts and says of every job that it failed."""
    scripts = {"sbatch": SBATCH.format(python=sys.executable), "srun": "#!/bin/sh\n", "scontrol": "#!/bin/sh\n"}
    scripts["sacct"] = '#!/bin/sh\necho "JobID|State|NodeList"; echo "1|FAILED|a"; echo "2|CANCELLED|a"\n'
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(ledger, "outcome", lambda job: (False, job.state))
    trunk = tiny(tmp_path, method="vicreg", keep_at=(1,))
    kept = snapshot_path(run_path(trunk, trunk.runs).with_suffix(".safetensors"), 1)
    branch, told = tiny(tmp_path, walk_start=0.5, trunk=str(kept)), []
    failed = work_off([branch, trunk], tell=told.append, slurm={"partition": "gpu", "time": 60}, logs=tmp_path / "logs")
    assert failed == [trunk, branch]
    assert [line.rsplit(": ", 1)[1] for line in told[1:]] == ["FAILED", "CANCELLED"]
    first, second = ((tmp_path / f"job{number}").read_text() for number in (1, 2))
    assert "--partition=gpu" in first
    assert "--time=60" in first
    assert "--job-name=tour-shapes-vicreg-default-0\n" in first
    assert "--dependency=singleton\n" in first
    assert "--dependency=afterok:1,singleton\n" in second
    assert "--kill-on-invalid-dep=yes\n" in second


@pytest.mark.parametrize(
    ("words", "message"),
    [(("gpu",), "slurm takes name=value"), (("colour=red",), "Unknown argument 'colour' .* partition")],
)
def test_what_slurm_is_not_told_is_refused_before_anything_is_submitted(tmp_path, monkeypatch, words, message):
    (tmp_path / "plan.txt").write_text("--method vicreg\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    with pytest.raises(ValueError, match=message):
        ledger.main(str(tmp_path / "plan.txt"), slurm=words, logs=str(tmp_path / "logs"))


def test_a_trunk_that_nobody_keeps_ends_the_ledger(tmp_path):
    lost = tiny(tmp_path, walk_start=0.5, trunk=str(tmp_path / "nowhere.safetensors"))
    told = []
    assert work_off([lost], tell=told.append, logs=tmp_path / "logs") == [lost]
    assert told[-1] == f"no run left that keeps {tmp_path}/nowhere.safetensors"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--method vicreg\n\n--profile laptopp\n", "plan.txt, line 3: unknown profile 'laptopp': did you mean laptop"),
        ("--method vicreg\n--method vicreg --lr 2\n", "line 2 is a run that stands above: give it a --variant"),
        ("--seed {0,1} --lr {1,2,3}\n", "line 1: braces hold 2 and 3 values: give each as many"),
        ("--seed {0,0}\n", "line 1 is a run that stands above"),
        ("--seed many\n", "line 1: see above"),
    ],
)
def test_a_bad_plan_is_refused_by_line_before_anything_runs(tmp_path, text, message):
    (tmp_path / "plan.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_plan(tmp_path / "plan.txt")


def test_no_jobs_are_refused():
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        work_off([], jobs=0)


def test_a_line_with_values_in_braces_is_a_run_for_each(tmp_path):
    (tmp_path / "plan.txt").write_text(
        "--seed {3,5} --trunk trunk-seed{3,5}.epoch4 --keep-at {1,2} 4  # {a,b,c}\n--seed 7\n"
    )
    runs = read_plan(tmp_path / "plan.txt")
    assert [(run.seed, run.trunk, run.keep_at) for run in runs] == [
        (3, "trunk-seed3.epoch4", (1, 4)),
        (5, "trunk-seed5.epoch4", (2, 4)),
        (7, "", ()),
    ]


def quickly(words: list[str]) -> Config:
    """A command line as `parse` reads it, of flags that are well formed; tyro takes a fifth of a second for each."""
    fields = {}
    for word in words:
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            values = fields[name] = []
        else:
            values.append(word)
    for name, values in list(fields.items()):
        if not values:
            del fields[name]
            fields[name.removeprefix("no_")] = not name.startswith("no_")
            continue
        kind = type(Config.__dataclass_fields__[name].default)
        fields[name] = tuple(map(int, values)) if kind is tuple else kind(*values)
    config = configure(**fields)
    check(config)
    return config


@pytest.mark.slow  # hundreds of configurations
def test_every_run_of_the_kits_own_plans_can_be_and_every_branch_has_its_trunk_above_it(monkeypatch):
    plans = sorted((Path(ledger.__file__).parents[2] / "figures/plans").glob("*.txt"))
    assert {path.stem for path in plans} == {"long", "long-search"}
    last = [path.read_text().splitlines()[-1] for path in plans]
    assert all(quickly(words) == ledger.parse(words) for line in last for words in ledger._runs_of(line)[:1])
    monkeypatch.setattr(ledger, "parse", quickly)
    for path in plans:
        kept = set()
        for run in read_plan(path):
            assert not run.trunk or run.trunk in kept, run.trunk
            checkpoint = run_path(run, run.runs).with_suffix(".safetensors")
            kept |= {str(snapshot_path(checkpoint, epoch)) for epoch in run.keep_at}
            if run.decay:  # a tenth of the trunk, and not less
                assert run.decay == math.ceil((run.epochs - run.decay) / 10)
