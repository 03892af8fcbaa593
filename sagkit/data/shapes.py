"""A procedural image set whose 27 classes form a known tree: outline family, shape, fill.

    image = paint( sdf_shape( R(-angle) (pixel - centre) / radius ), fill_family )  lit by a linear gradient, plus noise

A class name is its path in the tree, "round/disc/ringed", so the tree distance of two classes can be read from
their names: 0 for the same leaf, 1/3 for the same shape, 2/3 for the same family, 1 otherwise.

Sources: [R] signed distance functions with a one-pixel soft edge, as graphics shaders draw outlines; [R] colours
in OKLCH (Ottosson 2020), where lightness steps look equal in every hue. [K] the tree: a family has its own outlines
and fills in its own coordinate, so that no fill cuts across the families. [K] the nuisances, drawn independently of
the class: position, scale, tilt by at most 20 degrees, mirroring, which tone is the darker and which hue it has, fill
direction and frequency, background, cast shadow, illumination, noise. Nothing that crop, flip or colour jitter
destroys tells the class. Colours stray less than the jitter does, because a hue of each image's own is a shortcut that
its two views share. Fills and colours were settled by looking at what a small VICReg learned in a minute, so a positive
rank correlation on this set is partly built in: it illustrates, it is no evidence for a method.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from sagkit import require

TREE = {
    "round": {"shapes": ("disc", "ring", "crescent"), "fills": ("ringed", "rimmed", "shaded")},
    "angular": {"shapes": ("square", "triangle", "diamond"), "fills": ("barred", "checked", "dotted")},
    "radial": {"shapes": ("star", "flower", "cross"), "fills": ("rayed", "quartered", "swirled")},
}
SHAPE_CLASSES = tuple(
    sorted(f"{family}/{shape}/{fill}" for family, t in TREE.items() for shape in t["shapes"] for fill in t["fills"])
)
MAX_TILT = math.radians(20)  # either way; more would turn a square into a diamond
NOISE = 0.03  # standard deviation per channel, of a range of 1
HUES = (0.74, 0.10, 0.57)  # of ground and tones, in turns of the OKLCH circle: violet-blue, coral, teal
HUE_SPREAD = 0.06  # turns, either way, common to the three
CHUNK = 512  # images painted at once: their intermediate planes stay in cache


def draw_shapes(
    labels: Int64[Tensor, "N"], size: int = 32, generator: torch.Generator | None = None
) -> UInt8[Tensor, "N 3 H W"]:
    """Paint one picture per label, H = W = size.

    Args:
        labels: positions in `SHAPE_CLASSES`.
        size: side in pixels, at least 8.
        generator: source of every nuisance; labels, size and generator state fix the pictures.

    Raises:
        ValueError: for a size below 8 or a label outside the tree.
    """
    require("size", size, "[8, inf)", "on fewer pixels a side shapes do not differ", whole=True)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(SHAPE_CLASSES):
        raise ValueError(
            f"labels must lie in [0, {len(SHAPE_CLASSES) - 1}], got {int(labels.min())}..{int(labels.max())}"
        )
    images = torch.empty(len(labels), 3, size, size, dtype=torch.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of small operations: on a busy machine 2 threads took 28 s, 1 takes 0.5 s
    try:
        for start in range(0, len(labels), CHUNK):
            images[start : start + CHUNK] = _paint(labels[start : start + CHUNK], size, generator)
    finally:
        torch.set_num_threads(threads)
    return images


def _paint(labels, size, generator) -> UInt8[Tensor, "N 3 H W"]:
    n = len(labels)

    def uniform(low, high, *shape):  # one draw per image, ready to broadcast over (N, ..., H, W)
        return low + (high - low) * torch.rand(n, *shape, 1, 1, generator=generator)

    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")  # (H, W), the picture is [-1, 1] x [-1, 1]
    radius, angle, light = uniform(0.5, 0.78), uniform(-MAX_TILT, MAX_TILT), uniform(-math.pi, math.pi)
    reach = 0.95 - 0.9 * radius  # keeps the outline inside the picture, but for a tip
    centre_x, centre_y = uniform(-1, 1) * reach, uniform(-1, 1) * reach
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    pixels = size / 2 * radius  # per unit of the shape's frame

    def frame(shift):  # picture -> the shape's own coordinates, where its radius is 1
        u = (x - centre_x - shift * light.cos()) * mirror / radius
        v = (y - centre_y - shift * light.sin()) / radius
        return u * angle.cos() + v * angle.sin(), v * angle.cos() - u * angle.sin()

    ground, glow, first, second = _palette(uniform)  # each (N, 3, 1, 1)
    image = ground.expand(n, 3, size, size)
    for _ in range(3):
        disc = uniform(0.2, 0.6) - torch.hypot(x - uniform(-1, 1), y - uniform(-1, 1))
        image = torch.lerp(image, glow, (0.5 + disc * size / 8).clamp(0, 1)[:, None] * 0.6)  # (N, 3, H, W)
    shadow = torch.sigmoid(-9 * _outline(labels, *frame(shift=-0.08)))
    image = image * (1 - 0.3 * shadow[:, None])
    cover = (0.5 - _outline(labels, *frame(shift=0.0)) * pixels).clamp(0, 1)  # (N, H, W), edge one pixel wide
    tone = _fill(labels, *frame(shift=0.0), pixels, uniform)
    image = torch.lerp(image, torch.lerp(first, second, tone[:, None]), cover[:, None])
    image = image * (1 + 0.18 * (x * light.cos() + y * light.sin()))[:, None]
    image = image + NOISE * torch.randn(image.shape, generator=generator)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def _rows_named(labels, part: str) -> Bool[Tensor, "N"]:
    """Which labels have this shape or fill in their class name."""
    return torch.tensor([part in name.split("/") for name in SHAPE_CLASSES])[labels]


def _outline(labels, u, v) -> Float[Tensor, "N H W"]:
    """Signed distance to each image's outline in its own frame, negative inside."""
    distance = torch.empty_like(u)
    for shape, sdf in OUTLINES.items():
        rows = _rows_named(labels, shape)
        distance[rows] = sdf(u[rows], v[rows])
    return distance


def _petals(u, v, count):
    """Fold the plane into one of `count` sectors, symmetric about its axis: (along, across >= 0)."""
    sector = 2 * math.pi / count
    angle = torch.remainder(torch.atan2(u, -v) + sector / 2, sector) - sector / 2  # v points down: axis 0 is up
    r = torch.hypot(u, v)
    return r * angle.cos(), r * angle.sin().abs()


def _polygon(u, v, count, radius):
    along, _ = _petals(u, -v, count)  # a flat side below
    return along - radius * math.cos(math.pi / count)


def _star(u, v):
    along, across = _petals(u, v, 5)
    tip, valley = 1.02, 0.46
    vx, vy = valley * math.cos(math.pi / 5), valley * math.sin(math.pi / 5)
    length = math.hypot(tip - vx, vy)
    return ((along - tip) * vy + across * (tip - vx)) / length


def _flower(u, v):
    along, across = _petals(u, v, 5)
    return torch.minimum(torch.hypot(along - 0.58, across) - 0.36, torch.hypot(u, v) - 0.35)


def _cross(u, v):
    a, b = u.abs(), v.abs()
    return torch.minimum(torch.maximum(a - 0.92, b - 0.31), torch.maximum(a - 0.31, b - 0.92))


def _crescent(u, v):
    return torch.maximum(torch.hypot(u + 0.1, v) - 0.92, 0.66 - torch.hypot(u - 0.42, v))


OUTLINES = {
    "disc": lambda u, v: torch.hypot(u, v) - 0.82,
    "ring": lambda u, v: (torch.hypot(u, v) - 0.62).abs() - 0.29,
    "crescent": _crescent,
    "square": lambda u, v: torch.maximum(u.abs(), v.abs()) - 0.74,
    "triangle": lambda u, v: _polygon(u, v - 0.2, 3, 1.12),
    "diamond": lambda u, v: (u.abs() + 0.7 * v.abs() - 0.7) / math.hypot(1, 0.7),
    "star": _star,
    "flower": _flower,
    "cross": _cross,
}


def _fill(labels, u, v, pixels, uniform) -> Float[Tensor, "N H W"]:
    """Where the second tone lies, 0 to 1, with edges one pixel wide; "shaded" fades."""
    turn, phase = uniform(0, math.pi), uniform(0, 2 * math.pi)
    frequency = 2 * math.pi / uniform(0.42, 0.56)  # radians per unit of the shape's frame
    depth = torch.full_like(u, -1.0)
    for fill, pattern in FILLS.items():
        rows = _rows_named(labels, fill)
        depth[rows] = pattern(u[rows], v[rows], turn[rows], phase[rows], frequency[rows])
    return (0.5 + depth * pixels).clamp(0, 1)


def _turned(u, v, turn):
    return u * turn.cos() + v * turn.sin(), v * turn.cos() - u * turn.sin()


def _bars(u, v, turn, phase, frequency):
    a, _ = _turned(u, v, turn)
    return torch.sin(frequency * a + phase) / frequency


def _checks(u, v, turn, phase, frequency):
    a, b = _turned(u, v, turn)
    return torch.sin(0.8 * frequency * a + phase) * torch.sin(0.8 * frequency * b + phase) / frequency


def _dots(u, v, turn, phase, frequency):
    a, b = _turned(u, v, turn)
    return (torch.cos(frequency * a + phase) + torch.cos(frequency * b + phase) - 0.8) / frequency


def _sectors(u, v, count, phase=0.0, twist=0.0):
    r = torch.hypot(u, v)
    return r * torch.sin(count * torch.atan2(u, -v) + twist * r + phase) / count


# pattern(u, v, turn, phase, frequency): about the distance to the second tone's edge, positive inside. Each family has
# a coordinate of its own: radius for round, straight lines for angular, the angle for radial; no fill is in two.
FILLS = {
    "ringed": lambda u, v, turn, phase, frequency: torch.sin(frequency * torch.hypot(u, v) + phase) / frequency,
    "rimmed": lambda u, v, turn, phase, frequency: torch.hypot(u, v) - 0.6,
    "shaded": lambda u, v, turn, phase, frequency: 0.08 * (torch.hypot(u + 0.2, v + 0.2) - 0.65),
    "barred": _bars,
    "checked": _checks,
    "dotted": _dots,
    "rayed": lambda u, v, turn, phase, frequency: _sectors(u, v, 5),
    "quartered": lambda u, v, turn, phase, frequency: _sectors(u, v, 2, phase),
    "swirled": lambda u, v, turn, phase, frequency: _sectors(u, v, 3, phase, twist=5.0),
}


def _palette(uniform) -> list[Float[Tensor, "N 3 1 1"]]:
    """Ground, glow and the two tones: a light ground, and either tone may be the darker and have either hue."""
    swap, turn = uniform(0, 1, 1) < 0.5, uniform(0, 1, 1) < 0.5
    light, deep = uniform(0.64, 0.76, 1), uniform(0.36, 0.46, 1)
    ground = uniform(0.84, 0.97, 1)
    drift = uniform(-HUE_SPREAD, HUE_SPREAD, 1)
    hue_ground, hue_a, hue_b = (2 * math.pi * (hue + drift) for hue in HUES)
    return [
        _oklch(ground, uniform(0.01, 0.04, 1), hue_ground),
        _oklch(ground - 0.14, uniform(0.03, 0.06, 1), hue_ground),
        _oklch(torch.where(swap, light, deep), uniform(0.09, 0.14, 1), torch.where(turn, hue_a, hue_b)),
        _oklch(torch.where(swap, deep, light), uniform(0.09, 0.14, 1), torch.where(turn, hue_b, hue_a)),
    ]


def _oklch(lightness, chroma, hue) -> Float[Tensor, "N 3 1 1"]:
    """OKLCH to sRGB in [0, 1], clipped; matrices from Ottosson, "A perceptual color space", 2020."""
    a, b = chroma * hue.cos(), chroma * hue.sin()
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short
    linear = torch.cat([red, green, blue], dim=1).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
