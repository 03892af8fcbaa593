"""Image sets, all of one form: shapes, emoji, CIFAR-10, CIFAR-100 and parts of it, folders, .npz files.

    load_images(name, split)  ->  ImageSet: images uint8 (N, 3, H, W), labels int64 (N,) or None, class_names

[K] One form for every source: CIFAR-100 is 150 MB as uint8, a larger set lies in a file (see `mapped`), and a training
step that indexes a tensor needs no loader processes. Class order is the sorted order of the class names, from a tree
and from torchvision's pickles alike (the *image* order differs, and with it which images `validation_split` draws).
What is asked for is loaded or an error says why not: there is never other data in its place.

Three training sets leave classes or images of CIFAR-100 out; their labels and class names stay those of all 100, and a
test set is never thinned:

    cifar100-80a   without four whole superclasses: every fifth of the twenty in the order of their names
    cifar100-80b   without one class of each superclass: the i-th superclass loses class i mod 5 of its own order
    cifar100-lt    a long tail: class c of C keeps floor(500 * 100^(-c / (C - 1))) images, from 500 down to 5

Sources: [R] the long tail is that of Cao et al. 2019 (after Cui et al. 2019): exponential, imbalance 100, classes in
the order of their names; [K] the two rules of 80 classes, which need no seed, and that images of the long tail are
drawn with seed 0.
"""

from __future__ import annotations

import difflib
import math
import os
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from sagkit import require
from sagkit.data.decode import LEFT_OUT, SEVERAL, Decoded, cache_folder, decode_images, usual_size
from sagkit.data.emoji import ATTRIBUTION, HELD_OUT, draw_emoji, emoji_table
from sagkit.data.files import read_arrays
from sagkit.data.folder import NAMED, Layout, Listing, arrange, few, list_images, printable
from sagkit.data.mapped import select
from sagkit.data.shapes import SHAPE_CLASSES, draw_shapes
from sagkit.data.taxonomy import CIFAR100_SUPERCLASSES

SPLITS = ("train", "test", "fit", "val", "unseen")
PARTS = ("fit", "val")  # of train
# The way out must be one for every command: `assess` has no --split.
NO_TEST = "give a folder with subfolders train and test; `sagkit train` does without by --split fit"
VALIDATION = 0.1  # fraction of train that "val" takes, by seed 0
SHAPES_IMAGES = {"train": 4096, "test": 1024}
SHAPES_SEED = {"train": 0, "test": 0x7E57_0000}  # far apart: a test set that no small seed of `shapes` repeats
CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
CIFAR_IMAGES = {"train": 50_000, "test": 10_000}
WHOLE = "cifar100"
SUBSETS = ("cifar100-80a", "cifar100-80b", "cifar100-lt")
IMBALANCE = 100  # images of the first class over those of the last, Cao et al. 2019
NAMES = ("shapes", "emoji", *CIFAR_CLASSES, *SUBSETS)  # no folder is meant by these
EVERY = 5  # of superclasses in 80a, and classes in a superclass


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels.

    Args:
        images: uint8 (N, 3, H, W).
        labels: positions in `class_names`, or None for images without classes.
        class_names: sorted; empty where `labels` is None. A class may have no image, in a subset for one.
        paths: file names relative to the folder they came from, the names of emoji, or None.
        unreadable: file name and reason of each file of that folder that was left out.
        notes: what else there is to say about that folder, in sentences: files passed over, guesses about its layout.

    Raises:
        ValueError: for a wrong shape or dtype, labels outside the classes, or lengths that differ.
    """

    # Plain Tensor: the checks below answer in words, and under tests jaxtyping would come before them.
    images: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    paths: tuple[str, ...] | None = None
    unreadable: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        images, labels, classes = self.images, self.labels, len(self.class_names)
        check_images(images)
        if self.paths is not None and len(self.paths) != len(images):
            raise ValueError(f"{len(self.paths)} paths for {len(images)} images: give one each, or None")
        check_labels(labels, len(images), classes)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index) -> ImageSet:
        """The rows that `index` (positions, a mask or a slice) selects, under the same class names."""
        rows = torch.arange(len(self))[index]
        return replace(
            self,
            images=select(self.images, rows, cache_folder()),
            labels=None if self.labels is None else self.labels[rows],
            paths=None if self.paths is None else tuple(self.paths[i] for i in rows.tolist()),
        )


def check_images(images) -> None:
    """Refuse images that are no tensor uint8 (N, 3, H, W).

    Raises:
        ValueError: naming what was found.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        found = f"{getattr(images, 'dtype', type(images).__name__)} {tuple(getattr(images, 'shape', ()))}"
        found = found.removeprefix("torch.") if isinstance(images, Tensor) else f"no tensor, {found}"
        raise ValueError(f"images must be uint8 (N, 3, H, W), got {found}: convert to 8-bit RGB, channels first")


def check_labels(labels: Tensor | None, n: int, classes: int) -> None:
    """Refuse labels that are not int64 (n,), positions among so many classes; None goes with no class alone.

    Raises:
        ValueError: naming what was found.
    """
    if labels is None:
        if classes:
            raise ValueError(f"{classes} class names without labels: give labels too, or no class names")
        return
    if labels.dtype != torch.int64 or labels.shape != (n,):
        found = f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}"
        raise ValueError(f"labels must be int64 ({n},), one an image, got {found}")
    if n and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        found = f"{int(labels.min())}..{int(labels.max())}"
        raise ValueError(f"labels must lie in [0, {classes - 1}] for {classes} class names, got {found}")


def load_images(
    name: str | os.PathLike[str],
    split: str = "train",
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    *,
    size: int | None = None,
    strict: bool = False,
) -> ImageSet:
    """Load a named image set, a folder or an .npz file.

    Of a folder, see `load_folder`. Write "./shapes" for a folder whose name is taken.

    Args:
        name: "shapes", "emoji", "cifar10", "cifar100", a part of it ("cifar100-80a", "cifar100-80b", "cifar100-lt";
            see above), or the path of a folder or .npz file (arrays `images`, uint8 and channels first or last,
            and optionally `labels`, `class_names`).
        split: "train", "test", or the parts "fit" and "val" of train (`validation_split`, 10 per cent, seed 0); for a
            set that leaves classes out, also "unseen", their test images.
        root: where CIFAR is looked for and downloaded to: SAGKIT_DATA by default, else ~/.cache/sagkit. Either a tree
            `[cifar100/]{train,test}/<class>/<image>` or torchvision's pickles.
        download: let torchvision fetch CIFAR where it is not found.
        size: H = W of shapes and emoji (default 32) and folders (default 64, or 32 if most images are smaller than 64);
            folder images are scaled to it by their shorter side and cropped at the centre.
        strict: an unreadable image in a folder is an error instead of left out with a warning.

    Raises:
        ValueError: for an unknown name or split, data that is missing, incomplete or malformed, or fewer than two
            images.
    """
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise ValueError(f"no image set is called {name!r}: give one of {', '.join(NAMES)}, a folder, or an .npz file")
    if split == "unseen" and not len(left_out(str(name))):
        raise ValueError(f"{name} leaves no class out, so that nothing is unseen: use cifar100-80a or cifar100-80b")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(SPLITS[:-1])}")
    path = Path(name).expanduser()
    if name not in NAMES and path.is_dir():
        return load_folder(path, split, size=size, strict=strict)
    if split in PARTS:
        return validation_part(load_images(name, "train", root, download, size=size), split)
    if name in SUBSETS:
        whole = load_images(WHOLE, "train" if split == "train" else "test", root, download, size=size)
        if split == "unseen":
            return whole.subset(torch.isin(whole.labels, left_out(name)))
        return whole.subset(kept_rows(name, whole.labels)) if split == "train" else whole
    if name == "shapes":
        return make_shapes(SHAPES_IMAGES[split], 32 if size is None else size, SHAPES_SEED[split])
    if name == "emoji":
        return _emoji(split, 32 if size is None else size)
    if size is not None and (name in CIFAR_CLASSES or path.suffix == ".npz"):
        raise ValueError(f"size={size} applies to shapes, emoji and folders; {name} keeps its own: leave size out")
    if name in CIFAR_CLASSES:
        return _cifar(name, split, Path(root or os.environ.get("SAGKIT_DATA") or cache_folder()), download)
    if path.suffix == ".npz" and path.is_file():
        return _two_or_more(_npz(path, split), str(path))
    raise ValueError(_unknown(str(name), path))


def load_folder(
    path: str | os.PathLike[str], split: str | None = None, *, size: int | None = None, strict: bool = False
) -> ImageSet:
    """Load a folder of pictures, read at every depth.

    Classes are its folders and splits its folders train and test, at the top or below each class, in capitals or not,
    also called training, testing, val, valid, ...; see `folder.arrange`. What is passed over or guessed is warned of,
    and kept in the set's `notes`.

    Args:
        path: the folder, never the name of another set.
        split: as of `load_images`, or None for all pictures, whatever split they lie in. A folder val is the test
            split where there is no folder test, and the split "val" where there is.
        size: H = W; see `load_images`.
        strict: refuse a picture that cannot be read instead of leaving it out with a warning.

    Raises:
        ValueError: for a split that the folder does not have, a folder that cannot be read, a picture that cannot
            under `strict`, or fewer than two pictures.
    """
    path = Path(path).expanduser()
    if size is not None:
        require("size", size, "[1, inf)", "pixels of a side", whole=True)
    if split not in (None, *SPLITS[:-1]):
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(SPLITS[:-1])}")
    if not path.is_dir():
        raise ValueError(f"{path} is no folder: give the folder that holds the pictures")
    found = list_images(path)
    if not found.files:
        passed = "".join(f"; {note}" for note in found.notes)
        raise ValueError(f"no images under {path}: give a folder of files that Pillow reads (.png, .jpg, ...){passed}")
    paths = [printable(file.path) for file in found.files]
    layout = arrange(paths)
    chosen, part = _folders_of(split, {*layout.splits} - {""}, path)
    # All splits are decoded together, so that they come in one size and at one depth.
    decoded = decode_images(path, found.files, size or usual_size([path / file.path for file in found.files]))
    labelled = any(label for name, label in zip(layout.splits, layout.classes, strict=True) if name in chosen)
    classes = layout.class_names if labelled else ()
    placed = [
        name in chosen and bool(label or not classes) for name, label in zip(layout.splits, layout.classes, strict=True)
    ]
    read = decoded.outcome != LEFT_OUT  # (N,)
    unreadable = [
        (paths[row], decoded.reasons[found.files[row].path])
        for row, here in enumerate(placed)
        if here and not read[row]
    ]
    if unreadable:
        told = few([f"{name} ({reason})" for name, reason in unreadable], 1)
        told = f"{len(unreadable)} of {sum(placed)} images under {path} cannot be read: {told}"
        if strict:
            raise ValueError(f"{told}; repair or remove them")
        warnings.warn(f"{told}; left out", stacklevel=2)
    notes = _notes(found, layout, decoded, chosen, paths, placed, labelled)
    for note in notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    rows = (read & torch.tensor(placed)).nonzero()[:, 0]
    images = decoded.images
    if len(rows) < len(images):
        images = select(images, (read.cumsum(dim=0) - 1)[rows], cache_folder())
    number = {name: c for c, name in enumerate(classes)}
    labels = torch.tensor([number[layout.classes[row]] for row in rows.tolist()]).long() if classes else None
    names = tuple(paths[row] for row in rows.tolist())
    whole = ImageSet(images, labels, classes, names, tuple(unreadable), tuple(notes))
    _two_or_more(whole, str(path))
    return _two_or_more(validation_part(whole, part), f"split {part} of {path}") if part else whole


def _folders_of(split: str | None, there: set[str], path: Path) -> tuple[set[str], str | None]:
    """Which of a folder's own splits a split consists of ("" for files in none), and the part of them if any."""
    if split == "test" and not there:
        raise ValueError(f"{path} has no test split: {NO_TEST}")
    if split is None:
        return {*there, ""}, None
    if split in ("train", "fit") and there and "train" not in there:
        raise ValueError(f"{path} has no train split, only {' and '.join(sorted(there))}: give a folder train, too")
    if split == "test":
        return {"test"} & there or {"val"}, None
    if split in PARTS and there == {"train", "val", "test"}:
        return {"train" if split == "fit" else "val"}, None
    return {"train"} & there or {""}, split if split in PARTS else None


def _notes(
    found: Listing,
    layout: Layout,
    decoded: Decoded,
    chosen: set[str],
    paths: list[str],
    placed: list[bool],
    labelled: bool,
) -> list[str]:
    """What a user might not expect of the part of a folder that was read, in sentences."""
    splits = Counter(layout.splits)
    notes = [*found.notes, *layout.notes]
    beside = [
        path
        for path, split, label in zip(paths, layout.splits, layout.classes, strict=True)
        if (labelled and not label) or split not in {*splits} - {""} | chosen
    ]
    if beside:
        where = "class folders" if labelled else "splits"
        notes.append(f"pictures beside the {where}, left out until they are moved into one: {few(beside, NAMED)}")
    if layout.class_names and not labelled:
        notes.append(f"no classes in split {', '.join(sorted(chosen))}: read without labels")
    if found.empty and labelled:
        notes.append(f"folders without a picture: {few(found.empty, NAMED)}")
    if len(chosen - {""}) > 1:
        notes.append("all splits are read together: " + ", ".join(f"{s} ({splits[s]:,})" for s in sorted(chosen) if s))
    if chosen == {"val"} and "test" not in splits:
        notes.append("its folder val is its test split")
    several = [
        path for path, here, what in zip(paths, placed, decoded.outcome, strict=True) if here and what == SEVERAL
    ]
    if several:
        notes.append(f"files of several frames or pages, of which the first is read: {few(several, NAMED)}")
    return [*notes, decoded.depth] if decoded.depth else notes


def _two_or_more(images: ImageSet, source: str) -> ImageSet:
    if len(images) < 2:
        told = "".join(f"; {note}" for note in images.notes)
        raise ValueError(f"{source} holds {len(images)} readable image: at least 2 are needed to compare any{told}")
    return images


def load_bank(name: str, split: str = "train", root: str | os.PathLike[str] | None = None) -> ImageSet:
    """Images whose labels may be used to judge an encoder trained on this set: of a subset of CIFAR-100, all of it.

    With a class missing from the bank, every image of it would count as a mistake; with a long-tailed bank, the figure
    would measure the bank's imbalance and not the encoder.
    """
    return load_images(WHOLE if name in SUBSETS and split == "train" else name, split, root)


def make_shapes(n: int, size: int = 32, seed: int = 0) -> ImageSet:
    """`n` procedural images of the 27 classes of `shapes`, in mixed order; class counts differ by at most 1.

    Args:
        n: number of images.
        size: H = W, at least 8.
        seed: fixes everything; equal seeds give equal sets.

    Raises:
        ValueError: for a negative n or seed, or a size below 8.
    """
    require("n", n, "[0, inf)", "it counts images", whole=True)
    require("seed", seed, "[0, inf)", "0 is the default", whole=True)
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(n) % len(SHAPE_CLASSES))[torch.randperm(n, generator=generator)]
    return ImageSet(draw_shapes(labels, size, generator), labels, SHAPE_CLASSES)


def validation_split(
    labels_or_n: Int64[Tensor, "N"] | int, fraction: float = 0.1, seed: int = 0
) -> tuple[Int64[Tensor, "fit"], Int64[Tensor, "val"]]:
    """Split rows in two at random; with labels, every class in the same proportion.

    Each class gives floor or ceil of fraction times its size, the rounding going to the largest remainders, so that
    the total is round(fraction N). The last image of a class always stays in fit.

    Args:
        labels_or_n: labels to stratify by, or the number of unlabelled rows.
        fraction: share of the second part, in (0, 1).
        seed: of the draw.

    Returns:
        Sorted row numbers of fit and of val.

    Raises:
        ValueError: for a fraction outside (0, 1), or when one part would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie in (0, 1), got {fraction}")
    labels = torch.zeros(labels_or_n, dtype=torch.int64) if isinstance(labels_or_n, int) else labels_or_n
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    members = [order[labels[order] == c] for c in labels.unique().tolist()]
    share = [fraction * len(rows) for rows in members]
    take = [math.floor(s) for s in share]
    spare = round(fraction * len(labels)) - sum(take)
    for c in sorted(range(len(members)), key=lambda c: take[c] - share[c]):
        if spare > 0 and take[c] + 1 < len(members[c]):
            take[c], spare = take[c] + 1, spare - 1
    val = torch.cat([rows[:k] for rows, k in zip(members, take, strict=True)]) if members else order
    fit = torch.cat([rows[k:] for rows, k in zip(members, take, strict=True)]) if members else order
    if not len(val):
        raise ValueError(
            f"{fraction} of {len(labels)} images leaves no validation image: use more images, two or more of a class"
        )
    return fit.sort().values, val.sort().values


def attribution(name: str) -> str:
    """What stands under pictures of a data set; empty where nobody asks for it."""
    return ATTRIBUTION if name == "emoji" else ""


def validation_part(whole: ImageSet, part: str) -> ImageSet:
    """ "fit" or "val" of a training set: nine tenths and one tenth of it, by seed 0."""
    fit, val = validation_split(len(whole) if whole.labels is None else whole.labels, VALIDATION, seed=0)
    return whole.subset(fit if part == "fit" else val)


def family(name: str) -> str:
    """The data set whose classes a training set has: "cifar100" for its subsets, else the name itself."""
    return WHOLE if name in SUBSETS else name


def left_out(name: str) -> Int64[Tensor, " classes"]:
    """Classes of all 100 that a training set has no image of, ascending; none for any other name than the 80s."""
    groups = [sorted(members.split()) for _, members in sorted(CIFAR100_SUPERCLASSES.items())]
    names = sorted(member for group in groups for member in group)
    if name == "cifar100-80a":
        gone = [member for group in groups[EVERY - 1 :: EVERY] for member in group]
    elif name == "cifar100-80b":
        gone = [group[i % EVERY] for i, group in enumerate(groups)]
    else:
        gone = []
    return torch.tensor(sorted(names.index(member) for member in gone), dtype=torch.int64)


def kept_rows(name: str, labels: Int64[Tensor, " N"]) -> Int64[Tensor, " n"]:
    """Rows of CIFAR-100's training set that a subset keeps, ascending.

    Args:
        name: one of SUBSETS.
        labels: of the training set, 0 to 99.
    """
    if name != "cifar100-lt":
        return torch.isin(labels, left_out(name), invert=True).nonzero()[:, 0]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    members = [order[labels[order] == c] for c in range(int(labels.max()) + 1)]
    last = len(members) - 1
    # A float power may fall a hair short of a whole number: 500 / 100 is 5 images and not 4.
    keep = [int(len(rows) * IMBALANCE ** (-c / last) + 1e-9) for c, rows in enumerate(members)]
    return torch.cat([rows[:n] for rows, n in zip(members, keep, strict=True)]).sort().values


def _emoji(split: str, size: int) -> ImageSet:
    _, classes, names = emoji_table()
    known = tuple(sorted(set(classes)))
    labels = torch.tensor([known.index(name) for name in classes])
    train, test = validation_split(labels, HELD_OUT / len(labels), seed=0)
    return ImageSet(draw_emoji(size), labels, known, names).subset(test if split == "test" else train)


def _cifar(name: str, split: str, root: Path, download: bool) -> ImageSet:
    for tree in (root / name / split, root / split):
        folders = [c for c in tree.iterdir() if c.is_dir() and not c.name.startswith(".")] if tree.is_dir() else []
        if len(folders) == CIFAR_CLASSES[name] or (folders and tree.parent.name == name):
            return _cifar_tree(tree, name, split)
    from torchvision import datasets  # here, because importing torchvision takes seconds

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    place = next((p for p in (root / name, root) if (p / kind.base_folder).is_dir()), root)
    try:
        return _cifar_pickles(kind(str(place), train=split == "train", download=download))
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
    failed = "the download failed" if download else "downloads are switched off"
    raise ValueError(
        f"{name} was not found under {root}, and {failed} ({reason}): set SAGKIT_DATA to a folder that holds "
        f"{name}/{split}/<class>/*.png or {kind.base_folder}/, or run once where there is a network"
    )


def _cifar_tree(tree: Path, name: str, split: str) -> ImageSet:
    files = list_images(tree).files
    layout = arrange([file.path for file in files])
    classes = layout.class_names
    if len(files) != CIFAR_IMAGES[split] or len(classes) != CIFAR_CLASSES[name]:
        raise ValueError(
            f"{tree} holds {len(files):,} images in {len(classes)} class folders, and {name} has "
            f"{CIFAR_IMAGES[split]:,} in {CIFAR_CLASSES[name]}: "
            "unpack it again, or load a part of it as a folder, by its path"
        )
    decoded = decode_images(tree, files, 32)
    if decoded.reasons:
        first, reason = next(iter(decoded.reasons.items()))
        told = f"{len(decoded.reasons)} of {len(files):,} images under {tree} cannot be read: {first} ({reason})"
        raise ValueError(f"{told}; unpack {name} again")
    labels = torch.tensor([classes.index(label) for label in layout.classes])
    return ImageSet(decoded.images, labels, classes, tuple(file.path for file in files))


def _cifar_pickles(source) -> ImageSet:
    """torchvision's arrays as they are: it checks their MD5 sums, and lists both sets' classes in sorted order."""
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()  # (N, 3, H, W)
    return ImageSet(images, torch.tensor(source.targets), tuple(source.classes))


def _npz(path: Path, split: str) -> ImageSet:
    if split == "test":
        raise ValueError(f"{path} has no test split, as no .npz file has: {NO_TEST}")
    found = read_arrays(path, ("images", "labels", "class_names"))
    images, labels = found.get("images"), found.get("labels")
    if images is None:
        raise ValueError(f"{path} has no array 'images': save it as numpy.savez(path, images=...)")
    if images.ndim == 4 and images.shape[1] != 3 and images.shape[3] == 3:
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"{path}: images must be uint8 (N, 3, H, W) or (N, H, W, 3), got {images.dtype} {images.shape}"
        )
    images = torch.from_numpy(np.ascontiguousarray(images))
    if labels is None:
        return ImageSet(images)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iuUS":
        raise ValueError(
            f"{path}: labels must be integers or names ({len(images)},), got {labels.dtype} {labels.shape}"
        )
    if labels.dtype.kind in "US":
        names = np.char.decode(labels, "utf-8", "backslashreplace") if labels.dtype.kind == "S" else labels
        found["class_names"], labels = np.unique(names, return_inverse=True)
    labels = torch.from_numpy(labels.astype(np.int64))
    count = int(labels.max()) + 1 if len(labels) else 0
    names = found.get("class_names", np.arange(count))
    return ImageSet(images, labels, tuple(str(name) for name in names.tolist()))


def _unknown(name: str, path: Path) -> str:
    if path.exists():
        return f"{name} is neither a folder nor an .npz file: give the folder that holds it"
    if path.suffix == ".npz" or len(path.parts) > 1 or name.startswith(("~", ".")):
        return f"{name} does not exist: check the path" + ("" if path.is_absolute() else f" ({path.absolute()})")
    near = difflib.get_close_matches(name.lower(), NAMES, n=3, cutoff=0.5) or NAMES
    return f"unknown image set {name!r}: did you mean {', '.join(near)}? Or give the path of a folder or .npz file"
