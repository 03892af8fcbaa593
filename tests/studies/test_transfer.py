"""Encoders on a set they were not trained on: figures are those of the metrics, differences those of shared seeds."""

import json

import pytest
import torch
from scipy.stats import spearmanr
from tiny import tiny

from sagkit.data.load import make_shapes
from sagkit.data.taxonomy import class_distances
from sagkit.model import extract_features
from sagkit.studies import transfer
from sagkit.studies.transfer import MEASURES, PIXELS, figures_by_seed, main, over_baseline, transfer_table
from sagkit.train.record import load_encoder, read_records, stored_encoders
from sagkit.train.trainer import fit

pytestmark = pytest.mark.xdist_group("transfer")  # costly fixtures, made once

SETTINGS = [("vicreg", 0, 1), ("vicreg", 1, 1), ("sag-vicreg", 0, 1), ("sag-vicreg", 1, 1), ("dino", 0, 1)]


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Records of tiny runs on `shapes`, what they are judged on, and the record of the study."""
    folder, train, test = tmp_path_factory.mktemp("transfer"), make_shapes(96, 16, seed=0), make_shapes(160, 16, seed=1)
    for method, seed, epochs in [*SETTINGS, ("vicreg", 0, 0), ("vicreg", 1, 0)]:
        name = {} if epochs else {"variant": "random"}
        config = tiny(folder, method=method, seed=seed, epochs=epochs, probe=False, resamplings=0, **name)
        fit(config, train, test, progress=False)
    sets = {"train": train, "test": test}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "load_images", lambda name, split: sets[split])
        main("shapes", ("tour",), "shapes", bank_size=80, results=str(folder / "results"))
    return folder / "results", sets, json.loads((folder / "results/transfer/shapes.json").read_text())


@pytest.mark.slow
def test_the_figures_are_those_of_the_definitions(judged):
    results, sets, record = judged
    test, bank = sets["test"], sets["train"].subset(torch.randperm(96, generator=torch.Generator().manual_seed(0))[:80])
    (row,) = (r for r in record["rows"] if (r["row"], r["seed"]) == ("vicreg", 1) and r["epochs"])
    encoder = load_encoder(results / "tour/shapes/vicreg-seed1.safetensors")
    h = extract_features(encoder, test.images).double()
    unit = torch.nn.functional.normalize(h - h.mean(dim=0), dim=1)
    near = (unit @ unit.T).fill_diagonal_(-2)
    first, second = torch.triu_indices(len(h), len(h), 1)
    apart = test.labels[first] != test.labels[second]
    wanted = class_distances("shapes", "tree", test.class_names)[test.labels[first[apart]], test.labels[second[apart]]]
    found = spearmanr(1 - near[first[apart], second[apart]], wanted).statistic
    assert abs(row["structure"] - found) < 1e-3
    ten = test.labels[near.topk(10).indices]
    assert abs(row["retrieval_class"] - float((ten == test.labels[:, None]).double().mean())) < 1e-6
    family = torch.tensor([sorted({"angular", "radial", "round"}).index(n.split("/")[0]) for n in test.class_names])
    same = family[ten] == family[test.labels][:, None]
    assert abs(row["retrieval_family"] - float(same.double().mean())) < 1e-6
    assert row["knn"] == transfer.knn_accuracy(
        extract_features(encoder, bank.images), bank.labels, h.float(), test.labels
    )


@pytest.mark.slow
def test_every_stored_encoder_is_judged_and_pixels_beside_them(judged):
    rows = judged[2]["rows"]
    assert [(r["row"], r["seed"]) for r in rows if not r["epochs"]] == [
        ("vicreg (untrained)", 0),
        ("vicreg (untrained)", 1),
        (PIXELS, 0),
    ]
    assert [(r["row"], r["seed"]) for r in rows if r["epochs"]] == sorted((m, s) for m, s, _ in SETTINGS)


@pytest.mark.slow
def test_rows_of_one_seed_are_left_out_of_tables_and_differences_are_paired(judged):
    figures = figures_by_seed(judged[2], "tour", floor="tour")
    shown = transfer_table(figures)
    assert list(shown.index) == ["vicreg (untrained)", "sag-vicreg", "vicreg", PIXELS]
    assert list(shown["seeds"]) == [2, 2, 2, 1]
    title, change = over_baseline(figures, "sag-vicreg")
    assert title == "sag-vicreg − vicreg"
    by = {(r["row"], r["seed"]): r for r in judged[2]["rows"] if r["epochs"]}
    for key in MEASURES:
        assert change[key] == [by["sag-vicreg", s][key] - by["vicreg", s][key] for s in (0, 1)]
    assert any(change["structure"])


@pytest.mark.slow
def test_a_row_with_some_encoders_missing_is_refused_with_the_command_that_makes_them(judged, tmp_path):
    runs = [run for run in read_records(judged[0]) if run["method"] == "vicreg" and run["variant"] == "default"]
    assert list(stored_encoders(runs)) == [0, 1]
    elsewhere = [{**runs[0], "path": str(tmp_path / "vicreg-seed0.json")}, runs[1]]
    with pytest.raises(
        ValueError, match=r"no stored encoder of tour / shapes / vicreg, seed 0: `(.*)` makes"
    ) as refused:
        stored_encoders(elsewhere)
    assert runs[0]["command"] in str(refused.value)
    assert stored_encoders(elsewhere[:1]) == {}
