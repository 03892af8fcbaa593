"""The table of branches: controls found by their settings, gains by seed, shares and costs as the records have them."""

import pytest

from sagkit.studies.branches import branch_table, branch_tables, changes, partner_of
from sagkit.train.config import configure


def row(variant="default", method="sag-vicreg", seeds=3, spearman=0.1, coarse=0.4, epoch=24, **fields) -> list[dict]:
    runs = []
    for seed in range(seeds):
        config = configure(method, "long", variant=variant, seed=seed, **fields).to_dict()
        metrics = {"spearman_pairs": spearman + 0.02 * seed, "superclass_knn": coarse, "knn": 0.3, "label_free": 0.5}
        trunk = {"epoch": epoch, "core_seconds": 600.0}
        about = {
            "train_set": "cifar100",
            "profile": "long",
            "evaluated_on": "test",
            "processor": "x",
            "commit": "c" * 40,
        }
        runs.append({"method": method, "variant": variant, "seed": seed, "config": config, "metrics": metrics, **about})
        runs[-1] |= {"core_seconds": 60.0 + 60 * seed, "trunk": trunk}
        if method != "vicreg":
            runs[-1]["pull"] = {"weight": 0.4, "class_share": 0.05, "superclass_share": 0.15}
    return runs


PLAIN, WALK = row(method="vicreg"), row("null", spearman=0.13, coarse=0.43, expected=True, null=1.0)
HUB, OTHER = row("null-hub", spearman=0.12, coarse=0.44, pairs="hub", null=1.0), row("hub", pairs="hub")
RANDOM = row("null-random", seeds=2, spearman=0.09, pairs="random", null=1.0, k=3)


def test_a_row_stands_beside_hubs_of_its_own_graph_and_random_partners_of_any():
    rows = {"walk": WALK, "hub": OTHER, "null-hub": HUB, "null-random": RANDOM, "vicreg": PLAIN}
    assert partner_of(WALK, rows, "hub") is HUB
    assert partner_of(WALK, rows, "random") is RANDOM
    assert partner_of(row("k3", expected=True, null=1.0, k=3), rows, "hub") == []
    assert partner_of(row("heavy", expected=True, null=1.0, weight=0.8), rows, "random") == []
    exact = row("exact", pairs="hub", expected=True, null=1.0)
    assert partner_of(WALK, rows | {"exact": exact}, "hub") is exact, "in expectation, as the row itself"
    assert changes(WALK, RANDOM, "spearman_pairs") == pytest.approx([0.04, 0.04])


def test_the_table_has_gains_by_seed_shares_and_the_costs_of_branch_and_trunk_apart():
    table = branch_table([*PLAIN, *WALK, *HUB, *OTHER, *RANDOM])
    walk = table.loc["sag-vicreg (null)"]
    assert walk["Spearman pairs − hub"] == "+0.010 ± 0.000"
    assert walk["Spearman pairs − VICReg"] == "+0.030 ± 0.000"
    assert walk["superclass kNN % − hub"] == "-1.0 ± 0.0"
    assert walk["Spearman pairs − random"] == "+0.040", "two seeds have no interval"
    assert (walk["weight"], walk["class share"], walk["superclass share"]) == (
        "0.400 ± 0.000",
        "5.0 ± 0.0",
        "15.0 ± 0.0",
    )
    assert walk["core-min, branch + trunk"] == "2.0 + 10.0"
    assert table.loc["vicreg", ["weight", "Spearman pairs − hub", "Spearman pairs − VICReg"]].tolist() == [""] * 3
    assert table.loc["sag-vicreg (null-hub)", "Spearman pairs − hub"] == ""


def test_branches_of_trunks_of_other_lengths_stand_apart_and_none_is_said():
    whole = row("whole", method="vicreg")
    for run in whole:
        del run["trunk"]
    trunk = row("trunk", method="vicreg", decay=0.0)
    shown = branch_tables([*PLAIN, *row("later", epoch=100), *whole, *trunk])
    assert shown.count("| branch |") == 2
    assert shown.index("trunk of 24 epochs") < shown.index("| vicreg |") < shown.index("trunk of 100 epochs")
    assert "whole" not in shown
    assert "vicreg (trunk)" not in shown
    assert branch_tables(trunk).startswith("No branch is trained yet")
