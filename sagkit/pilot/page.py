"""The report of a pilot: one HTML page of what it means, a map, look-alikes, anomalies, duplicates, data and cost.

Words and layout are `templates/report.html.j2`, which jinja2 fills, escaping all text; `templates/map.js.j2` makes the
map move. What follows are the figures and pictures the page asks for. All pictures lie in one JPEG within the page, so
that nothing is fetched when it is opened, and a thousand images stay below 5 MB: of a larger folder the map shows a
sample, spread evenly, and what is listed. The map is t-SNE of the centred, normalised features. [K]
"""

from __future__ import annotations

import base64
import math
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor, nn

from sagkit.data.load import ImageSet
from sagkit.graph import centre_and_normalize
from sagkit.metrics.local import Index
from sagkit.pilot.anomaly import DEFAULT
from sagkit.pilot.embedding import Embedding
from sagkit.train.doctor import Diagnosis
from sagkit.train.timing import peak_memory

SAMPLES = 12  # images shown of the whole folder
EXAMPLES, NEIGHBORS = 4, 10  # searches shown, pictures found in each
GROUPS, MEMBERS = 60, 8  # duplicates shown
TOP = 20  # images shown of each anomaly score
LISTED = 20  # unreadable files named
MAPPED = 1200  # images on the map at most
TILE, COLUMNS = 64, 32  # pixels of a picture, pictures in a row of the sheet
QUALITY = 72  # of the sheet's JPEG


class Learnt(NamedTuple):
    """Where the encoder comes from: record of its run and seconds estimated, both None where it was given."""

    network: nn.Module
    name: str
    record: dict | None = None
    estimate: float | None = None


@dataclass
class Findings:
    """All that the page shows."""

    source: str
    images: ImageSet
    duplicates: list[list[int]]
    learnt: Learnt
    odd: Tensor | None  # bool (N,), known anomalies
    diagnoses: list[Diagnosis]
    seconds: dict[str, float]
    embedding: Embedding
    similarity: Tensor  # (N, K)
    neighbors: Tensor  # (N, K)
    anomaly: dict[str, Tensor]  # score by name, (N,)
    structure: dict[str, dict[str, float]]  # `evaluate.label_free` by embedding: raw pixels, untrained network, ...
    precision: dict[str, float]  # at `precision_k`, where there are classes
    precision_k: int
    auroc: dict[str, dict[str, float]]  # by embedding and score, where anomalies are known


class Tile(NamedTuple):
    """A picture of the sheet by its position there, its name, a further line, and "first", "marked" or neither."""

    place: int
    name: str
    below: str = ""
    kind: str = ""


def findings_page(found: Findings) -> str:
    """The page as HTML."""
    lists = _lists(found)
    rows = shown_rows(found, lists)
    place = {row: n for n, row in enumerate(rows)}

    def tiles(listed: Iterable[tuple]) -> list[Tile]:
        return [Tile(place[row], found.embedding.names[row], *rest) for row, *rest in listed]

    return (
        templates()
        .get_template("report.html.j2")
        .render(
            found=found,
            folder=Path(found.source).name or found.source,
            images=found.images,
            learnt=found.learnt,
            side=found.images.images.shape[2],
            notes=found.images.notes,
            means=meaning(found),
            steps=next_steps(found),
            sheet=sheet(found.images.images[rows]),
            tile=TILE,
            columns=COLUMNS,
            sheet_rows=-(-len(rows) // COLUMNS),
            data=map_data(found, rows),
            lists={name: [(*head, tiles(listed)) for *head, listed in groups] for name, groups in lists.items()},
            unreadable=[(name, why.replace(f"{found.source}/", "")) for name, why in found.images.unreadable[:LISTED]],
            readouts=_readouts(found),
            structure=_structure(found),
            auroc=[[name, *(areas.get(kind, "") for kind in found.anomaly)] for name, areas in found.auroc.items()],
            cost=[*found.seconds.items(), ("sum", sum(found.seconds.values()))],
            host=_host(),
            default=DEFAULT,
        )
    )


def templates() -> Environment:
    """The page's templates, with the words for counts and the form of figures."""
    env = Environment(
        loader=PackageLoader("sagkit.pilot"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters["figure"] = _figure
    env.globals["count"] = _count
    return env


def above_pixels(found: Findings) -> bool | None:
    """Whether the encoder is clearly better than raw pixels: by precision, or else by the label-free score.

    Clearly: by two standard errors of a share over all images, or by intervals that do not overlap [K]. None where the
    encoder is raw pixels, or there are none to compare with.
    """
    if "raw pixels" not in found.structure or isinstance(found.learnt.network, nn.Flatten):
        return None
    if found.precision:
        here, pixels = (found.precision[name] for name in ("this encoder", "raw pixels"))
        return here - pixels > 2 * math.sqrt(max(here * (1 - here), 1e-9) / len(found.images))
    here, pixels = (found.structure[name] for name in ("this encoder", "raw pixels"))
    return here["label_free_low"] > pixels["label_free_high"]


def meaning(found: Findings) -> list[str]:
    """What was found, in sentences."""
    above, told = above_pixels(found), []
    if found.precision:
        here, pixels = (found.precision[name] for name in ("this encoder", "raw pixels"))
        figure = (
            f"of a picture's {found.precision_k} nearest, {here:.0%} lie in its class folder, by pixels {pixels:.0%}"
        )
    else:
        here, pixels = (found.structure[name]["label_free"] for name in ("this encoder", "raw pixels"))
        figure = f"label-free structure {here:.2f}, of pixels {pixels:.2f} (at most 1)"
    verdict = {
        True: "The encoder is above raw pixels",
        False: "The encoder is not above raw pixels, so that its look-alikes are no better than comparing pixels",
        None: "The pictures are compared by their raw pixels",
    }[above]
    told.append(f"{verdict}: {figure}.")
    copies = sum(len(group) - 1 for group in found.duplicates)
    groups = _count(len(found.duplicates), "group")
    beyond = f"{groups} of near duplicates, {_count(copies, 'picture')} beyond the first of each"
    told.append(f"{beyond}." if copies else "No near duplicates were found.")
    if found.auroc:
        here, pixels = (found.auroc[name][DEFAULT] for name in ("this encoder", "raw pixels"))
        told.append(
            f"Of a known anomaly and a usual picture, the score “{DEFAULT}”, chosen beforehand, puts the anomaly first "
            f"in {here:.0%} of cases, by pixels in {pixels:.0%} (chance is 50%)."
        )
    return told


def next_steps(found: Findings) -> list[str]:
    """What to do now, in sentences."""
    told, trained = [], found.learnt.record is not None
    if above_pixels(found) is False:
        told.append(
            "Give the training more time (--minutes), or an encoder that saw more pictures: --encoder with a file of "
            "weights or timm:NAME. The encoders that are stored in the kit's repository are tried by themselves where "
            "they are there; an installed package has none."
            if trained
            else "Leave --encoder out to train on this folder, or give another one."
        )
    if found.duplicates:
        told.append("Look through the near duplicates before you divide the folder: a copy on both sides flatters.")
    told.append(f"Look at the most anomalous pictures by “{DEFAULT}” first; anomalies.csv ranks all of them.")
    if found.images.unreadable:
        told.append(f"Mend or remove {_count(len(found.images.unreadable), 'file')} that cannot be read.")
    told += [f"{one.name}: {one.evidence}. Try: {one.remedy}." for one in found.diagnoses]
    return told


def shown_rows(found: Findings, lists: dict) -> list[int]:
    """Rows whose pictures are in the page: all of a small folder; else what is listed, and a sample, spread evenly."""
    if len(found.images) <= MAPPED:
        return list(range(len(found.images)))
    listed = {row for groups in lists.values() for *_, entries in groups for row, *_ in entries}
    return sorted(listed | set(_spread(len(found.images), MAPPED)))


def sheet(images: Tensor) -> str:
    """Data URI of one JPEG of all pictures, uint8 (n, 3, H, W), in rows of COLUMNS."""
    whole = Image.new("RGB", (TILE * COLUMNS, TILE * -(-len(images) // COLUMNS)))
    for n, image in enumerate(images):
        drawn = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        if drawn.size != (TILE, TILE):
            scale = Image.Resampling.NEAREST if drawn.width < TILE else Image.Resampling.LANCZOS
            drawn = drawn.resize((TILE, TILE), scale)
        whole.paste(drawn, (n % COLUMNS * TILE, n // COLUMNS * TILE))
    buffer = BytesIO()
    whole.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def map_data(found: Findings, rows: list[int]) -> dict:
    """What the map knows of its pictures: names, places, classes, neighbours among those shown, anomaly scores."""
    features = found.embedding.features[rows]
    similarity, neighbors = Index(features).similar(min(NEIGHBORS + 2, len(rows) - 1))
    x, y = (axis.tolist() for axis in _plane(features).T)
    labels, score = found.images.labels, found.anomaly[DEFAULT]
    return {
        "names": [found.embedding.names[row] for row in rows],
        "x": [round(value, 4) for value in x],
        "y": [round(value, 4) for value in y],
        "near": neighbors.tolist(),
        "similarity": [[round(value, 2) for value in row] for row in similarity.tolist()],
        "classes": list(found.images.class_names),
        "labels": [] if labels is None else labels[rows].tolist(),
        "odd": [] if found.odd is None else found.odd[rows].int().tolist(),
        "score": [round(float(value), 3) for value in score[rows]],
        "rank": (score[None, :] > score[rows][:, None]).sum(dim=1).add(1).tolist(),
        "total": len(found.images),
    }


def _plane(features: Tensor) -> Tensor:
    """Places (n, 2) in [0, 1] by t-SNE, which begins from the first principal components."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    x = centre_and_normalize(features.float()).numpy()
    reduced = PCA(min(30, *x.shape), random_state=0).fit_transform(x)
    spread = reduced[:, :2].std(axis=0).max() or 1.0
    start = (reduced[:, :2] / spread * 1e-4).astype("float32")  # the usual size of a start of t-SNE
    placed = TSNE(init=start, perplexity=min(30, (len(x) - 1) / 3), max_iter=500, random_state=0).fit_transform(reduced)
    low, high = placed.min(axis=0), placed.max(axis=0)
    return torch.from_numpy((placed - low) / (high - low + 1e-9))


def _figure(value) -> str:
    """Floats with two decimals, integers with thousands apart, everything else as it is."""
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def _spread(n: int, most: int) -> list[int]:
    """At most `most` of n positions, evenly spread from the first to the last."""
    return torch.linspace(0, n - 1, min(most, n)).long().tolist()


def _lists(found: Findings) -> dict[str, list[tuple]]:
    """Groups of pictures by section; each group ends in its rows, with what stands below and their kind."""
    return {
        "samples": [([(row,) for row in _spread(len(found.images), SAMPLES)],)],
        "duplicates": [(len(g), [(row,) for row in g[:MEMBERS]]) for g in found.duplicates[:GROUPS]],
        "searches": [(listed,) for listed in _searches(found)],
        "anomalies": list(_anomalies(found)),
    }


def _readouts(found: Findings) -> list[tuple]:
    """Epochs after which structure was measured."""
    log = found.learnt.record["log"] if found.learnt.record else []
    return [(entry["epoch"], entry["loss"], entry["label_free"]) for entry in log if "label_free" in entry]


def _structure(found: Findings) -> list[list]:
    rows = []
    for name, score in found.structure.items():
        interval = f"{score['label_free_low']:.2f} to {score['label_free_high']:.2f}"
        rows.append([name, score["label_free"], interval, *([found.precision[name]] if found.precision else [])])
    return rows


def _searches(found: Findings) -> list[list[tuple]]:
    """Queries spread over the images that are no known anomalies, each with its most similar others, without copies."""
    copies = {i: set(group) for group in found.duplicates for i in group}
    normal = list(range(len(found.images))) if found.odd is None else (~found.odd).nonzero().flatten().tolist()
    strips = []
    for query in (normal[place] for place in torch.linspace(0, len(normal) - 1, EXAMPLES + 2).long()[1:-1].tolist()):
        ranked = zip(found.neighbors[query].tolist(), found.similarity[query].tolist(), strict=True)
        others = [(i, f"{value:.2f}") for i, value in ranked if i not in copies.get(query, ())][:NEIGHBORS]
        strips.append([(query, "searched for", "first"), *others])
    return strips


def _anomalies(found: Findings) -> Iterable[tuple]:
    """Of each score: its name, known anomalies among the images shown (None where none are known), and these."""
    for name, values in found.anomaly.items():
        top = values.topk(min(TOP, len(values))).indices.tolist()
        kinds = ["" if found.odd is None or not found.odd[i] else "marked" for i in top]
        listed = [(i, f"{float(values[i]):.2f}", kind) for i, kind in zip(top, kinds, strict=True)]
        yield name, None if found.odd is None else kinds.count("marked"), listed


def _host() -> dict:
    """Device, threads and peak memory, in GiB, of this process; no memory where it is not known (Windows)."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {"device": device, "threads": torch.get_num_threads(), "memory": peak_memory().get("host", 0) / 2**10}
