"""A folder of photographs to try the kit on without a download: crops of pictures that other packages bring along.

Two photographs of scikit-learn, china and flower, are divided into 2 x 3 regions, and each region that is not empty is
a class: crops at random places of it, mirrored, rotated by up to 15 degrees, at another brightness. The anomalies are
crops of another photograph (matplotlib's grace_hopper.jpg), and crops of the same photographs with their quarters
permuted, their red and blue channels swapped, or blurred. A few copies and two broken files are added. [K]
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from sagkit.data.files import write_atomically, write_text
from sagkit.data.folder import NAMED, few, list_images

ODD = "odd"  # the class folder of the anomalies
CROP, STORED = 128, 64  # pixels: side of the crop, and of the stored image
REGIONS = (2, 3)
EMPTY = {("china", 0, 2), ("flower", 0, 0), ("flower", 0, 2), ("flower", 1, 0), ("flower", 1, 2)}  # sky, dark ground
OURS = re.compile(r"(china|flower)-[ab]\d/(\d{3}\.jpg|copy of 000\.jpg|cut off\.jpg|empty\.png)|odd/[a-z]+-\d{3}\.jpg")


def make_photo_folder(folder: str | Path, per_class: int = 80, odd: int = 40, seed: int = 0) -> Path:
    """Write the folder: 7 classes of `per_class` crops, `odd` anomalies, 6 copies and 2 broken files.

    Args:
        folder: made if need be; what was written here before is replaced.
        per_class: crops of each region.
        odd: anomalies, a quarter of each kind.
        seed: of every draw.

    Raises:
        ValueError: for a folder that holds pictures of somebody else.
    """
    refuse_others(Path(folder))
    from matplotlib import get_data_path
    from sklearn.datasets import load_sample_images

    folder, draw = Path(folder), np.random.default_rng(seed)
    bundled = load_sample_images()
    photos = {Path(n).stem: Image.fromarray(i) for n, i in zip(bundled.filenames, bundled.images, strict=True)}
    other = Image.open(Path(get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    every = [(name, r, c) for name in sorted(photos) for r in range(REGIONS[0]) for c in range(REGIONS[1])]
    regions = [region for region in every if region not in EMPTY]
    for name, r, c in regions:
        place = folder / f"{name}-{'ab'[r]}{c + 1}"
        for i in range(per_class):
            _save(_crop(photos[name], draw, r, c), place / f"{i:03d}.jpg")
    kinds = ("other", "moved", "colours", "blurred")
    for i in range(odd):
        name, r, c = regions[draw.integers(len(regions))]
        kind = kinds[i % len(kinds)]
        crop = _crop(other if kind == "other" else photos[name], draw, r, c)
        _save(_spoil(crop, kind, draw), folder / ODD / f"{kind}-{i:03d}.jpg")
    first = [folder / name for name in ("china-a1", "china-a2", "china-b1", "china-b2", "china-b3", "flower-a2")]
    for place in first:  # recompressed copies
        _save(Image.open(place / "000.jpg"), place / "copy of 000.jpg", quality=60)
    whole = (first[0] / "001.jpg").read_bytes()
    write_atomically(first[0] / "cut off.jpg", lambda draft: draft.write_bytes(whole[: len(whole) // 2]))
    write_text(first[1] / "empty.png", "")
    return folder


def refuse_others(folder: Path) -> None:
    """Refuse a folder with pictures that are not called as ours are: they would be mixed with them."""
    if not folder.is_dir():
        return
    theirs = [file.path for file in list_images(folder).files if not OURS.fullmatch(file.path)]
    if theirs:
        raise ValueError(f"{folder} holds pictures of yours ({few(theirs, NAMED)}): choose another folder for ours")


def _save(image: Image.Image, path: Path, quality: int = 92) -> None:
    write_atomically(path, lambda draft: image.save(draft, "JPEG", quality=quality))


def _crop(photo: Image.Image, draw: np.random.Generator, r: int, c: int) -> Image.Image:
    """A rotated, perhaps mirrored crop at a random brightness whose centre lies in region (r, c)."""
    height, width = photo.height / REGIONS[0], photo.width / REGIONS[1]
    side = int(min(CROP, height, width))
    top = (r + 0.5) * height - side / 2 + draw.uniform(-0.25, 0.25) * (height - 0.5 * side)
    left = (c + 0.5) * width - side / 2 + draw.uniform(-0.25, 0.25) * (width - 0.5 * side)
    top, left = (float(np.clip(v, 0, most - side)) for v, most in ((top, photo.height), (left, photo.width)))
    around = photo.crop(
        (int(left) - side // 2, int(top) - side // 2, int(left) + 3 * side // 2, int(top) + 3 * side // 2)
    )
    turned = around.rotate(draw.uniform(-15, 15), Image.Resampling.BICUBIC)
    crop = turned.crop((side // 2, side // 2, side // 2 + side, side // 2 + side))
    crop = crop.resize((STORED, STORED), Image.Resampling.BICUBIC)
    if draw.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(crop).enhance(draw.uniform(0.75, 1.25))


def _spoil(crop: Image.Image, kind: str, draw: np.random.Generator) -> Image.Image:
    """The crop as an anomaly of a kind; "other" leaves it as it is."""
    if kind == "moved":  # its quarters change places
        h, order = STORED // 2, draw.permutation(4)
        while (order == np.arange(4)).any():
            order = draw.permutation(4)
        parts = [crop.crop((x, y, x + h, y + h)) for y in (0, h) for x in (0, h)]
        for place, part in enumerate(order):
            crop.paste(parts[part], (place % 2 * h, place // 2 * h))
        return crop
    if kind == "colours":
        red, green, blue = crop.split()
        return Image.merge("RGB", (blue, red, green))
    return crop.filter(ImageFilter.GaussianBlur(4)) if kind == "blurred" else crop
