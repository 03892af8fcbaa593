"""Which pictures the pilot calls copies, and what that costs: memory and time.

    SAGKIT_DATA=... python tests/bench_duplicates.py [--pictures 300] [--strange 2000]

Copies: the share of each kind that lands in one group with its original, with all kinds in one folder, beside a 64-bit
hash that allows ten bits; wrong pairs among pictures of which none is a copy, CIFAR-100's and those of drawn series;
memory and time of all 50,000 training pictures, in a process that does nothing else. The record is
figures/results/bench/duplicates.json.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent))
import families

from sagkit.data.load import load_images
from sagkit.pilot.duplicates import hashes, near_duplicates
from sagkit.train.record import provenance, write_record

HASH = 10  # bits of 64 that may differ, a usual limit


def copies_found(images: torch.Tensor) -> dict[str, dict[str, float]]:
    """Recall of each kind of copy, all kinds in one folder: ours, and the hash's between original and copy alone."""
    n, made = len(images), families.copies(images)
    groups = near_duplicates(torch.cat([images, *made.values()]))
    group = {row: k for k, members in enumerate(groups) for row in members}
    own, found = hashes(images, torch.arange(n)), {}
    for m, (kind, copy) in enumerate(made.items(), start=1):
        ours = np.mean([row in group and group[row] == group.get(m * n + row) for row in range(n)])
        bits = (64 - (own * hashes(copy, torch.arange(n))).sum(dim=1)) / 2
        found[kind] = {"ours": round(float(ours), 4), "hash": round(float((bits <= HASH).float().mean()), 4)}
    wrong = sum(a % n != b % n for members in groups for a, b in combinations(members, 2))
    return {"recall": found, "wrong pairs": wrong}


def strangers(images: torch.Tensor) -> dict:
    """Pairs found among pictures of which none is known to be a copy, in all and by group."""
    begin, groups = time.perf_counter(), near_duplicates(images)
    pairs = sum(len(members) * (len(members) - 1) // 2 for members in groups)
    return {
        "pictures": len(images),
        "pairs found": pairs,
        "of pairs": len(images) * (len(images) - 1) // 2,
        "groups": groups,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def whole(name: str, split: str) -> dict:
    """Pairs found in all of an image set, with the most memory that this process ever held, loading included."""
    found = strangers(load_images(name, split).images)
    del found["groups"]
    return found | {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def alone(measure, *given) -> dict:
    """What a measurement gives in a fresh process, whose memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, *given).result()


def main(pictures: int = 300, strange: int = 2000, seed: int = 0, results: str = "figures/results") -> None:
    """Measure, and write the record.

    Args:
        pictures: of which copies are made.
        strange: pictures without known copies.
        seed: of all draws.
        results: folder of records.
    """
    test = load_images("cifar100", "test")
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
    record = {
        "command": "python tests/bench_duplicates.py",
        "threads": torch.get_num_threads(),
        "whole": alone(whole, "cifar100", "train"),
        "pictures": pictures,
        "bits": HASH,
        "copies": copies_found(test.images[order[:pictures]]),
        "strangers": strangers(test.images[order[-strange:]]),
        "series": {f.__name__: strangers(families.series(f.__name__, 40, seed=seed)) for f in families.FAMILIES},
        **provenance(),
    }
    write_record(Path(results) / "bench/duplicates.json", record)


if __name__ == "__main__":
    tyro.cli(main)
