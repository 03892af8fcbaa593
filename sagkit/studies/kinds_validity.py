"""Does a label-free score order embeddings as their semantic scores do, whatever trained them? The study behind it.

    validity of a score = Spearman, over the embeddings of a zoo, of the score with the primary semantic score

    sagkit study kinds-validity                   from the stored features of `sagkit study kinds-zoo`
    sagkit study kinds-validity --data shapes     other images, nothing chosen anew

Every score sees features, never labels. Designs are chosen on one half of the families (kinds of training, and of what
is not trained) and judged on the other; intervals resample families of the judging half, differences in pairs.
Consensus designs compare an embedding with what the label-free trainings of *other* families agree on. Degraded copies
count in neither half: they are a table of their own, of what a score does not see. [K]
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from sagkit import require
from sagkit.metrics import labelfree
from sagkit.metrics.evaluate import references
from sagkit.metrics.labelfree import structure_score
from sagkit.metrics.semantic import rank_correlation
from sagkit.metrics.stats import spearman_brown
from sagkit.show.tables import origin, to_markdown
from sagkit.studies.kinds_zoo import HAND_MADE, Member, degraded, halves, read_zoo
from sagkit.studies.trainings import KINDS, OBJECTIVES
from sagkit.studies.validity import validity
from sagkit.train.record import command_line, provenance, write_record

Views = dict[str, np.ndarray]
FAMILIES = (*KINDS, "untrained", *HAND_MADE)  # neighbours in this order are on different halves
LABELLED = {kind for kind, (_, labels, _) in OBJECTIVES.items() if labels}
KNOWN = ("pixels", "colour histogram", "gradients")  # what anybody has
CHANGES = {"standard": "standard0", "changed": "changed0", "turned": "turned0"}
AGREEMENTS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "distances": lambda a, b: structure_score(a, b).score,
    "second order": labelfree.profile_agreement,
    "predicted": labelfree.predicted_agreement,
    "visits": labelfree.visit_agreement,
}
DESIGNS = (
    *(f"clean, {change}: {name}" for change in CHANGES for name in AGREEMENTS),
    *(f"over changes: {name}" for name in AGREEMENTS),
    *(f"clean, {change}: distances beyond pixels" for change in CHANGES),
    *("consensus", "consensus beyond pixels", "consensus x clean, changed", "consensus x over changes"),
)
RIVALS: dict[str, Callable[[Views], float]] = {
    "two standard views: distances": lambda v: structure_score(v["standard0"], v["standard1"]).score,
    "RankMe": lambda v: labelfree.rankme(v["clean"]),
    "LiDAR": lambda v: labelfree.lidar(np.stack([v["standard0"], v["standard1"]])),
    "alpha-ReQ, nearness to 1": lambda v: -abs(labelfree.alpha_req(v["clean"]) - 1),
    "CLID": lambda v: np.nan,  # a sum over the zoo, see `clid_over`
    "total persistence": lambda v: labelfree.total_persistence(v["clean"], 200),
    "silhouette": lambda v: labelfree.silhouette(v["clean"]),
    "plain cophenetic": lambda v: labelfree.cophenetic(v["clean"]),
    "two standard views: cross-cophenetic": lambda v: labelfree.cross_cophenetic(v["standard0"], v["standard1"]),
    "two standard views: Rand index": lambda v: labelfree.cluster_agreement(v["standard0"], v["standard1"], (10, 50)),
    "two standard views: visits": lambda v: labelfree.visit_agreement(v["standard0"], v["standard1"]),
}
LOSS = "training loss, falling"
HARMED = ("VICReg", "SimCLR", "classes", "SAG-VICReg")  # families whose first encoder has degraded copies


def judge(member: Member, labels: np.ndarray, reference: np.ndarray, n: int) -> dict:
    """Semantic score on all images, and on two halves of the classes; label-free scores of one embedding on n."""
    clean, few = member.views["clean"], {name: x[:n] for name, x in member.views.items()}
    scores = {}
    for name, agree in AGREEMENTS.items():
        found = {change: agree(few["clean"], few[view]) for change, view in CHANGES.items()}
        scores |= {f"clean, {change}: {name}": value for change, value in found.items()}
        scores[f"over changes: {name}"] = float(np.mean(list(found.values())))
    scores |= {name: rival(few) for name, rival in RIVALS.items() if name != "CLID"}
    learnt, dimension = labelfree.clid(few["clean"])
    classes = np.random.default_rng(0).permutation(len(reference))
    parts = [np.isin(labels, half) for half in np.array_split(classes, 2)]
    return {
        "semantic": semantic(clean, labels, reference),
        "halves": [semantic(clean[rows], labels[rows], reference) for rows in parts],
        "clid": [round(learnt, 5), round(dimension, 5)],
        "scores": {name: round(float(np.clip(value, -1e6, 1e6)), 6) for name, value in scores.items()},
    }


def semantic(x: np.ndarray, labels: np.ndarray, reference: np.ndarray) -> float:
    """The primary semantic score, of all pairs of images of different classes."""
    return round(rank_correlation(x, labels, reference, bootstrap=1).spearman, 5)


def over_zoo(members: list[Member], n: int) -> dict[str, np.ndarray]:
    """Scores (members,) that compare an embedding with the others: consensus, and distances beyond pixels."""
    clean = [member.views["clean"][:n] for member in members]
    known = [x for x, member in zip(clean, members, strict=True) if member.family in KNOWN]
    families = [member.family for member in members]
    panel = [member.kind == "trained" and member.family not in LABELLED for member in members]
    found = {
        "consensus": labelfree.consensus(clean, families, panel),
        "consensus beyond pixels": labelfree.consensus(clean, families, panel, known),
    }
    for change, view in CHANGES.items():
        beyond = [labelfree.agreement_beyond(m.views["clean"][:n], m.views[view][:n], known) for m in members]
        found[f"clean, {change}: distances beyond pixels"] = np.array(beyond)
    return found


def standardised(values) -> np.ndarray:
    """About their mean, in standard deviations."""
    values = np.asarray(values, dtype=float)
    return (values - values.mean()) / (values.std() or 1.0)


def complete(rows: list[dict], members: list[Member], n: int) -> None:
    """Add to every row the scores that look at the whole zoo."""
    found = over_zoo(members, n)
    found["CLID"] = sum(standardised(column) for column in zip(*(row["clid"] for row in rows), strict=True))
    for change in ("clean, changed", "over changes"):
        agreement = [max(0.0, row["scores"][f"{change}: distances"]) for row in rows]
        found[f"consensus x {change}"] = found["consensus"] * agreement
    for i, row in enumerate(rows):
        row["scores"] |= {name: round(float(values[i]), 6) for name, values in found.items()}


def spearman_with_first(table: np.ndarray) -> np.ndarray:
    """Spearman (S,) of each further row of (S + 1, n) with the first; 0 where one is constant."""
    ranks = rankdata(table, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    ranks /= np.maximum(np.linalg.norm(ranks, axis=1, keepdims=True), 1e-12)
    return ranks[1:] @ ranks[0]


def column(rows: list[dict], name: str) -> np.ndarray:
    """A score, or "semantic", of each row."""
    return np.array([row["semantic"] if name == "semantic" else row["scores"][name] for row in rows])


def on_side(rows: list[dict], side: int) -> list[dict]:
    """The rows of one half of the families, without degraded copies."""
    half = halves(list(FAMILIES))
    return [row for row in rows if row["kind"] != "degraded" and half[row["family"]] == side]


def choose_design(rows: list[dict]) -> str:
    """The design of largest validity on the choosing half."""
    first = on_side(rows, 0)
    return max(DESIGNS, key=lambda name: validity(column(first, name), column(first, "semantic")))


def family_draws(rows: list[dict], draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Positions of the rows of families drawn with replacement; a draw without two families is drawn again."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    of = {family: np.flatnonzero([row["family"] == family for row in rows]) for family in families}
    generator, made = np.random.default_rng(seed), 0
    while made < draws:
        chosen = generator.choice(families, size=len(families))
        if len(set(chosen)) > 1:
            made += 1
            yield np.concatenate([of[family] for family in chosen])


def one_of_each(rows: list[dict], names: list[str], draws: int = 200) -> dict[str, float]:
    """Mean validity of scores over draws of one trained encoder of every kind: how they compare kinds of training."""
    trained = [row for row in rows if row["kind"] == "trained"]
    of = [np.flatnonzero([row["family"] == f for row in trained]) for f in dict.fromkeys(r["family"] for r in trained)]
    generator, table = np.random.default_rng(0), np.stack([column(trained, name) for name in ("semantic", *names)])
    picks = [np.array([generator.choice(members) for members in of]) for _ in range(draws)]
    return dict(zip(names, np.mean([spearman_with_first(table[:, pick]) for pick in picks], axis=0), strict=True))


def within_kinds(rows: list[dict], name: str) -> float:
    """Mean over kinds of training with at least three encoders of the zoo's own of the validity among these."""
    own = [row for row in rows if row["kind"] == "trained" and LOSS in row["scores"]]
    counted = [family for family, count in Counter(row["family"] for row in own).items() if count > 2]
    parts = [[row for row in own if row["family"] == family] for family in counted]
    return float(np.mean([validity(column(p, name), column(p, "semantic")) for p in parts])) if parts else np.nan


def reliability(rows: list[dict]) -> float:
    """Agreement of the semantic score with itself on other classes (Spearman-Brown of halves): what bounds validity."""
    first, second = np.array([row["halves"] for row in rows if row["kind"] != "degraded"]).T
    return spearman_brown(validity(first, second))


def validity_table(record: dict, draws: int = 1000) -> pd.DataFrame:
    """One row per score: validity on the choosing and the judging half (on all where another study chose) with interval
    over families, difference to the chosen design, and among trained encoders, one of each kind."""
    rows, elsewhere = [row for row in record["rows"] if row["kind"] != "degraded"], record.get("design")
    chosen = elsewhere or choose_design(rows)
    judging = rows if elsewhere else on_side(rows, 1)
    meaning, head = column(judging, "semantic"), "all" if elsewhere else "judging half"
    names = list(dict.fromkeys([chosen, *DESIGNS, *RIVALS]))
    table = np.stack([column(judging, name) for name in ("semantic", *names)])
    picks = [spearman_with_first(table[:, pick]) for pick in family_draws(judging, draws)]
    drawn = dict(zip(names, np.transpose(picks), strict=True))
    across, shown = one_of_each(rows, names), {}
    for name in names:
        low, high = np.quantile(drawn[name], [0.025, 0.975])
        less, more = np.quantile(drawn[chosen] - drawn[name], [0.025, 0.975])
        cells = {} if elsewhere else {"choosing half": f"{_validity_on(rows, 0, name):.2f}"}
        cells[head] = f"{validity(column(judging, name), meaning):.2f} [{low:.2f}, {high:.2f}]"
        cells["chosen minus this"] = "" if name == chosen else f"[{less:+.2f}, {more:+.2f}]"
        cells["trained, one of each kind"] = f"{across[name]:.2f}"
        cells["within kinds"] = f"{within_kinds(rows, name):.2f}"
        shown[f"**{name}**" if name == chosen else name] = cells
    return pd.DataFrame.from_dict(shown, orient="index").rename_axis("score")


def _validity_on(rows: list[dict], side: int, name: str) -> float:
    part = on_side(rows, side)
    return validity(column(part, name), column(part, "semantic"))


def failures(record: dict) -> pd.DataFrame:
    """One row per kind of harm: what it does to the semantic score, the chosen design and rivals, as a share of the
    unharmed embedding's own, and how often a score rises where the semantic score falls."""
    rows = record["rows"]
    whole = {row["name"]: row for row in rows}
    chosen = record.get("design") or choose_design(rows)
    names = dict.fromkeys(["semantic", chosen, "clean, changed: distances", "consensus", "RankMe"])
    found: dict[str, dict[str, list]] = {}
    for row in (row for row in rows if row["kind"] == "degraded"):
        of, harm = whole[row["of"]], row["name"].removeprefix(row["of"]).strip(" ,+")
        cells = found.setdefault(harm, {name: [] for name in names})
        for name in names:
            cells[name].append((column([row], name)[0], column([of], name)[0]))
    shown = {}
    for harm, cells in found.items():
        falls = np.array([after < before for after, before in cells["semantic"]])
        shown[harm] = {
            name: f"{np.mean([a / b for a, b in pairs if b]):.2f}"
            + (
                ""
                if name == "semantic"
                else f", wrong {sum(a > b for (a, b), f in zip(pairs, falls, strict=True) if f)}"
            )
            for name, pairs in cells.items()
        }
    return pd.DataFrame.from_dict(shown, orient="index").rename_axis("copies")


def summary(record: dict) -> str:
    """The two tables with their captions, as Markdown."""
    rows = record["rows"]
    counts = Counter(row["kind"] for row in rows)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    families = len({row["family"] for row in rows})
    judges = "all, the design being chosen on other images" if record.get("design") else "the judging half"
    return (
        f"{to_markdown(validity_table(record))}\n\n"
        f"Spearman with the semantic score over {len(rows) - counts['degraded']} embeddings of {families} families "
        f"({kinds}; degraded ones count below alone); 95 % intervals resample families of {judges}. Reliability of the "
        f"semantic score over halves of classes: {reliability(rows):.2f}; {record['n']} images behind the label-free "
        f"scores; {origin(record)}\n\n"
        f"{to_markdown(failures(record))}\n\n"
        f"Scores of harmed copies as a share of the unharmed embedding's own, mean over "
        f'{len({row["of"] for row in rows if row["kind"] == "degraded"})} encoders; "wrong": how often the score rises '
        f"where the semantic score falls."
    )


def main(data: str = "cifar100", results: Path = Path("figures/results"), n: int = 500) -> None:
    """Ask whether label-free scores order embeddings as their semantic scores do, and store the record.

    Args:
        data: whose zoo is judged; the design is chosen on CIFAR-100, and on other images only judged.
        results: folder of the records of zoo and study.
        n: images behind the label-free scores; the semantic score takes all.
    """
    require("n", n, "[100, inf)", "distances of fewer images tell encoders hardly apart", whole=True)
    zoo, members = read_zoo(results, data)
    labels, losses = np.array(zoo["labels"]), {row["name"]: row.get("loss") for row in zoo["rows"]}
    reference = next(iter(references(data, tuple(zoo["classes"])).values()))
    originals = {member.family: member for member in reversed(members) if member.family in HARMED}
    copies = [(copy, original.name) for original in originals.values() for copy in degraded(original)]
    rows = []
    for member, of in [*((member, None) for member in members), *copies]:
        row = {"name": member.name, "kind": member.kind, "family": member.family, **({"of": of} if of else {})}
        row |= judge(member, labels, reference, n)
        if losses.get(member.name) is not None:
            row["scores"][LOSS] = -losses[member.name]
        rows.append(row)
        print(f"{len(rows):3d}  {row['semantic']:+.4f}  {member.name}", flush=True)
    complete(rows, [*members, *(copy for copy, _ in copies)], n)
    record = {"command": command_line("study kinds-validity"), "data": data, "n": n, **provenance()}
    if data != "cifar100":
        record["design"] = choose_design(json.loads((results / "kinds-validity/cifar100.json").read_text())["rows"])
    record["rows"] = rows
    write_record(results / f"kinds-validity/{data}.json", record)
    print(summary(record))
