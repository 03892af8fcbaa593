"""Image files to one uint8 tensor, with the decoded result kept in a cache folder.

    files (N)  --Pillow, a thread pool-->  RGB, shorter side S, centre crop  -->  uint8 (N, 3, S, S)
    8 bits a channel:  as they are, transparent parts on a ground that they stand out from
    more bits:         255 (v - black) / (white - black), with one black and white for all files of the folder
    cache file = hash(root, S) - hash(relative path, size in bytes, times of change of every file) .safetensors
    of many images (`mapped.IN_MEMORY`), their pixels in a file .pixels beside it, which is read by memory map

[K] Decoding CIFAR-100's 50,000 training files takes about ten core-seconds; listing them and reading the cache, less
than one. The cache holds tensors and words only (safetensors: nothing in it can run code). A reader sees a whole file
or none, and of two processes that race both decode and the later one's identical file stays. A changed, added or
removed file changes the name; the superseded cache of the same folder is then deleted. A refusal is never cached:
limits, plug-ins, permissions and networks change, so that what could not be read is tried again each time, and where
that succeeds the folder is decoded afresh. Pixels of many images are written where they stay, file by file, so that a
folder whose decoding was interrupted is gone on with.

[K] Files of 16 bits hold 10, 12 or 14 as often, and floating point has no agreed white. So black is 0, or the folder's
least value if that is negative; white is the first of WHITES that holds the folder's greatest value, or that value
itself where WHITES has none or one four times too bright. Integers and floating point are judged apart. A file that
would be nearly black by that has a white of its own from WHITES, and is told.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from sagkit.data import mapped
from sagkit.data.files import alone, write_atomically
from sagkit.data.folder import MAGIC, REMEDY, ListedFile, claimed_formats, foreign_format, load_plugins

DECODER = 3  # part of every cache file's name: raise it when the same file is decoded to other pixels
HUGE = 12_000_000  # pixels; larger pictures are decoded one at a time, so that memory does not grow with threads
PROGRESS_FROM = 5_000  # files; fewer are decoded before a bar would be read
WHITES = (1, 2**8 - 1, 2**10 - 1, 2**12 - 1, 2**14 - 1, 2**16 - 1)  # fractions, bytes, and what sensors have
DARK = 15  # a file whose values stay below this share of the folder's white has fewer bits: 12 in 16, 10 in 14
INFINITE = 1e30  # from here on a number stands for "no value", such as float32's lowest
PHOTOMETRIC = 262  # the TIFF tag that is 0 where the greatest value is black, which Pillow minds for 8 bits alone
BITS, SAMPLES, UNSIGNED, SIGNED = 258, 339, 1, 2  # tags of bits a sample, and of what kind of numbers these are
NO_DATA = 42113  # the TIFF tag in which GDAL writes the number that stands for "no value"
FAINT = 32  # of 255 levels: a picture that differs less from white has a black ground
ONE_PICTURE = {"MPO", "PSD", "ICO", "ICNS"}  # their further frames are previews, layers or sizes of one picture
PNG_MAGIC, PNG_TEXT = b"\x89PNG\r\n\x1a\n", {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}  # chunks that are no pixels
UNKNOWN, READ, SEVERAL, LEFT_OUT = range(4)  # what became of a file; SEVERAL: the first of its frames was read
WAIT = 0.5  # seconds between two looks for what another process decodes


class Decoded(NamedTuple):
    """What became of the files of a folder.

    images: uint8 (n, 3, S, S), of the files that were read.
    outcome: uint8 (N,), LEFT_OUT, READ or SEVERAL for each file.
    reasons: why, by path of each file that was left out, in the order of the files.
    depth: a sentence on the black and white of files of more than 8 bits a channel; empty where there are none.
    """

    images: UInt8[Tensor, "n 3 S S"]
    outcome: UInt8[Tensor, " N"]
    reasons: dict[str, str]
    depth: str


class Deep(NamedTuple):
    """A picture of more than 8 bits a channel, scaled when the whole folder is known."""

    bands: np.ndarray  # float32 (1 or 3, S, S)
    floating: bool
    least: float  # of all its pixels
    greatest: float
    inverted: bool  # black is its greatest value
    found: int = READ  # or SEVERAL


def cache_folder() -> Path:
    """Folder of the kit's downloads and caches: SAGKIT_CACHE, else ~/.cache/sagkit."""
    return Path(os.environ.get("SAGKIT_CACHE") or Path.home() / ".cache" / "sagkit")


def usual_size(paths: Sequence[Path]) -> int:
    """64, or 32 where the median shorter side of (at most 1,000 evenly spaced) images is below 64."""
    sides = []
    load_plugins()
    for path in paths[:: max(1, len(paths) // 1000)]:
        try:
            _require_file(path)
            with Image.open(path) as image:  # reads the header only
                sides.append(min(image.size))
        except Exception:  # decoding will name it
            continue
    return 32 if sides and np.median(sides) < 64 else 64


def _require_file(path: Path) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")  # a pipe would be waited for without end


def decode_images(root: Path, files: Sequence[ListedFile], size: int) -> Decoded:
    """Decode `files` to H = W = size, from the cache where their decoded copy is up to date.

    Args:
        root: folder that the files' paths start from.
        files: as `list_images` gives them.
        size: S; the shorter side is scaled to S (bicubic) and the centre kept.
    """
    load_plugins()
    target = _cache_path(root, files, size)
    stored = _read_cache(target, size)
    if stored is not None:
        refused = [file for file, what in zip(files, stored.outcome.tolist(), strict=True) if what == LEFT_OUT]
        reasons = _decode(root, refused, size).reasons if refused else {}
        if len(reasons) == len(refused):
            return stored._replace(reasons=reasons)
    if mapped.is_large((len(files), 3, size, size)):
        return _decode_many(root, files, size, target)
    decoded = _decode(root, files, size)
    if len(decoded.images):
        _write_cache(target, decoded)
    return decoded


def _decode_many(root: Path, files: Sequence[ListedFile], size: int, target: Path) -> Decoded:
    """Decode to files beside the cache's own, going on where an earlier call was interrupted."""
    draft, outcome, lock = (target.with_suffix(suffix) for suffix in (".pixels-part", ".outcome-part", ".lock"))
    try:
        with ExitStack() as held:
            try:
                held.enter_context(alone(lock, f"{root} is being decoded"))
            except ValueError:  # by another process, such as one of several that train together
                time.sleep(WAIT)
                return decode_images(root, files, size)
            pixels = mapped.named(draft, (len(files), 3, size, size))
            decoded = _decode(root, files, size, pixels, mapped.named(outcome, (len(files),)))
            if len(decoded.reasons) == len(files):
                return decoded._replace(images=decoded.images[:0])
            mapped.move(draft, target.with_suffix(".pixels"), pixels.shape, decoded.outcome != LEFT_OUT)
            _write_cache(target, decoded._replace(images=decoded.images[:0]))
            outcome.unlink()
    except OSError as error:
        warnings.warn(_uncached(error), stacklevel=4)
        return _decode(root, files, size)
    return _read_cache(target, size)._replace(reasons=decoded.reasons)


def _decode(
    root: Path,
    files: Sequence[ListedFile],
    size: int,
    pixels: np.ndarray | None = None,
    outcome: np.ndarray | None = None,
) -> Decoded:
    """Decode the files whose outcome is not known yet, into `pixels` (N, 3, S, S), `outcome` (N,) uint8."""
    if pixels is None or outcome is None:
        pixels, outcome = np.empty((len(files), 3, size, size), np.uint8), np.zeros(len(files), np.uint8)
    deep: dict[int, Deep] = {}
    known, huge = np.isin(outcome, (READ, SEVERAL)), Lock()

    def read(source: Path | BytesIO, row: int) -> None:
        with Image.open(source) as image:
            found = SEVERAL if _has_frames(image) else READ
            image.draft("RGB", (2 * size, 2 * size))  # JPEG only: skips detail that scaling would discard
            with huge if image.width * image.height > HUGE else nullcontext():
                picture = _fit(image, size)
        if isinstance(picture, Deep):
            deep[row] = picture._replace(found=found)  # its outcome follows its pixels
        else:
            pixels[row] = np.asarray(picture).transpose(2, 0, 1)
            outcome[row] = found

    def decode(row: int) -> str:
        path = root / files[row].path
        try:
            _require_file(path)
            try:
                read(path, row)
            except Exception:  # texts that are broken, or larger than Pillow allows, are no reason
                bare = _without_text(path)
                if bare is None:
                    raise
                read(bare, row)
        except Exception as error:  # Pillow's decoders raise whatever a broken file drives them to
            outcome[row] = LEFT_OUT
            return _reason(path, error)
        return ""

    rows = np.flatnonzero(~known).tolist()
    with ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 1)) as pool:  # Pillow decodes outside Python's lock
        told = pool.map(decode, rows)
        few, done = len(files) <= PROGRESS_FROM, len(files) - len(rows)
        bar = tqdm(told, "decoding", len(files), initial=done, unit="image", disable=few)
        reasons = {files[row].path: reason for row, reason in zip(rows, bar, strict=True) if reason}
    depth = _scale(deep, pixels)
    for row, picture in deep.items():
        outcome[row] = picture.found
    in_memory = pixels[outcome != LEFT_OUT] if reasons and not isinstance(pixels, np.memmap) else pixels
    return Decoded(torch.from_numpy(in_memory), torch.from_numpy(np.array(outcome)), reasons, depth)


def _has_frames(image: Image.Image) -> bool:
    """Whether a file holds several pictures, such as an animation or the pages of a TIFF."""
    try:
        return image.format not in ONE_PICTURE and getattr(image, "is_animated", False)
    except Exception:  # only what follows the first picture is broken
        return False


def _fit(image: Image.Image, size: int) -> Image.Image | Deep:
    """First frame, upright, (size, size): RGB, or of more than 8 bits a channel."""
    wide = ";16" in str(image.tile[:1]) and image.mode in ("RGB", "RGBA", "LA")  # Pillow keeps the upper 8 bits
    tags = getattr(image, "tag_v2", {})
    absent = [image.info.get("transparency"), tags.get(NO_DATA)]
    image.load()
    with suppress(Exception):  # where EXIF data is broken, the picture need not be
        ImageOps.exif_transpose(image, in_place=True)
    kind = tags.get(SAMPLES, (1,))[0] if "tiff" in str(image.format).lower() else 0
    signed = image.mode == "L" and kind == SIGNED
    if image.mode in ("I", "F") or image.mode.startswith("I;16") or signed:
        values = np.asarray(image)
        if signed or (image.mode == "I" and kind == UNSIGNED and tags.get(BITS) == (32,)):
            values = values.view(np.int8 if signed else np.uint32)  # Pillow minds neither
        return _deep(values[None], image.mode == "F", absent, size)._replace(inverted=tags.get(PHOTOMETRIC) == 0)
    if image.mode not in ("RGBA", "RGBa", "LA", "La", "PA") and "transparency" not in image.info:
        opaque = image if image.mode == "RGB" else image.convert("RGB")
    else:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        least, most = image.getchannel("A").getextrema()
        if most > 0 and least < 255:
            return _on_ground(_cropped(image, size))
        opaque = image.convert("RGB")  # an alpha that hides everything is not meant as transparency
    return (
        _deep(np.asarray(opaque).transpose(2, 0, 1) * np.uint16(257), False, [], size)
        if wide
        else _cropped(opaque, size)
    )


def _cropped(image: Image.Image, size: int) -> Image.Image:
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def _on_ground(image: Image.Image) -> Image.Image:
    """An RGBA picture on white, or on black where its visible parts are white themselves."""
    values = np.asarray(image, dtype=np.float32)
    colour, alpha = values[..., :3], values[..., 3:] / 255
    differs = 255 - colour.min(axis=2)  # from white, in the channel that differs most
    ground = 255 if (differs * alpha[..., 0]).sum() >= FAINT * alpha.sum() else 0
    return Image.fromarray((alpha * colour + (1 - alpha) * ground).round().astype(np.uint8))


def _deep(values: np.ndarray, floating: bool, absent: list, size: int) -> Deep:
    """Bands of (C, H, W) values, cropped; what stands for "no value" takes the mean of the others."""
    if values[0].size > HUGE:  # every so many pixels suffice, and memory stays within bounds
        step = max(1, min(values.shape[1:]) // (8 * size))
        values = values[:, ::step, ::step]
    values = values.astype(np.float32)
    missing = ~(np.abs(values) < INFINITE)  # NaN, too
    for number in absent:
        with suppress(TypeError, ValueError):  # not given, or no number
            missing |= values == np.float32(number)
    known = values[~missing]
    if not len(known):
        raise ValueError("no pixel has a finite value")
    values[missing] = known.mean(dtype=np.float64)
    bands = [np.asarray(_cropped(Image.fromarray(band), size)) for band in values]
    return Deep(np.stack(bands), floating, float(known.min()), float(known.max()), False)


def _scale(deep: dict[int, Deep], pixels: np.ndarray) -> str:
    """Write the deep pictures of a folder into its `pixels`, and say what became black and white."""
    told = []
    for floating, kind in ((False, "signed numbers or more than 8 bits a channel"), (True, "floating point")):
        group = {row: picture for row, picture in deep.items() if picture.floating == floating}
        if not group:
            continue
        black = min(0.0, *(picture.least for picture in group.values()))
        greatest = max(picture.greatest for picture in group.values())
        white = greatest if black < 0 else white_level(greatest)
        told.append(f"files of {kind} ({len(group):,}): {black:g} is black and {white:g} white")
        fewer = 0
        for row, picture in group.items():
            own = next((w for w in WHITES if w >= picture.greatest and (floating or w > 1)), white)
            lone = black == 0 < picture.greatest < white / DARK and own < white
            fewer += lone
            scaled = (picture.bands.astype(np.float64) - black) * (255 / (((own if lone else white) - black) or 1))
            scaled = scaled.clip(0, 255).round().astype(np.uint8)
            pixels[row] = 255 - scaled if picture.inverted else scaled
        if fewer:
            told.append(f"{fewer:,} of them would be nearly black by that, and are taken for files of fewer bits")
    return "; ".join(told)


def white_level(greatest: float) -> float:
    """The value that becomes white where the greatest is this and none is negative."""
    usual = next((white for white in WHITES if white >= greatest), greatest)
    return usual if 4 * greatest >= usual else greatest


def _without_text(path: Path) -> BytesIO | None:
    """A PNG file without its texts and profiles; None if it is no PNG, or has none."""
    data = path.read_bytes()
    if not data.startswith(PNG_MAGIC):
        return None
    kept, start = [PNG_MAGIC], len(PNG_MAGIC)
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")  # length, type, data, checksum
        if data[start + 4 : start + 8] not in PNG_TEXT:
            kept.append(data[start:end])
        start = end
    bare = b"".join(kept)
    return BytesIO(bare) if len(bare) < len(data) else None


def _reason(path: Path, error: Exception) -> str:
    """Why a file could not be read, in one line."""
    if isinstance(error, Image.DecompressionBombError):
        return f"{error} Scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS"
    if not isinstance(error, UnidentifiedImageError):
        return " ".join(str(error).split()) or type(error).__name__
    with open(path, "rb") as file:
        magic = file.read(MAGIC)
    if not magic:
        return "empty file"
    kind = foreign_format(magic)
    if kind:
        return f"holds {kind} data: {REMEDY[kind]}"
    claimed = claimed_formats(magic)
    return f"{claimed[0]} that Pillow cannot open: save it anew" if claimed else "no picture of a known format"


def _cache_path(root: Path, files: Sequence[ListedFile], size: int) -> Path:
    place = hashlib.sha256(f"{root.resolve()}\n{size}".encode(errors="surrogateescape")).hexdigest()[:16]
    content = hashlib.sha256(f"{DECODER}\0{ImageFile.LOAD_TRUNCATED_IMAGES}\n".encode())
    for file in files:
        told = f"{file.path}\0{file.size}\0{file.mtime_ns}\0{file.ctime_ns}\n"
        content.update(told.encode(errors="surrogateescape"))
    return cache_folder() / f"decoded-{place}-{content.hexdigest()[:32]}.safetensors"


def _read_cache(target: Path, size: int) -> Decoded | None:
    try:
        with safe_open(target, framework="pt") as stored:
            images, outcome = stored.get_tensor("images"), stored.get_tensor("outcome")
            depth = stored.metadata()["depth"]
        kept = int((outcome != LEFT_OUT).sum())
        if len(images) < kept:
            images = mapped.read(target.with_suffix(".pixels"), (kept, 3, size, size))
        return Decoded(images, outcome, {}, depth)
    except (OSError, ValueError, SafetensorError):  # missing, or damaged by hand: decoded afresh
        return None


def _write_cache(target: Path, decoded: Decoded) -> None:
    tensors = {"images": decoded.images, "outcome": decoded.outcome}
    try:
        write_atomically(target, lambda draft: save_file(tensors, draft, metadata={"depth": decoded.depth}))
    except OSError as error:
        warnings.warn(_uncached(error), stacklevel=4)
        return
    for superseded in target.parent.glob(target.name[:25] + "*"):  # "decoded-<place>-"
        if superseded.stem != target.stem:
            with suppress(OSError):
                superseded.unlink()


def _uncached(error: OSError) -> str:
    return f"decoded images are not cached ({error}): set SAGKIT_CACHE to a writable folder"
