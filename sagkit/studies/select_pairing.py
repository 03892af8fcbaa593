"""Select the pairing that stands for the kit on validation images, before the test images are looked at.

    sagkit study select-pairing             reads the records of profile long-search, writes figures/results/entry.json,
                                            prints the setting's flags

    score = [Spearman - hub's] / sd  +  [superclass kNN - hub's] / sd,   means over branch seeds, at least two
    among walks with  kNN >= VICReg's - 0.005

The rule was written down before the search [K]. A gain is over the hub partner: the same total weight per anchor on
nodes drawn from where the same walks end, whoever began, with the same null model or none, because a pull towards
anything gains Spearman, and towards hubs most of what walks gain (figures/METHOD.md section 3). `sd` is the spread
between branch seeds of one row, pooled over all rows of the search, so that neither gain outweighs the other by its
unit. kNN (classes) is a bound and no part of the score: the walks are to gain global structure at equal local quality.
"""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import NamedTuple

from sagkit.data.files import write_text
from sagkit.studies.branches import partner_of
from sagkit.train.config import Config, configure, differing, may_differ, spelled
from sagkit.train.record import command_line, groups, provenance, read_records, rows_of

MOST_LOST = 0.005  # of kNN, half a point
LEAST_SEEDS = 2
GAINS = ("spearman_pairs", "superclass_knn")
RULE = (
    "largest gain in Spearman over image pairs plus gain in superclass kNN over the hub partner of equal weight, each "
    "in units of its spread between branch seeds, among walks whose kNN is at most 0.5 points below VICReg's"
)
KEPT_METRICS = ("spearman_pairs", "kendall_pairs", "spearman_centroid", "knn", "superclass_knn", "label_free")


class Candidate(NamedTuple):
    """Runs of one setting, of its hub partner and of VICReg, seed by seed, and the score of the setting."""

    runs: list[dict]
    hub: list[dict]
    plain: list[dict]
    score: float


def candidates(records: list[dict]) -> list[Candidate]:
    """The walks of a search that have a hub partner and VICReg beside them for at least two branch seeds.

    Args:
        records: of one profile and training set; `read_records` gives them.

    Raises:
        ValueError: where there is no VICReg, or no walk has what it needs beside it.
    """
    rows = rows_of(records)
    if "vicreg" not in rows:
        raise ValueError("no VICReg among the records of the search: train it first, with the same seeds")
    walks = {name: runs for name, runs in rows.items() if _pairs(runs[0]) == "walk" and runs[0]["method"] != "vicreg"}
    spread = {metric: _spread(rows, metric) for metric in GAINS}
    found = []
    for runs in walks.values():
        hub, plain = partner_of(runs, rows, "hub"), rows["vicreg"]
        if differing(plain[0]["config"], runs[0]["config"], "pairing"):  # what it gains need not be the pairing's
            continue
        seeds = sorted({r["seed"] for r in runs} & {r["seed"] for r in hub} & {r["seed"] for r in plain})
        if len(seeds) >= LEAST_SEEDS:
            sides = [[next(r for r in side if r["seed"] == seed) for seed in seeds] for side in (runs, hub, plain)]
            score = sum((_mean(sides[0], metric) - _mean(sides[1], metric)) / spread[metric] for metric in GAINS)
            found.append(Candidate(*sides, score))
    if not found:
        raise ValueError(
            f"none of {len(walks)} walks has a hub partner and VICReg beside it for {LEAST_SEEDS} seeds: "
            "train its setting with --pairs hub, too"
        )
    return found


def select_setting(records: list[dict]) -> Candidate:
    """The candidate that the rule selects.

    Raises:
        ValueError: see `candidates`; and where every candidate costs too much kNN.
    """
    among = candidates(records)
    allowed = [c for c in among if _mean(c.runs, "knn") >= _mean(c.plain, "knn") - MOST_LOST]
    if not allowed:
        raise ValueError(f"none of {len(among)} walks loses at most {MOST_LOST:.1%} of kNN: search elsewhere")
    return max(allowed, key=lambda c: c.score)


def fields_of(record: dict) -> dict:
    """What a record's setting says beyond its profile and method, without what changes nothing or names the run."""
    preset, now = configure(record["method"], record["profile"]).to_dict(), Config().to_dict() | record["config"]
    told = [name for name in preset if not may_differ(name, "row") and name != "data"]
    return {name: now[name] for name in told if now[name] != preset[name]}


def selection_of(records: list[dict]) -> dict:
    """What is stored of the selected setting: rule, control, fields, flags, and validation scores beside others'."""
    best, trials = select_setting(records), len(candidates(records))
    first, fields = best.runs[0], fields_of(best.runs[0])
    return {
        "rule": RULE,
        "trials": trials,
        "method": first["method"],
        "variant": first["variant"],
        "control": best.hub[0]["variant"],
        "seeds": [run["seed"] for run in best.runs],
        "score": round(best.score, 3),
        "fields": fields,
        "flags": shlex.join(spelled(fields)),
        "validation": {"entry": _shown(best.runs), "control": _shown(best.hub), "vicreg": _shown(best.plain)},
        "command": command_line("study select-pairing"),
        **provenance(),
    }


def main(results: str = "figures/results", profile: str = "long-search", data: str = "cifar100") -> None:
    """Select the pairing's setting from the records of a search and store it.

    Args:
        results: folder of run records; the selected setting is written into it.
        profile: of the search.
        data: training set of the search.
    """
    entry = selection_of(groups(read_records(results)).get((profile, data), []))
    name = "entry" if profile == "long-search" else f"entry-{profile}"
    write_text(Path(results) / f"{name}.json", json.dumps(entry, indent=1) + "\n")
    settings = f"--method {entry['method']} --variant {entry['variant']} {entry['flags']}"
    print(f"{entry['variant']} over {entry['control']}, of {entry['trials']} trials: {settings}")


def _pairs(record: dict) -> str:
    return record["config"].get("pairs", "walk")


def _spread(rows: dict[str, list[dict]], metric: str) -> float:
    """Standard deviation of a figure between the seeds of one row, pooled over rows.

    Raises:
        ValueError: where no row has two seeds, or they never differ.
    """
    squares = freedom = 0.0
    for runs in rows.values():
        values = [run["metrics"][metric] for run in runs]
        squares += sum((value - sum(values) / len(values)) ** 2 for value in values)
        freedom += len(values) - 1
    if not squares:
        raise ValueError(f"{metric} has no spread between seeds: train {LEAST_SEEDS} branch seeds of each row")
    return math.sqrt(squares / freedom)


def _mean(runs: list[dict], metric: str) -> float:
    return sum(run["metrics"][metric] for run in runs) / len(runs)


def _shown(runs: list[dict]) -> dict[str, float]:
    return {name: round(_mean(runs, name), 5) for name in KEPT_METRICS}
