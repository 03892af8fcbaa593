"""A ledger's runs are those of `train`, made once, in an order that trunks allow; a line that fails stops no other."""

import json
import math
import shlex
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from tiny import tiny

from sagkit.__main__ import main as sagkit
from sagkit.data.load import load_images
from sagkit.studies import ledger
from sagkit.studies.ledger import read_plan, work_off
from sagkit.train.config import Config, check, configure, flags
from sagkit.train.record import load_encoder, run_path, snapshot_path
from sagkit.train.trainer import fit


def line(config) -> str:
    return shlex.join(flags(config))


@pytest.fixture
def plan(tmp_path):
    """A branch, a run without data, the branch's trunk, and a run that cannot be, as lines of a plan in this order."""
    few = {"readout_every": 0, "probe": False, "resamplings": 0, "epochs": 2, "batch_size": 512}
    few |= {"threads": torch.get_num_threads()}  # sums of another number of threads round differently
    trunk = tiny(tmp_path, method="vicreg", keep_at=(1,), **few)
    kept = run_path(trunk, trunk.runs).with_name("vicreg-seed0.epoch1.safetensors")
    branch = tiny(tmp_path, walk_start=0.5, trunk=str(kept), **few)
    impossible = tiny(tmp_path, method="vicreg", seed=1, **few | {"batch_size": 100_000})
    nowhere = tiny(tmp_path, method="vicreg", seed=2, data=str(tmp_path / "nowhere"), **few)
    lines = ["# four runs", line(branch) + "  # waits", "", line(nowhere), line(trunk), line(impossible)]
    path = tmp_path / "plan.txt"
    path.write_text("\n".join(lines))
    return path, branch


@pytest.mark.slow
def test_runs_are_those_of_train_and_are_made_once(plan, tmp_path):
    path, branch = plan
    told = []
    failed = work_off(read_plan(path), jobs=2, tell=told.append)
    assert sorted(config.seed for config in failed) == [1, 2]
    assert any(f"{tmp_path}/nowhere does not exist" in text for text in told)
    assert any("batch_size 100000 exceeds the 4096 training images" in text for text in told)

    alone = tiny(tmp_path / "alone", **{k: getattr(branch, k) for k in ("epochs", "batch_size", "walk_start")})
    images = load_images("shapes"), load_images("shapes", "test")
    expected = fit(alone, *images, progress=False).encoder.state_dict()
    record = run_path(branch, branch.results)
    for name, value in load_encoder(record.with_suffix(".safetensors")).state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert json.loads(record.read_text())["trunk"]["epoch"] == 1

    written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("results/**/*.json")}
    again = []
    assert len(work_off(read_plan(path), jobs=1, tell=again.append)) == 2
    assert again[0] == "4 runs, 2 of them done before"
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("results/**/*.json")} == written


def test_a_trunk_that_nobody_keeps_ends_the_ledger(tmp_path):
    lost = tiny(tmp_path, walk_start=0.5, trunk=str(tmp_path / "nowhere.safetensors"))
    told = []
    assert work_off([lost], tell=told.append) == [lost]
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


def test_a_process_that_is_killed_is_told_with_a_remedy(tmp_path, monkeypatch):
    def killed(*_):
        raise BrokenProcessPool

    (tmp_path / "plan.txt").write_text("--method vicreg\n")
    monkeypatch.setattr(ledger, "work_off", killed)
    with pytest.raises(SystemExit, match=r"^sagkit study ledger: .*ended from outside.*fewer --jobs"):
        sagkit(["study", "ledger", str(tmp_path / "plan.txt")])


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
