"""What can be assessed, by name: networks of ours and of timm, pixels, files of features. [K]"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sagkit.checkpoint import load_state
from sagkit.model import make_encoder
from sagkit.record import load_encoder

GIVEN = ("labels", "distances", "changed", "bank", "bank_labels")  # what may come with features, in an .npz file too


def network(what: str, seed: int, weights: bool) -> tuple[nn.Module, str | None]:
    """Network for images in [0, 1], and the name of its architecture where it is one of ours.

    Raises:
        ValueError: for a thing that is none of "pixels", "timm:NAME", "random:NAME", a .safetensors file.
    """
    if what == "pixels":
        return nn.Flatten(), None
    if what.startswith("timm:"):
        return _published(what, weights), None
    if what.startswith("random:"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make_encoder(what.removeprefix("random:")), what.removeprefix("random:")
    if what.endswith(".safetensors"):
        if not Path(what).is_file():
            raise ValueError(f"{what} does not exist: check the path ({Path(what).absolute()})")
        return load_encoder(what), load_state(what)["name"]
    raise ValueError(
        f"cannot assess {what!r}: give pixels, timm:NAME, random:NAME, or the path of an .npz or .safetensors file"
    )


def _published(what: str, weights: bool) -> nn.Module:
    """A timm network behind the size and channel statistics that it was trained with."""
    encoder = make_encoder(what, pretrained=weights)
    trained = encoder.backbone.pretrained_cfg
    for buffer, key in ((encoder.mean, "mean"), (encoder.std, "std")):
        buffer.copy_(torch.tensor(trained[key]).view(1, 3, 1, 1))
    return nn.Sequential(nn.Upsample(tuple(trained["input_size"][1:]), mode="bilinear"), encoder)


def matrix(given, name: str) -> Tensor:
    """Array, tensor or lists as float32 (N, F) on the CPU.

    Raises:
        ValueError: for another number of axes.
    """
    x = torch.as_tensor(given).detach().cpu().float() if not isinstance(given, list) else torch.tensor(given).float()
    if x.ndim != 2:
        raise ValueError(f"{name} must be (N, F), got {tuple(x.shape)}: flatten each image's features")
    return x


def stored(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an .npz file that holds `features`.

    Raises:
        ValueError: for a file that cannot be read or has no features.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as .npz ({error}): write it with numpy.savez, no objects") from None
    if "features" not in found:
        raise ValueError(f"{path} has no array 'features' but {', '.join(found) or 'none'}: numpy.savez(features=...)")
    return found
