"""The network that looks at the images, by what a command line names, and the device it runs on.

    x.safetensors  one of our encoders or unfinished runs, or other people's weights (.pth, .ckpt, .safetensors): see
                   `train.weights`
    timm:NAME      a published network with its weights, images scaled to the size it was trained on
    random:NAME    a network with random weights ("random:resnet10-w16")
    pixels         the images themselves

[K] Weights for ImageNet expect images of 224 pixels, and smaller ones are scaled to it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sagkit.model import Encoder, make_encoder, untrained_like
from sagkit.train.record import load_encoder
from sagkit.train.weights import is_ours

IMAGENET_SIZE = (224, 224)
STORED = Path(__file__).parents[2] / "figures/results/gpu-minute/cifar100/sag-vicreg-seed0.safetensors"


def network(what: str, seed: int = 0, weights: bool = True) -> nn.Module:
    """Network for images in [0, 1], in evaluation mode.

    Args:
        what: as listed above.
        seed: of random weights; the global generator stays as it is.
        weights: load published weights of timm networks; False leaves them random.

    Raises:
        ValueError: for anything else, and as `record.load_encoder`.
    """
    if what == "pixels":
        return nn.Flatten()
    if what.startswith(("timm:", "random:")):
        published = weights and what.startswith("timm:")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make_encoder(what.removeprefix("random:"), pretrained=published).eval()
    if not Path(what).is_file():
        named = "/" in what or Path(what).suffix
        absent = f"does not exist ({Path(what).absolute()})" if named else "is no network"
        absent = "is a folder" if what and Path(what).is_dir() else absent
        raise ValueError(f"{what!r} {absent}: give pixels, timm:NAME, random:NAME, or a file of weights")
    encoder = load_encoder(what)
    if encoder.architecture.endswith("-imagenet") and not is_ours(what):
        encoder.size = IMAGENET_SIZE
    return encoder


def untrained(net: nn.Module, seed: int) -> Encoder | None:
    """A network like this one with random weights; None where there is none, as of pixels."""
    if not isinstance(net, Encoder):
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return untrained_like(net).eval()


def device_of(name: str) -> torch.device:
    """The device of a name; "auto" is a CUDA device where there is one, else the CPU.

    Raises:
        ValueError: for a device that is not to be had here.
    """
    found = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.zeros(1, device=found).device
    except (RuntimeError, AssertionError, ImportError) as error:
        told = " ".join(str(error).split())[:100]
        raise ValueError(f"device {name!r} cannot be had here ({told}): use auto or cpu") from None
