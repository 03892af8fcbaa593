"""Selecting the pairing: the rule on records made by hand, and flags that give the selected setting exactly."""

import json
import shlex

import pytest
import tyro

from sagkit.studies.select_pairing import KEPT_METRICS, candidates, fields_of, main, select_setting, selection_of
from sagkit.train.config import Config, configure
from sagkit.train.record import record_path, write_record


def row(
    variant: str = "default", method: str = "sag-vicreg", spearman=0.1, coarse=0.4, knn=0.3, seeds=(0, 1), **fields
):
    """Runs of one row, whose figures lie 0.01 (Spearman) and 0.02 (superclass kNN) to either side of their means."""
    runs = []
    for i, seed in enumerate(seeds):
        sign = (-1) ** i
        config = configure(method, "long-search", variant=variant, seed=seed, **fields).to_dict()
        metrics = dict.fromkeys(KEPT_METRICS, 0.0) | {"spearman_pairs": spearman + 0.01 * sign, "knn": knn}
        metrics["superclass_knn"] = coarse + 0.02 * sign
        about = {"train_set": "cifar100", "profile": "long-search", "evaluated_on": "val"}
        runs.append({"method": method, "variant": variant, "seed": seed, "config": config, "metrics": metrics, **about})
    return runs


PLAIN = row(method="vicreg")


def with_hub(variant: str, hub: tuple[float, float] = (0.1, 0.4), **setting) -> list[dict]:
    fields = {k: v for k, v in setting.items() if k not in ("spearman", "coarse", "knn", "seeds")}
    return row(variant, **setting) + row(f"{variant}-hub", spearman=hub[0], coarse=hub[1], pairs="hub", **fields)


def test_the_sum_of_both_gains_over_the_hub_partner_in_seed_spreads_wins_unless_it_costs_too_much_knn():
    records = [
        *PLAIN,
        *with_hub("strong", spearman=0.14, coarse=0.4, k=5),  # 4 units of Spearman's spread, up to a common factor
        *with_hub("both", spearman=0.13, coarse=0.44, k=6, knn=0.2951),  # 3 and 2
        *with_hub("hubs", hub=(0.3, 0.5), spearman=0.3, coarse=0.5, k=7),  # nothing that hubs do not gain
        *with_hub("costly", spearman=0.2, coarse=0.6, k=8, knn=0.2949),
        *row("oracle", spearman=0.9, pairs="oracle"),
        *row("alone", spearman=0.9, k=9),  # without its control
        *with_hub("once", spearman=0.9, k=11, seeds=(0,)),
        *with_hub("longer", spearman=0.9, k=12, epochs=99),  # what it gains need not be the pairing's
    ]
    best = select_setting(records)
    assert {c.runs[0]["variant"] for c in candidates(records)} == {"strong", "both", "hubs", "costly"}
    assert (best.runs[0]["variant"], best.hub[0]["variant"]) == ("both", "both-hub")
    unit = 2 * 0.01**2 / 1  # variance between two seeds, in every row that has two
    assert best.score == pytest.approx((0.03 + 0.04 / 2) / unit**0.5, rel=0.1)  # one row has a seed less


def test_the_hub_partner_has_the_same_null_model_and_may_be_drawn_where_the_walk_is_expected():
    walk = row("e-null", expected=True, null=1.0)
    hubs = row("hub", pairs="hub") + row("hub-null", pairs="hub", null=1.0)
    assert select_setting([*PLAIN, *walk, *hubs]).hub[0]["variant"] == "hub-null"
    exact = row("hub-e-null", pairs="hub", expected=True, null=1.0)
    assert select_setting([*PLAIN, *walk, *hubs, *exact]).hub[0]["variant"] == "hub-e-null"


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (row("a"), "no VICReg among the records"),
        ([*PLAIN, *row("a")], "none of 1 walks has a hub partner and VICReg beside it for 2 seeds: .* --pairs hub"),
        ([*row(method="vicreg", knn=0.5), *with_hub("a")], "none of 1 walks loses at most 0.5% of kNN"),
    ],
)
def test_a_search_without_vicreg_or_without_a_candidate_is_refused(records, words):
    with pytest.raises(ValueError, match=words):
        select_setting(records)


def test_the_flags_of_the_selected_setting_give_it_exactly():
    fields = {"scope": "queue", "mutual": True, "length": 3, "confident": 0.5, "null": 1.0}
    records = with_hub("x", spearman=0.2, threads=1, trunk="t", **fields)
    records[0]["config"]["keep_at"] = []  # as JSON has it
    selected = selection_of([*PLAIN, *records])
    assert selected["fields"] == fields_of(records[0]) == fields
    assert (selected["variant"], selected["control"], selected["seeds"]) == ("x", "x-hub", [0, 1])
    assert selected["validation"]["entry"]["spearman_pairs"] == pytest.approx(0.2)
    arguments = ["--variant", "entry", *shlex.split(selected["flags"])]
    told = tyro.cli(Config, default=configure("sag-vicreg", "long"), args=arguments)
    assert told == configure("sag-vicreg", "long", variant="entry", **fields)


def test_the_command_stores_the_selected_setting(tmp_path, capsys):
    for made in (*PLAIN, *with_hub("walk-a", spearman=0.2, mutual=True)):
        path = record_path(tmp_path, "long-search", "cifar100", made["method"], made["variant"], made["seed"])
        write_record(path, made)
    main(str(tmp_path))
    stored = json.loads((tmp_path / "entry.json").read_text())
    assert (stored["variant"], stored["control"], stored["trials"]) == ("walk-a", "walk-a-hub", 1)
    assert (
        "walk-a over walk-a-hub, of 1 trials: --method sag-vicreg --variant walk-a --mutual" in capsys.readouterr().out
    )
