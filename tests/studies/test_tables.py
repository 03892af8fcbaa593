"""Tables: intervals by hand, one row per variant, differences paired by seed, records from committed states."""

import json
from pathlib import Path

import numpy as np
import pytest

from sagkit.__main__ import main as sagkit
from sagkit.metrics.stats import Summary
from sagkit.show.tables import to_markdown
from sagkit.studies.benchmarks import read_bench
from sagkit.studies.cost import costs
from sagkit.studies.tables import UNSEEN, differences, method_table, paired_table, tables_of
from sagkit.train.record import read_records, record_path, rows_of, write_record

ROOT = Path(__file__).resolve().parents[2]


def record(method="vicreg", variant="default", seed=0, knn=0.3, **metrics) -> dict:
    return {
        "method": method,
        "variant": variant,
        "data": "cifar100",
        "train_set": "cifar100",
        "profile": "laptop",
        "seed": seed,
        "evaluated_on": "test",
        "core_seconds": 600.0,
        "commit": "0123456789abcdef",
        "processor": "a machine",
        "config": {"epochs": 5, "threads": 1},
        "metrics": {"knn": knn, **metrics},
    }


def test_the_interval_is_students_t_over_seeds():
    summary = Summary.over([0.1, 0.2, 0.3])
    assert summary.mean == pytest.approx(0.2)
    assert summary.half_width == pytest.approx(4.302653 * 0.1 / np.sqrt(3), rel=1e-5)  # t(0.975; 2) from a table
    assert summary.interval == (summary.mean - summary.half_width, summary.mean + summary.half_width)
    assert Summary.over([0.1, 0.2]).half_width is None
    assert Summary.over([0.1, 0.2]).interval is None
    assert summary.show(percent=True) == "20.0 ± 24.8"
    assert Summary.over([0.1234]).show(percent=False) == "0.123"


def test_a_row_is_a_method_and_variant_and_says_what_was_not_measured():
    records = [record(seed=s, knn=0.3 + s / 100) for s in range(3)]
    records += [record("sag-vicreg", "queue", seed=0, linear=0.5)]
    rows = method_table(records)
    assert list(rows.index) == ["sag-vicreg (queue)", "vicreg"]
    assert rows.loc["vicreg", "seeds"] == "3"
    assert rows.loc["vicreg", "kNN %"] == "31.0 ± 2.5"
    assert rows.loc["vicreg", "linear %"] == "not measured"
    assert rows.loc["sag-vicreg (queue)", "linear %"] == "50.0"
    assert rows.loc["vicreg", "core-min"] == "10.0"


def test_a_figure_that_only_some_seeds_have_is_not_averaged_over_those():
    rows = method_table([record(seed=0, linear=0.4), record(seed=1)])
    assert rows.loc["vicreg", "linear %"] == "not measured"


def test_a_difference_is_paired_by_seed_and_keeps_its_sign():
    shift = {0: 0.0, 1: 0.1, 2: -0.1}  # seeds differ much, methods little
    records = [record(seed=s, knn=0.5 + d) for s, d in shift.items()]
    records += [record("sag-vicreg", seed=s, knn=0.5 + d - 0.01 - 0.001 * s) for s, d in shift.items()]
    records += [record("sag-vicreg", seed=9, knn=0.9), {**record(variant="random"), "config": {"epochs": 0}}]
    rows = differences(records)
    assert list(rows.index) == ["sag-vicreg − vicreg"]
    assert rows.loc["sag-vicreg − vicreg", "seeds"] == "3"
    assert rows.loc["sag-vicreg − vicreg", "kNN %"] == "-1.1 ± 0.2"  # t(0.975; 2) 0.1 / sqrt 3 = 0.248


def test_a_row_of_a_variant_is_set_against_the_baseline_of_that_variant():
    def longer(method, knn, seed=0):
        return {**record(method, "long", seed=seed, knn=knn), "config": {"epochs": 9, "threads": 1}}

    records = [record(knn=0.3), record("sag-vicreg", knn=0.31), record("dino", "wide", knn=0.1)]
    records += [longer("vicreg", 0.4), longer("sag-vicreg", 0.45), longer("sag-vicreg", 0.9, seed=7)]
    records += [{**record("vicreg", "wide", knn=0.2), "config": {"epochs": 0}}]  # untrained: no baseline
    rows = differences(records)
    assert dict(rows["kNN %"]) == {
        "dino (wide) − vicreg": "-20.0",
        "sag-vicreg − vicreg": "+1.0",
        "sag-vicreg (long) − vicreg (long)": "+5.0",
        "vicreg (long) − vicreg": "+10.0",
    }


def test_runs_of_different_settings_are_not_averaged_into_one_row():
    longer = record(seed=1)
    longer["config"] = {"epochs": 9, "threads": 2}
    with pytest.raises(ValueError, match=r"'vicreg' differ in epochs 5 and 9: give one of the settings a --variant"):
        method_table([record(), longer])
    assert len(method_table([record(), {**longer, "variant": "long"}])) == 2


def test_costs_are_means_over_seeds_of_trained_rows():
    spent = {"parameters": 300_000, "images_per_second": 400.0, "walk_share": 0.01}
    runs = [{**record(seed=s), **spent, "config": {"epochs": 5, "encoder": "tiny"}} for s in range(2)]
    runs[1] |= {"core_seconds": 1200.0, "images_per_second": 600.0, "walk_share": 0.02}
    runs += [{**record(variant="random"), **spent, "config": {"epochs": 0, "encoder": "tiny"}}]
    assert costs(rows_of(runs)).loc["vicreg"].to_dict() == {
        "encoder": "tiny",
        "parameters": "300,000",
        "core-min": "15.0",
        "images/s": "500",
        "graph, walk, rebuild": "1.50%",
    }
    assert "vicreg (untrained)" not in costs(rows_of(runs)).index


def test_classes_left_out_of_training_have_a_table_of_their_own():
    records = [record(seed=s, knn=0.3, unseen_knn=0.2 + s / 10) for s in range(2)]
    records += [record("sag-vicreg", seed=s, knn=0.3, unseen_knn=0.25 + s / 10) for s in range(2)]
    text = tables_of("laptop", "cifar100", records)
    assert "| classes left out of training | seeds |" in text
    assert to_markdown(differences(records, columns=UNSEEN)) in text
    assert differences(records, columns=UNSEEN).loc["sag-vicreg − vicreg", "kNN %"] == "+5.0"
    assert "left out" not in tables_of("laptop", "cifar100", [record()])


def test_differences_from_another_row_have_a_table_of_their_own():
    records = [record(seed=s, knn=0.3) for s in range(2)] + [record("sag-vicreg", seed=s, knn=0.4) for s in range(2)]
    text = paired_table("laptop", "cifar100", "sag-vicreg", records)
    assert "| vicreg − sag-vicreg | 2 |" in text
    assert to_markdown(differences(records, "sag-vicreg")) in text
    with pytest.raises(ValueError, match="no records of profile 'tuned'"):
        paired_table("tuned", "cifar100", "vicreg", records)


def test_records_are_found_where_they_are_written(tmp_path, monkeypatch):
    path = record_path(tmp_path, "laptop", "/some/where/parts.npz", "vicreg", "queue", 4)
    assert path == tmp_path / "laptop/parts/vicreg-queue-seed4.json"
    assert record_path(tmp_path, "laptop", "/data/cifar100", "vicreg", "default", 0).parent.name == "cifar100-folder"
    assert record_path(tmp_path, "laptop", "cifar100", "vicreg", "default", 0).parent.name == "cifar100"
    monkeypatch.chdir(tmp_path)
    assert record_path("r", "tour", ".", "vicreg", "default", 0).parent.name == tmp_path.name
    write_record(path, record())
    (found,) = read_records(tmp_path)
    assert found == {**record(), "path": str(path)}


def test_no_records_is_said_with_its_remedy(tmp_path):
    with pytest.raises(SystemExit, match=r"^sagkit report: no run records under .*run sagkit train"):
        sagkit(["report", "--results", str(tmp_path)])
    with pytest.raises(ValueError, match="no records of profile 'gpu' on 'cifar100'"):
        tables_of("gpu", "cifar100", [record()])


def test_every_published_record_comes_from_a_committed_state():
    for found in read_records(ROOT / "figures/results"):
        assert len(found["commit"]) == 40, f"{found['path']} was made by {found['commit']}"
        assert found["command"].startswith("python -m sagkit.train")
    studies = {
        path: json.loads(path.read_text()) for path in sorted((ROOT / "figures/results").glob("*/cifar100.json"))
    }
    assert {path.parent.name for path in studies} >= {"assess", "line", "purity", "validity"}
    for name, found in {**read_bench(ROOT / "figures/results"), **studies}.items():
        assert len(found["commit"]) == 40, f"{name} was made by {found['commit']}"
