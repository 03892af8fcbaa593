"""Does a label-free score order embeddings as their semantic scores do? The study behind `labelfree.structure_score`.

    validity of a score = Spearman, over the embeddings of a zoo, of the score with the primary semantic score

    sagkit study validity --data cifar100
    sagkit study validity --data shapes --train-sets shapes cifar100 --design "clean, changed: distances"

Every score sees images and features, never labels. Designs (views x statistic) are chosen on one half of the zoo and on
validation images, and judged on the other half and on test images against the literature's scores; halves are drawn
between training runs. A design that was chosen in another study (`--design`) is judged on the whole zoo. Intervals
resample embeddings. [K]
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from sagkit.augment import in_bytes, two_views
from sagkit.data.load import ImageSet, load_images
from sagkit.metrics import labelfree
from sagkit.metrics.evaluate import CHANGED, RECOLOURED, STANDARD, references
from sagkit.metrics.labelfree import structure_score
from sagkit.metrics.semantic import rank_correlation
from sagkit.metrics.stats import spearman_brown
from sagkit.show.tables import origin, to_markdown
from sagkit.studies.zoo import Member, distinct, features_print, sides, zoo
from sagkit.train.record import command_line, groups, provenance, read_records, rows_of, stored_encoders, write_record

# Pairs of feature matrices that a design compares.
VIEWS = {
    "two standard views": ("standard0", "standard1"),
    "clean, standard": ("clean", "standard0"),
    "clean, recoloured": ("clean", "recoloured0"),
    "clean, changed": ("clean", "changed0"),
    "two changed views": ("changed0", "changed1"),
}
STATISTICS = {
    "distances": lambda a, b: structure_score(a, b).score,
    "cross-cophenetic": labelfree.cross_cophenetic,
    "cross-cophenetic, Ward": lambda a, b: labelfree.cross_cophenetic(a, b, "ward"),
    "heights of trees": labelfree.tree_agreement,
    "clusters over scales": labelfree.cluster_agreement,
    "diffusion distances": labelfree.diffusion_agreement,
    "shared effective rank": labelfree.shared_rank,
    "distances x clusters": labelfree.guarded,
}
DESIGNS = tuple(f"{views}: {name}" for views in VIEWS for name in STATISTICS)
RIVALS = {
    "RankMe": lambda f: labelfree.rankme(f["clean"]),
    "LiDAR": lambda f: labelfree.lidar(np.stack([f[f"standard{i}"] for i in range(4)])),
    "alpha-ReQ, nearness to 1": lambda f: -abs(labelfree.alpha_req(f["clean"]) - 1),
    "silhouette": lambda f: labelfree.silhouette(f["clean"]),
    "plain cophenetic": lambda f: labelfree.cophenetic(f["clean"]),
    "two standard views: Ward 20": lambda f: labelfree.cluster_agreement(f["standard0"], f["standard1"], (20,)),
    "two standard views: Ward 100": lambda f: labelfree.cluster_agreement(f["standard0"], f["standard1"], (100,)),
}
# What a member's row follows from, beside the member itself: a change of these files begins the study anew.
JUDGES = ("metrics/*.py", "augment.py", "model.py", "data/*.py", "studies/validity.py", "studies/zoo.py")
VIEW_RECIPES = {"standard": (STANDARD, 4), "recoloured": (RECOLOURED, 1), "changed": (CHANGED, 2)}


class JudgedSplit(NamedTuple):
    """A split that members are judged on: images and labels for the semantic score, views for the label-free ones."""

    images: torch.Tensor
    labels: np.ndarray
    reference: np.ndarray
    views: dict[str, torch.Tensor]


def study_folder(cache: str | Path, data: str, n: int, seed: int, splits: dict[str, JudgedSplit]) -> Path:
    """Where finished members of one study lie: another n, seed, other images or other code have another folder."""
    house, digest = Path(__file__).parents[1], hashlib.sha256(f"{data} {n} {seed}".encode())
    for source in sorted(path for place in JUDGES for path in house.glob(place)):
        digest.update(source.read_bytes())
    for split in splits.values():
        digest.update(split.images.numpy().tobytes() + split.labels.tobytes() + split.reference.tobytes())
    return Path(cache) / data / digest.hexdigest()[:16]


def prepare(images: ImageSet, data: str, n: int, seed: int) -> JudgedSplit:
    """Draw n images and their views, the same for all members; `clean` is the images themselves."""
    reference = next(iter(references(data, images.class_names).values()))
    generator = torch.Generator().manual_seed(seed)
    chosen = images.images[torch.randperm(len(images), generator=generator)[:n]]
    views = {"clean": chosen}
    for name, (recipe, count) in VIEW_RECIPES.items():
        drawn = [two_views(chosen, recipe, generator=generator)[0] for _ in range(count)]
        views |= {f"{name}{i}": in_bytes(view) for i, view in enumerate(drawn)}
    return JudgedSplit(images.images, np.asarray(images.labels), reference, views)


def judge_member(member: Member, judged: JudgedSplit, bootstrap: int = 200) -> dict:
    """Semantic score with its interval and its values on two halves of the classes, and every label-free score."""
    h = member.embed(judged.images)
    whole = rank_correlation(h, judged.labels, judged.reference, bootstrap=bootstrap)
    f = {name: np.asarray(member.embed(view), dtype=np.float64) for name, view in judged.views.items()}
    scores = {
        f"{views}: {name}": statistic(f[a], f[b])
        for views, (a, b) in VIEWS.items()
        for name, statistic in STATISTICS.items()
    }
    scores |= {name: rival(f) for name, rival in RIVALS.items()}
    return {
        "semantic": round(whole.spearman, 5),
        "interval": [round(v, 5) for v in whole.spearman_interval],
        "halves": [round(v, 5) for v in class_halves(h, judged)],
        "scores": {name: round(float(np.clip(v, -1e6, 1e6)), 6) for name, v in scores.items()},
    }


def class_halves(h: np.ndarray, judged: JudgedSplit, seed: int = 0) -> list[float]:
    """The semantic score on either half of the classes, drawn at random, the same for all members."""
    classes = np.random.default_rng(seed).permutation(len(judged.reference))
    found = []
    for half in np.array_split(classes, 2):
        rows = np.isin(judged.labels, half)
        found.append(rank_correlation(h[rows], judged.labels[rows], judged.reference, n_pairs=300_000).spearman)
    return found


def validity(scores: np.ndarray, semantic: np.ndarray) -> float:
    """Spearman over embeddings; 0 where one side is constant, or there are fewer than two."""
    return labelfree.spearman(scores, semantic) if len(scores) > 1 else 0.0


def centred_ranks(x: np.ndarray) -> np.ndarray:
    """Ranks within each row of an (R, n) array, about their mean."""
    return rankdata(x, axis=1) - (x.shape[1] + 1) / 2


def row_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation (R,) of each row of a with that of b, both (R, n) about their mean; 0 where one is constant."""
    spread = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), spread, out=np.zeros(len(a)), where=spread > 0)


def choose_design(rows: list[dict]) -> str:
    """The design of largest validity on the first half of the zoo and the validation images."""
    half = [row for row in rows if row["side"] == 0]
    semantic = np.array([row["val"]["semantic"] for row in half])
    return max(DESIGNS, key=lambda d: validity(np.array([row["val"]["scores"][d] for row in half]), semantic))


def ordered(scores: np.ndarray, rows: list[dict]) -> tuple[int, int]:
    """Of the pairs of embeddings whose semantic intervals do not overlap: how many the score orders alike, of all."""
    low, high = np.array([row["test"]["interval"] for row in rows]).T
    above = low[:, None] > high[None, :]
    return int((above & (scores[:, None] > scores[None, :])).sum()), int(above.sum())


def reliability(rows: list[dict]) -> float:
    """Agreement of the semantic score with itself on other classes (Spearman-Brown of halves): what bounds validity."""
    first, second = np.array([row["test"]["halves"] for row in rows]).T
    return spearman_brown(validity(first, second))


def validity_table(record: dict, bootstrap: int = 2000) -> pd.DataFrame:
    """One row per score: validity on the half of choice, on the judging half (on all where the design was chosen in
    another study) with interval over embeddings, difference to the chosen design, trained encoders alone, and the share
    of clearly different pairs in the right order."""
    rows, elsewhere = record["rows"], record.get("design")
    chosen = elsewhere or choose_design(rows)
    first, second = ([row for row in rows if row["side"] == side] for side in (0, 1))
    judging, second = ("all, test", rows) if elsewhere else ("half B, test", second)
    trained = [row for row in rows if row["kind"] == "trained"]
    lead = [f"{views}: distances" for views in VIEWS] + [f"{chosen.split(': ')[0]}: {name}" for name in STATISTICS]
    names = dict.fromkeys([chosen, *lead, *RIVALS])
    generator = np.random.default_rng(0)
    draws = generator.integers(len(second), size=(bootstrap, len(second)))

    def column(part, name, split="test"):
        values = [row[split]["semantic"] if name is None else row[split]["scores"][name] for row in part]
        return np.array(values)

    semantic = column(second, None)
    resampled = centred_ranks(semantic[draws])
    spread = {n: row_correlations(centred_ranks(column(second, n)[draws]), resampled) for n in names}
    shown = {}
    for name in names:
        low, high = np.quantile(spread[name], [0.025, 0.975])
        less, more = np.quantile(spread[chosen] - spread[name], [0.025, 0.975])
        right, clear = ordered(column(rows, name), rows)
        shown[f"**{name}**" if name == chosen else name] = {
            "half A, val": f"{validity(column(first, name, 'val'), column(first, None, 'val')):.2f}",
            judging: f"{validity(column(second, name), semantic):.2f} [{low:.2f}, {high:.2f}]",
            "chosen minus this": "" if name == chosen else f"[{less:+.2f}, {more:+.2f}]",
            "trained only": f"{validity(column(trained, name), column(trained, None)):.2f}" if trained else "none",
            "clear pairs in order": f"{right / max(1, clear):.1%}",
        }
    return pd.DataFrame.from_dict(shown, orient="index").rename_axis("score")


def summary(record: dict) -> str:
    """The table with its caption, as Markdown."""
    rows = record["rows"]
    counts, sizes = Counter(row["kind"] for row in rows), Counter(row["side"] for row in rows)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    clear = ordered(np.zeros(len(rows)), rows)[1]
    judges = "all, for a design chosen on other data" if record.get("design") else "half B"
    return (
        f"{to_markdown(validity_table(record))}\n\n"
        f"Spearman with the semantic score over {len(rows)} embeddings ({kinds}); "
        f"{sizes[0]} in half A, {sizes[1]} in half B; 95 % intervals resample embeddings of {judges}; {clear} pairs "
        f"have semantic intervals apart. Reliability of the semantic score over halves of classes: "
        f"{reliability(rows):.2f}; "
        f"{record['n']} images; {origin(record)}"
    )


def main(
    data: str = "cifar100",
    train_sets: tuple[str, ...] = (),
    design: str = "",
    results: str = "figures/results",
    cache: str = "runs/validity",
    n: int = 800,
    seed: int = 0,
    threads: int = 0,
) -> None:
    """Ask whether a label-free score orders embeddings as their semantic scores do, and store the record.

    Args:
        data: images that embeddings are judged on, with classes and a semantic reference.
        train_sets: data the encoders were trained on; none for `data` itself.
        design: the design to be judged, where another study chose it; empty to choose it on half A.
        results: folder of run records.
        cache: folder of finished members, so that an interrupted study goes on; what was judged by other code, on other
            images, or of an encoder that is another by now, is judged anew.
        n: images behind the label-free scores.
        seed: of images and views.
        threads: of torch; 0 leaves its default.
    """
    if design and design not in DESIGNS:
        raise ValueError(f"no design {design!r}: choose one of {', '.join(DESIGNS)}")
    for (_, train_set), records in groups(read_records(results)).items():
        for runs in rows_of(records).values() if train_set in (train_sets or (data,)) else ():
            stored_encoders(runs)  # a smaller zoo would be another study
    if threads:
        torch.set_num_threads(threads)
    splits = {split: prepare(load_images(data, split), data, n, seed) for split in ("val", "test")}
    reference = splits["val"].images[:2000]
    members = distinct(zoo(results, train_sets or (data,), reference), reference[:50])
    half, rows, folder = sides(members), [], study_folder(cache, data, n, seed, splits)
    for member in members:
        kept = folder / f"{member.name.replace('/', '_')}-{features_print(member, reference[:50]):08x}.json"
        if kept.exists():
            rows.append(json.loads(kept.read_text()))
            continue
        row = {"name": member.name, "kind": member.kind, "run": member.run, "side": half[member.run]}
        row |= {split: judge_member(member, judged) for split, judged in splits.items()}
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_record(kept, row)
        rows.append(row)
        print(f"{len(rows):3d} of {len(members)}  {row['test']['semantic']:+.4f}  {member.name}", flush=True)
    command = command_line("study validity")
    record = {"command": command, "data": data, "n": n, "seed": seed, **provenance()}
    record |= {"design": design} if design else {}
    record["rows"] = rows
    write_record(Path(results) / f"validity/{data}.json", record)
    print(summary(record))
