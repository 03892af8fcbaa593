"""Does a tuned setting hold up? Settings of finished studies, trained on fresh seeds and evaluated on test images.

    sagkit study confirm --studies figures/results/tune/A.json figures/results/tune/B.json --seeds 3 --out NAME.json

    roles:  default, vicreg (alpha 0), the label-free choice of each study, and the trial that labels would have chosen

The best of n trials of one seed is biased upwards (selection on noise), the labels' choice no less than the label-free
one. Fresh seeds remove the bias; training takes all training images, and evaluation the test images, which the search
never saw. Differences are paired by seed, which fixes first weights, image order and views. Each role's
interval stands alone and is not corrected for multiple comparisons: of several, one may exclude zero by chance. Runs
are kept in a folder and found again, so that an interrupted command continues when it is repeated. [K]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sagkit.data.load import load_images
from sagkit.metrics.stats import Summary
from sagkit.studies.tune import NAMED_TRIALS, RECORDED
from sagkit.train.config import Config, differing
from sagkit.train.record import provenance, read_record, run_path, write_record
from sagkit.train.trainer import fit

LABELS = "labels' choice"


def roles(studies: Sequence[dict], score: str = "spearman_pairs") -> dict[str, dict]:
    """Setting by role: the named trials, each study's label-free choice, and the largest `score` over all studies.

    Args:
        studies: records of `sagkit study tune` that share everything but the search.
        score: what labels choose by.

    Raises:
        ValueError: for no study, two of one name, studies of different base settings, or one without that score.
    """
    if not studies:
        raise ValueError("no study is given: make one with sagkit study tune")
    if len({study["study"] for study in studies}) < len(studies):
        raise ValueError(f"studies {', '.join(s['study'] for s in studies)}: two of one name, rename one's record")
    first, found, known = studies[0], {}, []
    for study in studies:
        if unlike := differing(first["base"], study["base"], "study"):
            raise ValueError(f"{first['study']} and {study['study']} differ in {', '.join(unlike)}: not comparable")
        done = {row["slot"]: row for row in study["trials"] if row["state"] == "complete"}
        if any(score not in row for row in done.values()):
            raise ValueError(f"{study['study']} has trials without {score}: labels must be known")
        found |= {NAMED_TRIALS[i]: done[i]["params"] for i in range(len(NAMED_TRIALS)) if i in done}
        found[f"label-free choice, {study['study']}"] = done[study["chosen"]]["params"]
        known += done.values()
    return found | {LABELS: max(known, key=lambda row: row[score])["params"]}


def confirm(studies: Sequence[dict], record: Path, work: Path, seeds: int = 3) -> dict:
    """Train every role on `seeds` seeds that the studies did not use, and write their scores on the test images.

    Args:
        studies: see `roles`.
        record: JSON file to write.
        work: folder of run records and checkpoints; runs that lie there are not repeated.
        seeds: per role, the study's seed + 1 and on.

    Raises:
        ValueError: for fewer than one seed, a name of another kind of record, or impossible studies.
    """
    if seeds < 1:
        raise ValueError(f"seeds {seeds} must be at least 1")
    if record.suffix != ".json" or "-seed" in record.stem:
        raise ValueError(f"{record} must end in .json, and -seed in its name would pass it off as a run record")
    chosen, base = roles(studies), Config.from_dict(studies[0]["base"])
    base = replace(base, split="train", results=str(work / "runs"), runs=str(work / "unfinished"))
    images = dict(zip(("train", "queries"), (load_images(base.data, s) for s in ("train", "test")), strict=True))
    rows = []
    for seed in range(base.seed + 1, base.seed + 1 + seeds):  # seed by seed: what is cut off has whole pairs
        for role, params in chosen.items():
            named = hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:8]
            run = _run(replace(base, seed=seed, variant=f"setting-{named}", **params), images)
            scores = {name: run["metrics"][name] for name in RECORDED if name in run["metrics"]}
            rows.append({"role": role, "seed": seed, "core_seconds": run["core_seconds"]} | scores)
            rows[-1]["commit"] = run["commit"]
    found = {"studies": [study["study"] for study in studies], "base": base.to_dict(), **provenance()}
    found |= {"evaluated_on": "test", "roles": chosen, "runs": rows}
    write_record(record, found)
    return found


def differences_by_role(
    found: dict, score: str = "spearman_pairs", baseline: str = "default"
) -> dict[str, list[float]]:
    """Each role's `score` minus the baseline's, seed by seed.

    Raises:
        ValueError: for a baseline that is no role.
    """
    by_role = {role: {r["seed"]: r[score] for r in found["runs"] if r["role"] == role} for role in found["roles"]}
    if baseline not in by_role:
        raise ValueError(f"no role {baseline!r}: choose one of {', '.join(by_role)}")
    plain = by_role.pop(baseline)
    return {role: [values[seed] - plain[seed] for seed in sorted(plain)] for role, values in by_role.items()}


def _run(config: Config, images: dict) -> dict:
    """The record of one run, made where there is none of this setting."""
    path = run_path(config, config.results)
    if path.exists():
        run = read_record(path)
        if run["metrics"] and not differing(run["config"], config.to_dict(), "study"):
            return run
    return fit(replace(config, overwrite=True), **images, progress=False).record


def main(studies: tuple[Path, ...], out: Path, seeds: int = 3, work_folder: Path = Path("runs/confirm")) -> None:
    """Train the settings that studies chose on fresh seeds; the same command goes on where it stopped.

    Args:
        studies: records of `sagkit study tune`, .json.
        out: record to write, .json.
        seeds: per setting.
        work_folder: for run records and checkpoints.
    """
    found = confirm([json.loads(path.read_text()) for path in studies], out, work_folder / out.stem, seeds)
    for role, values in differences_by_role(found).items():
        over = Summary.over(values).show(percent=False, signed=True)
        print(role.ljust(36), over.ljust(16), *(f"{value:+.4f}" for value in values))
    print(f"Spearman minus the default's: mean, 95 % t-interval of each role alone, and by seed; record: {out}")
