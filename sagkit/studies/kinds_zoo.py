"""A zoo of embeddings of many kinds, on which scores of embeddings can be tried: their features of 1,000 images.

    trained    twelve kinds of training (`trainings`), and the encoders that lie beside records
    untrained  networks with random weights
    hand-made  raw pixels, colour histograms, gradient histograms
    degraded   copies of some: noise, projections to few axes, whitened, collapsed

    sagkit study kinds-zoo
    sagkit study kinds-zoo --runs 12        of the trained ones, the first twelve: one of each kind

Encoders are not committed, and their features are, so that a study of scores needs neither images nor networks. They
are stored turned to their principal axes and rounded in one step for all axes and views, so coarse that LOST of the
variance is lost: distances, and with them every score that a rotation leaves alone, stay what they are, and an axis
that hardly varies costs nothing. [R] reverse water-filling; [K] to store features so, where float16 takes
eight times the place.

What shares its kind is one `family`: seeds, lengths and degraded copies of a kind are no independent evidence. Halves
of the zoo are drawn between families (`halves`), and families are what is resampled. [K]
"""

from __future__ import annotations

import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sagkit import require
from sagkit.augment import channel_statistics, in_bytes
from sagkit.data.files import write_atomically
from sagkit.data.load import ImageSet, load_images
from sagkit.metrics.evaluate import CHANGED, STANDARD
from sagkit.model import Encoder, extract_features, make_encoder
from sagkit.studies.trainings import METHODS, TRAINED_ON, trained, trainings
from sagkit.studies.zoo import gradients, histogram, principal_axes
from sagkit.train.record import command_line, load_encoder, provenance, write_record

NOISE_LEVELS, RANKS = (1.0, 4.0), (1, 2, 6)  # of degraded copies
UNTRAINED = {"resnet10-w8": 2, "resnet10-w16": 2, "vit-d32-l2-p4-avg": 1}  # networks of each architecture
TURNED = 2  # quarter turns: a change that no training of the zoo makes light of, but that of rotation
LOST = 0.02  # share of the variance that storing may lose
VIEWS = {  # recipes; None for the images themselves, and TURNED for those upside down
    "clean": None,
    "standard0": STANDARD,
    "standard1": STANDARD,
    "changed0": CHANGED,
    "turned0": TURNED,
}


class Member(NamedTuple):
    """One embedding: features (n, F) of the same images by view."""

    name: str
    kind: str  # trained, untrained, hand-made or degraded
    family: str
    views: dict[str, np.ndarray]


def shown(images: ImageSet, n: int, seed: int = 0) -> tuple[ImageSet, dict[str, Tensor]]:
    """The images of a set whose features are kept, drawn at random, and what is seen of them in each view."""
    generator = torch.Generator().manual_seed(seed)
    few = images.subset(torch.randperm(len(images), generator=generator)[:n])
    return few, {name: _view(few.images, recipe, generator) for name, recipe in VIEWS.items()}


def _view(images: Tensor, recipe, generator: torch.Generator) -> Tensor:
    if recipe is None:
        return images
    return images.rot90(recipe, (2, 3)) if recipe == TURNED else in_bytes(recipe(images, generator))


def store(path: Path, views: dict[str, np.ndarray]) -> None:
    """Keep features: whole numbers on principal axes, LOST of the variance about the mean lost at most."""
    together = np.concatenate(list(views.values())).astype(np.float64)  # (views n, F)
    mean = together.mean(axis=0)
    values, axes = np.linalg.eigh(np.atleast_2d(np.cov(together.T, bias=True)))
    step = np.sqrt(values.sum()) or 1.0
    while np.minimum(step**2 / 12, values.clip(min=0)).sum() > LOST * values.sum():
        step /= 1.1
    # Axis by axis, the widest first: neighbours are alike, and the archive small.
    codes = {name: np.rint((x - mean) @ axes[:, ::-1] / step).astype(np.int16).T for name, x in views.items()}
    origin = mean @ axes[:, ::-1] / step  # RankMe does not centre
    buffer = io.BytesIO()
    np.savez(buffer, **codes, origin=origin, step=step)
    write_atomically(path, lambda draft: draft.write_bytes(lzma.compress(buffer.getvalue())))


def restore(path: Path) -> dict[str, np.ndarray]:
    """Features (n, F) of each view that `store` kept."""
    with np.load(io.BytesIO(lzma.decompress(path.read_bytes()))) as kept:
        names = [name for name in kept.files if name not in ("origin", "step")]
        return {name: (kept[name].T + kept["origin"]) * kept["step"] for name in names}


def degraded(member: Member, seed: int = 0) -> Iterator[Member]:
    """Copies of an embedding made worse in known ways; of the same family. Means and axes are those of clean images."""
    clean = member.views["clean"]
    mean, spread = clean.mean(axis=0), clean.std(axis=0)
    axes = principal_axes(clean)
    scale = ((clean - mean) @ axes.T).std(axis=0) + 1e-6 * spread.max()

    def copy(name: str, change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Member:
        draws = np.random.default_rng([seed, len(name)])  # noise of one view is independent of another's
        return Member(
            f"{member.name}{name}", "degraded", member.family, {k: change(x, draws) for k, x in member.views.items()}
        )

    for level in NOISE_LEVELS:
        yield copy(f" + noise {level:g}", lambda x, draws, s=level: x + s * spread * draws.normal(size=x.shape))
    for rank in RANKS:
        yield copy(f", rank {rank}", lambda x, draws, k=rank: (x - mean) @ axes[:k].T)
    yield copy(", whitened", lambda x, draws: (x - mean) @ axes.T / scale)
    yield copy(", collapsed", lambda x, draws: mean + 1e-3 * spread * draws.normal(size=x.shape))


def halves(families: list[str]) -> dict[str, int]:
    """Half of the zoo, 0 or 1, by family: they alternate in the order given."""
    return {family: i % 2 for i, family in enumerate(dict.fromkeys(families))}


def pixels(images: Tensor, size: int = 8) -> np.ndarray:
    """Means in [0, 1] over size x size squares, (N, 3 size size)."""
    return F.adaptive_avg_pool2d(images.float() / 255, size).flatten(1).numpy()


HAND_MADE = {"pixels": pixels, "colour histogram": histogram, "gradients": gradients}


class Source(NamedTuple):
    """An embedding before it is applied: uint8 images (N, 3, H, W) to features (N, F); `about` goes to its row."""

    name: str
    kind: str
    family: str
    encode: Callable[[Tensor], np.ndarray]
    about: dict


def row_of(source: Source) -> dict:
    """The row of a record."""
    return {**source.about, "name": source.name, "kind": source.kind, "family": source.family}


def sources(results: Path, cache: Path, images: ImageSet, runs: int) -> Iterator[Source]:
    """All that the zoo holds, what must be trained last."""
    for name, embedding in HAND_MADE.items():
        yield Source(name, "hand-made", name, embedding, {})
    for architecture in UNTRAINED:
        for seed in range(UNTRAINED[architecture]):
            torch.manual_seed(seed)
            encoder = make_encoder(architecture, *channel_statistics(images.images))
            yield Source(f"untrained-{architecture}-s{seed}", "untrained", "untrained", partial(features, encoder), {})
    families = {method: kind for kind, (method, _) in METHODS.items()}
    for path in sorted(results.glob("*/cifar100/*.safetensors")):
        record = json.loads(path.with_suffix(".json").read_text())
        if record["config"]["epochs"]:
            name, about = f"{record['profile']}-{path.stem}", {"stored": str(path.relative_to(results))}
            yield Source(name, "trained", families[record["method"]], partial(features, load_encoder(path)), about)
    for run in trainings()[: runs or None]:
        about = trained(run, images, cache)
        encoder = load_encoder(cache / f"{run.name}.safetensors")
        yield Source(run.name, "trained", run.kind, partial(features, encoder), about)


def features(encoder: Encoder, images: Tensor) -> np.ndarray:
    """Features (N, F) of uint8 images."""
    return extract_features(encoder, images).numpy()


def read_zoo(results: str | Path, data: str) -> tuple[dict, list[Member]]:
    """The record of a zoo and its members as they are stored."""
    record = json.loads((Path(results) / f"kinds-zoo/{data}.json").read_text())
    folder = Path(results) / "kinds-zoo" / data
    return record, [
        Member(row["name"], row["kind"], row["family"], restore(folder / f"{row['name']}.npz.xz"))
        for row in record["rows"]
    ]


def main(
    data: str = "cifar100",
    results: Path = Path("figures/results"),
    cache: Path = Path("runs/zoo"),
    runs: int = 0,
    n: int = 1000,
    threads: int = 1,
) -> None:
    """Train the zoo's encoders on CIFAR-100, as far as they are not there, and store features of all.

    Args:
        data: images whose features are stored.
        results: folder of the record, kinds-zoo/DATA.json, of the features beside it, and of the records whose stored
            encoders join.
        cache: folder of the zoo's encoders; what lies there is not trained again.
        runs: how many are trained, in an order that covers all kinds first; 0 for all.
        n: test images whose features are stored.
        threads: of torch.
    """
    require("runs", runs, "[0, inf)", "0 trains all", whole=True)
    require("n", n, "[100, inf)", "distances of fewer images tell encoders hardly apart", whole=True)
    require("threads", threads, "[1, inf)", "1 is the default", whole=True)
    torch.set_num_threads(threads)
    whole = load_images("cifar100", "train")
    images = whole.subset(torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))[:TRAINED_ON])
    few, seen = shown(load_images(data, "test"), n)
    checksum = zlib.crc32(torch.stack(list(seen.values())).numpy().tobytes())
    place = results / f"kinds-zoo/{data}.json"
    before = json.loads(place.read_text()) if place.exists() else {}
    stored = before["rows"] if before.get("seen") == checksum else []
    about = {"data": data, "n": len(few), "seen": checksum, "classes": few.class_names, "labels": few.labels.tolist()}
    record = {"command": command_line("study kinds-zoo"), **provenance(), **about, "rows": []}
    for source in sources(results, cache, images, runs):
        row = row_of(source)
        path = place.with_suffix("") / f"{source.name}.npz.xz"
        if not path.exists() or row not in stored:
            store(path, {view: source.encode(x) for view, x in seen.items()})
            print(f"{source.name}: {path.stat().st_size:,} bytes", flush=True)
        record["rows"].append(row)
        write_record(place, record)  # what is done is kept
    print(f"{len(record['rows'])} members of the zoo, {sum(p.stat().st_size for p in path.parent.iterdir()):,} bytes")
