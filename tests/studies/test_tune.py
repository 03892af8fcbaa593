"""Tuning: a study cut off anywhere ends as if it had not been, two workers share one, weak trials stop, errors."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from optuna.trial import TrialState
from tiny import shapes_file, tiny

from sagkit.__main__ import main as sagkit
from sagkit.studies import tune as searching
from sagkit.studies.tune import Search, _ask, open_study, run_trials, tune
from sagkit.train.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes_file(tmp_path_factory.mktemp("data"))


def searched(folder, data, startup: int = 2, **fields) -> Search:
    fixed = {"split": "fit", "probe": False, "resamplings": 0, "readout_every": 0, "threads": 1, "epochs": 2}
    base = tiny(folder, **{**fixed, "data": data, **fields})
    return Search(base, folder / "work", seed=3, startup=startup)


def told(found: dict) -> list[dict]:
    kept = ("slot", "name", "state", "params", "pruning_scores", "label_free", "spearman_pairs")
    return [{name: row.get(name) for name in kept} for row in found["trials"]]


@pytest.mark.slow
def test_a_study_cut_off_between_and_within_trials_ends_as_if_it_had_not_been(tmp_path, data, monkeypatch):
    whole = tune(searched(tmp_path / "whole", data, 3), tmp_path / "whole.json", trials=5)
    search = searched(tmp_path / "cut", data, 3)
    tune(search, tmp_path / "cut.json", trials=3)
    save, saved = Trainer.save, []

    def save_then_die(trainer):
        save(trainer)
        saved.append(trainer.config.variant)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            run_trials(search, 5)
    assert saved == ["trial003"]
    assert list((search.work / "unfinished").rglob("*trial003*.safetensors"))
    first_epochs = []
    begin_epoch = Trainer.begin_epoch
    monkeypatch.setattr(Trainer, "begin_epoch", lambda t: first_epochs.append(t.epoch) or begin_epoch(t))
    resumed = tune(search, tmp_path / "cut.json", trials=5)
    assert first_epochs[0] == 1  # from the checkpoint
    assert told(resumed) == told(whole)
    assert resumed["chosen"] == whole["chosen"]
    assert json.loads((tmp_path / "cut.json").read_text())["trials"] == resumed["trials"]
    assert len(search.study().get_trials()) == 6  # and the one that died
    assert not list((search.work / "unfinished").rglob("*.safetensors"))
    # The first two are the default and VICReg; others are asked for different things.
    names = [row["name"] for row in whole["trials"][:2]]
    assert names == ["default", "vicreg"]
    assert whole["trials"][0]["params"]["alpha"] == search.base.alpha
    assert whole["trials"][1]["params"]["alpha"] == 0
    assert len({json.dumps(row["params"], sort_keys=True) for row in whole["trials"]}) == 5
    # Scores are the records' own, and the choice does not look at labels.
    for row in (r for r in whole["trials"] if r["state"] == "complete"):
        (path,) = (tmp_path / "whole/work/trials").rglob(f"*-trial{row['slot']:03d}-seed0.json")
        assert json.loads(path.read_text())["metrics"]["label_free"] == row["label_free"]
    done = [row for row in whole["trials"] if row["state"] == "complete"]
    assert whole["chosen"] == max(done, key=lambda row: row["label_free"])["slot"]
    best, chosen = max(r["spearman_pairs"] for r in done), next(r for r in done if r["slot"] == whole["chosen"])
    assert whole["regret"] == pytest.approx(best - chosen["spearman_pairs"], abs=1e-5)


@pytest.mark.slow
def test_two_workers_share_one_study_and_no_slot_is_trained_twice(tmp_path, data):
    search = searched(tmp_path, data, epochs=1)
    found = tune(search, tmp_path / "shared.json", trials=5, workers=2)
    trials = search.study().get_trials()
    assert sorted(trial.user_attrs["slot"] for trial in trials) == list(range(5))
    assert [row["slot"] for row in found["trials"]] == list(range(5))
    pids = {trial.user_attrs["pid"] for trial in trials}
    assert len(pids) == 2
    assert os.getpid() not in pids


@pytest.mark.slow
def test_a_trial_below_the_median_is_stopped_early_and_its_cost_is_kept(tmp_path, data, monkeypatch):
    """The readout is replaced by a known number: the later the trial, the worse."""
    asked = []

    def falling(encoder, images, seed, n):
        asked.append(1)
        return {"label_free": -float(len(asked))}

    monkeypatch.setattr(searching, "label_free", falling)
    search = searched(tmp_path, data)
    found = tune(search, tmp_path / "falling.json", trials=4)
    assert [row["state"] for row in found["trials"]] == ["complete", "complete", "pruned", "pruned"]
    assert all(list(row["pruning_scores"]) == ["1"] for row in found["trials"][2:])
    assert all(row["core_seconds"] > 0 for row in found["trials"])
    assert not list((search.work / "unfinished").rglob("*.safetensors"))
    costed = Search(search.base, tmp_path / "costed", seed=3, cost=True, startup=2)
    found = tune(costed, tmp_path / "costed.json", trials=3)
    assert {row["state"] for row in found["trials"]} == {"complete"}
    assert found["objectives"] == ["label_free", "core_seconds"]
    assert costed.study().get_trials()[0].values == [found["trials"][0][name] for name in found["objectives"]]


def test_random_search_asks_the_same_first_two_and_never_looks_at_scores(tmp_path, data, monkeypatch):
    """Two studies whose trials score differently propose the same settings; TPE's third, after startup, differs."""
    asked = {}
    for sampler, sign in (("random", 1.0), ("random", -1.0), ("tpe", 1.0), ("tpe", -1.0)):
        search = Search(tiny(tmp_path, data=data), tmp_path / f"{sampler}{sign}", seed=3, startup=2, sampler=sampler)
        open_study(search)
        for _ in range(6):
            study, trial, _ = _ask(search, 6)
            study.tell(trial, sign * trial.params["alpha"])
            asked.setdefault((sampler, sign), []).append(trial.params)
    assert asked["random", 1.0] == asked["random", -1.0]
    assert asked["tpe", 1.0] != asked["tpe", -1.0]
    assert asked["random", 1.0][:2] == asked["tpe", 1.0][:2]
    assert len({params["alpha"] for params in asked["random", 1.0][2:]}) == 4
    with pytest.raises(ValueError, match="unknown sampler 'grid': choose one of tpe, random"):
        open_study(Search(tiny(tmp_path, data=data), tmp_path / "grid", sampler="grid"))
    with pytest.raises(ValueError, match="sampler random -> tpe"):
        open_study(Search(tiny(tmp_path, data=data), tmp_path / "random1.0", seed=3))


@pytest.mark.slow
def test_a_trial_that_fails_is_kept_with_its_reason_and_not_asked_again(tmp_path, data, monkeypatch):
    fit = searching.fit

    def fails_with_default(config, **arguments):
        if config.variant == "trial000":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fit(config, **arguments)

    monkeypatch.setattr(searching, "fit", fails_with_default)
    search = searched(tmp_path, data, epochs=1)
    found = tune(search, tmp_path / "failing.json", trials=2)
    assert [row["state"] for row in found["trials"]] == ["fail", "complete"]
    assert found["trials"][0]["error"] == "CUDA out of memory"
    assert found["chosen"] == 1
    with pytest.raises(ValueError, match=r"none of 1 trials was finished \(CUDA out of memory\)"):
        tune(Search(search.base, tmp_path / "all", seed=0), tmp_path / "all.json", trials=1)


def test_a_trial_of_a_living_process_is_left_alone_and_one_of_a_dead_process_is_asked_again(tmp_path, data):
    search = searched(tmp_path, data)
    open_study(search)
    _, trial, slot = _ask(search, 9)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        trial.set_user_attr("pid", other.pid)
        assert (slot, _ask(search, 9)[2]) == (0, 1)  # ours of slot 1 is left now, and dead to the next that asks
        trial_of_one = search.study().get_trials()[1]
        assert trial_of_one.user_attrs["pid"] == os.getpid()
    finally:
        other.communicate(b"\n")
    asked = _ask(search, 9)
    states = [t.state for t in search.study().get_trials()]
    assert states[:2] == [TrialState.FAIL] * 2
    assert asked[2] == 0
    assert asked[1].params == search.study().get_trials()[0].params
    asked[1].set_user_attr("host", f"not {socket.gethostname()}")  # of another machine nobody here can know
    assert _ask(search, 9)[2] == 1


def test_impossible_searches_are_refused_before_anything_is_trained(tmp_path, data):
    search, record = searched(tmp_path, data), tmp_path / "a.json"
    with pytest.raises(ValueError, match="vicreg has no walks to tune"):
        open_study(searched(tmp_path / "plain", data, method="vicreg"))
    with pytest.raises(ValueError, match="k = 25 of the default lies outside the space"):
        open_study(searched(tmp_path / "far", data, k=25))
    with pytest.raises(ValueError, match="trials 0, workers 1"):
        tune(search, record, trials=0)
    with pytest.raises(ValueError, match=r"must end in \.json"):
        tune(search, tmp_path / "x-seed0.json")
    open_study(search)
    with pytest.raises(ValueError, match=r"study of another setting \(epochs 2 -> 3\): name a new one"):
        open_study(searched(tmp_path, data, epochs=3))
    with pytest.raises(SystemExit, match=r"^sagkit study tune: unknown image set 'nothing'"):
        sagkit(["study", "tune", "--study", str(tmp_path / "b"), "--data", "nothing"])


def test_a_trial_whose_process_dies_again_and_again_is_given_up(tmp_path, data):
    """As one does that the system ends for its memory. A process that asks has left what it was asked before."""
    search = searched(tmp_path, data)
    open_study(search)
    asked = [_ask(search, 9)[2] for _ in range(2 * searching.MOST_DEATHS + 1)]
    assert asked == [0, 1] * searching.MOST_DEATHS + [2]
    given_up = next(t for t in search.study().get_trials() if "error" in t.user_attrs)
    assert given_up.user_attrs["slot"] == 0
    assert "as when memory runs out" in given_up.user_attrs["error"]


@pytest.mark.slow  # four trainings of two epochs
def test_a_trial_that_died_after_its_training_reports_what_it_had_heard(tmp_path, data, monkeypatch):
    """Or others would be compared with fewer scores than in a study that nobody cut off."""
    whole = tune(searched(tmp_path / "whole", data), tmp_path / "whole.json", trials=2)
    search = searched(tmp_path / "cut", data)
    open_study(search)
    with monkeypatch.context() as patched:
        patched.setattr("sagkit.train.trainer.evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_trials(search, 2)
    assert told(tune(search, tmp_path / "cut.json", trials=2)) == told(whole)
