"""Sharper axes against closed forms: what is kept, what is whitened, and what the command makes of stored rows."""

import json

import pytest
import torch
from tiny import tiny

from sagkit.data.load import make_shapes
from sagkit.metrics.evaluate import references
from sagkit.metrics.semantic import rank_correlation
from sagkit.studies import sharpen, versus
from sagkit.studies.sharpen import axes_of, figures_by_power, sharpened
from sagkit.train.trainer import fit


@pytest.fixture
def features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q
    return torch.randn(400, 5, generator=generator) * torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5]) @ turn + 7


def test_power_one_changes_no_distance(features):
    found = sharpened(features, axes_of(features), 1.0)
    between = [torch.cdist(x.double(), x.double()) for x in (found, features)]
    torch.testing.assert_close(*between, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_spreads_are_raised_to_the_power_and_the_largest_keeps_its_own(features, power):
    spread = axes_of(features)[2]
    found = sharpened(features, axes_of(features), power).double()
    expected = spread[0] * (spread / spread[0]) ** power
    torch.testing.assert_close(torch.cov(found.T), torch.diag(expected**2), atol=1e-3, rtol=1e-4)


def test_powers_multiply(features):
    once = sharpened(features, axes_of(features), 1.5)
    twice = sharpened(once, axes_of(once), 2.0)
    whole = sharpened(features, axes_of(features), 3.0)
    torch.testing.assert_close(twice.abs(), whole.abs(), atol=1e-3, rtol=1e-3)  # axes have no sign


def test_axes_of_no_spread_are_left_out():
    flat = torch.zeros(50, 4)
    flat[:, 1] = torch.linspace(-1, 1, 50)
    assert sharpened(flat, axes_of(flat), 0.0).shape == (50, 1)
    with pytest.raises(ValueError, match="all alike"):
        sharpened(flat, axes_of(torch.ones(50, 4)), 2.0)
    with pytest.raises(ValueError, match="power must be at least 0, got -1"):
        sharpened(flat, axes_of(flat), -1)


class Axes(torch.nn.Module):
    """An image's mean colour, red stretched."""

    def __init__(self, stretch: float):
        super().__init__()
        self.stretch = torch.nn.Parameter(torch.tensor([stretch, 1.0, 1.0]))

    def forward(self, x):
        return x.mean(dim=(2, 3)) * self.stretch


def test_at_power_one_the_figures_are_those_of_the_features_themselves():
    bank, queries = make_shapes(300, size=16, seed=0), make_shapes(200, size=16, seed=1)
    distances = next(iter(references("shapes", queries.class_names).values()))
    found = figures_by_power(Axes(3.0), bank, queries, distances, (1.0, 2.0))
    h = Axes(3.0)(queries.images.float() / 255).detach()
    expected = rank_correlation(h, queries.labels, distances).spearman
    assert found[0]["spearman_pairs"] == pytest.approx(expected, abs=1e-4)
    assert found[0]["power"] == 1.0
    assert found[1]["spearman_pairs"] != pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_the_command_judges_stored_rows_and_its_table_pairs_seeds(tmp_path, capsys, monkeypatch):
    few = {"readout_every": 0, "epochs": 1}
    sets = {"train": make_shapes(96, size=16, seed=0), "test": make_shapes(160, size=16, seed=1)}
    for seed in range(3):
        for method in ("vicreg", "sag-vicreg"):
            fit(tiny(tmp_path, method=method, seed=seed, **few), *sets.values(), progress=False)
    for room in (sharpen, versus):
        monkeypatch.setattr(room, "load_images", lambda _, split: sets[split])
    monkeypatch.setattr(sharpen, "POWERS", (1.0, 2.0))
    sharpen.main(str(tmp_path / "results"), profile="tour", train_set="shapes")
    record = json.loads((tmp_path / "results/sharpen/tour.json").read_text())
    assert {name: sorted(runs) for name, runs in record["rows"].items()} == {
        "sag-vicreg": ["0", "1", "2"],
        "vicreg": ["0", "1", "2"],
    }
    found = sharpen.sharpen_table(record)
    assert list(found.index) == ["1, as trained", "2"]
    change = [
        record["rows"]["sag-vicreg"][s][1]["spearman_pairs"] - record["rows"]["vicreg"][s][1]["spearman_pairs"]
        for s in "012"
    ]
    assert found.loc["2", "sag-vicreg − vicreg, Spearman pairs"].startswith(f"{sum(change) / 3:+.3f} ± ")
    assert "| 1, as trained |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no stored encoder of 'dino'"):
        sharpen.main(str(tmp_path / "results"), profile="tour", train_set="shapes", baseline="dino")
