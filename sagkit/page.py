"""One self-contained HTML page from tables, sentences and pictures: nothing is fetched when it is opened.

Pictures are JPEG data URIs, text is escaped, and the style is a few lines at the top of the page. [K]
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

from PIL import Image
from torch import Tensor

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
h2, .lead { border-bottom: 1px solid #b8bec7; padding-bottom: .3rem; } .lead { color: #555; }
table { border-collapse: collapse; margin: .6rem 0; } th, td { padding: .25rem .9rem .25rem 0; text-align: left; }
th { border-bottom: 1px solid #b8bec7; font-weight: 600; } td.n, th.n { text-align: right; }
.strip { display: flex; flex-wrap: wrap; gap: .5rem; margin: .5rem 0 1rem; }
figure { margin: 0; width: 92px; } figure img { width: 92px; height: 92px; object-fit: cover; border-radius: 3px;
  box-shadow: 0 0 0 1px #d5d9df; }
figure.first { margin-right: .8rem; } figure.first img { outline: 3px solid #0072B2; outline-offset: -3px; }
figure.marked img { outline: 3px solid #D55E00; outline-offset: -3px; }
figcaption { font-size: .72rem; line-height: 1.25; color: #555; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.warning { background: #fdf3e7; border-left: 4px solid #D55E00; padding: .5rem .8rem; margin: .6rem 0; }
"""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; kind "warning" or "lead" sets it apart."""
    mark = f' class="{escape(kind)}"' if kind else ""
    return f"<p{mark}>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A table, without a heading where that is empty; floats have three decimals, numbers are set flush right."""
    numeric = [all(row[i] == "" or isinstance(row[i], int | float) for row in rows) for i in range(len(head))]

    def cell(tag: str, value, i: int) -> str:
        text = f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        return f"<{tag}{' class=n' if numeric[i] else ''}>{escape(text)}</{tag}>"

    lines = ["".join(cell("th", name, i) for i, name in enumerate(head))] if any(head) else []
    lines += ["".join(cell("td", value, i) for i, value in enumerate(row)) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def picture(image: Tensor) -> str:
    """A data URI of one image, uint8 (3, H, W), at least 92 pixels wide."""
    drawn = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    if drawn.width < 92:
        drawn = drawn.resize((drawn.width * -(-92 // drawn.width),) * 2, Image.Resampling.NEAREST)
    buffer = BytesIO()
    drawn.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def strip(
    images: Sequence[Tensor], captions: Sequence[Sequence[str]], first: bool = False, marked: Sequence[int] = ()
) -> str:
    """A row of pictures with lines of text below each.

    Args:
        images: uint8 (3, H, W) each.
        captions: lines of text for each; a line too long is cut by the browser and whole in the tooltip.
        first: set the first picture apart, as the query of a search.
        marked: positions framed in orange.
    """
    figures = []
    for i, (image, lines) in enumerate(zip(images, captions, strict=True)):
        kind = "first" if first and i == 0 else "marked" if i in marked else ""
        text = "<br>".join(escape(line) for line in lines)
        tip = escape(" ".join(lines), quote=True)
        figures.append(
            f'<figure class="{kind}" title="{tip}"><img alt="{tip}" src="{picture(image)}">'
            f"<figcaption>{text}</figcaption></figure>"
        )
    return f'<div class="strip">{"".join(figures)}</div>'


def page(title: str, lead: str, sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The whole page from sections, each a heading and its parts of HTML."""
    body = "".join(f"<h2>{escape(heading)}</h2>{''.join(parts)}" for heading, parts in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{paragraph(lead, 'lead')}{body}</body></html>\n"
    )
