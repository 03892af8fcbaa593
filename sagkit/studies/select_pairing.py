"""Select pairing settings on validation images, before the test images are looked at.

    sagkit study select-pairing                           reads the records of profile search, writes
                                                          figures/results/entry.json, prints the setting's flags
    sagkit study select-pairing --profile gpu-search      likewise, figures/results/entry-gpu-search.json

The rule was fixed before the search [K]: of the walks (controls are no candidates), the largest Spearman over image
pairs among settings that lose at most one point of kNN against VICReg of the same seed, trained alike but for the
pairing.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from sagkit.train.config import Config, configure, differing, may_differ, spelled
from sagkit.train.record import command_line, groups, provenance, read_records, write_text

MOST_LOST = 0.01  # of kNN, one point
RULE = "largest Spearman over image pairs among walks that lose at most one point of kNN against VICReg, by seed"
KEPT_METRICS = ("spearman_pairs", "kendall_pairs", "spearman_centroid", "knn", "superclass_knn", "label_free")


def select_setting(records: list[dict]) -> tuple[dict, dict]:
    """The record of the selected setting and that of VICReg beside it.

    Args:
        records: of one profile and training set; `read_records` gives them.

    Raises:
        ValueError: where VICReg or every candidate is missing.
    """
    plain = {r["seed"]: r for r in records if (r["method"], r["variant"]) == ("vicreg", "default")}
    if not plain:
        raise ValueError("no VICReg among the records of the search: train it first, with the same seed")
    walks = _walks(records, plain)
    allowed = [r for r in walks if r["metrics"]["knn"] >= plain[r["seed"]]["metrics"]["knn"] - MOST_LOST]
    if not allowed:
        raise ValueError(f"none of {len(walks)} walks loses at most {MOST_LOST:.0%} of kNN: search elsewhere")
    best = max(allowed, key=lambda r: r["metrics"]["spearman_pairs"])
    return best, plain[best["seed"]]


def fields_of(record: dict) -> dict:
    """What a record's setting says beyond its profile and method, without what changes nothing or names the run."""
    preset, now = configure(record["method"], record["profile"]).to_dict(), Config().to_dict() | record["config"]
    told = [name for name in preset if not may_differ(name, "row") and name != "data"]
    return {name: now[name] for name in told if now[name] != preset[name]}


def selection_of(records: list[dict]) -> dict:
    """What is stored of the selected setting: rule, fields, flags, and its validation scores beside VICReg's."""
    best, plain = select_setting(records)
    fields = fields_of(best)
    return {
        "rule": RULE,
        "trials": len(_walks(records, {plain["seed"]: plain})),
        "method": best["method"],
        "variant": best["variant"],
        "fields": fields,
        "flags": shlex.join(spelled(fields)),
        "validation": {"entry": _shown(best), "vicreg": _shown(plain)},
        "command": command_line("study select-pairing"),
        **provenance(),
    }


def main(results: str = "figures/results", profile: str = "search", data: str = "cifar100") -> None:
    """Select the pairing's setting from the records of a search and store it.

    Args:
        results: folder of run records; the selected setting is written into it.
        profile: of the search.
        data: training set of the search.
    """
    entry = selection_of(groups(read_records(results)).get((profile, data), []))
    name = "entry" if profile == "search" else f"entry-{profile}"
    write_text(Path(results) / f"{name}.json", json.dumps(entry, indent=1) + "\n")
    settings = f"--method {entry['method']} --variant {entry['variant']} {entry['flags']}"
    print(f"{entry['variant']}, of {entry['trials']} trials: {settings}")


def _walks(records: list[dict], plain: dict[int, dict]) -> list[dict]:
    """Records of walks, no controls, that differ from VICReg of the same seed in their pairing alone."""
    walks = [r for r in records if r["method"] == "sag-vicreg" and r["config"]["pairs"] == "walk"]
    plain = {seed: record["config"] for seed, record in plain.items()}
    return [r for r in walks if r["seed"] in plain and not differing(plain[r["seed"]], r["config"], "pairing")]


def _shown(record: dict) -> dict[str, float]:
    return {name: record["metrics"][name] for name in KEPT_METRICS}
