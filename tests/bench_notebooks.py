"""Wall seconds of every notebook, run from top to bottom at its default parameters, one after the other.

    python tests/bench_notebooks.py [--only 03 04]

Each is `jupyter nbconvert --execute` of a copy, so that start of the kernel and imports count and nothing stored is
changed; the number of threads is PyTorch's own choice. The load of the machine before each run stands in the record:
seconds of a busy machine are no property of a notebook. Written to figures/results/bench/notebooks.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

from sagkit.train.record import provenance, write_record

HOUSE = Path(__file__).resolve().parent.parent


def environment() -> dict[str, str]:
    """This process's, with the number of threads left to PyTorch."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


def threads() -> int:
    """PyTorch's own choice."""
    words = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    return int(subprocess.run(words, env=environment(), capture_output=True, text=True, check=True).stdout)


def seconds_of(notebook: Path, limit: float = 600.0) -> float:
    """Wall seconds of one notebook.

    Raises:
        ValueError: where a cell fails or the run takes longer than `limit` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", str(notebook)]
        begin = time.perf_counter()
        try:
            run = subprocess.run(
                [*words, "--output-dir", folder],
                cwd=notebook.parent,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"{notebook.name} ran longer than {limit:.0f} s: raise --limit or look into it") from None
        spent = time.perf_counter() - begin
    if run.returncode:
        told = run.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ValueError(f"{notebook.name} failed ({told[0]}): run it in JupyterLab to see where")
    return spent


def main(only: tuple[str, ...] = (), out: str = "figures/results/bench/notebooks.json", limit: float = 600.0) -> None:
    """Time the notebooks and write the record.

    Args:
        only: beginnings of the names of those that are run; all where none is given.
        out: the record.
        limit: seconds that one may take.
    """
    found = sorted((HOUSE / "notebooks").glob("*.ipynb"))
    chosen = [path for path in found if not only or path.stem.startswith(only)]
    if not chosen:
        raise SystemExit(f"no notebook begins with {' or '.join(only)}: there are {', '.join(p.stem for p in found)}")
    seconds, load = {}, {}
    for path in chosen:
        load[path.stem] = round(os.getloadavg()[0], 2)
        seconds[path.stem] = round(seconds_of(path, limit), 1)
        print(f"{path.stem}: {seconds[path.stem]} s, load before {load[path.stem]}", flush=True)
    command = " ".join(["python tests/bench_notebooks.py", *sys.argv[1:]])  # of all, or of those that were asked for
    record = {"command": command, **provenance(), "cores": os.cpu_count()}
    record |= {"threads": threads(), "cifar100": "SAGKIT_DATA" in os.environ}
    write_record(Path(out), record | {"seconds": seconds, "load": load})


if __name__ == "__main__":
    tyro.cli(main, prog="python tests/bench_notebooks.py")
