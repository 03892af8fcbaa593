"""Tables from run records: mean and spread over seeds, one row per method and variant; differences paired by seed.

    sagkit report                          print every table of a folder of records
    sagkit report --cost                   and what each row cost to train; --images, --batch, --price
    sagkit report --reevaluate             first rewrite the metrics of records with a stored encoder
    ... --reevaluate --resamplings 1000    and give those that left them out their probes and intervals

Intervals are Student's t over seeds at 95 %, given from three seeds on; they speak of these classes only. [K]
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from sagkit.metrics.stats import Summary
from sagkit.show.tables import to_markdown
from sagkit.studies.cost import costs, extrapolated
from sagkit.train.config import Config, command_of
from sagkit.train.record import (
    command_beside,
    core_seconds,
    groups,
    matching_row,
    pairs_by_seed,
    provenance,
    read_records,
    rows_of,
    stored_encoder,
    trained,
    write_record,
)

COLUMNS = {
    "spearman_pairs": "Spearman pairs",
    "kendall_pairs": "Kendall pairs",
    "spearman_centroid": "Spearman centroids",
    "kendall_centroid": "Kendall centroids",
    "spearman_pairs_superclass": "Spearman pairs, superclass",
    "knn": "kNN %",
    "linear": "linear %",
    "superclass_knn": "superclass kNN %",
    "label_free": "label-free",
}
UNSEEN = {  # of the classes that were left out of training
    "unseen_spearman_pairs": "Spearman pairs",
    "unseen_kendall_pairs": "Kendall pairs",
    "unseen_knn": "kNN %",
    "unseen_superclass_knn": "superclass kNN %",
    "unseen_retrieval": "retrieval %",
    "unseen_superclass_retrieval": "superclass retrieval %",
}
SHOWN = ("method", "variant", "profile", "train_set", "seed", "config", "metrics", "core_seconds", "commit")
SHOWN += ("processor", "evaluated_on")  # what a table cannot do without
COST = ("parameters", "walk_share", "images_per_second", "seconds")  # nor what it cost
PROBES = {"linear", "superclass_linear"}
PERCENT = {"knn", "superclass_knn"} | PROBES | {key for key, title in UNSEEN.items() if title.endswith("%")}


def method_table(records: list[dict], columns: dict[str, str] = COLUMNS) -> pd.DataFrame:
    """One row per method and variant of records that share profile and training set; text cells.

    Args:
        records: of one profile and training set.
        columns: titles by name of a record's figure.
    """
    shown = {}
    for name, runs in rows_of(records).items():
        cells = {"seeds": str(len(runs)), "epochs": str(runs[0]["config"]["epochs"])}
        cells["core-min"] = f"{sum(map(core_seconds, runs)) / len(runs) / 60:.1f}"
        for key, title in columns.items():
            values = [run["metrics"][key] for run in runs if key in run["metrics"]]
            cells[title] = Summary.over(values).show(key in PERCENT) if len(values) == len(runs) else "not measured"
        shown[name] = cells
    return pd.DataFrame.from_dict(shown, orient="index").rename_axis("method")


def differences(records: list[dict], baseline: str = "vicreg", columns: dict[str, str] = COLUMNS) -> pd.DataFrame:
    """Each row of the table minus the baseline, paired by seed; see `pairs_by_seed`, and `method_table` for columns."""
    shown, rows = {}, rows_of(trained(records))
    for name, pairs in pairs_by_seed(records, baseline).items():
        cells = {"seeds": str(len(pairs))}
        for key, title in columns.items():
            known = all(key in a and key in b for a, b in pairs)
            change = [a[key] - b[key] for a, b in pairs] if known else []
            cells[title] = Summary.over(change).show(key in PERCENT, signed=True) if known else "not measured"
        shown[f"{name} − {matching_row(name, baseline, rows)}"] = cells
    return pd.DataFrame.from_dict(shown, orient="index").rename_axis("difference, paired by seed")


def caption(records: list[dict]) -> str:
    """Provenance of a table in one line: split, seeds, hardware and commits of its records."""
    commits = sorted({record["commit"][:9] for record in records})
    machines = sorted(
        f"{processor}, {threads or 'all'} thread(s), {precision}"
        for processor, threads, precision in {
            (r["processor"], r["config"]["threads"], r["config"].get("precision")) for r in records
        }
    )
    split = " and ".join(sorted({record["evaluated_on"] for record in records}))
    return (
        f"{split} split; ± is a 95 % t-interval over seeds (these classes only); {'; '.join(machines)}; "
        f"records made at {', '.join(commits)}."
    )


def tables_of(profile: str, train_set: str, records: list[dict]) -> str:
    """One table with its caption, as Markdown; where classes were left out of training, theirs stands below it."""
    chosen = _records_of(profile, train_set, records)
    parts = [method_table(chosen), differences(chosen)]
    if any(UNSEEN.keys() & record["metrics"].keys() for record in chosen):
        parts += [method_table(chosen, UNSEEN), differences(chosen, columns=UNSEEN)]
        parts[2].index.name = "classes left out of training"
    return "\n\n".join([*(to_markdown(part) for part in parts if len(part)), caption(chosen)])


def paired_table(profile: str, train_set: str, baseline: str, records: list[dict]) -> str:
    """Every trained row minus that of a method, or minus one row, as Markdown."""
    chosen = _records_of(profile, train_set, records)
    return f"{to_markdown(differences(chosen, baseline))}\n\n{caption(chosen)}"


def _records_of(profile: str, train_set: str, records: list[dict]) -> list[dict]:
    if chosen := groups(records).get((profile, train_set)):
        return chosen
    raise ValueError(f"no records of profile {profile!r} on {train_set!r}: run sagkit train first")


def rewrite_metrics(
    records: list[dict], data_root: str | None = None, probe: bool = True, resamplings: int | None = None
) -> None:
    """Rewrite the metrics of every record whose encoder is stored; the rest of the record stays.

    Without `probe`, accuracies of linear probes are kept as recorded: they take longer than all other figures together.
    With `resamplings`, a run that left out probes or intervals, as one does on a machine that is dear, is judged with
    them after all, and its setting and command are those that would have done so.
    """
    from sagkit.data.load import load_bank, load_images
    from sagkit.metrics.evaluate import evaluate
    from sagkit.train.record import load_encoder

    banks, images = cache(load_bank), cache(load_images)
    for record in records:
        weights, command, path = stored_encoder(record), command_beside(record), Path(record.pop("path"))
        if weights is None:
            print(f"no encoder beside {path}, its metrics stay: `{command}` makes it")
            continue
        if resamplings is not None:
            config = Config.from_dict(record["config"] | {"probe": probe, "resamplings": resamplings})
            record["config"], record["command"] = config.to_dict(), command_of(config)
        config = record["config"]
        bank = banks(config["data"], config["split"], root=data_root)
        queries = images(config["data"], record["evaluated_on"], root=data_root)
        encoder = load_encoder(weights)
        asked, drawn = config["probe"] and probe, config.get("resamplings", 1000)
        metrics = evaluate(encoder, bank, queries, config["data"], asked, config["seed"], drawn)
        kept = {} if probe else {name: record["metrics"][name] for name in PROBES & record["metrics"].keys()}
        record["metrics"] = {name: round(float(value), 5) for name, value in metrics.items()} | kept
        record["evaluated_commit"] = provenance()["commit"]
        write_record(path, record)
        print(f"evaluated {path}")


def main(
    results: str = "figures/results",
    reevaluate: bool = False,
    probe: bool = True,
    resamplings: int | None = None,
    cost: bool = False,
    images: int | None = None,
    batch: int | None = None,
    price: float | None = None,
) -> None:
    """Print tables from run records.

    Args:
        results: folder of run records.
        cost: also print what each row cost to train, and what it would cost at another size.
        images: training images to extrapolate to; as recorded where not given.
        batch: images per step to extrapolate to; likewise.
        price: of one hour of the machine, in any currency.
        reevaluate: first rewrite the metrics of records whose encoder is stored.
        probe: and with them those of the linear probes, the slowest part.
        resamplings: judge runs that left out probes or intervals with them after all; 1,000 is what a run does.
    """
    records = read_records(results, (*SHOWN, *COST) if cost else SHOWN)
    if not records:
        raise FileNotFoundError(f"no run records under {results}: run sagkit train first")
    if reevaluate:
        rewrite_metrics(records, probe=probe, resamplings=resamplings)
        records = read_records(results)
    for profile, train_set in sorted(groups(records)):
        print(f"{profile} / {train_set}\n\n{tables_of(profile, train_set, records)}\n")
        if cost:
            rows = rows_of(groups(records)[profile, train_set])
            print(f"{to_markdown(costs(rows))}\n\n{extrapolated(rows, images, batch, price)}\n")
