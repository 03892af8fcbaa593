"""Search settings of the pairing without labels: Optuna proposes, short trainings answer, weak ones are stopped early.

    sagkit study tune --data shapes --trials 20 --minutes 10 --workers 2 --study figures/results/tune/NAME

    maximise  label-free score of the trained encoder        over alpha, L, K, temperature, kernel, scope
    and, with --cost, minimise core-seconds                  (no trial is then stopped early: Optuna's limit)

    slot -> setting:  from (seed, slot, the finished trials before it), by TPE; or from (seed, slot) alone, at random
    a trial ends complete, pruned (its label-free score below the median at some epoch), or failed with a reason, lack
    of memory for one, and is then not asked again

The first two trials are the default setting and VICReg (alpha 0). The study lies in a journal file, which several
processes may append to. A trial whose process died is continued from its checkpoint by the next process that asks, in
its old slot, so that one worker repeats a study exactly however often it was interrupted; several workers see each
other's trials in the order they end. Labels, where there are any, are recorded and never chosen by; what that misses is
measured by regret:

    regret of a choice c = max_i y_i - y_c                        y: semantic score, which needed labels
    E[y of the trial with the largest s among m random ones]      s = y: labels choose; s = label-free: it chooses;
                                                                  m = 1: nothing chooses

The expectation is exact: of n trials in rising order of s, the i-th is the largest of m with probability
C(i - 1, m - 1) / C(n, m).

Sources: [R] Optuna's TPE, median pruner and journal; order statistics, as in "expected best validation performance"
(Dodge et al. 2019). [K] slots, since Optuna's own samplers restart their random numbers when a study is continued.

Differs from the source: Dodge et al. draw with replacement, and one score both chooses and judges; here draws are
without replacement, and one score chooses while another judges.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from sagkit.data.load import ImageSet, load_images
from sagkit.graph import KERNELS
from sagkit.metrics.evaluate import label_free
from sagkit.train.build import judged_on
from sagkit.train.config import SCOPES, WALKING, Config, check, configure, differing, may_differ
from sagkit.train.record import provenance, run_path, write_record
from sagkit.train.trainer import fit

READOUT_IMAGES = 500  # behind the score that stops a trial; the final one has all that `label_free` takes
SAMPLERS = ("tpe", "random")
MOST_DEATHS = 5  # of a trial's process, without an epoch between them, before the trial is held to be the cause
NAMED_TRIALS = ("default", "vicreg")  # of the slots that are asked first
RECORDED = ("label_free", "spearman_pairs", "kendall_pairs", "spearman_centroid", "knn", "superclass_knn")
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Search:
    """One study: what is trained in every trial, where it is kept, and how it is searched.

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
        fixed = {k: v for k, v in base.to_dict().items() if not may_differ(k, "study")}
        fixed |= {"sampler": search.sampler, "sampler_seed": search.seed}
        known = study.user_attrs.get("fixed")
        if known is None:
            study.set_user_attr("fixed", fixed)
        else:
            found = differing(known, base.to_dict(), "study")
            found |= {k: (known[k], fixed[k]) for k in ("sampler", "sampler_seed") if known[k] != fixed[k]}
            if told := ", ".join(f"{name} {then} -> {now}" for name, (then, now) in found.items()):
                raise ValueError(f"{search.work} is a study of another setting ({told}): name a new one")
        named = {trial.user_attrs.get("slot") for trial in study.get_trials(deepcopy=False)}
        for slot, params in enumerate((default, default | {"alpha": 0.0})):
            if slot not in named:  # one may be missing, where a process died right here
                study.enqueue_trial(params, user_attrs={"slot": slot})
    return study


def run_trials(search: Search, trials: int, until: float = float("inf")) -> None:
    """Train trials until the study has `trials` of them or the clock shows `until`; any number of processes may."""
    base = search.base
    places = {"train": base.split, "queries": judged_on(base)}
    # Once for all trials, and before any is asked: missing data is no trial's fault.
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
                deaths = trial.user_attrs.get("deaths", 0) + 1
                if deaths == MOST_DEATHS:
                    told = f"its process ended {deaths} times within one epoch, as when memory runs out"
                    optuna.Trial(study, trial._trial_id).set_user_attr("error", told)
                waiting = study.get_trials(states=(TrialState.WAITING,))
                # Asked again before the dead one is told: who dies in between leaves one too many, and none too few.
                if deaths < MOST_DEATHS and all(other.user_attrs["slot"] != slot for other in waiting):
                    study.enqueue_trial(trial.params, user_attrs={"slot": slot, "deaths": deaths})
                study.tell(trial.number, state=TrialState.FAIL)
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

    def report(log) -> None:
        """Tell the trial every score that it has not heard, those before an interruption, too."""
        for readout in log:
            if "pruning_score" in readout and readout["epoch"] not in reported:
                trial.report(readout["pruning_score"], readout["epoch"])
            reported.add(readout["epoch"])

    def after_epoch(trainer) -> None:
        trial.set_user_attr("core_seconds", round(trainer.clock.core_seconds, 2))
        trial.set_user_attr("deaths", 0)
        if search.cost:  # nothing is stopped early, so that nothing need be read
            return
        shown, seed = trainer.train.images, config.seed
        found = label_free(trainer.method.encoder, shown, seed, READOUT_IMAGES)["label_free"]
        trainer.log[-1]["pruning_score"] = round(found, 5)  # as the record has it, from which it may be read again
        report(trainer.log)
        if trainer.epoch < config.epochs and trial.should_prune():
            trainer.checkpoint.unlink(missing_ok=True)
            raise optuna.TrialPruned

    try:
        record = fit(config, **images, progress=False, after_epoch=after_epoch).record
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except (ValueError, RuntimeError, MemoryError) as error:  # torch's lack of memory is a RuntimeError
        trial.set_user_attr("error", str(error) or type(error).__name__)
        study.tell(trial, state=TrialState.FAIL)
    else:
        report(record["log"])  # of a trial whose process died in its evaluation or after it
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


def tune(search: Search, record: Path, trials: int = 20, minutes: float | None = None, workers: int = 1) -> dict:
    """Search until there are `trials` trials or `minutes` are over, and write what was found.

    Args:
        search: the study; an existing one goes on.
        record: JSON file to write.
        trials: of the whole study, those of earlier calls and the two named ones included.
        minutes: after which no new trial begins; the running ones are finished.
        workers: processes.

    Raises:
        ValueError: for impossible settings, a study of another setting, or a search in which every trial failed.
    """
    if trials < 1 or workers < 1 or (minutes is not None and minutes <= 0):
        raise ValueError(f"trials {trials}, workers {workers} and minutes {minutes} must be at least 1, 1 and above 0")
    if record.suffix != ".json" or "-seed" in record.stem:
        raise ValueError(f"{record} must end in .json, and -seed in its name would pass it off as a run record")
    open_study(search)
    until = float("inf") if minutes is None else time.time() + 60 * minutes
    if workers == 1:
        run_trials(search, trials, until)
    else:
        spawn = multiprocessing.get_context("spawn")  # a fork would share threads and CUDA
        processes = [spawn.Process(target=run_trials, args=(search, trials, until)) for _ in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            codes = [process.exitcode for process in processes]
            raise ValueError(f"workers ended with codes {codes}: see above; the same command goes on")
    found = study_record(search) | {"study": record.stem}
    write_record(record, found)
    return found


def study_record(search: Search) -> dict:
    """Every trial by slot with what it scored and cost, the label-free choice, and its regret where labels are known.

    Raises:
        ValueError: where no trial was finished.
    """
    trials = [t for t in search.study().get_trials() if t.state.is_finished() and not asked_again(t)]
    rows = sorted((_row(search, trial) for trial in trials), key=lambda row: row["slot"])
    done = [row for row in rows if row["state"] == "complete"]
    if not done:
        reasons = {row["error"] for row in rows if "error" in row} or {"there was no time"}
        raise ValueError(f"none of {len(rows)} trials was finished ({'; '.join(sorted(reasons))})")
    chosen = choose([row["label_free"] for row in done])
    found = {
        "base": search.base.to_dict(),
        "sampler": search.sampler,
        "sampler_seed": search.seed,
        "objectives": ["label_free", "core_seconds"] if search.cost else ["label_free"],
        "space": {name: str(distribution) for name, distribution in search.space().items()},
        **provenance(),
        "chosen": done[chosen]["slot"],
    }
    if all("spearman_pairs" in row for row in done):
        found["regret"] = round(regret([row["spearman_pairs"] for row in done], chosen), 5)
    return found | {"trials": rows}


def _row(search: Search, trial) -> dict:
    slot = trial.user_attrs["slot"]
    row = {"slot": slot, "name": NAMED_TRIALS[slot] if slot < len(NAMED_TRIALS) else f"trial {slot}"}
    row |= {"state": trial.state.name.lower(), "params": trial.params, "core_seconds": 0.0}
    row |= {name: trial.user_attrs[name] for name in ("core_seconds", "error") if name in trial.user_attrs}
    row["pruning_scores"] = {str(epoch): round(value, 5) for epoch, value in trial.intermediate_values.items()}
    if trial.state != TrialState.COMPLETE:
        return row
    c = search.config(slot, trial.params)
    run = json.loads(run_path(c, c.results).read_text())
    row |= {name: run[name] for name in ("core_seconds", "seconds", "peak_memory_mb", "walk_share")}
    return row | {name: run["metrics"][name] for name in RECORDED if name in run["metrics"]}


def regret(values, chosen: int) -> float:
    """How far the chosen one of `values` (n,) lies below the largest, at least 0."""
    values = _finite(values)
    return float(values.max() - values[chosen])


def choose(scores) -> int:
    """The largest of `scores` (n,), the first of equals."""
    return int(np.argmax(_finite(scores)))


def expected_choice(scores, values, m: int) -> float:
    """Expected value of the trial with the largest score among m drawn without replacement; equals are drawn by lot.

    Args:
        scores: what chooses, (n,).
        values: what is gained, (n,).
        m: trials drawn, 1 to n.

    Raises:
        ValueError: for arrays of different lengths, values that are not finite, or m out of range.
    """
    scores, values = _finite(scores), _finite(values)
    n = len(scores)
    if len(values) != n:
        raise ValueError(f"{n} scores and {len(values)} values: give one of each per trial")
    if not 1 <= m <= n:
        raise ValueError(f"m = {m} of {n} trials: m lies between 1 and their number")
    order = np.argsort(scores, kind="stable")
    chance = np.array([comb(i, m - 1) for i in range(n)]) / comb(n, m)  # i trials have a smaller score
    ordered, sorted_scores = values[order], scores[order]
    for score in np.unique(sorted_scores):  # equals share their chances
        same = sorted_scores == score
        ordered[same] = ordered[same].mean()
    return float(chance @ ordered)


def pareto_front(gains, costs) -> list[int]:
    """Trials that no other beats: none has at least their gain at no more than their cost, and better in one.

    Args:
        gains: larger is better, (n,).
        costs: smaller is better, (n,).

    Returns:
        Their positions, cheapest first; equal ones are all kept.
    """
    gains, costs = _finite(gains), _finite(costs)
    front, best = [], -np.inf
    for i in np.lexsort((-gains, costs)):
        twin = front and gains[i] == gains[front[-1]] and costs[i] == costs[front[-1]]
        if gains[i] > best or twin:
            front.append(int(i))
            best = gains[i]
    return front


def progress(scores, values, seconds) -> dict[str, np.ndarray]:
    """A search as it went on, (n,) each: `hours` spent, value `chosen` by score so far, `best` so far."""
    scores, values, seconds = _finite(scores), _finite(values), _finite(seconds)
    so_far = [choose(scores[: i + 1]) for i in range(len(scores))]
    return {"hours": seconds.cumsum() / 3600, "chosen": values[so_far], "best": np.maximum.accumulate(values)}


def benefit_per_hour(value: float, baseline: float, seconds: float) -> float:
    """Gain over a baseline for each hour of `seconds` spent on it.

    Raises:
        ValueError: for no time at all.
    """
    if not seconds > 0:
        raise ValueError(f"a benefit per hour needs time spent, got {seconds} s")
    return (value - baseline) / (seconds / 3600)


def _finite(x) -> np.ndarray:
    x = np.array(x, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"give finite numbers, one per trial and at least one, got shape {x.shape} of {x[:5]}")
    return x


def main(
    study: str,
    data: str = "shapes",
    profile: str = "tour",
    method: str = "sag-vicreg",
    trials: int = 20,
    minutes: float | None = None,
    workers: int = 1,
    seed: int = 0,
    cost: bool = False,
    sampler: str = "tpe",
    epochs: int | None = None,
    encoder: str | None = None,
    threads: int = 1,
    work_folder: str = "runs/tune",
) -> None:
    """Search settings of the pairing by the label-free score; the same command goes on where it stopped.

    Args:
        study: record to write, without its .json; journal and trials lie under the work folder by its last name.
        data: image set, see `sagkit train --help`; its validation split judges.
        profile: budget of a trial.
        method: one that walks.
        trials: of the whole study, the default setting and VICReg included.
        minutes: after which no new trial begins.
        workers: processes on the study.
        seed: of the search and of every training.
        cost: core-seconds as a second objective; nothing is then stopped early.
        sampler: tpe, or random for a comparison.
        epochs: of a trial, in place of the profile's.
        encoder: of a trial, likewise.
        threads: CPU threads of each worker.
        work_folder: for journals, trial records and checkpoints.
    """
    given = {name: value for name, value in (("epochs", epochs), ("encoder", encoder)) if value is not None}
    quick = {"split": "fit", "probe": False, "resamplings": 0, "readout_every": 0, "seed": seed, "threads": threads}
    base = configure(method, profile, data=data, **quick, **given)
    record = Path(study).with_name(f"{Path(study).name}.json")
    search = Search(base, Path(work_folder) / Path(study).name, seed, cost, sampler=sampler)
    found = tune(search, record, trials, minutes, workers)
    for row in found["trials"]:
        mark = "*" if row["slot"] == found["chosen"] else " "
        print(mark, row["name"].ljust(9), row["state"].ljust(8), row.get("label_free", "-"), row["params"])
    print(f"record: {record}" + (f"; regret {found['regret']} in Spearman" if "regret" in found else ""))
