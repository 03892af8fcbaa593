"""Pixels of other people's files: depth, transparency, frames, limits, and what is cached of a refusal."""

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, PngImagePlugin

from sagkit.data import decode
from sagkit.data.decode import white_level
from sagkit.data.load import load_folder

RAMP = np.arange(4096).reshape(64, 64)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SAGKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def load(folder: Path, size: int = 64) -> tuple[dict[str, torch.Tensor], str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = load_folder(folder, size=size)
    return dict(zip(images.paths, images.images, strict=True)), "\n".join(str(w.message) for w in caught)


def save(folder: Path, **files) -> Path:
    folder.mkdir(exist_ok=True)
    for name, what in files.items():
        image = Image.fromarray(what) if isinstance(what, np.ndarray) else what
        image.save(folder / name.replace("__", "."))
    return folder


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "i4", "f4"])
def test_files_of_many_bits_are_scaled_by_the_depth_of_their_folder(tmp_path, bits, dtype):
    """The brightest file has the whole range, and one of half its values half of it: 255 v / (2^bits - 1)."""
    white = 2**bits - 1
    values = (RAMP * (white / 4095)).round()
    halved = (values / 2).round()
    seen, told = load(save(tmp_path / "d", a__tif=values.astype(dtype), b__tif=halved.astype(dtype)))
    for name, expected in (("a.tif", values), ("b.tif", halved)):
        for channel in seen[name]:
            assert np.abs(channel.numpy() - expected * 255 / white).max() <= 0.51
    assert f"0 is black and {white} white" in told


@pytest.mark.parametrize(
    ("greatest", "white"),
    [(0, 0), (1, 1), (0.5, 1), (0.2, 0.2), (1.3, 1.3), (20, 20), (200, 255), (4095, 4095), (4096, 16383), (1e6, 1e6)],
)
def test_white_is_a_usual_level_unless_that_is_four_times_too_bright(greatest, white):
    assert white_level(greatest) == white


def test_signed_data_has_the_range_of_its_folder(tmp_path):
    signed = (RAMP - 2048).astype(np.int32)
    seen, _ = load(save(tmp_path / "d", a__tif=signed, b__tif=np.full((64, 64), 2047, np.int32)))
    assert np.abs(seen["a.tif"][0].numpy() - RAMP * 255 / 4095).max() <= 0.51
    assert seen["b.tif"].unique().tolist() == [255]


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, np.finfo(np.float32).min])
@pytest.mark.parametrize("scale", [1, 255, 1e-4, 3e7])
def test_values_that_are_none_are_ignored(tmp_path, hole, scale):
    values = (RAMP / 4095 * scale).astype(np.float32)
    broken = values.copy()
    broken[7] = hole
    nothing = np.full((64, 64), hole, np.float32)
    with pytest.warns(UserWarning, match=r"1 of 3 images.*c\.tif \(no pixel has a finite value\)"):
        images = load_folder(save(tmp_path / "d", a__tif=values, b__tif=broken, c__tif=nothing), size=64)
    whole, holed = images.images[:, 0].numpy()
    assert np.abs(whole - RAMP * 255 / 4095).max() <= 0.51
    rest = np.arange(64) != 7
    assert (holed[rest] == whole[rest]).all()
    assert 100 < holed[7].mean() < 155  # what is not known is the mean


def test_a_tiff_whose_zero_is_white_is_inverted(tmp_path):
    save(tmp_path / "d", a__tif=RAMP.astype(np.uint16), b__tif=RAMP.astype(np.uint16))
    file = tmp_path / "d" / "b.tif"
    tag = struct.pack("<HHI", 262, 3, 1)  # photometric interpretation, one short
    file.write_bytes(file.read_bytes().replace(tag + b"\1\0", tag + b"\0\0"))
    seen, _ = load(tmp_path / "d")
    assert torch.equal(seen["b.tif"], 255 - seen["a.tif"])


@pytest.mark.parametrize(
    ("folder", "file"), [(65535, 4095), (65535, 255), (16383, 1023), (4095, 255), (255.0, 1.0), (65535.0, 255.0)]
)
def test_a_file_of_fewer_bits_than_its_folder_is_not_black(tmp_path, folder, file):
    """Such as photographs of 12 and of 16 bits in one folder, or fractions beside floating point up to 255."""
    kind = np.float32 if isinstance(file, float) else np.uint16
    whole, few = ((RAMP / 4095 * white).astype(kind) for white in (folder, file))
    noise = np.full((64, 64), 2 if kind == np.uint16 else 0.001, kind)  # a picture of darkness stays dark
    seen, told = load(save(tmp_path / "d", a__tif=whole, b__tif=few, c__tif=noise))
    assert np.abs(seen["b.tif"][0].int() - seen["a.tif"][0].int()).max() <= 1
    assert seen["c.tif"].max() <= 2
    assert "taken for files of fewer bits" in told


def deep_png(path: Path, *channels: np.ndarray):
    """A PNG of 16 bits a channel, which Pillow writes for grey alone."""
    pixels = np.stack(channels, axis=-1).astype(">u2")
    kind = {2: 4, 3: 2, 4: 6}[pixels.shape[2]]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, kind, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels)))
    path.write_bytes(decode.PNG_MAGIC + head + body + chunk(b"IEND", b""))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_twelve_bits_in_sixteen_are_not_black(tmp_path, channels):
    """Pillow keeps the upper eight bits: sixteen levels are left of twelve bits."""
    opaque = [np.full((64, 64), 65535)] * (channels % 2 == 0)
    for name, values in (("a", RAMP), ("b", RAMP // 2)):
        deep_png(tmp_path / f"{name}.png", *[values] * (channels - len(opaque)), *opaque)
    seen, _ = load(tmp_path)
    assert np.abs(seen["a.png"][0].numpy() - RAMP * 255 / 4095).max() <= 17
    assert seen["b.png"].max() == pytest.approx(112, abs=1)


# ------------------------------------------------------------------ transparency


def glyph(colour, mode: str = "RGBA") -> Image.Image:
    """A square of a colour, in the middle of nothing of the same colour."""
    image = Image.new(mode, (64, 64), (*colour, 0))
    image.paste((*colour, 255), (16, 16, 48, 48))
    return image


@pytest.mark.parametrize(
    ("colour", "ground"),
    [((255, 255, 255), 0), ((240, 240, 240), 0), ((0, 0, 0), 255), ((255, 255, 0), 255), ((128, 128, 128), 255)],
)
@pytest.mark.parametrize("form", ["png", "webp", "tif"])
def test_the_ground_contrasts_with_what_is_visible(tmp_path, colour, ground, form):
    glyph(colour).save(tmp_path / f"a.{form}", lossless=True)
    glyph(colour).save(tmp_path / f"b.{form}", lossless=True)
    seen = load(tmp_path)[0][f"a.{form}"]
    assert seen[:, 4, 4].tolist() == [ground] * 3
    assert seen[:, 32, 32].tolist() == list(colour)
    assert load(tmp_path, 16)[0][f"a.{form}"][:, 8, 8].tolist() == list(colour)


def test_every_way_to_be_transparent(tmp_path):
    palette = Image.new("P", (64, 64), 0)
    palette.putpalette([255] * 6)
    palette.paste(1, (16, 16, 48, 48))
    keyed = Image.new("RGB", (64, 64), (255, 0, 255))
    keyed.paste((255, 255, 255), (16, 16, 48, 48))
    palette.save(tmp_path / "palette.png", transparency=0)
    palette.save(tmp_path / "palette.gif", transparency=0)
    keyed.save(tmp_path / "keyed.png", transparency=(255, 0, 255))
    glyph((255,), "LA").save(tmp_path / "grey.png")
    for name, seen in load(tmp_path)[0].items():
        assert seen[:, 4, 4].tolist() == [0] * 3, name
        assert seen[:, 32, 32].tolist() == [255] * 3, name
    for mode in ("RGBa", "La"):  # premultiplied, as some TIFF files are
        white = glyph((255,) * (3 if mode == "RGBa" else 1), mode.upper()).convert(mode)
        white.tile = []  # as of a file that is loaded
        assert np.asarray(decode._fit(white, 64))[[4, 32], [4, 32]].tolist() == [[0] * 3, [255] * 3]


def test_a_transparency_that_hides_everything_is_not_meant(tmp_path):
    hidden = np.dstack([RAMP % 256] * 3 + [RAMP * 0]).astype(np.uint8)
    seen, _ = load(save(tmp_path / "d", a__png=hidden, b__png=hidden[..., :3]))
    assert torch.equal(seen["a.png"], seen["b.png"])


# ------------------------------------------------------------------ frames, texts, limits


@pytest.mark.parametrize("form", ["gif", "tif", "png", "webp"])
def test_of_several_frames_the_first_is_read_and_told(tmp_path, form):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("blue", "red")]
    frames[0].save(tmp_path / f"a.{form}", save_all=True, append_images=frames[1:])
    frames[1].save(tmp_path / "b.png")
    for _ in range(2):  # decoded, then from the cache
        seen, told = load(tmp_path)
        assert (seen[f"a.{form}"][2] > 250).all()
        assert f"files of several frames or pages, of which the first is read: a.{form}" in told


def test_a_png_is_read_whatever_its_texts_and_profiles(tmp_path):
    picture = Image.effect_noise((64, 64), 50)
    long = "y" * 3_000_000
    for name in ("plain", "text", "zipped", "international", "many"):
        texts = PngImagePlugin.PngInfo()
        if name == "text":
            texts.add_text("x", long)
        elif name == "zipped":
            texts.add_text("x", long, zip=True)
        elif name == "international":
            texts.add_itxt("x", long, zip=True)
        elif name == "many":
            for i in range(70):
                texts.add_text(f"x{i}", long[:1_000_000])
        picture.save(tmp_path / f"{name}.png", pnginfo=texts, compress_level=1)
    picture.save(tmp_path / "profile.png", icc_profile=long.encode())
    broken = (tmp_path / "text.png").read_bytes().replace(b"yyyy", b"yyxy", 1)  # its checksum is wrong
    (tmp_path / "broken.png").write_bytes(broken)
    picture.save(tmp_path / "exif.png", exif=b"Exif\0\0no such thing")
    seen, told = load(tmp_path)
    assert told == ""
    assert len(seen) == 8
    assert all(torch.equal(image, seen["plain.png"]) for image in seen.values())


def test_a_refusal_by_a_limit_ends_with_the_limit(tmp_path, monkeypatch):
    for i, side in enumerate((10, 40, 12)):
        Image.new("RGB", (side, side), (i, 0, 7)).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for _ in range(2):
        seen, told = load(tmp_path, 8)
        assert set(seen) == {"0.png", "2.png"}
        assert "raise PIL.Image.MAX_IMAGE_PIXELS" in told
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # what it says
    seen, told = load(tmp_path, 8)
    assert (len(seen), told) == (3, "")
    monkeypatch.setattr(decode, "_decode", lambda *_: pytest.fail("decoded although cached"))
    assert len(load(tmp_path, 8)[0]) == 3


def test_what_is_read_of_a_cut_file_is_kept_apart_from_its_refusal(tmp_path, monkeypatch):
    for name in "abc":
        Image.effect_noise((64, 64), 50).save(tmp_path / f"{name}.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    for allowed, n in ((False, 2), (True, 3), (False, 2)):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
        assert len(load(tmp_path)[0]) == n


def tiff(values: np.ndarray, kind: int) -> bytes:
    """A grey TIFF of one strip; kind: 1 unsigned, 2 signed, 3 floating point."""
    tags = {256: values.shape[1], 257: len(values), 258: 8 * values.itemsize, 259: 1, 262: 1, 273: 8, 277: 1}
    tags |= {278: len(values), 279: values.nbytes, 339: kind}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    start = struct.pack("<2sHI", b"II", 42, 8 + values.nbytes) + values.tobytes()
    return start + struct.pack("<H", len(tags)) + directory + struct.pack("<I", 0)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32"])
def test_a_tiff_is_read_as_the_numbers_it_says_it_holds(tmp_path, dtype):
    whole = np.iinfo(dtype) if dtype != "float32" else None
    low, high = (whole.min, whole.max) if whole else (-1, 1)
    ramp = np.linspace(low, high, 16, dtype=np.float64)
    values = np.broadcast_to(ramp.astype(dtype), (16, 16)).copy()
    (tmp_path / "a.tif").write_bytes(tiff(values, {"i": 2, "u": 1, "f": 3}[values.dtype.kind]))
    Image.new("RGB", (16, 16)).save(tmp_path / "b.png")
    expected = np.linspace(0, 255, 16)
    np.testing.assert_allclose(load(tmp_path, 16)[0]["a.tif"][0, 0], expected, atol=1)


def test_a_file_repaired_with_its_size_and_time_is_read_anew(tmp_path):
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.bmp")
    before, path = load(tmp_path)[0], tmp_path / "a.bmp"
    made = path.stat()
    Image.new("RGB", (8, 8), "lime").save(path)
    os.utime(path, ns=(made.st_atime_ns, made.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (made.st_size, made.st_mtime_ns)
    after = load(tmp_path)[0]
    assert after["a.bmp"][:, 0, 0].tolist() == [0, 255, 0]
    assert before["b.bmp"].tolist() == after["b.bmp"].tolist()


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error"), MemoryError()]
)
def test_a_failure_that_passes_is_tried_again(tmp_path, monkeypatch, error):
    for name in "abc":
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
    opened = Image.open

    def failing(source, *arguments, **options):
        if str(source).endswith("b.png"):
            raise error
        return opened(source, *arguments, **options)

    monkeypatch.setattr(Image, "open", failing)
    assert set(load(tmp_path)[0]) == {"a.png", "c.png"}
    monkeypatch.setattr(Image, "open", opened)
    assert set(load(tmp_path)[0]) == {"a.png", "b.png", "c.png"}
