"""Benchmark tables: ratios, absent peers and provenance stand where a reader looks."""

import pandas as pd
import pytest

from sagkit.show.tables import to_markdown
from sagkit.studies.benchmarks import (
    bench_table,
    explore_table,
    metric_table,
    neighbor_table,
    notebook_table,
    walk_table,
)

MADE = {"processor": "a machine", "threads": 2, "command": "make bench", "commit": "0123456789abcdef"}


def row(nodes: int, spent: dict[str, float], **fields) -> dict:
    fastest = spent["numba"]
    return {"nodes": nodes, "walks": 10 * nodes, "steps": 5, "nanoseconds_per_step": spent,
            "ratio": {name: value / fastest for name, value in spent.items()}, "absent": {}, **fields}  # fmt: skip


def test_a_peer_that_ran_at_one_size_only_is_not_run_at_the_other_and_an_absent_one_is_named():
    rows = [
        row(10, {"ours": 5.0, "numba": 20.0, "slow": 4000.0}, absent={"DGL": "no wheel"}),
        row(1000, {"ours": 8, "numba": 16}),
    ]
    line = {"exponent": 1.01, "total_steps": [100, 10_000]}
    text = walk_table({"walks": {**MADE, "rows": rows, "linearity": line}})
    assert "| ours | 5.0 (0.25) | 8.0 (0.5) |" in text
    assert "| slow | 4,000.0 (200) | not run |" in text
    assert "10 nodes, 100 × 5" in text
    assert "DGL could not be measured here (no wheel)." in text
    assert "steps^1.01 from 100 to 10,000 steps" in text
    assert "a machine, 2 threads; `make bench`, made at 012345678." in text


def test_a_neighbour_search_shows_time_ratio_and_recall():
    found = {"nodes": 5000, "width": 64, "k": 10, "seconds": {"ours": 0.5, "peer": 2.0},
             "times_ours": {"ours": 1.0, "peer": 4.0}, "recall": {"ours": 1.0, "peer": 0.98}}  # fmt: skip
    records = {"walks": {**MADE, "neighbors": [found]}}
    assert "| peer | 2 s (4 × ours, recall 0.98) |" in neighbor_table(records)
    assert bench_table("neighbors", records) == neighbor_table(records)


def test_graphs_of_millions_show_processor_time_recall_memory_growth_and_what_is_not_measured():
    entry = {"seconds": 90.0, "core_seconds": 12.34, "recall": 0.9612, "peak_mb": 1536.0}
    record = MADE | {"k": 16, "width": 128, "classes": 100, "spread": 16, "walks": 1_000_000, "length": 8}
    record["entries"] = {
        "one": {"10000": entry, "1000000": {"expected_seconds": 1800}},
        "two": {"10000": entry | {"walk_core_seconds": 2.0}},
    }
    record["exponents"] = {"one": 1.234, "two": None}
    text = bench_table("graphs", {"graphs": record})
    assert "| one | 12.3 (0.961, 1.5 GiB) | not measured (about 30 min expected) | N^1.23 |" in text
    assert "| two | 12.3 (0.961, 1.5 GiB) | not measured | not measured |" in text
    assert "1,000,000 walks of 8 steps: 2.0 s on 10,000 nodes." in text
    assert "`python tests/bench_graphs.py` writes the record" in bench_table("graphs", {})


def test_a_gpus_table_shows_walks_searches_the_steps_shares_and_its_rate_beside_the_encoders():
    step = {"encoder": "resnet18", "batch": 512, "step_seconds": 0.02, "share_of_encoder": 0.72}
    record = MADE | {
        "step": step | {"share_of_step": {"augmentation": 0.1, "encoder": 0.9}},
        "walks": 1000,
        "length": 8,
    }
    record["billion_steps_per_second"] = {"10000": {"sagkit": 1.5, "DGL": 0.2}, "100000": {"sagkit": 1.25}}
    record["neighbor_seconds"] = {"50000": {"sagkit, exact": 0.0421}}
    text = bench_table("gpu", {"gpu": record})
    assert "| sagkit | 1.5 | 1.25 |" in text
    assert "| DGL | 0.2 | not run |" in text
    assert "| sagkit, exact | 42.1 ms |" in text
    assert "| share | 10.0% | 90.0% |" in text
    assert "25,600 pairs/s, 72% of what the encoder's forward and backward alone would" in text
    assert bench_table("gpu", {}) == "Not measured yet: `tests/gpu.sh` writes the record."


def test_a_benchmark_without_a_record_is_not_measured_yet():
    for name in ("training", "walks", "neighbors", "metrics"):
        assert bench_table(name, {}) == "Not measured yet: `make bench` writes the record."
    assert "`python tests/bench_notebooks.py` writes" in bench_table("notebooks", {})
    with pytest.raises(ValueError, match="no benchmark 'trainings': choose one of training, walks"):
        bench_table("trainings", {})


def test_metrics_show_time_ratio_the_error_of_drawing_and_the_sum_of_a_full_evaluation():
    rows = [
        {"name": name, "pairs": pairs, "seconds": {"ours": 0.5, "scipy": 2.5, "scipy's other": 1.0},
         "disagreement": wrong, "spearman": spearman, "kendall": 0.1}
        for name, pairs, wrong, spearman in (("drawn", 1000, 1e-15, 0.2), ("all pairs", 5000, 3e-14, 0.25))
    ]  # fmt: skip
    record = {**MADE, "rows": rows, "full": {"pairs": 2.0, "centroid": 1.25}, "resamplings": 1000, "images": 10_000,
              "width": 128, "classes": 100}  # fmt: skip
    text = metric_table({"metrics": record})
    assert "| scipy | 2.5 s (5 × ours) | 2.5 s (5 × ours) |" in text
    assert "| scipy, both | 3.5 s (7 × ours) | 3.5 s (7 × ours) |" in text
    assert "drawn, 1,000 | all pairs, 5,000" in text
    assert "| 10,000 × 128, 100 classes | pairs | centroid | sum |" in text
    assert "| seconds | 2.00 | 1.25 | 3.2 |" in text
    assert "Largest disagreement with scipy 3.0e-14; the drawn pairs differ from all by 5.0e-02." in text


def test_notebooks_show_their_seconds_the_load_before_them_and_whether_cifar_was_there():
    record = {**MADE, "seconds": {"00_tour": 41.6, "01_more": 9.4}, "load": {"00_tour": 0.04, "01_more": 1.97},
              "cores": 2, "cifar100": False}  # fmt: skip
    text = notebook_table({"notebooks": record})
    assert "| 00_tour | 42 | 0.0 |" in text
    assert "| 01_more | 9 | 2.0 |" in text
    assert "without CIFAR-100, 2 cores. a machine, 2 threads; `make bench`, made at 012345678." in text


def test_exploring_shows_the_median_and_the_slowest_answer():
    record = {**MADE, "load": 7.46, "seconds": {"click, 512 images": {"median": 0.123, "slowest": 0.456}}}
    text = explore_table({"explore": record})
    assert "| click, 512 images | 0.12 | 0.46 |" in text
    assert "had 7.5 other processes to run" in text


def test_a_table_is_github_markdown():
    frame = pd.DataFrame({"n": [1, 2], "s": ["a", "b"]}, index=pd.Index(["p", "q"], name="row"))
    assert to_markdown(frame) == "| row | n | s |\n| --- | --: | --: |\n| p | 1 | a |\n| q | 2 | b |"


def test_the_pilots_tables_show_recall_beside_the_hash_ranks_beside_areas_and_what_is_not_run():
    strangers = {"pictures": 2000, "pairs found": 3, "of pairs": 1_999_000, "groups": [[1, 2]], "seconds": 30.2}
    scores = {"distance": 1, "Mahalanobis": 7}
    record = MADE | {
        "pictures": 100,
        "bits": 10,
        "copies": {"recall": {"grey": {"ours": 1.0, "hash": 0.975}}, "wrong pairs": 2},
        "strangers": strangers,
        "series": {"text": strangers | {"groups": []}, "skies": strangers},
        "whole": {**strangers, "pictures": 50_000, "of pairs": 1_249_975_000, "seconds": 1116, "peak_memory_mb": 1448},
        "ranks": {"stored": {s: {"black": r} for s, r in scores.items()}, "raw pixels": {"distance": {"black": 12}}},
        "auroc": {"stored": {s: {"sea": 0.9} for s in scores}, "raw pixels": {"distance": {"sea": 0.456}}},
        "look-alikes": {"raw pixels": {"precision@10": 0.3081, "label-free structure": 0.09}},
    }
    found = {"pilot": record, "duplicates": record}
    copies = bench_table("duplicates", found)
    assert "| grey | 1.00 | 0.97 |" in copies or "| grey | 1.00 | 0.98 |" in copies
    assert "2 wrong pairs" in copies
    assert "Of 1,999,000 pairs of 2,000 other test images, 3 are called copies" in copies
    assert "text 0, skies 1" in copies
    assert "All 50,000 training images took 19 minutes on one thread and 1,448 MB" in copies
    assert "of 1,250 million pairs 3 are called copies" in copies
    odd = bench_table("anomalies", found)
    assert "| raw pixels, distance | 12 | 0.46 |" in odd
    assert "| stored, Mahalanobis | 7 | 0.90 |" in odd
    assert "| raw pixels | 0.308 | 0.090 |" in bench_table("look-alikes", found)
    assert bench_table("anomalies", {}) == "Not measured yet: `python tests/bench_pilot.py` writes the record."
