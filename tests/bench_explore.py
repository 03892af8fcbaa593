"""Seconds to the first picture of `sagkit explore`, and from a click or a moved control to the next one.

    python tests/bench_explore.py [--threads 2]

A folder of 500 drawn images is opened as a reader would, by the command in a process of its own; then anchors are
clicked and K is moved with 512 and with 20,000 images, in chromium, until the browser has painted the answer. The map
has been refined by then, as it has for whoever clicks later. Writes figures/results/bench/explore.json.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import tyro
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from sagkit.data.load import make_shapes
from sagkit.show.explore import make_explorer
from sagkit.show.serve import Server
from sagkit.train.record import provenance, write_record

FIRST, BATCH, MANY = 500, 512, 20_000
CLICKS = 12
# Seconds from an action until the frame after the one in which its answer was put into the page.
ACT = """action => new Promise(done => {
    const root = document.querySelector('.sag'), begun = performance.now();
    new MutationObserver((_, watch) => {
        watch.disconnect();
        requestAnimationFrame(() => requestAnimationFrame(() => done((performance.now() - begun) / 1000)));
    }).observe(root, { attributes: true, attributeFilter: ['data-shown'] });
    eval(action);
})"""
CLICK = "document.querySelectorAll('.sag-node')[{}].dispatchEvent(new MouseEvent('click', {{ bubbles: true }}))"
MOVE = "{{ const k = document.querySelector('[data-control=k]'); k.value = {}; k.dispatchEvent(new Event('change')) }}"


def first_picture(page: Page, folder: Path) -> dict[str, float]:
    """Seconds from the command until its page is there and says what is being done, and until the first picture."""
    begin, used = time.perf_counter(), processor_seconds()
    command = [sys.executable, "-m", "sagkit", "explore", str(folder), "--no-show"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = next(line for line in process.stdout if line.startswith("http")).strip()
        page.goto(address)
        page.wait_for_selector("[role=status]")
        served = time.perf_counter()
        page.wait_for_selector(".sag[data-shown]", timeout=120_000)
        shown = time.perf_counter()
        process.terminate()
    spent = {"processor seconds of the command": processor_seconds() - used}
    return {"command to page": served - begin, "command to first picture": shown - begin} | spent


def processor_seconds() -> float:
    """Of all child processes that have ended: what a busy machine does not lengthen."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def moves(page: Page, images: int) -> dict[str, list[float]]:
    """Seconds of each click on another anchor, and of each move of K."""
    explorer = make_explorer(make_shapes(images), progress=False)

    def ask(question: dict) -> dict:
        return {"name": "PCA"} if question["about"] == "map" else explorer.ask(question)

    with Server(ask) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.goto(server.address)
        page.wait_for_selector(".sag[data-shown]", timeout=120_000)
        page.wait_for_timeout(2000)  # the first thumbnails arrive
        clicks = [page.evaluate(ACT, CLICK.format(1 + i % 5)) for i in range(CLICKS)]
        ks = [page.evaluate(ACT, MOVE.format(k)) for k in (5, 20, 30, 8)]
        server.shutdown()
    return {f"click, {images:,} images": clicks, f"another K, {images:,} images": ks}


def main(threads: int = 2, out: str = "figures/results/bench/explore.json") -> None:
    """Time the first picture, clicks and moves, and write the record.

    Args:
        threads: of torch.
        out: the record.
    """
    torch.set_num_threads(threads)
    load = os.getloadavg()[0]
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        for row, image in enumerate(make_shapes(FIRST, size=64).images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(Path(place) / f"{row:03d}.png")
        started = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = started.new_page(viewport={"width": 1280, "height": 1300}, bypass_csp=True)
        for _ in range(3):
            for name, seconds in first_picture(page, Path(place)).items():
                found.setdefault(f"{name}, {FIRST} images", []).append(seconds)
        for images in (BATCH, MANY):
            found |= moves(page, images)
        started.close()
    rows = {
        name: {"median": round(statistics.median(seconds), 3), "slowest": round(max(seconds), 3)}
        for name, seconds in found.items()
    }
    for name, row in rows.items():
        print(f"{name:42s} median {row['median']:.3f} s, slowest {row['slowest']:.3f} s")
    command = " ".join(["python tests/bench_explore.py", *sys.argv[1:]])
    write_record(Path(out), {"command": command, **provenance(), "threads": threads, "load": load, "seconds": rows})


if __name__ == "__main__":
    tyro.cli(main)
