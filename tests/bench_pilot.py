"""What the pilot finds: odd pictures among usual ones, and look-alikes beside raw pixels.

    SAGKIT_DATA=... python tests/bench_pilot.py

Anomalies: ranks of four planted pictures among 2,000, and AUROC of 30 pictures of a class among 1,500 of ten others.
Look-alikes: precision@10 and the label-free score. The record is figures/results/bench/pilot.json.
"""

from __future__ import annotations

import resource
from pathlib import Path

import torch
import tyro
from torch import nn

from sagkit.data.load import load_images
from sagkit.metrics.evaluate import label_free
from sagkit.metrics.local import precision_at
from sagkit.model import extract_features, make_encoder
from sagkit.pilot.anomaly import auroc, picture_scores
from sagkit.pilot.network import STORED, network
from sagkit.train.record import provenance, write_record

CLASSES = ("skyscraper", "sea")  # the anomalies
USUAL = 150  # pictures of each usual class


def planted(base: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """One odd picture of each kind, uint8 (3, H, W)."""
    side = base.shape[-1]
    squares = ((torch.arange(side)[:, None] // 4 + torch.arange(side) // 4) % 2 * 255).byte().expand(3, side, side)
    red = base.clone()
    red[1:] = 0
    noise = torch.randint(256, base.shape, generator=generator, dtype=torch.uint8)
    return {"black": torch.zeros_like(base), "checkerboard": squares, "noise": noise, "red channel only": red}


def ranks(nets: dict[str, nn.Module], images: torch.Tensor, generator: torch.Generator) -> dict:
    """Rank of each planted picture among the others by score, by encoder."""
    found: dict = {}
    for name, net in nets.items():
        usual = extract_features(net, images[:-1])
        for kind, odd in planted(images[-1], generator).items():
            every = torch.cat([images[:-1], odd[None]])
            features = torch.cat([usual, extract_features(net, odd[None])])
            left_out = ("Mahalanobis",) if name == "raw pixels" else ()
            for score, values in picture_scores(features, every, left_out).items():
                found.setdefault(name, {}).setdefault(score, {})[kind] = int((values > values[-1]).sum()) + 1
    return found


def areas(nets: dict[str, nn.Module], test, train, names: tuple[str, ...]) -> dict:
    """AUROC of 30 pictures of a class among those of ten others, by encoder, score and class."""
    usual = torch.randperm(100, generator=torch.Generator().manual_seed(0)).tolist()
    usual = [c for c in usual if test.class_names[c] not in names][:10]
    rows = torch.cat([(train.labels == c).nonzero()[:USUAL, 0] for c in usual])
    found: dict = {}
    for name in names:
        odd = (test.labels == test.class_names.index(name)).nonzero()[:30, 0]
        images = torch.cat([train.images[rows], test.images[odd]])
        is_odd = torch.arange(len(images)) >= len(rows)
        for encoder, net in nets.items():
            left_out = ("Mahalanobis",) if encoder == "raw pixels" else ()
            for score, values in picture_scores(extract_features(net, images), images, left_out).items():
                found.setdefault(encoder, {}).setdefault(score, {})[name] = round(auroc(values, is_odd), 4)
    return found


def look_alikes(nets: dict[str, nn.Module], train) -> dict:
    """Precision@10 and label-free score of 1,500 pictures of ten classes."""
    usual = torch.randperm(100, generator=torch.Generator().manual_seed(1))[:10]
    few = train.subset(torch.cat([(train.labels == c).nonzero()[:USUAL, 0] for c in usual]))
    return {
        name: {
            "precision@10": round(precision_at(extract_features(net, few.images), few.labels), 4),
            "label-free structure": round(label_free(net, few.images, n=1000)["label_free"], 4),
        }
        for name, net in nets.items()
    }


def main(seed: int = 0, results: str = "figures/results") -> None:
    """Measure, and write the record.

    Args:
        seed: of all draws.
        results: folder of records.
    """
    test, train = load_images("cifar100", "test"), load_images("cifar100", "train")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(test), generator=generator)
    stored = {
        "stored encoder": network(str(STORED)),
        "smaller stored encoder": network(str(STORED.parents[2] / "laptop/cifar100/vicreg-seed0.safetensors")),
    }
    torch.manual_seed(seed)
    nets = stored | {"raw pixels": nn.Flatten(), "untrained network": make_encoder("resnet10-w16")}
    record = {
        "command": "python tests/bench_pilot.py",
        "threads": torch.get_num_threads(),
        "ranks": ranks(nets, test.images[order[:2001]], generator),
        "auroc": areas(nets, test, train, CLASSES),
        "look-alikes": look_alikes(nets, train),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **provenance(),
    }
    write_record(Path(results) / "bench/pilot.json", record)


if __name__ == "__main__":
    tyro.cli(main)
