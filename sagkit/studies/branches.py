"""The long table: branches of one trunk, every pairing of one weight, each beside partners that no walk connects.

    − VICReg           a row minus VICReg's branch: what the pairs do, their weight included
    − hub              a row minus the row that differs from it in its partners alone, those being hubs
    − random           likewise, any partners; of another graph, too, which random partners do not ask
    share              of the pairs' weight in the last epoch, on partners of the anchor's class, and superclass

A branch is the decay of a trunk (see sagkit.train.trainer); branches are compared if they left trunks of one length.
Read from records; seed by seed, with an interval over seeds from three on. [K]
"""

from __future__ import annotations

from collections import defaultdict

import pandas as pd

from sagkit.metrics.stats import Summary
from sagkit.show.tables import to_markdown
from sagkit.studies.tables import caption
from sagkit.train.config import differing
from sagkit.train.record import rows_of

FIGURES = {"spearman_pairs": "Spearman pairs", "superclass_knn": "superclass kNN %", "knn": "kNN %"}
GRAPH = {"k", "length", "walks", "temperature", "kernel", "mutual", "sinkhorn", "restart", "unique", "confident"}
PERCENT = {"superclass_knn", "knn"}


def partner_of(row: list[dict], rows: dict[str, list[dict]], pairs: str) -> list[dict]:
    """The runs of the row that stands beside a row as its control of the same weight and null model; [] without one.

    Args:
        row: runs of one setting.
        rows: all there are, by name.
        pairs: "hub" or "random". Hubs are those of the row's own graph, while random partners may be of any; both may
            be drawn where the row is in expectation, if none in expectation is there.
    """
    walk = row[0]
    free = {"pairs"} | (GRAPH if pairs == "random" else set())
    for likeness in (free, free | {"expected"}):
        for runs in rows.values():
            same = runs[0]["method"] == walk["method"] and runs[0]["config"].get("pairs") == pairs
            if same and differing(walk["config"], runs[0]["config"], "row").keys() <= likeness:
                return runs
    return []


def changes(row: list[dict], other: list[dict], key: str) -> list[float]:
    """A figure of a row minus that of another, by the seeds that both have."""
    theirs = {run["seed"]: run["metrics"][key] for run in other}
    return [run["metrics"][key] - theirs[run["seed"]] for run in row if run["seed"] in theirs]


def branch_table(records: list[dict]) -> pd.DataFrame:
    """One line per row of branches from trunks of one length; text cells.

    Args:
        records: of one profile and training set, with `trunk`.
    """
    rows, shown = rows_of(records), {}
    plain = next((runs for runs in rows.values() if runs[0]["method"] == "vicreg"), [])
    for name, runs in rows.items():
        cells = {"seeds": str(len(runs))}
        for kind in ("weight", "class_share", "superclass_share"):
            values = [run["pull"][kind] for run in runs if kind in run.get("pull", {})]
            cells[kind.replace("_", " ")] = Summary.over(values).show(kind != "weight") if values else ""
        for key, title in FIGURES.items():
            cells[title] = Summary.over([run["metrics"][key] for run in runs]).show(key in PERCENT)
        beside = {pairs: partner_of(runs, rows, pairs) for pairs in ("hub", "random")}
        for what, other in {"VICReg": plain, **beside}.items():
            for key in ("spearman_pairs", "superclass_knn"):
                change = changes(runs, other, key) if other is not runs else []
                cells[f"{FIGURES[key]} − {what}"] = (
                    Summary.over(change).show(key in PERCENT, signed=True) if change else ""
                )
        cells["label-free"] = Summary.over([run["metrics"]["label_free"] for run in runs]).show(False)
        minutes = (Summary.over([side["core_seconds"] / 60 for side in sides]).mean for sides in _sides(runs))
        cells["core-min, branch + trunk"] = " + ".join(f"{value:.1f}" for value in minutes)
        shown[name] = cells
    return pd.DataFrame.from_dict(shown, orient="index").rename_axis("branch")


def _sides(runs: list[dict]) -> tuple[list[dict], list[dict]]:
    return runs, [run["trunk"] for run in runs]


def branch_tables(records: list[dict]) -> str:
    """A table for each encoder and length of trunk, with its caption; a sentence where there are none."""
    by_trunk = defaultdict(list)
    for record in records:
        if "core_seconds" in record.get("trunk", {}) and record["config"]["decay"]:
            by_trunk[record["config"]["encoder"], record["trunk"]["epoch"]].append(record)
    if not by_trunk:
        return "No branch is trained yet: `sagkit study ledger figures/plans/long.txt` trains them."
    return "\n\n".join(
        f"{encoder}, trunk of {epoch} epochs:\n\n{to_markdown(branch_table(found))}\n\n{caption(found)}"
        for (encoder, epoch), found in sorted(by_trunk.items())
    )
