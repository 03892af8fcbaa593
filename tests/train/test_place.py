"""A run's place on disk: nothing of another is overwritten, nothing trained twice or lost, one process at a time."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from tiny import tiny

from sagkit.data import files as writing
from sagkit.data.files import alone
from sagkit.data.load import ImageSet, make_shapes
from sagkit.train import trainer as training
from sagkit.train.record import load_encoder
from sagkit.train.trainer import Trainer, fit

SMALL = {"epochs": 2, "readout_every": 0, "probe": False, "resamplings": 0}


@pytest.fixture(scope="module")
def images():
    return make_shapes(96, size=16, seed=0), ImageSet(make_shapes(8, size=16, seed=1).images)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images):
    """An uninterrupted run, by its fields."""
    found = {}

    def trained(**fields):
        if (key := str(fields)) not in found:
            found[key] = fit(tiny(tmp_path_factory.mktemp("whole"), **SMALL, **fields), *images, progress=False)
        return found[key]

    return trained


def assert_same(run, other) -> None:
    assert run.record["log"] == other.record["log"]
    assert run.record["metrics"] == other.record["metrics"]
    for name, value in other.encoder.state_dict().items():
        assert torch.equal(run.encoder.state_dict()[name], value), name


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def signalled(monkeypatch, at: set[int], number) -> None:
    """Send this process a signal in the midst of some steps."""
    step = Trainer.step

    def stepped(trainer, i, index):
        if i in at:
            os.kill(os.getpid(), number)
        return step(trainer, i, index)

    monkeypatch.setattr(Trainer, "step", stepped)


@pytest.mark.slow  # three trainings of six steps, each with its evaluation
@pytest.mark.parametrize(
    ("fields", "number"),
    [
        ({}, signal.SIGTERM),
        ({"scope": "queue"}, signal.SIGINT),
        ({"scope": "dataset", "graph_epochs": 2, "confident": 0.5}, signal.SIGTERM),
    ],
)
def test_a_run_that_is_asked_to_stop_saves_its_step_and_ends_as_if_it_had_not_been(
    tmp_path, images, whole, monkeypatch, fields, number
):
    config, told = tiny(tmp_path, **SMALL, **fields), []
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        signalled(patched, {1, 2}, number)  # within the first epoch, and in its last step
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt) as stop:
                fit(config, *images, progress=False)
            told.append(str(stop.value))
    assert told[0].startswith("2 of 3 steps of epoch 1 are done and kept at ")
    assert told[1].startswith("3 of 3 steps of epoch 1 ")
    assert all(message.endswith(".safetensors: the same command goes on") for message in told)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    resumed = fit(config, *images, progress=False)
    assert_same(resumed, whole(**fields))
    assert resumed.record["images_per_second"] is not None
    assert files(tmp_path) == ["sag-vicreg-seed0.json", "sag-vicreg-seed0.safetensors"]


def test_a_second_signal_is_not_waited_for():
    with pytest.raises(KeyboardInterrupt), training.Stop() as stop:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), training.Stop(noted=False):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow  # trains five times
def test_a_record_is_overwritten_by_no_other_run_unless_it_is_asked_for(tmp_path, images, whole, monkeypatch):
    config = tiny(tmp_path, **SMALL)
    run = fit(config, *images, progress=False)
    before = {path: path.read_bytes() for path in run.path.parent.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(training, "load_sets", None)  # refused before anything is loaded
        for other in ({"lr": 0.02}, {"epochs": 3}, {"alpha": 0.7}, {"split": "fit"}):
            with pytest.raises(
                ValueError, match=rf"record of another run \({next(iter(other))} .*--variant.*--overwrite"
            ):
                fit(replace(config, **other), *images, progress=False)
    with pytest.raises(ValueError, match="run on other images"):
        fit(config, make_shapes(96, size=16, seed=3), images[1], progress=False)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", None)
        with pytest.warns(UserWarning, match="is there, and read: nothing is trained"):
            found = fit(replace(config, threads=1), *images, progress=False)
    assert_same(found, run)
    assert {path: path.read_bytes() for path in run.path.parent.iterdir()} == before
    again = fit(replace(config, lr=0.02, overwrite=True), *images, progress=False)
    assert json.loads(run.path.read_text())["config"]["lr"] == 0.02
    assert not again.record["config"]["overwrite"]
    beside = fit(replace(config, variant="faster", lr=0.03), *images, progress=False)
    assert beside.path != again.path
    # What it is now asked to keep, and did not keep then, is a reason to train.
    fit(replace(config, lr=0.02, keep_at=(1,)), *images, progress=False)
    assert "sag-vicreg-seed0.epoch1.safetensors" in files(tmp_path)


@pytest.mark.slow  # one training, three evaluations
def test_a_run_whose_evaluation_fails_is_kept_and_judged_by_the_same_command(tmp_path, images, whole, monkeypatch):
    config = tiny(tmp_path, **SMALL)
    with monkeypatch.context() as patched:
        patched.setattr(training, "evaluate", lambda *_: math.sqrt(-1))
        with pytest.raises(
            ValueError, match=r"trained, and kept at .*safetensors, but not judged .*--reevaluate, judges"
        ):
            fit(config, *images, progress=False)
    assert files(tmp_path) == ["sag-vicreg-seed0.json", "sag-vicreg-seed0.safetensors"]
    uninterrupted = whole()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", None)
        run = fit(config, *images, progress=False)
        assert_same(run, uninterrupted)
        assert "label_free_low" not in run.record["metrics"]
        run = fit(replace(config, resamplings=20), *images, progress=False)  # more is asked of it than it has
        assert "label_free_low" in run.record["metrics"]
    written = json.loads(run.path.read_text())
    assert written["metrics"] == run.record["metrics"]
    assert written["config"]["resamplings"] == 20


RUN = "sag-vicreg-seed0"
WRITTEN = [  # by a run of two epochs that keeps all it can, in order; and the steps that the same command then does
    (f"{RUN}.epoch1.safetensors", 6),  # its encoder, after the first epoch
    (f"{RUN}.epoch1.safetensors", 6),  # the checkpoint that is kept
    (f"{RUN}.safetensors", 6),  # the one that a run goes on from
    (f"{RUN}.epoch2.safetensors", 3),
    (f"{RUN}.safetensors", 3),
    (f"{RUN}.safetensors", 0),  # the encoder
    (f"{RUN}.json", 0),
]


@pytest.mark.slow  # a training for each file that one writes
@pytest.mark.parametrize("failing", range(len(WRITTEN)))
def test_a_write_that_fails_in_a_run_is_told_in_one_line_and_the_same_command_goes_on(
    tmp_path, images, whole, monkeypatch, failing
):
    kept = {"snapshots": True, "keep_at": (1,)}
    config, fill, step, names, steps = tiny(tmp_path, **SMALL, **kept), writing._fill, Trainer.step, [], []

    def full(draft, write):
        names.append(draft.name[1:].rpartition(".")[0].rpartition(".")[0])
        fill(draft, write)
        if len(names) == failing + 1:
            os.truncate(draft, draft.stat().st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "_fill", full)
    monkeypatch.setattr(Trainer, "step", lambda *given: steps.append(1) or step(*given))
    with pytest.raises(OSError, match=rf"{WRITTEN[failing][0]} cannot be written \(No space left .*make room") as told:
        fit(config, *images, progress=False)
    assert "\n" not in str(told.value)
    assert names == [name for name, _ in WRITTEN[: failing + 1]]
    assert not [name for name in files(tmp_path) if name.endswith((".part", ".lock"))]
    steps.clear()
    run = fit(config, *images, progress=False)
    assert len(steps) == WRITTEN[failing][1]
    assert_same(run, whole(**kept))
    assert set(files(tmp_path)) == {name for name, _ in WRITTEN}


@pytest.mark.slow  # one training, and a process
def test_a_second_process_on_one_run_is_told_and_changes_nothing(tmp_path, images, whole):
    config, words = tiny(tmp_path, **SMALL), []

    def second(trainer):
        if words:
            return
        lock = trainer.checkpoint.with_suffix(".lock")
        code = f"from sagkit.data.files import alone\nwith alone({str(lock)!r}, 'x'): pass"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        words.append(done.stderr.splitlines()[-1])
        with pytest.raises(
            ValueError, match=f"is being trained by process {os.getpid()} on .*: wait for it, or end it"
        ):
            fit(config, *images, progress=False)

    assert_same(fit(config, *images, progress=False, after_epoch=second), whole())
    assert f"x by process {os.getpid()} on " in words[0]
    assert files(tmp_path) == ["sag-vicreg-seed0.json", "sag-vicreg-seed0.safetensors"]


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path):
    path = tmp_path / "run.lock"
    code = f"import os\nfrom sagkit.data.files import alone\nwith alone({str(path)!r}, 'x'): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert path.exists()  # and says who had it, but is nobody's
    with alone(path, "y"), pytest.raises(ValueError, match="z by process"), alone(path, "z"):
        pass
    assert not path.exists()


def classes(n: int, names: tuple[str, ...], seed: int = 0) -> ImageSet:
    return ImageSet(make_shapes(n, size=16, seed=seed).images, torch.arange(n) % len(names), names)


@pytest.mark.parametrize(
    ("train", "queries", "words"),
    [
        (classes(96, ("a", "b")), classes(9, ("a", "b", "c")), "other classes, 2 .* and 3 "),
        (classes(96, ("a", "b")), classes(9, ("a", "c")), "other classes"),
        (classes(96, ("a", "b")), ImageSet(make_shapes(2, size=16).images), "queries has 2 examples"),
        (classes(96, ("a/b", "c/d/e")), classes(9, ("a/b", "c/d/e")), "depth"),
    ],
)
def test_sets_that_could_not_be_judged_are_refused_before_training(tmp_path, monkeypatch, train, queries, words):
    monkeypatch.setattr(training, "make_fabric", None)
    with pytest.raises(ValueError, match=words):
        fit(tiny(tmp_path, **SMALL), train, queries, progress=False)


def test_queries_that_the_encoder_cannot_encode_are_refused_before_training(tmp_path, monkeypatch, images):
    monkeypatch.setattr(Trainer, "step", None)
    config = tiny(tmp_path, **SMALL, encoder="vit-d16-l1-p4", method="vicreg")
    with pytest.raises(ValueError, match=r"cannot encode queries of shape \(3, 17, 17\)"):
        fit(config, images[0], ImageSet(make_shapes(8, size=17).images), progress=False)


@pytest.mark.slow  # a training each
@pytest.mark.parametrize(
    ("train", "queries", "present", "absent"),
    [
        (ImageSet(make_shapes(96, size=16).images), make_shapes(60, size=16, seed=1), "spearman_pairs", "knn"),
        (make_shapes(96, size=16), make_shapes(60, size=16, seed=1).subset(slice(3)), "knn", "nan"),
        (classes(96, ("a",)), classes(9, ("a",), 1), "knn", "linear"),
    ],
    ids=["unlabelled train", "three queries", "one class"],
)
def test_what_can_be_judged_of_odd_sets_is(tmp_path, train, queries, present, absent):
    turned = ImageSet(train.images.permute(0, 1, 3, 2), train.labels, train.class_names)  # not contiguous
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = fit(tiny(tmp_path, **{**SMALL, "epochs": 1, "probe": True}), turned, queries, progress=False).record
    assert present in record["metrics"]
    assert absent not in record["metrics"]
    json.loads(json.dumps(record), parse_constant=pytest.fail)


def test_a_term_of_some_steps_has_their_mean(tmp_path, images):
    """Walks begin with the second of three steps, so their mean is over two; the loss's over three."""
    config, seen = tiny(tmp_path, **{**SMALL, "epochs": 1, "walk_start": 0.3, "walk_warmup": 0.0}), []
    trainer = Trainer(config, training.make_fabric(config), images[0])
    trainer.begin_epoch()
    for step, index in trainer.batches():
        seen.append({name: float(value) for name, value in trainer.step(step, index).items()})
    trainer.end_epoch()
    assert ["walk" in terms for terms in seen] == [False, True, True]
    assert trainer.log[0]["walk"] == pytest.approx((seen[1]["walk"] + seen[2]["walk"]) / 2, rel=1e-6)
    assert trainer.log[0]["loss"] == pytest.approx(sum(terms["loss"] for terms in seen) / 3, rel=1e-6)


def test_the_stored_encoder_of_a_run_is_what_was_returned(whole):
    run = whole()
    stored = load_encoder(run.path.with_suffix(".safetensors")).state_dict()
    assert all(torch.equal(stored[name], value) for name, value in run.encoder.state_dict().items())


@pytest.mark.slow  # a training in two parts
def test_a_run_that_goes_on_in_another_arithmetic_says_so(tmp_path, images, monkeypatch):
    def stop(trainer):
        trainer.arithmetic |= {"device": "cuda", "threads": 7}
        trainer.save()
        raise KeyboardInterrupt

    config = tiny(tmp_path, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        fit(config, *images, progress=False, after_epoch=stop)
    with pytest.warns(UserWarning, match=r"not the same to the last bit \(device cuda -> cpu, threads 7 -> 1\)"):
        fit(config, *images, progress=False)
