"""A ledger of runs: a text file of `sagkit train` command lines, each run once, on this machine or by SLURM.

    sagkit study ledger plan.txt --jobs 2                                           # two at once, here
    sagkit study ledger plan.txt --slurm partition=gpu gpus_per_node=1 time=240     # as jobs of a cluster

    --profile tour --method vicreg --keep-at 4              # one run a line; then a branch of it
    --profile tour --method sag-vicreg --walk-start 0.5 --trunk runs/tour/shapes/vicreg-seed0.epoch4.safetensors
    --profile tour --method vicreg --seed {1,2}             # two runs: values in braces stand for one line each
    --profile tour --method dino --seed {1,2} --lr {1e-3,2e-3}      # two, not four

A run whose record and encoder exist is skipped, an interrupted one continues from its checkpoint, and a line with a
trunk waits until another run has kept it. A line that fails is reported and the others continue; so is one that is
killed, and the next call goes on from its last epoch.

Jobs are submitit's, the field's own: every run is a process of its own, with its log. That costs each run the start of
Python and torch, which a pool of processes would pay once; in return one that is killed takes no other with it, where a
pool breaks as a whole, and the same lines run on a cluster. There, a branch is submitted with its trunk and depends on
it; the job of a run waits for an earlier one of the same name, so that a second call makes nothing twice; and one that
runs out of its time, or has to make room, is queued again and goes on. Images are read from the decoded cache. [K]
"""

from __future__ import annotations

import os
import re
import shlex
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from submitit import AutoExecutor, Job
from submitit.core.utils import FailedJobError
from submitit.helpers import Checkpointable

from sagkit.train.config import Config, flags, parse
from sagkit.train.record import run_path, snapshot_path
from sagkit.train.trainer import fit, stored_run

BRACES = re.compile(r"\{([^{}]*)\}")
POLL = 0.5  # seconds between two looks at what is running
YEAR = 60 * 24 * 365  # minutes that a run may take on this machine; a cluster has limits of its own
SHOWN = ("spearman_pairs", "knn", "label_free")


def read_plan(path: str | Path) -> list[Config]:
    """The runs of a plan, in order; empty lines and what follows a `#` are skipped.

    Raises:
        OSError: where there is no such file.
        ValueError: for a line that is no command line of `sagkit train`, by its number, or a run that stands twice.
    """
    plan: dict[tuple, Config] = {}
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        try:
            configs = [parse(words) for words in _runs_of(line)]
        except (ValueError, SystemExit) as error:
            raise ValueError(f"{path}, line {number}: {error if str(error) != '2' else 'see above'}") from None
        for config in configs:
            named = config.profile, config.data, config.method, config.variant, config.seed
            if named in plan:
                raise ValueError(
                    f"{path}, line {number} is a run that stands above: give it a --variant or another --seed"
                )
            plan[named] = config
    return list(plan.values())


def _runs_of(line: str) -> list[list[str]]:
    """The words of each run that a line stands for: none of an empty one, one for each of the values in braces."""
    words = shlex.split(line, comments=True)
    several = {len(found.split(",")) for word in words for found in BRACES.findall(word)} or {1}
    if len(several) > 1:
        raise ValueError(f"braces hold {' and '.join(map(str, sorted(several)))} values: give each as many")

    def run(number: int) -> list[str]:
        return [BRACES.sub(lambda found: found[1].split(",")[number], word) for word in words]

    return [run(number) for number in range(several.pop())] if words else []


class Training(Checkpointable):
    """One run as a job: (whether it is done, what it scored or why it failed, in one line).

    submitit calls it again, as it is, where a cluster ended it; `fit` goes on from its checkpoint. It takes no GPU away
    that the ledger itself sees, which submitit does from jobs of this machine.
    """

    def __init__(self):
        self.visible = os.environ.get("CUDA_VISIBLE_DEVICES")

    def __call__(self, config: Config) -> tuple[bool, str]:
        if os.environ["SUBMITIT_EXECUTOR"] == "local":
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            os.environ.update({"CUDA_VISIBLE_DEVICES": self.visible} if self.visible is not None else {})
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            scores = fit(config, progress=False).record["metrics"]
        except (ValueError, OSError) as error:
            return False, str(error)
        return True, ", ".join(f"{name} {scores[name]:.4f}" for name in SHOWN if name in scores)


def work_off(
    plan: list[Config], jobs: int = 1, tell=print, slurm: dict[str, str | int] | None = None, logs="runs/ledger"
) -> list[Config]:
    """Run a plan; returns the runs that failed or never began.

    Args:
        plan: runs, in order of preference; one that has to wait for its trunk lets others pass.
        jobs: runs at once, on this machine.
        tell: takes one line about each run that ended.
        slurm: submit all runs to SLURM, with these parameters of submitit's executor; None: run them here.
        logs: folder of the jobs' logs, which all machines of a cluster share.

    Raises:
        ValueError: for fewer than one job, or parameters that submitit does not know.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    executor = _executor(Path(logs), slurm)
    waiting, failed = [config for config in plan if not stored_run(config, config.results)], []
    tell(f"{len(plan)} runs, {len(plan) - len(waiting)} of them done before")
    running: dict[Job, Config] = {}
    keepers: dict[str, Job] = {}  # who will keep a trunk, of what is submitted
    with ExitStack() as at_the_end:
        while waiting or running:
            ready = [c for c in waiting if not c.trunk or os.path.exists(c.trunk) or (slurm and c.trunk in keepers)]
            for config in ready[: None if slurm else jobs - len(running)]:
                waiting.remove(config)
                if slurm is not None:
                    executor.update_parameters(**_place_in_queue(config, keepers))
                job = executor.submit(Training(), config)
                running[job] = config
                keepers |= dict.fromkeys(_keeps(config), job)
                if slurm is None:  # a job of this machine ends with its ledger
                    at_the_end.callback(lambda job=job: job.done() or job.cancel())
            if waiting and not running and not ready:
                tell(f"no run left that keeps {', '.join(sorted({c.trunk for c in waiting}))}")
                return failed + waiting
            for job in [job for job in running if job.done()]:
                config, (done, told) = running.pop(job), outcome(job)
                failed += [] if done else [config]
                tell(f"{shlex.join(flags(config))}: {told}")
            time.sleep(POLL if running else 0)
    return failed


def _executor(logs: Path, slurm: dict[str, str | int] | None) -> AutoExecutor:
    made = AutoExecutor(folder=logs / "%j", cluster="local" if slurm is None else "slurm", slurm_max_num_timeout=1000)
    try:
        given = {f"slurm_{name}": value for name, value in (slurm or {}).items()}
        made.update_parameters(**(given if slurm is not None else {"timeout_min": YEAR}))
    except (NameError, TypeError) as error:
        raise ValueError(f"slurm: {str(error).splitlines()[0]}") from None
    return made


def _place_in_queue(config: Config, keepers: dict[str, Job]) -> dict:
    """After the run that keeps the trunk, if that is in the queue, and after any job of the same run."""
    after = [f"afterok:{keepers[config.trunk].job_id}"] if config.trunk in keepers else []
    name = "-".join(map(str, (config.profile, config.data, config.method, config.variant, config.seed)))
    more = {"kill-on-invalid-dep": "yes"} if after else {}
    return {
        "name": re.sub(r"\W+", "-", name),
        "slurm_dependency": ",".join([*after, "singleton"]),
        "slurm_additional_parameters": more,
    }


def _keeps(config: Config) -> list[str]:
    """The trunks that a run keeps."""
    checkpoint = run_path(config, config.runs).with_suffix(".safetensors")
    return [str(snapshot_path(checkpoint, epoch)) for epoch in config.keep_at]


def outcome(job: Job) -> tuple[bool, str]:
    """Of a job that has ended: whether its run is done, and one line on it."""
    error = job.exception()
    if error is None:
        return job.result()
    if isinstance(error, FailedJobError):  # what nobody expects; the log has all of it
        return False, f"{str(error).strip().splitlines()[-1]}; see {job.paths.stderr}"
    return False, (
        "ended from outside, as when memory runs out: what is finished is kept, and the next call goes on from its "
        f"last epoch; see {job.paths.stderr}"
    )


def main(
    plan: str, /, jobs: int = 1, results: str = "", slurm: tuple[str, ...] = (), logs: str = "runs/ledger"
) -> None:
    """Run a plan of trainings, several at once, each once.

    Args:
        plan: text file, one run a line: the flags of `sagkit train`.
        jobs: runs at once, on this machine.
        results: folder of all run records, in place of what the lines say.
        slurm: submit the runs to SLURM, with parameters of submitit's SlurmExecutor as name=value.
        logs: folder of the jobs' logs; on a cluster, one that all machines share.
    """
    runs = read_plan(plan)
    given = dict(word.split("=", 1) for word in slurm if "=" in word)
    if len(given) < len(slurm):
        raise ValueError(f"slurm takes name=value, such as partition=gpu, got {' '.join(slurm)}")
    parameters = {name: int(value) if value.isdigit() else value for name, value in given.items()} or None
    runs = [replace(run, results=results) for run in runs] if results else runs
    if failed := work_off(runs, jobs, slurm=parameters, logs=logs):
        raise ChildProcessError(f"{len(failed)} runs failed: mend them and start again, the others are done")
