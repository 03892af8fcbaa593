"""Both attacks whole; what they find goes into the record of the table in BENCHMARKS.md.

python tests/attack/attack.py           record: figures/results/bench/attack.json
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from sagkit.train.record import provenance, write_record

ROOT = Path(__file__).resolve().parents[2]


def found(script: str) -> dict:
    """What an attack prints, with the commit that it attacked; where it finds a fault it still does."""
    command = [sys.executable, ROOT / "tests/attack" / script]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    return {"commit": provenance()["commit"], **json.loads(done.stdout)}


def main() -> None:
    made = {"command": "make attack", "cores": os.cpu_count(), **provenance()}
    parts = {"kills": found("kill.py"), "hostile": found("fuzz.py")}
    write_record(ROOT / "figures/results/bench/attack.json", made | parts)


if __name__ == "__main__":
    main()
