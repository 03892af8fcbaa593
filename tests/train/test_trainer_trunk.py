"""Trunks: a run that branches off another's kept checkpoint ends as if it had been trained whole."""

import json

import pytest
import torch
from tiny import tiny as tiny_run

from sagkit.data.load import make_shapes
from sagkit.train import trainer
from sagkit.train.build import learning_rate, make_fabric
from sagkit.train.record import core_seconds, load_state
from sagkit.train.trainer import Trainer, fit

pytestmark = pytest.mark.xdist_group("trunk")  # costly fixtures, made once


def tiny(folder, **fields):
    """A tiny run that is judged quickly, since nothing here is about the figures themselves."""
    return tiny_run(folder, **{"probe": False, "resamplings": 0, "readout_every": 0} | fields)


@pytest.fixture(scope="module")
def images():
    return make_shapes(96, size=16, seed=0), make_shapes(40, size=16, seed=1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, images):
    """A VICReg run of 3 epochs, which keeps its checkpoints after the first two."""
    return fit(tiny(tmp_path_factory.mktemp("trunk"), method="vicreg", keep_at=(1, 2)), *images, progress=False)


@pytest.fixture(scope="module")
def trunk(plain) -> str:
    """The checkpoint after the second."""
    folder = plain.path.parents[3]
    kept = sorted(folder.rglob("runs/**/*.safetensors"))
    assert [path.name for path in kept] == [f"vicreg-seed0.epoch{n}.safetensors" for n in (1, 2)], "and not its own"
    return str(kept[1])


def test_a_run_killed_as_it_writes_its_checkpoint_has_kept_its_trunk(tmp_path, images, monkeypatch):
    """The run that goes on from that checkpoint is past the trunk and keeps it no more."""
    config = tiny(tmp_path, keep_at=(1,))
    made, written = Trainer(config, make_fabric(config), images[0]), []
    made.epoch = 1
    monkeypatch.setattr(trainer, "save_state", lambda path, state: written.append(path.name))
    made.save()
    assert written == ["sag-vicreg-seed0.epoch1.safetensors", "sag-vicreg-seed0.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"alpha": 0.5},
        {"alpha": 0.5, "keep": False, "walk_warmup": 0.2, "scope": "queue", "queue_batches": 2},
        {"alpha": 0.9, "scope": "dataset", "graph_epochs": 5},
        {"alpha": 0.9, "scope": "dataset", "pairs": "oracle"},
    ],
)
def test_a_branch_ends_with_the_weights_figures_and_log_of_the_run_trained_whole(
    tmp_path, images, plain, trunk, fields
):
    whole = fit(tiny(tmp_path / "whole", walk_start=2 / 3, **fields), *images, progress=False)
    grown = fit(tiny(tmp_path / "grown", walk_start=2 / 3, trunk=trunk, **fields), *images, progress=False)
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(grown.encoder.state_dict()[name], value), name
    assert not torch.equal(value_of(plain), value_of(grown))
    assert grown.record["metrics"] == whole.record["metrics"]
    assert grown.record["log"] == whole.record["log"]


def value_of(run) -> torch.Tensor:
    return run.encoder.state_dict()["backbone.0.weight"]


@pytest.mark.slow
def test_the_record_of_a_branch_has_its_own_cost_and_that_of_its_trunk_apart(tmp_path, images, trunk):
    run = fit(tiny(tmp_path, walk_start=2 / 3, trunk=trunk), *images, progress=False)
    record = json.loads(run.path.read_text())
    kept = load_state(trunk)
    assert record["trunk"] == {
        "name": "vicreg-seed0.epoch2",
        "seed": 0,
        "epoch": 2,
        "core_seconds": round(kept["clock"]["core_seconds"], 1),
        "commit": kept["origin"]["commit"],
    }
    assert 0 < record["core_seconds"] < core_seconds(record) == record["core_seconds"] + record["trunk"]["core_seconds"]
    assert record["images_per_second"] * record["training_seconds"] == pytest.approx(96, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"walk_start": 0.5}, r"is of epoch 2, and the pairing or decay begins at epoch 1.5: raise walk_start"),
        ({"walk_start": 0.9, "lr": 0.5}, r"is no trunk of this run \(lr 0.01 -> 0.5\): only the pairing may differ"),
        ({"walk_start": 0.9, "seed": 1}, r"seed 0 -> 1"),
        ({"method": "barlow-twins"}, "a run of barlow-twins is one of vicreg at no time: only vicreg and sag-vicreg"),
    ],
)
def test_what_is_no_trunk_of_a_run_is_refused(tmp_path, images, trunk, fields, words):
    with pytest.raises(ValueError, match=words):
        fit(tiny(tmp_path, trunk=trunk, **fields), *images, progress=False)


@pytest.mark.slow
def test_a_trunk_of_other_images_is_refused(tmp_path, images, trunk):
    with pytest.raises(ValueError, match="trained on other images"):
        fit(tiny(tmp_path, trunk=trunk, walk_start=0.9), make_shapes(96, size=16, seed=3), images[1], progress=False)


WSD = {"schedule": "wsd", "walk_start": 0.0, "warmup_epochs": 0.5, "epochs": 2, "decay": 1.0}


@pytest.fixture(scope="module")
def stable(tmp_path_factory, images) -> str:
    """The checkpoint at a constant rate that a VICReg trunk keeps after its first epoch of two."""
    folder = tmp_path_factory.mktemp("stable")
    trunk = tiny(folder, **WSD | {"method": "vicreg", "variant": "trunk", "decay": 0.0, "keep_at": (1, 2)})
    fit(trunk, *images, progress=False)
    return str(next(folder.rglob("runs/**/vicreg-trunk-seed0.epoch1.safetensors")))


@pytest.mark.slow  # each trains two runs
@pytest.mark.parametrize(
    "fields",
    [
        {"method": "vicreg"},
        {"alpha": 0.0},
        {"alpha": 0.5, "scope": "queue", "queue_batches": 2},
        {"alpha": 0.9, "scope": "dataset", "epochs": 3, "decay": 2.0},
    ],
)
def test_a_decay_from_a_trunk_of_another_length_ends_as_the_run_trained_whole(tmp_path, images, stable, fields):
    whole = fit(tiny(tmp_path / "whole", **WSD | fields), *images, progress=False)
    grown = fit(tiny(tmp_path / "grown", **WSD | fields, trunk=stable), *images, progress=False)
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(grown.encoder.state_dict()[name], value), name
    assert grown.record["log"] == whole.record["log"]
    assert grown.record["metrics"] == whole.record["metrics"]


@pytest.mark.slow
def test_branches_of_one_trunk_without_walks_are_one_and_other_walks_or_another_seed_are_not(tmp_path, images, stable):
    fields = {"plain": {"method": "vicreg"}, "none": {"alpha": 0.0}, "walk": {"alpha": 1.0}, "seed": {"seed": 1}}
    ends = {
        name: value_of(fit(tiny(tmp_path / name, **WSD | {"alpha": 0.0} | more, trunk=stable), *images, progress=False))
        for name, more in fields.items()
    }
    assert torch.equal(ends["plain"], ends["none"])
    assert not torch.equal(ends["plain"], ends["walk"])
    assert not torch.equal(ends["plain"], ends["seed"])


@pytest.mark.slow
def test_a_trunk_gone_on_with_is_the_trunk_trained_whole_and_counts_the_cost_of_all_before(tmp_path, images, stable):
    second = load_state(stable.replace("epoch1", "epoch2"))
    longer = WSD | {"method": "vicreg", "variant": "trunk", "decay": 0.0, "keep_at": (2,)}
    run = fit(tiny(tmp_path, **longer, trunk=stable), *images, progress=False)
    kept = next((tmp_path / "runs").rglob("*.epoch2.safetensors"))
    for name, value in load_state(kept)["method"].items():
        assert torch.equal(second["method"][name], value), name
    decay = fit(tiny(tmp_path / "decay", **WSD | {"alpha": 0.5, "epochs": 3}, trunk=str(kept)), *images, progress=False)
    assert decay.record["trunk"]["core_seconds"] == pytest.approx(core_seconds(run.record), abs=0.1)


@pytest.mark.slow  # trains a trunk
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"epochs": 1, "decay": 0.5},
            "is of epoch 1, and the pairing or decay begins at epoch 0.5: raise walk_start or",
        ),
        ({"lr": 0.5}, r"is no trunk of this run \(lr 0.01 -> 0.5\): only pairing, decay and seed may differ"),
        ({"schedule": "cosine", "decay": 0.0}, "schedule wsd -> cosine"),
    ],
)
def test_what_a_run_cannot_decay_from_is_refused(tmp_path, images, stable, fields, words):
    with pytest.raises(ValueError, match=words):
        fit(tiny(tmp_path, **WSD | {"alpha": 0.5} | fields, trunk=stable), *images, progress=False)


def test_the_rate_rises_stays_and_falls_along_a_line_to_a_thousandth():
    rates = [learning_rate(step, 20, 4, 0.5, 512, decay=8) for step in range(20)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:12] == [1.0] * 8
    assert rates[12:] == pytest.approx([1 - 0.999 * t / 8 for t in range(8)])
    assert [learning_rate(step, 90, 4, 0.5, 512, decay=0) for step in range(12)] == rates[:12], "whatever the length"


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"method": "dino", "encoder": "resnet10-w4", "prototypes": 32, "head_norm": True, "ema": 0.9},
        {"method": "ijepa", "encoder": "vit-d16-l1-p4-avg", "predictor_width": 16, "predictor_depth": 1},
    ],
    ids=["dino", "ijepa"],
)
def test_a_teacher_of_a_trunk_does_not_know_how_long_it_will_be(tmp_path, images, fields):
    ends = WSD | fields
    fit(tiny(tmp_path, **ends | {"variant": "trunk", "decay": 0.0, "keep_at": (1,)}), *images, progress=False)
    kept = next((tmp_path / "runs").rglob("*-trunk-seed0.epoch1.safetensors"))
    whole = fit(tiny(tmp_path / "whole", **ends | {"epochs": 3, "decay": 2.0}), *images, progress=False)
    grown = fit(
        tiny(tmp_path / "grown", **ends | {"epochs": 3, "decay": 2.0}, trunk=str(kept)), *images, progress=False
    )
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(grown.encoder.state_dict()[name], value), name
