"""Text tables, their cells, and the marked places in a Markdown file that they are set into."""

from __future__ import annotations

import pandas as pd


def to_markdown(frame: pd.DataFrame) -> str:
    """A GitHub table of text cells, numbers to the right."""
    head = [frame.index.name, *frame.columns]
    body = [[name, *row] for name, row in zip(frame.index, frame.to_numpy(), strict=True)]
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def origin(record: dict) -> str:
    """Where the figures of a study's record come from: processor, command, commit; the end of a caption."""
    return f"{record['processor']}; `{record['command']}`, made at {record['commit'][:9]}."
