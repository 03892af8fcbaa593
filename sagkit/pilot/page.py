"""One self-contained HTML page from tables, sentences and pictures: nothing is fetched when it is opened.

Pictures are JPEG data URIs, text is escaped, and the style is a few lines at the top of the page. [K]

----
What a pilot found, and the one page that tells it: data, training, structure, look-alikes, anomalies, cost. [K]"""

from __future__ import annotations

import base64
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from sagkit.data.load import ImageSet
from sagkit.pilot.search import Embedding
from sagkit.train.doctor import Diagnosis
from sagkit.train.timing import peak_memory

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
h2, .lead { border-bottom: 1px solid #b8bec7; padding-bottom: .3rem; } .lead { color: #555; }
table { border-collapse: collapse; margin: .6rem 0; } th, td { padding: .25rem .9rem .25rem 0; text-align: left; }
th { border-bottom: 1px solid #b8bec7; font-weight: 600; } td.n, th.n { text-align: right; }
.strip { display: flex; flex-wrap: wrap; gap: .5rem; margin: .5rem 0 1rem; }
figure { margin: 0; width: 92px; } figure img { width: 92px; height: 92px; object-fit: cover; border-radius: 3px;
  box-shadow: 0 0 0 1px #d5d9df; }
figure.first { margin-right: .8rem; } figure.first img { outline: 3px solid #0072B2; outline-offset: -3px; }
figure.marked img { outline: 3px solid #D55E00; outline-offset: -3px; }
figcaption { font-size: .72rem; line-height: 1.25; color: #555; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.warning { background: #fdf3e7; border-left: 4px solid #D55E00; padding: .5rem .8rem; margin: .6rem 0; }
"""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; kind "warning" or "lead" sets it apart."""
    mark = f' class="{escape(kind)}"' if kind else ""
    return f"<p{mark}>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A table, without a heading where that is empty; floats have three decimals, numbers are set flush right."""
    numeric = [all(row[i] == "" or isinstance(row[i], int | float) for row in rows) for i in range(len(head))]

    def cell(tag: str, value, i: int) -> str:
        text = f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        return f"<{tag}{' class=n' if numeric[i] else ''}>{escape(text)}</{tag}>"

    lines = ["".join(cell("th", name, i) for i, name in enumerate(head))] if any(head) else []
    lines += ["".join(cell("td", value, i) for i, value in enumerate(row)) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def picture(image: Tensor) -> str:
    """A data URI of one image, uint8 (3, H, W), at least 92 pixels wide."""
    drawn = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    if drawn.width < 92:
        drawn = drawn.resize((drawn.width * -(-92 // drawn.width),) * 2, Image.Resampling.NEAREST)
    buffer = BytesIO()
    drawn.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def strip(
    images: Sequence[Tensor], captions: Sequence[Sequence[str]], first: bool = False, marked: Sequence[int] = ()
) -> str:
    """A row of pictures with lines of text below each.

    Args:
        images: uint8 (3, H, W) each.
        captions: lines of text for each; a line too long is cut by the browser and whole in the tooltip.
        first: set the first picture apart, as the query of a search.
        marked: positions framed in orange.
    """
    figures = []
    for i, (image, lines) in enumerate(zip(images, captions, strict=True)):
        kind = "first" if first and i == 0 else "marked" if i in marked else ""
        text = "<br>".join(escape(line) for line in lines)
        tip = escape(" ".join(lines), quote=True)
        figures.append(
            f'<figure class="{kind}" title="{tip}"><img alt="{tip}" src="{picture(image)}">'
            f"<figcaption>{text}</figcaption></figure>"
        )
    return f'<div class="strip">{"".join(figures)}</div>'


def page(title: str, lead: str, sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The whole page from sections, each a heading and its parts of HTML."""
    body = "".join(f"<h2>{escape(heading)}</h2>{''.join(parts)}" for heading, parts in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{paragraph(lead, 'lead')}{body}</body></html>\n"
    )


EXAMPLES, NEIGHBORS = 6, 8  # searches shown, pictures found in each
STRANGEST = 20  # two rows of the page
LISTED = 20  # broken files and duplicate groups named


class Learnt(NamedTuple):
    """Where the encoder comes from: record of its run and seconds foretold, both None where it was given."""

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


def findings_page(found: Findings) -> str:
    """The page as HTML."""
    seen = f"{len(found.images):,} images of {found.source}, seen through {found.learnt.name}."
    sections = [
        ("In short", _short(found)),
        ("Data", _data(found)),
        ("Training", _training(found)),
        ("Structure", _structure(found)),
        ("Look-alikes", _search(found)),
        ("Anomalies", _anomalies(found)),
        ("Cost", _cost(found)),
    ]
    return page("Pilot: what is in this folder", f"{seen} Labels were not used to train.", sections)


def _label(name: str) -> list[str]:
    """File name and, above it, its folder: a thumbnail is too narrow for both in one line."""
    folder, _, file = name.rpartition("/")
    return [folder, file] if folder else [file]


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + "s" * (n != 1)


def _with_interval(structure: dict[str, float]) -> str:
    low, high = structure["label_free_low"], structure["label_free_high"]
    return f"{structure['label_free']:.2f} [{low:.2f}, {high:.2f}]"


def _short(found: Findings) -> list[str]:
    pixels, here = found.structure["raw pixels"], found.structure["this encoder"]
    rows = [
        ["images", f"{len(found.images):,}, {len(found.images.unreadable)} more unreadable, "
         f"{_count(len(found.duplicates), 'group')} of near duplicates"],
        ["label-free structure", f"{_with_interval(here)}, by raw pixels {_with_interval(pixels)} (at most 1)"],
    ]  # fmt: skip
    if found.precision:
        here, pixels = found.precision["this encoder"], found.precision["raw pixels"]
        rows.append(["look-alikes", f"{here:.0%} of ten neighbours share the class folder, by raw pixels {pixels:.0%}"])
    if found.auroc:
        kind = max(found.auroc["this encoder"], key=found.auroc["this encoder"].get)
        pixels = found.auroc["raw pixels"]["neighbours"]
        best = found.auroc["this encoder"][kind]
        rows.append(["anomalies", f"AUROC {best:.2f} ({kind}, the best of three), by raw pixels {pixels:.2f}"])
    rows.append(["warnings", ", ".join(d.name for d in found.diagnoses) or "none"])
    rows.append(["time", f"{sum(found.seconds.values()) / 60:.1f} minutes"])
    return [table(["", ""], rows)]


def _data(found: Findings) -> list[str]:
    images, names = found.images, found.embedding.names
    side, classes = images.images.shape[2], len(images.class_names)
    parts = [paragraph(
        f"{len(images):,} images read, each scaled to {side} x {side} pixels; "
        f"{_count(len(images.unreadable), 'file')} could not be read; "
        f"{_count(len(found.duplicates), 'group')} of near duplicates. "
        + (f"The {classes} class folders are used to score, not to train." if classes else "No class folders.")
    )]  # fmt: skip
    spread = torch.linspace(0, len(images) - 1, min(9, len(images))).long().tolist()
    parts.append(strip([images.images[i] for i in spread], [_label(names[i]) for i in spread]))
    if images.unreadable:
        told = [(name, why.replace(f"{found.source}/", "")) for name, why in images.unreadable[:LISTED]]
        parts.append(table(["unreadable file", "reason"], told))
        parts += _more(len(images.unreadable))
    for group in found.duplicates[:EXAMPLES]:
        shown = group[:NEIGHBORS]
        parts.append(strip([images.images[i] for i in shown], [_label(names[i]) for i in shown]))
    if len(found.duplicates) > EXAMPLES:
        parts.append(paragraph(f"The {EXAMPLES} largest of {len(found.duplicates)} groups are shown."))
    return parts


def _more(count: int) -> list[str]:
    return [paragraph(f"... and {count - LISTED} more.")] if count > LISTED else []


def _training(found: Findings) -> list[str]:
    warned = [paragraph(f"{d.name}: {d.evidence}. Try: {d.remedy}.", "warning") for d in found.diagnoses]
    healthy = [] if warned else [paragraph("The doctor found nothing that looks wrong.")]
    if found.learnt.record is None:
        return [paragraph("Nothing was trained: an encoder was given."), *warned, *healthy]
    config, log = found.learnt.record["config"], found.learnt.record["log"]
    text = (
        f"SAG-VICReg, {config['encoder']}, {config['epochs']} epochs of batches of {config['batch_size']}, "
        f"walks of {config['length']} steps over {config['k']} neighbours. The loss went from {log[0]['loss']:.2f} to "
        f"{log[-1]['loss']:.2f}."
    )
    read = [e for e in log if "label_free" in e]
    rows = [[e["epoch"], e["loss"], e["label_free"]] for e in read]
    return [paragraph(text), table(["epoch", "loss", "label-free structure"], rows), *warned, *healthy]


def _structure(found: Findings) -> list[str]:
    rows = []
    for name, s in found.structure.items():
        interval = f"{s['label_free_low']:.3f} to {s['label_free_high']:.3f}"
        rows.append([name, s["label_free"], interval, *([found.precision[name]] if found.precision else [])])
    head = ["embedding", "label-free structure", "95 % interval", *(["precision@10"] if found.precision else [])]
    text = (
        "Label-free structure: are the images arranged in the same way after each has been recoloured and cropped? It "
        "is the rank correlation of their distances before and after, at most 1; the interval is over images. An "
        "encoder above both lines before it, with intervals that keep apart, has found an arrangement that is owed "
        "neither to colour and frame nor to the network alone. Where colour is what matters, this score misleads."
    )
    more = "Precision@10: of an image's ten nearest, the share that lies in its own class folder."
    return [paragraph(text), *([paragraph(more)] if found.precision else []), table(head, rows)]


def _search(found: Findings) -> list[str]:
    parts = [paragraph("The framed image was searched for; beside it, its most similar others by centred cosine.")]
    copies = {i: set(group) for group in found.duplicates for i in group}
    usual = torch.arange(len(found.images)) if found.odd is None else (~found.odd).nonzero().flatten()
    for i in usual[torch.linspace(0, len(usual) - 1, EXAMPLES + 2).long()[1:-1]].tolist():
        others = [j for j in found.neighbors[i].tolist() if j not in copies.get(i, ())][:NEIGHBORS]
        value = dict(zip(found.neighbors[i].tolist(), found.similarity[i].tolist(), strict=True))
        lines = [[*_label(found.embedding.names[i]), "searched for"]]
        lines += [[*_label(found.embedding.names[j]), f"{value[j]:.2f}"] for j in others]
        parts.append(strip([found.images.images[j] for j in (i, *others)], lines, first=True))
    return [*parts, paragraph("All neighbours: neighbours.csv; features by file name: embedding.npz.")]


def _anomalies(found: Findings) -> list[str]:
    text = "Strangest images by each score, strangest first."
    parts = [paragraph(text if found.odd is None else f"{text} Known anomalies are framed in orange.")]
    for name, values in found.anomaly.items():
        top = values.topk(min(STRANGEST, len(values))).indices.tolist()
        right = "" if found.odd is None else f", {int(found.odd[top].sum())} of {len(top)} known anomalies"
        parts.append(paragraph(f"By {name}{right}:"))
        lines = [[*_label(found.embedding.names[i]), f"{float(values[i]):.2f}"] for i in top]
        marked = [] if found.odd is None else [n for n, i in enumerate(top) if found.odd[i]]
        parts.append(strip([found.images.images[i] for i in top], lines, marked=marked))
    if found.auroc:
        kinds = list(found.anomaly)
        rows = [[name, *(areas.get(kind, "") for kind in kinds)] for name, areas in found.auroc.items()]
        odd, n = int(found.odd.sum()), len(found.odd)
        parts.append(paragraph(f"AUROC, {odd} known anomalies among {n:,} images; 0.5 is chance:"))
        parts.append(table(["embedding", *kinds], rows))
    return [*parts, paragraph("All scores: anomalies.csv.")]


def _cost(found: Findings) -> list[str]:
    rows = [[name, value] for name, value in found.seconds.items()]
    rows.append(["sum", sum(found.seconds.values())])
    memory = peak_memory()["host"] / 2**10
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    text = f"On {device}, {torch.get_num_threads()} threads; at most {memory:.1f} GB of memory."
    if found.learnt.estimate is not None:
        text += f" Training was estimated at {found.learnt.estimate:.0f} s before it began."
    if found.learnt.record is not None:
        text += f" Graph and walks took {found.learnt.record['walk_share']:.1%} of it."
    return [paragraph(text), table(["part", "seconds"], rows)]
