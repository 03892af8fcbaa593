"""Trunks: a run that branches off another's kept checkpoint ends as if it had been trained whole."""

import json

import pytest
import torch
from tiny import tiny

from sagkit.data.load import make_shapes
from sagkit.train.trainer import fit

pytestmark = pytest.mark.xdist_group("trunk")  # costly fixtures, made once


@pytest.fixture(scope="module")
def images():
    return make_shapes(160, size=16, seed=0), make_shapes(80, size=16, seed=1)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory, images) -> str:
    """The checkpoint that a VICReg run of 3 epochs keeps after its second."""
    folder = tmp_path_factory.mktemp("trunk")
    fit(tiny(folder, method="vicreg", keep_at=(1, 2)), *images, progress=False)
    kept = sorted(folder.rglob("runs/**/*.safetensors"))
    assert [path.name for path in kept] == [f"vicreg-seed0.epoch{n}.safetensors" for n in (1, 2)], "and not its own"
    return str(kept[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"alpha": 0.5},
        {"alpha": 0.5, "keep": False, "walk_warmup": 0.2},
        {"alpha": 0.9, "scope": "dataset", "graph_epochs": 5},
        {"alpha": 0.9, "scope": "dataset", "pairs": "oracle"},
    ],
)
def test_a_branch_ends_with_the_weights_figures_and_log_of_the_run_trained_whole(tmp_path, images, trunk, fields):
    whole = fit(tiny(tmp_path / "whole", walk_start=2 / 3, **fields), *images, progress=False)
    grown = fit(tiny(tmp_path / "grown", walk_start=2 / 3, trunk=trunk, **fields), *images, progress=False)
    plain = fit(tiny(tmp_path / "plain", method="vicreg"), *images, progress=False)
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(grown.encoder.state_dict()[name], value), name
    assert not torch.equal(value_of(plain), value_of(grown))
    assert grown.record["metrics"] == whole.record["metrics"]
    assert grown.record["log"] == whole.record["log"]


def value_of(run) -> torch.Tensor:
    return run.encoder.state_dict()["backbone.0.weight"]


@pytest.mark.slow
def test_the_record_of_a_branch_names_its_trunk_and_counts_its_cost(tmp_path, images, trunk):
    run = fit(tiny(tmp_path, walk_start=2 / 3, trunk=trunk), *images, progress=False)
    record = json.loads(run.path.read_text())
    assert record["trunk"]["path"] == trunk
    assert record["trunk"]["epoch"] == 2
    assert record["training_seconds"] > 0
    assert record["images_per_second"] * record["training_seconds"] == pytest.approx(3 * 160, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"walk_start": 0.5}, r"is of epoch 2, and the pairing begins at epoch 1.5: raise walk_start"),
        ({"walk_start": 0.9, "lr": 0.5}, r"is no trunk of this run \(lr 0.01 -> 0.5\): only the pairing may differ"),
        ({"walk_start": 0.9, "seed": 1}, r"seed 0 -> 1"),
        ({"walk_start": 0.9, "scope": "queue"}, "sag-vicreg under scope queue is VICReg at no time"),
        ({"method": "barlow-twins"}, "a run of barlow-twins under scope batch is VICReg at no time"),
    ],
)
def test_what_is_no_trunk_of_a_run_is_refused(tmp_path, images, trunk, fields, words):
    with pytest.raises(ValueError, match=words):
        fit(tiny(tmp_path, trunk=trunk, **fields), *images, progress=False)


@pytest.mark.slow
def test_a_trunk_of_other_images_is_refused(tmp_path, images, trunk):
    with pytest.raises(ValueError, match="trained on other images"):
        fit(tiny(tmp_path, trunk=trunk, walk_start=0.9), make_shapes(160, size=16, seed=3), images[1], progress=False)
