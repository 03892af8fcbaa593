"""Search settings of the pairing without labels: Optuna proposes, short trainings answer, weak ones are stopped early.

    python -m sagkit.tune --data shapes --trials 20 --minutes 10 --workers 2 --study figures/results/tune/NAME

    maximise  label-free score of the trained encoder        over alpha, L, K, temperature, kernel, scope
    and, with --cost, minimise core-seconds                  (no trial is then stopped early: Optuna's limit)

The first two trials are the default setting and VICReg (alpha 0); `search` says how the others follow and how a study
goes on after an interruption. Labels, where there are any, are recorded and never chosen by: the record NAME.json has
both, and `regret` compares them. [K]
"""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

from optuna.trial import TrialState

from sagkit.config import configure
from sagkit.record import provenance, run_path, write_record
from sagkit.regret import choose, regret
from sagkit.search import Search, asked_again, open_study, work

NAMES = ("default", "vicreg")  # of the slots that are asked first
SCORES = ("label_free", "spearman_pairs", "kendall_pairs", "spearman_centroid", "knn", "superclass_knn")


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
        work(search, trials, until)
    else:
        spawn = multiprocessing.get_context("spawn")  # a fork would share threads and CUDA
        processes = [spawn.Process(target=work, args=(search, trials, until)) for _ in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            codes = [process.exitcode for process in processes]
            raise ValueError(f"workers ended with codes {codes}: see above; the same command goes on")
    found = summary(search) | {"study": record.stem}
    write_record(record, found)
    return found


def summary(search: Search) -> dict:
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
    row = {"slot": slot, "name": NAMES[slot] if slot < len(NAMES) else f"trial {slot}"}
    row |= {"state": trial.state.name.lower(), "params": trial.params, "core_seconds": 0.0}
    row |= {name: trial.user_attrs[name] for name in ("core_seconds", "error") if name in trial.user_attrs}
    row["pruning_scores"] = {str(epoch): round(value, 5) for epoch, value in trial.intermediate_values.items()}
    if trial.state != TrialState.COMPLETE:
        return row
    c = search.config(slot, trial.params)
    run = json.loads(run_path(c, c.results).read_text())
    row |= {name: run[name] for name in ("core_seconds", "seconds", "peak_memory_mb", "walk_share")}
    return row | {name: run["metrics"][name] for name in SCORES if name in run["metrics"]}


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
        data: image set, see sagkit.train; its validation split judges.
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
    try:
        base = configure(method, profile, data=data, **quick, **given)
        record = Path(study).with_name(f"{Path(study).name}.json")
        search = Search(base, Path(work_folder) / Path(study).name, seed, cost, sampler=sampler)
        found = tune(search, record, trials, minutes, workers)
    except (ValueError, OSError) as error:
        raise SystemExit(f"sagkit.tune: {error}") from None
    for row in found["trials"]:
        mark = "*" if row["slot"] == found["chosen"] else " "
        print(mark, row["name"].ljust(9), row["state"].ljust(8), row.get("label_free", "-"), row["params"])
    print(f"record: {record}" + (f"; regret {found['regret']} in Spearman" if "regret" in found else ""))


if __name__ == "__main__":
    import tyro

    tyro.cli(main, prog="python -m sagkit.tune")
