"""Explore images by their neighbours and walks: in a notebook, or in a browser tab.

    sagkit.explore(images, encoder)      in a notebook; `serve` has the command for a browser tab

A map of all images, the neighbourhood of the one that is chosen, its walks step by step, its look-alikes, and the pairs
that its walks make. One front end (board.js) asks one pure function (`answers.Explorer.ask`), by messages of a widget
or by requests to this machine (`serve`). Nothing is fetched from elsewhere. [K]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sagkit import remedy
from sagkit.data.decode import usual_size
from sagkit.data.folder import list_images
from sagkit.data.load import NAMES, ImageSet, attribution, load_folder, load_images
from sagkit.model import IMAGENET_MEAN, IMAGENET_STD, Encoder, extract_features, make_encoder
from sagkit.show.answers import Explorer, Setting
from sagkit.show.maps import principal
from sagkit.show.scene import make_scene
from sagkit.train.record import load_encoder

MOST = 20_000  # images; more make neither a readable map nor a quick one
SHARP, SHARP_UP_TO = 128, 4000  # pixels at which a folder is read for the eye, where it has at most so many files
DRAWN = ("shapes", "emoji")  # sets that are drawn at any size
ENCODED, AT_ONCE = 64, 100  # pixels that an encoder sees which names no size of its own; images at a time
PIXELS, COMPONENTS = 32, 64  # without an encoder: principal components of images of so many pixels


def explore(
    images,
    encoder=None,
    *,
    labels=None,
    class_names: Sequence[str] | None = None,
    map_seed: int = 0,
    progress: bool = True,
    **setting: Any,
):
    """A view of images to move around in; the value of a notebook's cell.

    Args:
        images: a folder or .npz, a data set by name ("shapes"), an `ImageSet`, or an array (N, 3, H, W) or (N, H, W, 3)
            or (N, H, W) of bytes or of floats in [0, 1]; up to 20,000.
        encoder: path of a stored encoder of ours, "timm:NAME" (published weights, needs a network), any module from
            (B, 3, H, W) in [0, 1] to (B, F), features (N, F), or None for the pixels themselves (64 principal
            components of 32 x 32 pixels [K]).
        labels: a class of each image, whole numbers or names, where `images` has none.
        class_names: of whole-number labels; names like "family/kind" have superclasses.
        map_seed: of the UMAP.
        progress: print what is being done.
        setting: what to begin with, see `answers.Setting`: anchor=12, k=5, length=2, mutual=True, ...

    Raises:
        ValueError: for images, features, labels or a setting that make no view.
    """
    try:
        from sagkit.show.widgets import Board  # here, because a browser tab needs no widgets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"sagkit.explore: {remedy(error, 'notebooks')}", name=error.name) from None
    explorer = make_explorer(images, encoder, labels, class_names, map_seed, progress, setting)
    return Board(explorer.ask, f"explore {explorer.title}")


def make_explorer(
    images,
    encoder=None,
    labels=None,
    class_names=None,
    seed: int = 0,
    progress: bool = True,
    setting=None,
    told: Callable[[str], None] | None = None,
) -> Explorer:
    """What `explore` shows, without a front end; arguments are those of `explore`, and `told` hears the progress."""
    tell = _Progress(progress, told)
    chosen = Setting.of(setting or {})
    tell("reading images")
    found, source = image_set(images, labels, class_names)
    if len(found) > MOST:
        raise ValueError(f"{len(found):,} images: explore at most {MOST:,}, for one images.subset(slice({MOST}))")
    if "k" not in (setting or {}):
        chosen = Setting.of({**(setting or {}), "k": min(Setting.k, len(found) - 1)})
    tell(f"{len(found):,} images: encoding")
    features, of = features_of(found.images, encoder)
    scene = make_scene(found.images, found.labels, found.class_names, features, names=found.paths, seed=seed)
    code = f"sagkit.explore({source}{f', {_in_code(encoder)}' if encoder is not None else ''}"
    code += f"{f', map_seed={seed}' if seed else ''}{{}})"
    title = f"{name_of(images)}{len(found):,} images, {of}"
    explorer = Explorer(scene, chosen, title, code, attribution(str(images)) if isinstance(images, str) else "")
    tell(f"{len(found):,} images: neighbours and walks")
    explorer.answer(chosen)  # refuses a first setting now, and is kept
    tell(f"{len(found):,} images, {of}: ready", end="\n")
    return explorer


def name_of(images) -> str:
    """What stands before a title: a folder's own name, or a data set's; nothing for arrays."""
    return f"{Path(images).name}: " if isinstance(images, (str, Path)) else ""


def image_set(images, labels=None, class_names=None) -> tuple[ImageSet, str]:
    """Images of any kind that `explore` takes as an `ImageSet`, and what to call them in code."""
    if isinstance(images, (str, Path)):
        found, source = _read(images), repr(str(images))
    elif isinstance(images, ImageSet):
        found, source = images, "images"
    else:
        found, source = ImageSet(_bytes(images)), "images"
    if len(found) < 2:
        raise ValueError(f"{len(found)} image: at least 2 are needed to compare any")
    if labels is None:
        return found, source
    numbers, names = _numbered(labels, class_names)
    return ImageSet(found.images, numbers, names, found.paths), f"{source}, labels=labels"


def features_of(images: Tensor, encoder) -> tuple[Tensor, str]:
    """Features (N, F) of uint8 images by whatever stands for an encoder, and what to call it."""
    if encoder is None:
        small = _resized(images, min(PIXELS, *images.shape[2:])).flatten(1).float() / 255
        return principal(small, COMPONENTS), "pixels"
    if isinstance(encoder, (str, Path)):
        network = _network(str(encoder))
        small = images if network.size else _resized(images, min(ENCODED, max(images.shape[2:])))
        return extract_features(network, small, AT_ONCE), Path(encoder).stem
    if isinstance(encoder, nn.Module):
        features, name = extract_features(encoder, images, AT_ONCE), type(encoder).__name__
    else:
        features, name = torch.as_tensor(encoder).detach().float().cpu(), "given features"
    if features.ndim != 2 or len(features) != len(images):
        raise ValueError(f"features must be ({len(images)}, F), a row an image, got {tuple(features.shape)}")
    return features, name


def _read(name: str | Path) -> ImageSet:
    """Images large enough to look at, where that is cheap; of a folder, those of every split."""
    if name in DRAWN:
        return load_images(name, size=SHARP)
    if name in NAMES or not Path(name).is_dir():
        return load_images(name)
    paths = [Path(name) / file.path for file in list_images(Path(name)).files]
    sharp = 0 < len(paths) <= SHARP_UP_TO and usual_size(paths) >= ENCODED
    return load_folder(name, size=SHARP if sharp else None)


def _bytes(images) -> Tensor:
    """An array of images as uint8 (N, 3, H, W)."""
    array = torch.as_tensor(np.asarray(images)) if not isinstance(images, Tensor) else images.detach().cpu()
    if array.ndim == 3:  # grey
        array = array[:, None].expand(-1, 3, -1, -1)
    elif array.ndim == 4 and array.shape[-1] == 3 != array.shape[1]:
        array = array.permute(0, 3, 1, 2)
    if array.dtype.is_floating_point:
        low, high = (float(array.min()), float(array.max())) if array.numel() else (0.0, 0.0)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"images of floats must lie in [0, 1], got {low:g} to {high:g}: divide by their maximum")
        array = (255 * array).round().to(torch.uint8)
    return array


def _numbered(labels, class_names) -> tuple[Tensor, tuple[str, ...]]:
    """Labels as positions among class names."""
    values = np.asarray(labels)
    if values.dtype.kind in "iu":
        numbers = torch.as_tensor(values).long()
        most = int(numbers.max()) + 1 if len(numbers) else 0
        return numbers, tuple(class_names) if class_names else tuple(f"class {i}" for i in range(most))
    names, numbers = np.unique(values.astype(str), return_inverse=True)
    return torch.as_tensor(numbers).long(), tuple(names.tolist())


def _resized(images: Tensor, size: int) -> Tensor:
    """uint8 images whose larger side is `size` pixels, smoothed where they shrink."""
    if max(images.shape[2:]) == size:
        return images
    scale = size / max(images.shape[2:])
    shape = [max(1, round(scale * side)) for side in images.shape[2:]]
    parts = images.split(1000)  # floats of all at once would take four times the memory
    scaled = [nn.functional.interpolate(part.float(), shape, mode="bilinear", antialias=True) for part in parts]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in scaled])


def _network(name: str) -> Encoder:
    """An encoder by name, on a GPU where there is one."""
    if name.startswith("timm:"):
        network = make_encoder(name, IMAGENET_MEAN, IMAGENET_STD, pretrained=True)
    elif Path(name).is_file():
        network = load_encoder(name)
    else:
        raise ValueError(f"no encoder at {name}: give a .safetensors file of a run, or timm:NAME")
    return network.to("cuda" if torch.cuda.is_available() else "cpu")


def _in_code(encoder) -> str:
    if isinstance(encoder, (str, Path)):
        return repr(str(encoder))
    return "encoder" if isinstance(encoder, nn.Module) else "features"


class _Progress:
    """One line that is written over, with the seconds since the first."""

    def __init__(self, shown: bool, told: Callable[[str], None] | None = None):
        self.shown, self.told, self.begin = shown, told, time.perf_counter()

    def __call__(self, text: str, end: str = "\r") -> None:
        if self.told:
            self.told(text)
        if self.shown:
            print(f"{text} ({time.perf_counter() - self.begin:.1f} s)".ljust(70), end=end, flush=True)
