"""An encoder from weights that others trained: files of torchvision, the VICReg authors, lightly, Lightning, timm.

    published("resnet50.pth")  ->  Encoder in evaluation mode

What a file holds is told by its first bytes, and which network it belongs to by the names and shapes in it, whatever
they are wrapped in ("state_dict", "model", "module.", "backbone.", "encoder_q."): a ResNet's by its stages, a vision
transformer's by its blocks, any other timm network's by the name of its file. Reading never runs code: safetensors, or
torch.load with `weights_only`. Projectors and classifiers are left out; where there are a student and its moving
average, DINO's teacher is taken, else the student. [K]
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sagkit.model import FULL, IMAGENET_MEAN, IMAGENET_STD, Encoder, make_encoder

MOST_HEADER = 100_000_000  # bytes, safetensors' own limit
SIGNS = {  # how files begin that are taken for weights
    b"\x89HDF": "a Keras or HDF5 file",
    b"\x1f\x8b": "a compressed archive, which has to be unpacked",
    b"GGUF": "a GGUF language model",
    b"\x93NUMPY": "a .npy array; numpy.savez(path, features=...) makes it an .npz that `sagkit assess` takes",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"version https://git-lfs": "a Git LFS pointer in place of the file: `git lfs pull` fetches it",
}
VIT_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
COUNTED = "num_batches_tracked"  # not in files from before PyTorch 0.4.1, and nothing that evaluation reads
ASIDE = re.compile(r"momentum|encoder_k|key_|target|ema|student")  # of two networks in a file, the other one


def is_ours(path: str | Path) -> bool:
    """Whether a file begins as `record.save_state` writes them; a whole header is all that is looked at.

    Raises:
        OSError: where it cannot be opened.
    """
    header = _header(path)
    return header is not None and "skeleton" in (header.get("__metadata__") or ())


def published(path: str | Path) -> Encoder:
    """The encoder of a file of weights, in evaluation mode; ImageNet's channel statistics, or those timm names.

    Raises:
        ValueError: in one line that says what the file is instead, why its weights fit no network that is known, or
            that some are not finite.
        OSError: where it cannot be opened.
    """
    tensors = dict(_flat(_read(path)))
    if not tensors:
        raise ValueError(f"{path} holds no weights: give a state dict, torch.save(model.state_dict(), path)")
    encoder = _resnet(tensors) or _transformer(tensors) or _named(tensors, Path(path))
    if encoder is None:
        raise ValueError(
            f"{path} holds {len(tensors)} arrays ({', '.join(list(tensors)[:3])}, ...) of a network that is none of "
            f"torchvision's ResNets or timm's transformers: compute its features and give them to `sagkit assess x.npz`"
        )
    require_finite(encoder, path)
    return encoder.eval().to(memory_format=torch.channels_last)


def require_finite(encoder: nn.Module, path: str | Path) -> None:
    """Refuse weights of which some are NaN or infinite: every feature would be.

    Raises:
        ValueError: naming the first.
    """
    for name, value in encoder.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{path} holds weights that are not finite (first: {name}): take an earlier checkpoint")


def what_is(path: str | Path) -> str:
    """What a file that is no complete checkpoint of ours is, in words.

    Raises:
        OSError: where it cannot be opened.
    """
    with open(path, "rb") as file:
        start = file.read(512)
    text = start.lstrip().lower()
    if not start:
        return "an empty file"
    for sign, words in SIGNS.items():
        if start.startswith(sign):
            return words
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, perhaps of a download that failed"
    if text.startswith((b"{", b"[")):
        return "a JSON file; the encoder of a run's record lies beside it, ending in .safetensors"
    if start.startswith(b"PK"):
        return _zipped(path)
    if start.startswith(b"\x80"):
        return "a PyTorch file in pickle format"
    if _header(path) is not None:
        return "a safetensors file of another program, or one that is cut off"
    return "a file that is cut off or of another program"


def _zipped(path) -> str:
    try:
        names = zipfile.ZipFile(path).namelist()
    except zipfile.BadZipFile:
        return "a PyTorch or zip file that is cut off"
    if any(name.endswith(".npy") for name in names):
        return "an .npz file of arrays; `sagkit assess` takes it"
    if any(name.endswith("constants.pkl") for name in names):
        return "a TorchScript program; save its weights, torch.save(model.state_dict(), path)"
    return "a PyTorch file" if any(name.endswith("data.pkl") for name in names) else "a zip archive"


def _header(path) -> dict | None:
    """The header of a safetensors file; None where the file does not begin with a whole one."""
    with open(path, "rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= MOST_HEADER:
            return None
        try:
            found = json.loads(file.read(length))
        except (ValueError, RecursionError):
            return None
    return found if isinstance(found, dict) else None


def _read(path) -> Any:
    """What a safetensors or PyTorch file holds, without running anything of it."""
    what = what_is(path)
    try:
        if what.startswith("a safetensors file"):
            return load_file(path)
        if what.startswith("a PyTorch file"):
            torch.serialization.add_safe_globals([argparse.Namespace])  # options often stand beside the weights
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that pickle's protocol is newer than torch's own
                return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{path} is a safetensors file that is cut off or damaged ({error}): fetch it again") from None
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is a pickled Python object, and reading it could run code: where it comes from, save its weights "
            "alone, torch.save(model.state_dict(), path)"
        ) from None
    except OSError:
        raise
    except Exception as error:  # whatever a damaged file drives torch's reader to
        told = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} is no PyTorch file, cut off or damaged ({told}): fetch it again") from None
    raise ValueError(f"{path} is {what}: an encoder is a .safetensors, .pth or .ckpt file of weights")


def _flat(value: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dicts by dotted name."""
    if isinstance(value, Tensor):  # of optimisers, too, which no network's names fit
        yield prefix.removesuffix("."), value
    elif isinstance(value, dict) and depth < 8:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}{key}.", depth + 1)


def _prefixes(tensors: dict[str, Tensor], key: str) -> list[str]:
    """What stands before `key` in the names: DINO's teacher first, short ones next, moving averages last."""
    found = [name.removesuffix(key) for name in tensors if name == key or name.endswith(f".{key}")]
    return sorted(found, key=lambda p: ("teacher" not in p, bool(ASIDE.search(p)), len(p)))


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _resnet(tensors: dict[str, Tensor]) -> Encoder | None:
    """One of torchvision's ResNets, under its own names or those of a Sequential of its children (lightly's way)."""
    for prefix in _prefixes(tensors, "layer1.0.conv1.weight"):
        within = _under(tensors, prefix)
        if "conv1.weight" in within:
            return _fitting_resnet(within)
    for prefix in _prefixes(tensors, "0.weight"):
        within = _under(tensors, prefix)
        stages = sorted({int(n.split(".")[0]) for n in within if re.fullmatch(r"\d+\.0\.conv1\.weight", n)})
        if within["0.weight"].ndim == 4 and "1.running_mean" in within and len(stages) == 4:
            new = {"0": "conv1", "1": "bn1"} | {str(s): f"layer{i}" for i, s in enumerate(stages, start=1)}
            renamed = {name.partition(".")[::2]: value for name, value in within.items()}
            return _fitting_resnet({f"{new[a]}.{b}": value for (a, b), value in renamed.items() if a in new})
    return None


def _fitting_resnet(within: dict[str, Tensor]) -> Encoder | None:
    """The ResNet among those known whose entries have these names and shapes."""
    stem = "-imagenet" if within["conv1.weight"].shape[-1] == 7 else ""
    own = {name for name in within if name.startswith(("conv1.", "bn1.", "layer"))}  # without what follows the pooling
    for name in FULL:
        with torch.device("meta"):
            wanted = make_encoder(f"{name}{stem}").backbone.state_dict()
        shapes = {k: v.shape for k, v in wanted.items() if not k.endswith(COUNTED)}
        if {k for k in own if not k.endswith(COUNTED)} == shapes.keys() and _fit(within, shapes):
            encoder = make_encoder(f"{name}{stem}", IMAGENET_MEAN, IMAGENET_STD)
            encoder.backbone.load_state_dict({k: within[k] for k in shapes}, strict=False)
            return encoder
    return None


def _fit(within: dict[str, Tensor], shapes: dict[str, torch.Size]) -> bool:
    """Whether all these are there, in these shapes, and floats: whole numbers are weights that were quantised."""
    return all(
        k in within and within[k].shape == shape and within[k].is_floating_point() for k, shape in shapes.items()
    )


def _transformer(tensors: dict[str, Tensor]) -> Encoder | None:
    """A timm vision transformer of a usual width, at the image size that its position embeddings are for."""
    for prefix in _prefixes(tensors, "patch_embed.proj.weight"):
        within = _under(tensors, prefix)
        width, _, patch, _ = within["patch_embed.proj.weight"].shape
        if width not in VIT_SIZES or "pos_embed" not in within or "cls_token" not in within:
            continue
        side = round((within["pos_embed"].shape[1] - 1) ** 0.5) * patch
        depth = next(i for i in count() if f"blocks.{i}.norm1.weight" not in within)
        options = {"img_size": side, "patch_size": patch, "depth": depth}
        if encoder := _fitting_timm(f"vit_{VIT_SIZES[width]}_patch16_224", within, options):
            encoder.size = (side, side)
            return encoder
    return None


def _named(tensors: dict[str, Tensor], path: Path) -> Encoder | None:
    """The timm network that the file, or the config.json beside it, is named after."""
    beside = path.with_name("config.json")
    try:
        told = json.loads(beside.read_text()).get("architecture", "") if beside.is_file() else ""
    except (OSError, ValueError, AttributeError):
        told = ""
    for name in (told, path.stem, re.split(r"[.-]", path.stem)[0]):
        for prefix in ("", "module.", "model.", "state_dict.", "state_dict_ema."):
            within = _under(tensors, prefix)
            if within and (encoder := _fitting_timm(name, within, {})):
                return encoder
    return None


def _fitting_timm(name: str, within: dict[str, Tensor], options: dict) -> Encoder | None:
    """A timm network with these weights, its classifier left out; None where they do not fit."""
    import timm

    if not timm.is_model(name):
        return None
    backbone: nn.Module = timm.create_model(name, num_classes=0, **options)
    shapes = {k: v.shape for k, v in backbone.state_dict().items() if v.is_floating_point()}
    if not _fit(within, shapes):
        return None
    backbone.load_state_dict({key: within[key] for key in shapes}, strict=False)
    trained: Any = backbone.pretrained_cfg
    width = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    size = tuple(trained["input_size"][1:])
    return Encoder(backbone, width, trained["mean"], trained["std"], size=size, architecture=f"timm:{name}")
