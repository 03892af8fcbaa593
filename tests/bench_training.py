"""Training speed beside lightly's example loop: same encoder, batch size and images, alternating in one run.

    make bench        (python tests/bench_training.py [--seconds 20] [--rounds 3])

lightly's side is its VICReg example as its users run it: VICRegTransform in a DataLoader with 2 workers, its loss and
projection head (2 layers of 2048), SGD, float32. Ours is `Trainer.step`. Figures are pairs of views per second, the
median over rounds; a step's parts are timed in the same steps. Pairings are timed apart: graph, walks and walk term
with its gradient, of random features and projections, in processor milliseconds. Written to
figures/results/bench/training.json.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
import tyro
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from lightly.transforms.vicreg_transform import VICRegTransform
from lightning_fabric import Fabric
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_pil_image

from sagkit.data.load import ImageSet, load_images, make_shapes
from sagkit.loss import walk_term
from sagkit.model import make_encoder
from sagkit.pairing import WalkPairing
from sagkit.train.config import configure
from sagkit.train.record import provenance, write_record
from sagkit.train.trainer import Trainer, native_precision

ENCODER, BATCH, WARMUP_STEPS = "resnet10-w16", 512, 2


class Pictures(Dataset):
    """Images as PIL pictures under a transform, as an image-folder data set gives them."""

    def __init__(self, images: ImageSet, transform):
        self.pictures, self.transform = [to_pil_image(image) for image in images.images], transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int):
        return self.transform(self.pictures[index])


def pairs_per_second(steps, batch: int, seconds: float) -> float:
    """Speed of an endless iterator that does one step each time it is advanced."""
    for _ in range(WARMUP_STEPS):
        next(steps)
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        next(steps)
        done += 1
    return done * batch / (time.perf_counter() - begin)


def lightly_steps(images: ImageSet):
    """lightly's VICReg example, one yield per step."""
    encoder = make_encoder(ENCODER)
    head = VICRegProjectionHead(input_dim=encoder.feature_width, hidden_dim=2048, output_dim=2048, num_layers=2)
    model, criterion = torch.nn.Sequential(encoder, head), VICRegLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    pictures = Pictures(images, VICRegTransform(input_size=32))
    loader = DataLoader(pictures, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=2)
    while True:
        for view_a, view_b in loader:
            loss = criterion(model(view_a), model(view_b))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield


def our_steps(images: ImageSet, parts: dict[str, float], **fields):
    """Our training step, one yield per step; the seconds of its parts after warm-up are added to `parts`."""
    with tempfile.TemporaryDirectory() as scratch:
        config = configure(
            "sag-vicreg",
            "laptop",
            encoder=ENCODER,
            batch_size=BATCH,
            walk_start=0.0,
            results=scratch,
            runs=scratch,
            **fields,
        )
        fabric = Fabric(accelerator="cpu", devices=1, precision=native_precision("cpu"))
        trainer = Trainer(config, fabric, images)
        trainer.module.train()
        step = 0
        while True:
            order = torch.randperm(len(images))
            for index in order[: len(order) // BATCH * BATCH].split(BATCH):
                trainer.step(step, index)
                step += 1
                spent = trainer.method.watch.read()
                if step > WARMUP_STEPS:
                    for name, value in spent.items():
                        parts[name] = parts.get(name, 0.0) + value
                yield


def measure(images: ImageSet, seconds: float, rounds: int) -> dict:
    """Alternate the contestants and report speeds, ratios and the parts of our step."""
    parts: dict[str, float] = {}
    contestants = {
        "lightly example": lambda: lightly_steps(images),
        "sagkit, lightly's head and view size": lambda: our_steps(
            images, {}, view_size=32, projector_hidden=2048, projector_out=2048, projector_layers=2
        ),
        "sagkit, laptop profile": lambda: our_steps(images, parts),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, start in contestants.items():
            steps = start()
            speeds[name].append(pairs_per_second(steps, BATCH, seconds))
            steps.close()
            print(f"{name}: {speeds[name][-1]:.0f} pairs/s", flush=True)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    total = sum(parts.values())
    return {
        "pairs_per_second": {name: round(value, 1) for name, value in medians.items()},
        "rounds": {name: [round(v, 1) for v in values] for name, values in speeds.items()},
        "ratio_to_lightly": {name: round(value / medians["lightly example"], 2) for name, value in medians.items()},
        "share_of_step": {name: round(value / total, 4) for name, value in sorted(parts.items())},
    }


PAIRINGS = {"sampled": {}, "expected": {"expected": True}, "expected, null": {"expected": True, "null": 1.0}}


def pairing_milliseconds(queue: int, repeats: int = 10, features: int = 128, width: int = 1024) -> dict[str, float]:
    """Processor time that pairs cost a step, by kind; nodes are the batch and `queue` batches more."""
    draw = torch.Generator().manual_seed(0)
    ha, hb = torch.randn(2, BATCH, features, generator=draw)
    za, zb = (z.requires_grad_() for z in torch.randn(2, BATCH, width, generator=draw))
    bank = torch.randn(queue * BATCH, features, generator=draw) if queue else None
    targets = tuple(torch.randn(2, queue * BATCH, width, generator=draw)) if queue else None
    found = {}
    for name, settings in PAIRINGS.items():
        pairing = WalkPairing(**settings)
        for run in range(repeats + 1):
            if run == 1:  # the first one warms up
                begin = time.process_time()
            walk_term(za, zb, pairing(ha, hb, bank=bank), targets).backward()
        found[name] = round(1000 * (time.process_time() - begin) / repeats, 1)
    return found


def main(seconds: float = 20.0, rounds: int = 3, out: str = "figures/results/bench/training.json") -> None:
    """Run the benchmark and write its record.

    Args:
        seconds: measured per contestant and round, after warm-up.
        rounds: alternations.
        out: the record.
    """
    try:
        images, data = load_images("cifar100", "train", download=False), "cifar100"
    except (ValueError, SystemExit):
        images, data = make_shapes(8192), "shapes"
    setting = {"data": data, "encoder": ENCODER, "batch_size": BATCH, "threads": torch.get_num_threads()}
    found = measure(images, seconds, rounds)
    found["pairing_milliseconds"] = {f"{queue} batches": pairing_milliseconds(queue) for queue in (0, 8)}
    write_record(Path(out), {**setting, "command": "make bench", **found, **provenance()})
    for name, ratio in found["ratio_to_lightly"].items():
        print(f"{name:40s} {found['pairs_per_second'][name]:8.0f} pairs/s   {ratio:.2f} x lightly")
    for name, share in found["share_of_step"].items():
        print(f"  {name:14s} {share:7.2%} of our step")


if __name__ == "__main__":
    tyro.cli(main)
