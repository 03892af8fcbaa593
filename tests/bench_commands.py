"""How long README's commands take in a checkout: `make check`, `make demo` and `make test`, installation apart.

    python tests/bench_commands.py [check demo test]        record: figures/results/bench/commands.json

Run it on an idle machine, in a clone of its own. A command that fails ends it, and nothing is written.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from sagkit.train.record import provenance, write_record

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("check", "demo", "test")


def main(commands: list[str]) -> None:
    subprocess.run(["make", "install"], cwd=ROOT, check=True)
    origin, seconds = provenance(), {}
    for command in commands:
        begin = time.perf_counter()
        subprocess.run(["make", command], cwd=ROOT, check=True)
        seconds[command] = round(time.perf_counter() - begin, 1)
    made = {"command": "python tests/bench_commands.py", "cores": os.cpu_count(), "seconds": seconds}
    write_record(ROOT / "figures/results/bench/commands.json", made | origin)
    print(seconds)


if __name__ == "__main__":
    main(sys.argv[1:] or list(COMMANDS))
