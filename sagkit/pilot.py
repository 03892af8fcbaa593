"""A folder of images, without labels, to a first answer in an afternoon: structure, look-alikes, oddities, cost.

    python -m sagkit.pilot FOLDER --out OUT [--minutes 10] [--encoder PATH | timm:NAME]
    python -m sagkit.pilot --demo --out OUT

    broken files, near duplicates -> estimate -> SAG-VICReg -> embedding.npz -> neighbours, anomalies -> report.html

[K] Class folders, if there are any, are not shown to the training; they are used to score it. Every file is written
whole as soon as it is known, so that a later failure costs only what comes after.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sagkit.anomaly import auroc, knn_anomaly, mahalanobis_anomaly, walk_anomaly
from sagkit.augment import Augmentation, in_bytes, two_views
from sagkit.build import make_fabric, native_precision
from sagkit.checkpoint import write_text
from sagkit.config import Config, configure
from sagkit.data import ImageSet, load_images
from sagkit.doctor import examine, examine_run
from sagkit.metrics.labelfree import structure_score
from sagkit.model import IMAGENET_MEAN, IMAGENET_STD, extract_features, make_encoder
from sagkit.photos import ODD, make_photo_folder
from sagkit.pilotpage import Findings, findings_page
from sagkit.record import load_encoder
from sagkit.retrieve import Index, embed, near_duplicates, precision_at, save_embedding, write_neighbors, write_scores
from sagkit.train import Run, fit
from sagkit.trainer import Trainer

SCORES = {"neighbours": knn_anomaly, "Mahalanobis": mahalanobis_anomaly, "walks": walk_anomaly}
LEAST_EPOCHS, MOST_EPOCHS = 10, 400
LEAST_IMAGES = 32
STRUCTURE_IMAGES, BOOTSTRAP = 400, 100
SHOWN = 12  # neighbours stored for each image


def settings(n: int, out: Path, source: str, epochs: int = LEAST_EPOCHS, seed: int = 0) -> Config:
    """The training of a pilot on n images: network by hardware, batch and neighbours by n."""
    gpu = torch.cuda.is_available()
    batch = max(16, min(256, 2 ** int(math.log2(n / 8))))  # small folders need the steps more than the batch
    return configure(
        "sag-vicreg",
        "laptop",
        data=source,
        encoder="resnet18" if gpu else "resnet10-w16",
        view_size=32,
        batch_size=batch,
        k=max(1, min(10, batch // 10)),
        lr=2e-3,
        epochs=epochs,
        readout_every=max(1, epochs // 3),
        precision=native_precision(),
        seed=seed,
        probe=False,
        results=str(out / "run"),
        runs=str(out / "unfinished"),  # not beside the record: a finished run deletes its checkpoint there
    )


def seconds_per_epoch(config: Config, train: ImageSet, steps: int = 3) -> float:
    """Time an epoch would take, from a few steps of a trainer that is then thrown away; walks included."""
    with tempfile.TemporaryDirectory() as scratch:
        trial = replace(config, results=scratch, runs=scratch, walk_start=0.0, walk_warmup=0.0)
        trainer = Trainer(trial, make_fabric(trial), train)
        index = torch.arange(config.batch_size)
        trainer.module.train()
        float(trainer.step(0, index)["loss"])  # the first pays for allocation
        start = time.perf_counter()
        for step in range(1, steps + 1):
            float(trainer.step(step, index)["loss"])
        return (time.perf_counter() - start) / steps * trainer.steps_per_epoch


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
    """Images of a folder; what cannot be read is in `unreadable` and does not stop it.

    Raises:
        ValueError: for fewer images than training needs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report lists every file
        images = load_images(folder, size=size)
    if len(images) < LEAST_IMAGES:
        raise ValueError(f"{folder} holds {len(images)} readable images: a pilot needs {LEAST_IMAGES} or more")
    return images


def get_encoder(name: str) -> nn.Module:
    """One of our stored encoders by path, or a timm backbone with published weights ("timm:NAME", needs a network)."""
    if name.startswith("timm:"):
        return make_encoder(name, IMAGENET_MEAN, IMAGENET_STD, pretrained=True)
    if not Path(name).is_file():
        raise ValueError(f"no encoder at {name}: give a .safetensors file of a run, or timm:NAME")
    return load_encoder(name)


def compare(encoder: nn.Module, images: ImageSet, odd: Tensor | None, view: int, seed: int):
    """Structure, precision and AUROC of raw pixels, an untrained network and the encoder, by name."""
    torch.manual_seed(seed)
    untrained = make_encoder("resnet10-w16")
    generator = torch.Generator().manual_seed(seed)
    chosen = images.images[torch.randperm(len(images), generator=generator)[:STRUCTURE_IMAGES]]
    views = [in_bytes(v) for v in two_views(chosen, Augmentation(size=view), generator)]
    structure, precision, areas = {}, {}, {}
    for name, f in {
        "raw pixels": lambda x: x.flatten(1).float(),
        "untrained network": lambda x: extract_features(untrained, x),
        "this encoder": lambda x: extract_features(encoder, x),
    }.items():
        structure[name] = structure_score(*map(f, views), bootstrap=BOOTSTRAP, seed=seed)
        features = f(images.images)
        if images.labels is not None:
            usual = torch.ones(len(images), dtype=torch.bool) if odd is None else ~odd
            precision[name] = precision_at(features[usual], images.labels[usual])
        if odd is not None and name != "raw pixels":
            areas[name] = {kind: auroc(score(features), odd) for kind, score in SCORES.items()}
        elif odd is not None:  # a covariance of 12,288 pixels has no meaning here
            areas[name] = {kind: auroc(SCORES[kind](features), odd) for kind in ("neighbours", "walks")}
    return structure, precision, areas


def pilot(
    folder: str | Path,
    out: str | Path,
    minutes: float = 10.0,
    epochs: int | None = None,
    encoder: str | None = None,
    size: int | None = None,
    odd_class: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Findings:
    """Run the whole pilot and write embedding.npz, neighbours.csv, anomalies.csv and report.html under `out`.

    Args:
        folder: of images.
        out: made if need be.
        minutes: training time to aim for; 10 epochs are trained even if they take longer.
        epochs: train so many instead.
        encoder: start from this one and train nothing; see `get_encoder`.
        size: pixels the images are scaled to; see `load_images`.
        odd_class: class folder whose images are known anomalies, for AUROC.
        seed: of weights, order, views, walks and samples.
        progress: print what happens, with a progress bar.

    Raises:
        ValueError: for a folder without enough images, an unknown class or encoder, or an unwritable `out`.
        OSError: where a file cannot be written; those before it are kept.
    """
    out, say, seconds = Path(out), (print if progress else lambda *_: None), {}
    check_writable(out)
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        seconds[name], clock = time.perf_counter() - clock, time.perf_counter()

    images = read_folder(Path(folder), size)
    odd = _known_odd(images, odd_class)
    lap("reading and decoding")
    duplicates = near_duplicates(images.images)
    lap("near duplicates")
    say(
        f"{len(images):,} images, {len(images.unreadable)} files cannot be read, {len(duplicates)} groups of duplicates"
    )
    record, estimate, view = None, None, images.images.shape[2]
    if encoder is None:
        run, view, estimate = train(images, out, str(folder), minutes, epochs, seed, progress)
        network, record, encoder = run.encoder, run.record, f"{run.record['config']['encoder']}, trained here"
        lap("training")
    else:
        network = get_encoder(encoder)
    embedding = embed(network, images.images, images.paths)
    save_embedding(out / "embedding.npz", embedding)
    lap("embedding")
    similarity, neighbors = Index(embedding.features).similar(min(SHOWN, len(images) - 1))
    write_neighbors(out / "neighbours.csv", embedding.names, similarity, neighbors)
    lap("search")
    anomaly = {name: score(embedding.features) for name, score in SCORES.items()}
    write_scores(out / "anomalies.csv", embedding.names, anomaly)
    lap("anomalies")
    structure, precision, areas = compare(network, images, odd, view, seed)
    lap("evaluation")
    diagnoses = examine(embedding.features) + (examine_run(record["log"]) if record else [])
    found = Findings(
        str(folder), images, duplicates, record, encoder, embedding, similarity, neighbors, anomaly,
        structure, precision, areas, odd, diagnoses, seconds, estimate,
    )  # fmt: skip
    write_text(out / "report.html", findings_page(found))
    say(f"report: {out / 'report.html'}")
    return found


def train(
    images: ImageSet, out: Path, source: str, minutes: float, epochs: int | None, seed: int, progress: bool
) -> tuple[Run, int, float]:
    """Train without labels for about `minutes`; the run, the size of its views, and the seconds that were foretold."""
    unlabelled, config = ImageSet(images.images), settings(len(images), out, source, seed=seed)
    per_epoch = seconds_per_epoch(config, unlabelled)
    epochs = epochs or max(LEAST_EPOCHS, min(MOST_EPOCHS, int(60 * minutes / per_epoch)))
    if progress:
        estimate = f"about {epochs * per_epoch / 60:.1f} minutes on this machine"
        print(f"training {config.encoder} for {epochs} epochs: {estimate}")
    config = settings(len(images), out, source, epochs, seed)
    run = fit(config, unlabelled, unlabelled, progress)
    shutil.rmtree(config.runs)  # the finished run's checkpoint was deleted: empty folders
    return run, config.view_size, epochs * per_epoch


def _known_odd(images: ImageSet, name: str | None) -> Tensor | None:
    if name is None:
        return None
    if name not in images.class_names:
        raise ValueError(f"no class folder {name!r} of anomalies: there are {', '.join(images.class_names) or 'none'}")
    return images.labels == images.class_names.index(name)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m sagkit.pilot", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="folder of images, at any depth")
    parser.add_argument("--demo", action="store_true", help="crops of bundled photographs in place of a folder")
    parser.add_argument("--out", required=True, help="folder for the report and all that was computed")
    parser.add_argument("--minutes", type=float, default=10.0, help="training time to aim for")
    parser.add_argument("--epochs", type=int, help="train so many epochs instead")
    parser.add_argument("--encoder", help="start from a stored encoder, or timm:NAME (its weights need a network)")
    parser.add_argument("--size", type=int, help="pixels the images are scaled to (64, or 32 for small ones)")
    parser.add_argument("--odd-class", help="class folder of known anomalies, for AUROC")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args(arguments))
    demo, folder = given.pop("demo"), given.pop("folder")
    if demo == (folder is not None):
        parser.error("give a folder of images, or --demo")
    try:
        if demo:
            check_writable(Path(given["out"]))
            folder = make_photo_folder(Path(given["out"]) / "photos", seed=given["seed"])
            given["odd_class"] = ODD
        pilot(folder, **given)
    except (ValueError, OSError) as error:
        raise SystemExit(f"sagkit.pilot: {error}") from None


if __name__ == "__main__":
    main()
