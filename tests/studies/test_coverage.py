"""The study of intervals: it counts what was planted, and a world's seeds share what they should."""

import json

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from sagkit.studies import coverage


def test_intervals_that_hold_the_truth_are_counted_and_on_which_side_the_others_miss(monkeypatch):
    def planted(kind, seed, images, classes, resamplings):
        if not resamplings:  # the population
            assert seed >= coverage.FAR
            return [(0.5, np.nan, np.nan), (0.25, np.nan, np.nan)]
        low = (0.4, 0.6, 0.1)[seed % 3]  # holds; too high; too low
        return [(0.5 + 0.01 * (seed % 2), low, low + 0.2), (0.25 + 0.01 * (seed % 2), 0.0, 1.0)]

    monkeypatch.setattr(coverage, "trial", planted)
    row = coverage.covered("classes", 100, 5, 30, coverage.truth_of("classes"))
    assert (row["truth"], row["held"], row["below"]) == ([0.5, 0.25], [10, 30], [10, 0])
    assert row["bias"] == pytest.approx([0.005, 0.005])
    assert row["width"] == pytest.approx([0.2, 1.0])
    table = coverage.coverage_table({"rows": {"planted": row}})
    assert table["figure"].tolist() == ["Spearman", "Kendall"]
    assert table["holds the truth"].iloc[0] == "33.3% [17.3%, 52.8%]"  # Clopper and Pearson, 10 of 30
    assert table["too high, too low"].tolist() == ["10, 10 of 30", "0, 0 of 30"]


def test_the_worlds_differ_by_what_is_resampled():
    draw = [np.random.default_rng(s) for s in (0, 0, 1)]
    (a, y, steps), (again, *_), (_, _, elsewhere) = (coverage.embeddings(g, 40, 8, 0.5, seeds=2) for g in draw)
    assert all((p == q).all() for p, q in zip(a, again, strict=True))
    assert not np.allclose(a[0], a[1])  # seeds of one world differ,
    assert not np.allclose(steps, elsewhere)  # and so do the classes of two
    assert np.corrcoef(cdist(a[0], a[0]).ravel(), cdist(a[1], a[1]).ravel())[0, 1] > 0.3  # which seeds share
    assert (np.unique(y, return_counts=True)[1] == 5).all()


@pytest.mark.parametrize("kind", ["structure", "classes", "difference"])
def test_a_trial_is_an_estimate_within_its_own_interval(kind):
    for value, low, high in coverage.trial(kind, 3, 120, 12, 60):
        assert low < value < high
        assert high - low < 0.8


def test_missing_worlds_alone_are_added_to_a_record(tmp_path, monkeypatch):
    asked = []

    def counted(kind, images, classes, trials, truth):
        asked.append((kind, images))
        return {"held": [trials]}

    monkeypatch.setattr(coverage, "covered", counted)
    monkeypatch.setattr(coverage, "truth_of", lambda kind: 0.5)
    coverage.main(tmp_path, trials=10)
    assert len(asked) == len(coverage.WORLDS)
    place = tmp_path / "coverage.json"
    record = json.loads(place.read_text())
    del record["rows"]["structure, 2,000 images"]
    record["rows"]["classes, 25 of 20 images"]["held"] = [7]
    place.write_text(json.dumps(record))
    asked.clear()
    coverage.main(tmp_path, trials=10, missing=True)
    assert asked == [("structure", 2000)]
    rows = json.loads(place.read_text())["rows"]
    assert rows["classes, 25 of 20 images"]["held"] == [7]
    assert rows["structure, 2,000 images"]["held"] == [5]
