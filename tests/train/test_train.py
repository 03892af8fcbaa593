"""Training: resumed equals uninterrupted, SAG at alpha 0 equals VICReg, records and command line."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import tyro
from tiny import shapes_file, tiny

from sagkit.__main__ import main as sagkit
from sagkit.data.load import make_shapes
from sagkit.model import extract_features
from sagkit.train import trainer as training
from sagkit.train.config import Config, configure, flags, parse
from sagkit.train.record import load_encoder, read_records
from sagkit.train.trainer import fit, stored_run


@pytest.fixture(scope="module")
def images():
    return make_shapes(96, size=16, seed=0), make_shapes(80, size=16, seed=1)


def weights(run) -> dict[str, torch.Tensor]:
    return run.encoder.state_dict()


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def interrupt(monkeypatch, config: Config, images, epochs: int = 1) -> None:
    """Start a run and stop it just after the checkpoint of the given epoch."""
    save = training.Trainer.save

    def save_then_die(trainer):
        save(trainer)
        if trainer.epoch == epochs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training.Trainer, "save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            fit(config, *images, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "stops"),
    [
        ({"optimizer": "adamw"}, (1, 2)),
        ({"optimizer": "lars"}, (1,)),
        ({"scope": "queue", "queue_batches": 2}, (2,)),
        ({"scope": "dataset", "graph_epochs": 2, "confident": 0.5}, (1, 2)),  # within a graph's time, and after it
        (
            {"method": "dino", "encoder": "vit-d16-l1-p4", "prototypes": 32, "local_views": 1, "local_size": 8},
            (1,),
        ),
        ({"method": "ijepa", "encoder": "vit-d16-l1-p4-avg", "predictor_width": 8, "predictor_depth": 1}, (2,)),
        ({"method": "barlow-twins", "alpha": 0.5}, (2,)),
    ],
)
def test_a_run_interrupted_after_an_epoch_ends_as_if_it_had_not_been(tmp_path, images, monkeypatch, fields, stops):
    whole = fit(tiny(tmp_path / "whole", **fields), *images, progress=False)
    for stop_after in stops:
        config = tiny(tmp_path / f"cut{stop_after}", **fields)
        interrupt(monkeypatch, config, images, stop_after)
        resumed = fit(config, *images, progress=False)
        assert_same(weights(resumed), weights(whole))
        assert resumed.record["metrics"] == whole.record["metrics"]
        assert resumed.record["log"] == whole.record["log"]
        assert not list((tmp_path / f"cut{stop_after}" / "runs").rglob("*.safetensors")), "checkpoint left behind"


@pytest.mark.slow
def test_sag_vicreg_at_alpha_zero_is_vicreg_bit_for_bit(tmp_path, images):
    plain = fit(tiny(tmp_path / "a", method="vicreg"), *images, progress=False)
    zero = fit(tiny(tmp_path / "b", alpha=0.0), *images, progress=False)
    walked = fit(tiny(tmp_path / "c", alpha=0.5), *images, progress=False)
    assert_same(weights(zero), weights(plain))
    assert not torch.equal(weights(walked)["backbone.0.weight"], weights(plain)["backbone.0.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["queue", "dataset"])
def test_every_scope_is_vicreg_without_alpha_and_something_else_with_it(tmp_path, images, scope):
    plain = fit(tiny(tmp_path / "a", method="vicreg"), *images, progress=False)
    zero = fit(tiny(tmp_path / "b", scope=scope, alpha=0.0), *images, progress=False)
    walked = fit(tiny(tmp_path / "c", scope=scope, alpha=0.9), *images, progress=False)
    assert_same(weights(zero), weights(plain))
    assert not torch.equal(weights(walked)["backbone.0.weight"], weights(plain)["backbone.0.weight"])
    assert walked.record["seconds"]["walk"] > 0


@pytest.mark.slow
def test_a_checkpoint_of_other_images_is_not_continued(tmp_path, images, monkeypatch):
    interrupt(monkeypatch, tiny(tmp_path), images)
    with pytest.raises(ValueError, match="trained on other images"):
        fit(tiny(tmp_path), make_shapes(96, size=16, seed=3), images[1], progress=False)


def test_the_recorded_command_gives_the_very_configuration(tmp_path):
    config = configure(
        "sag-vicreg",
        "laptop",
        data="my photos",
        seed=3,
        probe=False,
        mutual=True,
        keep=False,
        alpha=0.25,
        threads=1,
        keep_at=(4, 8),
    )
    assert tyro.cli(Config, default=configure("sag-vicreg", "laptop"), args=flags(config)) == config
    assert parse(flags(config)) == config
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.slow
def test_provenance_is_that_of_the_start_of_training(tmp_path, images, monkeypatch):
    commits = iter(["a" * 40, "b" * 40])
    monkeypatch.setattr("sagkit.train.trainer.provenance", lambda: {"commit": next(commits)})
    run = fit(tiny(tmp_path), *images, progress=False)
    assert run.record["commit"] == "a" * 40
    assert run.record["evaluated_commit"] == "b" * 40


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"split": "test"}, "unknown split 'test': choose one of train, fit"),
        ({"profile": "mine"}, "unknown profile 'mine'"),
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"alpha": -0.1}, r"alpha must lie in \[0, inf\], got -0.1"),
        ({"alpha": 1.5, "scope": "dataset"}, r"alpha must lie in \[0, 1\], got 1.5"),
        ({"kernel": "cosin"}, "unknown kernel 'cosin': choose one of cosine"),
        ({"method": "byol"}, "unknown method 'byol': choose one of vicreg, sag-vicreg, barlow-twins, dino, ijepa"),
        ({"pairs": "nearst"}, "unknown pairs 'nearst': choose one of walk, random, hub, own, nearest,"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\), got 1.0"),
        ({"clip": -1.0}, "clip must be at least 0"),
        ({"local_views": 2}, "local_views 2 with sag-vicreg: at least 0, and dino alone has them"),
        ({"method": "barlow-twins", "alpha": 2.0, "keep": False}, r"alpha must lie in \[0, 1\], got 2.0"),
        ({"method": "ijepa"}, "ijepa needs a vision transformer without class token"),
        ({"method": "ijepa", "encoder": "vit-d16-l1-p4-avg", "view_size": 18}, "cannot encode views of 18 pixels"),
        ({"precision": "16bit"}, "precision '16bit' cannot be had here"),
        ({"devices": 3}, "batch_size 32 must be at least 2 and a multiple of devices = 3"),
    ],
)
def test_impossible_settings_are_refused_before_training(tmp_path, images, fields, words):
    config = tiny(tmp_path, walk_start=0.9)
    with pytest.raises(ValueError, match=words):
        fit(replace(config, **fields), *images, progress=False)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
def test_two_processes_train_and_leave_one_record(tmp_path):
    command = [sys.executable, "-m", "sagkit.train", "--method", "sag-vicreg", "--profile", "tour", "--devices", "2"]
    command += ["--accelerator", "cpu", "--epochs", "1", "--encoder", "resnet10-w4", "--no-probe", "--threads", "1"]
    command += ["--data", shapes_file(tmp_path), "--split", "fit", "--batch-size", "64", "--resamplings", "0"]
    command += ["--results", str(tmp_path / "r"), "--runs", str(tmp_path / "w")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (tmp_path / "r/tour").glob("*/sag-vicreg-seed0.json")
    assert done.stdout.count(str(path)) == 1
    assert json.loads(path.read_text())["config"]["devices"] == 2
    assert not list((tmp_path / "w").rglob("*.safetensors"))


def test_an_unknown_scope_is_refused(tmp_path, images):
    with pytest.raises(ValueError, match="unknown scope 'batches': choose one of batch, queue, dataset"):
        fit(tiny(tmp_path, scope="batches"), *images, progress=False)


def test_a_checkpoint_of_another_configuration_is_not_continued(tmp_path, images, monkeypatch):
    config = tiny(tmp_path)
    interrupt(monkeypatch, config, images)
    with pytest.raises(ValueError, match=r"lr 0.01 -> 0.5"):
        fit(replace(config, lr=0.5), *images, progress=False)


@pytest.mark.slow
def test_the_record_holds_what_the_stored_encoder_scores(tmp_path, images):
    run = fit(tiny(tmp_path, probe=True, resamplings=1000), *images, progress=False)
    (record,) = read_records(tmp_path / "results")
    assert record["path"].endswith("results/tour/shapes/sag-vicreg-seed0.json")
    assert {k: record[k] for k in ("method", "variant", "data", "train_set", "profile", "seed")} == {
        "method": "sag-vicreg",
        "variant": "default",
        "data": "shapes",
        "train_set": "shapes",
        "profile": "tour",
        "seed": 0,
    }
    required = {"knn", "linear", "superclass_knn", "label_free", "spearman_pairs", "kendall_pairs"}
    required |= {"spearman_pairs_all", "spearman_confusion", "spearman_centroid", "kendall_centroid"}
    assert required <= record["metrics"].keys()
    assert 0 < record["walk_share"] < 1
    assert record["core_seconds"] > 0
    encoder = load_encoder(run.path.with_suffix(".safetensors"))
    again = training.evaluate(encoder, images[0], images[1], "shapes", True, 0)
    assert {k: round(float(v), 5) for k, v in again.items()} == record["metrics"]


@pytest.mark.slow
def test_a_stored_run_is_found_by_its_settings_and_by_nothing_less(tmp_path, images):
    config = tiny(tmp_path)
    run = fit(config, *images, progress=False)
    found = stored_run(replace(config, threads=1, probe=not config.probe, results="elsewhere"), config.results)
    assert found.record == json.loads(run.path.read_text())
    assert_same(weights(found), load_encoder(run.path.with_suffix(".safetensors")).state_dict())
    for other in ({"lr": 2 * config.lr}, {"epochs": config.epochs + 1}, {"seed": 7}, {"alpha": 0.7}):
        assert stored_run(replace(config, **other), config.results) is None
    run.path.with_suffix(".safetensors").unlink()
    assert stored_run(config, config.results) is None


@pytest.mark.slow
def test_snapshots_keep_the_encoder_after_epochs_that_are_powers_of_two(tmp_path, images):
    run = fit(tiny(tmp_path, snapshots=True), *images, progress=False)
    kept = sorted(p.name for p in run.path.parent.glob("*.epoch*"))
    assert kept == ["sag-vicreg-seed0.epoch1.safetensors", "sag-vicreg-seed0.epoch2.safetensors"]
    features = [extract_features(load_encoder(run.path.parent / name), images[1].images) for name in kept]
    final = extract_features(run.encoder, images[1].images)
    assert not torch.allclose(features[0], features[1])
    assert not torch.allclose(features[1], final)


@pytest.mark.parametrize(("method", "words"), [("vicreg", r"epoch 1 is not finite.*lower lr"), ("sag-vicreg", "rows")])
def test_a_run_that_diverges_stops_and_says_what_to_change(tmp_path, images, method, words):
    config = tiny(tmp_path, method=method, lr=1e30, warmup_epochs=0.0, optimizer="sgd")
    with pytest.raises(ValueError, match=words):
        fit(config, *images, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("native", "expected"), [({"avx512_bf16": True}, "bf16-mixed"), ({"amx_bf16": False}, "32-true")]
)
def test_automatic_precision_is_what_the_processor_computes_itself_and_is_recorded(
    tmp_path, images, monkeypatch, native, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: native, raising=False)
    run = fit(tiny(tmp_path, precision="auto", epochs=1), *images, progress=False)
    assert run.record["config"]["precision"] == expected
    assert f"--precision {expected}" in run.record["command"]


@pytest.mark.parametrize(("batch", "words"), [(1, "batch_size 1"), (500, "96 training images")])
def test_a_batch_that_cannot_be_is_refused(tmp_path, images, batch, words):
    with pytest.raises(ValueError, match=words):
        fit(tiny(tmp_path, batch_size=batch), *images, progress=False)


def test_k_larger_than_the_batch_is_refused_with_its_remedy(tmp_path, images):
    with pytest.raises(ValueError, match=r"k = 40 .*lower k or use a larger batch"):
        fit(tiny(tmp_path, k=40), *images, progress=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "laptp"], "did you mean laptop"),
        (["--method", "vicregg"], "vicreg"),
        (["--data", "cifar1000"], "cifar100"),
    ],
)
def test_the_command_line_says_what_is_wrong_in_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        sagkit(["train", *arguments])
    told = capsys.readouterr().err.strip() or str(stop.value)  # exit code 2 is told by the command, 1 by Python
    assert words in told
    assert "\n" not in told


@pytest.mark.slow
def test_the_command_line_trains_from_profile_method_and_fields(tmp_path, capsys):
    words = "--method vicreg --profile tour --epochs 1 --encoder resnet10-w4 --seed 3 --batch-size 128 --no-probe"
    words = [*words.split(), "--resamplings", "0", "--data", shapes_file(tmp_path), "--split", "fit"]
    sagkit(["train", *words, "--results", str(tmp_path / "r"), "--runs", str(tmp_path / "w")])
    (path,) = (tmp_path / "r/tour").glob("*/vicreg-seed3.json")
    record = json.loads(path.read_text())
    assert str(path) in capsys.readouterr().out
    assert record["config"]["epochs"] == 1
    assert "--encoder resnet10-w4" in record["command"]
    assert "linear" not in record["metrics"]
