"""Two augmented views of a whole batch at once, on the batch's device, with parameters of its own for every image.

    view = solarize(grey(jitter(flip(crop_resize(x)))))        jitter = brightness, contrast, saturation, hue

Sources: [R] the recipe and its probabilities are solo-learn's for CIFAR (figures/METHOD.md section 6); every operation
equals torchvision's functional one on floats. [K] A crop is two small matrix products, rows @ x @ columns', whose
entries are the triangle filter torchvision resizes with; flipping reverses the column matrix and costs nothing. All
parameters are drawn first; on a CPU the images are then worked through in chunks that fit the cache, which changes no
value.

Differs from the source: the order of the four jitter operations is drawn once per batch, not per image.
"""

from __future__ import annotations

import math
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from sagkit import require

CHUNK = 64  # images on a CPU: 64 x 3 x 32 x 32 floats are 0.8 MB, so that the dozen passes below stay in cache
COUNTED = 4096  # images whose pixels are counted at a time: as int64 they are eight times as large
GREY = (0.2989, 0.587, 0.114)  # torchvision's luma weights
CROP_ATTEMPTS = 10  # torchvision's
NO_COLOUR = {"jitter": 0.0, "grey": 0.0, "solarize": 0.0}  # of an Augmentation that crops and mirrors alone


@dataclass(frozen=True)
class Augmentation:
    """The recipe of one view; defaults are solo-learn's for VICReg on CIFAR.

    crop_scale, crop_ratio: range of a crop's area (fraction) and aspect ratio; flip: probability of mirroring.
    jitter: probability of colour jitter; brightness, contrast, saturation: factors in [1 - v, 1 + v]; hue: shift in
    [-v, v] of the colour circle. grey, solarize, blur: probabilities. size: output height and width, None for the
    input's height. Blur is for images larger than 32 pixels; its sigma is in [0.1, 2] pixels.

    Raises:
        ValueError: for a value out of its range.
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    solarize: float = 0.1
    blur: float = 0.0
    size: int | None = None

    def __post_init__(self):
        for name in ("flip", "jitter", "grey", "solarize", "blur"):
            require(name, getattr(self, name), "[0, 1]", "it is a probability")
        for name in ("brightness", "contrast", "saturation"):
            require(name, getattr(self, name), "[0, 1]", "factors lie in [1 - v, 1 + v]")
        require("hue", self.hue, "[0, 0.5]", "half a colour circle either way is all of it")
        for name, interval in (("crop_scale", "(0, 1]"), ("crop_ratio", "(0, inf)")):
            ends = getattr(self, name)
            for end in ends:
                require(name, end, interval, "it is a range, the smaller end first")
            if len(ends) != 2 or ends[0] > ends[1]:
                raise ValueError(f"{name} must be a range (low, high), got {ends}: give the smaller end first")
        if self.size is not None:
            require("size", self.size, "[1, inf)", "it counts pixels; None keeps the input's height", whole=True)

    def __call__(
        self, images: UInt8[Tensor, "B 3 H W"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "B 3 s s"]:
        """One view of each image, floats in [0, 1], not normalised; drawn from `generator` on the images' device.

        Raises:
            ValueError: for anything but a non-empty uint8 (B, 3, H, W).
        """
        _check(images)
        draw = _Draw(len(images), images.device, generator)
        height, width = images.shape[2:]
        size = self.size or height
        boxes = random_boxes(len(images), height, width, self.crop_scale, self.crop_ratio, generator, images.device)
        flip = draw.chance(self.flip)
        jitter = draw.chance(self.jitter)
        factors = {
            adjust: torch.where(jitter, draw.between(neutral - v, neutral + v), neutral)
            for adjust, neutral, v in (
                (adjust_brightness, 1.0, self.brightness),
                (adjust_contrast, 1.0, self.contrast),
                (adjust_saturation, 1.0, self.saturation),
                (adjust_hue, 0.0, self.hue),
            )
        }
        steps = [list(factors.items())[i] for i in _order(generator, images.device)]
        grey, solar = draw.chance(self.grey), draw.chance(self.solarize)
        blurred, sigma = draw.chance(self.blur), draw.between(0.1, 2.0)
        views = images.new_empty((len(images), 3, size, size), dtype=torch.float32)
        chunk = CHUNK if images.device.type == "cpu" else len(images)  # a GPU waits for launches, not for its cache
        for part in torch.arange(len(images), device=images.device).split(chunk):
            x = crop_resize(images[part].float() / 255, boxes[part], size, flip[part])
            for adjust, factor in steps if self.jitter else ():
                x = adjust(x, factor[part])
            x = torch.where(grey[part, None, None, None], luma(x), x)
            if self.blur:
                x = torch.where(blurred[part, None, None, None], gaussian_blur(x, sigma[part]), x)
            views[part] = torch.where(solar[part, None, None, None], solarize(x), x)
        return views


def two_views(
    images: UInt8[Tensor, "B 3 H W"], augmentation: Augmentation, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "B 3 s s"], Float[Tensor, "B 3 s s"]]:
    """Two independent views of each image; see `Augmentation.__call__`."""
    return augmentation(images, generator), augmentation(images, generator)


def in_bytes(view: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """A view in [0, 1] as images are kept, rounded to 256 levels."""
    return (view * 255).round().to(torch.uint8)


def channel_statistics(images: UInt8[Tensor, "N 3 H W"]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, of pixels in [0, 1]; exact, from the counts of the 256 values."""
    counts = torch.zeros(3, 256, dtype=torch.float64, device=images.device)
    for part in images.split(COUNTED):
        counts += torch.stack([torch.bincount(part[:, c].flatten(), minlength=256) for c in range(3)])
    share = counts / counts.sum(dim=1, keepdim=True)
    value = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    mean = share @ value
    return mean.tolist(), ((share @ value.square()) - mean.square()).clamp(min=1e-12).sqrt().tolist()


def random_boxes(
    n: int, height: int, width: int, scale, ratio, generator: torch.Generator | None = None, device=None
) -> Int[Tensor, "B 4"]:
    """Crop boxes (top, left, height, width) by torchvision's law: the first of ten draws that fits, else the centre."""
    draw = _Draw((n, CROP_ATTEMPTS), device, generator)
    area = height * width * draw.between(*scale)
    aspect = draw.between(math.log(ratio[0]), math.log(ratio[1])).exp()
    w, h = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    # Fallback: the largest central box whose aspect ratio is allowed.
    most_w, most_h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    w = torch.where(found, w.gather(1, first)[:, 0], most_w)
    h = torch.where(found, h.gather(1, first)[:, 0], most_h)
    single = _Draw(n, device, generator)
    top = (single.between(0, 1) * (height - h + 1)).long()
    left = (single.between(0, 1) * (width - w + 1)).long()
    top, left = torch.where(found, top, (height - h) // 2), torch.where(found, left, (width - w) // 2)
    return torch.stack([top, left, h, w], dim=1)


def crop_resize(
    x: Float[Tensor, "B 3 H W"], boxes: Int[Tensor, "B 4"], size: int, flip: Bool[Tensor, " B"] | None = None
) -> Float[Tensor, "B 3 s s"]:
    """Cut a box (top, left, height, width) out of each image, resize it with antialiasing, and mirror some."""
    top, left, height, width = boxes.unbind(dim=1)
    rows = _triangle_filter(top, height, x.shape[2], size, x.dtype)  # (B, s, H)
    columns = _triangle_filter(left, width, x.shape[3], size, x.dtype)  # (B, s, W)
    if flip is not None:
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    # A crop is a matrix product, which autocast would round to half precision; what it may not touch, it leaves alone.
    available = torch.amp.is_autocast_available(x.device.type)
    with torch.autocast(x.device.type, enabled=False) if available else nullcontext():
        return rows[:, None] @ x @ columns.mT[:, None]


def _triangle_filter(start: Tensor, length: Tensor, pixels: int, size: int, dtype) -> Float[Tensor, "B s n"]:
    scale = length.to(dtype)[:, None, None] / size
    centre = (torch.arange(size, device=start.device, dtype=dtype)[:, None] + 0.5) * scale  # (B, s, 1), in the box
    pixel = torch.arange(pixels, device=start.device)[None, None, :] - start[:, None, None]  # (B, 1, n), in the box
    weight = (1 - ((pixel + 0.5 - centre) / scale.clamp(min=1)).abs()).clamp(min=0)
    weight = weight * ((pixel >= 0) & (pixel < length[:, None, None]))
    return weight / weight.sum(dim=2, keepdim=True)


def luma(x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
    """Brightness of each pixel as torchvision weighs the channels."""
    red, green, blue = x.unbind(dim=1)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue)[:, None]


def adjust_brightness(x: Float[Tensor, "B 3 H W"], factor: Float[Tensor, " B"]) -> Float[Tensor, "B 3 H W"]:
    """Scale all channels; 1 changes nothing."""
    return (x * factor[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(x: Float[Tensor, "B 3 H W"], factor: Float[Tensor, " B"]) -> Float[Tensor, "B 3 H W"]:
    """Scale the distance from the image's mean brightness; 1 changes nothing."""
    return _blend(x, luma(x).mean(dim=(1, 2, 3), keepdim=True), factor)


def adjust_saturation(x: Float[Tensor, "B 3 H W"], factor: Float[Tensor, " B"]) -> Float[Tensor, "B 3 H W"]:
    """Scale the distance from grey; 1 changes nothing."""
    return _blend(x, luma(x), factor)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other.expand_as(x), x, factor[:, None, None, None]).clamp_(0, 1)


def adjust_hue(x: Float[Tensor, "B 3 H W"], shift: Float[Tensor, " B"]) -> Float[Tensor, "B 3 H W"]:
    """Turn the colour circle by `shift` in [-0.5, 0.5]; 0 changes nothing.

    HSV without the detour over saturation: with v the largest channel and c the spread of the three, the channel
    with offset n in (5, 3, 1) of hue h in sixths is v - c clamp(min(k, 4 - k), 0, 1), k = (n + h) mod 6.
    """
    red, green, blue = x.unbind(dim=1)  # each (B, H, W)
    value = x.amax(dim=1)
    spread = value - x.amin(dim=1)
    safe = torch.where(spread > 0, spread, 1.0)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue = hue + 6 * shift[:, None, None]
    out = torch.empty_like(x)
    for channel, offset in enumerate((5, 3, 1)):
        k = torch.remainder(hue + offset, 6)
        out[:, channel] = value - spread * torch.minimum(k, 4 - k).clamp_(0, 1)
    return out


def solarize(x: Float[Tensor, "B 3 H W"], threshold: float = 0.5) -> Float[Tensor, "B 3 H W"]:
    """Invert what is at least as bright as the threshold."""
    return torch.where(x >= threshold, 1 - x, x)


def gaussian_blur(x: Float[Tensor, "B 3 H W"], sigma: Float[Tensor, " B"]) -> Float[Tensor, "B 3 H W"]:
    """Blur with a sigma of its own for each image; kernel about a tenth of the height, edges reflected."""
    reach = max(1, x.shape[2] // 20)
    offset = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.softmax(-0.5 * (offset / sigma[:, None]).square(), dim=1)  # (B, 2 reach + 1), sums to 1
    padded = torch.nn.functional.pad(x, (reach,) * 4, mode="reflect")
    taps = kernel[:, :, None, None, None].unbind(1)  # of (B, 1, 1, 1) each
    across = reduce(torch.add, (tap * padded[..., i : i + x.shape[3]] for i, tap in enumerate(taps)))
    return reduce(torch.add, (tap * across[:, :, i : i + x.shape[2]] for i, tap in enumerate(taps)))


def _order(generator: torch.Generator | None, device: torch.device) -> list[int]:
    """A permutation of the four jitter operations, drawn by the host: to read it from a GPU would make every view wait.

    There it follows from the generator's state (seed and offset, which the host keeps), and takes no number from it.
    """
    if device.type != "cpu" and generator is not None:
        generator = torch.Generator().manual_seed(zlib.crc32(generator.get_state().numpy().tobytes()))
    return torch.randperm(4, generator=generator).tolist()


class _Draw:
    """Uniform numbers of one shape from one generator."""

    def __init__(self, shape, device, generator):
        self.shape = (shape,) if isinstance(shape, int) else shape
        self.device, self.generator = device, generator

    def between(self, low: float, high: float) -> Tensor:
        u = torch.rand(self.shape, generator=self.generator, device=self.device)
        return low + (high - low) * u

    def chance(self, probability: float) -> Tensor:
        return torch.rand(self.shape, generator=self.generator, device=self.device) < probability


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"images must be (B, 3, H, W) with B >= 1, got shape {tuple(images.shape)}: stack RGB images")
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 (0 to 255), got {images.dtype}: convert with (x * 255).byte()")
