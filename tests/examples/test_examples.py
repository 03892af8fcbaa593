"""Drop-in: every example trains; its marked lines are at most five, and without them it is the loop it came from."""

import importlib
import io
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import sagkit.examples

NAMES = ("plain_vicreg", "lightly_vicreg", "lightly_barlow_twins", "lightly_dino", "lightning_vicreg")
FOLDER = Path(sagkit.examples.__file__).parent


def source(name: str) -> list[str]:
    return (FOLDER / f"{name}.py").read_text().splitlines()


def losses(lines: list[str], steps: int = 2) -> list[float]:
    """Losses of a script given as lines of code."""
    random.seed(0)  # lightly's transforms draw from Python's and NumPy's global generators, too
    np.random.seed(0)  # noqa: NPY002
    space = {"__name__": "example"}
    exec(compile("\n".join(lines), "example", "exec"), space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loader processes
        return space["train"](steps=steps, batch_size=12)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_at_most_five_lines_are_added_and_without_them_or_their_weight_the_loop_is_what_it_was(name):
    lines = source(name)
    added = [line for line in lines if line.endswith("# +")]
    assert 3 <= len(added) <= 5
    before = [line for line in lines if not line.endswith("# +")]
    assert not any("pairing" in line or "walk_term" in line for line in before[before.index("import argparse") :])
    weighted = [line for line in added if "0.3 *" in line]
    assert len(weighted) == 1
    switched_off = [line.replace("0.3 *", "0.0 *") if line in weighted else line for line in lines]
    plain = losses(before)
    assert losses(switched_off) == plain  # to the last bit
    paired = losses(lines)
    assert paired[0] > plain[0]  # equal weights: the loss of step 0 is greater by a sum of squares or an entropy
    assert all(map(torch.isfinite, map(torch.tensor, paired)))
    assert paired[1] - plain[1] != paired[0] - plain[0]


@pytest.mark.slow
def test_the_plain_loop_learns_and_its_loss_is_the_kits():
    plain = importlib.import_module("sagkit.examples.plain_vicreg")
    generator = torch.Generator().manual_seed(0)
    za, zb = torch.randn(20, 7, generator=generator), torch.randn(20, 7, generator=generator)
    assert float(plain.vicreg(za, zb)) == pytest.approx(float(sagkit.vicreg_loss(za, zb).total), rel=1e-5)
    run = plain.train(steps=8, batch_size=16)
    assert sum(run[-3:]) < sum(run[:3])


@pytest.mark.slow
def test_lightnings_checkpoint_holds_the_pairings_count_of_steps():
    lightning = importlib.import_module("sagkit.examples.lightning_vicreg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.run_trainer(steps=3, batch_size=12)
    stored = io.BytesIO()
    torch.save(trainer.lightning_module.state_dict(), stored)
    stored.seek(0)
    resumed = lightning.VICReg()
    resumed.load_state_dict(torch.load(stored, weights_only=False))
    assert resumed.pairing.step == 3


@pytest.mark.slow
def test_the_command_line_prints_one_loss_a_step(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plain_vicreg", "--steps", "2"])
    exec(compile("\n".join(source("plain_vicreg")), "plain_vicreg", "exec"), {"__name__": "__main__"})
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [["step", "0"], ["step", "1"]]
