"""The pilot of a folder of images, without labels: train, embed, and report structure, look-alikes, anomalies, cost.

    sagkit pilot my/photos --out runs/pilot --minutes 10
    sagkit pilot --demo --out runs/pilot

    broken files, near duplicates -> estimate -> SAG-VICReg -> embedding.npz -> neighbours, anomalies -> report.html

[K] Class folders, if there are any, are used to score the encoder and not to train it. Every file is written whole as
soon as its content is known, so that a later failure costs only what comes after.
"""

from __future__ import annotations

import tempfile
import warnings
from argparse import ArgumentTypeError
from pathlib import Path

import torch
from torch import Tensor, nn

from sagkit.data.files import write_text
from sagkit.data.load import ImageSet, load_folder
from sagkit.metrics.evaluate import label_free
from sagkit.metrics.local import Index, precision_at
from sagkit.model import IMAGENET_MEAN, IMAGENET_STD, extract_features, make_encoder
from sagkit.pilot.anomaly import SCORES, auroc
from sagkit.pilot.budget import train_within
from sagkit.pilot.duplicates import near_duplicates
from sagkit.pilot.embedding import embed, save_embedding, write_neighbors, write_scores
from sagkit.pilot.page import Findings, Learnt, findings_page
from sagkit.pilot.photos import ODD, make_photo_folder
from sagkit.train.doctor import examine, examine_run
from sagkit.train.record import load_encoder
from sagkit.train.timing import Stopwatch

LEAST_IMAGES = 32
MINUTES = 10.0  # of training, unless told
STRUCTURE_IMAGES, RESAMPLINGS = 1000, 200  # behind the label-free score and its interval
SHOWN = 12  # neighbours stored for each image


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
    """Images of a folder; files that cannot be read are listed in `unreadable`.

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


def get_encoder(name: str) -> nn.Module:
    """One of our stored encoders by path, or a timm backbone with published weights ("timm:NAME", needs a network)."""
    if name.startswith("timm:"):
        return make_encoder(name, IMAGENET_MEAN, IMAGENET_STD, pretrained=True)
    if not Path(name).is_file():
        raise ValueError(f"no encoder at {name}: give a .safetensors file of a run, or timm:NAME")
    return load_encoder(name)


def known_odd(images: ImageSet, name: str | None) -> Tensor | None:
    """Which images are known anomalies, bool (N,); None where no class folder is named.

    Raises:
        ValueError: for a class folder that is not there.
    """
    if name is None:
        return None
    if name not in images.class_names:
        raise ValueError(f"no class folder {name!r} of anomalies: there are {', '.join(images.class_names) or 'none'}")
    return images.labels == images.class_names.index(name)


def compare_with_baselines(encoder: nn.Module, images: ImageSet, odd: Tensor | None, seed: int) -> dict[str, dict]:
    """Structure, precision and AUROC of raw pixels, an untrained network and the encoder, by field of `Findings`.

    The label-free scores of the three are of the same images in the same augmented views.
    """
    torch.manual_seed(seed)
    networks = {
        "raw pixels": nn.Flatten(),
        "untrained network": make_encoder("resnet10-w16"),
        "this encoder": encoder,
    }
    structure, precision, areas = {}, {}, {}
    for name, network in networks.items():
        structure[name] = label_free(network, images.images, seed, STRUCTURE_IMAGES, RESAMPLINGS)
        features = extract_features(network, images.images)
        if images.labels is not None:
            normal = torch.ones(len(images), dtype=torch.bool) if odd is None else ~odd
            precision[name] = precision_at(features[normal], images.labels[normal])
        if odd is not None:  # a covariance of 64 x 64 x 3 pixels has no meaning
            kinds = [kind for kind in SCORES if name != "raw pixels" or kind != "Mahalanobis"]
            areas[name] = {kind: auroc(SCORES[kind](features), odd) for kind in kinds}
    return {"structure": structure, "precision": precision, "auroc": areas}


def obtain_encoder(images: ImageSet, out: Path, source: str, encoder: str | None, progress: bool, **training) -> Learnt:
    """The encoder that was asked for, or else one trained here; `training` is passed on to `budget.train_within`."""
    if encoder is not None:
        return Learnt(get_encoder(encoder), encoder)
    run, estimate = train_within(images, out, source, progress=progress, **training)
    return Learnt(run.encoder, f"{run.record['config']['encoder']}, trained here", run.record, estimate)


def write_features(network: nn.Module, images: ImageSet, out: Path, watch: Stopwatch) -> dict:
    """Write embedding.npz, neighbours.csv and anomalies.csv; what they hold, by field of `Findings`."""
    with watch("embedding"):
        embedding = embed(network, images.images, images.paths)
        save_embedding(out / "embedding.npz", embedding)
    with watch("search"):
        similarity, neighbors = Index(embedding.features).similar(min(SHOWN, len(images) - 1))
        write_neighbors(out / "neighbours.csv", embedding.names, similarity, neighbors)
    with watch("anomalies"):
        anomaly = {name: score(embedding.features) for name, score in SCORES.items()}
        write_scores(out / "anomalies.csv", embedding.names, anomaly)
    return {"embedding": embedding, "similarity": similarity, "neighbors": neighbors, "anomaly": anomaly}


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
) -> Findings:
    """Run the whole pilot and write embedding.npz, neighbours.csv, anomalies.csv and report.html under `out`.

    Args:
        folder: of images.
        out: made if need be.
        size: pixels the images are scaled to; see `load_images`.
        odd_class: class folder whose images are known anomalies, for AUROC.
        encoder: use this one and train nothing; see `get_encoder`.
        minutes: training time to aim for; 10 epochs are trained even if they take longer.
        epochs: train this many instead.
        seed: of weights, order, views, walks and samples.
        progress: print what happens, with a progress bar.

    Raises:
        ValueError: for a folder without enough images, an unknown class or encoder, or an unwritable `out`.
        OSError: where a file cannot be written; those before it are kept.
    """
    out, watch = Path(out), Stopwatch()
    check_writable(out)
    with watch("reading and decoding"):
        images = read_folder(Path(folder), size)
        odd = known_odd(images, odd_class)
    with watch("near duplicates"):
        groups = near_duplicates(images.images)
    if progress:
        broken = len(images.unreadable)
        print(f"{len(images):,} images, {broken} files cannot be read, {len(groups)} groups of duplicates")
    with watch("training" if encoder is None else "reading the encoder"):
        learnt = obtain_encoder(images, out, str(folder), encoder, progress, minutes=minutes, epochs=epochs, seed=seed)
    seen = write_features(learnt.network, images, out, watch)
    with watch("evaluation"):
        seen |= compare_with_baselines(learnt.network, images, odd, seed)
    diagnoses = examine(seen["embedding"].features) + (examine_run(learnt.record["log"]) if learnt.record else [])
    found = Findings(str(folder), images, groups, learnt, odd, diagnoses, watch.read(), **seen)
    write_text(out / "report.html", findings_page(found))
    if progress:
        print(f"report: {out / 'report.html'}")
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
) -> None:
    """Look through a folder of images: an encoder trained on it, look-alikes, anomalies, and a report.

    Args:
        folder: folder of images, at any depth.
        out: folder for the report and all that was computed.
        demo: crops of bundled photographs in place of a folder.
        minutes: training time to aim for.
        epochs: train so many epochs instead.
        encoder: start from a stored encoder, or timm:NAME (its weights need a network).
        size: pixels the images are scaled to (64, or 32 for small ones).
        odd_class: class folder of known anomalies, for AUROC.
        seed: of weights, order, views, walks and samples.
    """
    if demo == bool(folder):
        raise ArgumentTypeError("give a folder of images, or --demo")
    if demo:
        check_writable(Path(out))
        folder, odd_class = str(make_photo_folder(Path(out) / "photos", seed=seed)), ODD
    pilot(folder, out, size, odd_class, encoder, minutes, epochs, seed)
