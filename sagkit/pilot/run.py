"""The pilot of a folder of images, without labels: train, embed, and report structure, look-alikes, anomalies, cost.

    sagkit pilot my/photos --out runs/pilot --minutes 10
    sagkit pilot --demo --out runs/pilot

    broken files, near duplicates -> estimate -> SAG-VICReg -> embedding.npz -> neighbours, anomalies -> report.html

[K] Class folders, if there are any, are used to score the encoder and not to train it. What can be checked is checked
before any work. Every file is written whole as soon as its content is known, so that a later failure costs only what
comes after: the same command goes on from there, and trains nothing twice.

Where no encoder is given, one is trained here, and the one that is stored beside the kit's records, if it is there,
looks at the images, too. The better of the two is used and the page says which: better by precision@10 where there are
class folders, else by the label-free score.
"""

from __future__ import annotations

import difflib
import tempfile
import warnings
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sagkit.data.files import write_text
from sagkit.data.folder import arrange, list_images, printable
from sagkit.data.load import ImageSet, load_folder
from sagkit.metrics.evaluate import label_free
from sagkit.metrics.local import Index, precision_at
from sagkit.model import extract_features
from sagkit.pilot.anomaly import auroc, picture_scores
from sagkit.pilot.budget import check_length, train_within
from sagkit.pilot.duplicates import near_duplicates
from sagkit.pilot.embedding import Embedding, save_embedding, write_neighbors, write_scores
from sagkit.pilot.network import STORED, device_of, network, untrained
from sagkit.pilot.page import Findings, Learnt, findings_page
from sagkit.pilot.photos import ODD, make_photo_folder
from sagkit.train.doctor import examine, examine_run
from sagkit.train.timing import Stopwatch

LEAST_IMAGES = 32
MINUTES = 10.0  # of training, unless told
STRUCTURE_IMAGES, RESAMPLINGS = 1000, 200  # behind the label-free score and its interval
SHOWN = 12  # neighbours stored for each image
NEIGHBORS = 10  # behind precision
DEVICE = "auto"


def check_writable(out: Path) -> None:
    """Refuse an output folder that cannot be written to, before hours are spent.

    Raises:
        ValueError: naming the folder and the reason.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(f"{out} cannot be written to ({error.strerror or error}): choose another --out") from None


def read_folder(folder: Path, size: int | None) -> ImageSet:
    """Images of a folder; files that cannot be read are listed in `unreadable`, and `notes` tells what is passed over.

    Raises:
        ValueError: for fewer images than training needs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report lists every file
        images = load_folder(folder, size=size)
    if len(images) < LEAST_IMAGES:
        told = "".join(f"; {note}" for note in images.notes)
        raise ValueError(f"{folder} holds {len(images)} readable images: a pilot needs {LEAST_IMAGES} or more{told}")
    return images


def check_class(folder: Path, name: str | None) -> None:
    """Refuse a class folder that is not there, before any image is read.

    Raises:
        ValueError: offering the nearest names.
    """
    if name is None or not folder.is_dir():
        return
    there = arrange([printable(file.path) for file in list_images(folder).files]).class_names
    if printable(name) not in there:
        raise ValueError(no_class(name, list(there)))


def no_class(name: str, there: list[str]) -> str:
    """What to say about a class folder that is not there."""
    folded = {one.casefold(): one for one in there}
    near = [folded[one] for one in difflib.get_close_matches(name.casefold(), folded, n=3)]
    told = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(there[:8]) or 'none'}"
    return f"no class folder {name!r} of anomalies: {told}"


def known_odd(images: ImageSet, name: str | None) -> Tensor | None:
    """Which images are known anomalies, bool (N,); None where no class folder is named.

    Raises:
        ValueError: for a class folder that is not there, or holds all images or none that can be read.
    """
    if name is None:
        return None
    if (name := printable(name)) not in images.class_names:
        raise ValueError(no_class(name, list(images.class_names)))
    odd = images.labels == images.class_names.index(name)
    if not 0 < int(odd.sum()) < len(odd):
        raise ValueError(f"{int(odd.sum())} of {len(odd)} readable images lie in {name}: anomalies need both kinds")
    return odd


def ranks(images: ImageSet, odd: Tensor | None) -> int:
    """How many neighbours precision is counted over: ten, or as many as a usual picture has usual others."""
    usual = len(images) - (0 if odd is None else int(odd.sum()))
    return min(NEIGHBORS, usual - 1)


def judge(net: nn.Module, images: ImageSet, features: Tensor, odd: Tensor | None, seed: int) -> dict[str, dict]:
    """Structure, precision@10 of what is no anomaly, and AUROC by score of a network, as far as labels go."""
    found: dict = {"structure": label_free(net, images.images, seed, STRUCTURE_IMAGES, RESAMPLINGS)}
    if images.labels is not None and (k := ranks(images, odd)):
        normal = torch.ones(len(images), dtype=torch.bool) if odd is None else ~odd
        found["precision"] = precision_at(features[normal], images.labels[normal], k)
    if odd is not None:
        found["auroc"] = {kind: auroc(values, odd) for kind, values in scores(net, images, features).items()}
    return found


def scores(net: nn.Module, images: ImageSet, features: Tensor) -> dict[str, Tensor]:
    """Anomaly scores (N,) by name; of raw pixels without those that take a covariance of thousands of pixels."""
    left_out = ("Mahalanobis",) if isinstance(net, nn.Flatten) else ()
    return picture_scores(features, images.images, left_out)


def better(judged: dict[str, dict]) -> str:
    """The name with the highest precision@10 or, without class folders, label-free score; the first of equals."""
    return max(judged, key=lambda name: judged[name].get("precision", judged[name]["structure"]["label_free"]))


class Progress:
    """What happens, line by line, and how long each part takes."""

    def __init__(self, shown: bool):
        self.shown, self.watch = shown, Stopwatch()

    def say(self, words: str) -> None:
        """Print a line, whatever names are in it."""
        if self.shown:
            print(printable(words), flush=True)

    def wrote(self, *paths: Path) -> None:
        """Say what lies on the disk from now on."""
        self.say(f"written: {', '.join(map(str, paths))}")

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Say that a part begins, and time it."""
        self.say(f"{name} ...")
        with self.watch(name):
            yield


def pilot(
    folder: str | Path,
    out: str | Path,
    size: int | None = None,
    odd_class: str | None = None,
    encoder: str | None = None,
    minutes: float = MINUTES,
    epochs: int | None = None,
    seed: int = 0,
    progress: bool = True,
    device: str = DEVICE,
) -> Findings:
    """Run the whole pilot and write embedding.npz, neighbours.csv, anomalies.csv and report.html under `out`.

    Args:
        folder: of images.
        out: made if need be.
        size: pixels the images are scaled to; see `load_folder`.
        odd_class: class folder whose images are known anomalies, for AUROC.
        encoder: use this one and train nothing; see `network`.
        minutes: training time to aim for; 10 epochs are trained even if they take longer.
        epochs: train this many instead.
        seed: of weights, order, views, walks and samples.
        progress: print what happens, with a progress bar.
        device: "auto", "cpu", "cuda".

    Raises:
        ValueError: for a folder without enough images, an unknown class, encoder or device, or an unwritable `out`.
        OSError: where a file cannot be written; those before it are kept.
    """
    folder, out, log = Path(folder), Path(out), Progress(progress)
    check_writable(out)
    check_length(minutes, epochs)
    check_class(folder, odd_class)
    where = device_of(device)
    given = None if encoder is None else Learnt(network(encoder, seed), printable(encoder.rpartition("/")[2]))
    with log.part("reading and decoding"):
        images = read_folder(folder, size)
        odd = known_odd(images, odd_class)
    log.say(f"{len(images):,} images, {len(images.unreadable)} files cannot be read")
    for note in images.notes:
        log.say(note)
    with log.part("near duplicates"):
        groups = near_duplicates(images.images)
    log.say(f"{len(groups)} groups of near duplicates")
    if given is None:
        with log.part("training"):
            run, estimate = train_within(images, out, str(folder), minutes, epochs, seed, progress, device)
        given = Learnt(run.encoder, f"{run.record['config']['encoder']}, trained here", run.record, estimate)
    candidates = {"encoder trained here" if given.record else "encoder given": given}
    if given.record and STORED.is_file():  # an installed wheel has none
        candidates["stored encoder"] = Learnt(network(str(STORED)), f"the kit's stored encoder ({STORED.stem})")
    judged, features = {}, {}
    for name, learnt in candidates.items():
        with log.part(f"embedding, {name}"):
            features[name] = extract_features(learnt.network.to(where), images.images)
            judged[name] = judge(learnt.network, images, features[name], odd, seed)
    chosen = better(judged)
    if len(candidates) > 1:
        log.say(f"the {chosen} is the better one here and is used")
    judged = {"this encoder" if name == chosen else f"{name}, not used": of for name, of in judged.items()}
    learnt, embedding = candidates[chosen], Embedding(features[chosen], images.paths)
    log.wrote(*save_embedding(out / "embedding.npz", embedding))
    with log.part("search"):
        similarity, neighbors = Index(embedding.features).similar(min(SHOWN, len(images) - 1))
        write_neighbors(out / "neighbours.csv", embedding.names, similarity, neighbors)
    log.wrote(out / "neighbours.csv")
    with log.part("anomalies"):
        anomaly = scores(learnt.network, images, embedding.features)
        write_scores(out / "anomalies.csv", embedding.names, anomaly)
    log.wrote(out / "anomalies.csv")
    for name, baseline in {"raw pixels": nn.Flatten(), "untrained network": untrained(learnt.network, seed)}.items():
        if baseline is not None:  # of pixels there is no untrained network
            with log.part(name):
                seen = extract_features(baseline.to(where), images.images)
                judged[name] = judge(baseline, images, seen, odd, seed)
    diagnoses = examine(embedding.features) + (examine_run(learnt.record["log"]) if learnt.record else [])
    found = Findings(
        source=printable(str(folder)),
        images=images,
        duplicates=groups,
        learnt=learnt,
        odd=odd,
        diagnoses=diagnoses,
        seconds=log.watch.read(),
        embedding=embedding,
        similarity=similarity,
        neighbors=neighbors,
        anomaly=anomaly,
        precision_k=ranks(images, odd),
        **{
            kind: {name: of[kind] for name, of in judged.items() if kind in of}
            for kind in ("structure", "precision", "auroc")
        },
    )
    write_text(out / "report.html", findings_page(found))
    log.say(f"report: {out / 'report.html'}")
    return found


def main(
    folder: str = "",
    /,
    *,
    out: str,
    demo: bool = False,
    minutes: float = MINUTES,
    epochs: int | None = None,
    encoder: str | None = None,
    size: int | None = None,
    odd_class: str | None = None,
    seed: int = 0,
    device: str = DEVICE,
) -> None:
    """Look through a folder of images: an encoder trained on it, look-alikes, anomalies, and a report.

    Args:
        folder: folder of images, at any depth.
        out: folder for the report and all that was computed.
        demo: crops of bundled photographs in place of a folder.
        minutes: training time to aim for.
        epochs: train so many epochs instead.
        encoder: train nothing and use this: a file of weights, timm:NAME (needs a network), random:NAME, pixels.
        size: pixels the images are scaled to (64, or 32 for small ones).
        odd_class: class folder of known anomalies, for AUROC.
        seed: of weights, order, views, walks and samples.
        device: auto (a GPU where there is one), cpu, cuda.
    """
    if demo == bool(folder):
        raise ArgumentTypeError("give a folder of images, or --demo")
    if demo:
        check_writable(Path(out))
        folder, odd_class = str(make_photo_folder(Path(out) / "photos", seed=seed)), ODD
    pilot(folder, out, size, odd_class, encoder, minutes, epochs, seed, device=device)
