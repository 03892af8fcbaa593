"""Text tables, and the marked places in a Markdown file that they are set into."""

from __future__ import annotations

import re
from collections.abc import Callable

import pandas as pd


def to_markdown(frame: pd.DataFrame) -> str:
    """A GitHub table of text cells, numbers to the right."""
    head = [frame.index.name, *frame.columns]
    body = [[name, *row] for name, row in zip(frame.index, frame.to_numpy(), strict=True)]
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def fill_marked(text: str, kind: str, content: Callable[..., str]) -> str:
    """Set `content(words)` between every `<!-- kind words -->` and the next `<!-- /kind -->`."""
    place = re.compile(rf"(<!-- {kind} ([^>]*?) -->\n).*?(?<=\n)(<!-- /{kind} -->)", re.DOTALL)
    return place.sub(lambda m: f"{m[1]}{content(*m[2].split())}\n{m[3]}", text)
