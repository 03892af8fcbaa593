"""Training on more images than memory should hold: 100,000 of 64 pixels (1.2 GB) from a mapped file and in memory.

    python tests/bench_memory.py [--images 100000]

Each way trains one epoch in a process of its own, on the same random pixels; a third one trains on 2,000 of them, which
shows what model, batch and libraries hold. The mapped one runs a second time under a limit of that plus 1 GB (a memory
cgroup, as containers have), the file's pages counted: it must end, and is as fast as pages can be read again. Seconds
are processor seconds of `Trainer.step`'s thread; resident memory is the peak, and without the file's pages. Written to
figures/results/bench/memory.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import tyro

from sagkit.data import mapped
from sagkit.data.load import ImageSet
from sagkit.train.config import configure
from sagkit.train.record import provenance, write_record

SIDE, FEW, ABOVE = 64, 2_000, 1_000_000_000
CGROUP = Path("/sys/fs/cgroup/memory/sagkit-bench")


def resident() -> tuple[int, int]:
    """Bytes of this process in memory: all of them, and those that no file backs."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))


def train(n: int, in_memory: bool) -> None:
    """One epoch on n images; what it took is printed as JSON."""
    from sagkit.train.trainer import fit

    mapped.IN_MEMORY = 2**62 if in_memory else mapped.IN_MEMORY
    with tempfile.TemporaryDirectory() as place:
        pixels = torch.from_numpy(mapped.scratch((n, 3, SIDE, SIDE), Path(place)))
        generator = torch.Generator().manual_seed(0)
        for part in torch.arange(n).split(mapped.CHUNK):
            pixels[part] = torch.randint(0, 256, (len(part), 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        peak, over = [0, 0], threading.Event()

        def watch():
            while not over.wait(0.2):
                peak[:] = map(max, peak, resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        sizes = {"encoder": "resnet10-w4", "view_size": 16, "batch_size": 256, "epochs": 1, "projector_hidden": 64}
        sizes |= {"projector_out": 64, "resamplings": 0, "readout_every": 0, "threads": 1}
        places = {"results": f"{place}/results", "runs": f"{place}/runs"}
        record = fit(
            configure("sag-vicreg", "laptop", data="random", **sizes, **places),
            ImageSet(pixels),
            ImageSet(pixels[:500].clone()),
            progress=False,
        ).record
        over.set()
        watcher.join()
        steps = n // 256
        told = {"core_seconds": record["core_seconds"], "ms_per_step": 1000 * record["core_seconds"] / steps}
        print(json.dumps(told | {"peak_mb": peak[0] // 10**6, "peak_without_file_mb": peak[1] // 10**6}))


def measured(n: int, in_memory: bool, limit: int | None = None) -> dict:
    """`train` in a process of its own, under a limit of memory where one is given."""

    def confine():
        (CGROUP / "cgroup.procs").write_text(str(os.getpid()))

    if limit:
        CGROUP.mkdir(exist_ok=True)
        (CGROUP / "memory.limit_in_bytes").write_text(str(limit))
    begin = time.perf_counter()
    command = [sys.executable, __file__, "--images", str(n), "--child", "memory" if in_memory else "mapped"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=confine if limit else None, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"signal {-done.returncode}"])[-1]}
    found = json.loads(done.stdout.splitlines()[-1]) | {"wall_seconds": round(time.perf_counter() - begin, 1)}
    if limit:
        held = int((CGROUP / "memory.max_usage_in_bytes").read_text())
        found |= {"limit_mb": limit // 10**6, "held_mb": held // 10**6}
    return found


def main(images: int = 100_000, child: str = "", out: Path = Path("figures/results/bench/memory.json")) -> None:
    """Measure and record."""
    if child:
        return train(images, child == "memory")
    found = {"few": measured(FEW, True), "memory": measured(images, True), "mapped": measured(images, False)}
    limit = found["few"]["peak_mb"] * 10**6 + ABOVE
    if CGROUP.parent.is_dir() and os.access(CGROUP.parent, os.W_OK):
        found["mapped, limited"] = measured(images, False, limit)
        CGROUP.rmdir()
    write_record(
        out,
        {
            "command": "python tests/bench_memory.py",
            "images": images,
            "side": SIDE,
            "bytes": images * 3 * SIDE**2,
            "ways": found,
            **provenance(),
        },
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
