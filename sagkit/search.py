"""One study of settings in a journal on disk: which trial is next, its training, and what the study is told.

    slot -> setting:  from (seed, slot, the finished trials before it), by TPE; or from (seed, slot) alone, at random
    a trial ends complete, pruned (its label-free score below the median at some epoch), or failed with a reason

The study lies in a journal file, which several processes may append to. A trial whose process died is trained on from
its checkpoint by the next process that asks, in its old slot, so that one worker repeats a study exactly however often
it was interrupted; several workers see each other's trials in the order they end. [R] Optuna's TPE, median pruner and
journal; [K] slots: Optuna's own samplers start their random numbers anew when a study goes on.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from sagkit.build import SCOPES, WALKING, check
from sagkit.config import Config
from sagkit.data import ImageSet, load_images
from sagkit.evaluate import label_free
from sagkit.graph import KERNELS
from sagkit.train import fit, judged_on

READOUT_IMAGES = 500  # behind the score that stops a trial; the final one has all that `label_free` takes
SAMPLERS = ("tpe", "random")
FREE = ("variant", "results", "runs", "threads", "data_root", "precision")  # may differ when a study goes on
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Search:
    """One study: what is trained in every trial, where it lies, and how it is searched.

    base: what no trial changes. work: folder of journal, trial records and checkpoints. seed: of the sampler. cost:
    whether core-seconds are a second objective. startup: trials at random before TPE, and before pruning. sampler:
    "tpe", or "random", the search that any other has to beat.
    """

    base: Config
    work: Path
    seed: int = 0
    cost: bool = False
    startup: int = 5
    sampler: str = "tpe"

    def space(self) -> dict:
        """Optuna's distribution of every field that is searched."""
        return {
            "alpha": FloatDistribution(0.0, 1.0),
            "length": IntDistribution(1, 4),
            "k": IntDistribution(1, min(20, self.base.batch_size - 1)),
            "temperature": FloatDistribution(0.02, 0.5, log=True),
            "kernel": CategoricalDistribution(KERNELS),
            "scope": CategoricalDistribution(SCOPES),
        }

    def study(self, slot: int = 0) -> optuna.Study:
        """A handle on the study with the sampler of one slot."""
        self.work.mkdir(parents=True, exist_ok=True)
        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(self.work / "journal.log"))),
            study_name="pairing",
            load_if_exists=True,
            directions=["maximize", "minimize"] if self.cost else ["maximize"],
            sampler=self._sampler(self.seed * 1_000_003 + slot),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=self.startup),
        )

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        if self.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup)

    def config(self, slot: int, params: dict) -> Config:
        """The run of one trial."""
        places = {"results": str(self.work / "trials"), "runs": str(self.work / "unfinished")}
        return replace(self.base, variant=f"trial{slot:03d}", **places, **params)


def open_study(search: Search) -> optuna.Study:
    """Create the study with its two named trials, or find it again.

    Raises:
        ValueError: for a setting that cannot be trained, a default outside the space, or a study of another setting.
    """
    base, space = search.base, search.space()
    if base.method not in WALKING:
        raise ValueError(f"{base.method} has no walks to tune: choose one of {', '.join(WALKING)}")
    if search.sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {search.sampler!r}: choose one of {', '.join(SAMPLERS)}")
    check(base)
    default = {name: getattr(base, name) for name in space}
    for name, value in default.items():
        d = space[name]
        if not (value in d.choices if isinstance(d, CategoricalDistribution) else d.low <= value <= d.high):
            raise ValueError(f"{name} = {value} of the default lies outside the space {d}: start from another")
    with _locked(search.work):
        study = search.study()
        fixed = {k: v for k, v in base.to_dict().items() if k not in FREE}
        fixed |= {"sampler": search.sampler, "sampler_seed": search.seed}
        known = study.user_attrs.get("fixed")
        if known is None:
            study.set_user_attr("fixed", fixed)
            study.enqueue_trial(default, user_attrs={"slot": 0})
            study.enqueue_trial(default | {"alpha": 0.0}, user_attrs={"slot": 1})
        elif differing := [f"{k} {known.get(k)} -> {v}" for k, v in fixed.items() if known.get(k) != v]:
            raise ValueError(f"{search.work} is a study of another setting ({', '.join(differing)}): name a new one")
    return study


def work(search: Search, trials: int, until: float = float("inf")) -> None:
    """Train trials until the study has `trials` of them or the clock shows `until`; any number of processes may."""
    base = search.base
    places = {"train": base.split, "queries": judged_on(base)}
    # Once for all trials, and before any is asked: data that cannot be had is no trial's fault.
    images = {name: load_images(base.data, split, root=base.data_root or None) for name, split in places.items()}
    while time.time() < until and (asked := _ask(search, trials)) is not None:
        _answer(search, images, *asked)


def _ask(search: Search, trials: int) -> tuple[optuna.Study, optuna.Trial, int] | None:
    """The next trial and its slot, one left by a dead process first; None when there are enough."""
    with _locked(search.work):
        study = search.study()
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            if not _alive(trial.user_attrs):
                slot = trial.user_attrs.get("slot", _slots(study, before=trial.number))
                study.tell(trial.number, state=TrialState.FAIL)
                study.enqueue_trial(trial.params, user_attrs={"slot": slot})
        waiting = study.get_trials(states=(TrialState.WAITING,))
        slot = waiting[0].user_attrs["slot"] if waiting else _slots(study)
        if slot >= trials:
            return None
        study = search.study(slot)
        trial = study.ask(search.space())
        for name, value in (("slot", slot), ("pid", os.getpid()), ("host", socket.gethostname())):
            trial.set_user_attr(name, value)
    return study, trial, slot


def _answer(search: Search, images: dict[str, ImageSet], study: optuna.Study, trial: optuna.Trial, slot: int) -> None:
    """Train and judge one trial, and tell the study."""
    config, reported = search.config(slot, trial.params), set()

    def after_epoch(trainer) -> None:
        trial.set_user_attr("core_seconds", round(trainer.clock.core_seconds, 2))
        if search.cost:  # nothing is stopped early, so that nothing need be read
            return
        shown, seed = trainer.train.images, config.seed
        found = label_free(trainer.method.encoder, shown, seed, READOUT_IMAGES)["label_free"]
        trainer.log[-1]["pruning_score"] = found
        for entry in trainer.log:  # those of before an interruption, too
            if entry["epoch"] not in reported:
                trial.report(entry["pruning_score"], entry["epoch"])
            reported.add(entry["epoch"])
        if trainer.epoch < config.epochs and trial.should_prune():
            trainer.checkpoint.unlink(missing_ok=True)
            raise optuna.TrialPruned

    try:
        record = fit(config, **images, progress=False, after_epoch=after_epoch).record
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except ValueError as error:
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=TrialState.FAIL)
    else:
        score = record["metrics"]["label_free"]
        study.tell(trial, [score, record["core_seconds"]] if search.cost else score)


def _slots(study: optuna.Study, before: int | None = None) -> int:
    """Slots that are taken: trials without those that died and were asked again."""
    trials = study.get_trials(deepcopy=False)[:before]
    return sum(not asked_again(trial) for trial in trials)


def asked_again(trial) -> bool:
    """Whether a trial died with its process: one that failed for a reason has the reason."""
    return trial.state == TrialState.FAIL and "error" not in trial.user_attrs


def _alive(attrs: dict) -> bool:
    """Whether the process of a running trial lives; of another machine's we cannot know, so it does."""
    if attrs.get("host", socket.gethostname()) != socket.gethostname():
        return True
    if attrs.get("pid") in (None, os.getpid()):  # we hold the lock and run nothing
        return False
    try:
        os.kill(attrs["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def _locked(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    lock = JournalFileOpenLock(str(folder / "ask"))
    lock.acquire()
    try:
        yield
    finally:
        lock.release()
