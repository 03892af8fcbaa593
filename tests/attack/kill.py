"""Kill -9 at random moments: the resumed work ends with the bytes of the uninterrupted one, and leaves no litter.

    python tests/attack/kill.py                     100 kills: training of three scopes, pilot, search, report writing
    python tests/attack/kill.py --kills 5 --only dataset

Each job runs once undisturbed. Then it is started in a new folder and killed after a random part of that time, up to
three times in a row, and started once more. All starts are forks of one process that has imported the kit and computed
nothing. What is compared: every file that is left, by name and content; of JSON files all but what clocks say, of HTML
pages that they are whole, of a search's journal nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a fork has no threads of its parent's
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from tiny import tiny

from sagkit.data.load import ImageSet, make_shapes
from sagkit.pilot.run import pilot
from sagkit.studies import tables
from sagkit.studies.tune import Search, tune
from sagkit.train.trainer import fit

CLOCKS = {"core_seconds", "images_per_second", "walk_share", "training_seconds", "seconds", "peak_memory_mb"}
QUICK = {"epochs": 3, "readout_every": 0, "probe": False, "resamplings": 0}
SHARES = {"batch": 25, "queue": 15, "dataset": 25, "pilot": 10, "search": 15, "report": 10}  # of 100 kills
ROW = 3  # kills of one piece of work, at most
SEED = 0


def train(scope: str) -> None:
    """A small training in the current folder."""
    queries = ImageSet(make_shapes(8, size=16, seed=1).images)
    fit(tiny(Path(), scope=scope, graph_epochs=2, **QUICK), make_shapes(160, size=16), queries, progress=False)


def search() -> None:
    """A small search for settings; two trials are its named ones."""
    base = tiny(Path(), data="images.npz", split="fit", threads=1, **{**QUICK, "epochs": 2})
    tune(Search(base, Path("work"), startup=2), Path("found.json"), trials=4)


def report() -> None:
    """Metrics of three runs that are there, judged anew."""
    tables.main(results="results", reevaluate=True, probe=False)


def prepare(job: str) -> None:
    """What a job finds in its folder."""
    if job in ("search", "report"):
        images = make_shapes(240, size=16)
        arrays = {"images": images.images.numpy(), "labels": images.labels.numpy()}
        np.savez("images.npz", **arrays, class_names=np.array(images.class_names))
    if job == "pilot":
        from PIL import Image

        Path("photos").mkdir()
        for i, pixels in enumerate(make_shapes(40, size=32).images):
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(f"photos/{i:02d}.png")
    if job == "report":
        for seed in range(3):
            fit(tiny(Path(), data="images.npz", split="fit", seed=seed, **{**QUICK, "epochs": 1}), progress=False)


JOBS: dict[str, Callable[[], object]] = {
    "batch": lambda: train("batch"),
    "queue": lambda: train("queue"),
    "dataset": lambda: train("dataset"),
    "pilot": lambda: pilot("photos", "out", epochs=3, progress=False),
    "search": search,
    "report": report,
}


def started(work: Callable[[], object], folder: Path, log: Path) -> int:
    """The number of a forked process that does some work in a folder, and writes what it says to a log."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        with open(log, "a") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        os.environ["SAGKIT_CACHE"] = str(folder / "cache")
        os.chdir(folder)
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, within: float | None = None) -> int | None:
    """The exit code of a process, or None for one that still ran after some time, which was then killed."""
    begin = time.monotonic()
    while within is not None and time.monotonic() - begin < within:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return 0
        time.sleep(0.002)
    if within is not None:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def contents(folder: Path) -> dict[str, object]:
    """Every file below a folder, as far as it may be compared."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name.startswith("cache"):
            continue
        if path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        elif path.suffix == ".html":
            found[name] = path.read_text().rstrip().endswith("</html>")
        elif "journal" in name:
            found[name] = None
        else:
            found[name] = path.read_bytes()
    return found


def timeless(record):
    """A record without what clocks say."""
    if isinstance(record, dict):
        return {name: timeless(value) for name, value in record.items() if name not in CLOCKS}
    return [timeless(value) for value in record] if isinstance(record, list) else record


def attack(job: str, kills: int, place: Path, draw: random.Random) -> dict:
    """Kill one job so many times; how often it was running when it was, and what differed in the end."""
    first, log = place / f"{job}-prepared", place / f"{job}.log"
    first.mkdir()
    if code := ended(started(lambda: prepare(job), first, log)):
        raise RuntimeError(f"{job} cannot be prepared (exit code {code}):\n{log.read_text()[-2000:]}")
    whole = place / f"{job}-whole"
    shutil.copytree(first, whole)
    begin = time.monotonic()
    if code := ended(started(JOBS[job], whole, log)):
        raise RuntimeError(f"{job} fails undisturbed (exit code {code}):\n{log.read_text()[-2000:]}")
    seconds, wanted = time.monotonic() - begin, contents(whole)
    done = {"kills": 0, "works": 0, "seconds": round(seconds, 2), "differing": [], "failed": []}
    while done["kills"] < kills:
        folder = place / f"{job}-cut{done['works']}"
        shutil.copytree(first, folder)
        for _ in range(min(ROW, kills - done["kills"])):
            begin = time.monotonic()
            if ended(started(JOBS[job], folder, log), draw.uniform(0, seconds)) is None:
                done["kills"] += 1
            else:  # it was over before: the machine is quicker now
                seconds = min(seconds, time.monotonic() - begin)
                break
        if code := ended(started(JOBS[job], folder, log)):
            last = [line for line in log.read_text().splitlines() if line.strip()][-1]
            done["failed"].append(f"exit code {code}: {last}")
        found = contents(folder)
        names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        done["differing"] += [re.sub(r"\d{3,}", "N", name) for name in names]
        done["works"] += 1
        shutil.rmtree(folder)
    return done


def main() -> dict:
    """Attack, and print what was found as JSON; exit code 1 where anything differs or fails."""
    options = argparse.ArgumentParser()
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--only", choices=[*JOBS], nargs="*", default=[*JOBS])
    options.add_argument("--seed", type=int, default=SEED)
    given = options.parse_args()
    warnings.simplefilter("ignore")
    draw, share = random.Random(given.seed), sum(SHARES[job] for job in given.only)
    with tempfile.TemporaryDirectory() as place:
        found = {job: attack(job, round(given.kills * SHARES[job] / share), Path(place), draw) for job in given.only}
    print(json.dumps({"jobs": found}))
    if any(done["differing"] or done["failed"] for done in found.values()):
        raise SystemExit(1)
    return found


if __name__ == "__main__":
    main()
