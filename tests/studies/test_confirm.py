"""Confirmation: which settings are trained anew, on which seeds, paired how, and nothing twice."""

import json

import pytest
from tiny import tiny

from sagkit.__main__ import main as sagkit
from sagkit.data.load import make_shapes
from sagkit.studies import confirm as confirming
from sagkit.studies.confirm import confirm, differences_by_role, roles


def study(base, name: str, scores, chosen: int) -> dict:
    """A record of three trials; setting by slot, Spearman as given."""
    params = ({"alpha": 0.3, "k": 4}, {"alpha": 0.0, "k": 4}, {"alpha": 0.9, "k": len(name)})
    rows = [
        {"slot": i, "state": "complete", "params": p, "spearman_pairs": s}
        for i, (p, s) in enumerate(zip(params, scores, strict=True))
    ]
    return {"study": name, "base": base.to_dict(), "chosen": chosen, "trials": rows}


@pytest.fixture
def two(tmp_path):
    base = tiny(tmp_path, split="fit", epochs=1, seed=7, probe=False, resamplings=0, readout_every=0, threads=1)
    return study(base, "a", (0.1, 0.2, 0.15), 2), study(base, "bb", (0.1, 0.2, 0.3), 0)


def test_roles_are_the_named_trials_each_choice_and_the_best_by_labels(two):
    assert roles(two) == {
        "default": {"alpha": 0.3, "k": 4},
        "vicreg": {"alpha": 0.0, "k": 4},
        "label-free choice, a": {"alpha": 0.9, "k": 1},
        "label-free choice, bb": {"alpha": 0.3, "k": 4},
        "labels' choice": {"alpha": 0.9, "k": 2},
    }
    assert roles(two[:1])["labels' choice"] == {"alpha": 0.0, "k": 4}


@pytest.mark.slow
def test_fresh_seeds_are_trained_once_a_setting_and_found_again(tmp_path, two, monkeypatch):
    sets = {"train": make_shapes(96, size=16, seed=0), "test": make_shapes(54, size=16, seed=1)}
    monkeypatch.setattr(confirming, "load_images", lambda name, split: sets[split])
    trained, fit = [], confirming.fit

    def counted(config, **arguments):
        trained.append((config.seed, config.alpha, config.k))
        assert config.split == "train"
        return fit(config, **arguments)

    monkeypatch.setattr(confirming, "fit", counted)
    found = confirm(two, tmp_path / "c.json", tmp_path / "work", seeds=1)
    assert trained == [(8, 0.3, 4), (8, 0.0, 4), (8, 0.9, 1), (8, 0.9, 2)]  # the choice of bb is the default
    more = confirm(two, tmp_path / "c.json", tmp_path / "work", seeds=2)
    assert [seed for seed, *_ in trained[4:]] == [9] * 4
    assert more["runs"][: len(found["runs"])] == found["runs"]
    assert json.loads((tmp_path / "c.json").read_text())["runs"] == more["runs"]
    assert {(r["role"], r["seed"]) for r in more["runs"]} == {(role, s) for role in found["roles"] for s in (8, 9)}
    change = differences_by_role(more)
    assert change["label-free choice, bb"] == [0.0, 0.0]
    score = {(r["role"], r["seed"]): r["spearman_pairs"] for r in more["runs"]}
    assert change["vicreg"] == [score["vicreg", s] - score["default", s] for s in (8, 9)]
    assert any(change["vicreg"])


@pytest.mark.slow
def test_a_run_of_other_settings_in_the_folder_is_not_taken(tmp_path, two, monkeypatch):
    sets = {"train": make_shapes(96, size=16, seed=0), "test": make_shapes(54, size=16, seed=1)}
    monkeypatch.setattr(confirming, "load_images", lambda name, split: sets[split])
    confirm(two[:1], tmp_path / "c.json", tmp_path / "work", seeds=1)
    trained, fit = [], confirming.fit
    monkeypatch.setattr(confirming, "fit", lambda config, **a: trained.append(config.epochs) or fit(config, **a))
    two[0]["base"]["epochs"] = 2
    confirm(two[:1], tmp_path / "c.json", tmp_path / "work", seeds=1)
    assert trained == [2] * 3  # labels chose VICReg, which is trained once for both


def test_studies_that_cannot_be_compared_are_refused(tmp_path, two):
    with pytest.raises(ValueError, match="no study is given"):
        roles([])
    with pytest.raises(ValueError, match="studies a, a: two of one name"):
        roles([two[0], two[0]])
    other = {**two[1], "base": {**two[1]["base"], "epochs": 9}}
    with pytest.raises(ValueError, match="a and bb differ in epochs"):
        roles([two[0], other])
    with pytest.raises(ValueError, match="a has trials without knn"):
        roles(two, "knn")
    with pytest.raises(ValueError, match="seeds 0 must be at least 1"):
        confirm(two, tmp_path / "c.json", tmp_path, seeds=0)
    with pytest.raises(ValueError, match=r"must end in \.json"):
        confirm(two, tmp_path / "c-seed1.json", tmp_path)
    with pytest.raises(ValueError, match="no role 'x'"):
        differences_by_role({"roles": {"default": {}}, "runs": []}, baseline="x")
    with pytest.raises(SystemExit, match=r"^sagkit study confirm: .*none\.json"):
        sagkit(["study", "confirm", "--studies", str(tmp_path / "none.json"), "--out", str(tmp_path / "c.json")])
