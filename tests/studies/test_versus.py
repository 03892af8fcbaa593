"""Rows against each other: differences are those of the metrics over shared seeds; a copy differs by nothing."""

import json

import numpy as np
import pytest
from tiny import tiny

from sagkit.data.load import make_shapes
from sagkit.metrics.evaluate import references
from sagkit.metrics.semantic import rank_correlation
from sagkit.model import extract_features
from sagkit.studies.versus import encoders_of, main, summary, versus
from sagkit.train.record import load_encoder, read_records
from sagkit.train.trainer import fit

pytestmark = pytest.mark.xdist_group("versus")  # costly fixtures, made once


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """VICReg of seeds 0 and 1, walks of 1 and 2, an untrained network; and what they are judged on."""
    folder, train, test = (
        tmp_path_factory.mktemp("versus"),
        make_shapes(96, size=16, seed=0),
        make_shapes(160, size=16, seed=1),
    )
    settings = [("vicreg", 0, 1), ("vicreg", 1, 1), ("sag-vicreg", 1, 1), ("sag-vicreg", 2, 1), ("vicreg", 0, 0)]
    for method, seed, epochs in settings:
        name = {} if epochs else {"variant": "random"}
        config = tiny(folder, method=method, seed=seed, epochs=epochs, alpha=3.0, probe=False, resamplings=0, **name)
        fit(config, train, test, progress=False)
    return folder / "results", test, next(iter(references("shapes", test.class_names).values()))


@pytest.mark.slow
def test_a_difference_is_that_of_the_scores_over_the_seeds_both_have(house):
    results, test, distances = house
    stored = encoders_of(read_records(results))
    assert {name: list(paths) for name, paths in stored.items()} == {"sag-vicreg": [1, 2], "vicreg": [0, 1]}
    (row,) = versus(stored, test, distances, bootstrap=50)
    scores = [
        rank_correlation(extract_features(load_encoder(stored[name][1]), test.images), test.labels, distances)
        for name in ("sag-vicreg", "vicreg")
    ]
    assert row["seeds"] == [1]
    assert np.isclose(row["spearman"], scores[0].spearman - scores[1].spearman)
    assert np.isclose(row["kendall"], scores[0].kendall - scores[1].kendall)
    low, high = row["spearman_interval"]
    assert low < row["spearman"] < high


@pytest.mark.slow
def test_a_row_of_which_an_encoder_is_missing_is_refused_with_the_command_that_makes_it(house, tmp_path):
    records = read_records(house[0])
    gone = next(record for record in records if (record["method"], record["seed"]) == ("sag-vicreg", 2))
    gone["path"] = str(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match=r"no stored encoder of tour / shapes / sag-vicreg, seed 2: `.*--seed 2"):
        encoders_of(records)


@pytest.mark.slow
def test_a_row_beside_its_copy_differs_by_nothing(house):
    results, test, distances = house
    stored = encoders_of(read_records(results))
    (row,) = versus({"vicreg": stored["vicreg"], "copy": stored["vicreg"]}, test, distances, bootstrap=50)
    assert row["seeds"] == [0, 1]
    assert row["spearman"] == row["kendall"] == 0
    assert np.allclose(row["spearman_interval"], 0)


@pytest.mark.slow
def test_a_row_of_a_variant_is_set_against_the_baseline_of_that_variant(house):
    results, test, distances = house
    stored = encoders_of(read_records(results))
    both = {f"{name} (long)": paths for name, paths in stored.items()}
    rows = versus({**both, "vicreg": stored["vicreg"]}, test, distances, bootstrap=20)
    assert [(row["row"], row["baseline"]) for row in rows] == [
        ("sag-vicreg (long)", "vicreg (long)"),
        ("vicreg (long)", "vicreg"),
    ]
    assert rows[0]["spearman"] != 0 == rows[1]["spearman"]


@pytest.mark.slow
def test_a_baseline_without_encoders_is_refused(house):
    _, test, distances = house
    with pytest.raises(ValueError, match="no stored encoder of 'dino': choose one of none"):
        versus({}, test, distances, "dino")


@pytest.mark.slow
def test_the_command_writes_a_record_that_the_report_can_read(house, monkeypatch, capsys):
    results, test, _ = house
    monkeypatch.setattr("sagkit.studies.versus.load_images", lambda *_: test)
    main(str(results), "tour", "shapes", bootstrap=20)
    record = json.loads((results / "versus/tour.json").read_text())
    main(str(results), "tour", "shapes", "sag-vicreg", bootstrap=20)
    over = json.loads((results / "versus/tour-over-sag-vicreg.json").read_text())
    assert [row["row"] for row in over["rows"]] == ["vicreg"]
    assert over["rows"][0]["spearman"] == -record["rows"][0]["spearman"]
    assert "sag-vicreg − vicreg | 1 |" in capsys.readouterr().out
    assert "test images of shapes, profile tour; brackets are 95 % intervals over seeds and 20" in summary(record)
