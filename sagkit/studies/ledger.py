"""A ledger of runs: a text file of `sagkit train` command lines, worked off in order, several at once, each run once.

    sagkit study ledger plan.txt --jobs 2

    --profile tour --method vicreg --keep-at 4              # one run a line; then a branch of it
    --profile tour --method sag-vicreg --walk-start 0.5 --trunk runs/tour/shapes/vicreg-seed0.epoch4.safetensors
    --profile tour --method vicreg --seed {1,2}             # two runs: values in braces stand for one line each
    --profile tour --method dino --seed {1,2} --lr {1e-3,2e-3}      # two, not four

A run whose record and encoder exist is skipped, an interrupted one continues from its checkpoint, and a line with a
trunk waits until another run has kept it. A line that fails is reported and the others continue. The processes that
train are started once and share one copy of the images: on a GPU, where a run may take a minute, starting would cost as
much. [K]
"""

from __future__ import annotations

import os
import re
import shlex
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import torch

from sagkit.data.load import ImageSet, load_images
from sagkit.train.build import judged_on
from sagkit.train.config import Config, flags, parse
from sagkit.train.trainer import fit, stored_run

BRACES = re.compile(r"\{([^{}]*)\}")
POLL = 0.5  # seconds between two looks for trunks that a running line keeps
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


def work_off(plan: list[Config], jobs: int = 1, tell=print) -> list[Config]:
    """Run a plan; returns the runs that failed or never began.

    Args:
        plan: runs, in order of preference; one that has to wait for its trunk lets others pass.
        jobs: runs at once, each in a process of its own.
        tell: takes one line about each run that ended.

    Raises:
        ValueError: for fewer than one job.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    waiting, failed = [config for config in plan if not stored_run(config, config.results)], []
    tell(f"{len(plan)} runs, {len(plan) - len(waiting)} of them done before")
    images: dict[tuple, ImageSet] = {}
    running: dict[Future, Config] = {}
    with ProcessPoolExecutor(jobs, mp_context=torch.multiprocessing.get_context("spawn")) as pool:
        while waiting or running:
            ready = [c for c in waiting if not c.trunk or os.path.exists(c.trunk)]
            for config in ready[: jobs - len(running)]:
                waiting.remove(config)
                try:
                    running[pool.submit(_run, config, *_shared(config, images))] = config
                except (ValueError, OSError) as error:
                    failed.append(config)
                    tell(f"{shlex.join(flags(config))}: {error}")
            if waiting and not running and not ready:
                tell(f"no run left that keeps {', '.join(sorted({c.trunk for c in waiting}))}")
                return failed + waiting
            for done in wait(running, POLL, FIRST_COMPLETED).done:
                config, error = running.pop(done), done.exception()
                failed += [config] if error else []
                tell(f"{shlex.join(flags(config))}: {error or done.result()}")
    return failed


def _shared(config: Config, images: dict[tuple, ImageSet]) -> list[ImageSet]:
    """What a run trains on and is judged on, loaded once for all, in memory that processes share."""
    sets = []
    for split in (config.split, judged_on(config)):
        key = config.data, split, config.data_root
        if key not in images:
            images[key] = load_images(config.data, split, root=config.data_root or None)
            images[key].images.share_memory_()
        sets.append(images[key])
    return sets


def _run(config: Config, train: ImageSet, queries: ImageSet) -> str:
    """One run, in a process of the pool; what it scored, in one line."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    run = fit(config, train, queries, progress=False)
    return ", ".join(f"{name} {run.record['metrics'][name]:.4f}" for name in SHOWN if name in run.record["metrics"])


def main(plan: str, /, jobs: int = 1, results: str = "") -> None:
    """Run a plan of trainings, several at once, each once.

    Args:
        plan: text file, one run a line: the flags of `sagkit train`.
        jobs: runs at once.
        results: folder of all run records, in place of what the lines say.
    """
    try:
        runs = read_plan(plan)
        failed = work_off([replace(run, results=results) for run in runs] if results else runs, jobs)
    except BrokenProcessPool:
        raise ChildProcessError(
            "a run was ended from outside, as when memory runs out: start again with fewer --jobs; "
            "what is finished is kept, and the rest goes on from its last epoch"
        ) from None
    if failed:
        raise ChildProcessError(f"{len(failed)} runs failed: mend them and start again, the others are done")
