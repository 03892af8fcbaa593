"""The doctor: each illness is brought about by training or by construction, and health is passed over in silence."""

import math

import numpy as np
import pytest
import torch
from tiny import tiny
from torch import nn

from sagkit.__main__ import main as sagkit
from sagkit.data.load import make_shapes
from sagkit.loss import Loss, sag_vicreg_loss, vicreg_loss
from sagkit.pairing import WalkPairing
from sagkit.train import trainer as training
from sagkit.train.doctor import check_up, examine, examine_pairs, examine_run, examine_settings, main, tell
from sagkit.train.trainer import fit, replay
from sagkit.walk import Pairs, no_pairs


def names(diagnoses) -> list[str]:
    return [d.name for d in diagnoses]


def clusters(n: int = 128, width: int = 12, groups: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % groups
    return 3 * torch.randn(groups, width, generator=generator)[labels] + torch.randn(
        n, width, generator=generator
    ), labels


def trained(lr: float = 0.003, steps: int = 200, sgd: bool = False, **weights) -> tuple[list[dict], torch.Tensor]:
    """A small network under VICReg on noisy views of points: log, and projections of the points."""
    torch.manual_seed(0)
    x, _ = clusters()
    network = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 16))
    optimizer = (torch.optim.SGD if sgd else torch.optim.Adam)(network.parameters(), lr=lr)
    log = []
    for step in range(steps):
        loss = vicreg_loss(*(network(x + 0.3 * torch.randn(x.shape)) for _ in range(2)), **weights)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        if step % 20 == 0 or not torch.isfinite(loss.total):
            log.append({"epoch": step, "loss": loss.total.item(), **{k: float(v) for k, v in loss.terms.items()}})
    return log, network(x).detach()


@pytest.mark.slow
def test_a_healthy_training_is_passed_over():
    log, z = trained()
    assert examine(z) == []
    assert examine_run(log) == []
    assert log[-1]["loss"] < log[0]["loss"] / 2  # it did train
    assert tell([]) == "nothing found that looks wrong"


@pytest.mark.slow
def test_without_the_variance_term_everything_collapses():
    log, z = trained(var=0.0, cov=0.0, lr=0.02, steps=300)
    (found,) = examine_run(log)
    assert (found.name, found.severity) == ("collapse", "error")
    assert f"{log[-1]['variance']:.3f}" in found.evidence
    (found,) = examine(z + 1)  # away from the origin, as features behind a bias or a ReLU are
    assert (found.name, found.severity) == ("collapse", "error")
    assert "raise var" in tell([found])


@pytest.mark.slow
def test_without_the_covariance_term_dimensions_repeat_each_other():
    _, z = trained(cov=0.0, steps=300, lr=0.02)
    assert names(examine(z)) == ["partial collapse"]
    assert names(examine(trained(cov=1.0, steps=300, lr=0.02)[1])) == []


def test_the_effective_rank_and_the_unused_dimensions_are_the_evidence():
    generator = np.random.default_rng(0)
    flat = generator.normal(size=(400, 2)) @ np.linalg.qr(generator.normal(size=(64, 2)))[0].T  # two equal directions
    (found,) = examine(flat)
    assert found.name == "partial collapse"
    assert "effective rank 2.0" in found.evidence
    (found,) = examine(np.hstack([generator.normal(size=(400, 10)), np.zeros((400, 30))]))
    assert "75% of 40 dimensions" in found.evidence


def test_rows_that_are_not_finite_are_counted():
    x, _ = clusters()
    x[[7, 9], 3] = math.nan
    (found,) = examine(x)
    assert found.name == "not finite"
    assert found.evidence.startswith("2 of 128 rows")
    assert found.evidence.endswith("row 7")


@pytest.mark.slow
def test_too_high_a_rate_is_seen_in_the_loss():
    log, _ = trained(lr=30.0)
    assert "learning rate too high" in names(examine_run(log))
    log, _ = trained(lr=1e3, sgd=True, steps=30)
    assert names(examine_run(log)) == ["not finite"]


def test_wrong_pairs_let_the_loss_fall_and_the_structure_with_it():
    x, labels = clusters()
    z = nn.Parameter(x.clone())
    generator = torch.Generator().manual_seed(1)
    wrong = Pairs(torch.arange(128), torch.randperm(128, generator=generator), torch.ones(128))
    optimizer, log = torch.optim.Adam([z], lr=0.02), []
    same = labels[:, None] == labels
    for step in range(101):
        noisy = [z + 0.1 * torch.randn(z.shape, generator=generator) for _ in range(2)]
        loss = sag_vicreg_loss(*noisy, wrong, alpha=3.0)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        if step % 20 == 0:
            gap = torch.corrcoef(
                torch.stack([torch.cdist(z.detach(), z.detach()).flatten(), 1.0 - same.flatten().float()])
            )
            log.append({"epoch": step, "loss": loss.total.item(), "spearman_pairs": gap[0, 1].item()})
    (found,) = examine_run(log)
    assert found.name == "loss falls, structure falls"
    assert f"{log[0]['spearman_pairs']:.3f} to {log[-1]['spearman_pairs']:.3f}" in found.evidence
    assert examine_run([{**entry, "spearman_pairs": 1 - entry["spearman_pairs"]} for entry in log]) == []


def test_walks_on_noise_are_at_chance_and_walks_on_clusters_are_not():
    x, labels = clusters()
    generator = torch.Generator().manual_seed(1)
    for features, expected in ((torch.randn(128, 12, generator=generator), ["walk pairs at chance"]), (x, [])):
        pairs = WalkPairing(k=5, length=2)(features, features)
        assert names(examine_pairs(pairs, labels=labels)) == expected
        other = x + 0.3 * torch.randn(x.shape, generator=generator)
        assert names(examine_pairs(pairs, view=other)) == expected
    assert names(examine_pairs(no_pairs(), labels=labels)) == ["walk pairs at chance"]
    with pytest.raises(ValueError, match="give one of them"):
        examine_pairs(pairs)


def test_the_alarm_of_chance_pairs_is_seldom_missed():
    # Under chance the one-sided test at three standard errors passes pairs as good once in 741 draws.
    _, labels = clusters()
    generator = torch.Generator().manual_seed(2)
    missed = 0
    for _ in range(200):
        anchor = torch.arange(128)
        positive = (anchor + torch.randint(1, 128, (128,), generator=generator)) % 128
        missed += examine_pairs(Pairs(anchor, positive, torch.ones(128)), labels=labels) == []
    assert missed <= 4  # Pr(more) = 2e-5 at rate 1/741, 0.02 at a skewed rate of 1/150


@pytest.mark.parametrize(("batch_size", "k", "expected"), [(256, 10, []), (64, 10, ["batch too small for k"])])
def test_a_batch_has_to_hold_ten_images_for_each_neighbour(batch_size, k, expected):
    found = examine_settings(batch_size, k)
    assert names(found) == expected
    if found:
        assert "k = 10 neighbours are 16% of a batch of 64" in found[0].evidence
        assert "batch_size 100 or more, k = 6" in found[0].remedy


@pytest.fixture(scope="module")
def images():
    return make_shapes(160, size=16, seed=0), make_shapes(40, size=16, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("control", [{}, {"scope": "queue"}, {"pairs": "nearest", "matched": True, "every": 2}])
def test_a_step_whose_loss_is_not_finite_is_kept_and_repeats_exactly(tmp_path, images, monkeypatch, control):
    """The loss is spoilt in the eighth step; the weights before it, its batch, views and walks come back."""
    config = tiny(tmp_path, readout_every=0, probe=False, **control)
    whole, spoilt = training.Trainer.step, {}

    def step(trainer, number, index):
        if number == 7:
            objective = trainer.method.loss

            def spoil(*arguments, **more):
                loss = objective(*arguments, **more)
                spoilt.update({name: float(value) for name, value in loss.terms.items()}, loss=float(loss.total))
                return Loss(loss.total * math.nan, loss.terms)

            trainer.method.loss = spoil
        return whole(trainer, number, index)

    with monkeypatch.context() as patched:
        patched.setattr(training.Trainer, "step", step)
        with pytest.raises(ValueError, match=r"epoch 2 is not finite .*lower lr.* kept for replay at ") as raised:
            fit(config, *images, progress=False)
    (kept,) = (tmp_path / "runs").rglob("*.step7.safetensors")
    assert str(kept) in str(raised.value)
    assert "the checkpoint of epoch 1" in str(raised.value)
    again = replay(kept, images[0])
    assert again == replay(kept, images[0])
    assert {name: again[name] for name in spoilt} == pytest.approx(spoilt, rel=1e-6)
    with pytest.raises(ValueError, match="kept of other images"):
        replay(kept, make_shapes(160, size=16, seed=3))
    # The last good checkpoint still serves: the run goes on and ends.
    assert len(fit(config, *images, progress=False).record["log"]) == 3


def test_a_rate_out_of_all_bounds_stops_the_run_and_its_step_fails_again(tmp_path, images):
    config = tiny(tmp_path, method="vicreg", lr=1e30, warmup_epochs=0.0, optimizer="sgd")
    with pytest.raises(ValueError, match="is not finite"):
        fit(config, *images, progress=False)
    (kept,) = (tmp_path / "runs").rglob("*.step*.safetensors")
    with pytest.raises(ValueError, match="not finite"):
        replay(kept, images[0])


@pytest.mark.slow
def test_weights_that_are_not_finite_never_become_the_checkpoint(tmp_path, images, monkeypatch):
    whole = training.Trainer.step

    def step(trainer, number, index):
        terms = whole(trainer, number, index)
        if number == 9:  # the last of the second epoch: its loss was finite, its update is not
            next(trainer.method.parameters()).data.fill_(math.inf)
        return terms

    config = tiny(tmp_path, readout_every=0, probe=False)
    with monkeypatch.context() as patched:
        patched.setattr(training.Trainer, "step", step)
        with pytest.raises(ValueError, match="weights after epoch 2 are not finite"):
            fit(config, *images, progress=False)
    assert len(fit(config, *images, progress=False).record["log"]) == 3


@pytest.mark.slow
def test_training_warns_while_it_runs(tmp_path, images):
    config = tiny(tmp_path, method="vicreg", lr=100.0, readout_every=0, probe=False)
    with pytest.warns(UserWarning, match="learning rate too high"):
        fit(config, *images, progress=False)


@pytest.mark.slow
def test_the_command_line_judges_records_and_embeddings(tmp_path, capsys):
    _, z = trained()
    np.savez(tmp_path / "e.npz", features=z.numpy())
    main(tmp_path / "e.npz")
    read, features, *others = capsys.readouterr().out.splitlines()
    assert read == f"read: 128 rows of {tmp_path / 'e.npz'}"
    assert features == "features: nothing found that looks wrong"
    assert others == [
        f"{what}: not checked, an embedding says nothing of them" for what in ("log", "settings", "pairs")
    ]
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"^sagkit doctor: .*no run record"):
        sagkit(["doctor", str(tmp_path / "broken.json")])
    with pytest.raises(SystemExit, match=r"^sagkit doctor: .*absent.json does not exist: check the path"):
        sagkit(["doctor", str(tmp_path / "absent.json")])


@pytest.mark.slow  # a training
def test_a_run_is_looked_at_with_its_encoder_and_images_and_what_could_not_be_is_said(tmp_path, images, capsys):
    """An encoder that knows a single direction is found out, of which the log shows nothing."""
    run = fit(tiny(tmp_path, readout_every=0, probe=False, resamplings=0, k=10), *images, progress=False)
    weights = run.path.with_suffix(".safetensors")
    sagkit(["doctor", str(run.path)])
    read, log, *told = capsys.readouterr().out.splitlines()
    assert read.startswith(f"read: {run.path} (3 epochs); {weights}; 4,096 images of shapes, train; 1,024 images")
    assert log == "log: nothing found that looks wrong"
    assert [line.split(":")[0] for line in told if not line.startswith(" ")] == ["features", "settings", "pairs"]
    assert any(line.startswith("settings: warning: batch too small for k. k = 10 ") for line in told)
    line = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 1), nn.Linear(1, 8))
    found = check_up(run.record, line, None, images[1])
    assert names(found.found["features"]) == ["partial collapse"]
    assert found.unchecked == {"pairs": "the images are not here"}
    weights.unlink()
    sagkit(["doctor", str(run.path)])
    told = capsys.readouterr().out
    assert "features: not checked, no encoder lies beside the record" in told
    assert "pairs: not checked, no encoder lies beside the record" in told


def test_a_target_that_moves_may_make_a_loss_rise():
    rising = [{"loss": value, "smooth_l1": value} for value in (0.1, 0.05, 0.2)]
    assert examine_run(rising) == []
    assert names(examine_run([{"loss": entry["loss"]} for entry in rising])) == ["learning rate too high"]
