"""The report of a pilot: one HTML page of data, training, structure, look-alikes, anomalies and cost.

Its words and layout are `templates/report.html.j2`, which jinja2 fills, escaping all text; what follows are the figures
and pictures the page asks for. Pictures are JPEG data URIs: nothing is fetched when the page is opened. [K]
"""

from __future__ import annotations

import base64
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor, nn

from sagkit.data.load import ImageSet
from sagkit.pilot.embedding import Embedding
from sagkit.train.doctor import Diagnosis
from sagkit.train.timing import peak_memory

SAMPLES = 9  # images shown of the whole folder
EXAMPLES, NEIGHBORS = 6, 8  # searches shown, pictures found in each
TOP = 20  # images shown of each anomaly score
LISTED = 20  # unreadable files named
WIDTH = 92  # pixels of a picture on the page


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
    precision: dict[str, float]  # at 10, where there are classes
    auroc: dict[str, dict[str, float]]  # by embedding and score, where anomalies are known


class Thumbnail(NamedTuple):
    """A picture as a URI, the lines of text below it, and "first" (of a search), "marked" (an anomaly) or neither."""

    source: str
    lines: list[str]
    kind: str = ""


def findings_page(found: Findings) -> str:
    """The page as HTML."""
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            title="Pilot: what is in this folder",
            found=found,
            images=found.images,
            learnt=found.learnt,
            side=found.images.images.shape[2],
            summary=_summary(found),
            samples=_thumbnails(found, _spread(len(found.images), SAMPLES)),
            unreadable=[(name, why.replace(f"{found.source}/", "")) for name, why in found.images.unreadable[:LISTED]],
            duplicates=[_thumbnails(found, group[:NEIGHBORS]) for group in found.duplicates[:EXAMPLES]],
            readouts=_readouts(found),
            structure=_structure(found),
            searches=_searches(found),
            anomalies=_anomalies(found),
            auroc=[[name, *(areas.get(kind, "") for kind in found.anomaly)] for name, areas in found.auroc.items()],
            cost=[*found.seconds.items(), ("sum", sum(found.seconds.values()))],
            host=_host(),
        )
    )


def templates() -> Environment:
    """The page's templates, with the words for counts and the form of figures."""
    found = Environment(
        loader=PackageLoader("sagkit.pilot"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["figure"] = _figure
    found.globals["count"] = _count
    return found


def jpeg_uri(image: Tensor) -> str:
    """A data URI of one image, uint8 (3, H, W), at least as wide as it is shown."""
    drawn = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    if drawn.width < WIDTH:
        drawn = drawn.resize((drawn.width * -(-WIDTH // drawn.width),) * 2, Image.Resampling.NEAREST)
    buffer = BytesIO()
    drawn.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure(value) -> str:
    """Floats with three decimals, integers with thousands apart, everything else as it is."""
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + "s" * (n != 1)


def _spread(n: int, most: int) -> list[int]:
    """At most `most` of n positions, evenly spread from the first to the last."""
    return torch.linspace(0, n - 1, min(most, n)).long().tolist()


def _thumbnails(found: Findings, rows: Iterable[int], below: Iterable[str] = (), kinds: dict[int, str] | None = None):
    """Images by row, each under its folder and file name, which are too long for one line.

    Args:
        found: of the pilot.
        rows: of the images.
        below: a further line each.
        kinds: of `Thumbnail`, by row.
    """
    rows, below = list(rows), list(below)
    lines = [[part for part in found.embedding.names[i].rpartition("/")[::2] if part] for i in rows]
    return [
        Thumbnail(jpeg_uri(found.images.images[i]), [*lines[n], *below[n : n + 1]], (kinds or {}).get(i, ""))
        for n, i in enumerate(rows)
    ]


def _summary(found: Findings) -> list[tuple[str, str]]:
    def with_interval(name: str) -> str:
        score = found.structure[name]
        return f"{score['label_free']:.2f} [{score['label_free_low']:.2f}, {score['label_free_high']:.2f}]"

    groups = _count(len(found.duplicates), "group")
    rows = [
        (
            "images",
            f"{len(found.images):,}, {len(found.images.unreadable)} more unreadable, {groups} of near duplicates",
        ),
        (
            "label-free structure",
            f"{with_interval('this encoder')}, by raw pixels {with_interval('raw pixels')} (at most 1)",
        ),
    ]
    if found.precision:
        here, pixels = found.precision["this encoder"], found.precision["raw pixels"]
        rows.append(("look-alikes", f"{here:.0%} of ten neighbours share the class folder, by raw pixels {pixels:.0%}"))
    if found.auroc:
        here, pixels = found.auroc["this encoder"], found.auroc["raw pixels"]["neighbours"]
        kind = max(here, key=here.get)
        rows.append(("anomalies", f"AUROC {here[kind]:.2f} ({kind}, the best of three), by raw pixels {pixels:.2f}"))
    rows.append(("warnings", ", ".join(d.name for d in found.diagnoses) or "none"))
    rows.append(("time", f"{sum(found.seconds.values()) / 60:.1f} minutes"))
    return rows


def _readouts(found: Findings) -> list[tuple]:
    """Epochs after which structure was measured."""
    log = found.learnt.record["log"] if found.learnt.record else []
    return [(entry["epoch"], entry["loss"], entry["label_free"]) for entry in log if "label_free" in entry]


def _structure(found: Findings) -> list[list]:
    rows = []
    for name, score in found.structure.items():
        interval = f"{score['label_free_low']:.3f} to {score['label_free_high']:.3f}"
        rows.append([name, score["label_free"], interval, *([found.precision[name]] if found.precision else [])])
    return rows


def _searches(found: Findings) -> list[list[Thumbnail]]:
    """Queries spread over the images that are no known anomalies, each with its most similar others, without copies."""
    copies = {i: set(group) for group in found.duplicates for i in group}
    normal = list(range(len(found.images))) if found.odd is None else (~found.odd).nonzero().flatten().tolist()
    strips = []
    for query in (normal[place] for place in torch.linspace(0, len(normal) - 1, EXAMPLES + 2).long()[1:-1].tolist()):
        ranked = zip(found.neighbors[query].tolist(), found.similarity[query].tolist(), strict=True)
        others = [(i, value) for i, value in ranked if i not in copies.get(query, ())][:NEIGHBORS]
        below = ["searched for", *(f"{value:.2f}" for _, value in others)]
        strips.append(_thumbnails(found, [query, *(i for i, _ in others)], below, {query: "first"}))
    return strips


def _anomalies(found: Findings) -> list[tuple[str, int | None, list[Thumbnail]]]:
    """Of each score: its name, known anomalies among the images shown (None where none are known), and these."""
    rows = []
    for name, values in found.anomaly.items():
        top = values.topk(min(TOP, len(values))).indices.tolist()
        marked = {} if found.odd is None else {i: "marked" for i in top if found.odd[i]}
        shown = _thumbnails(found, top, [f"{float(values[i]):.2f}" for i in top], marked)
        rows.append((name, None if found.odd is None else len(marked), shown))
    return rows


def _host() -> dict:
    """Device, threads and peak memory, in GiB, of this process; no memory where it is not known (Windows)."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {"device": device, "threads": torch.get_num_threads(), "memory": peak_memory().get("host", 0) / 2**10}
