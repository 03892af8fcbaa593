"""Data frames of text cells as GitHub Markdown, and the line that says where a record's figures come from."""

from __future__ import annotations

import pandas as pd
from tabulate import DataRow, TableFormat

_ROW = DataRow("| ", " | ", " |")
GITHUB = TableFormat(  # tabulate's own pads every column to its widest cell, which triples wide tables
    lineabove=None,
    linebelowheader=lambda widths, _: "| --- |" + " --: |" * (len(widths) - 1),
    linebetweenrows=None,
    linebelow=None,
    headerrow=_ROW,
    datarow=_ROW,
    padding=0,
    with_header_hide=None,
)


def to_markdown(frame: pd.DataFrame) -> str:
    """A GitHub table of text cells, numbers to the right."""
    return frame.to_markdown(tablefmt=GITHUB, stralign=None, disable_numparse=True)


def origin(record: dict) -> str:
    """Where a record's figures come from: processor, threads if it says so, command, commit; the end of a caption."""
    threads = f", {record['threads']} threads" if "threads" in record else ""
    return f"{record['processor']}{threads}; `{record['command']}`, made at {record['commit'][:9]}."
