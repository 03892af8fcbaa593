"""Extrapolation of cost: identity at the recorded size, each part's growth, prices, and what is refused."""

import pytest
from test_tables import record

from sagkit.studies.cost import estimate, estimate_text, extrapolated
from sagkit.studies.tables import main
from sagkit.train.record import rows_of, write_record

PARTS = {"encoder": 300.0, "backward": 400.0, "optimizer": 20.0, "graph": 50.0, "walk": 10.0, "rebuild": 40.0}


def timed(**fields) -> dict:
    config = {"epochs": 5, "threads": 2, "batch_size": 100, "encoder": "tiny", "scope": "batch"}
    spent = {"seconds": {**PARTS, "evaluation": 60.0}, "training_seconds": 900.0, "images": 1000}
    rest = {"images_per_second": 5.0, "walk_share": 0.1, "parameters": 10, "config": config}
    return {**record(), **spent, **rest, **fields}


def test_at_the_recorded_size_the_estimate_is_what_was_measured():
    found = estimate(timed(), price=2.0)
    assert found.hours * 3600 == pytest.approx(900 + 60)
    assert found.seconds == pytest.approx({**PARTS, "evaluation": 60.0, "not timed": 80.0})
    assert found.price == pytest.approx(2 * 960 / 3600)
    assert estimate(timed()).price is None


def test_parts_grow_as_their_operations_are_counted():
    """Operations of an epoch counted by loops over steps, for 3 times the images in batches twice as large."""

    def counted(n, b):
        steps = range(n // b)
        one = {"encoder": sum(b for _ in steps), "optimizer": sum(1 for _ in steps), "graph": sum(b * b for _ in steps)}
        return one | {"rebuild": sum(n for _ in range(n))}

    before, after = counted(1000, 100), counted(3000, 200)
    found = estimate(timed(), images=3000, batch=200).seconds
    for part in before:
        assert found[part] == pytest.approx(PARTS[part] * after[part] / before[part])
    assert found["backward"] / PARTS["backward"] == found["encoder"] / PARTS["encoder"]


def test_older_records_take_all_walking_for_its_fastest_part_and_time_from_speed():
    old = timed(seconds={"encoder": 500.0, "walk": 100.0}, images_per_second=50.0)
    del old["training_seconds"], old["images"]
    old["config"] = {**old["config"], "batch_size": 512, "scope": "dataset"}
    found = estimate(old, images=100_000)  # trained: 97 whole batches of CIFAR's 50,000 images, 5 times
    spent = 97 * 512 * 5 / 50
    assert found.seconds == pytest.approx({"encoder": 1000.0, "rebuild": 400.0, "not timed": 2 * (spent - 600)})
    assert any("evaluation was not timed" in note for note in found.assumptions)
    with pytest.raises(ValueError, match="neither its number of images"):
        estimate({**old, "train_set": "photos"})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batch": 0}, "batch 0 of 1,000 images"),
        ({"images": 50}, "batch 100 of 50 images"),
        ({"price": -1.0}, "price per hour must be at least 0, got -1.0"),
    ],
)
def test_impossible_sizes_and_prices_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        estimate(timed(), **fields)


def test_the_report_prints_hours_price_and_assumptions_and_says_what_cannot_be_told(tmp_path, capsys):
    untrained = timed(variant="random")
    untrained["config"] = {**untrained["config"], "epochs": 0}
    untrained["evaluated_on"] = "test"
    text = extrapolated(rows_of([timed(), untrained]), 1000, 100, 3.6)
    assert "vicreg: 0.27 h, price 0.96" in text
    assert "vicreg (untrained) was not trained" in text
    assert "assumed: measured on a machine, 2 thread(s)" in text
    assert estimate_text("x", estimate(timed())).startswith("x: 0.27 h (backward 42%, encoder 31%")
    write_record(tmp_path / "vicreg-seed0.json", timed())
    main(results=str(tmp_path), cost=True, images=2000, price=3.6)
    assert "5 epochs of 2,000 images in batches of 100, from 1,000 in batches of 100" in capsys.readouterr().out
