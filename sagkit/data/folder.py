"""What a folder of other people's pictures holds: which files are pictures, and the split and class of each.

    root  --list_images-->  files, and what is passed over     --arrange-->  split and class of every file

[K] A file is a picture by a suffix that Pillow knows or else by its content. Nothing is left out unsaid: files passed
over are counted by suffix, and whatever the layout makes a guess is told in a sentence. The class of a picture is the
folder it lies in, as in torchvision's ImageFolder, once levels at which all pictures share one folder are taken away:
`archive/train/cat/1.png` is of split train and class cat. In a tree of even depth, classes are paths ("pets/cat").
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from PIL import Image

# Formats Pillow lists but that are documents, or that only a plug-in or another program can draw.
NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
PLUGINS = ("pillow_heif", "pillow_jxl", "pillow_avif")  # further formats, where installed
MAGIC = 16  # bytes, as many as Pillow's own formats look at
# Folders and files that systems, network storage, cameras and editors make for themselves, besides hidden ones.
SYSTEM = {
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@__thumb", "@sharebin", "#recycle", "#snapshot"),
    *("$recycle.bin", "recycler", "recycled", "system volume information", "lost+found", "__macosx", "__pycache__"),
    *("thmbnl", "canonmsc", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"),
}
SYSTEM_ENDINGS = (".lrdata", ".photoslibrary", ".cocatalog")  # catalogues of photograph editors, which are folders
VIDEO_THUMBNAIL = ".thm"  # a JPEG beside each video of a camera
REMEDIES = {
    "pip install pillow-heif to read them": ".heic .heif .hif",
    "pip install pillow-jxl-plugin to read them": ".jxl",
    "pip install 'pillow>=11.3' to read them": ".avif .avifs",
    "export raw photographs as JPEG or PNG": ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef "
    ".nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f",
    "videos: save frames of them as pictures": ".3gp .avi .flv .insv .lrv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts "
    ".ogv .ts .webm .wmv",
    "draw them as PNG": ".ai .eps .pdf .ps .svg .svgz .emf .wmf",
    "unpack them": ".7z .bz2 .gz .rar .tar .tgz .xz .zip",
    "labels are read from folders, not from tables": ".csv .tsv .xls .xlsx .parquet",
}
REMEDY = {suffix: remedy for remedy, suffixes in REMEDIES.items() for suffix in suffixes.split()}
BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), ".heic"),
    **{b"avif": ".avif", b"avis": ".avif", b"crx ": ".cr3", b"qt  ": ".mov"},
}
STARTS = {b"%PDF": ".pdf", b"PK\x03\x04": ".zip", b"\x1f\x8b": ".gz", b"\x1aE\xdf\xa3": ".mkv", b"%!PS": ".ps"}
SPLITS = {
    "train": "train training trn",
    "val": "val valid validation dev eval",
    "test": "test testing tst",
}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names.split()}
FILLING = {"set", "data", "dataset", "image", "images", "img", "imgs", "pictures", "photos"}  # of a split's name
NAMED = 3  # names given of a longer list
SUFFIXES_NAMED = 8


class ListedFile(NamedTuple):
    """One file below a root; size and times are its part of the cache key.

    Whoever repairs a file may keep its size and set its mtime back, but not its ctime.
    """

    path: str  # relative to the root, with forward slashes
    size: int  # bytes
    mtime_ns: int
    ctime_ns: int = 0


class Listing(NamedTuple):
    """What lies below a root.

    files: pictures, sorted by path.
    passed_over: number of other files by suffix, lower-case with its dot, "" where there is none.
    skipped: number of hidden and system folders by name, and of hidden pictures.
    empty: folders, relative to the root, below which no picture lies; not those inside another such folder.
    shut: reason by folder that could not be read.
    """

    files: list[ListedFile]
    passed_over: Counter[str]
    skipped: Counter[str]
    empty: list[str]
    shut: dict[str, str]

    @property
    def notes(self) -> list[str]:
        """What was left out, in sentences."""
        told = [f"folder {printable(name)} cannot be read ({reason}): left out" for name, reason in self.shut.items()]
        if self.passed_over:
            counted = [
                f"{n:,} {suffix or 'without suffix'}" + (f" ({REMEDY[suffix]})" if suffix in REMEDY else "")
                for suffix, n in sorted(self.passed_over.items(), key=lambda of: (of[0] not in REMEDY, -of[1], of[0]))
            ]
            told.append(f"files passed over: {few(counted, SUFFIXES_NAMED)}")
        if self.skipped:
            counted = [f"{name} ({n:,})" if n > 1 else name for name, n in self.skipped.most_common()]
            told.append(f"hidden and system files passed over: {few(counted, SUFFIXES_NAMED)}")
        return told


class Layout(NamedTuple):
    """Split and class of every file.

    splits: "train", "val" or "test"; "" in a folder that is not divided, and for files beside its splits.
    classes: name of the class; "" in a folder without classes, and for files beside the class folders.
    notes: what was guessed, in sentences.
    """

    splits: list[str]
    classes: list[str]
    notes: list[str]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Sorted; empty in a folder without classes."""
        return tuple(sorted({*self.classes} - {""}))


@cache
def load_plugins() -> None:
    """Let Pillow open the formats of the plug-ins that are installed."""
    Image.init()
    for name in PLUGINS:
        try:
            plugin = import_module(name)
            if hasattr(plugin, "register_heif_opener"):
                plugin.register_heif_opener()
        except ModuleNotFoundError:
            continue
        except Exception as error:  # installed, but without the library that it needs
            warnings.warn(f"{name} cannot be used ({error}): install it anew", stacklevel=2)


def image_suffixes() -> set[str]:
    """Lower-case file name endings, dot included, of the picture formats that Pillow can open."""
    load_plugins()
    return {s for s, form in Image.registered_extensions().items() if form in Image.OPEN and form not in NOT_PICTURES}


def list_images(root: Path) -> Listing:
    """Every picture below `root`, and what is passed over.

    Links to folders are followed, except back into a folder that is being listed or that holds the root.

    Raises:
        ValueError: for a root that cannot be read.
    """
    suffixes, found = image_suffixes(), Listing([], Counter(), Counter(), [], {})
    folders: list[str] = []

    def walk(folder: str, prefix: str, above: tuple) -> None:
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            found.shut[prefix] = error.strerror or type(error).__name__
            return
        folders.append(prefix)
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            path = prefix + entry.name
            try:
                status = entry.stat()
            except OSError:  # a link that leads nowhere or to itself: listed, so that decoding names it
                if suffix in suffixes and not entry.name.startswith("."):
                    found.files.append(ListedFile(path, -1, -1))
                continue
            if _of_a_system(entry.name):
                if stat.S_ISDIR(status.st_mode):
                    found.skipped[entry.name] += 1
                elif suffix in suffixes and not entry.name.startswith("._"):  # macOS writes ._x.png beside x.png
                    found.skipped[f"hidden {suffix}"] += 1
            elif stat.S_ISDIR(status.st_mode):
                identity = (status.st_dev, status.st_ino)
                if identity not in above:
                    walk(entry.path, f"{path}/", (*above, identity))
            elif suffix in suffixes or (stat.S_ISREG(status.st_mode) and _is_picture(entry.path, suffix)):
                found.files.append(ListedFile(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
            else:
                found.passed_over[suffix] += 1

    around = [os.stat(folder) for folder in (root, *root.resolve().parents)]
    walk(str(root), "", tuple((folder.st_dev, folder.st_ino) for folder in around))
    if "" in found.shut:
        raise ValueError(f"{root} cannot be read ({found.shut['']}): check its permissions")
    found.files.sort()
    within = {file.path[: i + 1] for file in found.files for i, c in enumerate(file.path) if c == "/"}
    empty = {folder for folder in folders if folder and folder not in within}
    found.empty.extend(sorted(f for f in empty if f[: f.rstrip("/").rfind("/") + 1] not in empty))
    return found


def _of_a_system(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM or name.lower().endswith(SYSTEM_ENDINGS)


def _is_picture(path: str, suffix: str) -> bool:
    """Whether the content is a picture. Raw photographs and many other things are TIFF with a suffix of their own."""
    form = picture_format(path)
    return form is not None and suffix != VIDEO_THUMBNAIL and not (form == "TIFF" and suffix)


def picture_format(path: str | Path) -> str | None:
    """Pillow's name for the format of a file's content, or None where that is no picture."""
    try:
        with open(path, "rb") as file:
            magic = file.read(MAGIC)
    except OSError:
        return None
    likely = claimed_formats(magic)
    if not likely:
        return None
    try:
        with Image.open(path, formats=likely) as image:
            return image.format
    except Exception as error:  # a picture, though one beyond a limit, is decoded or named later
        limited = isinstance(error, Image.DecompressionBombError) or "MAX_TEXT" in str(error)
        return likely[0] if limited else None


def claimed_formats(magic: bytes) -> list[str]:
    """Pillow's names for the picture formats of which a file can be that begins so."""
    if len(magic) < MAGIC:
        return []
    known = Image.OPEN.items()
    return [name for name, (_, accept) in known if name not in NOT_PICTURES and accept and accept(magic) is True]


def foreign_format(magic: bytes) -> str:
    """Usual suffix of a file that begins so, among those that Pillow does not open; "" if unknown."""
    if magic.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return ".jxl"
    if magic[4:8] == b"ftyp":
        return BRANDS.get(magic[8:12], ".mp4")
    return next((suffix for start, suffix in STARTS.items() if magic.startswith(start)), "")


def arrange(paths: Sequence[str]) -> Layout:
    """Split and class of files by the folders they lie in.

    Args:
        paths: relative to the root, with forward slashes.
    """
    folders = _without_shared([tuple(path.split("/")[:-1]) for path in paths])
    splits, level = [""] * len(paths), _split_level(folders)
    if level is not None:
        splits = [split_of(f[level]) if len(f) > level else "" for f in folders]
        inside = [f[:level] + f[level + 1 :] if split else () for f, split in zip(folders, splits, strict=True)]
        folders = _without_shared(inside)
    classes, notes = _class_of_each(folders)
    if len({*classes} - {""}) < 2:
        housed = sum("/" in path for path in paths) if level is None else sum(map(len, inside))
        notes = ["fewer than two folders hold pictures: no classes"] if housed else []
        classes = [""] * len(paths)
    elif 2 * sum(map(bool, classes)) < sum(map(bool, splits) if level is not None else map(bool, paths)):
        notes = [f"most pictures lie beside the folders, as {classes.count('')} of {len(paths)} do: no classes"]
        classes = [""] * len(paths)
    return Layout(splits, classes, notes + _uneven_classes(splits, classes))


def _without_shared(folders: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Folders without those that all files in folders share, such as the one an archive was unpacked into."""
    housed = [folder for folder in folders if folder]
    first, last = (min(housed), max(housed)) if housed else ((), ())
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return [folder[shared:] for folder in folders]


def _split_level(folders: list[tuple[str, ...]]) -> int | None:
    """Depth of the folders train and test or val: at the top, where others may lie beside, or below every class."""
    for level in range(max(map(len, folders), default=0)):
        kinds = {split_of(folder[level]) for folder in folders if len(folder) > level}
        if len(kinds - {""}) > 1 and ("" not in kinds or (level == 0 and "train" in kinds)):
            return level
    return None


def split_of(folder: str) -> str:
    """The split that a folder is named after, such as train2017, test_images or Val-Set; "" for none."""
    words = [word for word in re.findall(r"[^\W\d_]+", folder.lower()) if word not in FILLING]
    return SPLIT_OF.get(words[0].removesuffix("set"), "") if len(words) == 1 else ""


def _class_of_each(folders: list[tuple[str, ...]]) -> tuple[list[str], list[str]]:
    """Class of each file, "" for none, and what is to be said where classes are not folders of one level."""
    housed = [folder for folder in folders if folder]
    if len({len(folder) for folder in housed}) > 1:
        notes = ["pictures lie at several depths: a class is a folder of the first level"]
        return [folder[0] if folder else "" for folder in folders], notes
    telling = [level for level, names in enumerate(zip(*housed, strict=True)) if len(set(names)) > 1]
    classes = ["/".join(folder[level] for level in telling) if folder else "" for folder in folders]
    deep = f"pictures lie {len(telling)} folders deep: classes are named like {max(classes, default='')}"
    return classes, [deep] if len(telling) > 1 else []


def _uneven_classes(splits: list[str], classes: list[str]) -> list[str]:
    """Sentences on classes of one split only, and of one picture."""
    within: dict[str, set[str]] = {}
    for name, split in zip(classes, splits, strict=True):
        within.setdefault(name, set()).add(split)
    within.pop("", None)
    alone = [f"{name} ({split})" for name, (split, *more) in sorted(within.items()) if split and not more]
    single = sorted(name for name, n in Counter(classes).items() if name and n == 1)
    notes = [f"classes in one split only: {few(alone, NAMED)}"] if alone else []
    return notes + ([f"classes of one picture: {few(single, NAMED)}"] if single else [])


def few(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    return ", ".join(map(printable, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def printable(name: str) -> str:
    r"""A name that every file, page and terminal takes: bytes that are not UTF-8, and control characters, as \xNN."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: found[0].encode("unicode_escape").decode(), text)
