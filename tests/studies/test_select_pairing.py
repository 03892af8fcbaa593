"""Selecting the pairing: the rule on records made by hand, and flags that give the selected setting exactly."""

import json
import shlex

import pytest
import tyro

from sagkit.studies.select_pairing import KEPT_METRICS, fields_of, main, select_setting, selection_of
from sagkit.train.config import Config, configure
from sagkit.train.record import record_path, write_record


def record(variant: str = "default", method: str = "sag-vicreg", spearman=0.1, knn=0.3, seed=0, **fields) -> dict:
    config = configure(method, "search", variant=variant, seed=seed, **fields).to_dict()
    metrics = dict.fromkeys(KEPT_METRICS, 0.0) | {"spearman_pairs": spearman, "knn": knn}
    about = {"train_set": "cifar100", "profile": "search", "evaluated_on": "val"}
    return {"method": method, "variant": variant, "seed": seed, "config": config, "metrics": metrics, **about}


def test_the_largest_spearman_wins_unless_it_costs_too_much_knn_or_is_a_control():
    plain = record(method="vicreg", spearman=0.1, knn=0.3)
    good, better = record("a", spearman=0.11), record("b", spearman=0.12, knn=0.291)
    costly = record("c", spearman=0.2, knn=0.289)
    oracle = record("d", spearman=0.3, pairs="oracle")
    other = record("e", spearman=0.4, seed=1)  # VICReg of this seed is not there
    longer = record("f", spearman=0.5, epochs=99)  # what it gains need not be the pairing's
    assert select_setting([good, costly, plain, oracle, better, other, longer]) == (better, plain)
    assert selection_of([good, costly, plain, oracle, better, other, longer])["trials"] == 3


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([record("a")], "no VICReg among the records"),
        ([record(method="vicreg", knn=0.5), record("a")], "none of 1 walks loses at most 1% of kNN"),
    ],
)
def test_a_search_without_vicreg_or_without_a_candidate_is_refused(records, words):
    with pytest.raises(ValueError, match=words):
        select_setting(records)


def test_the_flags_of_the_selected_setting_give_it_exactly(tmp_path):
    fields = {"scope": "dataset", "mutual": True, "keep": False, "length": 3, "confident": 0.5, "walk_start": 0.5}
    best = record("x", spearman=0.2, threads=1, trunk="t", **fields)
    best["config"]["keep_at"] = []  # as JSON has it
    selected = selection_of([record(method="vicreg"), best])
    assert selected["fields"] == fields_of(best) == fields
    assert selected["validation"]["entry"]["spearman_pairs"] == 0.2
    arguments = ["--variant", "entry", *shlex.split(selected["flags"])]
    told = tyro.cli(Config, default=configure("sag-vicreg", "tuned"), args=arguments)
    assert told == configure("sag-vicreg", "tuned", variant="entry", **fields)


def test_the_command_stores_the_selected_setting(tmp_path, capsys):
    for made in (record(method="vicreg"), record("walk-a", spearman=0.2, mutual=True)):
        write_record(record_path(tmp_path, "search", "cifar100", made["method"], made["variant"], 0), made)
    main(str(tmp_path))
    assert json.loads((tmp_path / "entry.json").read_text())["variant"] == "walk-a"
    assert "walk-a, of 1 trials: --method sag-vicreg --variant walk-a --mutual" in capsys.readouterr().out
