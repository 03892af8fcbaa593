"""Image files to one uint8 tensor, with the decoded result kept as one file in a cache folder.

    files (N)  --Pillow, a thread pool-->  RGB, shorter side S, centre crop  -->  uint8 (N, 3, S, S)
    cache file = hash(root, S) - hash(relative path, size in bytes, mtime of every file) .safetensors

[K] Decoding CIFAR-100's 50,000 training files takes about ten core-seconds; listing them and reading the cache, less
than one. The cache holds tensors and names only (safetensors: nothing in it can run code). It is written to a
temporary file and moved into place, so that a reader sees a whole file or none, and of two processes that race both
decode and the later one's identical file stays. A changed, added or removed file changes the name; the superseded
cache of the same folder is then deleted.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

HUGE = 12_000_000  # pixels; larger pictures are decoded one at a time, so that memory does not grow with threads
PROGRESS_FROM = 5_000  # files; fewer are decoded before a bar would be read
# Formats Pillow lists but that are documents, or that only a plug-in or another program can draw.
NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


class ImageFile(NamedTuple):
    """One file below a root; size and mtime are its part of the cache key."""

    path: str  # relative to the root, with forward slashes
    size: int  # bytes
    mtime_ns: int


def cache_folder() -> Path:
    """Folder of the kit's downloads and caches: SAGKIT_CACHE, else ~/.cache/sagkit."""
    return Path(os.environ.get("SAGKIT_CACHE") or Path.home() / ".cache" / "sagkit")


def image_suffixes() -> set[str]:
    """Lower-case file name endings, dot included, of the picture formats that Pillow can open."""
    return {s for s, form in Image.registered_extensions().items() if form in Image.OPEN and form not in NOT_PICTURES}


def list_images(root: Path) -> list[ImageFile]:
    """Every image file below `root`, sorted by path; hidden files and folders are skipped.

    Links to folders are followed, except back into a folder that is being listed.
    """
    suffixes = image_suffixes()

    def walk(folder: str, prefix: str, above: tuple) -> Iterator[ImageFile]:
        try:
            found = list(os.scandir(folder))
        except OSError as error:
            if not prefix:
                raise
            warnings.warn(f"folder {prefix} of {root} cannot be read ({error.strerror}): left out", stacklevel=2)
            return
        for entry in found:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            picture = os.path.splitext(entry.name)[1].lower() in suffixes
            try:
                status = entry.stat()
            except OSError:  # a link that leads nowhere or to itself: listed, so that decoding names it
                if picture:
                    yield ImageFile(prefix + entry.name, -1, -1)
                continue
            identity = (status.st_dev, status.st_ino)
            if entry.is_dir():
                if identity not in above:
                    yield from walk(entry.path, f"{prefix}{entry.name}/", (*above, identity))
            elif picture:
                yield ImageFile(prefix + entry.name, status.st_size, status.st_mtime_ns)

    status = os.stat(root)
    return sorted(walk(str(root), "", ((status.st_dev, status.st_ino),)))


def folder_classes(files: Sequence[ImageFile]) -> tuple[str, ...] | None:
    """Sorted class folders, if every file lies in exactly one folder; a single folder is no class."""
    parents = [file.path.split("/")[:-1] for file in files]
    names = sorted({p[0] for p in parents if p})
    return tuple(names) if len(names) > 1 and all(len(p) == 1 for p in parents) else None


def folder_labels(paths: Sequence[str], classes: Sequence[str]) -> Int64[Tensor, "N"]:
    """Position in `classes` of the folder that each path begins with."""
    number = {name: c for c, name in enumerate(classes)}
    return torch.tensor([number[path.split("/")[0]] for path in paths], dtype=torch.int64)


def usual_size(paths: Sequence[Path]) -> int:
    """64, or 32 where the median shorter side of (at most 1,000 evenly spaced) images is below 64."""
    sides = []
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


def decode_images(
    root: Path, files: Sequence[ImageFile], size: int, strict: bool = False
) -> tuple[UInt8[Tensor, "N 3 H W"], tuple[str, ...], dict[str, str]]:
    """Decode `files` to H = W = size, from the cache where their decoded copy is up to date.

    Args:
        root: folder that the files' paths start from.
        files: as `list_images` gives them.
        size: S; the shorter side is scaled to S (bicubic) and the centre kept.
        strict: refuse an unreadable file instead of leaving it out with a warning.

    Returns:
        Images, the relative path of each, and the reason for each file that was left out.

    Raises:
        ValueError: under `strict`, when a file cannot be read.
    """
    target = _cache_path(root, files, size)
    images, unreadable = _read_cache(target) or (None, {})
    if images is None:
        images, unreadable, lasting = _decode(root, files, size)
        if lasting:
            _write_cache(target, images, unreadable)
    # Threads and the cache's metadata know no order.
    unreadable = {file.path: unreadable[file.path] for file in files if file.path in unreadable}
    if unreadable:
        first, reason = min(unreadable.items())
        others = f", and {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        told = f"{len(unreadable)} of {len(files)} images under {root} cannot be read: {first} ({reason}){others}"
        if strict:
            raise ValueError(f"{told}; repair or remove them, or pass strict=False to leave them out")
        warnings.warn(f"{told}; left out", stacklevel=3)
    return images, tuple(file.path for file in files if file.path not in unreadable), unreadable


def _decode(root, files, size) -> tuple[UInt8[Tensor, "N 3 H W"], dict[str, str], bool]:
    """Images, the reason for each unreadable file, and whether those reasons lie in the files themselves."""
    pixels = np.empty((len(files), 3, size, size), dtype=np.uint8)
    unreadable, lasting, huge = {}, True, Lock()

    def decode(row: int) -> Exception | None:
        try:
            _require_file(root / files[row].path)
            with Image.open(root / files[row].path) as image:
                image.draft("RGB", (2 * size, 2 * size))  # JPEG only: skips detail that scaling would discard
                with huge if image.width * image.height > HUGE else nullcontext():
                    picture = ImageOps.fit(_to_rgb(image), (size, size), Image.Resampling.BICUBIC)
            pixels[row] = np.asarray(picture).transpose(2, 0, 1)
        except Exception as error:  # Pillow's decoders raise whatever a broken file drives them to
            return error

    with ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 1)) as pool:  # Pillow decodes outside Python's lock
        outcomes = pool.map(decode, range(len(files)))
        bar = tqdm(outcomes, "decoding", len(files), unit="image", disable=len(files) <= PROGRESS_FROM)
        for file, error in zip(files, bar, strict=True):
            if error is not None:
                unreadable[file.path] = " ".join(str(error).split()) or type(error).__name__
                lasting &= getattr(error, "errno", None) is None  # a permission or network failure may pass
    kept = [row for row, file in enumerate(files) if file.path not in unreadable]
    return torch.from_numpy(pixels[kept] if unreadable else pixels), unreadable, lasting


def _to_rgb(image: Image.Image) -> Image.Image:
    """First frame, upright, 8 bits a channel; transparent parts become white."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:  # no agreed white: the file's own range
            values = (values - values.min()) * (65535 / max(float(np.ptp(values)), 1e-12))
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _cache_path(root: Path, files: Sequence[ImageFile], size: int) -> Path:
    place = hashlib.sha256(f"{root.resolve()}\n{size}".encode(errors="surrogateescape")).hexdigest()[:16]
    content = hashlib.sha256()
    for file in files:
        content.update(f"{file.path}\0{file.size}\0{file.mtime_ns}\n".encode(errors="surrogateescape"))
    return cache_folder() / f"decoded-{place}-{content.hexdigest()[:32]}.safetensors"


def _read_cache(target: Path) -> tuple[UInt8[Tensor, "N 3 H W"], dict[str, str]] | None:
    try:
        with safe_open(target, framework="pt") as stored:
            return stored.get_tensor("images"), dict(stored.metadata() or {})
    except (OSError, SafetensorError):  # missing, or damaged by hand: decoded afresh
        return None


def _write_cache(target: Path, images: UInt8[Tensor, "N 3 H W"], unreadable: dict[str, str]) -> None:
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(suffix=".part", dir=target.parent)
        os.close(handle)
        save_file({"images": images}, temporary, metadata=unreadable)
        os.replace(temporary, target)
        for superseded in target.parent.glob(target.name[:25] + "*.safetensors"):  # "decoded-<place>-"
            if superseded != target:
                superseded.unlink(missing_ok=True)
    except (OSError, SafetensorError, UnicodeError) as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        warnings.warn(f"decoded images are not cached ({error}): set SAGKIT_CACHE to a writable folder", stacklevel=4)
