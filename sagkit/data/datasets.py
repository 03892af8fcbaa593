"""Other people's data sets as an `ImageSet`: anything that torch's DataLoader reads, in one pass.

    collect(torch.utils.data.Dataset | DataLoader | IterableDataset)  ->  ImageSet

[K] A data set is read once, in its own order and by the loader's processes, and kept as bytes (see `mapped`): so it is
trained on, resumed, judged and recorded like any folder, and slow decoding is paid for once instead of each epoch.
Its random transforms are then drawn once, too; views of images are made in every step by the trainer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from tempfile import SpooledTemporaryFile

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm.auto import tqdm

from sagkit.data import mapped
from sagkit.data.decode import PROGRESS_FROM, cache_folder
from sagkit.data.load import ImageSet

IMAGE_KEYS = ("image", "img", "images", "pixel_values", "jpg", "jpeg", "png", "webp")  # of Hugging Face and WebDataset
LABEL_KEYS = ("label", "labels", "fine_label", "cls", "target")
SEVERAL = 64  # items that a worker hands over at once


def collect(source: Dataset | DataLoader, size: int | None = None, workers: int = 0) -> ImageSet:
    """Read a data set into an `ImageSet`.

    Args:
        source: items are images, (image, label, ...) or mappings with one of IMAGE_KEYS and perhaps one of LABEL_KEYS.
            An image is a Pillow picture, uint8 (3, H, W) or (H, W, 3), or floats in [0, 1] (3, H, W). Of a DataLoader,
            its data set is read in order, unless that has none; labels are whole numbers or names.
        size: H = W of Pillow pictures, scaled by the shorter side and cropped at the centre; by default all must have
            one size.
        workers: processes that read; those of a DataLoader by default.

    Raises:
        ValueError: for items without an image, of several sizes, or with values outside [0, 1]; naming the item.
    """
    if isinstance(source, DataLoader):
        workers, source = workers or source.num_workers, source.dataset
    streams = isinstance(source, IterableDataset)
    loader = DataLoader(source, SEVERAL, num_workers=workers, collate_fn=list)
    shape, labels, count = None, [], 0
    with SpooledTemporaryFile(mapped.IN_MEMORY, dir=_made(cache_folder())) as file:
        total = None if streams else len(source)
        quiet = total is not None and total <= PROGRESS_FROM
        for item in tqdm((i for items in loader for i in items), "reading", total, unit="image", disable=quiet):
            picture, label = _parts(item, count)
            pixels = _bytes(picture, size, count)
            if pixels.shape != (shape := shape or pixels.shape):
                raise ValueError(
                    f"item {count} has shape {pixels.shape}, and the first {shape}: give a size, such as 64"
                )
            file.write(pixels.tobytes())
            labels.append(label)
            count += 1
        if shape is None:
            raise ValueError(f"{type(source).__name__} has no items: give one with images")
        images = _read(file, (count, *shape))
    return ImageSet(images, *_named(labels, _names(source)))


def _made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _read(file: SpooledTemporaryFile, shape: tuple[int, ...]) -> Tensor:
    """The bytes that were written, in memory or mapped; the file has no name, and lives as long as the tensor."""
    file.seek(0)
    if mapped.is_large(shape):
        file.rollover()
        return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=shape))
    return torch.from_numpy(np.frombuffer(bytearray(file.read()), np.uint8).reshape(shape))


def _parts(item, row: int) -> tuple[object, object]:
    """Image and label of an item; None where it has no label."""
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGE_KEYS if key in item), None)
        if image is None:
            raise ValueError(f"item {row} has the keys {', '.join(map(str, item))}: name its image {IMAGE_KEYS[0]!r}")
        return image, next((item[key] for key in LABEL_KEYS if key in item), None)
    if isinstance(item, Sequence) and not isinstance(item, str | bytes):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _bytes(picture, size: int | None, row: int) -> np.ndarray:
    """An image as uint8 (3, H, W)."""
    if isinstance(picture, Image.Image):
        picture = picture.convert("RGB")
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC) if size else picture
        return np.asarray(picture).transpose(2, 0, 1)
    if not isinstance(picture, Tensor | np.ndarray):
        raise ValueError(f"item {row} is of type {type(picture).__name__}: give a picture, an array or a tensor")
    values = np.asarray(picture)
    if values.dtype == np.uint8 and values.ndim == 3 and values.shape[0] != 3 and values.shape[2] == 3:
        values = values.transpose(2, 0, 1)
    if values.ndim != 3 or values.shape[0] != 3:
        raise ValueError(f"item {row} has shape {values.shape}: an image is (3, H, W), of three colours")
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f" or not 0 <= values.min() <= values.max() <= 1:  # false of NaN, too
        found = f"{values.dtype} from {values.min():.4g} to {values.max():.4g}"
        raise ValueError(f"item {row} is {found}: leave Normalize out, and give uint8 or floats in [0, 1]")
    return (values.astype(np.float64) * 255).round().astype(np.uint8)


def _names(source) -> Sequence[str]:
    """Names of a data set's classes, as torchvision and Hugging Face keep them; of a Subset, those of the whole."""
    while (inner := getattr(source, "dataset", None)) is not None:
        source = inner
    features = getattr(source, "features", None) or {}
    told = next((features[key] for key in LABEL_KEYS if key in features), None)
    return getattr(told, "names", None) or getattr(source, "classes", None) or ()


def _named(labels: list, names: Sequence[str]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels as positions in class names; names in the order of the data set, and of strings in sorted order."""
    if all(label is None for label in labels):
        return None, ()
    for row, label in enumerate(labels):
        if not isinstance(label, str) and not hasattr(label, "__index__"):
            found = "no label" if label is None else f"a label of type {type(label).__name__}"
            raise ValueError(f"item {row} has {found}: labels are whole numbers or names, of all items or of none")
    if any(isinstance(label, str) for label in labels):
        labels = [str(label) for label in labels]
        names = sorted(set(labels))
        position = {name: c for c, name in enumerate(names)}
        labels = [position[label] for label in labels]
    numbers = torch.tensor([int(label) for label in labels])
    names = [str(name) for name in names] or [str(c) for c in range(int(numbers.max()) + 1)]
    return numbers, tuple(names)
