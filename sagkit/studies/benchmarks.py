"""Tables from benchmark records: training steps, walks, neighbour searches and metrics beside their peers.

    figures/results/bench/training.json, walks.json, metrics.json, notebooks.json, explore.json, pilot.json,
    duplicates.json, memory.json, graphs.json: see tests/bench_*.py

Ratios are of medians of one run on one machine, which every table names. [K]
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from sagkit.show.tables import origin, to_markdown


def read_bench(results) -> dict[str, dict]:
    """Benchmark records under a folder of results, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(Path(results).glob("bench/*.json"))}


def attack_table(found: dict) -> str:
    """What kills, mutated files and random command lines came to, by kind, as Markdown."""
    kills, hostile = found["attack"]["kills"]["jobs"], found["attack"]["hostile"]["kinds"]
    killed = {name: (row["kills"], len(row["differing"]) + len(row["failed"])) for name, row in kills.items()}
    killed["all"] = tuple(map(sum, zip(*killed.values(), strict=True)))
    deaths = pd.DataFrame(killed, index=["killed", "files that differ or runs that fail"]).T.rename_axis("kill -9")
    rows = {
        name: {
            "cases": row["cases"],
            "taken": row["taken"],
            "refused in a line": row["refused"],
            "other": len(row["wrong"]),
            "slowest, s": f"{row['slowest']:.1f}",
        }
        for name, row in hostile.items()
    }
    fuzz = pd.DataFrame.from_dict(rows, orient="index").rename_axis("hostile input")
    peak = f"The process that read them all never held more than {found['attack']['hostile']['peak_mb']:,} MB."
    killed_at = f"Kills were of commit {found['attack']['kills']['commit'][:9]}."
    return f"{to_markdown(deaths)}\n\n{to_markdown(fuzz)}\n\n{peak} {killed_at} {origin(found['attack'])}"


def training_table(found: dict) -> str:
    """Pairs of views per second of each contestant, and the parts of our step, as Markdown."""
    rates, ratios = found["training"]["pairs_per_second"], found["training"]["ratio_to_lightly"]
    race = pd.DataFrame({"pairs/s": rates, "times lightly": ratios}).rename_axis(
        f"batch {found['training']['batch_size']}"
    )
    shares = pd.DataFrame({k: f"{v:.1%}" for k, v in found["training"]["share_of_step"].items()}, index=["share"])
    shares = shares.rename_axis("our step, laptop profile")
    made = f"{found['training']['encoder']}, {found['training']['data']}; {origin(found['training'])}"
    return f"{to_markdown(race)}\n\n{to_markdown(shares)}\n\n{made}"


def walk_table(found: dict) -> str:
    """Nanoseconds per step by contestant and number of nodes, with the ratio to numba's one thread, as Markdown."""
    columns = {}
    for row in found["walks"]["rows"]:
        title = f"{row['nodes']:,} nodes, {row['walks']:,} × {row['steps']}"
        columns[title] = {
            name: f"{value:,.1f} ({row['ratio'][name]:.3g})" for name, value in row["nanoseconds_per_step"].items()
        }
    frame = pd.DataFrame(columns).fillna("not run").rename_axis("ns per step (ratio to numba)")
    absent = {name: reason for row in found["walks"]["rows"] for name, reason in row["absent"].items()}
    notes = [f"{name} could not be measured here ({reason})." for name, reason in absent.items()]
    line = found["walks"]["linearity"]
    notes.append(
        f"Time grows as steps^{line['exponent']} from {line['total_steps'][0]:,} to {line['total_steps'][-1]:,} steps."
    )
    return f"{to_markdown(frame)}\n\n{' '.join(notes)} {origin(found['walks'])}"


def neighbor_table(found: dict) -> str:
    """Seconds, ratio and recall of neighbour searches by number of nodes, as Markdown."""
    columns = {}
    for row in found["walks"]["neighbors"]:
        columns[f"{row['nodes']:,} × {row['width']}, K = {row['k']}"] = {
            name: f"{value:.3g} s ({row['times_ours'][name]:.3g} × ours, recall {row['recall'][name]:.3g})"
            for name, value in row["seconds"].items()
        }
    return f"{to_markdown(pd.DataFrame(columns).rename_axis('neighbour search'))}\n\n{origin(found['walks'])}"


def graph_table(found: dict) -> str:
    """Approximate searches by number of nodes, with recall and memory, and how their time grows, as Markdown."""
    record, columns = found["graphs"], {}
    sizes = sorted({int(nodes) for of in record["entries"].values() for nodes in of})
    for nodes in sizes:
        columns[f"{nodes:,} nodes"] = {
            name: _graph_cell(of.get(str(nodes), {})) for name, of in record["entries"].items()
        }
    frame = pd.DataFrame(columns).rename_axis(f"processor seconds (recall, memory), K = {record['k']}")
    powers = record["exponents"].items()
    frame["grows as"] = pd.Series({name: f"N^{power:.2f}" if power else "not measured" for name, power in powers})
    walked = [
        f"{of[str(nodes)]['walk_core_seconds']:.1f} s on {nodes:,} nodes"
        for of in record["entries"].values()
        for nodes in sizes
        if "walk_core_seconds" in of.get(str(nodes), {})
    ]
    notes = (
        f"Features of {record['width']} dimensions in {record['classes']} classes that spread over {record['spread']} "
        f"each; every search by its first setting that finds 95 % of the exact neighbours of 1,000 rows, index "
        f"included. {record['walks']:,} walks of {record['length']} steps: {', '.join(walked) or 'not measured'}."
    )
    return f"{to_markdown(frame)}\n\n{notes} {origin(record)}"


def _graph_cell(of: dict) -> str:
    if "seconds" not in of:
        expected = f" (about {of['expected_seconds'] / 60:.0f} min expected)" if "expected_seconds" in of else ""
        return f"not measured{expected}"
    return f"{of['core_seconds']:,.1f} ({of['recall']:.3f}, {of['peak_mb'] / 1024:.1f} GiB)"


def gpu_table(found: dict) -> str:
    """Walks, neighbour searches and a training step with its parts on a GPU, as Markdown."""
    record = found["gpu"]
    walks = {
        f"{int(nodes):,} nodes": {name: f"{billions:.3g}" for name, billions in of.items()}
        for nodes, of in record["billion_steps_per_second"].items()
    }
    searches = {
        f"{int(nodes):,} nodes": {name: f"{1000 * seconds:.3g} ms" for name, seconds in of.items()}
        for nodes, of in record["neighbor_seconds"].items()
    }
    step = record["step"]
    shares = {name: f"{share:.1%}" for name, share in step["share_of_step"].items()}
    tables = (
        pd.DataFrame(walks).fillna("not run").rename_axis("billion steps per second"),
        pd.DataFrame(searches).rename_axis("neighbour search"),
        pd.DataFrame(shares, index=["share"]).rename_axis(f"{step['encoder']}, batch {step['batch']}"),
    )
    rate = step["batch"] / step["step_seconds"]
    notes = (
        f"A step trains {rate:,.0f} pairs/s, {step['share_of_encoder']:.0%} of what the encoder's forward and backward "
        f"alone would. Walks: {record['walks']:,} of {record['length']} steps."
    )
    return "\n\n".join([*map(to_markdown, tables), f"{notes} {origin(record)}"])


def metric_table(found: dict) -> str:
    """Seconds of rank correlations beside scipy's, and of a full evaluation by part, as Markdown."""
    record, columns = found["metrics"], {}
    for row in record["rows"]:
        spent = dict(row["seconds"])
        ours, *theirs = spent.values()
        spent["scipy, both"] = sum(theirs)
        columns[f"{row['name']}, {row['pairs']:,}"] = {
            name: f"{seconds:.3g} s ({seconds / ours:.3g} × ours)" for name, seconds in spent.items()
        }
    race = pd.DataFrame(columns).rename_axis("Spearman and Kendall")
    full = pd.DataFrame({name: f"{seconds:.2f}" for name, seconds in record["full"].items()}, index=["seconds"])
    full.insert(len(full.columns), "sum", f"{sum(record['full'].values()):.1f}")
    full = full.rename_axis(f"{record['images']:,} × {record['width']}, {record['classes']} classes")
    drawn, every = record["rows"][0], record["rows"][-1]
    error = max(abs(drawn[name] - every[name]) for name in ("spearman", "kendall"))
    notes = (
        f"Largest disagreement with scipy {max(row['disagreement'] for row in record['rows']):.1e}; the drawn pairs "
        f"differ from all by {error:.1e}. Each kind with {record['resamplings']:,} class resamplings and as many "
        f"relabellings. {origin(record)}"
    )
    return f"{to_markdown(race)}\n\n{to_markdown(full)}\n\n{notes}"


def notebook_table(found: dict) -> str:
    """Wall seconds of every notebook with the load of the machine before it, as Markdown."""
    record = found["notebooks"]
    cells = {name: [f"{s:.0f}", f"{record['load'][name]:.1f}"] for name, s in record["seconds"].items()}
    frame = pd.DataFrame.from_dict(cells, orient="index", columns=["seconds", "load before"])
    data = "with" if record["cifar100"] else "without"
    notes = f"Kernel start and imports included, {data} CIFAR-100, {record['cores']} cores."
    return f"{to_markdown(frame.rename_axis('notebook'))}\n\n{notes} {origin(record)}"


def explore_table(found: dict) -> str:
    """Seconds to the first picture of `sagkit explore`, and from a click or a moved control to the next."""
    record = found["explore"]
    cells = {name: [f"{s['median']:.2f}", f"{s['slowest']:.2f}"] for name, s in record["seconds"].items()}
    frame = pd.DataFrame.from_dict(cells, orient="index", columns=["median s", "slowest s"])
    notes = (
        "In chromium, until the answer is painted; drawn images, features from pixels. Before it began the machine had "
        f"{record['load']:.1f} other processes to run."
    )
    return f"{to_markdown(frame.rename_axis('what is waited for'))}\n\n{notes} {origin(record)}"


def duplicate_table(found: dict) -> str:
    """Recall of copies by kind beside a hash's, and what is found among pictures that are none, as Markdown."""
    record = found["duplicates"]
    recall = record["copies"]["recall"].items()
    cells = {kind: {"found": f"{of['ours']:.2f}", "hash alone": f"{of['hash']:.2f}"} for kind, of in recall}
    frame = pd.DataFrame.from_dict(cells, orient="index").rename_axis("copies by")
    photos, whole = record["strangers"], record["whole"]
    groups = ", ".join(f"{name} {len(of['groups'])}" for name, of in record["series"].items())
    notes = (
        f"{record['pictures']} test images of CIFAR-100 with a copy of every kind in one folder: "
        f"{record['copies']['wrong pairs']} wrong pairs. The hash may differ in {record['bits']} of 64 bits. Of "
        f"{photos['of pairs']:,} pairs of {photos['pictures']:,} other test images, {photos['pairs found']} are called "
        f"copies, CIFAR-100's own copies among them. All {whole['pictures']:,} training images took "
        f"{whole['seconds'] / 60:.0f} minutes on one thread and {whole['peak_memory_mb']:,} MB, torch and the images "
        f"included; of {whole['of pairs'] / 1e6:,.0f} million pairs {whole['pairs found']:,} are called copies. Groups "
        f"found in series of 40 drawn pictures of which none is a copy: {groups}."
    )
    return f"{to_markdown(frame)}\n\n{notes} {origin(record)}"


def anomaly_table(found: dict) -> str:
    """Ranks of planted pictures among 2,000, and AUROC of one class among ten others, by encoder and score."""
    record, rows = found["pilot"], {}
    for encoder, by_score in record["ranks"].items():
        for score, kinds in by_score.items():
            areas = {f"AUROC {name}": f"{area:.2f}" for name, area in record["auroc"][encoder][score].items()}
            rows[encoder, score] = {kind: str(rank) for kind, rank in kinds.items()} | areas
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index = pd.Index([f"{encoder}, {score}" for encoder, score in rows], name="embedding, score")
    notes = (
        "Ranks of one planted picture among 2,000 test images of CIFAR-100; AUROC of 30 pictures of a class among "
        "1,500 of ten others, 0.5 is chance."
    )
    return f"{to_markdown(frame)}\n\n{notes} {origin(record)}"


def look_alike_table(found: dict) -> str:
    """Precision of look-alikes and the label-free score by embedding, as Markdown."""
    record = found["pilot"]
    cells = {name: {k: f"{v:.3f}" for k, v in of.items()} for name, of in record["look-alikes"].items()}
    frame = pd.DataFrame.from_dict(cells, orient="index").rename_axis("embedding")
    return f"{to_markdown(frame)}\n\n1,500 training images of ten classes of CIFAR-100. {origin(record)}"


def memory_table(found: dict) -> str:
    """Time of a step and resident memory of a training on many images, by where they lie, as Markdown."""
    record = found["memory"]
    few, whole = record["ways"]["few"], record["ways"]["memory"]
    names = {"memory": "in memory", "mapped": "mapped file", "mapped, limited": "mapped file, under a limit"}
    rows = {
        names[way]: {
            "ms a step": f"{row['ms_per_step']:.0f}",
            "beside in memory": f"{row['ms_per_step'] / whole['ms_per_step']:.2f}",
            "peak, MB above few images": f"{row.get('held_mb', row['peak_mb']) - few['peak_mb']:,}",
            "of it no file's pages": f"{row['peak_without_file_mb'] - few['peak_without_file_mb']:,}",
        }
        for way, row in record["ways"].items()
        if way in names and "failed" not in row
    }
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("images")
    size = f"{record['images']:,} images of {record['side']} pixels ({record['bytes'] / 1e9:.1f} GB), one epoch"
    return f"{to_markdown(frame)}\n\n{size}; milliseconds of processor time. {origin(record)}"


def bench_table(name: str, found: dict) -> str:
    """The table of that name, or a line that says that its record is missing.

    Raises:
        ValueError: for a name of no table.
    """
    if name not in TABLES:
        raise ValueError(f"no benchmark {name!r}: choose one of {', '.join(TABLES)}")
    record = RECORDS.get(name, name)
    if record not in found:
        alone = {"attack": "make attack", "gpu": "tests/gpu.sh"} | {
            n: f"python tests/bench_{n}.py" for n in ("notebooks", "pilot", "duplicates", "explore", "memory", "graphs")
        }
        command = alone.get(record, "make bench")
        return f"Not measured yet: `{command}` writes the record."
    return TABLES[name](found)


RECORDS = {"neighbors": "walks", **dict.fromkeys(("anomalies", "look-alikes"), "pilot")}
TABLES = {
    "training": training_table,
    "walks": walk_table,
    "neighbors": neighbor_table,
    "graphs": graph_table,
    "gpu": gpu_table,
    "metrics": metric_table,
    "notebooks": notebook_table,
    "explore": explore_table,
    "duplicates": duplicate_table,
    "anomalies": anomaly_table,
    "look-alikes": look_alike_table,
    "attack": attack_table,
    "memory": memory_table,
}
