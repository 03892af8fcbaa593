"""Notebook 05 as a report: what it says of a run holds for that run, well trained, read from a record, or gone wrong.

Its cells run in this process, so that three settings share one start; figures and sentences come from one namespace.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from pages import run

from sagkit.model import make_encoder
from sagkit.train import config, configure
from sagkit.train.record import run_path, save_encoder

SMALL = {"encoder": "resnet10-w4", "view_size": 12, "batch_size": 64, "resamplings": 20, "readout_every": 0}
GOOD = [{"epoch": e, "loss": 20.0 - e, "variance": 0.5, "spearman_pairs": 0.1 * e} for e in (1, 2, 3, 4)]
BAD = [
    {"epoch": e, "loss": loss, "walk": 0.1, "spearman_pairs": 0.3 - 0.05 * e} for e, loss in enumerate((9, 8, 7, 29), 1)
]


def store(folder: Path, method: str, log: list[dict], collapsed: bool) -> dict:
    """A finished run of four epochs under `folder`, with this log and an encoder of one feature vector, or any."""
    made = configure(method, "tour", data="emoji", epochs=4, results=str(folder))
    path = run_path(made, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = make_encoder(SMALL["encoder"])
    if collapsed:
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.zero_()
    save_encoder(path.with_suffix(".safetensors"), encoder, SMALL["encoder"])
    figures = {"knn": 0.1, "spearman_pairs": 0.0, "spearman_centroid": 0.0}
    record = {name: getattr(made, name) for name in ("method", "variant", "profile", "data", "seed")}
    record |= dict.fromkeys(("train_set", "evaluated_on", "command", "commit", "processor"), "none")
    record |= {"config": made.to_dict(), "log": log, "metrics": figures, "parameters": 1}
    record |= {"seconds": {}, "core_seconds": 60.0, "walk_share": 0.0}
    path.write_text(json.dumps(record))
    return {"method": method, "epochs": 4, "results": str(folder)}


def check_moves(text: str) -> None:
    """Every "rises from a to b" rises and every "falls from a to b" falls."""
    found = re.findall(r"(rises|falls) from (-?[\d.]+) to (-?[\d.]+)", text.replace(". ", " . "))
    for verb, a, b in found:
        before, after = float(a.rstrip(".")), float(b.rstrip("."))
        assert (after > before) == (verb == "rises") or before == after, text


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.parametrize("kind", ["trained now", "read from a record", "gone wrong"])
def test_what_the_report_says_of_a_run_holds_for_it(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(config.PROFILES, "tour", config.PROFILES["tour"] | SMALL)
    monkeypatch.chdir(tmp_path)
    given = {"data": "emoji", "profile": "tour", "method": "sag-vicreg", "epochs": 1, "results": "none"}
    if kind == "read from a record":
        given |= store(tmp_path / "stored", "vicreg", GOOD, collapsed=False)
    if kind == "gone wrong":
        given |= store(tmp_path / "stored", "sag-vicreg", BAD, collapsed=True)
    space, shown = run("05_train_cifar100", **given, out=str(tmp_path / "out"))
    told = {cell: value["text/markdown"] for cell, value in shown.items() if "text/markdown" in value}
    made = [json.loads(path.read_text()) for path in (tmp_path / "out/results").rglob("*.json")]
    assert [(one["method"], len(one["log"])) for one in made] == [("sag-vicreg", 1)] * (kind == "trained now")
    for text in told.values():
        check_moves(text)
    log, record = space["log"], space["record"]
    assert told["imports2"].startswith("**TRAINED NOW**" if kind == "trained now" else "**READ FROM A RECORD**")
    assert f"{given['method']} on emoji" in told["imports2"]
    first, last, epochs = log["loss"].iloc[0], log["loss"].iloc[-1], len(record["log"])
    course = told["train-14b"]
    assert ("not fall" in course) == (last >= first and epochs > 1)
    if epochs > 1:
        assert f"from {first:.2f} to {last:.2f} over {epochs} epochs" in course
    assert ("no walk term" in told["train-13"]) == (given["method"] == "vicreg")
    assert ("walk term" in told["train-15b"]) == ("walk" in log)
    h, labels = space["features"]["after"], space["groups"]
    h = torch.nn.functional.normalize(h - h.mean(dim=0), dim=1)
    near = (h @ h.T).fill_diagonal_(-2).topk(10).indices
    if kind != "gone wrong":  # of a collapsed encoder neighbours are rounding
        own = [(labels[near] == labels[:, None]).float().mean(1)[labels == g].mean() for g in range(9)]
        best = max(range(9), key=own.__getitem__)
        assert f"largest for *{space['group_names'][best]}*: {own[best]:.2f}" in told["train-21"]
    (before, _, top), (after, bottom, _) = space["spearman"]
    assert ("did not raise" in told["train-25"]) == (after <= before)
    assert ("do not touch" in told["train-25"]) == (after > before and bottom > top)
    names = [diagnosis.name for found in space["found"].values() for diagnosis in found]
    assert all(name in told["train-28"] for name in names)
    assert ("Nothing is found" in told["train-28"]) == (not names)
    if kind == "read from a record":
        assert "falls in every one of them" in course
        assert "Here both say the same." in told["train-17"]
    if kind == "gone wrong":
        assert f"{29 / 7 - 1:.1%}, in epoch 4" in course
        assert "Neither gets better." in told["train-17"]
        assert {"learning rate too high", "collapse"} <= set(names)
