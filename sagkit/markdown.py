"""Text tables, their cells, and the marked places in a Markdown file that they are set into."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from scipy.stats import t as student


@dataclass(frozen=True)
class Summary:
    """Mean of one figure over seeds; `half_width` of its 95 % interval is None below three seeds."""

    mean: float
    half_width: float | None

    @classmethod
    def over(cls, values: list[float]) -> Summary:
        """Summarise one value per seed."""
        series, n = pd.Series(values, dtype=float), len(values)
        half = None if n < 3 else float(student.ppf(0.975, n - 1) * series.std(ddof=1) / n**0.5)
        return cls(float(series.mean()), half)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval over seeds; None below three."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)

    def show(self, percent: bool, signed: bool = False) -> str:
        """As text: `12.3 ± 0.4` for per cent, `0.123 ± 0.004` otherwise; differences with their sign."""
        scale, digits = (100, 1) if percent else (1, 3)
        spread = "" if self.half_width is None else f" ± {scale * self.half_width:.{digits}f}"
        return f"{scale * self.mean:{'+' if signed else ''}.{digits}f}{spread}"


def to_markdown(frame: pd.DataFrame) -> str:
    """A GitHub table of text cells, numbers to the right."""
    head = [frame.index.name, *frame.columns]
    body = [[name, *row] for name, row in zip(frame.index, frame.to_numpy(), strict=True)]
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def origin(record: dict) -> str:
    """Where the figures of a study's record come from: processor, command, commit; the end of a caption."""
    return f"{record['processor']}; `{record['command']}`, made at {record['commit'][:9]}."


def fill_marked(text: str, kind: str, content: Callable[..., str]) -> str:
    """Set `content(words)` between every `<!-- kind words -->` and the next `<!-- /kind -->`."""
    place = re.compile(rf"(<!-- {kind} ([^>]*?) -->\n).*?(?<=\n)(<!-- /{kind} -->)", re.DOTALL)
    return place.sub(lambda m: f"{m[1]}{content(*m[2].split())}\n{m[3]}", text)
